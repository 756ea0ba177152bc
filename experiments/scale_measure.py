"""What one machine shows of the formulas of `experiments.scale`."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments import bench_report, collectives, cost
from experiments.configs import cifar10
from experiments.models import make_model
from vdm_jax.train import optimizer, sharding, step

__all__ = ["DEVICES", "compile_step", "exchanges", "measure"]

DEVICES = 8
SHAPE = (32, 32, 3)
SMALL_SHAPE = (8, 8, 3)
PROGRAMS: tuple[dict[str, Any], ...] = (
    {"num_blocks": 1, "batch": 2},
    {"num_blocks": 1, "batch": 8},
    {"num_blocks": 4, "batch": 8},
    {"num_blocks": 4, "batch": 8, "remat": "blocks"},
    {"num_blocks": 4, "batch": 8, "remat": "none"},
)
CHANNELS = 128
Row = dict[str, Any]


def measure(rounds: int) -> Mapping[str, Any]:
    """All of it; needs `DEVICES` devices. Times are of this process's work on the processor."""
    meshes = [_exchange(shard_params) for shard_params in (1, 2, DEVICES)]
    programs = [_program(**settings) for settings in PROGRAMS]
    steps = [row.pop("call") for row in programs]
    product, flops = _matrix_product()
    for call in (*steps, product):
        call()  # what is done only once isn't measured
    for _ in range(rounds):
        for row, call in zip(programs, steps, strict=True):
            row["seconds"].append(_processor_seconds(call))
    peak = flops / min(_processor_seconds(product) for _ in range(5 * rounds))
    return {
        "machine": bench_report.machine(),
        "exchanges": meshes,
        "programs": programs,
        "peak": peak,
        "rounds": rounds,
    }


def _config(num_blocks: int, batch: int, channels: int, remat: str = "matmuls") -> ConfigDict:
    config = cifar10.get_config()
    config.model.update(num_blocks=num_blocks, channels=channels, remat=remat)
    config.train.batch_size = batch
    return config


def compile_step(
    config: ConfigDict, event_shape: tuple[int, ...], mesh: jax.sharding.Mesh
) -> tuple[jax.stages.Compiled, step.TrainState]:
    """The training step, from shapes alone, and the state's shapes."""
    model = make_model(config, event_shape, 256)
    adamw = optimizer.make(optimizer.learning_rate(2e-4, warmup_steps=100))
    batch = config.train.batch_size
    chunk = {
        "images": jax.ShapeDtypeStruct((1, batch, *event_shape), jnp.uint8),
        "conditioning": jax.ShapeDtypeStruct((1, batch), jnp.float32),
    }
    template = step.abstract_state(model, adamw, mesh)
    step_fn = step.make_step(model, adamw, 0.9999, jax.random.key(1), mesh)
    return step_fn.lower(template, chunk, 0, 1).compile(), template


# ---- exchanges ----


def _exchange(shard_params: int) -> Row:
    """Of a U-Net of two blocks in each half, 16 images of 8x8 pixels."""
    config = _config(2, 2 * DEVICES, 64)
    mesh = sharding.make_mesh(jax.devices()[:DEVICES], shard_params)
    return exchanges(*compile_step(config, SMALL_SHAPE, mesh), mesh)


def exchanges(
    compiled: jax.stages.Compiled, template: step.TrainState, mesh: jax.sharding.Mesh
) -> Row:
    """Bytes of collective operations' results, by the formula and as compiled."""
    data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
    of = collectives.shares(template.params, mesh)
    formula = collectives.expected(of, data, fsdp)
    return {
        "data": data,
        "fsdp": fsdp,
        "expected": {
            "all-gather": formula.gathered,
            "all-reduce": formula.scattered + formula.reduced,
        },
        "compiled": dict(collectives.compiled(compiled.as_text() or "")),
    }


# ---- programs on one device ----


def _program(num_blocks: int, batch: int, remat: str = "matmuls") -> Row:
    config = _config(num_blocks, batch, CHANNELS, remat)
    mesh = sharding.make_mesh(jax.devices()[:1])
    compiled, template = compile_step(config, SHAPE, mesh)
    counted = cost.of_gradient(config, SHAPE, batch)
    analysis, memory = compiled.cost_analysis(), compiled.memory_analysis()
    row: Row = {
        "num_blocks": num_blocks,
        "batch": batch,
        "remat": remat,
        "flops": counted.flops,
        "compiler_flops": None if analysis is None else analysis.get("flops"),
        "count": counted.peak,
        "temporaries": None if memory is None else memory.temp_size_in_bytes,
        "seconds": [],
        "call": _steps(compiled, template, batch),
    }
    print({name: value for name, value in row.items() if name != "call"}, flush=True)
    return row


def _steps(
    compiled: jax.stages.Compiled, template: step.TrainState, batch: int
) -> Callable[[], None]:
    """One training step after the other; each waits for its end."""
    state = jax.tree.map(
        lambda leaf: jax.device_put(jnp.zeros(leaf.shape, leaf.dtype), leaf.sharding), template
    )
    chunk = {
        "images": jax.random.randint(jax.random.key(4), (1, batch, *SHAPE), 0, 256, jnp.uint8),
        "conditioning": jnp.zeros((1, batch)),
    }

    def call() -> None:
        nonlocal state
        state, metrics = compiled(state, chunk, 0, 1)
        jax.block_until_ready((state, metrics))

    return call


def _matrix_product(size: int = 1536) -> tuple[Callable[[], None], float]:
    """The product of two square matrices, and its operations."""
    a = jax.random.normal(jax.random.key(5), (size, size))
    product = jax.jit(jnp.matmul)
    return lambda: jax.block_until_ready(product(a, a)), 2.0 * size**3


def _processor_seconds(call: Callable[[], None]) -> float:
    """Of all cores together: other processes on the machine don't count."""
    began = time.process_time()
    call()
    return time.process_time() - began
