import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vdm_jax import timestep


@pytest.mark.parametrize("batch_size", [1, 2, 7, 128])
def test_antithetic_times_lie_one_in_each_cell_and_evenly_around_the_circle(batch_size):
    keys = jax.random.split(jax.random.key(batch_size), 50)
    times = np.asarray(jax.vmap(lambda key: timestep.antithetic(key, batch_size))(keys), np.float64)
    assert np.all((times >= 0.0) & (times < 1.0))
    for t in times:
        cells = np.bincount(np.floor(t * batch_size).astype(int), minlength=batch_size)
        np.testing.assert_array_equal(cells, 1)
        gaps = np.diff(np.sort(t), append=1.0 + t.min())
        np.testing.assert_allclose(gaps, 1.0 / batch_size, atol=2e-7)


@pytest.mark.parametrize("method", timestep.METHODS)
@pytest.mark.parametrize("position", [0, 4])
def test_each_time_of_a_batch_is_uniform_by_itself(method, position):
    keys = jax.random.split(jax.random.key(3), 4000)
    t = jax.vmap(lambda key: timestep.draw(key, 5, method)[position])(keys)
    assert stats.kstest(np.asarray(t), "uniform").pvalue > 1e-3


def test_uniform_times_of_a_batch_are_independent_and_antithetic_ones_are_not():
    keys = jax.random.split(jax.random.key(4), 4000)

    def variance_of_mean(method):
        return np.var(jax.vmap(lambda key: timestep.draw(key, 8, method).mean())(keys))

    # Var of the mean of 8: 1/(12 * 8) when independent; 1/(12 * 64) when evenly spaced.
    assert abs(variance_of_mean("uniform") * 96 - 1.0) < 4 * np.sqrt(2 / 4000)
    assert abs(variance_of_mean("antithetic") * 768 - 1.0) < 4 * np.sqrt(2 / 4000)


def test_draws_follow_the_default_float_type(dtype):
    for method in timestep.METHODS:
        t = timestep.draw(jax.random.key(0), 3, method)
        assert t.dtype == dtype
        assert t.shape == (3,)


@pytest.mark.parametrize("num_steps", [1, 2, 7, 1000])
def test_grid_rounds_up_to_a_step_of_length_one_over_num_steps(x64, num_steps):
    draws = np.random.default_rng(0).uniform(size=500)
    s, t = timestep.grid(jnp.asarray(draws), num_steps)
    i = np.asarray(t) * num_steps
    np.testing.assert_allclose(i, np.rint(i), atol=1e-9)
    np.testing.assert_allclose(t - s, 1.0 / num_steps, rtol=1e-12)
    assert np.all((s < draws) & (draws <= t))
    assert s.min() >= 0.0
    assert t.max() <= 1.0


@pytest.mark.parametrize("num_steps", [1, 3, 1000])
def test_grid_of_zero_is_the_first_step_and_of_one_the_last(dtype, num_steps):
    s, t = timestep.grid(jnp.array([0.0, 1.0], dtype), num_steps)
    assert s.dtype == t.dtype == dtype
    assert s[0] == 0.0
    assert t[0] == jnp.asarray(1.0 / num_steps, dtype)
    assert t[1] == 1.0
    np.testing.assert_allclose(s[1], 1.0 - 1.0 / num_steps, rtol=1e-6)


def test_grid_takes_each_step_equally_often():
    draws = (jnp.arange(700) + 0.5) / 700
    _, t = timestep.grid(draws, 7)
    np.testing.assert_array_equal(np.bincount(np.rint(np.asarray(t) * 7).astype(int))[1:], 100)


def test_grid_neighbours_share_their_time_exactly(dtype):
    # s of one step and t of the one before are the same number, so that the bound telescopes.
    s, t = timestep.grid((jnp.arange(1000, dtype=dtype) + 0.5) / 1000, 1000)
    np.testing.assert_array_equal(s[1:], t[:-1])


@pytest.mark.parametrize("num_steps", [0, -3, 2.0, True, None, "10"])
def test_num_steps_must_be_a_positive_integer(num_steps):
    with pytest.raises(ValueError, match=r"num_steps must be an integer of at least 1, got .*None"):
        timestep.grid(jnp.array([0.5]), num_steps)


def test_unknown_method_is_named_in_the_error():
    with pytest.raises(ValueError, match=r"one of uniform, antithetic, got 'sobol'"):
        timestep.draw(jax.random.key(0), 3, "sobol")


@pytest.mark.parametrize("start", [0, 7, 10_000_000])
@pytest.mark.parametrize("count", [5, 89])
def test_spread_times_of_any_run_of_images_are_even_and_repeats_equally_spaced(
    start: int, count: int
) -> None:
    u = jnp.asarray(0.3)
    index = jnp.arange(start, start + count)
    t = np.sort(np.asarray(timestep.spread(u, index, 0, 1), np.float64))
    gaps = np.diff(np.append(t, t[0] + 1.0))
    # Points of the golden rotation have gaps of at most three sizes, none above phi / count.
    assert gaps.max() < 1.9 / count
    assert gaps.min() > 0.3 / count
    one = np.array([timestep.spread(u, index[:1], r, 4)[0] for r in range(4)])
    np.testing.assert_allclose(np.diff(np.sort(one)), 0.25, atol=1e-6)


def test_spread_times_are_the_golden_rotation_and_uniform_with_u() -> None:
    index = jnp.arange(6)
    golden = 0.5 * (np.sqrt(5.0) - 1.0)
    expected = np.mod(0.3 + np.arange(6) * golden + 2 / 5, 1.0)
    np.testing.assert_allclose(timestep.spread(jnp.asarray(0.3), index, 2, 5), expected, atol=1e-6)
    draws = np.concatenate(
        [timestep.spread(jnp.asarray(u), index[3:4], 1, 5) for u in np.linspace(0, 1, 200)[:-1]]
    )
    assert np.abs(np.sort(draws) - np.linspace(0, 1, 200)[:-1]).max() < 0.01


@pytest.mark.parametrize("num_steps", [1, 7, 10, 20, 100, 250, 1000])
def test_a_time_on_the_grid_stays_where_it_is(dtype: str, num_steps: int) -> None:
    i = np.arange(1, num_steps + 1)
    for t in (jnp.asarray(i) / num_steps, jnp.linspace(0.0, 1.0, num_steps + 1)[1:]):
        s, on_grid = timestep.grid(t, num_steps)
        np.testing.assert_array_equal(np.rint(np.asarray(on_grid, np.float64) * num_steps), i)
        np.testing.assert_array_equal(np.rint(np.asarray(s, np.float64) * num_steps), i - 1)
    middle, _ = timestep.grid((jnp.asarray(i) - 0.5) / num_steps, num_steps)
    np.testing.assert_array_equal(np.rint(np.asarray(middle, np.float64) * num_steps), i - 1)
