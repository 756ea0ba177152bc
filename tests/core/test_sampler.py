import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GaussianData, affine_chain, alpha_sigma

from vdm_jax import parameterization, pixels, process, sampler, schedule

MEAN, VAR = 0.4, 0.3
DATA = GaussianData(np.array([MEAN]), np.array([[VAR]]))


def optimal(z, gamma_t):
    """E[x|z_t] for independent x ~ N(MEAN, VAR), elementwise: a prediction of kind x."""
    g = process.expand(gamma_t, z)
    alpha = jnp.sqrt(jax.nn.sigmoid(-g))
    gain = alpha * VAR / (VAR * alpha**2 + jax.nn.sigmoid(g))
    return MEAN + gain * (z - alpha * MEAN)


def exact_chain(gammas: np.ndarray, mean_1: float, var_1: float) -> tuple[float, float]:
    """Mean and variance of z_0 of the chain z_s = a z_t + b x_hat(z_t) + noise, from the paper.

    gammas [T + 1] run from t = 0 to t = 1.
    """
    s, t = gammas[:-1][::-1], gammas[1:][::-1]
    (alpha_s, sigma_s), (alpha_t, sigma_t) = alpha_sigma(s), alpha_sigma(t)
    step = alpha_t / alpha_s
    step_var = sigma_t**2 - step**2 * sigma_s**2
    a, b = step * sigma_s**2 / sigma_t**2, alpha_s * step_var / sigma_t**2
    gain = alpha_t * VAR / (VAR * alpha_t**2 + sigma_t**2)
    variance = step_var * sigma_s**2 / sigma_t**2
    offset = b * (1 - gain * alpha_t) * MEAN
    return affine_chain(a + b * gain, offset, variance, mean_1, var_1)


def assert_moments(sample: jax.Array, mean: float, var: float) -> None:
    """The sample's mean and variance lie within four standard errors."""
    n = sample.size
    assert abs(float(sample.mean()) - mean) < 4 * np.sqrt(var / n)
    assert abs(float(sample.var()) / var - 1) < 4 * np.sqrt(2 / n)


@pytest.mark.parametrize("kind", parameterization.KINDS)
def test_ancestral_step_is_a_draw_of_the_reverse_kernel(x64, kind):
    z_t, eps = (jax.random.normal(jax.random.key(i), (3, 2, 2, 1)) for i in (0, 1))
    prediction = getattr(parameterization, f"to_{kind}")(optimal(z_t, 1.0), z_t, 1.0, kind="x")
    seen = []

    def denoise(z, gamma_t):
        seen.append((z, gamma_t))
        return prediction

    z_s = sampler.ancestral_step(z_t, eps, denoise, -2.0, 1.0, kind)
    p = process.reverse(z_t, optimal(z_t, 1.0), -2.0, 1.0)
    np.testing.assert_allclose(z_s, p.mean + jnp.sqrt(p.var) * eps, rtol=1e-10)
    # The network sees the latent as it is and one gamma_t per example.
    np.testing.assert_array_equal(seen[0][0], z_t)
    np.testing.assert_array_equal(seen[0][1], np.ones(3))


@pytest.mark.parametrize(
    ("gamma", "num_steps"),
    [
        (schedule.linear(-6.0, 3.0), 1),
        (schedule.linear(-6.0, 3.0), 2),
        (schedule.linear(-6.0, 3.0), 10),
        (schedule.cosine(-6.0, 3.0), 40),
    ],
)
def test_samples_have_the_moments_of_the_exact_discrete_chain(x64, gamma, num_steps):
    gammas = np.asarray(gamma(np.linspace(0.0, 1.0, num_steps + 1)))
    sample = sampler.ancestral(jax.random.key(num_steps), optimal, gamma, (4000, 3), num_steps, "x")
    chex.assert_shape(sample, (4000, 3))
    assert_moments(sample, *exact_chain(gammas, 0.0, 1.0))
    # Elements of one example and examples of one batch are independent draws.
    assert np.max(np.abs(np.corrcoef(sample.T) - np.eye(3))) < 4 / np.sqrt(4000)


def test_many_steps_give_the_distribution_of_the_data(x64):
    gamma = schedule.linear(-10.0, 10.0)
    alpha, sigma = alpha_sigma(-10.0)
    sample = sampler.ancestral(jax.random.key(0), optimal, gamma, (5000, 2), 500, "x")
    assert_moments(sample, alpha * MEAN, alpha**2 * VAR + sigma**2)


def test_error_of_the_chains_variance_halves_as_its_steps_double(x64):
    # Moments carried through process.reverse itself, which is affine in z_t, from exact q(z_1).
    gamma = schedule.linear(-8.0, 6.0)
    (alpha_0, sigma_0), (alpha_1, sigma_1) = alpha_sigma(-8.0), alpha_sigma(6.0)
    exact = alpha_0**2 * VAR + sigma_0**2
    errors = []
    for num_steps in (100, 200, 400):
        gammas = gamma(jnp.linspace(1.0, 0.0, num_steps + 1))
        s, t = gammas[1:], gammas[:-1]

        @jax.jit
        def at(z, s=s, t=t):
            z = jnp.full((len(t), 1), z)
            p = process.reverse(z, optimal(z, t), s, t)
            return p.mean[:, 0], p.var[:, 0]

        offset, var = at(0.0)
        mean, variance = affine_chain(
            at(1.0)[0] - offset, offset, var, alpha_1 * MEAN, alpha_1**2 * VAR + sigma_1**2
        )
        np.testing.assert_allclose(mean, alpha_0 * MEAN, rtol=1e-10)  # the mean has no error
        errors.append(exact - variance)
    ratios = np.array(errors[:-1]) / errors[1:]
    assert errors[0] > 1e-3
    assert np.all(np.diff(np.abs(ratios - 2)) < 0)
    np.testing.assert_allclose(ratios[-1], 2.0, rtol=0.02)


def test_a_denoiser_sure_of_its_data_gives_the_marginal_at_zero(x64):
    # q(z_0|x) follows from q(z_1|x) by any number of posterior steps; at gamma_1 = 30 q is N(0, I).
    gamma = schedule.linear(-3.0, 30.0)
    sample = sampler.ancestral(
        jax.random.key(5), lambda z, g: jnp.full_like(z, 0.7), gamma, (8000, 1), 7, "x"
    )
    alpha, sigma = alpha_sigma(-3.0)
    assert_moments(sample, alpha * 0.7, sigma**2)


def test_denoiser_sees_the_schedule_from_t_1_down_to_the_first_step():
    seen = []

    def denoise(z, gamma_t):
        jax.debug.callback(lambda g: seen.append(np.asarray(g)), gamma_t, ordered=True)
        return z

    gamma = schedule.linear(-5.0, 5.0)
    sampler.ancestral(jax.random.key(0), denoise, gamma, (2, 3), 5).block_until_ready()
    jax.effects_barrier()
    expected = np.repeat([[5.0], [3.0], [1.0], [-1.0], [-3.0]], 2, axis=1)
    np.testing.assert_allclose(np.stack(seen), expected, atol=1e-5)


def test_samples_depend_on_the_key_alone_jitted_or_not(dtype):
    def draw(key):
        return sampler.ancestral(key, optimal, schedule.linear(-6.0, 3.0), (2, 3, 1), 4, "x")

    eager, compiled = draw(jax.random.key(0)), jax.jit(draw)
    assert eager.dtype == dtype
    np.testing.assert_allclose(eager, compiled(jax.random.key(0)), rtol=1e-4, atol=1e-6)
    assert np.max(np.abs(eager - compiled(jax.random.key(1)))) > 0.1


def test_old_and_new_keys_of_one_seed_give_one_sample():
    def draw(key):
        return sampler.ancestral(key, optimal, schedule.linear(-6.0, 3.0), (2, 3), 4, "x")

    np.testing.assert_array_equal(draw(jax.random.key(3)), draw(jax.random.PRNGKey(3)))


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_to_images_gives_the_nearest_pixels_of_a_latent(levels):
    images = np.random.default_rng(0).integers(0, levels, (3, 5, 4, 3))
    alpha, _ = alpha_sigma(-3.0)  # alpha = 0.976: off by three levels of 256 if not undone
    z_0 = jnp.asarray(alpha * np.asarray(pixels.encode(images, levels)), jnp.float32)
    np.testing.assert_array_equal(sampler.to_images(z_0, -3.0, levels), images)


def test_to_images_draws_from_the_decoder_with_a_key():
    z_0 = jnp.zeros((20_000, 1))  # halfway between two levels of four
    drawn = np.asarray(sampler.to_images(z_0, -3.0, 4, jax.random.key(0))).ravel()
    assert abs(np.mean(drawn >= 2) - 0.5) < 4 * 0.5 / np.sqrt(20_000)
    outer, inner = np.exp(-0.5 * np.exp(3.0) * np.array([0.75, 0.25]) ** 2)
    p = outer / (outer + inner)
    assert abs(np.mean((drawn == 0) | (drawn == 3)) - p) < 4 * np.sqrt(p * (1 - p) / 20_000)


@pytest.mark.parametrize("num_steps", [0, -1, 2.0, True, None])
def test_num_steps_must_be_a_positive_integer(num_steps):
    with pytest.raises(ValueError, match=r"num_steps must be an integer of at least 1, got"):
        sampler.ancestral(jax.random.key(0), optimal, schedule.linear(-1.0, 1.0), (1, 1), num_steps)


def test_unknown_kinds_and_wrong_shapes_are_refused():
    gamma = schedule.linear(-1.0, 1.0)
    with pytest.raises(ValueError, match=r"kind must be one of eps, x, v, score, got 'z'"):
        sampler.ancestral(jax.random.key(0), optimal, gamma, (1, 1), 3, "z")
    with pytest.raises(ValueError, match=r"prediction has shape \(2, 3\), but z_t has \(2, 3, 1\)"):
        sampler.ancestral(jax.random.key(0), lambda z, g: z[..., 0], gamma, (2, 3, 1), 3)
