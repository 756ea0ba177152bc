"""The records on models whose bound is known: linear with exact posteriors, and two bits.

z_2 ~ N(0, 1), z_1 = A z_2 + noise, x = B z_1 + noise, elementwise. If the encoders are the
posteriors p(z_1|x) and p(z_2|z_1), the bound is -log p(x) itself.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import pixels, timestep
from vdm_jax.gaussian import Gaussian
from vdm_jax.related import binomial, hierarchy
from vdm_jax.related.binomial import BinomialDiffusion
from vdm_jax.related.hierarchy import HierarchicalVAE

LEVELS, COUNT = 5, 20_000
A, VAR_1 = 0.7, 0.3  # of z_1 given z_2
B, VAR_X = 0.6, 0.05  # of x given z_1
VAR_Z1 = A**2 + VAR_1


def posterior(gain, noise, var):
    """Gain and variance of p(z|y) for y = gain z + N(0, noise), z ~ N(0, var)."""
    total = gain**2 * var + noise
    return gain * var / total, var * noise / total


GAIN_1, Q_1 = posterior(B, VAR_X, VAR_Z1)
GAIN_2, Q_2 = posterior(A, VAR_1, 1.0)


def linear(gain, var):
    return lambda z: Gaussian(gain * z, jnp.full_like(z, var))


VAE = HierarchicalVAE(
    [linear(GAIN_1, Q_1), linear(GAIN_2, Q_2)], [linear(A, VAR_1)], linear(B, VAR_X),
    (2, 1), (2, 1), LEVELS, "toy",
)  # fmt: skip


def within(sample, expected, most):
    """The mean of the sample is the expected one to five errors, which are below `most`."""
    sample = np.asarray(sample, np.float64)
    error = sample.std(ddof=1) / np.sqrt(len(sample))
    assert abs(sample.mean() - expected) < 5 * error, (sample.mean(), expected, error)
    assert 5 * error < most


def test_each_term_of_a_density_has_its_closed_form_and_they_sum_to_the_log_density():
    x = np.array([-0.8, 0.4])
    many = jnp.broadcast_to(jnp.float32(x[:, None]), (COUNT, 2, 1))
    terms = jax.jit(VAE._replace(levels=None).elbo)(jax.random.key(0), many)
    # E over q(z_1|x) of -log N(x; B z_1, VAR_X), and of KL(q(z_2|z_1) || N(0, 1)).
    mean_1 = GAIN_1 * x
    square = (x - B * mean_1) ** 2 + B**2 * Q_1
    expected = np.sum(0.5 * (square / VAR_X + np.log(2 * np.pi * VAR_X)))
    within(terms.reconstruction, expected, most=0.05)
    second = GAIN_2**2 * (mean_1**2 + Q_1)
    within(terms.prior, np.sum(0.5 * (second + Q_2 - 1 - np.log(Q_2))), most=0.05)
    var_x = B**2 * VAR_Z1 + VAR_X
    within(terms.total, np.sum(0.5 * (x**2 / var_x + np.log(2 * np.pi * var_x))), most=0.05)


def test_the_discretised_bound_is_that_of_its_hierarchy():
    images = jax.random.randint(jax.random.key(0), (6, 2, 1), 0, LEVELS)

    def log_likelihood(z_1):
        log_probs = pixels.decode_log_probs(B * z_1, jnp.log(VAR_X), LEVELS)
        return jnp.take_along_axis(log_probs, images[..., None], -1).sum((1, 2, 3))

    key, x = jax.random.key(3), pixels.encode(images, LEVELS)
    latents = hierarchy.sample_latents(key, x, VAE.encoders)
    expected = hierarchy.elbo(x, latents, VAE.encoders, VAE.decoders, log_likelihood)
    terms = VAE.elbo(key, images)
    np.testing.assert_allclose(terms.reconstruction, expected.reconstruction, rtol=1e-5)
    np.testing.assert_allclose(terms.diffusion, expected.levels[0], rtol=1e-5)
    np.testing.assert_allclose(terms.total, expected.total, rtol=1e-5)


def test_an_image_s_draw_depends_on_its_key_and_not_on_the_batch():
    images = jax.random.randint(jax.random.key(1), (4, 2, 1), 0, LEVELS)
    keys, t = jax.random.split(jax.random.key(0), 4), jnp.linspace(0.0, 1.0, 4)
    by_keys, elbo = jax.jit(VAE.elbo_by_keys), jax.jit(VAE.elbo)
    together = by_keys(images, t, keys)
    for i in range(4):
        alone = elbo(jax.random.split(keys[i])[0], images[i : i + 1])  # a draw of `elbo`
        for a, b in zip(alone, together, strict=True):
            np.testing.assert_allclose(a[0], b[i], rtol=1e-5)
    other = by_keys(images, 1.0 - t, keys)
    np.testing.assert_array_equal(other.total, together.total)  # there are no times
    assert not np.any(by_keys(images, t, jnp.roll(keys, 1)).total == together.total)


def test_samples_have_the_model_s_distribution():
    """The most likely level given z_1, z_1 ~ N(0, VAR_Z1): its bin's probability."""
    made = np.asarray(jax.jit(lambda key: VAE.sample(key, COUNT))(jax.random.key(5)))
    assert made.shape == (COUNT, 2, 1) and np.issubdtype(made.dtype, np.integer)
    z_1 = np.sqrt(VAR_Z1) * np.random.default_rng(0).normal(size=400_000)
    nearest = np.clip(np.floor((B * z_1 + 1) / 2 * LEVELS), 0, LEVELS - 1).astype(int)
    expected = np.bincount(nearest, minlength=LEVELS) / len(z_1)
    found = np.bincount(made.ravel(), minlength=LEVELS) / made.size
    error = np.sqrt(expected * (1 - expected) / made.size)
    assert np.all(np.abs(found - expected) < 5 * error + 1e-3)
    assert abs(np.corrcoef(made[:, 0, 0], made[:, 1, 0])[0, 1]) < 0.05
    # Without levels a sample is the mean, B z_1.
    mean = np.asarray(VAE._replace(levels=None).sample(jax.random.key(5), COUNT))
    np.testing.assert_allclose(mean.var(), B**2 * VAR_Z1, rtol=0.05)


# ---- bits ----


def logits(z, keep):
    """An arbitrary denoiser that mixes the two bits and knows the noise."""
    return 0.8 * z - 1.1 * z[..., ::-1] * keep[..., None] + 0.6


BITS = BinomialDiffusion(logits, (2,), 3)


def test_the_bound_of_bits_is_that_of_binomial_diffusion():
    image = jnp.broadcast_to(jnp.array([0, 1]), (COUNT, 2))
    t, keys = (jnp.arange(COUNT) + 0.5) / COUNT, jax.random.split(jax.random.key(1), COUNT)

    @jax.jit
    def all_three(key):
        key_t, key_u = jax.random.split(key)
        u, times = jax.random.uniform(key_u, image.shape), timestep.antithetic(key_t, COUNT)
        expected = binomial.elbo(image, u, times, logits, binomial.constant_erasure, 3)
        by_keys = BITS.elbo_by_keys(image, t, keys).total
        shuffled = BITS.elbo_by_keys(image, t[::-1], keys[::-1]).total
        return expected, BITS.elbo(key, image), by_keys, shuffled[::-1]

    expected, terms, by_keys, shuffled = all_three(jax.random.key(0))
    np.testing.assert_array_equal(terms.total, expected.total)
    # At the times and with the keys of an evaluation it is the same number in expectation.
    error = np.hypot(by_keys.std(), terms.total.std()) / np.sqrt(COUNT)
    assert abs(by_keys.mean() - terms.total.mean()) < 5 * error < 0.1
    # A draw depends on its key and not on the batch.
    np.testing.assert_allclose(shuffled, by_keys, rtol=1e-5)


def test_samples_of_one_step_have_the_denoiser_s_distribution():
    """T = 1: z_1 is a fair coin, and x ~ B(sigmoid of the logits at keep 0)."""
    made = np.asarray(jax.jit(lambda key: BITS.sample(key, COUNT, 1))(jax.random.key(2)))
    expected, found = np.zeros((2, 2)), np.zeros((2, 2))
    for z in itertools.product((0, 1), repeat=2):
        p = 1 / (1 + np.exp(-np.asarray(logits(jnp.array(z) * 2.0 - 1.0, jnp.zeros(())))))
        expected += 0.25 * np.outer([1 - p[0], p[0]], [1 - p[1], p[1]])
    np.add.at(found, tuple(made.T), 1 / COUNT)
    assert np.all(np.abs(found - expected) < 5 * np.sqrt(expected / COUNT))
