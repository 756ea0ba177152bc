"""A network of one's own, here a plain function, on tabular data whose density is known.

    python -m examples.tabular

Four columns, each a function of those before it and normal noise, whose entropy is the least bound.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vdm_jax import VDM, schedule
from vdm_jax.train import fit
from vdm_jax.train.model import Model

SPREAD = np.array([0.5, 0.3, 0.3, 0.3])  # of each column's noise
ENTROPY = np.log(SPREAD).mean() + 0.5 * math.log(2.0 * math.pi * math.e)  # nats per column


def rows(count, seed):
    """Returns rows [count, 4], of about [-1, 1]."""
    a, b, c, d = (np.random.default_rng(seed).normal(size=(count, 4)) * SPREAD).T
    b, c = b + np.sin(3.0 * a) / 2.0, c + a**2
    return np.stack([a, b, c, d - b * c], axis=1)


def init(key, width=64):
    """Returns the weights of a network with two hidden layers."""
    first, second, noise = jax.random.split(key, 3)
    first = jax.random.normal(first, (4 + 6, width)) / 3.0
    second = jax.random.normal(second, (width, width)) / math.sqrt(width)
    noise = jax.random.normal(noise, (6, width))
    return {"first": first, "second": second, "noise": noise, "out": jnp.zeros((width, 4))}


def bind(params, conditioning=None, dropout=None):
    """Returns the model with these weights; the network predicts v from z_t and gamma_t."""

    def denoise(z_t, gamma_t):
        level = jax.nn.sigmoid(gamma_t[:, None] + jnp.array([-4.0, -2.0, 0.0, 2.0, 4.0, 100.0]))
        hidden = jax.nn.silu(jnp.concatenate([z_t, level], axis=1) @ params["first"])
        hidden = jax.nn.silu(hidden @ params["second"] * (level @ params["noise"]))
        return hidden @ params["out"]

    return VDM(denoise, schedule.linear(-7.0, 5.0), event_shape=(4,), levels=None, kind="v")


def main(steps=3000, workdir=None, held_out=2000):
    """Trains, prints the bound beside the entropy, and returns it with them."""
    train, test = rows(20_000, seed=0), rows(held_out, seed=1)
    fitted = fit(Model(init, bind), train, optax.adam(5e-3), steps, workdir, test, ema_rate=0.99)
    print(f"bound {fitted.evaluation.total} nats per column, entropy {ENTROPY:.4f}")
    return fitted.evaluation.total, ENTROPY


if __name__ == "__main__":
    main()
