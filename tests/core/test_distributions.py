"""Gaussians and coin flips against 80-digit arithmetic, quadrature and closed forms."""

from decimal import Decimal, localcontext

import chex
import jax
import jax.numpy as jnp
import numpy as np
from oracles import kl_exact
from scipy import stats

from vdm_jax.distributions import Bernoulli, Gaussian

INF = np.inf

# ---- Gaussian ----

# Relative differences of the variances: tiny, moderate, and both sides of the switch at 1/4.
DIFFERENCES = [
    *(sign * size for size in [1e-12, 1e-8, 1e-4, 1e-2, 0.1] for sign in (1, -1)),
    *(sign * (0.25 + step) for step in [-1e-6, 1e-6] for sign in (1, -1)),
    *[0.0, 0.5, -0.5, -0.9999, 3.0, 1e6],
]


def test_kl_of_nearly_equal_variances_keeps_all_digits(dtype):
    kl_of = jax.jit(lambda q, p: Gaussian(0.0, q).kl(Gaussian(0.0, p)))
    for var_p in np.asarray([1.0, 0.73, 1.7e-6, 5.0e4], dtype):
        one_up = np.nextafter(var_p, 2 * var_p)
        var_q = np.append(np.asarray(var_p * (1.0 + np.asarray(DIFFERENCES)), dtype), one_up)
        kl = kl_of(var_q, var_p)
        assert kl.dtype == dtype and kl[DIFFERENCES.index(0.0)] == 0.0 and kl[-1] > 0.0
        expected = np.array([kl_exact(0.0, v, 0.0, var_p) for v in var_q])
        # Ten roundings at most; beyond the switch up to three bits are lost besides.
        np.testing.assert_allclose(kl, expected, rtol=40 * np.finfo(dtype).eps)


def test_gradients_of_kl_agree_with_finite_differences_on_both_sides_of_the_switch(x64):
    def kl(args):
        mean_q, v_q, mean_p, v_p = args
        return Gaussian(mean_q, v_q).kl(Gaussian(mean_p, v_p))

    kl, gradient = jax.jit(kl), jax.jit(jax.grad(kl))
    for var_q in (0.599999, 0.6 * 1.2499999, 0.6 * 1.2500001, 0.05):
        args = jnp.array([0.4, var_q, 0.1, 0.6])
        numeric = [(kl(args + row) - kl(args - row)) / 2e-6 for row in 1e-6 * np.eye(4)]
        np.testing.assert_allclose(gradient(args), numeric, rtol=1e-6, atol=1e-9)
    equal = jnp.array([0.4, 0.6, 0.4, 0.6])
    np.testing.assert_array_equal(gradient(equal), np.zeros(4))
    # The curvature at equality is the Fisher information of the variance.
    curvature = jax.jit(jax.hessian(kl))(equal)[1, 1]
    np.testing.assert_allclose(curvature, 0.5 / 0.6**2, rtol=1e-12)


def test_log_prob_is_the_normal_log_density_in_its_own_type(x64):
    x, mean = np.array([-3.0, 0.0, 0.5, 40.0]), np.array([-2.9, 0.1, 0.5, -1.0])
    var = np.array([1e-3, 1.0, 3.0, 20.0])
    expected = stats.norm(mean, var**0.5).logpdf(x)
    np.testing.assert_allclose(Gaussian(mean, var).log_prob(x), expected, rtol=1e-12)
    g = Gaussian(*(jnp.asarray(each, jnp.float32) for each in (mean, var)))
    found = [g.log_prob(g.mean), g.kl(g), g.sample(jax.random.key(0)), g.at(g.mean)]
    chex.assert_type(found, jnp.float32)


def test_samples_have_the_mean_variance_and_shape_of_the_gaussian():
    n = 20_000
    mean, var = jnp.array([1.5, -2.0, 0.0]), jnp.array([0.25, 4.0, 1e-4])
    sample = Gaussian(jnp.broadcast_to(mean, (n, 3)), var).sample(jax.random.key(0))
    chex.assert_shape(sample, (n, 3))
    assert np.all(abs(sample.mean(0) - mean) < 4 * np.sqrt(var / n))
    assert np.all(abs(sample.var(0) / var - 1.0) < 4 * np.sqrt(2 / n))
    # Independent elements, and normal ones; of a scalar mean too.
    assert np.max(abs(np.corrcoef(sample.T) - np.eye(3))) < 4 / np.sqrt(n)
    assert stats.kstest((sample[:, 1] + 2.0) / 2.0, "norm").pvalue > 1e-3
    assert len(np.unique(Gaussian(0.0, jnp.ones(5)).sample(jax.random.key(1)))) == 5
    g = Gaussian(jnp.array([1.0, 2.0]), jnp.array([4.0, 0.0]))
    np.testing.assert_array_equal(g.at(jnp.array([-1.5, 9.0])), [-2.0, 2.0])


# ---- Bernoulli ----

# Ordinary, and so large that a probability would have rounded to 0 or 1 in either precision.
LOGITS = [-60.0, -20.0, -3.0, -0.7, -1e-3, 0.0, 0.3, 2.0, 15.0, 60.0]
# Tiny, moderate, and both sides of the switch at 1.
STEPS = [s * size for size in [1e-6, 1e-3, 0.2, 0.999, 1.001, 1.5, 4.0, 30.0] for s in (1, -1)]


def log_sigmoid(logit: Decimal) -> Decimal:
    return -(1 + (-logit).exp()).ln()


@np.vectorize
def bits_kl_exact(a: float, b: float) -> float:
    """KL of the Bernoullis of two finite logits, by 120-digit arithmetic."""
    with localcontext() as context:
        context.prec = 120
        a, b = Decimal(float(a)), Decimal(float(b))
        ps = [(log_sigmoid(s * a), log_sigmoid(s * b)) for s in (1, -1)]
        return float(sum(q.exp() * (q - p) for q, p in ps))


def bits_kl(a, b):
    return Bernoulli(a).kl(Bernoulli(b))


def test_kl_of_bits_is_its_definition_to_all_digits_near_and_far(dtype):
    a = np.asarray([[v] * len(STEPS) for v in LOGITS], dtype)
    b = np.asarray(a + np.asarray(STEPS), dtype)
    kl = jax.jit(bits_kl)(a, b)
    assert kl.dtype == dtype
    np.testing.assert_allclose(kl, bits_kl_exact(a, b), rtol=16 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(jax.jit(bits_kl)(a, a), np.zeros_like(a))


def test_kl_of_certain_values_is_minus_log_p_of_the_value_or_infinite():
    b = jnp.asarray([-200.0, -3.0, 0.0, 1.5, 200.0, -INF, INF])
    kl = jax.jit(bits_kl)
    with localcontext() as context:
        context.prec = 80
        for x, sign in ((1, 1), (0.0, -1)):
            log_p = Bernoulli(b).log_prob(x)
            exact = [float(log_sigmoid(sign * Decimal(float(v)))) for v in b[:5]]
            np.testing.assert_allclose(log_p[:5], exact, rtol=4 * np.finfo(np.float32).eps)
            np.testing.assert_array_equal(kl(jnp.full_like(b, sign * INF), b), -log_p)
            assert -log_p[5] == (INF if sign == 1 else 0.0) and log_p[5] + log_p[6] == -INF
    # What p excludes and self allows, in either direction, small as its probability may be.
    some = jnp.asarray([-40.0, -1.0, 0.0, 1.0, 40.0, 0.5, 0.5])
    for excluded in (INF, -INF):
        np.testing.assert_array_equal(kl(some, jnp.full_like(b, excluded)), INF)
    # What is no bit has no probability, and NaN stays NaN.
    x = jnp.array([0.5, 2.0, -1.0, jnp.nan, 1.0 + 1e-6])
    assert np.all(np.isnan(Bernoulli(jnp.full(5, INF)).log_prob(x)))
    nan = jnp.array([[jnp.nan, 0.3], [0.3, jnp.nan], [INF, jnp.nan], [jnp.nan, INF]])
    assert np.all(np.isnan(bits_kl(nan[:, 0], nan[:, 1])))


def test_gradients_of_the_kl_of_bits_are_their_closed_forms_free_of_nan(x64):
    gradient = jax.jit(jax.vmap(jax.grad(bits_kl, (0, 1))))
    a, d = np.meshgrid([-8.0, -0.4, 0.0, 0.6, 9.0], [0.0, 1e-7, -0.3, 0.999, 1.001, -2.0, 12.0])
    a, b = a.ravel(), (a + d).ravel()
    of_a, of_b = gradient(a, b)
    q, p = 1 / (1 + np.exp(-a)), 1 / (1 + np.exp(-b))
    np.testing.assert_allclose(of_b, p - q, rtol=1e-8, atol=1e-15)
    np.testing.assert_allclose(of_a, -q * (1 - q) * (b - a), rtol=1e-8, atol=1e-15)
    for sure, value in ((INF, 1), (-INF, 0)):
        of_a, of_b = gradient(np.full(35, sure), b)
        np.testing.assert_array_equal(of_a, np.zeros(35))
        np.testing.assert_allclose(of_b, p - value, rtol=1e-9, atol=1e-15)
        # Both certain and equal: KL 0; and the log-probability of the value that is certain.
        np.testing.assert_array_equal(gradient(np.full(35, sure), np.full(35, sure)), 0.0)
        assert jax.grad(lambda v, x=value: Bernoulli(v).log_prob(x))(sure) == 0.0


def test_bits_have_their_probability_and_certain_ones_do_not_vary():
    logits = jnp.asarray([-INF, -2.0, 0.0, 1.0, INF])
    drawn = Bernoulli(jnp.broadcast_to(logits, (40_000, 5))).sample(jax.random.key(0))
    assert jnp.issubdtype(drawn.dtype, jnp.integer) and set(np.unique(drawn)) == {0, 1}
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    assert np.all(np.abs(np.mean(drawn, 0) - p) <= 5 * np.sqrt(p * (1 - p) / 40_000))
    assert np.max(np.abs(np.corrcoef(drawn[:, 1:4].T) - np.eye(3))) < 5 / np.sqrt(40_000)
    p, u = np.meshgrid([0.1, 0.5, 0.9], [0.0, 0.0999, 0.1001, 0.4999, 0.5001, 0.8999, 0.9001])
    drawn = Bernoulli(jnp.asarray(np.log(p / (1 - p)))).at(jnp.asarray(u))
    np.testing.assert_array_equal(drawn, u < p)
