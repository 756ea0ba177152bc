import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy import assert_equal, batches, constant_model, mlp_model

from vdm_jax import loss
from vdm_jax.train import optimizer, sharding, step

KEY = jax.random.key(5)


def fresh(model, mesh=None, rate=1e-2):
    adamw = optimizer.make(rate)
    state = jax.jit(lambda key: step.init_state(model, adamw, key))(jax.random.key(0))
    if mesh is not None:
        state = jax.device_put(state, sharding.replicated(mesh))
    return adamw, state


@functools.cache
def compiled(devices, accumulate, count, max_skipped=3):
    """One program, and a first state on the host, for all tests of these sizes.

    Its model breaks on a negative conditioning, of which only some tests have any.
    """
    model, mesh = breaking(mlp_model()), sharding.make_mesh(jax.devices()[:devices])
    adamw, state = fresh(model)
    step_fn = step.make_step(model, adamw, 0.9, KEY, mesh, accumulate, count, max_skipped)
    return mesh, step_fn, jax.device_get(state)


def run(data, bounds, devices=1, accumulate=1, max_skipped=3):
    """Calls of the compiled step with the given (start, stop) on one chunk."""
    mesh, step_fn, state = compiled(devices, accumulate, len(data["images"]), max_skipped)
    state = jax.device_put(state, sharding.replicated(mesh))
    metrics = []
    for start, stop in bounds:
        state, m = step_fn(state, sharding.put(data, mesh, axis=1), start, stop)
        metrics.append(m)
    return state, jax.device_get(metrics)


def breaking(model):
    """The model, of which the bound is NaN for a batch with a negative conditioning."""

    def bind(params, conditioning, key):
        denoise, gamma = model.bind(params, conditioning, key)
        factor = jnp.where(jnp.any(conditioning < 0), jnp.nan, 1.0)
        return lambda z_t, gamma_t: denoise(z_t, gamma_t) * factor, gamma

    return dataclasses.replace(model, bind=bind)


def one_device():
    return sharding.make_mesh(jax.devices()[:1])


def test_update_is_adamw_on_the_mean_bound_with_an_average_behind_it():
    model = mlp_model()
    adamw, state = fresh(model)
    batch = {k: v[0] for k, v in batches(1, 8).items()}
    new, metrics = step.update(state, batch, model, adamw, 0.9, KEY)

    def bpd(params):
        terms = model.terms(params, batch, jax.random.fold_in(KEY, 0), dropout=True)
        return loss.bits_per_dim(terms.total.mean(), model.event_shape)

    value, grads = jax.value_and_grad(bpd)(state.params)
    np.testing.assert_allclose(metrics["bpd"], value, rtol=1e-6)
    parts = metrics["reconstruction"] + metrics["prior"] + metrics["diffusion"]
    np.testing.assert_allclose(metrics["bpd"], parts, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-4)
    updates, _ = adamw.update(grads, state.opt_state, state.params)
    for got, old, change in zip(
        *map(jax.tree.leaves, (new.params, state.params, updates)), strict=True
    ):
        np.testing.assert_allclose(got, old + change, atol=2e-4)
    for average, old, now in zip(
        *map(jax.tree.leaves, (new.ema_params, state.params, new.params)), strict=True
    ):
        np.testing.assert_allclose(average, 0.9 * old + 0.1 * now, atol=1e-6)
    assert new.step == 1


def test_random_numbers_follow_the_step_and_nothing_else():
    model = mlp_model()
    adamw, state = fresh(model)
    batch = {k: v[0] for k, v in batches(1, 8).items()}
    value = [
        step.update(state._replace(step=jnp.int32(n)), batch, model, adamw, 0.9, KEY)[1]["bpd"]
        for n in (3, 3, 4)
    ]
    assert value[0] == value[1] != value[2]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_same_batch_gives_the_same_update_on_one_and_on_eight_devices(accumulate):
    assert len(jax.devices()) == 8, "tests run on 8 simulated devices, see conftest.py"
    data = batches(3, 32)
    states = []
    for devices in (1, 8):
        state, metrics = run(data, [(0, 3)], devices, accumulate)
        states.append((jax.device_get(state), jax.device_get(metrics)))
    assert int(states[0][0].step) == 3
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), states[0], states[1]
    )


def test_the_batch_is_spread_over_the_devices_and_the_state_is_on_all():
    mesh = sharding.make_mesh()
    data = sharding.put(batches(2, 32), mesh, axis=1)
    assert {s.data.shape for s in data["images"].addressable_shards} == {(2, 4, 2, 2, 1)}
    assert len({s.device for s in data["images"].addressable_shards}) == 8
    state, _ = run(batches(3, 32), [(0, 2)], devices=8)
    for leaf in jax.tree.leaves(state):
        assert leaf.sharding.is_fully_replicated and len(leaf.sharding.device_set) == 8


def test_a_run_is_the_same_bit_for_bit_wherever_its_calls_begin_and_end():
    data = batches(8, 8)
    whole, _ = run(data, [(0, 5)])
    for bounds in ([(0, 1), (1, 5)], [(0, 2), (2, 3), (3, 5)]):
        parts, _ = run(data, bounds)
        assert_equal(whole, parts)


def test_metrics_of_a_call_are_means_over_its_steps():
    data = batches(8, 8)
    _, [whole] = run(data, [(0, 4)])
    _, singles = run(data, [(i, i + 1) for i in range(4)])
    for name in set(whole) - {"skipped"}:
        value = whole[name]
        np.testing.assert_allclose(value, np.mean([m[name] for m in singles]), rtol=1e-5)


def test_one_step_a_call_and_many_agree():
    data = batches(8, 8)
    many, _ = run(data, [(0, 3)])
    mesh, single, state = compiled(1, 1, 1)
    state = jax.device_put(state, sharding.replicated(mesh))
    for i in range(3):
        chunk = sharding.put({k: v[i : i + 1] for k, v in data.items()}, mesh, axis=1)
        state, _ = single(state, chunk, 0, 1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), many, state)


def test_the_state_is_donated():
    mesh, step_fn, state = compiled(1, 1, 1)
    state = jax.device_put(state, sharding.replicated(mesh))
    step_fn(state, sharding.put(batches(1, 8), mesh, axis=1), 0, 1)
    assert jax.tree.leaves(state.params)[0].is_deleted()


def test_accumulation_is_the_mean_over_interleaved_parts():
    """Against a mean of separate gradients, with the keys that accumulation splits off."""
    model = constant_model()
    adamw, state = fresh(model)
    state = state._replace(params={"c": jnp.full(model.event_shape, 0.3)})
    batch = {k: v[0] for k, v in batches(1, 12).items()}
    _, metrics = step.update(state, batch, model, adamw, 0.9, KEY, accumulate=3)
    keys = jax.random.split(jax.random.fold_in(KEY, state.step), 3)
    grads, values = [], []
    for part, key in enumerate(keys):
        rows = {k: v[part::3] for k, v in batch.items()}

        def bpd(params, rows=rows, key=key):
            terms = model.terms(params, rows, key, dropout=True)
            return loss.bits_per_dim(terms.total.mean(), model.event_shape)

        value, grad = jax.value_and_grad(bpd)(state.params)
        values.append(value)
        grads.append(grad["c"])
    np.testing.assert_allclose(metrics["bpd"], np.mean(values), rtol=1e-5)
    norm = np.linalg.norm(np.mean(grads, axis=0))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)


@pytest.mark.parametrize(
    ("size", "accumulate"), [(0, 1), (12, 1), (8, 2), (24, 2), (16, 0)]
)  # fmt: skip
def test_batch_sizes_that_do_not_divide_are_refused(size, accumulate):
    with pytest.raises(ValueError, match=f"batch size {size} .* wanted a multiple of"):
        sharding.check_batch_size(size, sharding.make_mesh(), accumulate)


def test_batch_sizes_that_divide_are_accepted():
    sharding.check_batch_size(32, sharding.make_mesh(), 2)


def test_training_learns_the_data():
    """Constant images: the bound falls from several bits to next to none."""
    data = batches(200, 16)
    data["images"][:] = 2
    adamw, state = fresh(mlp_model(0.0), one_device())
    step_fn = step.make_step(mlp_model(0.0), adamw, 0.9, KEY, one_device(), 1, 200)
    first = last = None
    for _ in range(5):
        state, metrics = step_fn(state, sharding.put(data, one_device(), axis=1), 0, 200)
        last = float(metrics["bpd"])
        first = first or last
    assert last < 0.25 * first


# ---- steps without a finite loss or gradient ----


def marked(data, steps):
    """The same chunk; in the batches of `steps` one row is marked to be NaN."""
    data = {k: v.copy() for k, v in data.items()}
    for i in steps:
        data["conditioning"][i, 3] = -1.0
    return data


def test_a_step_that_is_not_finite_changes_nothing_but_the_counts():
    data = batches(8, 8)
    good, _ = run(data, [(0, 2)])
    after, [metrics] = run(marked(data, [2]), [(0, 3)])
    assert_equal(good._replace(step=3, skipped=1), after)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
    np.testing.assert_array_equal(metrics["skipped"], [0, 0, 1, 0, 0, 0, 0, 0])
    resumed, [metrics] = run(marked(data, [2]), [(0, 4)])
    assert int(resumed.step) == 4 and int(resumed.skipped) == 0
    np.testing.assert_array_equal(metrics["skipped"], [0, 0, 1, 0, 0, 0, 0, 0])


def test_metrics_are_those_of_the_steps_that_were_applied():
    data = batches(8, 8)
    _, [clean] = run(data, [(0, 2)])
    _, [mixed] = run(marked(data, [2, 3]), [(0, 4)])
    for name in set(clean) - {"skipped"}:
        np.testing.assert_allclose(mixed[name], clean[name], rtol=1e-6)


def test_after_so_many_in_a_row_the_state_stays_as_it_is_whatever_follows():
    data = marked(batches(8, 8), [2, 3, 4])
    for bounds in ([(0, 8)], [(0, 3), (3, 8)], [(0, 5), (5, 6), (6, 8)]):
        state, metrics = run(data, bounds)
        good, _ = run(data, [(0, 2)])
        assert_equal(good._replace(step=5, skipped=3), state)
        assert max(m["skipped"].max() for m in metrics) == 3
    state, _ = run(data, [(0, 8)], max_skipped=4)  # one more is borne
    assert int(state.step) == 8 and int(state.skipped) == 0


def test_an_infinite_gradient_of_a_finite_loss_is_not_applied_either():
    """d sqrt(c) / dc at 0."""
    model = constant_model()

    def bind(params, conditioning, key):
        denoise, gamma = model.bind({"c": jnp.sqrt(params["c"])}, conditioning, key)
        return denoise, gamma

    rooted = dataclasses.replace(model, bind=bind)
    adamw, state = fresh(rooted)
    batch = {k: v[0] for k, v in batches(1, 8).items()}
    new, metrics = step.update(state, batch, rooted, adamw, 0.9, KEY)
    assert np.isfinite(metrics["bpd"]) and not np.isfinite(metrics["grad_norm"])
    assert_equal(state._replace(step=1, skipped=1), new)


def test_one_step_a_call_tells_of_its_step_too():
    data = marked(batches(1, 8), [0])
    state, metrics = run(data, [(0, 1)] * 5)
    assert [m["skipped"].tolist() for m in metrics] == [[1], [2], [3], [3], [3]]
    assert int(state.step) == 3
