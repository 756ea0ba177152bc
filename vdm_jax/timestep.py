"""The times at which the diffusion loss is estimated, and how they are drawn.

Importance sampling: with t of density p the estimate f(t) / p(t) has the expectation of the loss f
at uniform times, and its variance is least for p(t) proportional to sqrt(E f(t)^2). So: measure
that root mean square (`profile`), make a density of it (`proposal`), and send the uniform times of
any method through it (`Proposal.at`).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int

from vdm_jax import checks
from vdm_jax.types import Gamma, Key, PerExample, Tensor

T = TypeVar("T", np.ndarray, Array)

Method = Literal["uniform", "antithetic"]
METHODS: tuple[Method, ...] = get_args(Method)


def uniform(key: Key, batch_size: int) -> PerExample:
    """Returns independent t ~ U[0, 1), of shape [batch_size]."""
    checks.count(batch_size, "batch_size", least=0)
    return jax.random.uniform(key, (batch_size,))


def antithetic(key: Key, batch_size: int) -> PerExample:
    """Returns low-discrepancy t_i = (u + i / batch_size) mod 1, u ~ U[0, 1) (VDM appendix I.1).

    Each t_i is uniform by itself, and each interval of length 1 / batch_size holds one of them.
    """
    checks.count(batch_size, "batch_size", least=0)
    u = jax.random.uniform(key)
    return jnp.mod(u + jnp.arange(batch_size, dtype=u.dtype) / batch_size, 1.0)


def spread(
    u: Tensor, index: Int[Array, " batch"], repeat: ArrayLike, repeats: ArrayLike
) -> PerExample:
    """Returns an evaluation's times t = (u + index / golden ratio + repeat / repeats) mod 1.

    With u ~ U[0, 1) each t is uniform. The `repeats` times of one image are equally spaced, and
    those of any run of consecutive images evenly spread, whatever the batches are.
    """
    # index / golden ratio mod 1 in integers: exact for any index, as floats are not.
    turns = (index.astype(jnp.uint32) * jnp.uint32(2654435769)).astype(u.dtype) / 2.0**32
    return jnp.mod(u + turns + repeat / repeats, 1.0)


def draw(key: Key, batch_size: int, method: Method) -> PerExample:
    """Returns times in [0, 1) by the named method."""
    checks.choice(method, "timesteps", METHODS)
    return uniform(key, batch_size) if method == "uniform" else antithetic(key, batch_size)


def grid(t: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
    """Returns the step (s, t) of a grid of `num_steps` that a time in [0, 1] falls into.

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
    """Returns a T up to which all i / T, and all i, differ in floats of this type."""
    return int(1.0 / jnp.finfo(dtype).eps)


def check_num_steps(num_steps: int) -> None:
    """Raises ValueError unless `num_steps` is an integer of at least 1, as 0 is not infinity."""
    checks.count(num_steps, "num_steps", hint="; continuous time is num_steps=None")


class NoiseLevel(NamedTuple):
    """Gamma at s (in continuous time t) and at t, and the weight of half the squared error."""

    gamma_s: PerExample
    gamma_t: PerExample
    weight: PerExample


def noise_level(t: PerExample, gamma: Gamma, num_steps: int | None) -> NoiseLevel:
    """Returns gamma(t) and the weight gamma'(t) (VDM eq. 17).

    For T steps t is rounded up to i / T, s is (i - 1) / T, and the weight T (SNR(s) / SNR(t) - 1)
    (VDM eq. 14).
    """
    if num_steps is None:
        gamma_t, weight = jax.jvp(lambda t: gammas(gamma, t), (t,), (jnp.ones_like(t),))
        gamma_s = gamma_t
    else:
        s, t = grid(t, num_steps)
        gamma_t, gamma_s = gammas(gamma, t), gammas(gamma, s)
        # SNR(s)/SNR(t) - 1: as gamma_s approaches gamma_t only expm1 keeps the digits.
        weight = num_steps * jnp.expm1(gamma_t - gamma_s)
    known = checks.known(weight)
    if known is not None and not np.all(good := (known >= 0.0) & (known < np.inf)):
        at = np.unravel_index(np.argmin(good), good.shape)
        raise ValueError(
            f"gamma must rise with t, and by so little in a step that exp of it is a {t.dtype}; "
            f"about t = {t[at[0]]} the loss would have the weight {known[at]}."
        )
    # Where values aren't known, a gamma that falls by more than rounding has no loss: of a weight
    # below 0 the worst model would have the lowest bound.
    rounding = 8.0 * jnp.finfo(weight.dtype).eps * (num_steps or 1) * (1.0 + jnp.abs(gamma_t))
    return NoiseLevel(gamma_s, gamma_t, jnp.where(weight < -rounding, jnp.nan, weight))


def gammas(gamma: Gamma, t: Tensor) -> Tensor:
    """Returns gamma(t) of times [n]: [n], or [n, *event] for a schedule of each feature.

    Of one time, [1], it is [batch, *event] for a schedule of each example. Raises ValueError for
    another shape, as that of one vector over the features.
    """
    # First of one time: a vector over two features would pass for the values at two times.
    for times in (t[:1], t):
        got, n = jax.eval_shape(gamma, times).shape, times.shape
        if got[:1] != n and (n != (1,) or len(got) < 2):
            said = f"gamma must map {n} to {n}, but returned {got}"
            raise ValueError(f"{said}; one of each example maps it to [batch, *event].")
    return gamma(t)


def check_event(gamma: Gamma, event_shape: Sequence[int]) -> None:
    """Raises ValueError unless gamma gives one number, or one for each feature of the event."""
    got, wanted = jax.eval_shape(gamma, jnp.zeros(1)).shape[1:], tuple(event_shape)
    fits = len(got) == len(wanted) and all(np.isin(got, 1) | np.equal(got, wanted))
    if got and not fits:
        raise ValueError(
            f"gamma must map times [n] to [n] or [n, *event], event {wanted}; of one time it "
            f"returned a first axis of any size and then {got}."
        )


def steps(gamma: Gamma, times: Tensor) -> Tensor:
    """Returns gamma(t) of times [n] one by one: [n] scalars, or [n, 1, *event] of each feature.

    For a schedule of each example it is [n, batch, *event].
    """
    if len(jax.eval_shape(gamma, times[:1]).shape) == 1:
        return gammas(gamma, times)
    return jax.vmap(lambda t: gammas(gamma, t[None]))(times)


def falling(gammas: Tensor) -> Tensor:
    """Returns the table of `steps` at falling times. Raises ValueError unless it falls itself.

    Inside jit, where its values are not known, it is NaN then.
    """
    falls = jnp.diff(gammas, axis=0) <= 0.0
    known = checks.known(gammas)
    if known is not None and not np.all(falls):
        at = np.unravel_index(np.argmin(falls), falls.shape)
        got = f"{known[(at[0] + 1, *at[1:])]} and, a step later, {known[at]}"
        raise ValueError(f"gamma must rise with t, got {got}.")
    return gammas * jnp.where(jnp.all(falls), 1.0, jnp.nan).astype(gammas.dtype)


def end_points(gamma: Gamma, dtype: DTypeLike = float) -> tuple[Tensor, Tensor]:
    """Returns gamma(0) and gamma(1), of two `steps`: scalars, [1, *event] or [batch, *event]."""
    gamma_0, gamma_1 = steps(gamma, jnp.array([0.0, 1.0], dtype))
    return gamma_0, gamma_1


def of_batch(gamma_t: Tensor, like: Tensor) -> Tensor:
    """Returns one of `steps` for each example, as a network gets it: [batch] or [batch, *event]."""
    if gamma_t.ndim > 1 and gamma_t.shape[0] not in (1, like.shape[0]):
        said = f"gamma is of {gamma_t.shape[0]} examples, the batch has {like.shape[0]}"
        raise ValueError(f"{said}: give a condition of each.")
    return jnp.broadcast_to(gamma_t, (*like.shape[:1], *gamma_t.shape[1:]))


def mean_gamma(gamma_t: Tensor) -> PerExample:
    """Returns one gamma of each example [batch], the mean of [batch, *event], or [batch] as it is.

    It rises with t, as they do, and so tells a network all of them.
    """
    return jnp.mean(gamma_t, axis=tuple(range(1, gamma_t.ndim))) if gamma_t.ndim > 1 else gamma_t


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
        """Returns times t of density p, and weights 1 / p(t), of uniform u in [0, 1] of any shape.

        t increases with u: evenly spread u give times evenly spread in the mass of p. The mean of
        weight times f(t) is that of f at uniform times, whatever f.
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
    """Losses measured in n equal bins of t, each [n], in nats, and the number of draws there."""

    rms: np.ndarray
    mean: np.ndarray
    draws: np.ndarray


def proposal(profile: ArrayLike, floor: float = 0.1) -> Proposal:
    """Returns the density (1 - floor) profile / mean(profile) + floor on equal bins of [0, 1].

    `floor` in (0, 1], the share of uniform times, bounds the weights by 1 / floor.
    """
    values = np.asarray(profile, np.float64)
    if values.ndim != 1 or not (np.isfinite(values) & (values >= 0.0)).all() or not values.any():
        wanted = "[n], finite, nonnegative and not all zero"
        raise ValueError(f"profile must be {wanted}, got {values.tolist()}.")
    if not 0.0 < floor <= 1.0:
        raise ValueError(f"floor must lie in (0, 1], as a share of uniform times, got {floor}.")
    density = mixed(values / values.max(), floor)  # no overflow in the sum
    cdf = jnp.asarray(np.append(0.0, np.cumsum(density)[:-1] / density.sum()), float)
    cdf = jnp.append(cdf, 1.0)
    if not np.all(np.diff(cdf) > 0.0):
        raise ValueError(
            f"floor = {floor} over {values.size} bins is lost in the rounding of {cdf.dtype}; "
            "raise it or take fewer bins."
        )
    return Proposal(cdf)


def mixed(profile: T, floor: float) -> T:
    """Returns (1 - floor) profile / mean(profile) + floor, of mean 1, of an array [n]."""
    return (1.0 - floor) * profile / profile.mean() + floor


def profile(
    t: ArrayLike, losses: ArrayLike, num_bins: int, weights: ArrayLike | None = None
) -> Profile:
    """Returns root mean square and mean of the losses at times `t` in `num_bins` equal bins.

    The `weights` of a `Proposal` make the averages within a bin those of uniform times. A bin
    without draws gets the linear interpolation between the nearest bins that have some.
    """
    checks.count(num_bins, "num_bins", most=10**6)
    t, losses = np.asarray(t, np.float64), np.asarray(losses, np.float64)
    weights = np.ones_like(t) if weights is None else np.asarray(weights, np.float64)
    if not t.shape == losses.shape == weights.shape or not t.size:
        shapes = f"t {t.shape}, losses {losses.shape} and weights {weights.shape}"
        raise ValueError(f"{shapes} must be of one shape and hold at least one draw.")
    good = (t >= 0.0) & (t <= 1.0) & np.isfinite(losses) & np.isfinite(weights) & (weights > 0.0)
    if not good.all():
        wanted = "t must lie in [0, 1], losses be finite and weights finite and positive"
        raise ValueError(f"{wanted}, which isn't so in {np.sum(~good)} of {t.size} draws.")
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
