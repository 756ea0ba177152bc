"""Whether a step fits into memory is said before the first one, and what would make it fit."""

import weakref

import jax
import pytest
from tiny import config as tiny

from experiments import advice, run, setup
from experiments.cli import UserError
from experiments.configs import base
from vdm_jax.train import memory
from vdm_jax.train.memory import Room

GIB = 2**30


def config(**train):
    config = base.get_config()
    config.train.update(batch_size=32, **train)
    config.model.network = "resnet"
    return config


def unet():
    changed = config()
    changed.model.network = "unet"
    return changed


class Step:
    """A compiled step that needs 64 GiB, less with the settings as a real one would."""

    def __init__(self, config):
        state = 32 / config.train.shard_params
        self.bytes = int(GIB * (state + 32 / config.train.accumulate))

    def memory_analysis(self):
        class Found:
            argument_size_in_bytes = output_size_in_bytes = alias_size_in_bytes = GIB
            temp_size_in_bytes = self.bytes - GIB

        return Found


def attempt(room, block=lambda: None, config=config, devices=4, allowed=lambda name: True):
    """(what was said, the error's message or None)."""
    said = []
    try:
        with advice.compiled(config(), Step, room, devices, allowed, said.append) as step:
            assert isinstance(step, Step)
            block()
    except UserError as error:
        return said, str(error)
    return said, None


def exhausted():
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes.\nmore")


def test_each_setting_is_tried_alone_and_then_the_last_ones_together():
    found = list(advice.candidates(config(), 4, lambda name: True))
    assert found == [
        {"train.accumulate": 2},
        {"train.accumulate": 4},
        {"train.accumulate": 8},
        {"train.shard_params": 2},
        {"train.shard_params": 4},
        {"train.accumulate": 8, "train.shard_params": 4},
    ]
    assert list(advice.candidates(config(accumulate=8), 4, lambda name: "acc" in name)) == []
    # 12 images on each of 2 devices: 3 micro-batches of 4 become 6 and 12.
    of_24 = config(accumulate=3)
    of_24.train.batch_size = 24
    assert [c["train.accumulate"] for c in advice.candidates(of_24, 2, lambda n: "acc" in n)] == [
        6,
        12,
    ]


def test_the_unet_has_two_settings_more_the_mildest_first_and_the_one_that_rounds_last():
    found = list(advice.candidates(unet(), 1, lambda name: True))
    assert found[0] == {"model.remat": "blocks"}
    assert {"model.dtype": "bfloat16"} in found
    assert list(found[-1]) == ["model.remat", "train.accumulate", "model.dtype"]
    said, _ = attempt(None, config=unet)
    assert said == [
        "needs about 64.0 GiB per device; batch_size 32, remat matmuls, accumulate 1, "
        "shard_params 1, dtype float32"
    ]


def test_every_candidate_is_a_configuration_that_could_be_run():
    given = config()
    for changes in advice.candidates(given, 4, lambda name: True):
        changed = advice.changed(given, changes)
        assert changed.train.batch_size % (4 * changed.train.accumulate) == 0
        assert 4 % changed.train.shard_params == 0
        assert given.train.accumulate == given.train.shard_params == 1


def test_the_need_is_said_before_the_first_step():
    said, error = attempt(Room(80 * GIB, 80 * GIB))
    assert error is None
    assert said == [
        "needs about 64.0 GiB per device of 80.0 GiB; batch_size 32, accumulate 1, shard_params 1"
    ]
    assert attempt(None)[0] == [said[0].replace(" of 80.0 GiB", "")]


def test_what_may_swap_is_a_warning():
    said, error = attempt(Room(60 * GIB, 80 * GIB))
    assert error is None and len(said) == 1
    assert "warning: that is more than is free" in said[0]
    assert "--config.train.accumulate or --config.train.shard_params lowers it" in said[0]


def test_what_can_not_fit_is_refused_with_the_first_settings_that_would():
    said, error = attempt(Room(44 * GIB, 44 * GIB), block=pytest.fail)
    assert error == (
        "out of memory: a step needs about 64.0 GiB per device of 44.0 GiB; batch_size 32, "
        "accumulate 1, shard_params 1. Would fit: --config.train.accumulate=4 (40.0 GiB), or "
        "--config.train.accumulate=8 (36.0 GiB)."
    )
    assert said == [
        "--config.train.accumulate=2 needs about 48.0 GiB per device",
        "--config.train.accumulate=4 needs about 40.0 GiB per device",
        "--config.train.accumulate=8 needs about 36.0 GiB per device",
    ]


def test_where_no_setting_is_enough_all_together_may_be():
    _, error = attempt(Room(20 * GIB, 20 * GIB))
    assert error.endswith(
        "Would fit: --config.train.accumulate=8 --config.train.shard_params=4 (12.0 GiB)."
    )
    _, error = attempt(Room(8 * GIB, 8 * GIB))
    assert "makes it fit into 8.0 GiB; the least is 12.0 GiB, with --config.train.acc" in error
    assert "Lower --config.train.batch_size" in error


def test_a_run_with_checkpoints_is_only_offered_what_it_may_be_given():
    allowed = advice.may_change(True, run.MAY_DIFFER)
    _, error = attempt(Room(44 * GIB, 44 * GIB), allowed=allowed)
    assert error.endswith("Would fit: --config.train.shard_params=4 (40.0 GiB).")
    assert advice.may_change(False, ())("config.train.accumulate")


def test_a_step_that_runs_out_of_memory_after_all_is_told_what_needs_less():
    """Though it should have fitted: what is offered needs a tenth less than it did."""
    _, error = attempt(Room(80 * GIB, 80 * GIB), exhausted)
    assert error == (
        "out of memory (Out of memory allocating 5 bytes); a step needs about 64.0 GiB per device "
        "of 80.0 GiB; batch_size 32, accumulate 1, shard_params 1. Would fit: "
        "--config.train.accumulate=2 (48.0 GiB), or --config.train.accumulate=4 (40.0 GiB)."
    )


def test_the_arrays_of_the_failed_step_are_let_go_before_others_are_tried():
    """Those in the frames that the error has left."""

    class Array:
        pass

    alive, held = [], []

    def block():
        state = Array()
        held.append(weakref.ref(state))
        exhausted()

    def compile_step(config):
        alive.append(bool(held) and held[0]() is not None)
        return Step(config)

    with (
        pytest.raises(UserError),
        advice.compiled(config(), compile_step, None, 4, lambda name: True, lambda line: None),
    ):
        block()
    assert len(alive) > 1 and not any(alive)


def test_candidates_that_can_not_be_compiled_are_passed_over():
    def compile_step(config):
        if 1 < config.train.accumulate < 8:
            exhausted()
        if config.train.shard_params > 1:
            raise UserError("not for this model")
        return Step(config)

    with (
        pytest.raises(UserError) as refused,
        advice.compiled(
            config(),
            compile_step,
            Room(44 * GIB, 44 * GIB),
            4,
            lambda name: True,
            lambda line: None,
        ),
    ):
        pass
    assert str(refused.value).endswith("Would fit: --config.train.accumulate=8 (36.0 GiB).")


def test_other_errors_and_ctrl_c_pass():
    for error in (ZeroDivisionError, KeyboardInterrupt):

        def block(error=error):
            raise error

        with pytest.raises(error):
            attempt(None, block)


def test_rematerialisation_does_lower_what_a_real_step_needs():
    small = tiny()
    small.model.update(network="unet", head="eps", channels=64, num_blocks=8, attention="middle")
    small.train.update(batch_size=128, steps_per_call=1)
    images = setup.load(small)
    needs = [
        memory.need(run._step(advice.changed(small, {"model.remat": remat}), images,
                              jax.devices()[:1]))
        for remat in ("none", "matmuls", "blocks")
    ]  # fmt: skip
    assert needs[1] < 0.7 * needs[0]
    assert needs[2] < 0.9 * needs[1]


def test_accumulation_does_lower_what_a_real_step_needs():
    """On a network whose activations outweigh its parameters."""
    small = tiny()
    small.train.update(batch_size=64, steps_per_call=1)
    images = setup.load(small)
    needs = [
        memory.need(run._step(advice.changed(small, changes), images, jax.devices()[:1]))
        for changes in ({}, {"train.accumulate": 4})
    ]
    assert needs[1] < 0.9 * needs[0]
