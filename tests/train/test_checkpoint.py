"""Saving and restoring: the same bits or one line that names what is wrong."""

import os
import shutil
import signal
import threading
from unittest import mock

import jax
import orbax.checkpoint as ocp
import pytest
from toy import assert_equal, state_at

from vdm_jax.errors import UserError
from vdm_jax.train import record, sharding
from vdm_jax.train.checkpoint import (
    CheckpointError,
    Checkpoints,
    DamagedError,
    SettingsError,
)
from vdm_jax.train.load_checkpoint import RemovedError, complete_steps, load_params, load_settings

META = {"config": {"seed": 1, "train": {"steps": 10}}, "data": {"fingerprint": "ab"}}


def saved(folder, *steps, **options):
    """The folder with the states of these steps."""
    with Checkpoints(folder, META, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, state_at(step))
    return folder


def restore(folder, meta=META, devices=1, **options):
    with Checkpoints(folder, meta, **options) as checkpoints:
        return checkpoints.restore(state_at(0, devices))


def refusal(kind, call, *arguments, **options):
    """The one line of an error of exactly this kind."""
    with pytest.raises(CheckpointError) as error:
        call(*arguments, **options)
    assert type(error.value) is kind and "\n" not in str(error.value), error.value
    return str(error.value)


def files(folder):
    return [file for file in sorted(folder.rglob("*")) if file.is_file()]


@pytest.mark.parametrize(("error", "raised"), [(PermissionError, UserError), (ValueError,) * 2])
def test_a_folder_that_stays_unreadable_is_not_waited_for(tmp_path, monkeypatch, error, raised):
    monkeypatch.setattr(ocp.utils, "checkpoint_steps_paths", mock.Mock(side_effect=error("no")))
    with pytest.raises(raised):
        complete_steps(tmp_path)


def test_the_newest_few_are_kept_and_the_newest_comes_back_bit_for_bit(tmp_path):
    folder = saved(tmp_path / "c", 1, 2, 10, keep=2)
    assert complete_steps(folder) == [2, 10]
    for devices in (1, 2):  # wherever it was saved
        state = restore(folder, devices=devices)
        assert_equal(state, state_at(10))
        found, wanted = (jax.tree.map(lambda x: (x.dtype, x.sharding), tree)
                         for tree in (state, state_at(0, devices)))  # fmt: skip
        assert found == wanted


def test_brackets_and_other_patterns_in_a_path_are_letters(tmp_path):
    folder = saved(tmp_path / "run[lr=2e-3] *?" / "c", 3, 5)
    assert_equal(restore(folder), state_at(5))
    found = load_params(folder, shapes(), sharding.make_mesh(jax.devices()[:1]), 3)
    assert_equal(found, (3, state_at(3).ema_params))
    assert load_settings(folder, None) == (5, META)


def test_a_path_with_a_backslash_is_refused_before_anything_is_saved(tmp_path):
    said = refusal(CheckpointError, Checkpoints, tmp_path / r"lr\2e-3" / "c", META)
    assert r"lr\2e-3/c can't hold checkpoints" in said and not list(tmp_path.iterdir())


def test_a_checkpoint_that_goes_while_it_is_read_is_not_damaged(tmp_path, monkeypatch):
    folder, mesh = saved(tmp_path / "c", 3, 5), sharding.make_mesh(jax.devices()[:1])

    def removed(*_):
        shutil.rmtree(folder / "3" / "state")
        threading.Timer(0.2, shutil.rmtree, [folder / "3"]).start()

    monkeypatch.setattr(record, "check_fits", lambda *_, **__: removed())
    assert "3 was removed while" in refusal(RemovedError, load_params, folder, shapes(), mesh, 3)


def test_a_step_that_is_not_newer_is_refused_and_nothing_restored_from_nothing(tmp_path):
    with Checkpoints(tmp_path / "c", META) as checkpoints:
        assert checkpoints.latest_step() is None
        assert "no checkpoint in" in refusal(CheckpointError, checkpoints.restore, state_at(0))
        checkpoints.save(5, state_at(5))
        for step in (5, 4):
            said = refusal(CheckpointError, checkpoints.save, step, state_at(step))
            assert f"of step {step} was not written" in said and "holds step 5 already" in said


def test_ctrl_c_in_the_middle_of_a_save_takes_effect_after_it(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "c", META)
    save = checkpoints._manager.save

    def interrupted(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        save(*args, **kwargs)

    monkeypatch.setattr(checkpoints._manager, "save", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(3, state_at(3))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    checkpoints.close()
    assert_equal(restore(tmp_path / "c"), state_at(3))


# ---- settings ----


def test_another_run_s_checkpoint_is_refused_with_each_difference_by_name(tmp_path, capsys):
    folder = saved(tmp_path / "c", 1)
    other = {"config": {"seed": 2, "train": {"steps": 99}}, "data": META["data"]}
    said = refusal(SettingsError, restore, folder, other)
    assert f"the run in {tmp_path} was started with other settings" in said
    assert "(config.seed: 1 -> 2; config.train.steps: 10 -> 99)" in said
    said = refusal(SettingsError, restore, folder, other, may_differ=("config.train.steps",))
    assert "(config.seed: 1 -> 2)" in said
    more = {**META, "new": 3}  # which an older run doesn't have
    assert int(restore(folder, more, defaults={"new": 3}).step) == 1
    assert "(new: 4 -> 3)" in refusal(SettingsError, restore, folder, more, defaults={"new": 4})
    assert capsys.readouterr().out == ""
    with Checkpoints(folder, other, allow_change=True) as checkpoints:
        assert int(checkpoints.restore(state_at(0)).step) == 1
        checkpoints.save(2, state_at(2))  # from here on these are the settings of the run
    told = "  config.seed: 1 -> 2\n  config.train.steps: 10 -> 99\n"
    assert capsys.readouterr().out == told
    assert int(restore(folder, other).step) == 2


def shapes(change=lambda params: params):
    return jax.eval_shape(lambda: change(state_at(0).params))


def test_another_model_is_refused_by_its_first_leaf(tmp_path):
    folder = saved(tmp_path / "c", 3)
    for change, said in (
        (lambda p: {**p, "mask": p["mask"] + 1}, "mask of {} is bool[3], .* for int32[3]"),
        (lambda p: {**p, "a": {"b": p["bias"]}}, "a/b of {} is absent, .* for bfloat16[8]"),
    ):
        said = said.format(folder / "3").replace("[", r"\[")
        with pytest.raises(CheckpointError, match=f"the parameter {said}"):
            load_params(folder, shapes(change), sharding.make_mesh(jax.devices()[:1]))
        other = state_at(0)._replace(params=change(state_at(0).params))
        with Checkpoints(folder, META, allow_fallback=True) as checkpoints:  # which it isn't for
            for call in (checkpoints.check, checkpoints.restore):
                with pytest.raises(CheckpointError, match=f"the parameter params/{said}") as error:
                    call(other)
                assert type(error.value) is CheckpointError


def test_parameters_are_the_average_of_the_step_asked_for_or_the_newest(tmp_path):
    folder, mesh = saved(tmp_path / "c", 1, 2, 10), sharding.make_mesh(jax.devices()[:2])
    for asked, step in ((None, 10), (2, 2)):  # as numbers: 10 is newer than 2
        found, params = load_params(folder, shapes(), mesh, asked)
        assert found == step
        assert_equal(params, state_at(step).ema_params)
        assert params["kernel"].sharding == sharding.replicated(mesh)
    (tmp_path / "empty").mkdir()
    for where, asked, said in (
        (folder, 3, "no checkpoint of step 3 in {}; there: 1, 2, 10."),
        (tmp_path / "empty", None, "no checkpoint in {}; there: none."),
        (tmp_path / "nowhere", None, "no checkpoint in {}; there: none."),
    ):
        found = refusal(CheckpointError, load_params, where, shapes(), mesh, asked)
        assert found == said.format(where)
    assert not (tmp_path / "nowhere").exists()


# ---- damage ----


def other_arrays(folder, change):
    """A whole, sealed checkpoint whose arrays are those of another state."""
    donor = folder.parent / "donor"
    with Checkpoints(donor, META) as checkpoints:
        checkpoints.save(7, change(state_at(7)))
    shutil.rmtree(folder / "7" / "state")
    shutil.copytree(donor / "7" / "state", folder / "7" / "state")


@pytest.mark.parametrize(
    ("leaf", "change"),
    [
        ("params/kernel", lambda s: s.params["kernel"].at[8:16].set(0)),
        ("ema_params/bias", lambda s: -s.ema_params["bias"]),
    ],
)
def test_what_orbax_restores_without_complaint(leaf, change, tmp_path):
    folder, (tree, name) = saved(tmp_path / "c", 7), leaf.split("/")
    other_arrays(folder, lambda s: s._replace(**{tree: {**getattr(s, tree), name: change(s)}}))
    for devices in (1, 2):
        said = refusal(DamagedError, restore, folder, devices=devices)
        assert f"{folder / '7'} is damaged ({leaf} has other bits than were saved)" in said
    load = (load_params, folder, shapes(), sharding.make_mesh(jax.devices()[:1]))
    if tree == "ema_params":
        assert f"{leaf} has other bits" in refusal(DamagedError, *load)
    else:  # of these nothing has changed
        assert_equal(load[0](*load[1:])[1], state_at(7).ema_params)


def test_a_record_that_is_none(tmp_path):
    folder = saved(tmp_path / "c", 5, 7)
    file = folder / "7" / "meta" / "metadata"
    whole = file.read_text()
    for content, said in (
        ("", "is damaged"),
        ("null", "it lacks its checksums"),
        ('{"config": {"seed": 1}}', "it lacks its checksums"),  # as they once were
        ('{"leaves": {}}', "its record of settings and checksums has changed"),
        # Another seed is damage, no other setting.
        (whole.replace('"seed": 1', '"seed": 2'), "has changed since it was saved"),
    ):
        file.write_text(content)
        found = refusal(DamagedError, restore, folder)
        assert said in found and "; others there: 5. Move that folder away" in found


def test_a_file_that_may_not_be_read_is_no_damage(tmp_path, monkeypatch):
    folder = saved(tmp_path / "c", 7)
    for error in (PermissionError(13, "Permission denied", "somewhere"), MemoryError("too large")):
        checkpoints = Checkpoints(folder, META, allow_fallback=True)

        def refuse(*_, error=error, **__):
            raise error

        monkeypatch.setattr(ocp.Checkpointer, "restore", refuse)
        assert "can't be read (" in refusal(CheckpointError, checkpoints.restore, state_at(0))


def spoil(folder, step):
    for file in files(folder / str(step) / "state"):
        file.write_bytes(file.read_bytes()[:-3])


def test_the_newest_good_one_is_taken_and_damaged_ones_are_kept_aside(tmp_path, capsys):
    folder, aside = saved(tmp_path / "c", 3, 5, 7), tmp_path / "damaged"
    spoil(folder, 7)
    (folder / "5" / "meta" / "metadata").write_text("{}")
    before = [file.read_bytes() for file in files(folder / "7")]
    assert "c/7 is damaged (" in refusal(DamagedError, restore, folder)
    with Checkpoints(folder, META, allow_fallback=True) as checkpoints:
        checkpoints.check(state_at(0))  # whose record is whole
        assert_equal(checkpoints.restore(state_at(0)), state_at(3))
        for line, step in zip(capsys.readouterr().out.splitlines(), "75", strict=True):
            assert line.startswith(f"the checkpoint {folder / step} is damaged (")
            assert line.endswith(f"Moved to {aside / step}; going on from step 3.")
        assert [file.read_bytes() for file in files(aside / "7")] == before
        checkpoints.save(5, state_at(5))  # the steps are free again
        checkpoints.save(7, state_at(7))
    spoil(folder, 7)
    assert_equal(restore(folder, allow_fallback=True), state_at(5))
    assert sorted(path.name for path in aside.iterdir()) == ["5", "7", "7-2"]


def test_nothing_is_moved_where_none_is_good_or_settings_differ(tmp_path):
    folder, other = saved(tmp_path / "c", 5), {**META, "data": {"fingerprint": "cd"}}
    with Checkpoints(folder, other, allow_change=True) as checkpoints:
        checkpoints.save(7, state_at(7))
    spoil(folder, 7)
    said = refusal(SettingsError, restore, folder, other, allow_fallback=True)
    assert "(data.fingerprint: ab -> cd)" in said
    spoil(folder, 5)
    said = refusal(CheckpointError, restore, folder, META, allow_change=True, allow_fallback=True)
    assert "is whole, and none was moved: " in said
    assert "c/5 is damaged" in said and "c/7 is damaged" in said
    assert not (tmp_path / "damaged").exists()
