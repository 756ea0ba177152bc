"""How far each published schedule ends from the standard normal that sampling starts from."""

import math
from collections.abc import Mapping

import jax.numpy as jnp
from jax.typing import ArrayLike

from vdm_jax import loss, pixels, schedule
from vdm_jax.types import Gamma

__all__ = ["SCHEDULES", "nats_per_dim"]

# Song et al.'s integral of beta over [0, 1], of beta_min = 0.1 and beta_max = 20.
_VP_INTEGRAL = 10.05

SCHEDULES: dict[str, Gamma] = {
    "VDM, linear from -13.3 to 5": schedule.linear(-13.3, 5.0),
    "cosine from -13.3 to 5": schedule.cosine(-13.3, 5.0),
    "Nichol & Dhariwal, cosine, T = 1000": schedule.from_betas(schedule.cosine_betas(1000)),
    "Nichol & Dhariwal, cosine, T = 4000": schedule.from_betas(schedule.cosine_betas(4000)),
    "DDPM, T = 1000": schedule.from_betas(schedule.ddpm_betas()),
    "VP-SDE": schedule.beta_linear(-13.3, math.log(math.expm1(_VP_INTEGRAL))),
}


def nats_per_dim(
    images: ArrayLike, levels: int, schedules: Mapping[str, Gamma] = SCHEDULES
) -> dict[str, float]:
    """KL(q(z_T|x) || N(0, I)) in nats per dimension, averaged over images [n, *event], by name.

    `images` are integers in [0, levels), z_T is the latent at t = 1: the prior term of the bound.
    """
    x = pixels.encode(jnp.asarray(images), levels)
    dims = math.prod(x.shape[1:])
    return {
        name: float(jnp.mean(loss.prior(x, gamma(jnp.ones(1))[0]))) / dims
        for name, gamma in schedules.items()
    }
