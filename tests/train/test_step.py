"""The compiled training step against its parts, and steps whose loss isn't finite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy import assert_close, assert_equal, batches, constant_model, mlp_model, one_batch

from vdm_jax import loss
from vdm_jax.train import optimizer, sharding, step

KEY = jax.random.key(5)
ADAMW = optimizer.make(1e-2)
MLP = mlp_model()


@functools.cache
def fresh(model):
    return jax.jit(lambda key: step.init_state(model, ADAMW, key))(jax.random.key(0))


def updated(model, state, batch, accumulate=1):
    training = step.Training(model, ADAMW, 0.9, KEY, accumulate)
    return jax.jit(lambda state, batch: step.update(state, batch, training))(state, batch)


@functools.cache
def compiled(devices, accumulate, count):
    """One program, and a first state on the host, for all tests of these sizes."""
    mesh = sharding.make_mesh(jax.devices()[:devices])
    training = step.Training(MLP, ADAMW, 0.9, KEY, accumulate, count, max_skipped=3)
    return mesh, step.make_step(training, mesh), jax.device_get(fresh(MLP))


def run(data, bounds, devices=1, accumulate=1):
    """The state after calls of the compiled step with these (start, stop) on one chunk."""
    mesh, step_fn, state = compiled(devices, accumulate, len(data["images"]))
    state = jax.device_put(state, sharding.replicated(mesh))
    metrics = []
    for start, stop in bounds:
        state, m = step_fn(state, sharding.put(data, mesh, axis=1), start, stop)
        metrics.append(m)
    return state, jax.device_get(metrics)


def bpd(model, batch, key):
    """The mean bound as a function of the parameters, with a step's own key."""
    key_elbo, key_dropout = jax.random.split(key)

    def of(params):
        vdm = model.bind(params, batch["conditioning"], key_dropout)
        return loss.bits_per_dim(vdm.elbo(key_elbo, batch["images"]).total.mean(), (2, 2, 1))

    return of


def test_update_is_adamw_on_the_mean_bound_with_an_average_behind_it():
    """With the key of the step: the training key with the step's number folded in."""
    model, batch = MLP, one_batch(8)
    state = fresh(model)._replace(step=jnp.int32(7))
    new, metrics = updated(model, state, batch)
    of = jax.jit(jax.value_and_grad(bpd(model, batch, jax.random.fold_in(KEY, 7))))
    value, grads = of(state.params)
    np.testing.assert_allclose(metrics["bpd"], value, rtol=1e-6)
    parts = metrics["reconstruction"] + metrics["prior"] + metrics["diffusion"]
    np.testing.assert_allclose(metrics["bpd"], parts, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-4)
    updates, _ = jax.jit(ADAMW.update)(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    assert_close(new.params, params, 0, 2e-4)
    average = jax.tree.map(lambda old, now: 0.9 * old + 0.1 * now, state.params, new.params)
    assert_close(new.ema_params, average, 0, 1e-6)
    assert (int(new.step), int(new.skipped)) == (8, 0)


def test_a_parameter_that_stands_still_leaves_its_average_alone():
    still = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    np.testing.assert_array_equal(step.ema_update(still, still, 0.9999), still)
    assert step.ema_update(1.0, 3.0, 0.75) == 1.5


def test_accumulation_is_the_mean_over_interleaved_parts():
    """Against a mean of separate gradients, with the keys that accumulation splits off."""
    model, batch = constant_model(), one_batch(12)
    state = fresh(model)._replace(params={"c": jnp.full((2, 2, 1), 0.3)})
    _, metrics = updated(model, state, batch, accumulate=3)
    values, grads = [], []
    of = jax.jit(lambda batch, key: jax.value_and_grad(bpd(model, batch, key))(state.params))
    for i, key in enumerate(jax.random.split(jax.random.fold_in(KEY, 0), 3)):
        value, grad = of({k: v[i::3] for k, v in batch.items()}, key)
        values.append(value)
        grads.append(grad["c"])
    np.testing.assert_allclose(metrics["bpd"], np.mean(values), rtol=1e-5)
    norm = np.linalg.norm(np.mean(grads, axis=0))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)


def test_the_same_batches_give_the_same_state_on_one_and_on_two_devices():
    data = batches(3, 8)
    one, two = (run(data, [(0, 3)], devices, accumulate=2) for devices in (1, 2))
    assert int(one[0].step) == 3
    for leaf in jax.tree.leaves(two[0]):
        assert leaf.sharding.is_fully_replicated and len(leaf.sharding.device_set) == 2
    assert_close(jax.device_get(one), jax.device_get(two), 2e-5, 2e-6)


def test_a_run_is_the_same_bit_for_bit_wherever_its_calls_begin_and_end():
    """And the metrics of a call are means over its steps."""
    data = batches(8, 8)
    whole, [mean] = run(data, [(0, 5)])
    for bounds in ([(i, i + 1) for i in range(5)], [(0, 2), (2, 3), (3, 5)]):
        parts, metrics = run(data, bounds)
        assert_equal(whole, parts)
        counts = [stop - start for start, stop in bounds]
        for name in set(mean) - {"skipped"}:
            average = np.average([m[name] for m in metrics], weights=counts)
            np.testing.assert_allclose(mean[name], average, rtol=1e-5)


def test_one_step_a_call_is_the_same_too_and_the_state_is_donated():
    data = marked(batches(8, 8), [2])
    many, _ = run(data, [(0, 3)])
    mesh, single, state = compiled(1, 1, 1)
    state = jax.device_put(state, sharding.replicated(mesh))
    for i in range(3):
        before, chunk = state, {k: v[i : i + 1] for k, v in data.items()}
        state, metrics = single(state, sharding.put(chunk, mesh, axis=1), 0, 1)
        assert jax.tree.leaves(before.params)[0].is_deleted()
        assert metrics["skipped"].tolist() == [i == 2]
    assert_close(many, state, 1e-4, 1e-5)


def test_batches_of_unequal_or_too_few_rows_are_refused():
    """Which would be broadcast, or repeated, without a word."""
    batch = {**one_batch(8), "conditioning": np.zeros(1, np.float32)}
    _, step_fn, state = compiled(1, 1, 8)
    with pytest.raises(AssertionError, match="different shape prefixes"):
        updated(MLP, state, batch)
    with pytest.raises(AssertionError, match="shape prefix"):
        step_fn.lower(state, batches(7, 8), 0, 8)


# ---- steps without a finite loss or gradient ----


def marked(data, steps):
    """The same chunk; in the batches of `steps` one row is marked to be NaN."""
    data = {k: v.copy() for k, v in data.items()}
    for i in steps:
        data["conditioning"][i, 3] = -1.0
    return data


def test_a_step_that_is_not_finite_changes_nothing_but_the_counts():
    data = batches(8, 8)
    good, [clean] = run(data, [(0, 2)])
    after, [metrics] = run(marked(data, [2]), [(0, 3)])
    assert_equal(good._replace(step=3, skipped=1), after)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
    np.testing.assert_array_equal(metrics["skipped"], [0, 0, 1, 0, 0, 0, 0, 0])
    for name in set(clean) - {"skipped"}:  # the metrics are those of the steps that were applied
        np.testing.assert_allclose(metrics[name], clean[name], rtol=1e-6)
    resumed, _ = run(marked(data, [2]), [(0, 4)])
    assert int(resumed.step) == 4 and int(resumed.skipped) == 0


def test_after_so_many_in_a_row_the_state_stays_as_it_is_whatever_follows():
    data = marked(batches(8, 8), [2, 3, 4])
    good, _ = run(data, [(0, 2)])
    for bounds in ([(0, 8)], [(0, 3), (3, 8)]):
        state, metrics = run(data, bounds)
        assert_equal(good._replace(step=5, skipped=3), state)
        assert max(m["skipped"].max() for m in metrics) == 3
    two = marked(batches(8, 8), [2, 3])  # which is fewer
    assert int(run(two, [(0, 8)])[0].step) == 8


def test_an_infinite_gradient_of_a_finite_loss_is_not_applied_either():
    """d sqrt(c) / dc at 0."""
    model = constant_model(jnp.sqrt)
    state = fresh(model)
    new, metrics = updated(model, state, one_batch(8))
    assert np.isfinite(metrics["bpd"]) and not np.isfinite(metrics["grad_norm"])
    assert_equal(state._replace(step=1, skipped=1), new)
