import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import kl_exact
from scipy import integrate, stats

from vdm_jax.gaussian import Gaussian

# Relative differences of the variances: tiny, moderate, and both sides of the switch at 1/4.
DIFFERENCES = [
    *(sign * size for size in [1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2, 0.1] for sign in (1, -1)),
    *(sign * (0.25 + step) for step in [-1e-3, -1e-6, 1e-6, 1e-3] for sign in (1, -1)),
    *[0.5, -0.5, -0.9, -0.9999, 3.0, 1e3, 1e6],
]


@pytest.mark.parametrize(
    ("mean_q", "var_q", "mean_p", "var_p"), [(0.3, 0.7, -0.2, 1.9), (1.0, 2.5, 1.4, 0.4)]
)
def test_kl_is_the_integral_of_q_log_q_over_p(x64, mean_q, var_q, mean_p, var_p):
    q, p = stats.norm(mean_q, var_q**0.5), stats.norm(mean_p, var_p**0.5)
    expected, _ = integrate.quad(
        lambda x: q.pdf(x) * (q.logpdf(x) - p.logpdf(x)), -20, 20, epsabs=1e-12, limit=200
    )
    kl = Gaussian(jnp.array(mean_q), jnp.array(var_q)).kl(Gaussian(mean_p, var_p))
    np.testing.assert_allclose(kl, expected, rtol=1e-9)


@pytest.mark.parametrize("var_p", [1.0, 0.73, 1.7e-6, 5.0e4])
def test_kl_of_nearly_equal_variances_keeps_all_digits(dtype, var_p):
    var_p = np.asarray(var_p, dtype)
    var_q = np.asarray(var_p * (1.0 + np.asarray(DIFFERENCES)), dtype)
    mean = jnp.zeros(len(DIFFERENCES), dtype)
    kl = Gaussian(mean, jnp.asarray(var_q)).kl(Gaussian(mean, jnp.asarray(var_p)))
    assert kl.dtype == dtype
    expected = np.array([kl_exact(0.0, v, 0.0, var_p) for v in var_q])
    # Ten roundings at most; beyond the switch up to three bits are lost besides.
    np.testing.assert_allclose(kl, expected, rtol=40 * np.finfo(dtype).eps)


def test_kl_of_one_unit_in_the_last_place_is_positive_and_right(dtype):
    one = np.ones((), dtype)
    for neighbour in (np.nextafter(one, one * 2), np.nextafter(one, one * 0)):
        kl = Gaussian(jnp.zeros((), dtype), jnp.asarray(neighbour)).kl(Gaussian(0.0, one))
        assert kl > 0.0
        np.testing.assert_allclose(kl, kl_exact(0, neighbour, 0, 1), rtol=20 * np.finfo(dtype).eps)


def test_kl_of_a_gaussian_to_itself_is_exactly_zero(dtype):
    g = Gaussian(jnp.asarray([0.3, -2.0, 1e3], dtype), jnp.asarray([1e-6, 1.0, 7.7], dtype))
    np.testing.assert_array_equal(g.kl(g), np.zeros(3))


@pytest.mark.parametrize("var_q", [0.6, 0.599999, 0.6 * 1.2499999, 0.6 * 1.2500001, 0.05, 4.0])
def test_gradients_of_kl_agree_with_finite_differences(x64, var_q):
    def kl(args):
        mean_q, v_q, mean_p, v_p = args
        return Gaussian(mean_q, v_q).kl(Gaussian(mean_p, v_p))

    args = jnp.array([0.4, var_q, 0.1, 0.6])
    gradient = jax.grad(kl)(args)
    h = 1e-6 * np.eye(4)
    numeric = [(kl(args + row) - kl(args - row)) / 2e-6 for row in h]
    np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-9)


def test_gradient_of_kl_at_equality_is_zero_and_its_curvature_is_the_fisher_information(dtype):
    var = jnp.asarray(0.37, dtype)

    def kl(v):
        return Gaussian(jnp.zeros((), dtype), v).kl(Gaussian(jnp.zeros((), dtype), var))

    assert jax.grad(kl)(var) == 0.0
    np.testing.assert_allclose(
        jax.grad(jax.grad(kl))(var), 0.5 / 0.37**2, rtol=50 * np.finfo(dtype).eps
    )


floats = st.floats(-1e3, 1e3, width=32)
variances = st.floats(np.float32(1e-6), np.float32(1e6), width=32)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(mean_q=floats, mean_p=floats, var_q=variances, var_p=variances)
def test_kl_is_never_negative(mean_q, mean_p, var_q, var_p):
    args = [jnp.float32(v) for v in (mean_q, var_q, mean_p, var_p)]
    kl = Gaussian(*args[:2]).kl(Gaussian(*args[2:]))
    assert kl >= 0.0
    np.testing.assert_allclose(kl, kl_exact(*map(float, args)), rtol=1e-5, atol=1e-36)


def test_log_prob_is_the_normal_log_density(dtype):
    x = np.array([-3.0, 0.0, 0.5, 40.0])
    mean, var = np.array([-2.9, 0.1, 0.5, -1.0]), np.array([1e-3, 1.0, 3.0, 20.0])
    g = Gaussian(jnp.asarray(mean, dtype), jnp.asarray(var, dtype))
    log_prob = g.log_prob(jnp.asarray(x, dtype))
    assert log_prob.dtype == dtype
    np.testing.assert_allclose(
        log_prob, stats.norm(mean, var**0.5).logpdf(x), rtol=1e4 * np.finfo(dtype).eps
    )


def test_float32_gaussians_stay_float32_where_float64_is_enabled(x64):
    g = Gaussian(jnp.zeros(3, jnp.float32), jnp.ones(3, jnp.float32))
    chex.assert_type(
        [g.log_prob(g.mean), g.kl(g), g.sample(jax.random.key(0)), g.at(g.mean)], jnp.float32
    )


def test_samples_have_the_mean_variance_and_shape_of_the_gaussian():
    n = 20_000
    mean, var = jnp.array([1.5, -2.0, 0.0]), jnp.array([0.25, 4.0, 1e-4])
    sample = Gaussian(jnp.broadcast_to(mean, (n, 3)), var).sample(jax.random.key(0))
    chex.assert_shape(sample, (n, 3))
    assert np.all(abs(sample.mean(0) - mean) < 4 * np.sqrt(var / n))
    assert np.all(abs(sample.var(0) / var - 1.0) < 4 * np.sqrt(2 / n))
    # Independent elements, and normal ones.
    assert np.max(abs(np.corrcoef(sample.T) - np.eye(3))) < 4 / np.sqrt(n)
    assert stats.kstest((sample[:, 1] + 2.0) / 2.0, "norm").pvalue > 1e-3


def test_a_scalar_mean_and_a_vector_variance_broadcast_to_independent_draws():
    sample = Gaussian(0.0, jnp.ones(5)).sample(jax.random.key(1))
    assert len(np.unique(sample)) == 5


def test_at_is_mean_plus_standard_deviation_times_noise():
    g = Gaussian(jnp.array([1.0, 2.0]), jnp.array([4.0, 0.0]))
    np.testing.assert_array_equal(g.at(jnp.array([-1.5, 9.0])), [-2.0, 2.0])
