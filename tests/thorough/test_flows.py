"""Flows and bounds where a statement takes many compilations or draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GaussianData

from vdm_jax import VDM, bounds, cnf, loss, ode, schedule


def test_giving_up_shows_in_the_density_and_its_gradient():
    def value(scale):
        solver = ode.Solver(max_steps=3)
        got = cnf.log_prob(
            jnp.ones((2, 2)), lambda t, z: scale * jnp.sin(30.0 * z), 0.0, 9.0, solver=solver
        )
        return got.log_prob.sum(), got.steps

    (total, steps), slope = jax.jit(jax.value_and_grad(value, has_aux=True))(1.0)
    assert np.isnan(total) and np.isnan(slope)
    assert int(steps.accepted + steps.rejected) == 3


def test_backsolve_that_gives_up_raises_where_its_gradient_would_be_none():
    def value(scale):
        solver = ode.Solver(adjoint="backsolve", max_steps=3)
        field = lambda t, z: scale * jnp.sin(30.0 * z)  # noqa: E731
        return cnf.log_prob(jnp.ones((2, 2)), field, 0.0, 9.0, solver=solver).log_prob.sum()

    with pytest.raises(Exception, match="maximum number of"):
        jax.block_until_ready(jax.grad(value)(1.0))


def test_consistency_varies_more_than_denoising_and_the_more_so_the_more_steps(x64):
    data = GaussianData(np.array([0.3, -0.5]), np.array([[0.5, 0.2], [0.2, 0.3]]))
    gamma, n = schedule.linear(-6.0, 4.0), 2**16
    x, t = jnp.broadcast_to(np.array([0.9, -1.1]), (n, 2)), (jnp.arange(n) + 0.5) / n
    eps_s, eps_u = (jax.random.normal(jax.random.key(k), x.shape) for k in (0, 1))

    def noise(num_steps):
        """The variance of the consistency term and of diffusion at given times."""
        vdm = VDM(data.denoise, gamma, (2,), None, "x", num_steps)
        both = jax.jit(
            lambda: (
                bounds.consistency_term(vdm, x, eps_s, eps_u, t),
                loss.diffusion(x, eps_u, t, data.denoise, gamma, num_steps, "x"),
            )
        )()
        # The draws of a step follow one another; their number is n / T.
        return np.asarray(both).reshape(2, num_steps, -1).var(-1, ddof=1).mean(-1)

    few, some, many, most = map(noise, (8, 64, 256, 1024))
    assert 0.9 < few[0] / few[1] < 1.2  # the network's error is all that varies
    assert some[0] / some[1] > 5
    # Denoising has a limit, the noise of consistency is of order T.
    np.testing.assert_allclose(most / many, [4.0, 1.0], rtol=0.06)
