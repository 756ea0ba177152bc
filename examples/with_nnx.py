"""An NNX network with a condition: its state is the parameters, its graph is static.

    python -m examples.with_nnx

Points about a place that their condition tells; a tenth of the time it is dropped, and `known` 0.
"""

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
    angle, spread = rng.uniform((0.0, 0.1), (2.0 * np.pi, 0.5), (count, 2)).T[..., None]
    place = np.concatenate([np.cos(angle), np.sin(angle)], axis=1) / 2
    condition = {"place": place, "spread": spread, "known": np.ones((count, 1))}
    return {"x": rng.normal(place, spread), "condition": condition}


class Denoiser(nnx.Module):
    """A network that predicts v from z_t, gamma_t and the condition."""

    def __init__(self, rngs, width=128):
        sizes = (12, width), (width, width), (width, 2)
        self.first, self.second, self.out = (nnx.Linear(*size, rngs=rngs) for size in sizes)

    def __call__(self, z_t, gamma_t, condition):
        """Returns v [batch, 2]."""
        level = jax.nn.sigmoid(gamma_t[:, None] + jnp.array([-4.0, -2.0, 0.0, 2.0, 4.0, 100.0]))
        hidden = jnp.concatenate([z_t, level, *jax.tree.leaves(condition)], axis=1)
        return self.out(nnx.silu(self.second(nnx.silu(self.first(hidden)))))


def bind(params, conditioning=None, dropout=None):
    """Returns the model with this state and condition."""
    network = nnx.merge(nnx.graphdef(Denoiser(nnx.Rngs(0))), params)
    denoise = lambda z_t, gamma_t: network(z_t, gamma_t, conditioning)  # noqa: E731
    return VDM(denoise, schedule.linear(-7.0, 5.0), event_shape=(2,), levels=None, kind="v")


def main(steps=3000, workdir=None, held_out=2000):
    """Trains, prints the bound beside the entropy given the condition, returns both."""
    model = Model(lambda key: nnx.state(Denoiser(nnx.Rngs(key))), bind)
    train, test, often = data(20_000, seed=0), data(held_out, seed=1), {"condition_dropout": 0.1}
    bound = fit(model, train, optax.adam(3e-3), steps, workdir, test, **often).evaluation.total
    entropy = np.log(test["condition"]["spread"]).mean() + 0.5 * np.log(2.0 * np.pi * np.e)
    print(f"bound {bound} nats per coordinate, entropy {entropy:.4f}")
    return bound, entropy


if __name__ == "__main__":
    main()
