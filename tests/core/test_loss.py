import functools
import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import (
    GaussianData,
    alpha_sigma,
    cubature,
    gauss_hermite,
    gauss_legendre,
    two_points,
)
from scipy import integrate, special, stats

from vdm_jax import loss, parameterization, pixels, process, schedule, timestep

DATA = GaussianData(np.array([0.3, -0.5]), np.array([[0.5, 0.2], [0.2, 0.3]]))
POINT = np.array([0.9, -1.1])


def eps_of(denoise_x: Callable) -> Callable:
    """The same denoiser, predicting the noise."""
    return lambda z, gamma: parameterization.to_eps(denoise_x(z, gamma), z, gamma, kind="x")


def expected_diffusion(
    x: np.ndarray,
    denoise: Callable,
    gamma: Callable,
    num_steps: int | None = None,
    eps: tuple[np.ndarray, np.ndarray] | None = None,
    panels: int = 32,
) -> float:
    """The expectation of loss.diffusion over t and eps at one x [d], by quadrature.

    eps: nodes [m, d] and their weights; by default the ones exact for a denoiser linear in z.
    """
    nodes, weights = eps or (cubature(len(x)), np.full(2 * len(x), 0.5 / len(x)))
    if num_steps is None:
        t, t_weights = gauss_legendre(panels, 8)
    else:
        t, t_weights = (np.arange(num_steps) + 0.5) / num_steps, np.full(num_steps, 1 / num_steps)
    times, noise = np.repeat(t, len(nodes)), np.tile(nodes, (len(t), 1))
    data = np.broadcast_to(x, noise.shape)
    losses = compiled_diffusion(denoise, gamma, num_steps)(data, noise, times)
    return float(np.repeat(t_weights, len(nodes)) * np.tile(weights, len(t)) @ np.asarray(losses))


@functools.cache
def compiled_diffusion(denoise: Callable, gamma: Callable, num_steps: int | None) -> Callable:
    """loss.diffusion of (x, eps, t), compiled once for all the points at which a test asks it."""
    return jax.jit(lambda x, eps, t: loss.diffusion(x, eps, t, denoise, gamma, num_steps))


def whitened_points(data: GaussianData) -> np.ndarray:
    """Points x [2 d, d] whose plain mean is the expectation over the data of any quadratic."""
    return data.mean + cubature(len(data.mean)) @ np.linalg.cholesky(data.cov).T


# ---- the diffusion term against closed forms ----


@pytest.mark.parametrize("data", [DATA, GaussianData(np.zeros(3), 0.25 * np.eye(3))])
@pytest.mark.parametrize("gamma", [schedule.linear(-8.0, 6.0), schedule.cosine(-8.0, 6.0)])
def test_continuous_loss_of_gaussian_data_is_its_closed_form(x64, data, gamma):
    denoise = eps_of(data.denoise)
    losses = [expected_diffusion(x, denoise, gamma) for x in whitened_points(data)]
    np.testing.assert_allclose(np.mean(losses), data.diffusion_continuous(-8.0, 6.0), rtol=1e-6)


@pytest.mark.parametrize("num_steps", [1, 2, 10, 37])
def test_discrete_loss_of_gaussian_data_is_its_closed_form(x64, num_steps):
    denoise, gamma = eps_of(DATA.denoise), schedule.linear(-8.0, 6.0)
    losses = [expected_diffusion(x, denoise, gamma, num_steps) for x in whitened_points(DATA)]
    expected = DATA.diffusion_discrete(np.linspace(-8.0, 6.0, num_steps + 1))
    np.testing.assert_allclose(np.mean(losses), expected, rtol=1e-9)


SAME_ENDS = {
    "linear": schedule.linear(-6.0, 4.0),
    "cosine": schedule.cosine(-6.0, 4.0),
    "beta_linear": schedule.beta_linear(-6.0, 4.0),
    "table": schedule.from_alpha_bar(
        special.expit([6.0, 5.8, 3.0, 2.5, 0.0, -0.1, -1.0, -3.9, -4.0])
    ),
    "cubic": lambda t: -6.0 + 10.0 * (0.2 * t + 0.8 * t**3),
}
DENOISERS = {
    "optimal": eps_of(DATA.denoise),
    "arbitrary": lambda z, gamma: jnp.tanh(z * gamma[:, None]) + 0.1 * z[:, ::-1],
}


@pytest.mark.parametrize("denoiser", DENOISERS)
def test_continuous_loss_does_not_depend_on_the_schedule_between_its_ends(x64, denoiser):
    noise = np.array([[0.4, -1.0], [1.3, 0.2]])  # any, the same for each schedule
    losses = {
        name: expected_diffusion(
            POINT, DENOISERS[denoiser], gamma, eps=(noise, np.array([0.5, 0.5]))
        )
        for name, gamma in SAME_ENDS.items()
    }
    for value in losses.values():
        np.testing.assert_allclose(value, losses["linear"], rtol=1e-6)


def test_continuous_loss_does_depend_on_the_ends(x64):
    wide, narrow = (
        expected_diffusion(POINT, DENOISERS["optimal"], schedule.linear(-6.0, end))
        for end in (4.0, 3.0)
    )
    assert wide - narrow > 1e-3


def test_more_steps_lower_the_loss_and_its_excess_halves_as_they_double(x64):
    gamma, denoise = schedule.linear(-6.0, 4.0), DENOISERS["optimal"]
    limit = expected_diffusion(POINT, denoise, gamma)
    steps = [16, 32, 64, 128, 256]
    excess = np.array([expected_diffusion(POINT, denoise, gamma, n) - limit for n in steps])
    assert np.all(np.diff(excess) < 0)
    assert np.all(excess > 0)
    ratios = excess[:-1] / excess[1:]
    np.testing.assert_allclose(ratios[-1], 2.0, rtol=0.02)
    # The rate itself is approached at rate 1: log2 of successive distances from 2 is about 1.
    distances = np.abs(ratios - 2.0)
    np.testing.assert_allclose(distances[:-1] / distances[1:], 2.0, rtol=0.3)


@pytest.mark.parametrize("kind", parameterization.KINDS)
def test_discrete_loss_is_the_kl_of_posterior_and_reverse_for_each_latent(x64, kind):
    num_steps, batch = 12, 24
    gamma = schedule.cosine(-9.0, 5.0)
    x, eps = (jax.random.normal(jax.random.key(i), (batch, 3, 2, 1)) for i in (0, 1))
    t = (jnp.arange(batch) + 0.5) / batch

    def denoise(z, gamma_t):
        return 0.3 * jnp.sin(z + process.expand(gamma_t, z))

    s, t_grid = timestep.grid(t, num_steps)
    gamma_s, gamma_t = gamma(s), gamma(t_grid)
    z_t = process.marginal(x, gamma_t).at(eps)
    x_hat = parameterization.to_x(denoise(z_t, gamma_t), z_t, gamma_t, kind)
    q = process.posterior(z_t, x, gamma_s, gamma_t)
    kl = q.kl(process.reverse(z_t, x_hat, gamma_s, gamma_t)).sum((1, 2, 3))
    np.testing.assert_allclose(
        loss.diffusion(x, eps, t, denoise, gamma, num_steps, kind), num_steps * kl, rtol=1e-9
    )


@pytest.mark.parametrize("num_steps", [None, 1000])
def test_float32_diffusion_loss_agrees_with_float64(num_steps):
    def value(kind):
        x, eps = (np.random.default_rng(i).normal(size=(64, 5)) for i in (0, 1))
        t = (np.arange(64) + 0.5) / 64
        return loss.diffusion(
            jnp.asarray(x, kind),
            jnp.asarray(eps, kind),
            jnp.asarray(t, kind),
            lambda z, gamma_t: 0.5 * z,
            schedule.linear(-13.3, 5.0),
            num_steps,
        )

    single = value(jnp.float32)
    with jax.enable_x64(True):
        double = value(jnp.float64)
    assert single.dtype == jnp.float32
    assert double.dtype == jnp.float64
    # gamma(t) - gamma(s) = 0.0183 is a difference of float32 numbers up to 13.
    np.testing.assert_allclose(single, double, rtol=1e-5 if num_steps is None else 3e-4)


def test_a_step_of_the_grid_gives_one_loss_wherever_in_it_the_time_is_drawn(x64):
    x, eps = jnp.ones((3, 2)), jnp.full((3, 2), 0.7)
    t = jnp.array([0.21, 0.25, 0.399])
    losses = loss.diffusion(x, eps, t, DENOISERS["optimal"], SAME_ENDS["linear"], 5)
    np.testing.assert_allclose(losses, losses[0], rtol=1e-12)


def test_time_zero_gives_a_finite_loss_of_the_first_step():
    x, eps = jnp.ones((2, 2)), jnp.full((2, 2), 0.7)
    at_zero, inside = loss.diffusion(
        x, eps, jnp.array([0.0, 0.05]), DENOISERS["arbitrary"], SAME_ENDS["cosine"], 10
    )
    assert at_zero == inside


# ---- prior and reconstruction ----


@pytest.mark.parametrize("gamma_1", [-1.0, 2.0, 5.0])
def test_prior_is_the_kl_to_the_standard_normal(x64, gamma_1):
    x = np.array([[0.3, -0.9], [1.0, 0.0]])
    alpha, sigma = alpha_sigma(gamma_1)

    def kl(mean):
        q, p = stats.norm(mean, sigma), stats.norm()
        return integrate.quad(
            lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), -12, 12, epsabs=1e-13, limit=200
        )[0]

    expected = [sum(kl(alpha * value) for value in row) for row in x]
    np.testing.assert_allclose(loss.prior(jnp.asarray(x), gamma_1), expected, rtol=1e-8)


def test_prior_keeps_its_digits_in_float32_when_z_1_is_nearly_pure_noise():
    # (sigma^2 - 1 - log sigma^2)/2 is alpha^4/4 there, far below the roundings of sigma^2.
    x = np.zeros((1, 4), np.float32)
    value = loss.prior(jnp.asarray(x), 6.0)
    alpha2 = 1 / (1 + np.exp(6.0))
    np.testing.assert_allclose(value, [4 * 0.5 * (-alpha2 - np.log1p(-alpha2))], rtol=1e-4)


@pytest.mark.parametrize("shape", [(2,), (2, 1, 1), (1, 2, 1)])
def test_prior_averages_to_its_closed_form_over_gaussian_data(x64, shape):
    x = whitened_points(DATA).reshape(-1, *shape)
    np.testing.assert_allclose(loss.prior(jnp.asarray(x), 2.5).mean(), DATA.prior(2.5), rtol=1e-12)


def expected_reconstruction(level: int, gamma_0: float, levels: int) -> float:
    """E over z_0 of -log p(level|z_0), from the definition, for one pixel."""
    values = 2 * (np.arange(levels) + 0.5) / levels - 1
    scale = np.exp(0.5 * gamma_0)

    def integrand(eps):
        logits = -0.5 * ((values[level] + scale * eps - values) / scale) ** 2
        return stats.norm.pdf(eps) * (special.logsumexp(logits) - logits[level])

    return integrate.quad(integrand, -9, 9, epsabs=1e-11, limit=400)[0]


@pytest.mark.parametrize(("levels", "gamma_0"), [(2, -1.0), (4, -3.0), (17, -4.0), (256, -13.3)])
def test_reconstruction_averages_to_its_definition(x64, levels, gamma_0):
    nodes, weights = gauss_legendre(200, 4)
    eps = 18 * nodes - 9
    weights = 18 * weights * stats.norm.pdf(eps)
    reconstruction = jax.jit(lambda images, eps: loss.reconstruction(images, eps, gamma_0, levels))
    for level in (0, levels // 2):
        values = reconstruction(np.full((len(eps), 1), level), eps[:, None])
        np.testing.assert_allclose(
            weights @ values, expected_reconstruction(level, gamma_0, levels), rtol=1e-6, atol=1e-9
        )


@pytest.mark.parametrize(("levels", "gamma_0"), [(17, -7.0), (None, -3.0)])
def test_bound_without_eps_0_has_the_expected_reconstruction(levels, gamma_0):
    """Against the mean over noise, of integers and of continuous data; the rest is the same."""
    rng = np.random.default_rng(3)
    images = rng.integers(0, 17, (2, 5)) if levels else rng.normal(size=(2, 5))
    images, gamma = jnp.asarray(np.repeat(images, 4000, axis=0)), schedule.linear(gamma_0, 5.0)
    eps_0, eps = jax.random.normal(jax.random.key(0), (2, *images.shape))
    t = jnp.linspace(0.0, 1.0, len(images))
    drawn, expected = (
        loss.elbo_given(images, noise, eps, t, elementwise, gamma, levels)
        for noise in (eps_0, None)
    )
    chex.assert_trees_all_equal(drawn[1:], expected[1:])
    for row, at in zip(np.split(np.asarray(drawn.reconstruction), 2), (0, 4000), strict=True):
        error = row.std() / np.sqrt(len(row))
        assert 0 < abs(row.mean() - expected.reconstruction[at]) < 4 * error
    assert np.ptp(expected.reconstruction[:4000]) == 0.0


def test_reconstruction_is_a_sum_over_the_elements_and_nonnegative():
    images = np.random.default_rng(0).integers(0, 8, (3, 4, 2, 3))
    eps = jax.random.normal(jax.random.key(0), images.shape)
    gamma_0 = jnp.array([-4.0, -2.0, 0.0])
    values = loss.reconstruction(images, eps, gamma_0, 8)
    flat = loss.reconstruction(
        images.reshape(-1, 1), eps.reshape(-1, 1), jnp.repeat(gamma_0, 24), 8
    )
    np.testing.assert_allclose(values, flat.reshape(3, 24).sum(1), rtol=1e-5)
    assert np.all(values > 0)


# ---- the whole bound against the exact likelihood ----


linear_once = functools.cache(schedule.linear)


def gaussian_bound(x: np.ndarray, reach: float, num_steps: int | None) -> float:
    """The bound of continuous data, with the decoder N(x; z_0/alpha_0, sigma_0^2/alpha_0^2)."""
    gamma = linear_once(-reach, reach)
    reconstruction = 0.5 * len(x) * (math.log(2 * math.pi) - reach + 1.0)
    diffusion = expected_diffusion(x, DENOISERS["optimal"], gamma, num_steps)
    return reconstruction + float(loss.prior(jnp.asarray(x)[None], reach)[0]) + diffusion


def test_bound_with_the_optimal_denoiser_tends_to_the_exact_likelihood(x64):
    exact = -DATA.log_prob(POINT)
    # In continuous time it is an equality, of a model that is the data's as the reach grows.
    gaps = np.abs([gaussian_bound(POINT, reach, None) - exact for reach in (4.0, 8.0, 16.0)])
    assert np.all(gaps[1:] < 0.05 * gaps[:-1])
    assert gaps[-1] < 1e-6
    # Discrete time: the gap is of order 1/T, so that extrapolating from two T closes it.
    coarse, fine = (gaussian_bound(POINT, 16.0, n) - exact for n in (1000, 2000))
    assert 0.01 < fine < coarse
    np.testing.assert_allclose(2 * fine - coarse, 0.0, atol=2e-2 * coarse)


def test_average_bound_is_above_the_entropy_and_tends_to_it(x64):
    points = whitened_points(DATA)
    excess = [
        np.mean([gaussian_bound(x, reach, None) for x in points]) - DATA.entropy()
        for reach in (2.0, 4.0, 16.0)
    ]
    assert excess[0] > excess[1] > 1e-3
    assert abs(excess[2]) < 1e-6


def test_bound_of_one_balanced_binary_pixel_is_one_bit(x64):
    # Two levels, equally likely: -log p = ln 2. The optimal denoiser isn't linear here.
    low, high = -9.0, 9.0
    nodes, weights = gauss_hermite(80)
    gamma = schedule.linear(low, high)
    denoise = eps_of(lambda z, g: two_points(z, g[:, None]))
    for level, x in ((0, -0.5), (1, 0.5)):
        diffusion = expected_diffusion(np.array([x]), denoise, gamma, eps=(nodes[:, None], weights))
        prior = float(loss.prior(jnp.array([[x]]), high)[0])
        total = expected_reconstruction(level, low, 2) + prior + diffusion
        np.testing.assert_allclose(total, np.log(2), atol=2e-5)
        np.testing.assert_allclose(loss.bits_per_dim(total, (1,)), 1.0, atol=3e-5)


# ---- elbo ----

VAR = 0.3


def elementwise(z, gamma_t):
    """The noise predicted by the optimal denoiser for independent x ~ N(0, VAR)."""
    g = process.expand(gamma_t, z)
    var = VAR * jax.nn.sigmoid(-g) + jax.nn.sigmoid(g)
    return jnp.sqrt(jax.nn.sigmoid(g)) * z / var


@pytest.mark.parametrize("method", timestep.METHODS)
@pytest.mark.parametrize("num_steps", [None, 1, 10])
def test_elbo_is_unbiased_in_each_term(num_steps, method):
    levels, low, high = 4, -3.0, 2.0
    images = np.arange(8).reshape(4, 2) % levels
    gamma = schedule.linear(low, high)
    keys = jax.random.split(jax.random.key(0), 3000)
    terms = jax.jit(
        jax.vmap(
            lambda key: loss.elbo(
                key, images, elementwise, gamma, levels, num_steps, timesteps=method
            )
        )
    )(keys)
    with jax.enable_x64(True):
        x = np.asarray(pixels.encode(images, levels))
        diffusion = [expected_diffusion(row, elementwise, gamma, num_steps) for row in x]
        prior = loss.prior(jnp.asarray(x), high)
    per_level = [expected_reconstruction(k, low, levels) for k in range(levels)]
    reconstruction = np.array(per_level)[images].sum(1)
    for estimate, expected in (
        (terms.reconstruction, reconstruction),
        (terms.diffusion, np.array(diffusion)),
    ):
        error = np.asarray(estimate).std(0) / np.sqrt(len(keys))
        assert np.all(error < 0.1 * expected)
        assert np.all(np.abs(estimate.mean(0) - expected) < 4 * error)
    np.testing.assert_allclose(terms.prior, np.broadcast_to(prior, (3000, 4)), rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "levels", "num_steps"),
    [
        ((12,), 2, None),
        ((12,), 17, 10),
        ((4, 3, 1), 256, None),
        ((4, 3, 1), 2, 10),
        ((5, 7, 3), 17, None),
        ((5, 7, 3), 256, 1),
    ],
)
def test_elbo_of_an_event_of_any_shape_is_that_of_its_flat_vector(shape, levels, num_steps):
    images = np.random.default_rng(0).integers(0, levels, (3, *shape))
    gamma, key = schedule.cosine(-8.0, 4.0), jax.random.key(1)
    elbo = jax.jit(lambda array: loss.elbo(key, array, elementwise, gamma, levels, num_steps))
    shaped, flat = elbo(images), elbo(images.reshape(3, -1))
    chex.assert_trees_all_close(shaped, flat, rtol=1e-4)
    chex.assert_tree_all_finite(shaped)
    chex.assert_shape(shaped, (3,))
    np.testing.assert_allclose(shaped.total, sum(shaped), rtol=1e-6)
    # Each of the three is a KL, or minus the log of a probability.
    assert np.all(np.asarray(shaped.reconstruction) >= -1e-7 * math.prod(shape))  # roundings
    assert np.all(np.asarray(shaped.prior) > 0)
    assert np.all(np.asarray(shaped.diffusion) > 0)


def test_elbo_draws_independent_noise_for_the_two_latents():
    # With eps_hat = 0 both terms show their noise: that of z_0 must not be that of z_t.
    images = np.full((400, 6), 3)
    terms = jax.jit(
        lambda key: loss.elbo(key, images, lambda z, g: 0 * z, schedule.linear(-4.0, -3.9), 8)
    )(jax.random.key(0))
    correlation = np.corrcoef(terms.reconstruction, terms.diffusion)[0, 1]
    assert abs(correlation) < 4 / np.sqrt(400)
    # 0.05 sum eps^2 has mean 0.05 * 6.
    assert abs(terms.diffusion.mean() / 0.3 - 1) < 4 * np.sqrt(2 / 2400)


def test_elbo_is_the_same_number_jitted_and_mapped_over_keys():
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3))
    gamma = schedule.linear(-13.3, 5.0)

    def total(key):
        return loss.elbo(key, images, elementwise, gamma).total

    keys = jax.random.split(jax.random.key(0), 3)
    plain, mapped = total(keys[0]), jax.jit(jax.vmap(total))(keys)
    # z_0 / alpha_0 in float32 carries noise of scale exp(-6.65) with some four digits.
    np.testing.assert_allclose(jax.jit(total)(keys[0]), plain, rtol=3e-4)
    np.testing.assert_allclose(mapped[0], plain, rtol=3e-4)
    assert len(np.unique(mapped)) == mapped.size


def test_elbo_takes_raw_keys_and_default_floats(dtype):
    terms = jax.eval_shape(
        lambda key: loss.elbo(key, np.zeros((2, 3), int), elementwise, SAME_ENDS["linear"], 4),
        jax.random.PRNGKey(0),
    )
    assert [term.dtype for term in terms] == [dtype] * 3


@pytest.mark.parametrize("num_steps", [None, 10])
def test_gradient_for_learned_end_points_agrees_with_finite_differences(x64, num_steps):
    images = np.random.default_rng(0).integers(0, 8, (6, 3))

    def value(params):
        gamma = schedule.linear(params[0], params[1])

        def denoise(z, gamma_t):
            return params[2] * elementwise(z, gamma_t)

        return loss.elbo(jax.random.key(0), images, denoise, gamma, 8, num_steps).total.mean()

    params = jnp.array([-4.0, 3.0, 0.8])
    h = 1e-5
    value = jax.jit(value)
    numeric = [(value(params + row) - value(params - row)) / (2 * h) for row in h * np.eye(3)]
    np.testing.assert_allclose(jax.grad(value)(params), numeric, rtol=1e-7, atol=1e-8)
    assert np.all(np.abs(np.array(numeric)) > 1e-3)


# ---- bits per dimension ----


def test_uniform_bytes_cost_eight_bits_per_dimension():
    nats = np.array([12.0, 24.0]) * np.log(256)
    np.testing.assert_allclose(loss.bits_per_dim(nats, (2, 2, 3)), [8.0, 16.0], rtol=1e-6)


def test_bits_per_dim_counts_the_event_and_not_the_batch():
    assert loss.bits_per_dim(jnp.ones(7), (4, 5)).shape == (7,)
    np.testing.assert_allclose(loss.bits_per_dim(20 * np.log(2.0), (4, 5)), 1.0, rtol=1e-6)


# ---- errors ----


def diffusion_error(match: str, x=(2, 3), eps=(2, 3), t=(2,), **options) -> None:
    options = {"denoise": lambda z, g: z, "gamma": SAME_ENDS["linear"]} | options
    with pytest.raises(ValueError, match=match):
        loss.diffusion(jnp.zeros(x), jnp.zeros(eps), jnp.zeros(t), **options)


def test_diffusion_refuses_arrays_that_do_not_go_together():
    diffusion_error(r"x \(2, 3\) and eps \(2, 1\) differ in shape", eps=(2, 1))
    diffusion_error(r"t must be \[2\], one time per example, got shape \(2, 1\)", t=(2, 1))
    diffusion_error(r"t must be \[2\], one time per example, got shape \(\)", t=())


@pytest.mark.parametrize("num_steps", [None, 5])
def test_diffusion_refuses_a_gamma_or_a_denoiser_of_the_wrong_shape(num_steps):
    diffusion_error(
        r"gamma must map \(2,\) to \(2,\), but returned \(\)",
        gamma=lambda t: t.sum(),
        num_steps=num_steps,
    )
    diffusion_error(
        r"prediction has shape \(2,\), but z_t has \(2, 3\)",
        denoise=lambda z, g: z[:, 0],
        num_steps=num_steps,
    )


@pytest.mark.parametrize("num_steps", [0, -1, 1.5, True])
def test_zero_steps_never_mean_infinitely_many(num_steps):
    diffusion_error(r"num_steps must be an integer of at least 1.*None", num_steps=num_steps)


def test_unknown_names_are_refused():
    diffusion_error(r"kind must be one of eps, x, v, score, got 'noise'", kind="noise")
    with pytest.raises(ValueError, match=r"timesteps must be one of uniform, antithetic, got 'x'"):
        loss.elbo(
            jax.random.key(0),
            np.zeros((1, 2), int),
            elementwise,
            SAME_ENDS["linear"],
            timesteps="x",
        )


def test_reconstruction_refuses_noise_of_another_shape():
    with pytest.raises(ValueError, match=r"images \(2, 3\) and eps_0 \(2, 1\) differ in shape"):
        loss.reconstruction(np.zeros((2, 3), int), jnp.zeros((2, 1)), 0.0, 4)


def test_levels_below_one_are_refused():
    with pytest.raises(ValueError, match=r"levels must be an integer of at least 1, got 0"):
        loss.elbo(jax.random.key(0), np.zeros((1, 2), int), elementwise, SAME_ENDS["linear"], 0)


def test_bits_per_dim_refuses_an_empty_event():
    with pytest.raises(ValueError, match=r"at least one element, got \(3, 0\)"):
        loss.bits_per_dim(jnp.ones(2), (3, 0))
