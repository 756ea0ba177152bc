import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Mixture, alpha_sigma
from scipy import linalg, stats

from vdm_jax import cnf, flow, ode, parameterization

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
MATRIX = np.array([[0.4, -1.1], [0.7, -0.3]])
SHIFT = np.array([0.3, -0.2])


def linear(params, t, z):
    """A field with an exact Gaussian for its density: dz/dt = (1 + t) (matrix z + shift)."""
    matrix, shift = params
    return (1.0 + t) * (z @ matrix.T + shift)


def linear_map(matrix, shift, start, end):
    """z(end) = product z(start) + offset, by a matrix exponential over int (1 + t) dt."""
    augmented = np.block([[matrix, shift[:, None]], [np.zeros((1, 3))]])
    whole = linalg.expm(augmented * (end - start) * (1.0 + 0.5 * (start + end)))
    return whole[:2, :2], whole[:2, 2]


def linear_log_prob(matrix, shift, x, start, end):
    product, offset = linear_map(matrix, shift, start, end)
    cov = np.linalg.inv(product.T @ product)
    return stats.multivariate_normal(-np.linalg.solve(product, offset), cov).logpdf(x)


def logistic(t, z):
    """dz/dt = z (1 - z), whose solution is the logistic curve: (0, 1) stays in itself."""
    return z * (1.0 - z)


def network(seed: int, width: int = 16):
    """A random small network as field, not linear in anything."""
    keys = jax.random.split(jax.random.key(seed), 3)
    first, second, last = (
        jax.random.normal(k, shape) / np.sqrt(shape[0])
        for k, shape in zip(keys, ((3, width), (width, width), (width, 2)), strict=True)
    )

    def field(t, z):
        inputs = jnp.concatenate([z, jnp.full_like(z[:, :1], t)], axis=1)
        return jnp.tanh(jnp.tanh(inputs @ first) @ second) @ last

    return field


def points(n: int = 5, dims: int = 2) -> np.ndarray:
    return np.random.default_rng(n).normal(size=(n, dims))


# ---- known densities ----


def test_linear_field_has_the_density_of_its_gaussian(x64):
    x, field = points(), functools.partial(linear, (MATRIX, SHIFT))
    run = jax.jit(lambda start, end: cnf.log_prob(x, field, start, end, **TIGHT))
    for start, end in ((0.0, 1.0), (1.5, -0.5), (-2.0, -1.0)):
        got = run(start, end)
        product, offset = linear_map(MATRIX, SHIFT, start, end)
        np.testing.assert_allclose(got.z, x @ product.T + offset, atol=1e-7)
        exact = linear_log_prob(MATRIX, SHIFT, x, start, end)
        np.testing.assert_allclose(got.log_prob, exact, atol=1e-7)
        assert np.max(np.abs(exact - stats.norm.logpdf(x).sum(1))) > 0.1


def test_default_tolerance_in_float32_is_well_below_a_thousandth_of_a_nat():
    x = np.float32(points(50))
    field = functools.partial(linear, (np.float32(MATRIX), np.float32(SHIFT)))
    run = jax.jit(lambda start, end: cnf.log_prob(x, field, start, end).log_prob)
    for start, end in ((0.0, 1.0), (1.0, 0.0)):
        got = run(start, end)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, linear_log_prob(MATRIX, SHIFT, x, start, end), atol=1e-4)


def test_logistic_field_makes_of_uniform_points_their_known_density(x64):
    # Uniform on (0, 1) at the end: log p(x) is the log-derivative of x -> z(end) and no more.
    x = np.random.default_rng(0).uniform(0.05, 0.95, size=(6, 3))

    def uniform(z):
        return jnp.where(jnp.all((z > 0.0) & (z < 1.0), axis=1), 0.0, -jnp.inf)

    run = jax.jit(lambda end: cnf.log_prob(x, logistic, 1.0, end, uniform, **TIGHT))
    for time in (0.7, -2.0):
        got, growth = run(1.0 + time), np.exp(time)
        denominator = 1.0 + x * (growth - 1.0)
        np.testing.assert_allclose(got.z, x * growth / denominator, atol=1e-7)
        exact = np.sum(np.log(growth) - 2.0 * np.log(denominator), axis=1)
        np.testing.assert_allclose(got.log_prob, exact, atol=1e-7)


def test_a_rotation_whose_speed_depends_on_the_radius_keeps_the_normal_density(x64):
    # Its divergence is zero though no element of its Jacobian's diagonal is.
    def swirl(t, z):
        speed = jnp.sum(z**2, axis=1, keepdims=True) * (1.0 + t)
        return speed * jnp.stack([-z[:, 1], z[:, 0]], axis=1)

    x = points(4)
    got = cnf.log_prob(x, swirl, 0.0, 2.0, **TIGHT)
    np.testing.assert_allclose(got.log_prob, stats.norm.logpdf(x).sum(1), atol=1e-7)
    angle = 4.0 * np.sum(x**2, axis=1)
    turned = (x[:, 0] + 1j * x[:, 1]) * np.exp(1j * angle)
    np.testing.assert_allclose(got.z, np.stack([turned.real, turned.imag], 1), atol=1e-6)


def test_two_flows_one_after_the_other_are_the_flow_over_both_times(x64):
    x, field = points(), network(0)
    whole = cnf.log_prob(x, field, 0.0, 1.0, **TIGHT)

    def later(z):
        return cnf.log_prob(z, field, 0.4, 1.0, **TIGHT).log_prob

    parts = cnf.log_prob(x, field, 0.0, 0.4, later, **TIGHT)
    np.testing.assert_allclose(parts.log_prob, whole.log_prob, atol=1e-7)


def test_density_of_a_network_integrates_to_one():
    # The sum over a grid of a smooth density that vanishes at its border.
    axis = np.linspace(-9.0, 9.0, 121)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2).astype(np.float32)
    run = jax.jit(lambda x: cnf.log_prob(x, network(0), 0.0, 1.0).log_prob)
    density = np.exp(np.asarray(run(grid), np.float64))
    assert abs(density.sum() * (axis[1] - axis[0]) ** 2 - 1.0) < 1e-3
    normal = np.exp(stats.norm.logpdf(grid).sum(1))
    assert 0.5 * np.abs(density - normal).sum() * (axis[1] - axis[0]) ** 2 > 0.2


def test_there_and_back_is_the_identity(x64):
    x, field = points(7), network(2)
    there = cnf.log_prob(x, field, 0.3, 1.7, **TIGHT)
    back = cnf.sample(there.z, field, 0.3, 1.7, **TIGHT)
    np.testing.assert_allclose(back.x, x, atol=1e-7)
    assert np.max(np.abs(there.z - x)) > 0.1


def test_samples_of_a_linear_flow_have_the_moments_of_its_gaussian():
    n = 20_000
    z = jax.random.normal(jax.random.key(0), (n, 2))
    field = functools.partial(linear, (np.float32(MATRIX), np.float32(SHIFT)))
    x = cnf.sample(z, field, 0.0, 1.0).x
    product, offset = linear_map(MATRIX, SHIFT, 0.0, 1.0)
    mean, cov = -np.linalg.solve(product, offset), np.linalg.inv(product.T @ product)
    errors = np.sqrt(np.diag(cov) / n)
    assert np.all(np.abs(x.mean(0) - mean) < 5 * errors)
    spread = np.sqrt((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / n)
    assert np.all(np.abs(np.cov(x.T) - cov) < 5 * spread)


# ---- the probability flow of a diffusion is one ----


def test_probability_flow_of_a_mixture_has_its_known_density(x64):
    data = Mixture(
        np.array([0.5, 0.3, 0.2]),
        np.array([[-0.6, 0.1], [0.5, 0.5], [0.2, -0.7]]),
        np.array([0.02, 0.05, 0.1]),
    )
    reach, denoise = 16.0, jax.vmap(data.denoise)
    rng = np.random.default_rng(0)
    k = rng.integers(0, 3, 12)
    x = data.means[k] + np.sqrt(data.var[k])[:, None] * rng.normal(size=(12, 2))

    def field(gamma, z):
        # dz/dgamma = -(sigma^2 / 2) (z + score), from the score itself.
        per_example = jnp.full(z.shape[:1], gamma)
        score = parameterization.to_score(denoise(z, per_example), z, per_example, "x")
        return -0.5 * jax.nn.sigmoid(gamma) * (z + score)

    alpha, _ = alpha_sigma(-reach)
    got = cnf.log_prob(alpha * x, field, -reach, reach).log_prob
    exact = jax.vmap(lambda row: data.log_prob(row, -jnp.inf))(x)
    np.testing.assert_allclose(got, exact, atol=1e-3)
    of_flow = flow.log_prob(alpha * x, denoise, -reach, reach, "x").log_prob
    np.testing.assert_allclose(got, of_flow, atol=1e-4)


# ---- Hutchinson ----


def test_hutchinson_is_unbiased_for_a_field_that_is_not_linear():
    n, x, field = 4000, np.float32(points(1)), network(1)
    exact = float(cnf.log_prob(x, field, 0.0, 1.0).log_prob[0])
    run = jax.jit(
        lambda key: (
            cnf.log_prob(jnp.repeat(x, n, 0), field, 0.0, 1.0, trace="hutchinson", key=key).log_prob
        )
    )
    estimates = np.asarray(run(jax.random.key(0)), np.float64)
    error = estimates.std() / np.sqrt(n)
    assert 1e-4 < error < 0.05
    assert abs(estimates.mean() - exact) < 5 * error


# ---- gradients ----


@pytest.mark.parametrize(
    ("adjoint", "tolerance"), [("checkpoint", 1e-9), ("backsolve", 1e-4), ("backsolve", 1e-9)]
)
def test_gradient_of_a_linear_flow_is_that_of_its_gaussian(x64, adjoint, tolerance):
    # By the parameters, the times and x; as accurate as its tolerance.
    x, weights = points(4), np.array([0.2, 1.0, -0.5, 0.7])
    params = (MATRIX, SHIFT, np.array([0.1, 1.2]), np.zeros(2))

    def value(params):
        matrix, shift, ends, moved = params
        field = functools.partial(linear, (matrix, shift))
        got = cnf.log_prob(x + moved, field, *ends, adjoint=adjoint, rtol=tolerance, atol=tolerance)
        return jnp.sum(weights * got.log_prob)

    got = jax.jit(jax.grad(value))(params)
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    def exact(flat):
        matrix, shift, ends, moved = map(np.asarray, unravel(flat))
        return weights @ linear_log_prob(matrix, shift, x + moved, *ends)

    h = 1e-5
    numeric = [(exact(flat + row) - exact(flat - row)) / (2 * h) for row in h * np.eye(flat.size)]
    error = np.abs(jax.flatten_util.ravel_pytree(got)[0] - np.array(numeric))
    assert np.max(error) < max(20 * tolerance, 2e-7)
    assert np.all(np.abs(numeric) > 1e-3)


def test_both_adjoints_have_the_gradient_of_finite_differences(x64):
    x, base = points(3), network(3)

    def value(params, adjoint="checkpoint"):
        def field(t, z):
            return params[0] * base(t + params[1], z * params[2])

        got = cnf.log_prob(
            x, field, 0.0, 1.0, trace="hutchinson", key=jax.random.key(1), adjoint=adjoint, **TIGHT
        )
        return got.log_prob.sum()

    params, h = jnp.array([1.1, 0.2, 0.9]), 1e-4
    forth = jax.jit(functools.partial(value, adjoint="checkpoint"))
    numeric = np.array([(forth(params + r) - forth(params - r)) / (2 * h) for r in h * np.eye(3)])
    assert np.all(np.abs(numeric) > 1e-2)
    for adjoint in ode.ADJOINTS:
        got = jax.jit(jax.grad(functools.partial(value, adjoint=adjoint)))(params)
        np.testing.assert_allclose(got, numeric, rtol=1e-6)


def test_backsolve_under_vmap_and_with_integers_in_the_field(x64):
    # Labels aren't differentiated; a batch of parameters is one gradient each.
    x, table = points(3, 1), np.array([0.3, 0.8])

    def value(scale, labels, adjoint):
        def field(t, z):
            return scale * jnp.tanh(z + jnp.asarray(table)[labels][:, None])

        return cnf.log_prob(x, field, 0.0, 1.0, adjoint=adjoint, **TIGHT).log_prob.sum()

    scales, labels = jnp.array([0.5, 1.2]), jnp.array([[0, 1, 1], [1, 0, 0]])
    got = {
        adjoint: jax.jit(jax.vmap(jax.grad(functools.partial(value, adjoint=adjoint))))(
            scales, labels
        )
        for adjoint in ode.ADJOINTS
    }
    np.testing.assert_allclose(got["backsolve"], got["checkpoint"], rtol=1e-6)
    assert abs(got["backsolve"][0] - got["backsolve"][1]) > 0.1


# ---- failure and errors ----


def test_giving_up_shows_in_the_density_and_in_both_gradients():
    x = jnp.ones((2, 2))

    def value(scale, adjoint):
        got = cnf.log_prob(
            x, lambda t, z: scale * jnp.sin(30.0 * z), 0.0, 9.0, adjoint=adjoint, max_steps=3
        )
        return got.log_prob.sum()

    assert np.all(np.isnan(jax.value_and_grad(value)(1.0, "checkpoint")))
    with pytest.raises(Exception, match="maximum number of"):
        jax.block_until_ready(jax.grad(value)(1.0, "backsolve"))


@pytest.mark.parametrize(
    ("match", "options"),
    [
        (r"start must be a scalar, got shape \(2,\)", {"start": np.zeros(2)}),
        (r"end must be finite, got inf", {"end": np.inf}),
        (r"adjoint must be one of checkpoint, backsolve, got 'direct'", {"adjoint": "direct"}),
        (r"rtol must be positive, got 0\.0", {"rtol": 0.0}),
        (r"max_steps must be an integer of at least 1, got 0", {"max_steps": 0}),
        (
            r"field must return \(2, 3\), the shape of z, got \(2,\)",
            {"field": lambda t, z: z[:, 0]},
        ),
    ],
)
def test_settings_out_of_range_are_refused(match, options):
    arguments = {"field": lambda t, z: z, "start": 0.0, "end": 1.0} | options
    for run in (cnf.log_prob, cnf.sample):
        with pytest.raises(ValueError, match=match):
            run(np.zeros((2, 3)), **arguments)


@pytest.mark.parametrize(
    ("match", "options"),
    [
        (r"x must be floats \[batch, \*event\], got int32\[2, 3\]", {"x": np.zeros((2, 3), int)}),
        (r"trace must be one of exact, hutchinson, got 'skilling'", {"trace": "skilling"}),
        (r"trace='hutchinson' draws probes: give it a key", {"trace": "hutchinson"}),
        (
            r"base must return \[2\], one per example, got shape \(2, 3\)",
            {"base": lambda z: -(z**2)},
        ),
    ],
)
def test_densities_that_cannot_be_computed_are_refused(match, options):
    arguments = {"x": np.zeros((2, 3)), "field": lambda t, z: z, "start": 0.0, "end": 1.0} | options
    with pytest.raises(ValueError, match=match):
        cnf.log_prob(**arguments)
