"""Sets of points, of different sizes, with a condition: a mask says which points are there.

    python -m examples.point_sets

Each set is of independent points of a mixture that depends on theta (`vdm_jax.data.point_sets`), so
the density of the points, given their number and theta, is known: the bound is compared with the
mean of its logarithm over the same test sets.
"""

import jax.numpy as jnp
import numpy as np
import optax

from vdm_jax import VDM, schedule
from vdm_jax.data import point_sets
from vdm_jax.nn.sets import SetTransformer
from vdm_jax.train import fit
from vdm_jax.train.model import Model

MOST = point_sets.MOST["mixture"]
NETWORK = SetTransformer(gamma_min=-7.0, gamma_max=5.0, width=32, num_blocks=2, head="v")


def data(count, seed):
    """Returns points [count, MOST, 2], their mask [count, MOST, 1], and the condition."""
    theta = np.random.default_rng(seed).uniform(-1.0, 1.0, count)
    x, mask = point_sets.draw("mixture", count, theta, seed)
    return {"x": x, "mask": mask, "condition": {"theta": theta[:, None]}}


def exact(x, mask, condition):
    """Returns the mean of -log p(x | number of points, theta), in nats per coordinate."""
    theta, number = condition["theta"][:, 0], mask.sum(axis=(1, 2)).astype(int)
    of_number = point_sets.number_log_prob("mixture", theta)[np.arange(len(x)), number]
    nats = of_number - point_sets.log_prob("mixture", x, mask, theta)
    return np.mean(nats / np.maximum(2 * number, 1))


def init(key):
    """Returns the weights of a new network."""
    condition = {"theta": jnp.zeros((1, 1))}
    return NETWORK.init(key, jnp.zeros((1, MOST, 2)), jnp.zeros(1), condition)


def bind(params, conditioning=None, dropout=None, mask=None):
    """Returns the model of a batch of sets; the mask is for the network and for the bound."""
    denoise = lambda z_t, gamma_t: NETWORK.apply(params, z_t, gamma_t, conditioning, mask)  # noqa: E731
    return VDM(denoise, schedule.linear(-7.0, 5.0), (MOST, 2), levels=None, kind="v", mask=mask)


def main(steps=3000, workdir=None):
    """Trains, prints the bound beside the exact mean, and returns both."""
    train, test, model = data(20_000, seed=0), data(2000, seed=1), Model(init, bind)
    fitted = fit(model, train, optax.adam(2e-3), steps, workdir, test, ema_rate=0.99)
    print(f"bound {fitted.evaluation.total} nats per coordinate, exact {exact(**test):.4f}")
    return fitted.evaluation.total, exact(**test)


if __name__ == "__main__":
    main()
