"""An NNX network with a condition: its state is the parameters, its graph is static.

    python -m examples.with_nnx

The data are points about a place on a circle: where and how far, their condition says. A tenth of
the time it is dropped, as guided samples need it: then `known` is 0.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from vdm_jax import VDM, schedule
from vdm_jax.train import fit
from vdm_jax.train.model import Model


def data(count, seed):
    """Returns points [count, 2] with their condition."""
    rng = np.random.default_rng(seed)
    angle, spread = rng.uniform(0.0, 2.0 * np.pi, (count, 1)), rng.uniform(0.1, 0.5, (count, 1))
    place = np.concatenate([np.cos(angle), np.sin(angle)], axis=1) / 2.0
    x = place + spread * rng.normal(size=(count, 2))
    return {"x": x, "condition": {"place": place, "spread": spread, "known": np.ones((count, 1))}}


class Denoiser(nnx.Module):
    """A network that predicts v from z_t, gamma_t and the condition."""

    def __init__(self, rngs, width=128):
        sizes = (2 + 6 + 4, width), (width, width), (width, 2)
        self.first, self.second, self.out = (nnx.Linear(*size, rngs=rngs) for size in sizes)

    def __call__(self, z_t, gamma_t, condition):
        """Returns v [batch, 2]."""
        level = jax.nn.sigmoid(gamma_t[:, None] + jnp.array([-4.0, -2.0, 0.0, 2.0, 4.0, 100.0]))
        hidden = jnp.concatenate([z_t, level, *jax.tree.leaves(condition)], axis=1)
        return self.out(nnx.silu(self.second(nnx.silu(self.first(hidden)))))


def bind(params, conditioning=None, dropout=None):
    """Returns the model with this state and condition."""
    network = nnx.merge(nnx.graphdef(Denoiser(nnx.Rngs(0))), params)
    denoise = functools.partial(network, condition=conditioning)
    return VDM(denoise, schedule.linear(-7.0, 5.0), event_shape=(2,), levels=None, kind="v")


def main(steps=3000, workdir=None):
    """Trains, prints the bound beside the entropy given the condition, returns both."""
    model = Model(lambda key: nnx.state(Denoiser(nnx.Rngs(key))), bind)
    train, test, options = data(20_000, seed=0), data(2000, seed=1), {"condition_dropout": 0.1}
    fitted = fit(model, train, optax.adam(3e-3), steps, workdir, test, ema_rate=0.99, **options)
    entropy = np.log(test["condition"]["spread"]).mean() + 0.5 * math.log(2.0 * np.pi * np.e)
    print(f"bound {fitted.evaluation.total} nats per coordinate, entropy {entropy:.4f}")
    return fitted.evaluation.total, entropy


if __name__ == "__main__":
    main()
