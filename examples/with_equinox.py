"""An Equinox network: its arrays are the parameters, the rest of it is static.

    python -m examples.with_equinox

The data are points about a spiral, whose entropy is known by quadrature.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from vdm_jax import VDM, schedule
from vdm_jax.data import points
from vdm_jax.train import fit
from vdm_jax.train.model import Model

ENTROPY = points.entropy("swirl") / 2  # nats per coordinate


class Denoiser(eqx.Module):
    """A network that predicts v from one z_t and gamma_t."""

    mlp: eqx.nn.MLP

    def __init__(self, key, width=64):
        self.mlp = eqx.nn.MLP(2 * 9 + 6, 2, width, depth=3, activation=jax.nn.silu, key=key)

    def __call__(self, z_t, gamma_t):
        """Returns v [2]; gamma_t is a number."""
        waves = jnp.outer(z_t, jnp.array([2.0, 4.0, 8.0, 16.0])).ravel()
        level = jax.nn.sigmoid(gamma_t + jnp.array([-4.0, -2.0, 0.0, 2.0, 4.0, 100.0]))
        return self.mlp(jnp.concatenate([z_t, jnp.sin(waves), jnp.cos(waves), level]))


def init(key):
    """Returns the arrays of a new network."""
    return eqx.filter(Denoiser(key), eqx.is_array)


STATIC = eqx.filter(Denoiser(jax.random.key(0)), eqx.is_array, inverse=True)


def bind(params, conditioning=None, dropout=None):
    """Returns the model with these arrays."""
    denoise = jax.vmap(eqx.combine(params, STATIC))
    return VDM(denoise, schedule.linear(-9.0, 5.0), event_shape=(2,), levels=None, kind="v")


def main(steps=3000, workdir=None):
    """Trains, prints the bound beside the entropy, and returns it with them."""
    train, test = points.draw("swirl", 20_000, seed=0), points.draw("swirl", 2000, seed=1)
    model, optimizer = Model(init, bind), optax.adam(2e-3)
    fitted = fit(model, train, optimizer, steps, workdir, test, ema_rate=0.99)
    print(f"bound {fitted.evaluation.total} nats per coordinate, entropy {ENTROPY:.4f}")
    return fitted.evaluation.total, ENTROPY


if __name__ == "__main__":
    main()
