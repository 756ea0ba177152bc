"""An NNX network with a condition: its state is the parameters, its graph is static.

    python -m examples.with_nnx

The data are points around a place on a circle, where and how far apart their condition says. Of a
tenth of the examples the condition is dropped: then the number `known` in it is 0.
"""

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
    """Returns points [count, 2], and angle and spread of each as its condition."""
    rng = np.random.default_rng(seed)
    angle, spread = rng.uniform(0.0, 2.0 * np.pi, (count, 1)), rng.uniform(0.1, 0.5, (count, 1))
    x = 0.5 * np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    condition = {"angle": angle, "spread": spread, "known": np.ones((count, 1))}
    return {"x": x + spread * rng.normal(size=(count, 2)), "condition": condition}


class Denoiser(nnx.Module):
    """A network that predicts v from z_t, gamma_t and the condition."""

    def __init__(self, rngs, width=128):
        """Makes its layers."""
        sizes = zip((2 + 6 + 5, width, width), (width, width, 2), strict=True)
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in sizes])

    def __call__(self, z_t, gamma_t, c):
        """Returns v [batch, 2]."""
        level = jax.nn.sigmoid(gamma_t[:, None] + jnp.array([-4.0, -2.0, 0.0, 2.0, 4.0, 100.0]))
        place = c["known"] * jnp.concatenate([jnp.cos(c["angle"]), jnp.sin(c["angle"])], axis=1)
        h = jnp.concatenate([z_t, level, place, c["known"], c["spread"], c["spread"] ** 2], axis=1)
        for layer in self.layers[:-1]:
            h = nnx.silu(layer(h))
        return self.layers[-1](h)


GRAPH = nnx.graphdef(Denoiser(nnx.Rngs(0)))


def bind(params, conditioning=None, dropout=None):
    """Returns the model with this state and condition."""
    network = nnx.merge(GRAPH, params)
    denoise = lambda z_t, gamma_t: network(z_t, gamma_t, conditioning)  # noqa: E731
    return VDM(denoise, schedule.linear(-7.0, 5.0), event_shape=(2,), levels=None, kind="v")


def main(steps=3000, workdir=None):
    """Trains, prints the bound beside the entropy given the condition, and returns both."""
    model = Model(lambda key: nnx.state(Denoiser(nnx.Rngs(key))), bind)
    optimizer, test = optax.adam(optax.cosine_decay_schedule(3e-3, steps)), data(2000, seed=1)
    options = {"ema_rate": 0.99, "condition_dropout": 0.1}
    fitted = fit(model, data(20_000, seed=0), optimizer, steps, workdir, test, **options)
    entropy = np.log(test["condition"]["spread"]).mean() + 0.5 * math.log(2.0 * np.pi * np.e)
    print(f"bound {fitted.evaluation.total} nats per coordinate, entropy {entropy:.4f}")
    return fitted.evaluation.total, entropy


if __name__ == "__main__":
    main()
