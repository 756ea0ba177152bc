"""A schedule of each example, as a condition gives it: [batch] or [1] to [batch, *event].

Example b has its own ends FIRST[b] and LAST[b], and between them powers POWERS[b] of t.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import alpha_sigma, gauss_legendre, over_times_and_noise

from vdm_jax import VDM, bounds, sampling, timestep, transforms, weighting
from vdm_jax.process import expand
from vdm_jax.related import hierarchy
from vdm_jax.rule import Rule
from vdm_jax.transforms import Coefficients

RNG = np.random.default_rng(0)
ROTATION = np.linalg.qr(RNG.normal(size=(3, 3)))[0]
MEAN = np.array([0.3, -0.5, 0.1])
ROOT = np.tril(RNG.normal(size=(3, 3))) * 0.3 + 0.5 * np.eye(3)
COV = ROOT @ ROOT.T
POINTS = np.array([[0.4, -0.2, 0.9], [-0.7, 0.1, 0.3], [0.4, -0.2, 0.9]])
FIRST, LAST = RNG.uniform(-8.0, -5.0, (3, 3)), RNG.uniform(2.0, 5.0, (3, 3))
FIRST[2], LAST[2] = FIRST[0], LAST[0]  # the last example differs from the first in its path alone
POWERS = np.array([[1.0, 1.0, 1.0], [2.0, 1.0, 3.0], [3.0, 2.0, 1.0]])


def own(t, repeats=1, first=FIRST, last=LAST, powers=POWERS):
    """gamma(t) of each example, which stands `repeats` times in turn in the batch."""
    first, last, powers = (np.repeat(of, repeats, axis=0) for of in (first, last, powers))
    return first + (last - first) * t.reshape(-1, *[1] * (first.ndim - 1)) ** powers


def scales(gamma):
    return jnp.sqrt(jax.nn.sigmoid(-gamma)), jnp.sqrt(jax.nn.sigmoid(gamma))


def exact(z, gamma_t):
    """E[x|z_t] of x ~ N(MEAN, COV)."""
    alpha, sigma = scales(gamma_t)
    of_z = alpha[:, :, None] * COV * alpha[:, None] + jax.vmap(jnp.diag)(sigma**2)
    return MEAN + (alpha * jnp.linalg.solve(of_z, (z - alpha * MEAN)[..., None])[..., 0]) @ COV


def expected(denoise, w=None):
    """The three terms of POINTS in one batch, each averaged over times and noise: [3, points]."""

    def run(x, eps, t):
        gamma = functools.partial(own, repeats=len(x) // len(POINTS))
        levels = None if w is None else Coefficients(None, transforms.of_matrix(w))
        return jnp.stack(VDM(denoise, gamma, (3,), levels, "x").elbo_given(x, eps, t))

    return over_times_and_noise(jax.jit(run), POINTS, None)


def test_the_bound_of_the_exact_denoiser_knows_each_example_s_ends_alone(x64):
    """It is E[-log q(z_0 / alpha_0) + log q(z_1) / N(z_1; 0, I)] over q(.|x)."""
    wanted = []
    for x, first, last in zip(POINTS, FIRST, LAST, strict=True):
        start, (alpha, sigma) = COV + np.diag(np.exp(first)), alpha_sigma(last)
        end = alpha[:, None] * COV * alpha + np.diag(sigma**2)

        def nats(cov, away, noise):
            squares = away @ np.linalg.solve(cov, away) + np.trace(np.linalg.solve(cov, noise))
            return 0.5 * (np.linalg.slogdet(2.0 * np.pi * cov)[1] + squares)

        of_z_1 = nats(end, alpha * (x - MEAN), np.diag(sigma**2))
        of_normal = nats(np.eye(3), alpha * x, np.diag(sigma**2))
        wanted.append(nats(start, x - MEAN, np.diag(np.exp(first))) - of_z_1 + of_normal)
    total = expected(exact).sum(0)
    np.testing.assert_allclose(total, wanted, atol=1e-6)
    assert total[0] == pytest.approx(total[2], abs=1e-6) and abs(total[0] - total[1]) > 0.1


def test_the_bound_of_a_denoiser_of_single_pixels_is_the_integral_along_each_path(x64):
    """E[x_j|(W^T z_t / alpha)_j], which leaves the noise's correlations out."""

    def gain(gamma_t):
        return np.diag(COV) / (np.diag(COV) + jnp.exp(gamma_t) @ ROTATION**2)

    def in_pixels(z, gamma_t):
        x = z / scales(gamma_t)[0] @ ROTATION - MEAN
        return (MEAN + gain(gamma_t) * x) @ ROTATION.T

    t, weights = gauss_legendre(40, 8)
    wanted = []
    for x, *path in zip(POINTS, FIRST, LAST, POWERS, strict=True):
        of_one = functools.partial(
            own, **{k: v[None] for k, v in zip(("first", "last", "powers"), path, strict=True)}
        )
        at, rate = jax.jvp(of_one, (jnp.asarray(t),), (jnp.ones(len(t)),))
        kept, noise = gain(at), ROTATION.T * jnp.exp(at)[:, None] @ ROTATION
        missing = ((1.0 - kept) * (x - MEAN)) @ ROTATION.T
        left = kept[:, :, None] * noise * kept[:, None]
        error = missing**2 + jnp.einsum("ij,njk,ik->ni", ROTATION, left, ROTATION)
        wanted.append(0.5 * weights @ (rate * jnp.exp(-at) * error).sum(1))
    found = expected(in_pixels, ROTATION)[2]
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert abs(found[0] - found[2]) > 0.05


# ---- all that takes a VDM: each example as in a batch where all have its schedule ----

SHAPE, IMAGES = (2, 2), RNG.integers(0, 4, (3, 2, 2))
HAAR, KEY = transforms.haar(1), jax.random.key(1)
OF_PIXELS = [of[:, [0, 1, 2, 0]].reshape(3, 2, 2) for of in (FIRST, LAST, POWERS)]
X = IMAGES / 2.0 - 0.75


def wavy(z, gamma_t):
    return jnp.tanh(z + 0.3 * jnp.roll(z, 1, -1)) * jax.nn.sigmoid(expand(gamma_t, z))


def model(own_of=None, **fields):
    """The VDM of SHAPE with a schedule of each example, or with that of one for all."""
    names = ("first", "last", "powers")
    rows = slice(None) if own_of is None else slice(own_of, own_of + 1)
    gamma = functools.partial(own, **{k: v[rows] for k, v in zip(names, OF_PIXELS, strict=True)})
    return VDM(wavy, gamma, SHAPE, **{"levels": Coefficients(4, HAAR), "kind": "eps"} | fields)


def eager(name):
    """Of a given T: the ancestral chain, through `VDM.sample`, and the solvers."""
    rule = Rule(name, 3, "time" if name == "ancestral" else None)
    return lambda vdm: sampling.sample(KEY, vdm._replace(levels=None), 3, rule)


MASK = np.array([[1.0, 1.0], [1.0, 0.0]])[None]
CALLS = {
    "bound": lambda vdm: jnp.stack(vdm.elbo(KEY, IMAGES), 1),
    "expected reconstruction": lambda vdm: jnp.stack(
        vdm.elbo_given(IMAGES, X, jnp.array([0.2, 0.9, 0.5])), 1
    ),
    "masked": lambda vdm: vdm._replace(levels=None, mask=MASK).elbo(KEY, X).total,
    "T steps": lambda vdm: vdm._replace(num_steps=4).elbo(KEY, IMAGES).total,
    "wider steps": lambda vdm: (
        vdm._replace(num_steps=4, reverse_var="transition").elbo(KEY, IMAGES).total
    ),
    "chain": lambda vdm: bounds.chain(vdm._replace(num_steps=4), KEY, IMAGES),
    "consistency": lambda vdm: jnp.stack(
        bounds.consistency(vdm._replace(num_steps=4), KEY, IMAGES), 1
    ),
    "pixels": lambda vdm: vdm.sample(KEY, 3, 4),
    "ancestral": eager("ancestral"),
    "ddim": eager("ddim"),
    "dpm_solver": eager("dpm_solver"),
    "heun": eager("heun"),
    "ODE": lambda vdm: vdm.log_prob(KEY, IMAGES, rtol=1e-8, atol=1e-8),
}


@pytest.mark.parametrize("name", CALLS)
def test_each_example_goes_by_its_own_schedule(x64, name):
    call = CALLS[name]
    together = np.asarray(jax.jit(lambda: call(model()))())
    alone = [np.asarray(jax.jit(lambda b=b: call(model(b)))())[b] for b in range(3)]
    np.testing.assert_allclose(together, np.stack(alone), rtol=1e-5, atol=1e-6)
    if name != "pixels":  # else nothing is shown
        assert np.abs(together[1] - np.asarray(jax.jit(lambda: call(model(0)))())[1]).max() > 1e-3


def test_a_batch_may_have_one_example():
    """A function of its condition, which takes one time, or one of each example, at once."""

    def gamma(t):
        each = jnp.broadcast_to(t, 1)  # fails for two times
        return jax.vmap(lambda t, powers: 18.0 * t**powers - 13.0)(each, POWERS[1:2])

    times = np.array([[0.0], [0.3], [1.0]])
    found = timestep.steps(gamma, jnp.asarray(times[:, 0]))
    np.testing.assert_allclose(found[:, 0], 18.0 * times ** POWERS[1] - 13.0, rtol=1e-5)


def test_what_needs_one_schedule_says_so():
    t = jnp.array([0.1, 0.5, 0.9])
    with pytest.raises(ValueError, match="needs one schedule for all features"):
        weighting.at(weighting.simple(), model(), t)
    with pytest.raises(ValueError, match="a hierarchy needs one schedule, not one of each feat"):
        hierarchy.of_diffusion(model(num_steps=3))
    with pytest.raises(ValueError, match="gamma is of 3 examples, the batch has 5: give a condi"):
        timestep.of_batch(jnp.zeros((3, 2)), jnp.zeros((5, 2)))
    # A batch of another size than that of the conditions, and a vector over features.
    flat = VDM(wavy, lambda t: t + jnp.arange(2.0), (2,), None)
    with pytest.raises(ValueError, match=r"gamma must map \(1,\) to \(1,\), but returned \(2,\)"):
        flat.elbo(KEY, X[:, 0])
    wrong = VDM(wavy, functools.partial(own, repeats=1), (2, 3), None)
    with pytest.raises(ValueError, match=r"event \(2, 3\); of one time it returned .* \(3,\)"):
        wrong.sample(KEY, 3, 2)
