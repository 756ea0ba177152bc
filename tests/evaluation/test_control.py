import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GaussianData, gauss_hermite

from vdm_jax import control, loss, process, schedule
from vdm_jax.control import Linear

RNG = np.random.default_rng(0)
COV = np.array([[0.5, 0.3, 0.0], [0.3, 0.4, -0.1], [0.0, -0.1, 0.2]])
DATA = GaussianData(np.array([0.2, -0.3, 0.1]), COV)
GAMMAS = (-9.0, -3.0, 0.0, 4.0)


def of_data(data: GaussianData) -> Linear:
    """The linear denoiser of exactly this mean and covariance."""
    var, basis = np.linalg.eigh(data.cov)
    return Linear(data.mean, basis, var)


def grid(order: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Points [n, 3] and weights [n] of E f(eps), exact for polynomials of degree 2 order - 1."""
    nodes, weights = gauss_hermite(order)
    points = np.stack(np.meshgrid(nodes, nodes, nodes, indexing="ij"), axis=-1).reshape(-1, 3)
    return points, np.einsum("i,j,k->ijk", weights, weights, weights).ravel()


def eps_lin(z, gamma):
    """The noise that the oracle's denoiser, E[x|z_t], predicts."""
    x_hat = DATA.denoise(z, gamma)
    alpha, sigma = schedule.alpha(gamma), schedule.sigma(gamma)
    return (z - alpha * x_hat) / sigma


@pytest.mark.parametrize("gamma", GAMMAS)
def test_controls_have_mean_zero_given_any_image_and_time(x64, gamma):
    eps, weights = grid()
    for x in (np.zeros(3), np.array([0.9, -1.0, 0.4]), np.array([5.0, 2.0, -7.0])):
        at = np.broadcast_to(x, eps.shape)
        found = of_data(DATA).controls(at, eps, jnp.full(len(eps), gamma))
        second = np.sqrt(weights @ np.asarray(found) ** 2)
        assert np.all(second[:2] > 0.01)  # they aren't zero themselves
        np.testing.assert_array_less(np.abs(weights @ found), 1e-9 * (1.0 + second))


@pytest.mark.parametrize("gamma", GAMMAS)
def test_their_sum_is_the_optimal_denoiser_s_squared_error_less_its_mean(x64, gamma):
    eps, weights = grid()
    x = np.broadcast_to([0.9, -1.0, 0.4], eps.shape)
    gammas = jnp.full(len(eps), gamma)
    z = process.marginal(x, gammas).at(eps)
    square = np.sum((eps - np.asarray(eps_lin(z, gamma))) ** 2, axis=-1)
    found = np.asarray(of_data(DATA).controls(x, eps, gammas)).sum(axis=-1)
    np.testing.assert_allclose(found, square - weights @ square, rtol=1e-6, atol=1e-7)


def test_for_gaussian_data_and_the_optimal_denoiser_no_noise_is_left(x64):
    gamma = schedule.linear(-8.0, 5.0)
    count, one = 300, np.array([0.4, -0.6, 0.2])
    eps = RNG.normal(size=(2, count, 3))
    t = RNG.uniform(size=count)
    x = np.broadcast_to(one, eps[0].shape)

    def denoise(z, gamma_t):
        return jax.vmap(eps_lin)(z[:, None], gamma_t)[:, 0]

    losses = [np.asarray(loss.diffusion(x, e, t, denoise, gamma)) for e in eps]
    level = loss.noise_level(jnp.asarray(t), gamma, None)
    controls = [
        np.asarray(0.5 * level.weight[:, None] * of_data(DATA).controls(x, e, level.gamma_t))
        for e in eps
    ]
    rest = [
        control.subtracted(t, *pair, np.ones((1, 3))) for pair in zip(losses, controls, strict=True)
    ]
    assert np.std(losses[0] - losses[1]) > 1.0
    np.testing.assert_allclose(rest[0], rest[1], rtol=1e-6, atol=1e-6)
    # And least squares finds that the coefficients are 1, from the noise alone.
    fitted = control.fit(t, losses[0] - losses[1], controls[0] - controls[1], 2, ridge=1e-12)
    np.testing.assert_allclose(fitted, 1.0, atol=1e-4)


def test_any_coefficients_leave_the_expectation(x64):
    """The mean over the noise by quadrature, at several times, of a denoiser that isn't linear."""
    gamma = schedule.cosine(-6.0, 4.0)
    eps, weights = grid(5)
    x = np.broadcast_to([0.9, -1.0, 0.4], eps.shape)
    coefficients = RNG.normal(size=(4, 3))
    for t in (0.0, 0.3, 0.6, 1.0):
        times = np.full(len(eps), t)
        losses = loss.diffusion(x, eps, times, lambda z, g: jnp.tanh(z), gamma)
        gamma_t = loss.noise_level(jnp.asarray(times), gamma, None).gamma_t
        controls = of_data(DATA).controls(x, eps, gamma_t)
        rest = control.subtracted(times, losses, controls, coefficients)
        np.testing.assert_allclose(weights @ rest, weights @ losses, rtol=1e-10)
        assert np.abs(rest - losses).max() > 0.1


@pytest.mark.parametrize("num_steps", [1, 4, None])
def test_noise_level_is_what_the_loss_takes(x64, num_steps):
    gamma = schedule.cosine(-6.0, 4.0)
    t = RNG.uniform(size=50)
    x, eps = RNG.normal(size=(2, 50, 3))
    level = loss.noise_level(jnp.asarray(t), gamma, num_steps)
    expected = loss.diffusion_at(x, eps, level.gamma_t, level.weight, lambda z, g: 0.3 * z)
    found = loss.diffusion(x, eps, t, lambda z, g: 0.3 * z, gamma, num_steps)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    if num_steps:
        s = (np.ceil(t * num_steps) - 1) / num_steps
        np.testing.assert_allclose(level.gamma_s, gamma(jnp.asarray(s)), rtol=1e-10, atol=1e-12)
    else:
        step = 1e-6
        slope = (gamma(jnp.asarray(t) + step) - gamma(jnp.asarray(t) - step)) / (2 * step)
        np.testing.assert_allclose(level.weight, slope, rtol=1e-5)


def test_it_is_the_gaussian_of_the_data(x64):
    x = RNG.multivariate_normal(DATA.mean, COV, size=400).reshape(400, 3, 1)
    found = Linear.of(x, floor=1e-6)
    rows = x.reshape(400, 3)
    np.testing.assert_allclose(found.mean, rows.mean(axis=0))
    cov = found.basis @ np.diag(found.var) @ found.basis.T
    np.testing.assert_allclose(cov, np.cov(rows.T, bias=True) + 1e-6 * np.eye(3), atol=1e-12)
    np.testing.assert_allclose(found.basis.T @ found.basis, np.eye(3), atol=1e-12)
    # A direction without variance keeps the floor.
    flat = Linear.of(np.stack([rows[:, 0], np.zeros(400)], axis=1), floor=0.01)
    np.testing.assert_allclose(flat.var.min(), 0.01)


def test_float32_agrees_with_float64():
    x, eps = RNG.normal(size=(2, 64, 3))
    single = of_data(DATA).controls(jnp.float32(x), jnp.float32(eps), jnp.full(64, -8.0))
    with jax.enable_x64(True):
        double = of_data(DATA).controls(jnp.asarray(x), jnp.asarray(eps), jnp.full(64, -8.0))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, double, rtol=1e-5, atol=1e-4)


def test_fit_is_least_squares_in_each_bin():
    t = RNG.uniform(size=900)
    controls = RNG.normal(size=(900, 2)) * [1.0, 50.0]
    noise = RNG.normal(size=900)
    losses = np.where(t < 0.5, 2.0, -1.0) * controls[:, 0] + 0.1 * controls[:, 1] + noise
    found = control.fit(t, losses, controls, 2, ridge=0.0)
    for k, within in enumerate((t < 0.5, t >= 0.5)):
        expected = np.linalg.lstsq(controls[within], losses[within], rcond=None)[0]
        np.testing.assert_allclose(found[k], expected, rtol=1e-9)
        rest = control.subtracted(t, losses, controls, found)[within]
        np.testing.assert_allclose(rest @ controls[within], 0.0, atol=1e-8 * len(t))
    # What has no draws, and what is no variate at all, isn't subtracted.
    wide = control.fit(t / 2, losses, controls * [1.0, 0.0], 2)
    np.testing.assert_array_equal(wide[1], 0.0)
    assert wide[0, 1] == 0.0 and wide[0, 0] != 0.0


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: Linear.of(np.zeros((1, 3))), r"with n at least 2, got 1 row"),
        (lambda: Linear.of(np.zeros((4, 5000))), r"of at most 4096 elements; x has 5000"),
        (lambda: Linear.of(np.zeros((4, 3)), floor=0.0), r"floor must be positive.* got 0.0"),
        (
            lambda: control.fit([0.1, 0.2], [1.0], [[1.0], [2.0]], 3),
            r"t \(2,\) and losses \(1,\) must be \[n\], controls \[n, k\], got \(2, 1\)",
        ),
    ],
)
def test_mistakes_are_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()
