"""The mean over images of numbers drawn for each, and its standard error by cause."""

import dataclasses

import numpy as np

from vdm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over images, each the mean of its draws, and its standard error by cause."""

    mean: float
    standard_error: float  # deviation between images or groups over the root of them; NaN of one
    monte_carlo: float = np.nan  # its part due to the draws; NaN of one draw of each image

    @property
    def between(self) -> float:
        """The part due to the choice of images: sqrt(standard_error^2 - monte_carlo^2), or 0."""
        rest = self.standard_error**2 - self.monte_carlo**2
        return float(np.sqrt(np.maximum(rest, 0.0)))

    def __str__(self) -> str:
        if not np.isnan(self.standard_error):
            return f"{self.mean:.4f} ± {self.standard_error:.4f}"
        draws = "" if np.isnan(self.monte_carlo) else f" (± {self.monte_carlo:.4f} of the draws)"
        return f"{self.mean:.4f}{draws}"


def estimate(
    draws: np.ndarray, groups: np.ndarray | None = None, t: np.ndarray | None = None
) -> Estimate:
    """Returns the mean and standard errors of numbers [repeats, images], whatever their unit.

    Args:
      draws: even and odd repeats are two independent samples of each image.
      groups: a label per image where some belong together (crops of one photo): then the standard
        error is that between groups.
      t: times [repeats, images], where they are spread evenly over [0, 1): what depends on t alone
        then adds to the error of the mean only what its sum over these times leaves (`_of_times`),
        and is taken out before the rest of the error is estimated.

    Raises UserError for numbers that aren't finite: a mean without them would be another.
    """
    if not (good := np.isfinite(draws)).all():
        raise UserError(
            f"{np.sum(~good)} of {draws.size} draws of the bound are not finite: the model or an "
            "image has NaN or infinity; take an earlier checkpoint, or float32 for bfloat16"
        )
    count = draws.shape[1]
    centred, of_times = (draws - draws.mean(), 0.0) if t is None else _without_times(t, draws)
    images = centred.mean(axis=0)
    labels = np.arange(count) if groups is None else np.unique(groups, return_inverse=True)[1]
    sums = np.bincount(labels, weights=images - images.mean())
    number = len(sums)
    error = np.sqrt(np.sum(sums**2) * number / (number - 1)) / count if number > 1 else np.nan
    monte_carlo = np.hypot(_monte_carlo(centred), of_times)
    # Of few images both are rough, and the whole may come out below its part.
    error = np.fmax(np.hypot(error, of_times), monte_carlo) if number > 1 else error
    return Estimate(float(draws.mean()), float(error), float(monte_carlo))


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


def _without_times(t: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns `draws` less what depends on their times alone, and the error that this causes.

    It is a piecewise linear function, by least squares, with an effect of each image of unknown
    variance: of the images' own levels, however far apart, nothing is taken for one of the times.
    """
    repeats, count = draws.shape
    cells = int(np.clip(t.size // 8, 1, 64))
    knots = np.arange(cells + 1) / cells
    square, right = np.zeros((cells + 1, cells + 1)), np.zeros(cells + 1)
    sums = np.zeros((count, cells + 1))
    for times, values in zip(t, draws, strict=True):
        hats = np.maximum(1.0 - np.abs(times[:, None] - knots) * cells, 0.0)
        square, right, sums = square + hats.T @ hats, right + hats.T @ values, sums + hats
    share = 0.0  # of what images have in common that is their own: 0, then as the rest has it
    for _ in range(2 if repeats > 1 else 1):
        less = share / repeats
        of_time = np.linalg.lstsq(
            square - less * sums.T @ sums, right - less * sums.T @ draws.sum(axis=0), 1e-10
        )[0]
        rest = draws - np.interp(t, knots, of_time)
        images = rest.mean(axis=0) - rest.mean()
        within = rest - rest.mean(axis=0)
        noise = np.sum(within**2) / max(within.size - count, 1) / repeats
        used, share = share, 1.0 - min(noise / max(np.mean(images**2), 1e-300), 1.0)
    # What was fitted to noise is missing from the rest.
    for part, free, fitted in (
        (within, t.size - used * count, cells + 1),
        (images, t.size, (1.0 - used) * (cells + 1)),
    ):
        part *= np.sqrt(free / max(free - fitted, 1.0))
    return images + within, _of_times(t, knots, of_time)


def _of_times(t: np.ndarray, knots: np.ndarray, values: np.ndarray) -> float:
    """Returns the standard error of the mean of a function of t, given at knots, over these times.

    One uniform number moves all times of the even repeats, round from 1 to 0, and another those of
    the odd. With Fourier coefficients f_k of the function and p_k of the times' distribution, the
    mean's variance over it is the sum of |f_k|^2 |p_k|^2 over all k but 0.
    """
    cells = 1 << 14
    function = np.interp((np.arange(cells) + 0.5) / cells, knots, values)
    power, variance = np.abs(np.fft.rfft(function)[1:] / cells) ** 2, 0.0
    for half in (t[::2], t[1::2]):
        counts = np.bincount((half.ravel() * cells).astype(int) % cells, minlength=cells)
        variance += 2.0 * np.sum(power * np.abs(np.fft.rfft(counts)[1:] / t.size) ** 2)
    return float(np.sqrt(variance))
