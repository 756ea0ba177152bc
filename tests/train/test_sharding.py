"""Parameters split over the mesh's second axis: less on each device, and the same training."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, PartitionSpec
from toy import assert_close, assert_equal, batches, mlp_model

from vdm_jax.train import optimizer, sharding, step
from vdm_jax.train.checkpoint import Checkpoints
from vdm_jax.train.load_checkpoint import load_params

KEY = jax.random.key(5)
ADAMW = optimizer.make(1e-2)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """What is worth splitting, for the networks of these tests."""
    monkeypatch.setattr(sharding, "SMALL", 64)


def mesh_of(shards, devices=2):
    return sharding.make_mesh(jax.devices()[:devices], shards)


@functools.cache
def compiled_step(mesh):
    """The step compiled from shapes alone."""
    training = step.Training(mlp_model(), ADAMW, 0.9, KEY)
    shapes = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batches(1, 16).items()}
    state = step.abstract_state(mlp_model(), ADAMW, mesh)
    return step.make_step(training, mesh).lower(state, shapes, 0, 1).compile()


def trained(mesh, count=3):
    """The state after so many steps, by one compiled program."""
    data = batches(count, 16)
    step_fn, state = compiled_step(mesh), step.start(mlp_model(), ADAMW, KEY, mesh)
    for i in range(count):
        chunk = {name: of[i : i + 1] for name, of in data.items()}
        state, _ = step_fn(state, sharding.put(chunk, mesh, axis=1), 0, 1)
    return state


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((3, 3, 16, 64), (None, None, None, "fsdp")),
        ((66, 4), (None, "fsdp")),  # the larger axis has no four equal parts
        ((8, 8), (None, "fsdp")),  # the last of two
        ((7, 8), ()),  # small
    ],
)
def test_the_largest_axis_that_has_equal_parts_is_split(shape, spec):
    leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
    four, one = (AbstractMesh((4 // n, n), ("data", "fsdp")) for n in (4, 1))
    assert sharding.of_parameters(four, leaf).spec == PartitionSpec(*spec)
    assert sharding.of_parameters(one, leaf).spec == PartitionSpec()


def test_no_device_holds_more_of_the_first_state_than_its_share():
    """Its values are those of one device, bit for bit; moments lie where their parameter does."""
    mesh = mesh_of(2)
    state = step.start(mlp_model(), ADAMW, KEY, mesh)
    held = dict.fromkeys(mesh.devices.flat, 0)
    for leaf in jax.tree.leaves(state):
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.size
    share = whole = 0
    for leaf in jax.tree.leaves(state):
        split = leaf.size >= 64 and any(size % 2 == 0 for size in leaf.shape)
        whole += leaf.size
        share += leaf.size // 2 if split else leaf.size
    assert set(held.values()) == {share} and share < 0.7 * whole
    assert_equal(state, jax.jit(lambda key: step.init_state(mlp_model(), ADAMW, key))(KEY))
    adam = state.opt_state[1][0]
    for tree in (state.ema_params, adam.mu, adam.nu):
        for leaf, of in zip(*map(jax.tree.leaves, (tree, state.params)), strict=True):
            assert leaf.sharding == of.sharding


def test_training_is_the_same_however_parameters_are_split():
    """Copies on two devices are the same as one device, by test_step."""
    copies, shared = (jax.device_get(trained(mesh)) for mesh in (mesh_of(1), mesh_of(2)))
    first = jax.device_get(step.start(mlp_model(), ADAMW, KEY, mesh_of(2)))
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), shared.params, first.params)
    assert max(jax.tree.leaves(moved)) > 1e-3  # the learning rate is not 0
    assert_close(copies, shared, 2e-5, 2e-6)
    template = step.abstract_state(mlp_model(), ADAMW, mesh_of(2))
    for leaf, wanted in zip(*map(jax.tree.leaves, (trained(mesh_of(2), 1), template)), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)


def test_a_saved_state_is_restored_bit_for_bit_however_it_is_split(tmp_path):
    before, after = 1, 2
    state = step.start(mlp_model(), ADAMW, KEY, mesh_of(before))
    template = step.abstract_state(mlp_model(), ADAMW, mesh_of(after))
    with Checkpoints(tmp_path / "c", {}) as checkpoints:
        checkpoints.save(1, state)
        restored = checkpoints.restore(template)
    assert_equal(restored, state)
    for leaf, wanted in zip(*map(jax.tree.leaves, (restored, template)), strict=True):
        assert leaf.sharding == wanted.sharding
    expected = jax.eval_shape(mlp_model().init, KEY)
    for shards in (1, 2):
        _, params = load_params(tmp_path / "c", expected, mesh_of(shards))
        assert_equal(params, state.ema_params)
        split = [not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(params)]
        assert any(split) == (shards > 1)


def test_what_does_not_divide_is_refused():
    for shards in (0, 3):
        said = rf"^shard_params is {shards}, .* choose one of 1, 2\.$"
        with pytest.raises(ValueError, match=said):
            mesh_of(shards)
