"""A model of a few parameters, for tests of what doesn't depend on the model."""

import jax
import jax.numpy as jnp
import numpy as np
from vdm_jax.nn.mlp import MLP

from vdm_jax import schedule
from vdm_jax.train.model import Model

SHAPE = (2, 2, 1)
LEVELS = 4


def mlp_model(dropout: float = 0.2, num_steps: int | None = None) -> Model:
    """A small network with dropout and a learned end point."""
    network = MLP(
        gamma_min=-6.0, gamma_max=4.0, width=16, num_blocks=1, dropout=dropout, levels=LEVELS
    )

    def init(key):
        variables = network.init(key, jnp.zeros((1, *SHAPE)), jnp.zeros(1))
        return {"gamma": {"b": jnp.array(-6.0)}, "score_model": variables["params"]}

    def bind(params, conditioning, dropout_key):
        def denoise(z_t, gamma_t):
            rngs = {} if dropout_key is None else {"dropout": dropout_key}
            return network.apply(
                {"params": params["score_model"]}, z_t, gamma_t, conditioning,
                dropout_key is None, rngs=rngs,
            )  # fmt: skip

        return denoise, schedule.linear(params["gamma"]["b"], 4.0)

    return Model(init, bind, "eps", SHAPE, LEVELS, num_steps)


def constant_model() -> Model:
    """eps_hat is a learned constant: the gradient doesn't depend on dropout or gamma."""

    def init(key):
        return {"c": jnp.zeros(SHAPE)}

    def bind(params, conditioning, dropout_key):
        gamma = schedule.linear(-6.0, 4.0)
        return lambda z_t, gamma_t: jnp.broadcast_to(params["c"], z_t.shape), gamma

    return Model(init, bind, "eps", SHAPE, LEVELS)


def batches(count: int, batch_size: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Stacked batches, [count, batch_size, ...]."""
    rng = np.random.default_rng(seed)
    return {
        "images": rng.integers(0, LEVELS, (count, batch_size, *SHAPE), np.uint8),
        "conditioning": rng.integers(0, 2, (count, batch_size)).astype(np.float32),
    }


def assert_equal(a, b):
    """Bit for bit."""
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)
