"""A way to sample: which sampler, in how many steps, and where they lie."""

import dataclasses
from numbers import Real
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from vdm_jax import checks, timestep
from vdm_jax.types import Gamma, Tensor

Sampler = Literal["ancestral", "ddim", "dpm_solver", "heun"]
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)
Spacing = Literal["time", "gamma", "karras", "angle"]
SPACINGS: tuple[Spacing, ...] = get_args(Spacing)
_TABLE = 257  # times at which schedules of several features are averaged


@dataclasses.dataclass(frozen=True)
class Rule:
    """A sampler, its number of steps and where they lie."""

    sampler: Sampler
    """Name of the sampler, one of `SAMPLERS`."""
    num_steps: int
    """Number of steps, each one call of the network, of "heun" two."""
    spacing: Spacing | None = None
    """Spacing of the steps (`gammas`); by default "time", the chain of the bound, for "ancestral",
    and for the others "karras", for few steps."""
    eta: float = 0.0
    """Noise of "ddim", in [0, 1]: 0 for none, 1 for the posterior's variance."""

    def __post_init__(self) -> None:
        checks.choice(self.sampler, "sampler", SAMPLERS)
        checks.count(self.num_steps, "num_steps")
        if self.spacing is None:
            default = "time" if self.sampler == "ancestral" else "karras"
            object.__setattr__(self, "spacing", default)  # the dataclass is frozen
        checks.choice(self.spacing, "spacing", SPACINGS)
        if isinstance(self.eta, bool) or not isinstance(self.eta, Real) or not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be a number in [0, 1], got {self.eta!r}.")
        if self.eta and self.sampler != "ddim":
            raise ValueError(f"eta={self.eta} goes with the sampler 'ddim', got {self.sampler!r}.")

    @property
    def network_calls(self) -> int:
        """Number of calls of the network for each sample."""
        return 2 * self.num_steps if self.sampler == "heun" else self.num_steps

    @property
    def noisy(self) -> bool:
        """True if the steps draw noise."""
        return self.sampler == "ancestral" or self.eta > 0.0

    def gammas(self, gamma: Gamma) -> Tensor:
        """Returns the ends of the steps from gamma_1 down to gamma_0, by `timestep.steps`.

        "time" is uniform in t, through the schedule; "gamma" uniform in gamma, the log-SNR;
        "karras" in (sigma / alpha)^(1/7) (Karras et al. 2022, eq. 5); "angle" in
        arctan(sigma / alpha), the schedule of the cosine. Of the last three only the end points of
        `gamma` are used, if it is one for all features; else it is their mean that lies so, and
        each has its gamma of that time. Raises ValueError for a gamma that does not rise with t;
        inside jit, where its values are not known, the table is NaN then.
        """
        if self.spacing == "time":
            times = jnp.linspace(1.0, 0.0, self.num_steps + 1)
            return timestep.falling(timestep.steps(gamma, times))
        gamma_1, gamma_0 = timestep.steps(gamma, jnp.array([1.0, 0.0]))
        if gamma_1.ndim == 0:
            return timestep.falling(self._spaced(gamma_1, gamma_0))
        times = jnp.linspace(0.0, 1.0, _TABLE)
        # [times, examples], one time after the other, as all features of all may be large.
        one = lambda t: timestep.mean_gamma(timestep.gammas(gamma, t[None]))  # noqa: E731
        means = timestep.falling(jax.lax.map(one, times)[::-1])[::-1]
        spaced = self._spaced(means[-1], means[0])
        at = jax.vmap(jnp.interp, (1, 1, None), 1)(spaced, means, times)
        return timestep.falling(jax.vmap(gamma)(at))

    def _spaced(self, gamma_1: Tensor, gamma_0: Tensor) -> Tensor:
        """Returns the ends of the steps between two gammas, [num_steps + 1, *their shape]."""
        u = jnp.linspace(0.0, 1.0, self.num_steps + 1, dtype=gamma_1.dtype)
        u = u.reshape(-1, *(1 for _ in gamma_1.shape))
        if self.spacing == "gamma":
            inside = gamma_1 + (gamma_0 - gamma_1) * u
        elif self.spacing == "karras":
            first, last = jnp.exp(gamma_1 / 14.0), jnp.exp(gamma_0 / 14.0)
            inside = 14.0 * jnp.log(first + (last - first) * u)
        else:
            first, last = jnp.arctan(jnp.exp(gamma_1 / 2.0)), jnp.arctan(jnp.exp(gamma_0 / 2.0))
            inside = 2.0 * jnp.log(jnp.tan(first + (last - first) * u))
        # The ends to the bit.
        return jnp.concatenate([gamma_1[None], inside[1:-1], gamma_0[None]])
