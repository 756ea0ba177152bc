"""One training run: data, model, optimiser and loop put together from a configuration."""

import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vdm_jax import data, files, signals
from vdm_jax.data import DataError, ImageData
from vdm_jax.evaluation import bound as evaluation
from vdm_jax.evaluation.bound import Evaluation
from vdm_jax.run import build as setup
from vdm_jax.run import cli, lock
from vdm_jax.run import config as check
from vdm_jax.run import defaults as base
from vdm_jax.run import distributed as cluster
from vdm_jax.run.cli import Options, UserError
from vdm_jax.run.models import make_model
from vdm_jax.train import loop, memory, optimizer, report, sharding, step
from vdm_jax.train.checkpoint import (
    CheckpointError,
    Checkpoints,
    DamagedError,
    SettingsError,
    complete_steps,
)
from vdm_jax.train.interrupts import Stop, Stopped
from vdm_jax.train.model import Model
from vdm_jax.train.step import TrainState

__all__ = ["first_state", "keys_of", "make_optimizer", "open_checkpoints", "stream", "train"]

# What may change between a stop and a restart: nothing of it touches the state's path, but for the
# rounding of `shard_params` and `remat`.
MAY_DIFFER = (
    "config.train.steps",
    "config.train.shard_params",
    "config.model.remat",
    "config.train.log_every",
    "config.train.checkpoint_every",
    "config.train.keep_checkpoints",
    "config.train.max_skipped",
    "config.eval.every",
    "config.eval.batch_size",
    "config.eval.repeats",
    "config.eval.final_repeats",
    "config.sample.every",
    "config.sample.count",
    "config.sample.num_steps",
    "config.data.dir",
    "config.data.manual_dir",
    "config.data.path",
    # What these make of the data is compared as "data".
    "config.data.size",
    "config.data.fit",
    "config.data.channels",
    "config.data.held_out",
    "config.data.class_labels",
)


def train(config: ConfigDict, workdir: Path, options: Options = Options()) -> Evaluation:  # noqa: B008
    """Train as `config` says in `workdir`, going on from its newest checkpoint if it has one.

    Leaves there config.json, checkpoints/, metrics.jsonl, tensorboard/, loss.png, samples/ and
    result.json. Raises UserError, in one line, for whatever the user can mend.
    """
    try:
        with signals.handler(signal.SIGTERM, _at_once):
            return _train(config, workdir, options)
    except Stopped as stopped:  # before there were checkpoints, or behind the last
        raise cli.Interrupted(stopped.number, "goes on where this one was") from None
    except SettingsError as error:
        if jax.process_index() == 0:
            print("\n".join(f"  {line}" for line in error.differences), file=sys.stderr)
        raise UserError(
            f"{error} Give the old values again, or --allow_config_change to go on with the new "
            "ones, or another workdir."
        ) from error
    except DamagedError as error:
        several = jax.process_count() > 1
        how = (
            "Move that folder away, and start all processes again to go on from the one before it."
            if several
            else "With --allow_fallback a run goes on from the newest good one, and keeps what is "
            "damaged in a folder of its own."
        )
        raise UserError(f"{error} {how}") from error
    except (DataError, CheckpointError) as error:
        raise UserError(str(error)) from error
    except loop.TrainingError as error:
        raise UserError(
            f"{error} A lower --config.optimizer.learning_rate, or a clip_norm of 1.0 or less, "
            "with --allow_config_change, usually helps."
        ) from error


def _at_once(number: int, frame: object) -> None:
    """SIGTERM outside the training loop: nothing is being written that can be left half done."""
    raise Stopped(number)


def _train(config: ConfigDict, workdir: Path, options: Options) -> Evaluation:
    check.config(config)
    images = setup.load(config)
    mesh = setup.make_mesh(config.train.shard_params)
    check.training(config, mesh)
    model = make_model(config, images.event_shape, images.levels, images.num_classes)
    make_optimizer(config)  # refused before anything is written

    workdir = setup.make_workdir(workdir)
    with lock.owned(workdir) if jax.process_index() == 0 else contextlib.nullcontext():
        return _run(config, workdir, images, model, mesh, options)


def _run(
    config: ConfigDict,
    workdir: Path,
    images: ImageData,
    model: Model,
    mesh: Mesh,
    options: Options,
) -> Evaluation:
    (workdir / "samples").mkdir(exist_ok=True)
    keys, stop = keys_of(config), Stop(mesh)
    template = step.abstract_state(model, make_optimizer(config), mesh)
    settings, folder = _settings(config, images), workdir / "checkpoints"
    cluster.agree(settings, ("config.data.dir", "config.data.manual_dir", "config.data.path"))
    cluster.if_lost(lambda: f"the same command, in all processes, {_again(folder)}")
    checkpoints = open_checkpoints(config, images, workdir, options, clean=True)
    with _interrupts(folder), checkpoints.full_disk(), _closing(checkpoints):
        if checkpoints.latest_step() is not None:  # what is refused is, before compiling
            checkpoints.check(template, allow_fallback=options.allow_fallback)
        _announce(config, images, model, template, mesh)
        with _fitting(config):
            step_fn = _step(config, images, list(mesh.devices.flat))
            _check_room(config, step_fn)
            state = first_state(config, model, template, mesh, checkpoints, options)
            if jax.process_index() == 0:
                files.write_whole(workdir / "config.json", json.dumps(settings, indent=1) + "\n")
            state, result = loop.train(
                state,
                step_fn,
                _chunks(config, images),
                _evaluator(config, images, model, mesh, keys["eval"], stop),
                _sampler(config, images, model, mesh, keys["sample"], stop),
                _plan(config),
                checkpoints,
                workdir,
                mesh,
                stop,
                keys["train"],
                setup.eval_name(config),
            )
    with checkpoints.full_disk():
        _conclude(
            result, int(state.step), images, setup.eval_name(config), workdir, model.facts().note
        )
    return result


@contextlib.contextmanager
def _closing(checkpoints: Checkpoints) -> Iterator[None]:
    """Wait for what is on its way to the disk, but not behind a second Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException:
        checkpoints.close()
        raise
    checkpoints.close()


@contextlib.contextmanager
def _interrupts(folder: Path) -> Iterator[None]:
    """Add to Ctrl-C and SIGTERM where the same command will go on."""
    try:
        yield
    except (KeyboardInterrupt, Stopped) as stopped:
        number = stopped.number if isinstance(stopped, Stopped) else signal.SIGINT
        raise cli.Interrupted(number, _again(folder)) from None


def _again(folder: Path) -> str:
    """Where the run goes on. Orbax isn't asked: it can't be where another process is lost."""
    steps = complete_steps(folder)
    return f"goes on at {steps[-1]}" if steps else "starts anew: there is no checkpoint yet"


# ---- memory ----


def _check_room(config: ConfigDict, compiled: jax.stages.Compiled) -> None:
    """Prints what a step needs on each device; raises UserError if the device can't have it."""
    need, room = memory.need(compiled), memory.room(jax.local_devices()[0])
    if need is None:
        return
    of = "" if room is None else f" of {memory.words(room.free)}"
    said = f"needs about {memory.words(need)} per device{of}"
    if room is not None and need > room.most:
        raise UserError(f"out of memory: a step {said}. {_lower_memory(config)}")
    print(said, flush=True)
    if room is not None and need > room.free:
        print(f"warning: that is more than is free: it may be slow, or killed. "
              f"{_lower_memory(config)}", flush=True)  # fmt: skip


@contextlib.contextmanager
def _fitting(config: ConfigDict) -> Iterator[None]:
    """Raises UserError where a training step runs out of memory within the block."""
    with memory.exhausted(
        lambda said: UserError(f"out of memory ({said}). {_lower_memory(config)}")
    ):
        yield


def _lower_memory(config: ConfigDict) -> str:
    """Returns the sentence that names the settings which lower a step's memory."""
    of_unet = "--config.model.remat=blocks, --config.model.dtype=bfloat16, "
    return (
        f"Less is needed with {of_unet if config.model.network == 'unet' else ''}a larger "
        "--config.train.accumulate or --config.train.shard_params, or a smaller "
        "--config.train.batch_size."
    )


# ---- the parts of a run ----


def open_checkpoints(
    config: ConfigDict, images: ImageData, workdir: Path, options: Options, clean: bool = False
) -> Checkpoints:
    """Those of the run in `workdir`, to be closed; `clean` is for the run itself."""
    return Checkpoints(
        workdir / "checkpoints",
        _settings(config, images),
        config.train.keep_checkpoints,
        MAY_DIFFER,
        {"config": base.get_config().to_dict()},
        options.allow_config_change,
        clean,
    )


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """As `config.optimizer` says. Raises UserError if it can't be."""
    c = config.optimizer
    if c.decay != "none" and _decay_steps(config) <= c.warmup_steps:
        raise UserError(
            f"the learning rate's decay ends at step {_decay_steps(config)} (decay_steps, by "
            f"default train.steps), within the warm-up of {c.warmup_steps} steps; lower "
            "--config.optimizer.warmup_steps"
        )
    try:
        rate = optimizer.learning_rate(
            c.learning_rate, c.warmup_steps, c.decay, _decay_steps(config)
        )
    except ValueError as error:
        raise UserError(f"config.optimizer: {error}") from error
    decay_gamma = config.model.gamma_objective != "variance"
    return optimizer.make(rate, c.b1, c.b2, c.eps, c.weight_decay, c.clip_norm, decay_gamma)


def _settings(config: ConfigDict, images: ImageData) -> dict[str, Any]:
    """What the state's path depends on: saved with it, and compared on a restart."""
    settings = {"config": config.to_dict(), "data": setup.describe(images)}
    settings["config"]["optimizer"]["decay_steps"] = _decay_steps(config)
    return settings


def keys_of(config: ConfigDict) -> dict[str, jax.Array]:
    """Of the seed, a key for each purpose: init, train, eval, sample."""
    names = ("init", "train", "eval", "sample")
    return dict(zip(names, jax.random.split(jax.random.key(config.seed), 4), strict=True))


def _step(
    config: ConfigDict, images: ImageData, devices: Sequence[jax.Device]
) -> jax.stages.Compiled:
    """The training step, compiled from shapes alone: nothing is put on the devices."""
    c = config.train
    mesh = sharding.make_mesh(devices, c.shard_params)
    model = make_model(config, images.event_shape, images.levels, images.num_classes)
    adamw = make_optimizer(config)
    training = step.Training(
        model,
        adamw,
        config.optimizer.ema_rate,
        keys_of(config)["train"],
        c.accumulate,
        c.steps_per_call,
        c.max_skipped,
    )
    chunk = {
        name: jax.ShapeDtypeStruct((c.steps_per_call, c.batch_size, *of.shape[1:]), of.dtype)
        for name, of in stream(config, images)[0].items()
    }
    step_fn = step.make_step(training, mesh)
    return step_fn.lower(step.abstract_state(model, adamw, mesh), chunk, 0, 1).compile()


def first_state(
    config: ConfigDict,
    model: Model,
    template: TrainState,
    mesh: Mesh,
    checkpoints: Checkpoints,
    options: Options = Options(),  # noqa: B008
) -> TrainState:
    """That of the newest checkpoint, or a new one."""
    if checkpoints.latest_step() is None:
        return step.start(model, make_optimizer(config), keys_of(config)["init"], mesh)
    state = checkpoints.restore(template, allow_fallback=options.allow_fallback)
    print(f"going on from step {int(state.step)}")
    if options.allow_config_change or int(state.skipped) >= config.train.max_skipped:
        # Steps that other settings could not do don't count against these.
        state = state._replace(skipped=0 * state.skipped)
    return state


def stream(config: ConfigDict, images: ImageData) -> Any:
    """The batches: that of each step by its number."""
    return data.train_batches(
        images.train,
        batch_size=config.train.batch_size,
        seed=config.seed,
        augment=config.data.augment,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        labels=setup.labels(images, "train"),
    )


def _chunks(config: ConfigDict, images: ImageData) -> loop.Chunks:
    batches, calls = stream(config, images), config.train.steps_per_call
    return lambda start: data.iterate(batches, start=start, steps_per_call=calls)


def _decay_steps(config: ConfigDict) -> int:
    """Where the learning rate's decay ends; 0 if it has none: then nothing depends on it."""
    if config.optimizer.decay == "none":
        return 0
    given: int | None = config.optimizer.decay_steps
    return config.train.steps if given is None else given


def _plan(config: ConfigDict) -> loop.Plan:
    return loop.Plan(
        steps=config.train.steps,
        steps_per_call=config.train.steps_per_call,
        log_every=config.train.log_every,
        eval_every=config.eval.every,
        sample_every=config.sample.every,
        checkpoint_every=config.train.checkpoint_every,
        max_skipped=config.train.max_skipped,
    )


def _evaluator(
    config: ConfigDict, images: ImageData, model: Model, mesh: Mesh, key: jax.Array, stop: Stop
) -> Callable[[TrainState, bool], Evaluation]:
    eval_step = evaluation.make_eval_step(model, mesh)
    batches = setup.batches(images, config.eval.batch_size)

    def checked() -> Iterator[data.Batch]:
        for batch in batches():
            stop.check()
            yield batch

    def evaluate(state: TrainState, last: bool) -> Evaluation:
        with _lower("evaluation", "eval.batch_size", config.eval.batch_size, state):
            repeats = config.eval.final_repeats if last else config.eval.repeats
            draws = evaluation.collect(eval_step, state.ema_params, checked, mesh, key, repeats)
            bound = model.bind(state.ema_params)
            return evaluation.summarise(draws, bound, (images.source or {}).get("test"))

    return evaluate


def _sampler(
    config: ConfigDict, images: ImageData, model: Model, mesh: Mesh, key: jax.Array, stop: Stop
) -> Callable[[TrainState], np.ndarray]:
    count = config.sample.count
    conditioning = np.zeros(count)
    if images.num_classes:  # each class in turn
        conditioning = np.stack([conditioning, np.arange(count) % images.num_classes], axis=1)

    def draw(params: object) -> jax.Array:
        given = jax.numpy.asarray(conditioning)
        whole_params = sharding.gathered(mesh, params)
        return model.sample(whole_params, key, given, config.sample.num_steps)

    compiled = jax.jit(draw, out_shardings=sharding.replicated(mesh))

    def sample(state: TrainState) -> np.ndarray:
        with _lower("sampling", "sample.count", count, state):
            drawn = compiled(state.ema_params)
            stop.wait_for(drawn)
            return report.image_grid(np.asarray(drawn), images.levels)

    return sample


@contextlib.contextmanager
def _lower(what: str, setting: str, value: int, state: TrainState) -> Iterator[None]:
    """Out of memory in the block: name the setting to lower. `state` is waited for before it."""
    jax.block_until_ready(state)  # so that no error of a training step is taken for one of these
    message = f"lower --config.{setting}, now {value}, to go on from the newest checkpoint"
    with memory.exhausted(lambda said: UserError(f"{what} ran out of memory ({said}): {message}")):
        yield


# ---- words ----


def _announce(
    config: ConfigDict,
    images: ImageData,
    model: Model,
    template: TrainState,
    mesh: Mesh,
) -> None:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(template.params))
    shape = "x".join(map(str, images.event_shape))
    name = setup.eval_name(config)
    print(
        f"{images.name}: {len(images.train)} training and {len(images.test)} {name} images of "
        f"{shape}, {images.levels} levels\n"
        f"{config.model.network}, {parameters:,} parameters, {model.facts().words}, on {mesh.size} "
        f"{mesh.devices.flat[0].platform} device(s); compiling",
        flush=True,
    )


def _conclude(
    result: Evaluation, last_step: int, images: ImageData, name: str, workdir: Path, note: str
) -> None:
    summary = {"step": last_step, "split": name, "data": setup.describe(images)}
    summary |= {
        f"{result.unit.key}_standard_error": None,
        **result.scalars(),
        "num_images": result.num_images,
        "repeats": result.repeats,
    }
    if jax.process_index() == 0:
        files.write_whole(workdir / "result.json", json.dumps(summary, indent=1) + "\n")
    print(
        f"reconstruction {result.reconstruction}\nprior          {result.prior}\n"
        f"diffusion      {result.diffusion}\n"
        f"{images.name} {name} {result.unit.name} (variational bound): {result.total}   "
        f"[{result.num_images} images, {result.repeats} draws each, step {last_step}]"
        + (f"\n({note})" if note else "")
    )
