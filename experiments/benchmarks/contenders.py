"""The contenders of `experiments.benchmarks.speed`: this code's modes, and the published code."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr
from ml_collections import ConfigDict

from experiments.benchmarks.published_code import PublishedCode
from vdm_jax import sampler
from vdm_jax.run.models import make_model
from vdm_jax.train import memory, optimizer, sharding, step

Row = dict[str, Any]

SHAPE = (32, 32, 3)


@dataclasses.dataclass
class Contender:
    """One way to do the work, compiled."""

    name: str
    init_seconds: float  # of compiling the first state
    step_seconds: float  # of compiling the training step
    step: jax.stages.Compiled
    train: Callable[[], None]
    """Function that takes one training step, and waits for it."""
    sample: Callable[[], None]
    """Function that takes one step of sampling, and waits for it."""
    turns: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    """Seconds of training and of sampling, by round."""

    def take_turn(self) -> None:
        """Takes one step of training and one of sampling, and notes their seconds."""
        self.turns.append((_timed(self.train)[1], _timed(self.sample)[1]))

    def row(self, flops: float, peak: float | None) -> Row:
        """Returns the numbers: medians of the seconds, and operations of a step a second."""
        train, sample = map(statistics.median, zip(*self.turns, strict=True))
        found, tflops = self.step.memory_analysis(), flops / train / 1e12
        seconds = {"compile": self.init_seconds + self.step_seconds, "step": train}
        return seconds | {
            "name": self.name, "compile_step": self.step_seconds, "sample": sample,
            "temporaries": 0 if found is None else int(found.temp_size_in_bytes),
            "need": memory.need(self.step, jax.devices()[0]) or 0, "tflops": tflops,
            "share": None if peak is None else tflops / peak,
        }  # fmt: skip


def ours(name: str, config: ConfigDict) -> Contender:
    """Returns this code in the mode of the configuration, on one device."""
    mesh = sharding.make_mesh(jax.devices()[:1])
    model = make_model(config, SHAPE, 256, mesh=mesh)
    adamw = optimizer.make(optimizer.learning_rate(2e-4, warmup_steps=100))
    training = step.Training(model, adamw, config.optimizer.ema_rate, jax.random.key(1))
    batch = config.train.batch_size
    chunk = {"images": _images(batch)[None], "conditioning": jnp.zeros((1, batch))}

    def one(state: step.TrainState, z_t: jax.Array, i: jax.Array, key: jax.Array) -> jax.Array:
        vdm = model.bind(state.params)
        gamma_t, gamma_s = vdm.gamma(1.0 - jnp.stack([i, i + 1]) / 1000)
        eps = jax.random.normal(jax.random.fold_in(key, i), z_t.shape)
        return sampler.ancestral_step(z_t, eps, vdm.denoise, gamma_s, gamma_t)

    init, update = partial(step.init_state, model, adamw), step.make_step(training, mesh)
    return _contender(name, init, update, (chunk, 0, 1), one, batch)


def published(code: PublishedCode, batch: int) -> Contender:
    """Returns the published code."""

    def one(state: Any, *given: jax.Array) -> jax.Array:
        return code.sample_step(state[0], *given)

    given = _images(batch), jax.random.key(1)
    # Its state is not donated, as there.
    return _contender("published", code.init, jax.jit(code.train_step), given, one, batch)


def _contender(
    name: str, init: Callable, update: Any, given: tuple[Any, ...], one: Callable, batch: int
) -> Contender:
    """Returns what begins with `init(key)`; `update` takes a step, `one` draws, from its state."""
    key = jax.random.key(0)
    start, init_seconds = _timed(jax.jit(init).lower(key).compile)
    state = start(key)
    compiled, step_seconds = _timed(lambda: update.lower(state, *given).compile())
    z_t, drawn = jax.random.normal(jax.random.key(2), (batch, *SHAPE)), jax.jit(one)

    def train() -> None:
        nonlocal state
        state, value = compiled(state, *given)
        jax.block_until_ready((state, value))

    def sample() -> None:
        jax.block_until_ready(drawn(state, z_t, jnp.float32(500), jax.random.key(3)))

    return Contender(name, init_seconds, step_seconds, compiled, train, sample)


def _images(batch: int) -> jax.Array:
    return jax.random.randint(jax.random.key(4), (batch, *SHAPE), 0, 256).astype(jnp.uint8)


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    result = call()
    return result, time.perf_counter() - began


def operations(function: Callable[..., Any], *args: Any) -> float:
    """Returns the multiplications and additions of matrix products and convolutions in a call.

    A loop counts as often as it runs, which `cost_analysis` of a compiled program doesn't know.
    """
    return _counted(jax.make_jaxpr(function)(*args).jaxpr)


def _counted(jaxpr: Jaxpr) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        kind, params = equation.primitive.name, equation.params
        shapes: Any = [of.aval for of in (*equation.invars[:2], *equation.outvars[:1])]
        if kind == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            total += 2.0 * shapes[2].size * math.prod(shapes[0].shape[i] for i in contracted)
        if kind == "conv_general_dilated":
            outputs = shapes[1].shape[params["dimension_numbers"].rhs_spec[0]]
            total += 2.0 * shapes[2].size * shapes[1].size / outputs
        inner = [getattr(value, "jaxpr", value) for value in params.values()]
        times = params["length"] if kind == "scan" else 1
        total += times * sum(_counted(each) for each in inner if isinstance(each, Jaxpr))
    return total


def forward_operations(config: ConfigDict) -> float:
    """Returns the `operations` of the network for one 32x32 image; with gradients some 3 times."""
    model = make_model(config, SHAPE, 256)

    def forward(params: Any) -> Any:
        return model.bind(params).denoise(jnp.zeros((1, *SHAPE)), jnp.zeros(1))

    return operations(forward, jax.eval_shape(model.init, jax.random.key(0)))
