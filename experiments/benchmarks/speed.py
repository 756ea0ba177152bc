"""Speed and memory of this code and, given a copy, of the published one, in one run.

    python -m experiments.bench --workdir=DIR [--official-code=PATH] [--out=docs]

Measures the CIFAR-10 network: compiling, a training step, its memory, a step of sampling; and, on
a model of digits trained in DIR first, how many calls of the network good samples and a precise
bound take. Contenders do the same work and take turns, round after round; figures are medians. On a
GPU the batch is 128, and the largest batch that fits and the augmented model are measured too.
Writes benchmarks.md into --out, and what it was made of as bench.json into DIR.
"""

import dataclasses
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments import series
from experiments.benchmarks import speed_report as bench_report
from experiments.benchmarks.published_code import PublishedCode
from experiments.benchmarks.speed_report import Row
from experiments.configs import cifar10, digits
from vdm_jax import data, sampler
from vdm_jax.evaluation import sample_quality as sampling
from vdm_jax.evaluation import variance_reduction as pilot
from vdm_jax.evaluation.sample_quality import Rule
from vdm_jax.run import build as setup
from vdm_jax.run import cli
from vdm_jax.run.cli import UserError
from vdm_jax.run.models import make_model
from vdm_jax.run.restore import Restored
from vdm_jax.train import memory, optimizer, sharding, step

PUBLISHED = "published"
MODES: dict[str, dict[str, Any]] = {
    "ours, remat matmuls": {},
    "ours, remat blocks": {"remat": "blocks"},
    "ours, remat matmuls, bfloat16": {"dtype": "bfloat16"},
    "ours, remat blocks, bfloat16": {"remat": "blocks", "dtype": "bfloat16"},
}
SHAPE = (32, 32, 3)


@dataclasses.dataclass
class Contender:
    """One way to do the work, compiled."""

    name: str
    compile_init: float
    """Seconds to compile what makes the first state."""
    compile_step: float
    temporaries: int
    """Bytes of a training step."""
    need: int
    """Bytes of a training step, with state and batch."""
    train: Callable[[], None]
    """One step; waits for it."""
    sample: Callable[[], None]
    train_seconds: list[float] = dataclasses.field(default_factory=list)
    sample_seconds: list[float] = dataclasses.field(default_factory=list)


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()

    def number(name: str, about: str, default: int | None) -> None:
        flags.DEFINE_integer(name, default, about, lower_bound=1, flag_values=values)

    flags.DEFINE_string("workdir", None, "folder for the model of digits", flag_values=values)
    flags.DEFINE_string("out", "docs", "folder for benchmarks.md", flag_values=values)
    flags.DEFINE_string(
        "official-code", None, "a copy of the published repository", flag_values=values
    )
    number("batch_size", "images of a step; default 4, on a GPU 128", None)
    number("channels", "of the network", 128)
    number("num_blocks", "of the network", 32)
    number("rounds", "in which contenders take turns", 5)
    flags.DEFINE_float(
        "peak_tflops", None, "of the device in bfloat16, for the share of it", lower_bound=1e-6,
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_bool("quality", True, "measure what calls of the network buy", flag_values=values)
    return values


def bench(argv: list[str]) -> Mapping[str, Any]:
    """Parse `argv`, measure, print and write the tables; what they were made of is returned."""
    jax.config.update("jax_enable_compilation_cache", False)  # what is timed here is compiling
    values = _flags()
    cli.parse_flags(values, argv, __doc__)
    options: dict[str, Any] = {name: values[name].value for name in values if name != "help"}
    if not options["workdir"]:
        raise UserError("--workdir=DIR is missing: the folder for the model of digits")
    workdir = setup.make_workdir(Path(options["workdir"]))
    out = setup.make_workdir(Path(options["out"]), "out")
    on_gpu = jax.default_backend() == "gpu"
    batch = options["batch_size"] or (128 if on_gpu else 4)
    found: dict[str, Any] = {
        "options": {**options, "batch_size": batch},
        "machine": bench_report.machine(),
        "steps": _steps(options, batch),
        "loader": _loader(),
        "largest": _largest() if on_gpu else [],
    }
    if options["quality"]:
        found |= _quality(workdir)
    text = bench_report.page(found)
    print(text)
    (out / "benchmarks.md").write_text(text)
    (workdir / "bench.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


# ---- the network of CIFAR-10 ----


def _steps(options: Mapping[str, Any], batch: int) -> list[Row]:
    """A row for each contender."""
    makers: list[Callable[[], Contender]] = [
        functools.partial(_ours, name, _config(options, batch, changes))
        for name, changes in MODES.items()
    ]
    makers[0]()  # what a process compiles first takes longer: nothing of that is counted
    if options["official-code"]:
        code = PublishedCode(
            Path(options["official-code"]), options["channels"], options["num_blocks"]
        )
        makers.insert(0, functools.partial(_published, code, batch))
    contenders = [_say(make()) for make in makers]
    for contender in contenders:  # what is done once only, at the first call, isn't measured
        contender.train()
        contender.sample()
    for number in range(options["rounds"]):
        for of in contenders:
            of.train_seconds.append(_seconds(of.train))
            of.sample_seconds.append(_seconds(of.sample))
        print(f"round {number + 1} of {options['rounds']}", flush=True)
    flops = 3 * forward_flops(_config(options, batch, {})) * batch
    return [_row(contender, flops, options["peak_tflops"]) for contender in contenders]


def _config(options: Mapping[str, Any], batch: int, changes: Mapping[str, Any]) -> ConfigDict:
    config = cifar10.get_config()
    config.train.batch_size = batch
    config.model.update(channels=options["channels"], num_blocks=options["num_blocks"], **changes)
    return config


def _row(of: Contender, flops: float, peak: float | None) -> Row:
    seconds = statistics.median(of.train_seconds)
    return {
        "name": of.name,
        "compile": of.compile_init + of.compile_step,
        "compile_step": of.compile_step,
        "step": seconds,
        "temporaries": of.temporaries,
        "need": of.need,
        "tflops": flops / seconds / 1e12,
        "share": None if peak is None else flops / seconds / 1e12 / peak,
        "sample": statistics.median(of.sample_seconds),
    }


def _say(of: Contender) -> Contender:
    print(
        f"{of.name}: compiled in {of.compile_init:.1f} + {of.compile_step:.1f} s, temporaries "
        f"{memory.words(of.temporaries)}",
        flush=True,
    )
    return of


def _ours(name: str, config: ConfigDict) -> Contender:
    model = make_model(config, SHAPE, 256)
    adamw = optimizer.make(optimizer.learning_rate(2e-4, warmup_steps=100))
    init, compile_init = _compiled(
        jax.jit(lambda key: step.init_state(model, adamw, key)), jax.random.key(0)
    )
    chunk = {"images": _images(config.train.batch_size)[None]}
    chunk["conditioning"] = jnp.zeros(chunk["images"].shape[:2])
    compiled, compile_step = compile_training(config)
    state = init(jax.random.key(0))

    def train() -> None:
        nonlocal state
        state, metrics = compiled(state, chunk, 0, 1)
        jax.block_until_ready((state, metrics))

    def one(params: Any, z_t: jax.Array, i: jax.Array, key: jax.Array) -> jax.Array:
        vdm = model.bind(params)
        gamma_t, gamma_s = vdm.gamma(1.0 - jnp.stack([i, i + 1]) / 1000)
        eps = jax.random.normal(jax.random.fold_in(key, i), z_t.shape)
        return sampler.ancestral_step(z_t, eps, vdm.denoise, gamma_s, gamma_t)

    sample = _sampling(jax.jit(one), lambda: state.params, config.train.batch_size)
    return Contender(name, compile_init, compile_step, *_memory(compiled), train, sample)


def compile_training(config: ConfigDict) -> tuple[jax.stages.Compiled, float]:
    """The training step on one device, compiled from shapes, and the seconds that took."""
    mesh = sharding.make_mesh(jax.devices()[:1])
    model = make_model(config, SHAPE, 256)
    adamw = optimizer.make(optimizer.learning_rate(2e-4, warmup_steps=100))
    batch = config.train.batch_size
    chunk = {
        "images": jax.ShapeDtypeStruct((1, batch, *SHAPE), jnp.uint8),
        "conditioning": jax.ShapeDtypeStruct((1, batch), jnp.float32),
    }
    training = step.Training(model, adamw, config.optimizer.ema_rate, jax.random.key(1))
    step_fn = step.make_step(training, mesh)
    return _compiled(step_fn, step.abstract_state(model, adamw, mesh), chunk, 0, 1)


def _published(code: PublishedCode, batch: int) -> Contender:
    init, compile_init = _compiled(jax.jit(code.init), jax.random.key(0))
    state, images = init(jax.random.key(0)), _images(batch)
    # Not donated, as there.
    compiled, compile_step = _compiled(jax.jit(code.train_step), state, images, jax.random.key(1))

    def train() -> None:
        nonlocal state
        state, value = compiled(state, images, jax.random.key(1))
        jax.block_until_ready((state, value))

    sample = _sampling(jax.jit(code.sample_step), lambda: state[0], batch)
    return Contender(PUBLISHED, compile_init, compile_step, *_memory(compiled), train, sample)


def _memory(compiled: jax.stages.Compiled) -> tuple[int, int]:
    """Bytes of temporaries, and of all."""
    found = compiled.memory_analysis()
    return (0 if found is None else found.temp_size_in_bytes), memory.need(compiled) or 0


def _sampling(one: Callable, params: Callable[[], Any], batch: int) -> Callable[[], None]:
    z_t, key = jax.random.normal(jax.random.key(2), (batch, *SHAPE)), jax.random.key(3)
    return lambda: jax.block_until_ready(one(params(), z_t, jnp.float32(500), key))


def _images(batch: int) -> jax.Array:
    return jax.random.randint(jax.random.key(4), (batch, *SHAPE), 0, 256).astype(jnp.uint8)


def _compiled(function: Any, *args: Any) -> tuple[jax.stages.Compiled, float]:
    began = time.perf_counter()
    compiled = function.lower(*args).compile()
    return compiled, time.perf_counter() - began


def _seconds(call: Callable[[], None]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def forward_flops(config: ConfigDict) -> float:
    """Multiplications and additions of the U-Net for one 32x32 image, forward.

    Of convolutions, matrix products and attention; the rest is a few per cent. A training step has
    three times as many, whatever is computed once more.
    """
    model = make_model(config, SHAPE, 256)
    shapes = jax.eval_shape(model.init, jax.random.key(0))["score_model"]
    pixels = SHAPE[0] * SHAPE[1]
    total = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        names = [part.key for part in path]
        if names[-1] != "kernel":
            continue
        once = names[-2] in ("dense0", "dense1", "cond_proj")  # for an image, not for each pixel
        total += 2.0 * leaf.size * (1 if once else pixels)
        if names[-2] == "proj_out":  # an attention, or a stack of them: its two products
            count = leaf.size / config.model.channels**2
            total += 4.0 * count * config.model.channels * pixels**2
    return total


# ---- what fits ----


def _largest() -> list[Row]:
    """The largest batch of the plain and of the augmented model on this device, by mode."""
    room = memory.room(jax.devices()[0])
    if room is None:
        return []
    rows = []
    for name, changes in MODES.items():
        for variant in ("", "aug"):
            config = cifar10.get_config(variant)
            config.model.update(**changes)
            rows.append({"name": name, "model": variant or "plain"} | largest(config, room.free))
    return rows


def largest(
    config: ConfigDict,
    limit: int,
    compile_step: Callable[[ConfigDict], Any] = lambda config: compile_training(config)[0],
) -> Row:
    """The largest batch, by powers of two, whose step needs at most `limit` bytes; 0 if none."""
    best, need, size = 0, 0, 8
    while size <= 2**16:
        try:
            with memory.exhausted(MemoryError):
                changed = ConfigDict(config.to_dict())
                changed.train.batch_size = size
                of = memory.need(compile_step(changed))
        except MemoryError:  # of the compiler, which measures candidates on the device
            break
        if of is None or of > limit:
            break
        best, need, size = size, of, 2 * size
    return {"batch": best, "need": need}


# ---- the loader ----


def _loader(count: int = 20_000, batch: int = 128) -> float:
    """Images a second of the training batches, shuffled and augmented."""
    images = np.random.default_rng(0).integers(0, 256, (count, *SHAPE), np.uint8)
    stream = data.train_batches(images, batch_size=batch, seed=0, augment="flip")
    with data.iterate(stream, start=0) as batches:
        next(batches)
        began = time.perf_counter()
        for _ in range(count // batch):
            next(batches)
    return (count // batch) * batch / (time.perf_counter() - began)


# ---- what a call of the network buys ----


def _quality(workdir: Path) -> dict[str, Any]:
    """Samplers and evaluations of a model of digits."""
    mesh = setup.make_mesh()
    model, _ = series.train(digits.get_config(), workdir / "digits", mesh)
    rules = [Rule("dpm_solver", steps, "karras") for steps in (10, 15, 20, 25)]
    rules += [Rule("ancestral", steps, "time") for steps in (25, 250, 1000)]
    return {
        "quality": sampling.quality(model, rules, mesh, say=_say_sampler),
        "evaluation": _evaluation(model, mesh),
    }


def _say_sampler(row: Mapping[str, Any]) -> None:
    print(f"{row['sampler']}, {row['calls']} calls: MMD² {row['mmd']:.5f}", flush=True)


def _evaluation(model: Restored, mesh: jax.sharding.Mesh) -> list[Row]:
    return pilot.evaluation_cost(model, mesh, model.batch_size)


if __name__ == "__main__":
    os.environ["VDM_JAX_CACHE"] = "off"  # what is compiled here is to be compiled
    cli.guard(lambda: bench(sys.argv))
