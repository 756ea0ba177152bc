import os
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import assert_equal, mlp_model

from vdm_jax.train import optimizer, sharding, step
from vdm_jax.train.checkpoint import (
    CheckpointError,
    Checkpoints,
    SettingsError,
    load_params,
)
from vdm_jax.train.settings import differences

META = {"config": {"seed": 1, "train": {"steps": 10}}, "data": {"fingerprint": "ab"}}


def state_at(number, mesh=None):
    adamw = optimizer.make(1e-3)
    state = step.init_state(mlp_model(), adamw, jax.random.key(number))
    state = state._replace(step=jnp.int32(number))
    return jax.device_put(state, sharding.replicated(mesh or sharding.make_mesh()))


def test_what_is_saved_comes_back_bit_for_bit_in_a_new_process_shape(tmp_path):
    eight, one = sharding.make_mesh(), sharding.make_mesh(jax.devices()[:1])
    saved = Checkpoints(tmp_path / "c", META)
    saved.save(7, state_at(7, eight))
    saved.close()
    restored = Checkpoints(tmp_path / "c", META).restore(state_at(0, one))
    assert_equal(jax.device_get(restored), jax.device_get(state_at(7)))
    chex.assert_trees_all_equal_shapes_and_dtypes(restored, state_at(0, one))
    assert type(restored) is step.TrainState
    assert jax.tree.leaves(restored)[0].sharding == sharding.replicated(one)


def test_the_newest_few_are_kept_and_any_of_them_can_be_restored(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", META, keep=2)
    for number in (1, 2, 3):
        checkpoints.save(number, state_at(number))
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path / "c", META, keep=2)
    assert checkpoints.latest_step() == 3
    assert int(checkpoints.restore(state_at(0)).step) == 3
    assert int(checkpoints.restore(state_at(0), 2).step) == 2
    with pytest.raises(CheckpointError, match="no checkpoint of step 1 in"):
        checkpoints.restore(state_at(0), 1)


def test_a_step_that_is_not_newer_is_an_error_and_not_silence(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", META)
    checkpoints.save(5, state_at(5))
    for number in (4, 5):
        with pytest.raises(CheckpointError, match=f"step {number} was not written .* step 5"):
            checkpoints.save(number, state_at(number))
    checkpoints.close()


def test_ctrl_c_in_the_middle_of_a_save_takes_effect_behind_it(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "c", META)
    save, reached = checkpoints._manager.save, []

    def interrupted(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        save(*args, **kwargs)
        reached.append(True)

    monkeypatch.setattr(checkpoints._manager, "save", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(3, state_at(3))
        assert reached and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    checkpoints.close()
    assert_equal(
        jax.device_get(Checkpoints(tmp_path / "c", META).restore(state_at(0))),
        jax.device_get(state_at(3)),
    )


def test_an_empty_folder_has_nothing_to_restore(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", META)
    assert checkpoints.latest_step() is None
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        checkpoints.restore(state_at(0))


def test_another_run_s_checkpoint_is_refused_with_the_difference_by_name(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", META)
    checkpoints.save(1, state_at(1))
    checkpoints.close()
    other = {"config": {"seed": 2, "train": {"steps": 10}}, "data": {"fingerprint": "cd"}}
    with pytest.raises(SettingsError, match="was started with other settings") as error:
        Checkpoints(tmp_path / "c", other).restore(state_at(0))
    assert error.value.differences == ["config.seed: 1 -> 2", "data.fingerprint: ab -> cd"]
    assert "\n" not in str(error.value)


def test_other_settings_are_told_and_taken_where_that_is_allowed(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", META)
    checkpoints.save(1, state_at(1))
    checkpoints.close()
    other = {**META, "config": {"seed": 2, "train": {"steps": 10}}}
    changed, said = Checkpoints(tmp_path / "c", other, allow_change=True), []
    assert int(changed.restore(state_at(0), say=said.append).step) == 1
    assert said == ["  config.seed: 1 -> 2"]
    changed.save(2, state_at(2))  # from here on the new ones are those of the run
    changed.close()
    assert int(Checkpoints(tmp_path / "c", other).restore(state_at(0)).step) == 2
    with pytest.raises(SettingsError):
        Checkpoints(tmp_path / "c", META).restore(state_at(0))


def test_what_may_differ_may_differ(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", META)
    checkpoints.save(1, state_at(1))
    checkpoints.close()
    longer = {**META, "config": {"seed": 1, "train": {"steps": 99}}}
    restored = Checkpoints(tmp_path / "c", longer, may_differ=("config.train.steps",)).restore(
        state_at(0)
    )
    assert int(restored.step) == 1


@pytest.mark.parametrize("victim", ["state", "meta"])
def test_a_damaged_checkpoint_is_named_in_one_line(tmp_path, victim):
    checkpoints = Checkpoints(tmp_path / "c", META)
    checkpoints.save(3, state_at(3))
    checkpoints.close()
    for file in (tmp_path / "c" / "3" / victim).rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"is damaged .*others there: none") as error:
        Checkpoints(tmp_path / "c", META).restore(state_at(0))
    assert str(tmp_path / "c" / "3") in str(error.value) and "\n" not in str(error.value)


def test_a_model_of_another_shape_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", META)
    checkpoints.save(3, {"w": np.zeros(3), "v": np.zeros(2)})
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path / "c", META)
    for other, message in (
        ({"w": np.zeros(4), "v": np.zeros(2)}, r"w of .*3 is float64\[3\], .* for float64\[4\]"),
        ({"w": np.zeros(3, np.int32), "v": np.zeros(2)}, r"w of .*float64\[3\], .* for int32\[3\]"),
        ({"w": np.zeros(3)}, r"v of .*float64\[2\], .* for absent"),
        ({"u": np.zeros(1), "w": np.zeros(3), "v": np.zeros(2)}, r"u of .*absent, .* for float64"),
    ):
        with pytest.raises(CheckpointError, match=message) as error:
            checkpoints.restore(other, allow_fallback=True)  # which it isn't for
        assert type(error.value) is CheckpointError and "\n" not in str(error.value)


def test_differences_names_leaves_on_either_side():
    found = dict(differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "d": 3}}))
    assert found == {
        "a.c": "a.c: 2 -> unset",
        "a.d": "a.d: unset -> 3",
    }


# ---- load_params: parameters without the run they are of ----


def shapes():
    return jax.eval_shape(mlp_model().init, jax.random.key(0))


def load(folder, expected=None, step=None):
    expected = shapes() if expected is None else expected
    return load_params(folder, expected, sharding.make_mesh(), step)


@pytest.fixture
def three(tmp_path):
    """A folder with the states 1, 2 and 10; each has its own parameters, and others as EMA."""
    checkpoints = Checkpoints(tmp_path / "c", META)
    for number in (1, 2, 10):
        state = state_at(number)
        ema = jax.tree.map(lambda leaf, n=number: leaf + n, state.ema_params)
        checkpoints.save(number, state._replace(ema_params=ema))
    checkpoints.close()
    return tmp_path / "c"


@pytest.mark.parametrize(("asked", "step"), [(None, 10), (2, 2), (1, 1)])
def test_parameters_are_the_ema_of_the_step_asked_for_or_the_newest(three, asked, step):
    found, params = load(three, step=asked)
    assert found == step  # as numbers: 10 is newer than 2
    params_then = jax.device_get(state_at(step).params)
    assert_equal(jax.device_get(params), jax.tree.map(lambda leaf: leaf + step, params_then))
    leaf = jax.tree.leaves(params)[0]
    assert leaf.sharding == sharding.replicated(sharding.make_mesh())


def test_parameters_of_a_step_that_is_not_there(three, tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 3 in .*there: 1, 2, 10\.$"):
        load(three, step=3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*empty; there: none\.$"):
        load(tmp_path / "empty")
    with pytest.raises(CheckpointError, match=r"no folder .*nowhere with checkpoints"):
        load(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_parameters_of_another_model_are_refused_by_the_first_leaf(three):
    expected = shapes()
    names = sorted(
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(expected)
    )

    def refusal(change):
        other = jax.tree_util.tree_map_with_path(
            lambda path, leaf: change(jax.tree_util.keystr(path, simple=True, separator="/"), leaf),
            expected,
        )
        with pytest.raises(CheckpointError) as error:
            load(three, other, step=2)
        assert "\n" not in str(error.value)
        return str(error.value)

    def wider(name, leaf, wanted):
        return jax.ShapeDtypeStruct((3, *leaf.shape), leaf.dtype) if name in wanted else leaf

    have = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(expected)
    }
    for wanted in ([names[0]], names[3:], [names[-1]]):
        message = refusal(lambda name, leaf, w=wanted: wider(name, leaf, w))
        first, shape = wanted[0], have[wanted[0]]
        said = [f"float32[{','.join(map(str, each))}]" for each in (shape, (3, *shape))]
        assert f"the parameter {first} of {three / '2'} is {said[0]}, but" in message
        assert f"the configuration calls for {said[1]}:" in message


def test_a_leaf_on_one_side_only_is_absent_on_the_other(three):
    more, fewer = shapes(), shapes()
    more["score_model"]["zusatz"] = {"bias": jax.ShapeDtypeStruct((5,), np.float32)}
    with pytest.raises(CheckpointError, match=r"score_model/zusatz/bias .* is absent, .*32\[5\]"):
        load(three, more)
    del fewer["gamma"]
    with pytest.raises(CheckpointError, match=r"gamma/b of .* is float32\[\], .* calls for absent"):
        load(three, fewer)


def test_a_damaged_checkpoint_leaves_the_others_to_choose_from(three):
    for file in (three / "10" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"is damaged .*others there: 1, 2\.") as error:
        load(three)
    assert "\n" not in str(error.value)
    assert load(three, step=2)[0] == 2
