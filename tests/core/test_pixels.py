import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import alpha_sigma
from oracles import expected_log_prob as expected_by_quad
from scipy import special, stats

from vdm_jax import loss, pixels

LEVELS = [1, 2, 17, 256, 2**12]

log_prob = jax.jit(pixels.log_prob, static_argnums=3)
decode = jax.jit(pixels.decode, static_argnums=2)
decode_log_probs = jax.jit(pixels.decode_log_probs, static_argnums=2)
expected_log_prob = jax.jit(pixels.expected_log_prob, static_argnums=2)
dequantize = jax.jit(pixels.dequantize, static_argnums=(2, 4))


def definition(z: np.ndarray, gamma_0, levels: int) -> np.ndarray:
    """log of N(z; value, exp(gamma_0)) over its sum over all values, as written in the paper."""
    values = 2.0 * (np.arange(levels) + 0.5) / levels - 1.0
    logits = stats.norm(values, np.exp(0.5 * gamma_0)).logpdf(z[..., None])
    return logits - special.logsumexp(logits, axis=-1, keepdims=True)


# ---- the decoder ----


@pytest.mark.parametrize("levels", LEVELS)
def test_encode_gives_the_centres_of_equal_bins(dtype, levels):
    values = pixels.encode(np.arange(levels), levels)
    edges = np.linspace(-1.0, 1.0, levels + 1)
    np.testing.assert_allclose(values, (edges[1:] + edges[:-1]) / 2, atol=4 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(values, pixels.level_values(levels))
    assert values.dtype == dtype
    unsigned = pixels.encode(np.array([0, 127, 128, 255], np.uint8), 256)
    np.testing.assert_array_equal(unsigned, np.array([-255, -1, 1, 255]) / 256)


@pytest.mark.parametrize("levels", LEVELS)
def test_decoder_is_its_definition_and_sums_to_one(x64, levels):
    rng = np.random.default_rng(0)
    gamma_0 = np.array([-13.3, -4.0, 1.0, 80.0])
    z, images = rng.uniform(-1.5, 1.5, size=(4, 2, 3)), rng.integers(0, levels, (4, 2, 3))
    log_probs = np.asarray(decode_log_probs(z, gamma_0, levels))
    exact = np.stack([definition(row, g, levels) for row, g in zip(z, gamma_0, strict=True)])
    np.testing.assert_allclose(log_probs, exact, rtol=1e-9, atol=1e-9)
    picked = np.take_along_axis(log_probs, images[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(log_prob(images, z, gamma_0, levels), picked, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("levels", [2, 17])
def test_expected_log_prob_is_its_integral(dtype, levels):
    """At noise that is small, and large, beside the distance of two levels."""
    images = np.array([[0, levels // 2, levels - 1]])
    for relative in (0.05, 0.156, 0.4, 3.0):
        gamma_0 = 2.0 * np.log(relative * 2.0 / levels)
        expected = [[expected_by_quad(k, gamma_0, levels) for k in images[0]]]
        found = expected_log_prob(images, gamma_0, levels)
        assert found.dtype == dtype
        atol = 1e-12 if dtype == "float64" else 3e-6  # of an eps_0 that is rounded beside x
        np.testing.assert_allclose(found, expected, rtol=0, atol=atol)
    for narrow, most in ((np.uint8, 257), (np.int8, 256)):  # which they can't hold themselves
        found, wanted = (expected_log_prob(np.full((1, 1), 3, kind), -3.0, most)
                         for kind in (narrow, int))  # fmt: skip
        np.testing.assert_array_equal(found, wanted)


def test_expected_log_prob_has_a_gradient_and_nothing_for_what_is_no_level():
    value = jax.jit(jax.value_and_grad(lambda g: expected_log_prob(jnp.array([3, 7]), g, 8).sum()))
    slope = (value(-2.95)[0] - value(-3.05)[0]) / 0.1
    np.testing.assert_allclose(value(-3.0)[1], slope, rtol=5e-3)
    each = jnp.full((1, 2), -3.0)  # of each feature its own, of any order, also if all are equal
    of_both = lambda g: expected_log_prob(jnp.array([[3, 7]]), g, 8).sum()  # noqa: E731
    of_one = [lambda g, k=k: expected_log_prob(jnp.array([k]), g, 8)[0] for k in (3, 7)]
    slopes = np.array([jax.grad(of)(-3.0) for of in of_one])
    np.testing.assert_allclose(jax.jit(jax.grad(of_both))(each)[0], slopes, rtol=1e-5)
    bends = np.diag([jax.grad(jax.grad(of))(-3.0) for of in of_one])
    np.testing.assert_allclose(jax.hessian(of_both)(each)[0, :, 0], bends, rtol=1e-4, atol=1e-6)
    images = jnp.array([0, 8, -1, 7, 255])
    wrong = [False, True, True, False, True]
    for got in (expected_log_prob(images, -2.0, 8), log_prob(images, 0.0 * images, -2.0, 8)):
        np.testing.assert_array_equal(np.isnan(got), wrong)


@pytest.mark.parametrize("levels", [1, 2, 256])
def test_most_likely_pixel_is_the_nearest_level(levels):
    z = np.random.default_rng(2).uniform(-1.3, 1.3, size=(1, 200)).astype(np.float32)
    values = np.asarray(pixels.level_values(levels))
    nearest = np.abs(z[..., None] - values).argmin(-1)
    np.testing.assert_array_equal(decode(z, -10.0, levels), nearest)
    np.testing.assert_array_equal(decode(values, -13.3, levels), np.arange(levels))
    for key in (None, jax.random.key(0)):
        np.testing.assert_array_equal(decode(jnp.array([[jnp.nan, 1.0]]), -13.3, levels, key) < 0,
                                      [[True, False]])  # fmt: skip


def test_draws_have_the_frequencies_of_the_decoder():
    n, levels, gamma_0 = 20_000, 4, -1.0
    z = np.full((n, 1), 0.2, np.float32)
    drawn = decode(z, gamma_0, levels, jax.random.key(0))
    p = np.exp(definition(z[0], gamma_0, levels))[0]
    counts = np.bincount(np.asarray(drawn).ravel(), minlength=levels)
    assert stats.chisquare(counts, n * p).pvalue > 1e-3


def test_low_noise_is_exact_in_float32():
    """exp(gamma_0) against bins of 1/128: the decoder is certain, but half way between two."""
    levels, rng = 256, np.random.default_rng(3)
    images = jnp.asarray(rng.integers(0, levels - 1, (2, 40)), jnp.uint8)
    eps = jnp.asarray(rng.normal(size=images.shape), jnp.float32)
    middle = pixels.encode(images, levels)

    def cost(gamma_0):
        return jnp.sum(loss.reconstruction(images, eps, gamma_0, levels))

    def half_way(gamma_0):
        z = middle + 1.0 / levels
        of_all = jnp.take_along_axis(
            pixels.decode_log_probs(z, gamma_0, levels), images[..., None].astype(int), axis=-1
        )
        return pixels.log_prob(images, z, gamma_0, levels), of_all[..., 0]

    slope = jax.jit(jax.grad(lambda g, z: pixels.log_prob(images + 1, z, g, levels).sum()))
    cost_slope, compiled = jax.jit(jax.grad(cost)), (jax.jit(cost), jax.jit(half_way))
    for gamma_0 in (-20.0, -25.0, -30.0):
        for cost_of, half_way_of in ((cost, half_way), compiled):
            np.testing.assert_allclose(cost_of(gamma_0), 0.0, rtol=0, atol=1e-8 * images.size)
            for found in half_way_of(gamma_0):
                np.testing.assert_allclose(found, np.log(0.5), rtol=1e-6)
        np.testing.assert_allclose(cost_slope(gamma_0), 0.0, rtol=0, atol=1e-8)
        # One level off: -(2 d delta + delta^2)/(2 var), some 1e4 nats and more, and finite.
        z, wrong = middle + np.exp(0.5 * gamma_0) * eps, images + 1
        exact = definition(np.asarray(z, float), gamma_0, levels)
        expected = np.take_along_axis(exact, np.asarray(wrong)[..., None].astype(int), -1)[..., 0]
        np.testing.assert_allclose(log_prob(wrong, z, gamma_0, levels), expected, rtol=1e-4)
        np.testing.assert_allclose(slope(gamma_0, z), -np.sum(expected), rtol=1e-4)
    sure = log_prob(images, middle, -100.0, levels)
    np.testing.assert_array_equal(sure, 0.0)  # though exp(100) is no float32


def test_log_probs_derivatives_are_those_of_its_definition(x64):
    """Against automatic differentiation of `decode_log_probs`, first and second, both modes."""
    images = jnp.array([[0, 3, 16], [8, 9, 1]])
    z = pixels.encode(images, 17) + 0.07 * jax.random.normal(jax.random.key(0), (2, 3))

    def own(at):
        return jnp.sum(pixels.log_prob(images, *at, 17))

    def by_definition(at):
        log_probs = pixels.decode_log_probs(*at, 17)
        return jnp.sum(jnp.take_along_axis(log_probs, images[..., None], axis=-1))

    @jax.jit
    def derivatives(at):
        return [(jax.grad(f)(at), jax.hessian(f)(at)) for f in (own, by_definition)]

    for gamma_0 in (-8.0, -2.0):
        found = derivatives((z, jnp.asarray(gamma_0)))
        for one, other in zip(*map(jax.tree.leaves, found), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-7)


def test_log_probs_gradient_stores_nothing_over_all_levels():
    images = jnp.zeros((4, 8, 8, 3), int)

    def value(z, gamma_0):
        return jnp.sum(pixels.log_prob(images, z, gamma_0, 256))

    shapes = jax.ShapeDtypeStruct(images.shape, jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
    compiled = jax.jit(jax.grad(value, (0, 1))).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.1 * 4 * 256 * images.size


# ---- dequantisation ----


def bin_noise(level: int, levels: int, gamma_0: float, method: str):
    """The distribution of z_0 within the bin of a level, by scipy, and the bin's edges."""
    alpha, sigma = alpha_sigma(gamma_0)
    low, high = alpha * (2 * level / levels - 1), alpha * (2 * (level + 1) / levels - 1)
    if method == "uniform":
        return stats.uniform(low, high - low), low, high
    tau = alpha / (sigma * levels)
    return stats.truncnorm(-tau, tau, loc=0.5 * (low + high), scale=sigma), low, high


@pytest.mark.parametrize(
    ("method", "levels", "gamma_0"),
    [
        ("uniform", 4, -3.0),
        ("truncated_normal", 1, 2.0),
        ("truncated_normal", 256, -11.0),
        ("truncated_normal", 256, -13.3),
    ],
)
def test_dequantized_pixels_have_the_distribution_and_the_density_said(
    x64, levels, gamma_0, method
):
    level, n = 2 * levels // 3, 20_000
    z, log_q = dequantize(jax.random.key(0), np.full((n, 1), level), levels, gamma_0, method)
    z = np.asarray(z)[:, 0]
    q, low, high = bin_noise(level, levels, gamma_0, method)
    assert low <= z.min() and z.max() <= high
    assert stats.kstest(z, q.cdf).pvalue > 1e-3
    np.testing.assert_allclose(log_q[:, 0], q.logpdf(z), rtol=1e-9)


@pytest.mark.parametrize("method", pixels.DEQUANTIZATIONS)
def test_density_of_a_dequantized_pixel_is_its_noise_s_and_nan_of_what_is_no_level(method):
    images, gamma_0 = np.array([[[0, 15]], [[0, 16]], [[-1, 3]]]), np.array([-6.0, -3.0, 0.0])
    z, log_q = dequantize(jax.random.key(0), images, 16, gamma_0, method)
    one = [
        bin_noise(k, 16, -6.0, method)[0].logpdf(v) for k, v in zip((0, 15), z[0, 0], strict=True)
    ]
    np.testing.assert_allclose(log_q[0, 0], one, rtol=1e-4)
    for found in (z, log_q):
        nan = np.isnan(found[:, 0])
        np.testing.assert_array_equal(nan, [[False, False], [False, True], [True, False]])


def test_truncated_noise_keeps_its_digits_in_float32():
    # tau runs from 86, where all of the normal is within the bin, to 1e-7, where it's uniform.
    images = np.full((4000, 1), 200)

    args = jax.random.key(0), images, 256
    slope = jax.jit(jax.grad(lambda g: dequantize(*args, g, "truncated_normal")[1].sum()))
    for gamma_0 in (-20.0, -11.0, 0.0, 20.0):
        z, log_q = dequantize(jax.random.key(0), images, 256, gamma_0, "truncated_normal")
        assert z.dtype == jnp.float32
        q, low, high = bin_noise(200, 256, gamma_0, "truncated_normal")
        assert stats.kstest(np.asarray(z)[:, 0], q.cdf).pvalue > 1e-3
        assert np.all((z >= low - 1e-7) & (z <= high + 1e-7))
        # The mean of -log q is the entropy; at a large tau, that of the normal.
        assert abs(-log_q.mean() - q.entropy()) < 5 * np.sqrt(0.5 / 4000)
        assert np.isfinite(slope(gamma_0))


def test_little_noise_in_wide_bins_is_cut_off_nowhere_and_much_noise_is_uniform(x64):
    exact = [-2 * stats.norm.sf(9.0), 0.0, np.log(2e-9 * stats.norm.pdf(0))]
    found = pixels._log_mass(jnp.array([9.0, 40.0, 1e-9]))
    np.testing.assert_allclose(found, exact, rtol=1e-12)
