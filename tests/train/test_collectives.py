"""The collective operations of the compiled training step are those of docs/scale.md."""

import math
import re

import jax
import jax.numpy as jnp
import pytest

from vdm_jax import schedule
from vdm_jax.train import optimizer, sharding, step
from vdm_jax.train.model import Model
from vdm_jax.vdm import VDM

WIDTH = 128
SPLIT = 2 * WIDTH * WIDTH * 4  # bytes of two matrices of 2^14 elements each
COPIED = (WIDTH + 1) * 4
NUMBERS = 256  # bytes of a step's sums of single numbers: the loss, its terms, the norm


def model():
    def init(key):
        return {
            "gamma": jnp.array(-6.0),
            "bias": jnp.zeros(WIDTH),
            "in": jax.random.normal(key, (WIDTH, WIDTH)) / WIDTH,
            "out": jnp.zeros((WIDTH, WIDTH)),
        }

    def bind(params, conditioning=None, dropout=None):
        def denoise(z_t, gamma_t):
            return jnp.tanh(z_t @ params["in"] + params["bias"]) @ params["out"]

        return VDM(denoise, schedule.linear(params["gamma"], 4.0), (WIDTH,), levels=None)

    return Model(init, bind)


def program(devices, shard_params, accumulate):
    """The compiled step on simulated devices, as text."""
    mesh = sharding.make_mesh(jax.devices()[:devices], shard_params)
    training = step.Training(
        model(), optimizer.make(1e-2), 0.9, jax.random.key(0), accumulate=accumulate
    )
    state = step.abstract_state(training.model, training.optimizer, mesh)
    chunk = {
        "images": jax.ShapeDtypeStruct((1, 16, WIDTH), jnp.float32),
        "conditioning": jax.ShapeDtypeStruct((1, 16), jnp.float32),
    }
    return step.make_step(training, mesh).lower(state, chunk, 0, 1).compile().as_text()


def collectives(text):
    """{kind: (arrays, bytes of all results)} of the collective operations; none is in a loop."""
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    found = {kind: [0, 0] for kind in kinds.split("|")}
    for shapes, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", text):
        for dims in re.findall(r"f32\[([\d,]*)\]", shapes):
            size = math.prod(map(int, filter(None, dims.split(","))))
            found[kind][0] += size >= WIDTH
            found[kind][1] += 4 * size
    return {kind: tuple(of) for kind, of in found.items()}


CASES = [(2, 1, 1), (2, 2, 2), (4, 2, 1)]


@pytest.mark.parametrize(("n", "s", "a"), [c for c in CASES if c[0] <= jax.device_count()])
def test_parameters_are_gathered_once_and_gradients_summed_once_a_step(n, s, a):
    """On n devices, s of which share the split parameters, with a micro-batches."""
    found = collectives(program(n, s, a))
    assert found.pop("all-gather") == ((0, 0) if s == 1 else (2, SPLIT))
    arrays, size = found.pop("all-reduce")  # whole, of which each device takes its share
    assert arrays == 3 * a
    assert 0 <= size - a * (SPLIT + COPIED) <= NUMBERS
    assert set(found.values()) == {(0, 0)}
