from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.bernoulli import Bernoulli

INF = np.inf
# Ordinary, and so large that a probability would have rounded to 0 or 1 in either precision.
LOGITS = [-60.0, -20.0, -3.0, -0.7, -1e-3, 0.0, 0.3, 2.0, 15.0, 60.0]
# Tiny, moderate, and both sides of the switch at 1.
DIFFERENCES = [
    sign * size for size in [1e-6, 1e-3, 0.2, 0.999, 1.001, 1.5, 4.0, 30.0] for sign in (1, -1)
]

KL_GRADIENT = jax.jit(jax.grad(lambda a, b: Bernoulli(a).kl(Bernoulli(b)), (0, 1)))


def log_sigmoid(logit: Decimal) -> Decimal:
    return -(1 + (-logit).exp()).ln()


def kl_exact(a: float, b: float) -> float:
    """KL of the Bernoullis of two finite logits, by 120-digit arithmetic."""
    with localcontext() as context:
        context.prec = 120
        a, b = Decimal(float(a)), Decimal(float(b))
        return float(
            sum(
                log_sigmoid(s * a).exp() * (log_sigmoid(s * a) - log_sigmoid(s * b))
                for s in (1, -1)
            )
        )


def test_log_prob_is_its_definition_and_keeps_its_digits(dtype):
    logits = jnp.asarray(LOGITS, dtype)
    for x, sign in ((1, 1), (0, -1), (1.0, 1), (0.0, -1)):
        value = Bernoulli(logits).log_prob(x)
        assert value.dtype == dtype
        with localcontext() as context:
            context.prec = 80
            expected = [float(log_sigmoid(sign * Decimal(float(v)))) for v in logits]
        np.testing.assert_allclose(value, expected, rtol=4 * np.finfo(dtype).eps)


def test_kl_is_its_definition_to_all_digits_near_and_far(dtype):
    a = np.asarray([[v] * len(DIFFERENCES) for v in LOGITS], dtype)
    b = np.asarray(a + np.asarray(DIFFERENCES), dtype)
    kl = Bernoulli(jnp.asarray(a)).kl(Bernoulli(jnp.asarray(b)))
    assert kl.dtype == dtype
    expected = np.vectorize(kl_exact)(a, b)
    np.testing.assert_allclose(kl, expected, rtol=16 * np.finfo(dtype).eps)
    zero = Bernoulli(jnp.asarray(a)).kl(Bernoulli(jnp.asarray(a)))
    np.testing.assert_array_equal(zero, np.zeros_like(a))


def test_kl_of_certain_values_is_minus_log_p_of_the_value_or_infinite(dtype):
    b = jnp.asarray([-200.0, -3.0, 0.0, 1.5, 200.0, -INF, INF], dtype)
    sure_1, sure_0 = (Bernoulli(jnp.full_like(b, v)) for v in (INF, -INF))
    np.testing.assert_array_equal(sure_1.kl(Bernoulli(b)), -Bernoulli(b).log_prob(1))
    np.testing.assert_array_equal(sure_0.kl(Bernoulli(b)), -Bernoulli(b).log_prob(0))
    assert sure_1.kl(Bernoulli(b))[-1] == 0.0 and sure_1.kl(Bernoulli(b))[-2] == INF
    # What p excludes and self allows, in either direction, small as its probability may be.
    some = Bernoulli(jnp.asarray([-40.0, -1.0, 0.0, 1.0, 40.0], dtype))
    for b in (INF, -INF):
        np.testing.assert_array_equal(some.kl(Bernoulli(jnp.full_like(some.logits, b))), INF)


def test_what_is_no_bit_has_no_probability_and_nan_stays_nan():
    x = jnp.array([0.5, 2.0, -1.0, jnp.nan, 1.0 + 1e-6])
    assert np.all(np.isnan(Bernoulli(jnp.full(5, 0.3)).log_prob(x)))
    assert np.isnan(Bernoulli(0.3).log_prob(2)) and np.isnan(Bernoulli(INF).log_prob(-1))
    pairs = jnp.array([[jnp.nan, 0.3], [0.3, jnp.nan], [INF, jnp.nan], [jnp.nan, INF]])
    assert np.all(np.isnan(Bernoulli(pairs[:, 0]).kl(Bernoulli(pairs[:, 1]))))


@pytest.mark.parametrize("a", [-8.0, -0.4, 0.0, 0.6, 9.0])
@pytest.mark.parametrize("difference", [0.0, 1e-7, -0.3, 0.999, 1.001, -2.0, 12.0])
def test_gradients_of_kl_are_their_closed_forms(x64, a, difference):
    b = a + difference
    of_a, of_b = KL_GRADIENT(a, b)
    q, p = 1 / (1 + np.exp(-a)), 1 / (1 + np.exp(-b))
    np.testing.assert_allclose(of_b, p - q, rtol=1e-8, atol=1e-15)
    np.testing.assert_allclose(of_a, -q * (1 - q) * (b - a), rtol=1e-8, atol=1e-15)


def test_gradients_at_certain_values_are_free_of_nan(dtype):
    b = jnp.asarray([-3.0, 0.0, 2.0, 150.0], dtype)
    for sure, value in ((INF, 1), (-INF, 0)):
        of_a, of_b = jax.vmap(KL_GRADIENT)(jnp.full_like(b, sure), b)
        np.testing.assert_array_equal(of_a, np.zeros(4))
        np.testing.assert_allclose(of_b, jax.nn.sigmoid(b) - value, rtol=1e-6, atol=1e-30)
        # Both certain and equal: KL 0; and the log-probability of the value that is certain.
        same = jnp.asarray(sure, dtype)
        np.testing.assert_array_equal(KL_GRADIENT(same, same), (0.0, 0.0))
        assert jax.grad(lambda v, x=value: Bernoulli(v).log_prob(x))(same) == 0.0


def test_samples_have_the_probability_and_certain_ones_do_not_vary(dtype):
    logits = jnp.asarray([-INF, -2.0, 0.0, 1.0, INF], dtype)
    drawn = Bernoulli(jnp.broadcast_to(logits, (40_000, 5))).sample(jax.random.key(0))
    assert jnp.issubdtype(drawn.dtype, jnp.integer)
    assert set(np.unique(drawn)) == {0, 1}
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    error = np.abs(np.mean(drawn, 0) - p)
    assert np.all(error <= 5 * np.sqrt(p * (1 - p) / 40_000))
    # Elements are independent draws.
    assert np.max(np.abs(np.corrcoef(drawn[:, 1:4].T) - np.eye(3))) < 5 / np.sqrt(40_000)


def test_a_draw_is_1_where_the_noise_is_below_the_probability():
    p, u = np.meshgrid([0.1, 0.5, 0.9], [0.0, 0.0999, 0.1001, 0.4999, 0.5001, 0.8999, 0.9001])
    drawn = Bernoulli(jnp.asarray(np.log(p / (1 - p)))).at(jnp.asarray(u))
    np.testing.assert_array_equal(drawn, u < p)
