"""Where a chain's steps lie: closed forms, and what is gained by it."""

import jax
import jax.numpy as jnp
import known
import numpy as np
import pytest

from vdm_jax import compression, process, schedule
from vdm_jax.compression import file, steps
from vdm_jax.compression.file import VdmzError

GAMMA = schedule.linear(-9.0, 6.0)


@pytest.fixture(autouse=True, scope="module")
def _wide():
    with jax.enable_x64(True):
        yield


def error(gamma, *variances):
    """The mean squared error of the best eps_hat for pixels of N(0, variance), each as often."""
    return np.mean([c / (c + np.exp(gamma)) for c in variances], axis=0)


def profile(*variances):
    return steps.profile(error(steps.knots(GAMMA), *variances))


def cost(found, *variances):
    """The nats of a pixel that all steps cost: the KL of q(z_s|z_t, x) and p(z_s|z_t), averaged."""
    s, t = map(jnp.asarray, (found.gammas[:-1], found.gammas[1:]))
    d = np.expm1(t - s) * error(t, *variances)
    wider = np.exp(np.asarray(process.variance_log_ratio(s, t)) * found.shares)
    return 0.5 * np.sum(np.log(wider) + (1 + d) / wider - 1)


def test_reverse_variances_of_gaussian_data_are_exact():
    """For x ~ N(0, c), z_s given z_t is Gaussian, and a chain of any length loses nothing."""
    c = 0.05
    found = steps.placed(GAMMA, 30, "posterior", profile(c))
    s, t = map(jnp.asarray, (found.gammas[:-1], found.gammas[1:]))
    var = process.reverse(jnp.zeros(30), jnp.zeros(30), s, t, found.shares).var
    var_s, var_t = (schedule.alpha_bar(g) * c + schedule.variance(g) for g in (s, t))
    a = jnp.sqrt(schedule.step_alpha(s, t))
    np.testing.assert_allclose(var, var_s - (a * var_s) ** 2 / var_t, rtol=0.01)
    exact = 0.5 * (np.log1p(c * np.exp(9.0)) - np.log1p(c * np.exp(-6.0)))  # of the whole way
    np.testing.assert_allclose(cost(found, c), exact, rtol=1e-3)
    assert cost(steps.equal(GAMMA, 30), c) > 1.2 * exact


def test_what_is_left_falls_as_one_over_the_steps_with_the_best_factor():
    """Euler and Lagrange: (the integral of the root of m + m' - m^2)^2 / 4 T."""
    kinds, fine = (3.0, 1e-3), np.linspace(-9.0, 6.0, 20_001)
    m = error(fine, *kinds)
    continuous = 0.5 * np.trapezoid(m, fine)
    excess = np.maximum(m + np.gradient(m, fine) - m**2, 0.0)
    best = 0.25 * np.trapezoid(np.sqrt(excess), fine) ** 2
    for num_steps in (100, 400):
        found = steps.placed(GAMMA, num_steps, "posterior", profile(*kinds))
        assert found.gammas[0] == -9.0 and found.gammas[-1] == 6.0
        left = num_steps * (cost(found, *kinds) - continuous)
        np.testing.assert_allclose(left, best, rtol=0.06)
        same = found._replace(gammas=steps.equal(GAMMA, num_steps).gammas)
        assert num_steps * (cost(same, *kinds) - continuous) > 1.3 * left


def test_the_network_tells_its_variance_where_it_learned_to():
    assert steps.placed(GAMMA, 9, "learned", profile(1.0)).shares is None


@pytest.mark.parametrize("kind", ["posterior", "learned"])
def test_files_with_placed_steps_are_smaller_and_come_back(kind):
    learned = {"network": known.learned, "reverse_var": "learned"} if kind == "learned" else {}
    model, images = known.model(**learned), known.images(40)
    content, summary = model.compress(images, 12, blocks=2, placed=True)
    header, payload = file.unpack(content)
    assert content[4] == 3 and len(header.profile) == steps.KNOTS
    found, _ = model.decompress(content)
    np.testing.assert_array_equal(found, images)
    _, before = model.compress(images, 12, blocks=2)
    assert summary.bound < before.bound - 0.1
    assert abs(summary.net - summary.path) < 0.03 * summary.path
    other = file.pack(header._replace(profile=bytes(steps.KNOTS)), bytes(payload))
    with pytest.raises(VdmzError, match="this machine computes other coding tables"):
        model.decompress(other)
    for wrong in (bytes(3), bytes(steps.KNOTS + 1)):
        with pytest.raises(VdmzError, match="its header is damaged"):
            file.unpack(file.pack(header._replace(profile=wrong), bytes(payload)))


def test_the_profile_is_the_error_of_the_network():
    """Of independent pixels, whose best denoiser's error is an integral over z."""
    model, images = known.model(), known.images(200)
    content, _ = compression.compress(images, *model, compression.Options(5, 2, 100))
    found = (np.frombuffer(file.unpack(content)[0].profile, np.uint8) / 255.0) ** 2
    gammas = steps.knots(model.vdm.gamma)
    x = known.pixels.level_values(known.LEVELS)
    p, z = known.probabilities(), np.linspace(-9.0, 9.0, 4001)
    for i in range(0, steps.KNOTS, 2):
        a, sigma = (float(of(gammas[i])) for of in (schedule.alpha, schedule.sigma))
        joint = p * np.exp(-0.5 * ((z[:, None] - a * x) / sigma) ** 2) / sigma / np.sqrt(2 * np.pi)
        density = joint.sum(axis=1)
        posterior = joint / np.maximum(density, 1e-300)[:, None]
        var = posterior @ x**2 - (posterior @ x) ** 2
        expected = np.trapezoid(density * var, z) * (a / sigma) ** 2
        np.testing.assert_allclose(found[i], expected, rtol=0.1, atol=0.04)
