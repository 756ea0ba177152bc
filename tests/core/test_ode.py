import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import ode

SOLVER = ode.Solver(rtol=1e-6, atol=1e-6, max_steps=1000)


def grow(rate):
    """The field of y' = rate y, for the first array of a state, and for a second its integral."""

    def field(t, state):
        return (rate[:, None] * state[0], *(state[0][:, 0] for _ in state[1:]))

    return field


def test_linear_equation_either_way_round_and_a_start_that_is_no_number(x64):
    rate, y = jnp.array([0.5, -2.0, 0.0, 1.0]), jnp.ones((4, 2))

    @jax.jit
    def run(y, start, end):
        return ode.solve(grow(rate), (y, jnp.zeros(4)), start, end, SOLVER)

    for start, end in ((-1.0, 2.0), (2.0, -1.0)):
        (z, integral), steps = run(y, start, end)
        expected = np.exp(np.asarray(rate) * (end - start))
        np.testing.assert_allclose(z, np.repeat(expected[:, None], 2, 1), rtol=1e-5, atol=1e-5)
        exact = [(e - 1) / r if r else end - start for e, r in zip(expected, rate, strict=True)]
        np.testing.assert_allclose(integral, exact, rtol=1e-5)
        assert int(steps.evaluations) == 1 + 6 * int(steps.accepted + steps.rejected)
        # One example isn't finite: that costs nothing, and it alone is lost.
        (spoilt, lost), again = run(y.at[3, 0].set(jnp.nan), start, end)
        assert int(again.evaluations) <= int(steps.evaluations)
        np.testing.assert_allclose(spoilt[:3], z[:3], rtol=1e-5, atol=1e-5)
        assert np.isnan(spoilt[3]).all() and np.isnan(lost[3])


def test_the_hardest_example_decides_the_steps_however_many_are_easy(x64):
    rate = jnp.zeros(100).at[7].set(9.0)
    run = jax.jit(lambda r: ode.solve(grow(r), (jnp.ones((len(r), 4)),), 0.0, 1.0, SOLVER))
    ((alone,), steps), ((among,), others) = run(rate[7:8]), run(rate)
    assert int(steps.accepted) == int(others.accepted) > 10
    np.testing.assert_allclose(among[7], alone[0], rtol=1e-12)
    np.testing.assert_allclose(alone, np.exp(9.0), rtol=1e-4)


def test_an_error_is_the_worst_root_mean_square_of_any_example_and_array():
    error = (jnp.array([[3.0, -4.0], [0.0, 0.0]]), jnp.array([1.0, -3.6]))
    np.testing.assert_allclose(ode._worst(error), 3.6, rtol=1e-6)
    np.testing.assert_allclose(ode._worst(error[:1]), 12.5**0.5, rtol=1e-6)


def test_an_explosion_before_the_end_shows_for_the_whole_batch():
    # y' = y^2 from 1 is infinite at 1, from 0.1 only at 10.
    y = jnp.array([[1.0], [0.1]])
    (z,), steps = jax.jit(lambda: ode.solve(lambda t, s: (s[0] ** 2,), (y,), 0.0, 2.0, SOLVER))()
    assert np.isnan(z).all()
    assert int(steps.accepted + steps.rejected) <= SOLVER.max_steps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trace": "skilling"}, "trace must be one of exact, hutchinson, got 'skilling'."),
        ({"num_probes": 0}, "num_probes must be an integer of at least 1, got 0."),
        ({"max_steps": 0}, "max_steps must be an integer of at least 1, got 0."),
        ({"atol": -1e-5}, "atol must be positive, got -1e-05."),
        ({"rtol": np.nan}, "rtol must be positive, got nan."),
        (
            {"rtol": 4.6e-7, "atol": 1e-8},
            "rtol = 4.6e-07 and atol = 1e-08 are finer than float32 resolves; raise rtol to "
            "4.8e-07 or more, or compute in float64 (jax_enable_x64).",
        ),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ode.Solver(**options).check(jnp.float32)
    ode.Solver(rtol=4.8e-7, atol=1e-9).check(jnp.float32)
    ode.Solver(rtol=1e-12, atol=1e-12).check(jnp.float64)
