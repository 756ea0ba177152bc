"""A model of a few parameters, for tests of what doesn't depend on the model."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vdm_jax import schedule
from vdm_jax.train import sharding
from vdm_jax.train.model import Model
from vdm_jax.train.step import TrainState
from vdm_jax.vdm import VDM

SHAPE = (2, 2, 1)
LEVELS = 4


def network(key, width=16):
    """Parameters of a network with one hidden layer."""
    first, second = jax.random.split(key)
    return {
        "in": {"kernel": 0.5 * jax.random.normal(first, (6, width)), "bias": jnp.zeros(width)},
        "out": {"kernel": 0.3 * jax.random.normal(second, (width, 4)), "bias": jnp.zeros(4)},
    }


def apply(params, z_t, gamma_t, conditioning, key=None, dropout=0.2):
    """Its prediction of the noise, with dropout where there is a key."""
    rows = [z_t.reshape(-1, 4), jnp.broadcast_to(gamma_t, len(z_t))[:, None] / 10]
    given = jnp.zeros(len(z_t)) if conditioning is None else conditioning
    hidden = jnp.concatenate([*rows, given[:, None]], axis=1) @ params["in"]["kernel"]
    hidden = jnp.tanh(hidden + params["in"]["bias"])
    if key is not None:
        hidden *= jax.random.bernoulli(key, 1 - dropout, hidden.shape) / (1 - dropout)
    return (hidden @ params["out"]["kernel"] + params["out"]["bias"]).reshape(z_t.shape)


def mlp_model() -> Model:
    """The network with a learned end point. Its bound is NaN for a negative conditioning."""

    def init(key):
        return {"gamma": {"b": jnp.array(-6.0)}, "score_model": network(key)}

    def bind(params, conditioning=None, key=None):
        def denoise(z_t, gamma_t):
            eps_hat = apply(params["score_model"], z_t, gamma_t, conditioning, key)
            bad = False if conditioning is None else jnp.any(conditioning < 0)
            return jnp.where(bad, jnp.nan, eps_hat)

        return VDM(denoise, schedule.linear(params["gamma"]["b"], 4.0), SHAPE, LEVELS)

    return Model(init, bind)


def constant_model(of=lambda c: c) -> Model:
    """eps_hat is a function of a learned constant, whatever the dropout or gamma."""

    def bind(params, conditioning=None, key=None):
        return VDM(
            lambda z_t, gamma_t: jnp.broadcast_to(of(params["c"]), z_t.shape),
            schedule.linear(-6.0, 4.0), SHAPE, LEVELS,
        )  # fmt: skip

    return Model(lambda key: {"c": jnp.zeros(SHAPE)}, bind)


def batches(count: int, batch_size: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Stacked batches, [count, batch_size, ...]."""
    rng = np.random.default_rng(seed)
    return {
        "images": rng.integers(0, LEVELS, (count, batch_size, *SHAPE), np.uint8),
        "conditioning": rng.integers(0, 2, (count, batch_size)).astype(np.float32),
    }


def one_batch(size=16):
    return {k: v[0] for k, v in batches(1, size).items()}


def state_at(step, devices=1):
    """A state of every dtype; its EMA parameters are others than its parameters."""
    rng = np.random.default_rng(step)
    params = {
        "kernel": jnp.asarray(rng.normal(size=(32, 40)), jnp.float32),
        "bias": jnp.asarray(rng.normal(size=8), jnp.bfloat16),
        "mask": jnp.array([True, False, True]),
    }
    ema = {**params, "kernel": params["kernel"] + step}
    whole = TrainState(jnp.int32(step), params, ema, {"mu": params["kernel"] / 2}, jnp.int32(0))
    mesh = sharding.make_mesh(jax.devices()[:devices])
    whole = jax.device_put(whole, sharding.replicated(mesh))
    if devices > 1:
        split = jax.device_put(params["kernel"], NamedSharding(mesh, P(None, "data")))
        whole = whole._replace(params={**whole.params, "kernel": split})
    return whole


def assert_equal(a, b):
    """Bit for bit."""
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def assert_close(a, b, rtol, atol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol, atol), a, b)
