import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg, stats

from vdm_jax import cnf, ode

TIGHT = ode.Solver(rtol=1e-9, atol=1e-9)
MATRIX = np.array([[0.4, -1.1], [0.7, -0.3]])
SHIFT = np.array([0.3, -0.2])
POINTS = np.zeros((2, 3))


def linear(params, t, z):
    """A field with an exact Gaussian for its density: dz/dt = (1 + t) (matrix z + shift)."""
    matrix, shift = params
    return (1.0 + t) * (z @ matrix.T + shift)


def linear_map(matrix, shift, start, end):
    """z(end) = product z(start) + offset, by a matrix exponential over int (1 + t) dt."""
    augmented = np.block([[matrix, shift[:, None]], [np.zeros((1, 3))]])
    both = linalg.expm(augmented * (end - start) * (1.0 + 0.5 * (start + end)))
    return both[:2, :2], both[:2, 2]


def linear_log_prob(matrix, shift, x, start, end):
    product, offset = linear_map(matrix, shift, start, end)
    cov = np.linalg.inv(product.T @ product)
    return stats.multivariate_normal(-np.linalg.solve(product, offset), cov).logpdf(x)


def points(n: int = 5) -> np.ndarray:
    return np.random.default_rng(n).normal(size=(n, 2))


# ---- known densities ----


def test_linear_field_has_the_density_of_its_gaussian_and_sample_leads_back(x64):
    x, field = points(), functools.partial(linear, (MATRIX, SHIFT))
    forth = jax.jit(lambda start, end: cnf.log_prob(x, field, start, end, solver=TIGHT))
    back = jax.jit(lambda z, start, end: cnf.sample(z, field, start, end, TIGHT))
    for start, end in ((0.0, 1.0), (1.5, -0.5)):
        got = forth(start, end)
        product, offset = linear_map(MATRIX, SHIFT, start, end)
        np.testing.assert_allclose(got.z, x @ product.T + offset, atol=1e-7)
        exact = linear_log_prob(MATRIX, SHIFT, x, start, end)
        np.testing.assert_allclose(got.log_prob, exact, atol=1e-7)
        assert np.max(np.abs(exact - stats.norm.logpdf(x).sum(1))) > 0.1
        again = back(got.z, start, end)
        np.testing.assert_allclose(again.z, x, atol=1e-7)
        assert int(again.steps.evaluations) == 1 + 6 * int(
            again.steps.accepted + again.steps.rejected
        )


def test_logistic_field_makes_of_uniform_points_their_known_density(x64):
    # dz/dt = z (1 - z) keeps (0, 1). log p(x) is the log-derivative of x -> z(end) and no more.
    x = np.random.default_rng(0).uniform(0.05, 0.95, size=(6, 3))

    def uniform(z):
        return jnp.where(jnp.all((z > 0.0) & (z < 1.0), axis=1), 0.0, -jnp.inf)

    run = jax.jit(lambda end: cnf.log_prob(x, lambda t, z: z * (1.0 - z), 1.0, end, uniform, TIGHT))
    for time in (0.7, -2.0):
        got, growth = run(1.0 + time), np.exp(time)
        denominator = 1.0 + x * (growth - 1.0)
        np.testing.assert_allclose(got.z, x * growth / denominator, atol=1e-7)
        exact = np.sum(np.log(growth) - 2.0 * np.log(denominator), axis=1)
        np.testing.assert_allclose(got.log_prob, exact, atol=1e-7)


# ---- the trace ----


def test_exact_trace_of_more_columns_than_are_computed_at_once(x64):
    dims = 2 * cnf._COLUMNS + 3
    matrix = np.random.default_rng(0).normal(size=(2, dims, dims))
    tangent = functools.partial(jnp.einsum, "bij,bj->bi", jnp.asarray(matrix))
    got = cnf.exact_trace(tangent, jnp.zeros((2, dims)))
    np.testing.assert_allclose(got, np.trace(matrix, axis1=1, axis2=2), rtol=1e-12)


@pytest.mark.parametrize(("probes", "num_probes"), [("gaussian", 1), ("rademacher", 3)])
def test_hutchinson_is_unbiased_and_has_the_variance_of_its_closed_form(probes, num_probes):
    n, root = 20_000, np.random.default_rng(1).normal(size=(4, 4))
    matrix = root + root.T
    tangent = functools.partial(jnp.einsum, "ij,bj->bi", jnp.asarray(matrix))
    solver = ode.Solver("hutchinson", probes, num_probes)
    noise = cnf._probes(jax.random.key(0), jnp.zeros((n, 4)), solver)
    estimates = np.asarray(cnf.hutchinson(tangent, noise), np.float64)
    left_out = np.diag(np.diag(matrix)) if probes == "rademacher" else 0.0
    variance = 2 * np.sum((matrix - left_out) ** 2) / num_probes
    assert abs(estimates.mean() - np.trace(matrix)) < 4 * np.sqrt(variance / n)
    fourth = np.mean((estimates - estimates.mean()) ** 4)
    assert abs(estimates.var() - variance) < 4 * np.sqrt((fourth - variance**2) / n)


# ---- gradients ----


@pytest.mark.parametrize(("adjoint", "tolerance"), [("checkpoint", 1e-9), ("backsolve", 1e-6)])
def test_gradient_of_a_linear_flow_is_that_of_its_gaussian(x64, adjoint, tolerance):
    # By the parameters, the times and x; as accurate as its tolerance.
    x, weights = points(4), np.array([0.2, 1.0, -0.5, 0.7])
    params = (MATRIX, SHIFT, np.array([0.1, 1.2]), np.zeros(2))
    solver = ode.Solver(rtol=tolerance, atol=tolerance, adjoint=adjoint)

    def value(params):
        matrix, shift, ends, moved = params
        field = functools.partial(linear, (matrix, shift))
        return jnp.sum(weights * cnf.log_prob(x + moved, field, *ends, solver=solver).log_prob)

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


# ---- failure and errors ----


def test_what_cannot_be_computed_is_refused():
    def of(run=cnf.log_prob, z=POINTS, field=lambda t, z: z, start=0.0, end=1.0, **more):
        return lambda: run(z, field, start, end, **more)

    for call, message in (
        (of(start=np.zeros(2)), "start must be a scalar, got shape (2,)."),
        (of(cnf.sample, end=np.inf), "end must be finite, got inf."),
        (of(solver=ode.Solver(rtol=0.0)), "rtol must be positive, got 0.0."),
        (of(field=lambda t, z: z[:, 0]), "field must return (2, 3), the shape of z, got (2,)."),
        (of(z=np.zeros((2, 3), int)), "x must be floats [batch, *event], got int32[2, 3]."),
        (of(cnf.sample, np.zeros(())), "z must be floats [batch, *event], got float32[]."),
        (of(solver=ode.Solver("hutchinson")), "draws probes: give it a key, got key=None."),
        (of(base=lambda z: z), "base must return [2], one per example, got shape (2, 3)."),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            jax.eval_shape(call)
