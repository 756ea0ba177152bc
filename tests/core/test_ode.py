import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import ode

TOLERANCES = {"rtol": 1e-6, "atol": 1e-6, "max_steps": 1000}


def grow(rate):
    """The field of y' = rate y, for the first array of a state, and for a second its integral."""

    def field(gamma, state):
        return (rate[:, None] * state[0], *(state[0][:, 0] for _ in state[1:]))

    return field


@pytest.mark.parametrize(("start", "end"), [(-1.0, 2.0), (2.0, -1.0), (-3.0, 0.0)])
def test_linear_equation_either_way_round(x64, start, end):
    rate, y = jnp.array([0.5, -2.0, 0.0]), jnp.ones((3, 2))
    got = ode.solve(grow(rate), (y, jnp.zeros(3)), start, end, **TOLERANCES)
    expected = np.exp(np.asarray(rate) * (end - start))
    np.testing.assert_allclose(
        got.state[0], np.repeat(expected[:, None], 2, 1), rtol=1e-5, atol=1e-5
    )
    integral = [(e - 1) / r if r else end - start for e, r in zip(expected, rate, strict=True)]
    np.testing.assert_allclose(got.state[1], integral, rtol=1e-5, atol=1e-5)
    assert int(got.num_evaluations) == 1 + 6 * int(got.num_accepted + got.num_rejected)


def test_hardest_example_decides_the_steps_however_many_are_easy(x64):
    rate = jnp.zeros(1000).at[7].set(9.0)
    alone = ode.solve(grow(rate[7:8]), (jnp.ones((1, 4)),), 0.0, 1.0, **TOLERANCES)
    among = ode.solve(grow(rate), (jnp.ones((1000, 4)),), 0.0, 1.0, **TOLERANCES)
    assert int(alone.num_accepted) == int(among.num_accepted) > 10
    np.testing.assert_allclose(among.state[0][7], alone.state[0][0], rtol=1e-12)
    # Among the elements of one example the mean square counts, and no other array dilutes it.
    wide = jnp.zeros(2).at[0].set(9.0)
    two = ode.solve(grow(wide), (jnp.ones((2, 4)), jnp.zeros(2)), 0.0, 1.0, **TOLERANCES)
    assert int(two.num_accepted) >= int(alone.num_accepted)


def test_a_start_that_is_no_number_costs_nothing_and_ends_as_none(x64):
    y = jnp.ones((3, 2)).at[1, 0].set(jnp.nan)
    got = ode.solve(grow(jnp.ones(3)), (y,), 0.0, 1.0, **TOLERANCES)
    clean = ode.solve(grow(jnp.ones(3)), (jnp.ones((3, 2)),), 0.0, 1.0, **TOLERANCES)
    assert int(got.num_evaluations) == int(clean.num_evaluations)
    np.testing.assert_array_equal(np.isnan(got.state[0]).all(1), [False, True, False])


def test_an_explosion_before_the_end_shows(x64):
    # y' = y^2 from 1 is infinite at 1.
    got = ode.solve(lambda g, s: (s[0] ** 2,), (jnp.ones((1, 1)),), 0.0, 2.0, **TOLERANCES)
    assert np.isnan(got.state[0][0, 0])
