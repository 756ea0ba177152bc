"""Weighted losses: from each method's own definition, and what they bound."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import ndtri

from vdm_jax import process, schedule, weighting
from vdm_jax.distributions import Gaussian
from vdm_jax.parameterization import to_v, to_x
from vdm_jax.vdm import VDM

X, EPS, EPS_HAT = 0.7, 0.4, -0.5
VAR = 0.6  # of Gaussian data
GAMMA_0, GAMMA_1 = -5.0, 4.0


def cosine(t):
    return schedule.cosine(-np.inf, np.inf, s=0.0)(t)


def error_of(to, gamma):
    """The squared error of what `to` makes of a prediction of the noise."""
    z_t = schedule.alpha(gamma) * X + schedule.sigma(gamma) * EPS
    true, predicted = (to(jnp.full_like(z_t, of), z_t, gamma, "eps") for of in (EPS, EPS_HAT))
    return jnp.square(true - predicted)


def of_eps(t, gamma):
    return jnp.square(EPS - EPS_HAT)


def of_p2(t, gamma):
    return of_eps(t, gamma) / (1.0 + schedule.snr(gamma))


def of_min_snr(t, gamma):
    return jnp.minimum(schedule.snr(gamma), 5.0) * error_of(to_x, gamma)


def of_v(t, gamma):
    return error_of(to_v, gamma)


def of_flow(t, gamma):
    """Flow matching on z = (1 - t) x + t eps, whose velocity is eps - x."""
    x_hat = X + t * (EPS - EPS_HAT) / (1.0 - t)
    return jnp.square((EPS - X) - (EPS_HAT - x_hat))


def of_edm(t, gamma):
    """EDM on y = x + s eps, with the denoiser D = y - s eps_hat."""
    s = jnp.exp(-1.2 + 1.2 * ndtri(t))
    return (s**2 + 0.25) / (0.5 * s) ** 2 * jnp.square(s * (EPS - EPS_HAT))


@pytest.mark.parametrize(
    ("name", "times", "own_loss"),
    [
        ("simple", cosine, of_eps),
        ("p2", cosine, of_p2),
        ("min_snr", cosine, of_min_snr),
        ("v", cosine, of_v),
        ("v", lambda t: 2.0 * jnp.log(t / (1.0 - t)), of_flow),
        ("edm", lambda t: 2.0 * (-1.2 + 1.2 * ndtri(t)), of_edm),
    ],
)
def test_weight_is_that_of_the_methods_own_loss_at_its_own_times(x64, name, times, own_loss):
    """At uniform t of its schedule: w(gamma) gamma'(t) times the error of eps, up to a factor."""
    t = jnp.linspace(0.02, 0.98, 49)
    gamma, slope = jax.jvp(times, (t,), (jnp.ones_like(t),))
    ours = weighting.NAMED[name]()(gamma) * slope * jnp.square(EPS - EPS_HAT)
    ratio = ours / own_loss(t, gamma)
    np.testing.assert_allclose(ratio / ratio[0], 1.0, rtol=1e-9)


def test_simple_weight_of_any_schedule_leaves_the_plain_error_of_the_noise(x64):
    of, t = schedule.beta_linear(-9.0, 5.0), jnp.linspace(0.01, 0.99, 99)
    vdm = VDM(lambda z_t, gamma_t: 0.0 * z_t, of, (1,), None)
    x, eps = jnp.full((99, 1), X), jnp.full((99, 1), EPS)
    factor = weighting.at(weighting.simple(of), vdm, t)
    np.testing.assert_allclose(
        factor * vdm.elbo_given(x, eps, t).diffusion, 0.5 * EPS**2, rtol=1e-4
    )


def of_gaussian_data(gamma_0=GAMMA_0, shift=lambda gamma: 0.0 * gamma):
    """The exact model of N(0, VAR), but for a shift of its prediction."""

    def denoise(z_t, gamma_t):
        share = schedule.sigma(gamma_t) / (
            schedule.alpha_bar(gamma_t) * VAR + jax.nn.sigmoid(gamma_t)
        )
        return share[:, None] * z_t + shift(gamma_t)[:, None]

    return VDM(denoise, schedule.linear(gamma_0, GAMMA_1), (1,), None)


def weighted_loss(vdm, weight, count=2000):
    """Its expectation: the midpoint rule over t, and points with the moments of x and eps."""
    t = (jnp.arange(count) + 0.5) / count
    signs = jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    x, eps = jnp.tile(np.sqrt(VAR) * signs[:, :1], (count, 1)), jnp.tile(signs[:, 1:], (count, 1))
    t = jnp.repeat(t, 4)
    return float(jnp.mean(weighting.at(weight, vdm, t) * vdm.elbo_given(x, eps, t).diffusion))


def test_weight_one_gives_the_diffusion_term_of_the_same_draws():
    vdm, x = of_gaussian_data(), jnp.linspace(-1.0, 1.0, 6)[:, None]
    key = jax.random.key(0)
    got = weighting.loss(key, vdm, x, weighting.bound())
    np.testing.assert_array_equal(got, vdm.elbo(key, x).diffusion)
    doubled = weighting.loss(key, vdm, x, lambda gamma: 2.0 * jnp.ones_like(gamma))
    np.testing.assert_allclose(doubled, 2.0 * got, rtol=1e-6)


@pytest.mark.parametrize("name", ["sigmoid", "v", "bound"])
def test_monotone_loss_of_gaussian_data_is_the_mean_of_the_bounds_on_noised_data(x64, name):
    """The exact model's bound on z_t is its log density, less the entropy of q(z_t|x)."""
    weight, gammas = weighting.NAMED[name](), jnp.linspace(GAMMA_0, GAMMA_1, 4001)
    middle = jnp.append(gammas[0], 0.5 * (gammas[1:] + gammas[:-1]))

    def bound(gamma):
        zero = jnp.zeros_like(gamma)
        true = process.marginal_of_gaussian(Gaussian(zero, zero + VAR), gamma)
        return process.marginal(jnp.sqrt(VAR) * jnp.ones_like(gamma), gamma).kl(true)

    share = weighting.shares(weight, gammas)
    np.testing.assert_allclose(share.sum(), 1.0, rtol=1e-12)
    mean = jnp.sum(share * bound(middle)) - bound(gammas[-1:])[0]
    np.testing.assert_allclose(
        weighted_loss(of_gaussian_data(), weight), weight(gammas[-1]) * mean, rtol=1e-5
    )


def test_a_weight_that_falls_prefers_a_model_that_is_worse_at_every_noise_level(x64):
    """One errs among much noise, the other less, and in the middle, where `simple` has its peak."""

    def erring(low, high, by):
        return lambda gamma: by * ((gamma > low) & (gamma < high))

    worse, better = erring(3.0, 4.0, 1.0), erring(-0.5, 0.5, 0.9)
    for gamma_0 in (GAMMA_0, -1.0, 0.0, 2.0, 3.5):
        of_bound = [
            weighted_loss(of_gaussian_data(gamma_0, shift), weighting.bound())
            for shift in (worse, better)
        ]
        assert of_bound[0] > of_bound[1] + 0.01
    losses = {
        name: [
            weighted_loss(of_gaussian_data(shift=shift), weighting.NAMED[name]())
            for shift in (worse, better)
        ]
        for name in weighting.NAMED
    }
    for name in ("bound", "v", "sigmoid"):
        assert losses[name][0] > losses[name][1]
    for name in ("simple", "min_snr", "p2"):  # that of EDM falls from gamma = 3.3 on
        assert losses[name][0] < losses[name][1]


def test_which_weights_are_monotone_depends_on_where():
    monotone = {
        name for name, of in weighting.NAMED.items() if weighting.is_monotone(of(), -13.3, 5.0)
    }
    assert monotone == {"bound", "v", "sigmoid"}
    assert weighting.is_monotone(weighting.simple(), -8.0, 0.0)
    assert weighting.is_monotone(weighting.edm(), -13.3, 3.0)
    assert "bounds nothing" in weighting.statement("simple", -8.0, 5.0)
    share = 100.0 * (1.0 + np.exp(-7.0)) / (1.0 + np.exp(6.0))
    assert f"{share:.2g}% are the data" in weighting.statement("sigmoid", -8.0, 5.0)
    with pytest.raises(ValueError, match="falls somewhere from gamma = -8 to 5"):
        weighting.shares(weighting.simple(), np.array([-8.0, 5.0]))


def test_what_has_no_one_noise_level_is_refused():
    vdm = of_gaussian_data()
    for other, match in (
        (vdm._replace(num_steps=10), "num_steps=10"),
        (vdm._replace(gamma=lambda t: jnp.stack([t, t], axis=1)), "of each feature"),
    ):
        with pytest.raises(ValueError, match=match):
            weighting.at(weighting.v(), other, jnp.array([0.5]))
