"""Where the steps of a sampler lie: tables of gammas from gamma_1 down to gamma_0."""

from typing import Literal, get_args

import jax.numpy as jnp

from vdm_jax.timestep import check_num_steps
from vdm_jax.types import Gamma, Tensor

__all__ = ["SPACINGS", "Spacing", "table"]

Spacing = Literal["time", "gamma", "karras", "angle"]
SPACINGS: tuple[Spacing, ...] = get_args(Spacing)


def table(gamma: Gamma, num_steps: int, spacing: Spacing = "time") -> Tensor:
    """gamma_1 down to gamma_0 in `num_steps` steps, [num_steps + 1], by one of four spacings.

    "time" is uniform in t, through the schedule; "gamma" uniform in gamma, the log-SNR; "karras" in
    (sigma / alpha)^(1/7) (Karras et al. 2022, eq. 5); "angle" in arctan(sigma / alpha), the
    schedule of the cosine. Of the last three only the end points of `gamma` are used. Raises
    ValueError for other names.
    """
    check_num_steps(num_steps)
    if spacing == "time":
        return gamma(jnp.linspace(1.0, 0.0, num_steps + 1))
    gamma_1, gamma_0 = gamma(jnp.array([1.0, 0.0]))
    u = jnp.linspace(0.0, 1.0, num_steps + 1, dtype=gamma_1.dtype)
    match spacing:
        case "gamma":
            inside = gamma_1 + (gamma_0 - gamma_1) * u
        case "karras":
            first, last = jnp.exp(gamma_1 / 14.0), jnp.exp(gamma_0 / 14.0)
            inside = 14.0 * jnp.log(first + (last - first) * u)
        case "angle":
            first, last = jnp.arctan(jnp.exp(gamma_1 / 2.0)), jnp.arctan(jnp.exp(gamma_0 / 2.0))
            inside = 2.0 * jnp.log(jnp.tan(first + (last - first) * u))
        case _:
            raise ValueError(f"spacing must be one of {', '.join(SPACINGS)}, got {spacing!r}.")
    return jnp.concatenate([gamma_1[None], inside[1:-1], gamma_0[None]])  # the ends to the bit
