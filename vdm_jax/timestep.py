"""Drawing the times at which the diffusion loss is estimated.

Importance sampling draws more of them where the loss varies more. The bound's diffusion term is the
integral of E f(t) over t in [0, 1], f being the loss of one draw of the noise. With t of density p
the estimate f(t) / p(t) has the same expectation; its variance, of independent draws, is least for
p(t) proportional to sqrt(E f(t)^2), where it is (int sqrt(E f^2) dt)^2 - (int E f dt)^2. So:
measure that root mean square (`profile`), make a density of it (`proposal`), and send the uniform
times of any method through it (`Proposal.at`).
"""

from numbers import Integral
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int

from vdm_jax import checks
from vdm_jax.types import Key, PerExample, Tensor

__all__ = [
    "METHODS",
    "Method",
    "Profile",
    "Proposal",
    "antithetic",
    "check_num_steps",
    "draw",
    "grid",
    "most_steps",
    "profile",
    "proposal",
    "spread",
    "uniform",
]

Method = Literal["uniform", "antithetic"]
METHODS: tuple[Method, ...] = get_args(Method)


def uniform(key: Key, batch_size: int) -> PerExample:
    """Independent t ~ U[0, 1), of shape [batch_size]."""
    checks.count(batch_size, "batch_size", least=0)
    return jax.random.uniform(key, (batch_size,))


def antithetic(key: Key, batch_size: int) -> PerExample:
    """Low-discrepancy t_i = (u + i / batch_size) mod 1, with one u ~ U[0, 1) (VDM appendix I.1).

    Each t_i is uniform by itself, so that every per-example loss keeps its expectation, and each
    interval of length 1 / batch_size holds one of them, so that their mean varies less.
    """
    checks.count(batch_size, "batch_size", least=0)
    u = jax.random.uniform(key)
    return jnp.mod(u + jnp.arange(batch_size, dtype=u.dtype) / batch_size, 1.0)


def spread(
    u: Tensor, index: Int[Array, " batch"], repeat: ArrayLike, repeats: ArrayLike
) -> PerExample:
    """Times for an evaluation: t = (u + index / golden ratio + repeat / repeats) mod 1, [batch].

    With u ~ U[0, 1) each t is uniform. The `repeats` times of one image are equally spaced, and
    those of any run of consecutive images are evenly spread, whatever the batches are: a padded
    last batch would break the strata of `antithetic`.
    """
    # index / golden ratio mod 1 in integers: exact for any index, as floats are not.
    turns = (index.astype(jnp.uint32) * jnp.uint32(2654435769)).astype(u.dtype) / 2.0**32
    return jnp.mod(u + turns + repeat / repeats, 1.0)


def draw(key: Key, batch_size: int, method: Method) -> PerExample:
    """Times in [0, 1) by the named method. Raises ValueError for an unknown name."""
    if method == "uniform":
        return uniform(key, batch_size)
    if method == "antithetic":
        return antithetic(key, batch_size)
    raise ValueError(f"timesteps must be one of {', '.join(METHODS)}, got {method!r}.")


def grid(t: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
    """The step (s, t) of a grid of `num_steps` that a time in [0, 1] falls into.

    t becomes i / T and s = (i - 1) / T with i = ceil(t T), at least 1: a draw of exactly 0, which
    has probability 2^-23 in float32, belongs to the first step and gives no negative s. Raises
    ValueError for a T beyond `most_steps`, or times out of [0, 1] where they are known.
    """
    check_num_steps(num_steps)
    checks.times(t)
    t = checks.as_float(t)
    if num_steps > most_steps(t.dtype):
        raise ValueError(
            f"num_steps = {num_steps} is lost in the rounding of {t.dtype}, which tells "
            f"{most_steps(t.dtype)} apart: take fewer, or continuous time (num_steps=None)."
        )
    u = t * num_steps
    nearest = jnp.rint(u)
    # A t that is i / T up to rounding belongs to step i, though t T may come out just above i.
    on_grid = jnp.abs(u - nearest) <= 4.0 * jnp.finfo(u.dtype).eps * jnp.maximum(u, 1.0)
    i = jnp.clip(jnp.where(on_grid, nearest, jnp.ceil(u)), 1, num_steps)
    return (i - 1.0) / num_steps, i / num_steps


def most_steps(dtype: DTypeLike) -> int:
    """The largest T of which all i / T, and all i, are told apart in floats of this type."""
    return int(1.0 / jnp.finfo(dtype).eps)


def check_num_steps(num_steps: int) -> None:
    """Raise ValueError unless `num_steps` is an integer of at least 1."""
    if isinstance(num_steps, bool) or not isinstance(num_steps, Integral) or num_steps < 1:
        raise ValueError(
            f"num_steps must be an integer of at least 1, got {num_steps!r} "
            "(continuous time is num_steps=None)."
        )


# ---- importance sampling ----


class Proposal(NamedTuple):
    """A density of times, constant on each of n equal bins of [0, 1]; a pytree of one array.

    `cdf` [n + 1] is its distribution function at the edges k / n: 0, ..., 1, increasing.
    """

    cdf: Float[Array, " edges"]

    @property
    def density(self) -> Float[Array, " bins"]:
        """p(t) on each bin, [n]; positive, and 1 on average."""
        return jnp.diff(self.cdf) * (self.cdf.shape[0] - 1)

    def at(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Uniform u in [0, 1], of any shape -> times t of density p, and weights 1 / p(t).

        t increases with u: times evenly spread over [0, 1] become times evenly spread in the mass
        of p. The mean of weight times f(t) is that of f at uniform times, whatever f; also with
        times rounded to a grid afterwards, a function of t like any other.
        """
        u = checks.as_float(u)
        cdf = self.cdf.astype(u.dtype)
        bins = cdf.shape[0] - 1
        k = jnp.clip(jnp.searchsorted(cdf, u, side="right") - 1, 0, bins - 1)
        # The width of the stored bin itself, so that weight and map agree whatever was rounded.
        width = cdf[k + 1] - cdf[k]
        t = (k + (u - cdf[k]) / width) / bins
        return jnp.clip(t, 0.0, 1.0), 1.0 / (bins * width)


class Profile(NamedTuple):
    """Losses measured in n equal bins of t, each [n]: in nats, and how many draws were there."""

    rms: np.ndarray
    mean: np.ndarray
    draws: np.ndarray


def proposal(profile: ArrayLike, floor: float = 0.1) -> Proposal:
    """The density (1 - floor) profile / mean(profile) + floor on equal bins of [0, 1].

    Args:
      profile: [n], nonnegative, concrete (not traced): how large the loss is in each bin. The
        variance is least for the root mean square, `Profile.rms`.
      floor: the share of uniform times, in (0, 1]. It bounds the weights by 1 / floor, hence the
        harm that a profile measured badly, or long ago, can do.

    Raises:
      ValueError: for a profile that is empty, not one-dimensional, negative, not finite or zero
        throughout, or a floor out of range.
    """
    values = np.asarray(profile, np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"profile must be [n], one value per bin, got shape {values.shape}.")
    bad = ~(np.isfinite(values) & (values >= 0.0))
    if bad.any():
        at = int(np.argmax(bad))
        raise ValueError(
            f"profile must be finite and nonnegative, got profile[{at}] = {values[at]}; "
            "it is a root mean square or a mean of losses."
        )
    if not values.any():
        raise ValueError("profile is zero in every bin; wanted a loss to be proportional to.")
    if not 0.0 < floor <= 1.0:
        raise ValueError(f"floor must lie in (0, 1], as a share of uniform times, got {floor}.")
    values = values / values.max()  # no overflow in the sum
    density = (1.0 - floor) * values / values.mean() + floor
    cdf = jnp.asarray(np.append(0.0, np.cumsum(density)[:-1] / density.sum()), float)
    cdf = jnp.append(cdf, 1.0)
    if not np.all(np.diff(cdf) > 0.0):
        raise ValueError(
            f"floor = {floor} over {values.size} bins is lost in the rounding of {cdf.dtype}; "
            "raise it or take fewer bins."
        )
    return Proposal(cdf)


def profile(
    t: ArrayLike, losses: ArrayLike, num_bins: int, weights: ArrayLike | None = None
) -> Profile:
    """Root mean square and mean of the diffusion loss in `num_bins` equal bins of t.

    Args:
      t: times in [0, 1] at which the loss was measured, of any shape.
      losses: the loss of each of these draws, of the same shape, in nats: as `loss.diffusion`
        returns it, without the weight of the proposal that t may come from.
      num_bins: n.
      weights: if t came from a `Proposal`, its weights: within a bin the averages are then those
        of uniform times (which matters if the two have different bins).

    Returns:
      `Profile`, in float64. A bin without draws gets the linear interpolation between
      the nearest bins that have some; beyond the outermost of these, their value.

    Raises:
      ValueError: for arrays of different shapes, no draws, times out of [0, 1], losses that are
        not finite, or weights that are not finite and positive.
    """
    checks.count(num_bins, "num_bins", most=10**6)
    t, losses = np.asarray(t, np.float64), np.asarray(losses, np.float64)
    weights = np.ones_like(t) if weights is None else np.asarray(weights, np.float64)
    if not t.shape == losses.shape == weights.shape or not t.size:
        raise ValueError(
            f"t {t.shape}, losses {losses.shape} and weights {weights.shape} must be "
            "of one shape and hold at least one draw."
        )
    for name, wanted, good in (
        ("t", "lie in [0, 1]", (t >= 0.0) & (t <= 1.0)),
        ("losses", "be finite", np.isfinite(losses)),
        ("weights", "be finite and positive", np.isfinite(weights) & (weights > 0.0)),
    ):
        if not good.all():
            raise ValueError(f"{name} must {wanted}, which {np.sum(~good)} of {t.size} do not.")
    # A draw of exactly 1 belongs to the last bin.
    bins = np.minimum((t * num_bins).astype(int), num_bins - 1).ravel()

    def sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(bins, values.ravel(), num_bins)

    count = np.bincount(bins, minlength=num_bins)
    (full,) = np.nonzero(count)
    total = sums(weights)[full]
    mean = sums(weights * losses)[full] / total
    rms = np.sqrt(sums(weights * losses**2)[full] / total)
    every = np.arange(num_bins)
    return Profile(np.interp(every, full, rms), np.interp(every, full, mean), count)
