import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import alpha_sigma
from scipy import integrate, special, stats

from vdm_jax import pixels

LEVELS = [1, 2, 17, 256]


def definition(z: np.ndarray, gamma_0: float, levels: int) -> np.ndarray:
    """log of N(z; value, exp(gamma_0)) over its sum over all values, as written in the paper."""
    values = 2.0 * (np.arange(levels) + 0.5) / levels - 1.0
    logits = stats.norm(values, np.exp(0.5 * gamma_0)).logpdf(z[..., None])
    return logits - special.logsumexp(logits, axis=-1, keepdims=True)


@pytest.mark.parametrize("levels", LEVELS)
def test_encode_gives_the_centres_of_equal_bins(dtype, levels):
    values = pixels.encode(np.arange(levels), levels)
    assert values.dtype == dtype
    edges = np.linspace(-1.0, 1.0, levels + 1)
    np.testing.assert_allclose(values, (edges[1:] + edges[:-1]) / 2, atol=4 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(values, pixels.level_values(levels))
    np.testing.assert_allclose(values, -values[::-1], atol=4 * np.finfo(dtype).eps)


def test_encode_of_eight_bits_is_exact_and_takes_unsigned_bytes():
    values = pixels.encode(np.array([0, 127, 128, 255], np.uint8), 256)
    np.testing.assert_array_equal(values, np.array([-255, -1, 1, 255]) / 256)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("gamma_0", [-13.3, -4.0, 1.0])
def test_decoder_is_its_definition_and_sums_to_one(x64, levels, gamma_0):
    z = np.random.default_rng(0).uniform(-1.5, 1.5, size=(3, 2, 2, 3))
    log_probs = pixels.decode_log_probs(jnp.asarray(z), gamma_0, levels)
    assert log_probs.shape == (3, 2, 2, 3, levels)
    np.testing.assert_allclose(log_probs, definition(z, gamma_0, levels), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(special.logsumexp(log_probs, axis=-1), 0.0, atol=1e-9)


@pytest.mark.parametrize(
    ("shape", "levels"),
    [((5,), 256), ((5, 4), 1), ((4, 3, 3, 1), 2), ((2, 3, 5, 3), 17), ((2, 2, 2, 7), 256)],
)
def test_log_prob_picks_the_image_out_of_the_decoder(x64, levels, shape):
    rng = np.random.default_rng(1)
    images, z = rng.integers(0, levels, shape), rng.uniform(-1.2, 1.2, shape)
    gamma_0 = rng.uniform(-8, 0, shape[0])
    log_probs = jax.jit(pixels.decode_log_probs, static_argnums=2)(z, gamma_0, levels)
    picked = np.take_along_axis(np.asarray(log_probs), images[..., None], axis=-1)[..., 0]
    log_prob = jax.jit(pixels.log_prob, static_argnums=3)(images, z, gamma_0, levels)
    np.testing.assert_allclose(log_prob, picked, rtol=1e-9, atol=1e-10)


def expected_by_quad(level: int, gamma_0: float, levels: int) -> float:
    """E log p(x|z_0) at one level by adaptive quadrature, told where the integrand bends."""
    values, width = 2.0 * (np.arange(levels) + 0.5) / levels - 1.0, np.exp(0.5 * gamma_0)

    def integrand(eps: float) -> float:
        logits = -0.5 * np.square((values[level] - values) / width + eps)
        return (logits[level] - special.logsumexp(logits)) * stats.norm.pdf(eps)

    bends = (np.arange(5) + 0.5) * 2.0 / (levels * width)
    points = [p for p in (*-bends, *bends) if abs(p) < 12.0] or None
    return integrate.quad(integrand, -12, 12, points=points, limit=2000, epsabs=1e-14)[0]


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("relative", [0.05, 0.1, 0.156, 0.4, 3.0])
def test_expected_log_prob_is_its_integral(dtype, levels, relative):
    """At noise that is small, and large, beside the distance of two levels."""
    gamma_0 = 2.0 * np.log(relative * 2.0 / levels)
    images = np.array([[0, levels // 2, levels - 1]])
    expected = [[expected_by_quad(k, gamma_0, levels) for k in images[0]]]
    found = jax.jit(pixels.expected_log_prob, static_argnums=2)(images, gamma_0, levels)
    assert found.dtype == dtype
    atol = 1e-12 if dtype == "float64" else 3e-6  # of an eps_0 that is rounded beside x
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("gamma_0", [-7.0, -3.0])
def test_expected_log_prob_is_the_mean_of_log_prob(gamma_0):
    images = np.tile(np.arange(17, dtype=np.uint8), (40_000, 1))
    eps_0 = jax.random.normal(jax.random.key(0), images.shape)
    z = pixels.encode(images, 17) + jnp.exp(0.5 * gamma_0) * eps_0
    drawn = np.asarray(jax.jit(pixels.log_prob, static_argnums=3)(images, z, gamma_0, 17))
    expected = pixels.expected_log_prob(images[0], gamma_0, 17)
    assert np.all(np.abs(drawn.mean(0) - expected) < 4 * drawn.std(0) / 200)


def test_expected_log_prob_has_a_gradient_and_nothing_for_what_is_no_level():
    images = jnp.array([3, 0, 7])
    value = lambda g: pixels.expected_log_prob(images, g, 8).sum()  # noqa: E731
    slope = (value(-3.0 + 0.05) - value(-3.0 - 0.05)) / 0.1
    np.testing.assert_allclose(jax.grad(value)(-3.0), slope, rtol=5e-3)
    got = pixels.expected_log_prob(jnp.array([0.0, 8.0, -1.0, 0.5, 7.0]), -2.0, 8)
    np.testing.assert_array_equal(np.isnan(got), [False, True, True, True, False])
    with pytest.raises(ValueError, match=r"gamma_0 must be a scalar, got shape \(3,\)"):
        pixels.expected_log_prob(images, jnp.zeros(3), 8)


def test_one_level_is_certain():
    z = jnp.array([[-3.0, 0.2]])
    np.testing.assert_array_equal(pixels.log_prob(jnp.zeros((1, 2), int), z, -5.0, 1), 0.0)
    np.testing.assert_array_equal(pixels.decode(z, -5.0, 1), 0)


def test_infinite_noise_makes_all_levels_equally_likely():
    log_probs = pixels.decode_log_probs(jnp.array([[0.3]]), 40.0, 17)
    np.testing.assert_allclose(log_probs, -np.log(17), rtol=1e-6)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_most_likely_pixel_is_the_nearest_level(levels):
    z = np.random.default_rng(2).uniform(-1.3, 1.3, size=(4, 50)).astype(np.float32)
    values = np.asarray(pixels.level_values(levels))
    nearest = np.abs(z[..., None] - values).argmin(-1)
    np.testing.assert_array_equal(pixels.decode(jnp.asarray(z), -10.0, levels), nearest)


@pytest.mark.parametrize("levels", LEVELS)
def test_decode_undoes_encode(levels):
    images = np.arange(levels).reshape(1, -1)
    np.testing.assert_array_equal(
        pixels.decode(pixels.encode(images, levels), -13.3, levels), images
    )


def test_draws_have_the_frequencies_of_the_decoder():
    n, levels, gamma_0 = 20_000, 4, -1.0
    z = np.full((n, 1), 0.2, np.float32)
    drawn = pixels.decode(jnp.asarray(z), gamma_0, levels, jax.random.key(0))
    p = np.exp(definition(z[0], gamma_0, levels))[0]
    counts = np.bincount(np.asarray(drawn).ravel(), minlength=levels)
    assert stats.chisquare(counts, n * p).pvalue > 1e-3


@pytest.mark.parametrize("levels", [2, 256])
def test_low_noise_is_stable_in_float32(levels):
    gamma_0 = -20.0
    images = np.random.default_rng(3).integers(0, levels, (2, 40))
    eps = np.random.default_rng(4).normal(size=images.shape)
    x = 2 * (images + 0.5) / levels - 1
    z = np.asarray(x + np.exp(0.5 * gamma_0) * eps, np.float32)
    log_prob_of = jax.jit(lambda images: pixels.log_prob(images, z, gamma_0, levels))
    at_truth = log_prob_of(images)
    # exp(-20) against bins of at least 1/128: the decoder is certain.
    np.testing.assert_allclose(at_truth, 0.0, atol=1e-6)
    # One level off: -(2 d delta + delta^2)/(2 var), some 1e4 nats and more, and finite.
    wrong = (images + 1) % levels
    log_prob = log_prob_of(wrong)
    expected = np.take_along_axis(
        definition(z.astype(float), gamma_0, levels), wrong[..., None], -1
    )
    np.testing.assert_allclose(log_prob, expected[..., 0], rtol=1e-4)

    def total(gamma_0):
        return pixels.log_prob(jnp.asarray(images), jnp.asarray(z), gamma_0, levels).sum()

    assert np.isfinite(jax.jit(jax.grad(total))(gamma_0))


def test_gradient_of_log_prob_agrees_with_finite_differences(x64):
    images, z = jnp.array([[0, 3, 9]]), jnp.array([[-0.9, -0.2, 0.4]])

    def total(args):
        return pixels.log_prob(images, z + args[0], args[1], 10).sum()

    args, total = jnp.array([0.03, -3.0]), jax.jit(total)
    h = 1e-6
    numeric = [(total(args + row) - total(args - row)) / (2 * h) for row in h * np.eye(2)]
    np.testing.assert_allclose(jax.grad(total)(args), numeric, rtol=1e-6)


def bin_noise(level: int, levels: int, gamma_0: float, method: str):
    """The distribution of z_0 within the bin of a level, by scipy, and the bin's edges."""
    alpha, sigma = alpha_sigma(gamma_0)
    low, high = alpha * (2 * level / levels - 1), alpha * (2 * (level + 1) / levels - 1)
    if method == "uniform":
        return stats.uniform(low, high - low), low, high
    tau = alpha / (sigma * levels)
    return stats.truncnorm(-tau, tau, loc=0.5 * (low + high), scale=sigma), low, high


@pytest.mark.parametrize("method", pixels.DEQUANTIZATIONS)
@pytest.mark.parametrize(("levels", "gamma_0"), [(1, 2.0), (4, -3.0), (256, -11.0), (256, -13.3)])
def test_dequantized_pixels_have_the_distribution_and_the_density_said(
    x64, levels, gamma_0, method
):
    level, n = 2 * levels // 3, 20_000
    images = np.full((n, 1), level)
    z, log_q = pixels.dequantize(jax.random.key(0), images, levels, gamma_0, method)
    z = np.asarray(z)[:, 0]
    q, low, high = bin_noise(level, levels, gamma_0, method)
    assert low <= z.min() and z.max() <= high
    assert stats.kstest(z, q.cdf).pvalue > 1e-3
    np.testing.assert_allclose(log_q, q.logpdf(z), rtol=1e-9)
    # Between the draws in order, the density integrates to one over the bin.
    order = np.argsort(z)
    total = np.trapezoid(np.exp(np.asarray(log_q))[order], z[order])
    assert abs(total - 1) < 2e-3
    # The mean of 1/q is the bin's width, unless draws in the tails of q are too rare to show it.
    if q.pdf(low) > 0.01 * q.pdf(0.5 * (low + high)):
        width = np.exp(-np.asarray(log_q))
        assert abs(width.mean() - (high - low)) <= 5 * width.std() / np.sqrt(n) + 1e-12


@pytest.mark.parametrize("method", pixels.DEQUANTIZATIONS)
def test_density_of_a_dequantized_image_is_the_product_over_its_pixels(x64, method):
    images = np.random.default_rng(0).integers(0, 8, (3, 4, 2, 3))
    gamma_0 = np.array([-6.0, -3.0, 0.0])
    z, log_q = pixels.dequantize(jax.random.key(0), images, 8, gamma_0, method)
    expected = [
        sum(
            bin_noise(k, 8, g, method)[0].logpdf(value)
            for k, value in zip(image.ravel(), np.asarray(latent).ravel(), strict=True)
        )
        for image, latent, g in zip(images, z, gamma_0, strict=True)
    ]
    np.testing.assert_allclose(log_q, expected, rtol=1e-9)


@pytest.mark.parametrize("gamma_0", [-20.0, -13.3, -11.0, -8.0, 0.0, 20.0])
def test_truncated_noise_keeps_its_digits_in_float32(gamma_0):
    # tau runs from 86, where all of the normal is within the bin, to 1e-7, where it's uniform.
    images = np.full((4000, 1), 200)
    z, log_q = pixels.dequantize(jax.random.key(0), images, 256, gamma_0, "truncated_normal")
    assert z.dtype == jnp.float32
    q, low, high = bin_noise(200, 256, gamma_0, "truncated_normal")
    assert stats.kstest(np.asarray(z)[:, 0], q.cdf).pvalue > 1e-3
    assert np.all((z >= low - 1e-7) & (z <= high + 1e-7))
    # The mean of -log q is the entropy; at a large tau, that of the normal.
    assert abs(-log_q.mean() - q.entropy()) < 5 * np.sqrt(0.5 / 4000)

    def total(gamma_0):
        return pixels.dequantize(jax.random.key(0), images, 256, gamma_0, "truncated_normal")[
            1
        ].sum()

    assert np.isfinite(jax.grad(total)(gamma_0))


def test_little_noise_in_wide_bins_is_cut_off_nowhere_and_much_noise_is_uniform(x64):
    images = np.zeros((4, 3), int)
    wide = pixels._log_mass(jnp.array([9.0, 40.0]))
    np.testing.assert_allclose(wide, [-2 * stats.norm.sf(9.0), 0.0], rtol=1e-12)
    np.testing.assert_allclose(
        pixels._log_mass(jnp.array([1e-9])), np.log(2e-9 * stats.norm.pdf(0)), rtol=1e-12
    )
    results = [
        pixels.dequantize(jax.random.key(0), images, 16, 40.0, method)[1]
        for method in pixels.DEQUANTIZATIONS
    ]
    np.testing.assert_allclose(*results, rtol=1e-12)


@pytest.mark.parametrize("method", pixels.DEQUANTIZATIONS)
def test_what_is_no_level_is_not_dequantized(method):
    images = jnp.array([[0, 15], [0, 16], [-1, 3]])
    z, log_q = pixels.dequantize(jax.random.key(0), images, 16, -4.0, method)
    np.testing.assert_array_equal(np.isnan(log_q), [False, True, True])
    np.testing.assert_array_equal(np.isnan(z), [[False, False], [False, True], [True, False]])


def test_unknown_dequantization_is_refused():
    with pytest.raises(ValueError, match=r"one of uniform, truncated_normal, got 'gaussian'"):
        pixels.dequantize(jax.random.key(0), np.zeros((1, 2), int), 4, 0.0, "gaussian")


@pytest.mark.parametrize("levels", [0, -1, 2.0, True, "256"])
def test_levels_must_be_a_positive_integer(levels):
    with pytest.raises(ValueError, match=r"levels must be an integer of at least 1, got"):
        pixels.encode(np.zeros((1, 2), int), levels)
    with pytest.raises(ValueError, match=r"levels must be an integer of at least 1, got"):
        pixels.decode_log_probs(jnp.zeros((1, 2)), 0.0, levels)


def test_gamma_0_must_go_with_the_latents():
    with pytest.raises(ValueError, match=r"gamma of shape \(3,\) does not go with"):
        pixels.log_prob(jnp.zeros((2, 3), int), jnp.zeros((2, 3)), jnp.zeros(3), 4)


@pytest.mark.parametrize("wrong", [-1, 16, 255, 0.5, -0.25])
def test_what_is_no_level_has_no_probability_and_no_number(wrong: float) -> None:
    images = jnp.asarray([3.0, wrong, 15.0])
    got = jax.jit(pixels.log_prob, static_argnums=3)(images, jnp.zeros(3), jnp.asarray(-2.0), 16)
    np.testing.assert_array_equal(np.isnan(got), [False, True, False])


# ---- the gradient of log_prob, written by hand ----


@pytest.mark.parametrize("gamma_0", [-8.0, -2.0])
def test_log_probs_derivatives_are_those_of_its_definition(x64, gamma_0):
    """Against automatic differentiation of `decode_log_probs`, first and second, both modes."""
    images = jnp.array([[0, 3, 16], [8, 9, 1]])
    z = pixels.encode(images, 17) + 0.07 * jax.random.normal(jax.random.key(0), (2, 3))

    def own(z, gamma_0):
        return jnp.sum(pixels.log_prob(images, z, gamma_0, 17))

    def definition(z, gamma_0):
        log_probs = pixels.decode_log_probs(z, gamma_0, 17)
        return jnp.sum(jnp.take_along_axis(log_probs, images[..., None], axis=-1))

    for derivative in (jax.grad, jax.jacfwd, jax.hessian):
        for argument in (0, 1):
            at = z, jnp.asarray(gamma_0)
            found, expected = (jax.jit(derivative(f, argument))(*at) for f in (own, definition))
            np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-7)


def test_log_probs_gradient_stores_nothing_over_all_levels():
    images = jnp.zeros((4, 8, 8, 3), int)

    def value(z, gamma_0):
        return jnp.sum(pixels.log_prob(images, z, gamma_0, 256))

    shapes = jax.ShapeDtypeStruct(images.shape, jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
    compiled = jax.jit(jax.grad(value, (0, 1))).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.1 * 4 * 256 * images.size
