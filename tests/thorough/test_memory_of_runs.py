"""Runs with split parameters, and runs that run out of memory."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from tiny import config as tiny
from tiny import last_state, one_device

from experiments import evaluate
from vdm_jax.evaluation import bound as evaluation
from vdm_jax.run import build as setup
from vdm_jax.run import training as run
from vdm_jax.run.cli import UserError
from vdm_jax.run.models import make_model
from vdm_jax.train import sharding, step
from vdm_jax.train.interrupts import Stop


def config(**train):
    config = tiny()
    config.train.update(steps=2, steps_per_call=1, log_every=2, **train)
    config.optimizer.update(warmup_steps=1)
    config.eval.update(final_repeats=1)
    config.sample.update(num_steps=1)
    return config


def exhausted(*_):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes.")


def test_a_run_goes_on_with_its_parameters_split_otherwise(tmp_path, monkeypatch, capsys):
    """Two devices share the parameters, then each has its own copy: the same state, and result."""
    monkeypatch.setattr(sharding, "SMALL", 64)
    monkeypatch.setattr(
        setup, "make_mesh", lambda shards: sharding.make_mesh(jax.devices()[:2], shards)
    )
    results = []
    for shards in (2, 1):
        run.train(config(shard_params=shards), tmp_path)
        out = capsys.readouterr().out
        assert out.count("needs about") == 1 and f", shard_params {shards}\n" in out
        assert ("going on from step 2" in out) == (shards == 1)
        results.append(json.loads((tmp_path / "result.json").read_text())["bpd"])
    assert results[0] == pytest.approx(results[1], rel=1e-5)
    assert last_state(tmp_path)[0] == 2


@pytest.fixture(scope="module")
def parts():
    images, c = setup.load(config()), config()
    model = make_model(c, images.event_shape, images.levels)
    params = model.init(jax.random.key(0))
    state = step.TrainState(np.int32(2), params, params, None, np.int32(0))
    return c, images, model, sharding.make_mesh(jax.devices()[:1]), state


def test_an_evaluation_without_memory_names_its_batch_size(parts, monkeypatch):
    c, images, model, mesh, state = parts
    monkeypatch.setattr(evaluation, "make_eval_step", lambda *_: exhausted)
    found = run._evaluator(c, images, model, mesh, jax.random.key(0), Stop(mesh))
    with pytest.raises(UserError) as refused:
        found(state, True)
    assert str(refused.value) == (
        "evaluation ran out of memory (Out of memory allocating 5 bytes): lower "
        "--config.eval.batch_size, now 360, to go on from the newest checkpoint"
    )


def test_sampling_without_memory_names_the_number_of_samples(parts):
    c, images, model, mesh, state = parts
    model = dataclasses.replace(model, bind=exhausted)
    found = run._sampler(c, images, model, mesh, jax.random.key(0), Stop(mesh))
    with pytest.raises(
        UserError, match=r"sampling ran .* --config\.sample\.count, now 4, to go on"
    ):
        found(state)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    with one_device():
        run.train(config(), workdir)
    return workdir


def test_the_command_evaluate_names_its_own_flag(finished, monkeypatch):
    monkeypatch.setattr(evaluation, "make_eval_step", lambda *_: exhausted)
    refused = pytest.raises(UserError, match=r"5 bytes\): lower --batch_size, now 60$")
    with one_device(), refused:
        evaluate.evaluate(["evaluate", f"--workdir={finished}", "--batch_size=60"])


def test_a_step_without_memory_names_settings_and_loses_nothing(finished, monkeypatch):
    """The runtime's own error, by a step that asks for more than any machine has."""

    class Step:
        def __init__(self, *_):
            pass

        def memory_analysis(self):
            return None

        def __call__(self, *_):
            return jax.jit(lambda: jax.numpy.zeros(2**46))()

    longer = config()
    longer.train.steps = 3
    longer.optimizer.decay_steps = 2
    monkeypatch.setattr(run, "_step", Step)
    refused = pytest.raises(UserError, match=r"^out of memory \(Out of memory allocating 2814749")
    with one_device(), refused:
        run.train(longer, finished)
    assert last_state(finished)[0] == 2


def test_shard_params_must_divide_the_devices():
    with pytest.raises(UserError, match=r"^--config\.train\.shard_params: shard_params is 3, but"):
        setup.make_mesh(3)
