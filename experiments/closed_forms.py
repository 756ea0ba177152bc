"""The numbers of docs/ladder.md that no network is trained for."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from vdm_jax import loss, pixels, process, schedule
from vdm_jax.gaussian import Gaussian
from vdm_jax.related import mixture
from vdm_jax.types import Gamma

SCHEDULES: dict[str, Gamma] = {
    "VDM, linear from -13.3 to 5": schedule.linear(-13.3, 5.0),
    "cosine from -13.3 to 5": schedule.cosine(-13.3, 5.0),
    "Nichol & Dhariwal, cosine, T = 1000": schedule.from_betas(schedule.cosine_betas(1000)),
    "Nichol & Dhariwal, cosine, T = 4000": schedule.from_betas(schedule.cosine_betas(4000)),
    "DDPM, T = 1000": schedule.from_betas(schedule.ddpm_betas()),
    # Song et al.'s integral of beta over [0, 1], of beta_min = 0.1 and beta_max = 20, is 10.05.
    "VP-SDE": schedule.beta_linear(-13.3, math.log(math.expm1(10.05))),
}


def prior_nats_per_dim(images: ArrayLike, levels: int) -> dict[str, float]:
    """Returns the prior matching term KL(q(z_1|x) || N(0, I)) in nats per dimension, by schedule.

    It is the mean over images [n, *event], integers in [0, levels).
    """
    x = pixels.encode(jnp.asarray(images), levels)
    ends = {name: gamma(jnp.ones(1))[0] for name, gamma in SCHEDULES.items()}
    return {name: float(jnp.mean(loss.prior(x, end))) / x[0].size for name, end in ends.items()}


def forgetting() -> list[dict[str, float]]:
    """Returns KL(q(z_t) || N(0, 1)) in nats of data N(0.7, 0.3^2) along a linear schedule."""
    data = Gaussian(jnp.array([0.7]), jnp.array([0.09]))
    times = jnp.linspace(0.0, 1.0, 5)
    rows = []
    for t, gamma in zip(times, schedule.linear(-8.0, 5.0)(times), strict=True):
        kl = process.marginal_of_gaussian(data, gamma).kl(Gaussian(jnp.zeros(1), jnp.ones(1)))
        rows.append({"t": float(t), "gamma": float(gamma), "kl": float(kl[0])})
    return rows


def reverse_step() -> list[dict[str, float]]:
    """Returns the mean KL in nats of a mixture's q(z_s|z_t) to its best Gaussian, by step size."""
    steps = (4.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
    with jax.enable_x64(True):
        data = mixture.Mixture.of(jnp.array([0.3, 0.5, 0.2]), jnp.array([-1.0, 0.1, 0.9]), 0.01)
        return [{"step": h, "kl": float(mixture.reverse_negentropy(data, -h, 0.0))} for h in steps]
