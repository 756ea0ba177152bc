"""The mean over images of numbers drawn for each, and its standard error by cause."""

import dataclasses

import numpy as np

from vdm_jax import timestep


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over images, each the mean of its draws, and its standard error by cause."""

    mean: float
    standard_error: float
    """Standard deviation between images (or groups of them) over the root of their number."""
    monte_carlo: float = np.nan
    """Part of it due to the draws of time and noise; NaN where each image has one draw only."""

    @property
    def between(self) -> float:
        """The part due to the choice of images: sqrt(standard_error^2 - monte_carlo^2), or 0."""
        rest = self.standard_error**2 - self.monte_carlo**2
        return float(np.sqrt(np.maximum(rest, 0.0)))

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.standard_error:.4f}"


def estimate(
    draws: np.ndarray, groups: np.ndarray | None = None, t: np.ndarray | None = None
) -> Estimate:
    """Returns the mean and standard errors of numbers [repeats, images], whatever their unit.

    Args:
      draws: even and odd repeats are two independent samples of each image.
      groups: a label per image where some belong together (crops of one photo): then the standard
        error is that between groups.
      t: times [repeats, images], where they are spread evenly over [0, 1]: what depends on t alone
        then adds nothing to the error of the mean, and is taken out before errors are estimated.
    """
    count = draws.shape[1]
    centred = draws - (draws.mean() if t is None else _by_time(t, draws))
    # What `_by_time` fitted to noise is missing from the rest.
    centred *= 1.0 if t is None else np.sqrt(draws.size / max(draws.size - _bins(t), 1))
    images = centred.mean(axis=0)
    labels = np.arange(count) if groups is None else np.unique(groups, return_inverse=True)[1]
    sums = np.bincount(labels, weights=images - images.mean())
    number = len(sums)
    error = np.sqrt(np.sum(sums**2) * number / (number - 1)) / count if number > 1 else np.nan
    monte_carlo = _monte_carlo(centred)
    # Of few images both are rough, and the whole may come out below its part.
    error = np.fmax(error, monte_carlo) if number > 1 else error
    return Estimate(float(draws.mean()), float(error), monte_carlo)


def _monte_carlo(draws: np.ndarray) -> float:
    """Returns the standard error of the mean over images that the draws alone cause."""
    repeats, count = draws.shape
    if repeats == 1:
        return np.nan
    even, odd = draws[::2], draws[1::2]
    difference = even.mean(axis=0) - odd.mean(axis=0)
    # With n draws in all, n_0 and n_1 in the groups: Var(mean) = Var(difference) n_0 n_1 / n^2.
    variance = np.sum(difference**2) * len(even) * len(odd) / repeats**2
    return float(np.sqrt(variance)) / count


def _by_time(t: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Returns the mean of `draws` at their times: by bins, interpolated in between."""
    bins = _bins(t)
    means = timestep.profile(t, draws, bins).mean
    return np.interp(t, (np.arange(bins) + 0.5) / bins, means)


def _bins(t: np.ndarray) -> int:
    return int(np.clip(t.size // 8, 1, 64))
