"""An own network, here a plain function, on own tabular data whose density is known.

    python -m examples.tabular

Four columns, each nearly a function of those before it. The density of a row is a product of normal
densities, so its entropy is known: the least bound that any model can have.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vdm_jax import VDM, schedule
from vdm_jax.train import fit
from vdm_jax.train.model import Model

SPREAD = np.array([0.5, 0.2, 0.1, 0.2])  # of each column, given those before it


def rows(count, seed):
    """Returns rows [count, 4] of about [-1, 1]."""
    a, b, c, d = (np.random.default_rng(seed).normal(size=(count, 4)) * SPREAD).T
    b = b + np.sin(3 * a) / 2
    c = c + a * b
    return np.stack([a, b, c, d - np.abs(c)], axis=1).astype(np.float32)


def init(key, width=64):
    """Returns the weights of a network of two hidden layers, which begins with zeros."""
    keys = jax.random.split(key)
    return {
        "in": jax.random.normal(keys[0], (4 + 4, width)) / 2,
        "hidden": jax.random.normal(keys[1], (width, width)) / math.sqrt(width),
        "out": jnp.zeros((width, 4)),
    }


def bind(params, conditioning=None, dropout=None):
    """Returns the model with these weights: `denoise` predicts v from z_t and gamma_t."""

    def denoise(z_t, gamma_t):
        level = gamma_t[:, None] / 8
        h = jnp.concatenate([z_t, level, level**2, jnp.cos(4 * level), jnp.ones_like(level)], 1)
        h = jax.nn.silu(h @ params["in"])
        return jax.nn.silu(h @ params["hidden"]) @ params["out"]

    return VDM(denoise, schedule.linear(-7.0, 5.0), event_shape=(4,), levels=None, kind="v")


def main(steps=4000, workdir=None):
    """Trains and prints the bound beside the entropy; returns bound, standard error, entropy."""
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
    fitted = fit(Model(init, bind), rows(20_000, 0), optimizer, steps, workdir, test=rows(2000, 1))
    bound, entropy = fitted.evaluation.total, np.log(SPREAD).mean() + 0.5 * math.log(2 * np.pi * np.e)
    print(f"bound {bound} nats per dim; entropy {entropy:.4f}")
    return bound.mean, bound.standard_error, entropy


if __name__ == "__main__":
    main()
