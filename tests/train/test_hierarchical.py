"""Training's view of a hierarchy, on one whose bound is known: linear, with exact posteriors.

z_2 ~ N(0, 1), z_1 = A z_2 + noise, x = B z_1 + noise, elementwise. If the encoders are the
posteriors p(z_1|x) and p(z_2|z_1), the bound is -log p(x) itself.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import gauss_hermite
from vdm_jax.train.hierarchical import Conditionals, HierarchicalModel

from vdm_jax import loss, pixels
from vdm_jax.gaussian import Gaussian
from vdm_jax.related import hierarchy
from vdm_jax.train.model import BITS, NATS

SHAPE, LEVELS = (2, 1), 5
A, VAR_1 = 0.7, 0.3  # of z_1 given z_2
B, VAR_X = 0.6, 0.05  # of x given z_1
VAR_Z1 = A**2 + VAR_1
PARAMS = {"B": jnp.float32(B)}


def posterior(gain, noise, var):
    """Gain and variance of p(z|y) for y = gain z + N(0, noise), z ~ N(0, var)."""
    total = gain**2 * var + noise
    return gain * var / total, var * noise / total


GAIN_1, Q_1 = posterior(B, VAR_X, VAR_Z1)
GAIN_2, Q_2 = posterior(A, VAR_1, 1.0)


def chain(params, conditioning, dropout):
    """The decoder's B is the parameter; noise on top of it where dropout is on."""
    b = params["B"]
    if dropout is not None:
        b = b + jax.random.normal(dropout)

    def linear(gain, var):
        return lambda z: Gaussian(gain * z, jnp.full_like(z, var))

    return Conditionals([linear(GAIN_1, Q_1), linear(GAIN_2, Q_2)], [linear(A, VAR_1)],
                        linear(b, VAR_X))  # fmt: skip


def model(**changes):
    made = HierarchicalModel(
        lambda key: PARAMS, chain, SHAPE, LEVELS, depth=2, latent_shape=SHAPE, words="toy"
    )
    return dataclasses.replace(made, **changes)


def batch(images):
    return {"images": jnp.asarray(images), "conditioning": jnp.zeros(len(images))}


IMAGE = np.array([[0], [3]], np.uint8)
X = np.asarray(pixels.encode(IMAGE, LEVELS), np.float64)[:, 0]


def within(sample, expected, most):
    """The mean of the sample is the expected one to five errors, which are below `most`."""
    sample = np.asarray(sample, np.float64)
    error = sample.std(ddof=1) / np.sqrt(len(sample))
    assert abs(sample.mean() - expected) < 5 * error, (sample.mean(), expected, error)
    assert 5 * error < most


def test_each_term_of_a_density_has_its_closed_form_and_they_sum_to_the_log_density():
    many = batch(np.broadcast_to(IMAGE, (20_000, *SHAPE)))
    terms = jax.jit(model(density=True).terms)(PARAMS, many, jax.random.key(0))
    # E over q(z_1|x) of -log N(x; B z_1, VAR_X).
    mean_1 = GAIN_1 * X
    square = (X - B * mean_1) ** 2 + B**2 * Q_1
    within(
        terms.reconstruction, np.sum(0.5 * (square / VAR_X + np.log(2 * np.pi * VAR_X))), most=0.05
    )
    # E over q(z_1|x) of KL(q(z_2|z_1) || N(0, 1)).
    second = GAIN_2**2 * (mean_1**2 + Q_1)
    within(terms.prior, np.sum(0.5 * (second + Q_2 - 1 - np.log(Q_2))), most=0.05)
    var_x = B**2 * VAR_Z1 + VAR_X
    within(terms.total, np.sum(0.5 * (X**2 / var_x + np.log(2 * np.pi * var_x))), most=0.05)


def test_the_terms_of_one_key_are_those_of_the_hierarchy_s_bound():
    images = np.random.default_rng(0).integers(0, LEVELS, (6, *SHAPE), np.uint8)
    key = jax.random.key(3)
    terms = model().terms(PARAMS, batch(images), key)

    def log_likelihood(z_1):
        log_probs = pixels.decode_log_probs(B * z_1, jnp.log(VAR_X), LEVELS)
        picked = jnp.take_along_axis(log_probs, jnp.asarray(images, int)[..., None], -1)
        return picked.sum((1, 2, 3))

    of, x = chain(PARAMS, None, None), pixels.encode(images, LEVELS)
    found = hierarchy.elbo(jax.random.split(key)[0], x, of.encoders, of.decoders, log_likelihood)
    np.testing.assert_allclose(terms.total, found.total, rtol=1e-5)
    assert np.ptp(terms.total) > 0.1  # of images that differ


def test_the_discretised_bound_is_that_of_quadrature_and_above_the_log_probability():
    """One element: E over q(z_1|x) and -log p(x) by integrals over z_1."""
    nodes, weights = gauss_hermite(120)
    one = model(event_shape=(1, 1), latent_shape=(1, 1))
    log_p = []
    for level in range(LEVELS):
        image = np.full((1, 1), level, np.uint8)
        x = float(pixels.encode(level, LEVELS))

        def log_likelihood(z_1, level=level):
            logits = -0.5 * (B * z_1[:, None] - np.asarray(pixels.level_values(LEVELS))) ** 2
            logits = logits / VAR_X
            return logits[:, level] - np.logaddexp.reduce(logits, axis=1)

        z_1 = np.sqrt(VAR_Z1) * nodes
        log_p.append(np.log(weights @ np.exp(log_likelihood(z_1))))
        mean_1 = GAIN_1 * x
        reconstruction = -weights @ log_likelihood(mean_1 + np.sqrt(Q_1) * nodes)
        # The exact chain below z_1: what is left of both KLs is that of q(z_1|x) to its marginal.
        kl = 0.5 * ((Q_1 + mean_1**2) / VAR_Z1 - 1 - np.log(Q_1 / VAR_Z1))
        exact = reconstruction + kl
        many = batch(np.broadcast_to(image, (20_000, 1, 1)))
        terms = jax.jit(one.terms)(PARAMS, many, jax.random.key(level))
        within(terms.total, exact, most=0.05)
        assert exact > -log_p[-1]
    np.testing.assert_allclose(np.exp(log_p).sum(), 1.0, rtol=1e-6)


def test_an_image_s_draw_depends_on_its_key_and_not_on_the_batch():
    images = np.random.default_rng(1).integers(0, LEVELS, (5, *SHAPE), np.uint8)
    keys = jax.random.split(jax.random.key(0), 5)
    u = jnp.linspace(0.0, 1.0, 5)
    drawn, terms = jax.jit(model().drawn), jax.jit(model().terms)
    together = drawn(PARAMS, batch(images), u, keys)
    for i in range(5):
        alone = drawn(PARAMS, batch(images[i : i + 1]), u[:1], keys[i : i + 1])
        for a, b in zip(alone.terms, together.terms, strict=True):
            np.testing.assert_allclose(a[0], b[i], rtol=1e-5)
        # and it is a draw of `terms`
        single = terms(PARAMS, batch(images[i : i + 1]), keys[i])
        np.testing.assert_allclose(single.total[0], together.terms.total[i], rtol=1e-5)
    other = drawn(PARAMS, batch(images), 1.0 - u, keys)
    np.testing.assert_array_equal(other.terms.total, together.terms.total)  # there are no times
    np.testing.assert_array_equal(other.weight, 1.0)
    others = drawn(PARAMS, batch(images), u, jnp.roll(keys, 1))
    assert not np.any(others.terms.total == together.terms.total)


def test_dropout_is_on_only_when_asked_for_and_never_in_an_evaluation():
    some, key = batch(np.broadcast_to(IMAGE, (3, *SHAPE))), jax.random.key(0)
    quiet, noisy = (model().terms(PARAMS, some, key, on) for on in (False, True))
    np.testing.assert_array_equal(quiet.prior, noisy.prior)  # the same latents
    assert not np.any(quiet.reconstruction == noisy.reconstruction)


def test_the_unit_is_that_of_the_likelihood():
    assert model().unit is BITS and model(density=True).unit is NATS
    # Eleven times finer pixels cost ln 11 more a pixel as a probability, and as a density nothing.
    keys = jax.random.split(jax.random.key(0), 4000)

    def cost(image, levels, **changes):
        many = batch(np.broadcast_to(image, (4000, *SHAPE)))
        drawn = jax.jit(model(levels=levels, **changes).drawn)
        return float(drawn(PARAMS, many, jnp.zeros(4000), keys).terms.total.mean())

    coarse = np.array([[2], [7]], np.uint8)
    fine = coarse * 11 + 5  # the same x
    grow = cost(fine, 110) - cost(coarse, 10)
    np.testing.assert_allclose(grow, 2 * np.log(11), rtol=0.05)
    same = cost(fine, 110, density=True) - cost(coarse, 10, density=True)
    np.testing.assert_allclose(same, 0.0, atol=1e-3)


def test_samples_have_the_model_s_distribution():
    """The most likely level given z_1, z_1 ~ N(0, VAR_Z1): its bin's probability."""
    count = 20_000
    made = model().sample(PARAMS, jax.random.key(5), jnp.zeros(count), 7)
    assert made.shape == (count, *SHAPE) and jnp.issubdtype(made.dtype, jnp.integer)
    z_1 = np.sqrt(VAR_Z1) * np.random.default_rng(0).normal(size=400_000)
    nearest = np.clip(np.floor((B * z_1 + 1) / 2 * LEVELS), 0, LEVELS - 1).astype(int)
    expected = np.bincount(nearest, minlength=LEVELS) / len(z_1)
    found = np.bincount(np.asarray(made).ravel(), minlength=LEVELS) / made.size
    error = np.sqrt(expected * (1 - expected) / made.size)
    assert np.all(np.abs(found - expected) < 5 * error + 1e-3)
    assert abs(np.corrcoef(np.asarray(made)[:, 0, 0], np.asarray(made)[:, 1, 0])[0, 1]) < 0.05


@pytest.mark.parametrize("density", [False, True])
def test_the_gradient_is_that_of_the_bound_by_finite_differences(x64, density):
    some = batch(np.broadcast_to(IMAGE, (4, *SHAPE)))

    @jax.jit
    def bound(b):
        terms = model(density=density).terms({"B": b}, some, jax.random.key(0))
        return loss.bits_per_dim(terms.total.mean(), SHAPE)

    at, step = jnp.float64(0.5), 1e-5
    numeric = (bound(at + step) - bound(at - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(bound)(at), numeric, rtol=1e-6)
    assert abs(numeric) > 1e-2
