"""One training run: data, model, optimiser and loop put together from a configuration."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vdm_jax import files, signals, weighting
from vdm_jax.data import ImageData
from vdm_jax.errors import UserError
from vdm_jax.evaluation.bound import Evaluation
from vdm_jax.run import build, defaults, distributed, experiment, pretrained, restore
from vdm_jax.run.cli import Options
from vdm_jax.run.config import check_config, check_devices, check_training
from vdm_jax.run.experiment import Experiment
from vdm_jax.run.models import make_model
from vdm_jax.train import loop, memory, step
from vdm_jax.train.checkpoint import Checkpoints, SettingsError
from vdm_jax.train.hang import Watchdog
from vdm_jax.train.interrupts import Stop, Stopped
from vdm_jax.train.load_checkpoint import complete_steps
from vdm_jax.train.loop import TrainingError
from vdm_jax.train.model import Params
from vdm_jax.train.record import CheckpointError, DamagedError
from vdm_jax.train.step import TrainState

# What may change between a stop and a restart: nothing of it touches the state's path, but for the
# rounding of `shard_params` and `remat`. What "data" makes of the images is compared by itself.
MAY_DIFFER = tuple(
    f"config.{part}.{name}"
    for part, names in {
        "train": "steps shard_params log_every checkpoint_every keep_checkpoints max_skipped",
        "model": "remat",
        "eval": "every batch_size repeats final_repeats",
        "sample": "every count num_steps",
        "data": "dir manual_dir path size fit channels held_out class_labels",
    }.items()
    for name in names.split()
)
FLAGS: dict[type[UserError], str] = {  # that mend what the training refuses
    SettingsError: "With --allow_config_change the run goes on with the new ones.",
    DamagedError: "With --allow_fallback a run of one process goes on from the newest good one, "
    "and keeps what is damaged in a folder of its own.",
    TrainingError: "Both go with --allow_config_change.",
}


def train(config: ConfigDict, workdir: Path, options: Options = Options()) -> Evaluation:  # noqa: B008
    """Trains as `config` says in `workdir`, going on from its newest checkpoint if it has one.

    Leaves config.json, checkpoints/, metrics.jsonl, tensorboard/, loss.png, samples/, result.json.
    """
    with _stopping(workdir / "checkpoints"):
        check_config(config)
        images = build.load(config)
        check_training(config, images)
        mesh = build.make_mesh(config.train.shard_params)
        check_devices(config, mesh)
        model = make_model(config, images.event_shape, images.levels, images.condition, mesh)
        adamw = experiment.make_optimizer(config)
        workdir = build.make_workdir(workdir)  # nothing was written before
        of = Experiment(config, images, mesh, model, adamw, workdir, Stop(mesh))
        with build.owned(workdir) if jax.process_index() == 0 else contextlib.nullcontext():
            return _train(of, options)


def _train(of: Experiment, options: Options) -> Evaluation:
    config, workdir = of.config, of.workdir
    settings, folder = _settings(config, of.images), workdir / "checkpoints"
    flags = options._asdict() | {"init_from": options.init_from is not None}
    mine = settings | {f"--{name}": value for name, value in flags.items()}
    elsewhere = tuple(f"config.data.{name}" for name in ("dir", "manual_dir", "path"))
    distributed.agree(mine, ("--hang_timeout", *elsewhere))
    distributed.if_lost(lambda: f"the same command, in all processes, {_again(folder)}")
    (workdir / "samples").mkdir(exist_ok=True)
    keep, plain = config.train.keep_checkpoints, {"config": defaults.get_config().to_dict()}
    allowed = options.allow_config_change, options.allow_fallback
    checkpoints = Checkpoints(folder, settings, keep, MAY_DIFFER, plain, *allowed)
    template = step.abstract_state(of.model, of.optimizer, of.mesh)
    less = _less_memory(config)
    fitting = memory.exhausted(lambda said: UserError(f"out of memory ({said}). {less}"))
    with checkpoints.full_disk():
        with checkpoints, fitting:
            # What is refused is, before compiling.
            learned = _given(of, checkpoints, template, options.init_from)
            _announce(of, template)
            run = _run(of, checkpoints, options.hang_timeout)
            init = experiment.keys_of(config)["init"]
            state = experiment.first_state(of.model, of.optimizer, init, of.mesh, checkpoints)
            if options.allow_config_change or int(state.skipped) >= config.train.max_skipped:
                # Steps that other settings could not do don't count against these.
                state = state._replace(skipped=0 * state.skipped)
            if learned is not None:
                state = state._replace(params=learned, ema_params=jax.tree.map(jnp.copy, learned))
            if jax.process_index() == 0:
                files.write_json(workdir / "config.json", settings)
                if int(state.step) < config.train.steps:  # one of before isn't of this training
                    (workdir / "result.json").unlink(missing_ok=True)
            state, result = loop.train(run, state)
        _conclude(of, int(state.step), result)
    return result


def _given(
    of: Experiment, checkpoints: Checkpoints, template: TrainState, source: str | None
) -> Params | None:
    """Returns what a new run begins with, the parameters of --init_from, if they are named.

    Raises UserError if the newest checkpoint isn't of this run, or is beyond its last step.
    """
    if checkpoints.latest_step() is not None:
        if of.config.train.steps < (at := checkpoints.check(template)):
            said = f"config.train.steps is {of.config.train.steps}, but {of.workdir} holds a run"
            raise UserError(f"{said} that is at step {at}: give as many or more")
        if source:
            print(f"the run has begun: --init_from={source} is not looked at")
        return None
    if not source:
        return None
    try:
        saved = restore.named(source)
        found = pretrained.parameters(saved, template.params, of.mesh)
    except DamagedError as error:  # of the other run: no flag of this one mends it
        raise CheckpointError(str(error)) from error
    print(f"starting from the parameters of {saved.workdir}, step {saved.step}")
    return found


@contextlib.contextmanager
def _stopping(folder: Path) -> Iterator[None]:
    """Ends the run at once at a signal outside the training loop; says where it will go on."""

    def at_once(number: int, frame: object) -> None:
        raise Stopped(number)

    try:
        with signals.handlers(signals.ENDING, at_once):
            yield
    except tuple(FLAGS) as error:
        raise type(error)(f"{error} {FLAGS[type(error)]}") from error
    except (KeyboardInterrupt, Stopped) as stopped:
        number = stopped.number if isinstance(stopped, Stopped) else signal.SIGINT
        raise Stopped(number, f"the same command {_again(folder)}") from None


def _again(folder: Path) -> str:
    """Returns where the run goes on. Orbax isn't asked: it can't be if another process is lost."""
    steps = complete_steps(folder)
    return f"goes on at {steps[-1]}" if steps else "starts anew: there is no checkpoint yet"


def _settings(config: ConfigDict, images: ImageData) -> dict[str, Any]:
    """Returns what the state's path depends on: saved with it, and compared on a restart."""
    settings = {"config": config.to_dict(), "data": build.describe(images)}
    settings["config"]["optimizer"]["decay_steps"] = experiment.decay_steps(config)
    return settings


def _run(of: Experiment, checkpoints: Checkpoints, hang_timeout: float | None) -> loop.Run:
    """Returns what the loop calls; the step is compiled and has enough memory."""
    config, keys = of.config, experiment.keys_of(of.config)
    compiled = experiment.compiled_step(of)
    _check_room(config, compiled)
    steps = experiment.plan(config), compiled, keys["train"], experiment.chunks(config, of.images)
    seen = experiment.evaluator(of, keys["eval"]), experiment.sampler(of, keys["sample"])
    name, watched = build.eval_name(config), _watched(of.workdir, hang_timeout)
    return loop.Run(*steps, *seen, checkpoints, of.workdir, of.mesh, of.stop, name, watched)


def _watched(workdir: Path, timeout: float | None) -> Callable[[], Any]:
    """Returns what watches over a step: nothing in one process, unless a limit was given."""
    if timeout == 0 or (timeout is None and not distributed.joined()):
        return contextlib.nullcontext
    file, folder = workdir / f"hang-{jax.process_index()}.txt", workdir / "checkpoints"
    return Watchdog(timeout, file, lambda: f"the same command {_again(folder)}").watched


def _check_room(config: ConfigDict, compiled: jax.stages.Compiled) -> None:
    """Prints what a step needs on each device; raises UserError if the device can't have it."""
    device = jax.local_devices()[0]
    need, room = memory.need(compiled, device), memory.room(device)
    if need is None:
        return
    said = f"needs about {memory.words(need)} per device"
    if room is None:
        print(said, flush=True)
        return
    said, less = f"{said} of {memory.words(room.free)}", _less_memory(config)
    if need > room.most:
        raise UserError(f"out of memory: a step {said}. {less}")
    if need > room.free:
        said += f"\nwarning: that is more than is free: it may be slow, or killed. {less}"
    print(said, flush=True)


def _less_memory(config: ConfigDict) -> str:
    """Returns the sentence that names the settings which lower a step's memory."""
    narrower = config.model.network in ("unet", "pyramid")
    first = "--config.model.remat=blocks, --config.model.dtype=bfloat16, " if narrower else ""
    return (f"Less is needed with {first}a larger --config.train.accumulate or "
            "--config.train.shard_params, or a smaller --config.train.batch_size.")  # fmt: skip


def _announce(of: Experiment, template: TrainState) -> None:
    images, devices = of.images, of.mesh.devices
    parameters = sum(leaf.size for leaf in jax.tree.leaves(template.params))
    shape = "x".join(map(str, images.event_shape))
    told = images.condition
    given = f", given their {told.word} ({told.size})" if told.word else ""
    print(
        f"{images.name}: {len(images.train)} training and {len(images.test)} "
        f"{build.eval_name(of.config)} images of {shape}, {images.levels} levels{given}\n"
        f"{of.config.model.network}, {parameters:,} parameters, {of.model.facts().words}, on "
        f"{devices.size} {devices.flat[0].platform} device(s); compiling"
        + _weighted(of.config)
        + _lag(of.config.optimizer.ema_rate, of.config.train.steps),
        flush=True,
    )


def _weighted(config: ConfigDict) -> str:
    """Returns what a run says that is trained on another loss than the bound."""
    c = config.model
    if c.weighting == "bound":
        return ""
    said = weighting.statement(c.weighting, c.gamma_min, c.gamma_max)
    return f"\n{said}; what is shown and evaluated is the bound"


def _lag(ema_rate: float, steps: int) -> str:
    """Returns what a run says that ends before the average of its parameters has settled."""
    lag = 1 / max(1 - ema_rate, 1e-9)
    if 3 * lag <= steps:
        return ""
    return (
        "\nevaluation and samples take the average of the parameters (EMA), which lags about "
        f"{lag:,.0f} steps behind, in a run of {steps:,}; --config.optimizer.ema_rate sets it"
    )


def _conclude(of: Experiment, last_step: int, result: Evaluation) -> None:
    name, note = build.eval_name(of.config), of.model.facts().note
    summary = {"step": last_step, "split": name, "data": build.describe(of.images)}
    summary |= {f"{result.unit.key}_standard_error": None, **result.scalars()}
    summary |= {"num_images": result.num_images, "repeats": result.repeats}
    if jax.process_index() == 0:
        files.write_json(of.workdir / "result.json", summary)
    left = sorted(path.name for path in of.workdir.glob("[!.]*"))
    print(
        f"reconstruction {result.reconstruction}\nprior          {result.prior}\n"
        f"diffusion      {result.diffusion}\n"
        f"{of.images.name} {name} {result.unit.name} (variational bound): {result.total}   "
        f"[{result.num_images} images, {result.repeats} draws each, step {last_step}]"
        + (f"\n({note})" if note else "")
        + f"\n{of.workdir} holds {', '.join(left)}"
    )
