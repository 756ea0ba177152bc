"""The number of points: exact probabilities, draws, and a fit to Poisson numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from vdm_jax.nn.counts import Categorical, Counts


def test_probabilities_are_those_of_the_logits_and_so_are_the_draws():
    p = np.array([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]])
    of = Categorical(jnp.log(jnp.asarray(p)) + jnp.array([[3.0], [-2.0]]))
    np.testing.assert_allclose(np.exp(of.log_prob(np.array([2, 0]))), [0.3, 0.7], rtol=1e-5)
    np.testing.assert_array_equal(of.log_prob(np.array([4, -1])), -np.inf)
    for_all = Categorical(of.logits[:1])
    np.testing.assert_allclose(np.exp(for_all.log_prob(np.arange(4))), p[0], rtol=1e-5)
    n = np.bincount(for_all.sample(jax.random.key(0), 10_000), minlength=4)
    assert stats.chisquare(n, 10_000 * p[0]).pvalue > 1e-5
    first = jax.vmap(of.sample)(jax.random.split(jax.random.key(1), 10_000))
    for column, probability in zip(first.T, p, strict=True):
        n = np.bincount(column, minlength=4)
        assert stats.chisquare(n, 10_000 * probability).pvalue > 1e-5


def fitted(n, conditioning, rate):
    """The distribution of maximum likelihood, as a function of the condition."""
    network = Counts(most=12, width=16)
    params, tx = (
        network.init(jax.random.key(0), conditioning),
        optax.adam(optax.cosine_decay_schedule(rate, 200)),
    )

    def loss(params):
        return -network.apply(params, conditioning).log_prob(n).mean()

    def body(_, carry):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    run = jax.jit(lambda params: jax.lax.fori_loop(0, 200, body, (params, tx.init(params)))[0])
    params = run(params)
    return lambda conditioning: network.apply(params, conditioning)


def truncated_poisson(mean):
    p = stats.poisson(mean).pmf(np.arange(13))
    return p / p.sum(axis=-1, keepdims=True)


def test_numbers_of_a_type_that_ends_below_the_largest():
    found = Categorical(jnp.zeros((1, 257))).log_prob(np.uint8([3, 255]))
    np.testing.assert_allclose(found, -np.log(257.0), rtol=1e-6)


def test_numbers_that_are_none_are_refused():
    found = Categorical(jnp.zeros((3, 4)))
    for wrong in (jnp.ones(3), 2, jnp.ones((3, 1), int), jnp.ones(2, int)):
        with pytest.raises(ValueError, match=r"numbers of points must be integers \[3\], got"):
            found.log_prob(wrong)


def test_a_fit_to_poisson_numbers_gives_their_frequencies_or_their_law():
    rng = np.random.default_rng(0)
    theta = rng.uniform(-1.0, 1.0, 8_000).astype(np.float32)
    law = truncated_poisson(4.0 * np.exp(0.5 * theta)[:, None])
    n = (rng.random((8_000, 1)) > np.cumsum(law, axis=1)).sum(axis=1)
    frequencies = np.bincount(n, minlength=13) / len(n)
    alone = np.exp(fitted(n, None, 0.1)(None).log_prob(np.arange(13)))
    np.testing.assert_allclose(alone, frequencies, atol=2e-3)
    given = {"theta": theta, "other": rng.normal(size=(8_000, 2, 1)).astype(np.float32)}
    grid = np.float32([-0.6, 0.0, 0.6])
    of = fitted(n, given, 0.01)({"theta": grid, "other": np.zeros((3, 2, 1), np.float32)})
    want = truncated_poisson(4.0 * np.exp(0.5 * grid)[:, None])
    np.testing.assert_allclose(jax.nn.softmax(of.logits), want, atol=0.03)
