"""Runs that run out of memory."""

from pathlib import Path

import jax
import pytest
import tiny

from vdm_jax.errors import UserError
from vdm_jax.evaluation import bound as evaluation
from vdm_jax.run import build, experiment, training
from vdm_jax.run.models import make_model
from vdm_jax.train import sharding, step
from vdm_jax.train.interrupts import Stop


@pytest.fixture(autouse=True)
def one_device():
    with tiny.one_device():
        yield


def config():
    made = tiny.config()
    made.train.update(steps=2, steps_per_call=1, log_every=2)
    made.optimizer.update(warmup_steps=1)
    made.eval.update(final_repeats=1)
    made.sample.update(num_steps=1)
    return made


def exhausted(*_):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes.")


def test_evaluation_and_sampling_without_memory_name_the_setting_to_lower(monkeypatch):
    c = config()
    images, mesh = build.load(c), sharding.make_mesh(jax.devices()[:1])
    model = make_model(c, images.event_shape, images.levels)
    adamw = experiment.make_optimizer(c)
    state = step.init_state(model, adamw, jax.random.key(0))
    made = experiment.Experiment(c, images, mesh, model, adamw, Path("W"), Stop(mesh))
    monkeypatch.setattr(evaluation, "make_eval_step", lambda *_: exhausted)
    with pytest.raises(UserError) as refused:
        experiment.evaluator(made, jax.random.key(0))(state, True)
    assert str(refused.value) == (
        "evaluation ran out of memory (Out of memory allocating 5 bytes): lower "
        "--config.eval.batch_size, now 360, to go on from the newest checkpoint"
    )
    made = made._replace(model=model._replace(bind=exhausted))
    wanted = r"sampling ran .* --config\.sample\.count, now 4, to go on"
    with pytest.raises(UserError, match=wanted):
        experiment.sampler(made, jax.random.key(0))(state)


def test_commands_without_memory_name_their_settings_and_lose_nothing(tmp_path, monkeypatch):
    """Of a step the error is the runtime's own: it asks for more than any machine has."""

    class Step:
        def memory_analysis(self):
            return None

        def __call__(self, *_):
            return jax.jit(lambda: jax.numpy.zeros(2**46))()

    training.train(config(), tmp_path)
    longer = config()
    longer.train.steps = 3
    longer.optimizer.decay_steps = 2
    monkeypatch.setattr(experiment, "compiled_step", lambda *_: Step())
    with pytest.raises(UserError, match=r"^out of memory \(Out of memory allocating 2814749"):
        training.train(longer, tmp_path)
    assert tiny.last_state(tmp_path)[0] == 2
    monkeypatch.setattr(evaluation, "make_eval_step", lambda *_: exhausted)
    with pytest.raises(UserError, match=r"5 bytes\): lower --batch_size, now 60$"):
        tiny.evaluate(tmp_path, "--batch_size=60")
