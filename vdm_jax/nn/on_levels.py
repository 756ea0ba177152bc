"""Predictions that know that pixels are integers.

A network's x_hat is a mean of what x can be; at little noise, where that is but a few levels, the
levels themselves say more: x has to be one of them. A Gaussian of x_hat's mean and of a variance
that the network gives, taken at the levels alone, has a mean nearer to one of them. At more noise
than a level is wide nothing changes. Without this a network has to learn it, from sines and
cosines of its input (VDM section 3.4), or it pays for what the levels would have told.
"""

import jax
import jax.numpy as jnp

from vdm_jax.parameterization import to_x
from vdm_jax.process import expand
from vdm_jax.types import PerExample, Tensor

REACH = 4  # levels on either side of the nearest that count


def moved_to_levels(
    eps: Tensor, z_t: Tensor, gamma_t: PerExample, doubt: Tensor, levels: int
) -> Tensor:
    """Returns the prediction of eps whose x_hat is the mean over the levels, elementwise.

    `eps` and `z_t` are [batch, *event]; `doubt`, in (0, 1), is the variance of x about the x_hat of
    `eps` as a part of z_t's own noise, sigma^2 / alpha^2 = exp(gamma).
    """
    gamma = expand(gamma_t, z_t)
    bins = levels / 2.0  # in a distance of 1
    mean = bins * (to_x(eps, z_t, gamma_t, "eps") + 1.0) - 0.5
    moved = distance_to_levels(mean, bins**2 * jnp.exp(gamma) * doubt, levels)
    # Of z_t = alpha x + sigma eps; the difference of x_hat, not x_hat itself, which would cancel.
    return eps - jnp.exp(-0.5 * gamma) * moved / bins


def distance_to_levels(mean: Tensor, var: Tensor, levels: int) -> Tensor:
    """Returns E[k] - mean for k = 0, ..., levels - 1 with probabilities as N(k; mean, var) has.

    A variance above 1 counts as 1, at which the levels can't be told apart any more: the result is
    below 1e-7 there but for a mean within a few levels of the ends.
    """
    var = jnp.minimum(var, 1.0) + 1e-6
    nearest = jnp.round(jax.lax.stop_gradient(mean))
    steps = jnp.arange(-REACH, REACH + 1.0, dtype=mean.dtype)
    distance = (nearest - mean)[..., None]
    level = nearest[..., None] + steps
    # Relative to the nearest: the square of step + distance less that of distance, at least 0.
    exponents = -0.5 * steps * (steps + 2.0 * distance) / var[..., None]
    # Outside of all levels, where a network is wrong anyway, nothing moves.
    weights = jnp.where((level >= 0.0) & (level < levels), jnp.exp(exponents), 0.0)
    total = jnp.sum(weights, axis=-1)
    moment = jnp.sum(weights * (steps + distance), axis=-1)
    return moment / jnp.where(total > 0.0, total, 1.0)
