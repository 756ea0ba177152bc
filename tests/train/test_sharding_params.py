"""Parameters split over the mesh's second axis: less on each device, and the same training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from toy import assert_equal, batches, mlp_model

from vdm_jax.evaluation import bound as evaluation
from vdm_jax.train import memory, optimizer, sharding, step
from vdm_jax.train.checkpoint import Checkpoints, load_params

KEY = jax.random.key(5)
ADAMW = optimizer.make(1e-2)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """What is worth splitting, for the networks of these tests."""
    monkeypatch.setattr(sharding, "SMALL", 64)


def mesh_of(shards, devices=4):
    return sharding.make_mesh(jax.devices()[:devices], shards)


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


@functools.cache
def compiled_step(mesh):
    """Of a mesh, from shapes alone."""
    data = batches(1, 16)
    step_fn = step.make_step(mlp_model(), ADAMW, 0.9, KEY, mesh)
    shapes = {name: jax.ShapeDtypeStruct(of.shape, of.dtype) for name, of in data.items()}
    return step_fn.lower(step.abstract_state(mlp_model(), ADAMW, mesh), shapes, 0, 1).compile()


def trained(mesh, count=3):
    """The state after so many steps, by one compiled program."""
    data = batches(count, 16)
    step_fn, state = compiled_step(mesh), step.start(mlp_model(), ADAMW, KEY, mesh)
    for i in range(count):
        chunk = {name: of[i : i + 1] for name, of in data.items()}
        state, _ = step_fn(state, sharding.put(chunk, mesh, axis=1), 0, 1)
    return state


@pytest.fixture(scope="module")
def states():
    """Three steps on one device, on four with copies, and on four in pairs that share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "SMALL", 64)
        return {
            "one": trained(mesh_of(1, 1)),
            "copies": trained(mesh_of(1)),
            "pairs": trained(mesh_of(2)),
        }


@pytest.mark.parametrize(
    ("leaf", "spec"),
    [
        (shape(3, 3, 16, 64), (None, None, None, "fsdp")),
        (shape(64, 16), ("fsdp",)),
        (shape(16, 16), (None, "fsdp")),  # the last of two
        (shape(64, 63), ("fsdp",)),
        (shape(63, 64), (None, "fsdp")),
        (shape(66, 4), (None, "fsdp")),  # the larger axis has no four equal parts
        (shape(9, 9), ()),  # neither has
        (shape(7, 8), ()),  # small
        (shape(), ()),
    ],
)
def test_the_largest_axis_that_has_equal_parts_is_split(leaf, spec):
    assert sharding.of_parameters(mesh_of(4), leaf).spec == PartitionSpec(*spec)
    assert sharding.of_parameters(mesh_of(1), leaf).spec == PartitionSpec()


def test_a_parameter_its_average_and_its_moments_lie_on_the_same_device():
    state = step.abstract_state(mlp_model(), ADAMW, mesh_of(4))
    adam = state.opt_state[1][0]
    shardings = [
        [leaf.sharding for leaf in jax.tree.leaves(tree)]
        for tree in (state.params, state.ema_params, adam.mu, adam.nu)
    ]
    assert shardings[0] == shardings[1] == shardings[2] == shardings[3]
    split = sum(not each.is_fully_replicated for each in shardings[0])
    assert 0 < split < len(shardings[0])


def test_no_device_holds_more_of_the_first_state_than_its_share():
    """Its values are those of one device, bit for bit."""
    mesh = mesh_of(4)
    state = step.start(mlp_model(), ADAMW, KEY, mesh)
    held = dict.fromkeys(mesh.devices.flat, 0)
    for leaf in jax.tree.leaves(state):
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.size
    share = whole = 0
    for leaf in jax.tree.leaves(state):
        split = leaf.size >= 64 and any(size % 4 == 0 for size in leaf.shape)
        whole += leaf.size
        share += leaf.size // 4 if split else leaf.size
    assert set(held.values()) == {share} and share < 0.5 * whole
    assert_equal(state, jax.jit(lambda key: step.init_state(mlp_model(), ADAMW, key))(KEY))


@pytest.mark.parametrize("other", ["copies", "pairs"])
def test_training_is_the_same_however_parameters_are_split(states, other):
    first = step.start(mlp_model(), ADAMW, KEY, mesh_of(1, 1))
    moved = [
        np.abs(a - b).max()
        for a, b in zip(
            *map(jax.tree.leaves, (states["one"].params, jax.device_get(first).params)),
            strict=True,
        )
    ]
    assert max(moved) > 1e-3  # the learning rate is not 0
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6),
        jax.device_get(states["one"]),
        jax.device_get(states[other]),
    )


def test_the_step_leaves_the_state_as_it_was_split(states):
    mesh = mesh_of(2)
    template = step.abstract_state(mlp_model(), ADAMW, mesh)
    for leaf, wanted in zip(*map(jax.tree.leaves, (states["pairs"], template)), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)


def test_the_compiled_step_takes_each_device_s_share_and_gathers_what_it_uses():
    data = batches(1, 16)
    for shards in (1, 4):
        mesh = mesh_of(shards)
        compiled = compiled_step(mesh)
        found = compiled.memory_analysis()
        state = step.abstract_state(mlp_model(), ADAMW, mesh)
        share = sum(4 * np.prod(of.sharding.shard_shape(of.shape)) for of in jax.tree.leaves(state))
        chunk = sum(of.nbytes // 4 for of in data.values())
        # One step a call: start and stop are not used, and the compiler leaves them out.
        assert share + chunk <= found.argument_size_in_bytes <= share + chunk + 8
        assert found.alias_size_in_bytes >= share  # donated: not there twice
        assert ("all-gather" in compiled.as_text()) == (shards > 1)


def test_what_a_step_needs_falls_as_parameters_are_split_over_more_devices():
    def need(shards):
        return memory.need(compiled_step(mesh_of(shards)))

    assert need(4) < need(2) < need(1)


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 2), (4, 1)])
def test_a_saved_state_is_restored_bit_for_bit_however_it_is_split(before, after, tmp_path):
    state = step.start(mlp_model(), ADAMW, KEY, mesh_of(before))
    checkpoints = Checkpoints(tmp_path / "c", {})
    checkpoints.save(1, state)
    template = step.abstract_state(mlp_model(), ADAMW, mesh_of(after))
    restored = checkpoints.restore(template)
    checkpoints.close()
    assert_equal(restored, state)
    for leaf, wanted in zip(*map(jax.tree.leaves, (restored, template)), strict=True):
        assert leaf.sharding == wanted.sharding
    expected = jax.eval_shape(mlp_model().init, KEY)
    _, params = load_params(tmp_path / "c", expected, mesh_of(after))
    assert_equal(params, state.ema_params)
    split = [not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(params)]
    assert any(split) == (after > 1)


def test_evaluation_and_samples_are_the_same_however_parameters_are_split(states):
    model = mlp_model()
    batch = {k: v[0] for k, v in batches(1, 16).items()}
    batch |= {"index": np.arange(16, dtype=np.int32), "mask": np.ones(16, np.float32)}
    draws, samples = [], []
    for shards in (1, 2):
        mesh = mesh_of(shards)
        params = states["copies" if shards == 1 else "pairs"].ema_params
        params = jax.device_put(
            jax.device_get(states["one"].ema_params), sharding.of_parameters(mesh, params)
        )
        found = evaluation.collect(
            evaluation.make_eval_step(model, mesh), params, lambda: [batch], mesh, KEY, 2
        )
        draws.append(found.terms.total)
        sample = jax.jit(
            lambda params: model.sample(params, KEY, jnp.zeros(8), 3),
            out_shardings=sharding.replicated(mesh),
        )
        samples.append(np.asarray(sample(params)))
    np.testing.assert_allclose(draws[0], draws[1], rtol=1e-5)
    assert np.mean(samples[0] == samples[1]) > 0.9 and samples[0].std() > 0


@pytest.mark.parametrize("shards", [0, 3, 8])
def test_a_number_that_does_not_divide_the_devices_is_refused(shards):
    with pytest.raises(
        ValueError, match=rf"^shard_params is {shards}, .* all 4: choose one of 1, 2, 4\.$"
    ):
        mesh_of(shards)
