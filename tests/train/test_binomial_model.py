"""Training's view of binomial diffusion, on two bits whose bound is a finite sum."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from vdm_jax.train.binomial import BinomialModel

from vdm_jax.train.model import BITS

SHAPE, STEPS = (2,), 3
PARAMS = {"w": jnp.array([0.8, -1.1, 0.6])}


def logits(params, z, keep):
    """An arbitrary denoiser that mixes the two bits and knows the noise."""
    w = params["w"]
    return w[0] * z + w[1] * z[..., ::-1] * keep + w[2]


def bind(params, conditioning, dropout):
    shift = 0.0 if dropout is None else jax.random.normal(dropout)
    return lambda z_t, keep_t: logits(params, z_t, keep_t[:, None]) + shift


MODEL = BinomialModel(lambda key: PARAMS, bind, SHAPE, STEPS)


def batch(images):
    return {"images": jnp.asarray(images), "conditioning": jnp.zeros(len(images))}


def kernel(keep):
    """P(bit after = column|bit before = row)."""
    return keep * np.eye(2) + (1 - keep) / 2


def exact(x, num_steps=STEPS):
    """The bound of the image x by summing over all latents, in numpy: nats."""
    keep = 1 - np.arange(num_steps + 1) / num_steps
    total = 0.0
    for i in range(1, num_steps + 1):
        first, step = kernel(keep[i - 1]), kernel(keep[i] / keep[i - 1])
        marginal = first @ step
        # P(z_s = column|z_t = row, x) for each x.
        bayes = [first[b][None, :] * step.T / marginal[b][:, None] for b in (0, 1)]
        for z in itertools.product((0, 1), repeat=2):
            weight = np.prod([marginal[x[d], z[d]] for d in range(2)])
            odds = np.asarray(logits(PARAMS, jnp.array(z) * 2.0 - 1.0, keep[i]), np.float64)
            p_one = 1 / (1 + np.exp(-odds))
            for d in range(2):
                q = bayes[x[d]][z[d]]
                p = p_one[d] * bayes[1][z[d]] + (1 - p_one[d]) * bayes[0][z[d]]
                used = q > 0
                total += weight * np.sum(q[used] * np.log(q[used] / p[used]))
    return total


IMAGES = np.array(list(itertools.product((0, 1), repeat=2)), np.uint8)


def test_the_terms_have_the_expectation_of_the_enumeration():
    count = 20_000
    # In turn: the times of a batch rise from its first example to its last.
    many = batch(np.tile(IMAGES, (count, 1)))
    terms = jax.jit(MODEL.terms)(PARAMS, many, jax.random.key(0))
    np.testing.assert_array_equal(terms.reconstruction, 0.0)
    np.testing.assert_allclose(terms.prior, 0.0, atol=1e-6)
    for x, total in zip(IMAGES, np.asarray(terms.total).reshape(count, 4).T, strict=True):
        error = 5 * total.std(ddof=1) / np.sqrt(count)
        assert abs(total.mean() - exact(x)) < error < 0.05 * exact(x)
    assert np.ptp([exact(x) for x in IMAGES]) > 0.5


def test_so_have_the_draws_of_an_evaluation_at_times_of_its_own():
    count = 20_000
    image = np.broadcast_to(IMAGES[1], (count, 2))
    u = (jnp.arange(count) + 0.5) / count
    keys = jax.random.split(jax.random.key(1), count)
    drawn = jax.jit(MODEL.drawn)(PARAMS, batch(image), u, keys)
    total = np.asarray(drawn.terms.total)
    error = 5 * total.std(ddof=1) / np.sqrt(count)
    assert abs(total.mean() - exact(IMAGES[1])) < error < 0.05 * exact(IMAGES[1])
    np.testing.assert_array_equal(drawn.t, u)
    np.testing.assert_array_equal(drawn.weight, 1.0)


def test_an_image_s_draw_depends_on_its_key_and_time_and_not_on_the_batch():
    keys, u = jax.random.split(jax.random.key(0), 4), jnp.array([0.1, 0.4, 0.7, 0.95])
    drawn = jax.jit(MODEL.drawn)
    together = drawn(PARAMS, batch(IMAGES), u, keys).terms.total
    for i in range(4):
        at = slice(i, i + 1)
        alone = drawn(PARAMS, batch(IMAGES[at]), u[at], keys[at]).terms.total
        np.testing.assert_allclose(alone[0], together[i], rtol=1e-5)
    assert np.any(drawn(PARAMS, batch(IMAGES), u[::-1], keys).terms.total != together)


def test_it_is_told_in_bits_and_a_network_that_knows_nothing_costs_one_a_bit():
    """With logits 0 each step's mixture is the marginal: the bound is the log of 1/2."""
    assert MODEL.unit is BITS and MODEL.levels == 2
    blind = BinomialModel(lambda key: {}, lambda *_: lambda z, k: jnp.zeros_like(z), SHAPE, 1)
    terms = blind.terms({}, batch(IMAGES), jax.random.key(0))
    np.testing.assert_allclose(BITS.of(terms.total, SHAPE), 1.0, rtol=1e-6)


def test_dropout_is_on_only_when_asked_for():
    key = jax.random.key(0)
    quiet, noisy = (MODEL.terms(PARAMS, batch(IMAGES), key, on).total for on in (False, True))
    assert not np.any(quiet == noisy)


def test_samples_of_one_step_have_the_denoiser_s_distribution():
    """T = 1: z_1 is a fair coin, and x ~ B(sigmoid of the logits at keep 0)."""
    count = 40_000
    made = MODEL.sample(PARAMS, jax.random.key(2), jnp.zeros(count), 1)
    assert set(np.unique(made)) == {0, 1}
    expected = np.zeros((2, 2))
    for z in itertools.product((0, 1), repeat=2):
        p = 1 / (1 + np.exp(-np.asarray(logits(PARAMS, jnp.array(z) * 2.0 - 1.0, 0.0))))
        expected += 0.25 * np.outer([1 - p[0], p[0]], [1 - p[1], p[1]])
    found = np.zeros((2, 2))
    np.add.at(found, tuple(np.asarray(made).T), 1 / count)
    assert np.all(np.abs(found - expected) < 5 * np.sqrt(expected / count))
