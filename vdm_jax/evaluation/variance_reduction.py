"""Measurements before an evaluation, by which it needs fewer calls of the network.

On training images: where along t the loss is noisy, and what a linear denoiser says of that noise.
On the images themselves: how many draws are needed. None of these draws is used for the estimate,
to which all that is found here is therefore constant.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import loss, mixed, timestep
from vdm_jax.errors import UserError
from vdm_jax.evaluation import bound as evaluation
from vdm_jax.evaluation import control_variates
from vdm_jax.evaluation.bound import PLAIN, Draws, EvalStep, Reduction
from vdm_jax.evaluation.control_variates import Linear
from vdm_jax.evaluation.subject import Subject
from vdm_jax.train.model import Bound
from vdm_jax.train.progress import Bar
from vdm_jax.types import Key, PerExample

DENSITY_BINS = 50  # of t
COEFFICIENT_BINS = 20
IMAGES = 1024  # training images the plan is measured on
TIMES = 2  # of each of them
LINEAR_IMAGES = 20_000  # training images the linear denoiser is fitted to
PILOT_REPEATS = 16  # draws of each image that tell how many are needed
MARGIN = 1.1  # of the number of draws, as the error they are computed from is an estimate
MOST_REPEATS = 1_000_000


def plan(subject: Subject, importance: bool, controls: bool) -> Reduction:
    """Returns times by importance and control variates, if asked for, from training images alone.

    With times spread evenly the noise alone causes an error, which is least with a density in
    proportion to its standard deviation at t: that between two noises of one image at one time, of
    what the control variates leave. Raises UserError for images too large for these.
    """
    if not importance and not controls:
        return PLAIN
    by = PLAIN
    if controls:
        images = jnp.asarray(subject.images.train[:LINEAR_IMAGES])
        levels = mixed.of_images(subject.vdm.levels, subject.images.levels)
        by = Reduction(linear=Linear.of(loss.to_data(images, levels)))
    t, losses, variates = _pairs(subject, by)
    if not np.isfinite(losses).all():
        said = "the losses of training images, which are to tell how to draw, are not all finite"
        raise UserError(f"{said}: the model is broken, or leave --importance and the like out")
    if controls:
        coefficients = control_variates.fit(t, losses, variates, COEFFICIENT_BINS)
        losses = control_variates.subtracted(t, losses, variates, coefficients)
        by = by._replace(coefficients=coefficients)
    if importance:
        spread = timestep.profile(t, losses, DENSITY_BINS).rms
        by = by._replace(proposal=timestep.proposal(spread))
    return by._replace(calls=2 * t.size)


def _pairs(subject: Subject, by: Reduction) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns times [n], differences of two noises' losses [n], and of control variates [n, k]."""

    def times(key: Key, index: jax.Array, repeat: jax.Array, repeats: jax.Array) -> PerExample:
        """Returns times that two draws in a row share."""
        return timestep.spread(jax.random.uniform(key), index, repeat // 2, repeats // 2)

    step = evaluation.make_eval_step(subject.model, subject.mesh, by, times)
    key, few = jax.random.key(7), subject.first(IMAGES, "train")
    draws = drawn(step, few, key, 2 * TIMES, "pilot", "train")

    def between(draws: np.ndarray) -> np.ndarray:
        """Returns differences of two draws at one time, with the variance of one draw."""
        return (draws[::2] - draws[1::2]) / math.sqrt(2.0)

    t = np.asarray(draws.t)
    controls = np.zeros((*t.shape, 0)) if draws.controls is None else draws.controls
    losses = between(np.asarray(draws.terms.diffusion)).ravel()
    return t[::2].ravel(), losses, between(np.asarray(controls)).reshape(losses.size, -1)


def drawn(
    step: EvalStep, of: Subject, key: Key, repeats: int, words: str, part: str = "test"
) -> Any:
    """Returns `bound.collect` of a part of the subject's images, with a progress bar."""
    with Bar(words, of.calls(repeats, part)) as bar:
        call = bar.counted(step)
        return evaluation.collect(call, of.params, of.batches(part), of.mesh, key, repeats)


def enough(draws: Draws, bound: Bound, wanted: float) -> int:
    """Returns how many draws of each image bring the Monte-Carlo error below `wanted`.

    The error falls at least as the root of their number. `draws` are a few others than those that
    are then averaged: stopping when these look good would favour those that happen to agree.
    Raises UserError for more than a million draws of each image.
    """
    found = evaluation.summarise(draws, bound).total.monte_carlo
    count, images = draws.terms.total.shape
    # Of few images the error is rough: its square to sqrt(2 / images) of itself.
    margin = MARGIN * (1.0 + 2.0 * math.sqrt(2.0 / images))
    repeats = margin * count * (found / wanted) ** 2
    if not repeats <= MOST_REPEATS:
        least = wanted * math.sqrt(repeats / MOST_REPEATS)
        raise UserError(
            f"a Monte-Carlo error of {wanted:g} would take more than {MOST_REPEATS} draws of each "
            f"image; ask for at least {least:.1g}"
        )
    return max(2, math.ceil(repeats))


class Evaluator:
    """Draws of the bound, `repeats` of each image or those that the error `wanted` takes.

    `pilot_calls` counts calls of the network for draws that are no part of an estimate.
    """

    def __init__(self, by: Reduction, key: Key, repeats: int, wanted: float | None = None):
        self.by, self.key, self.repeats, self.wanted = by, key, repeats, wanted
        self.pilot_calls = by.calls

    def draw(self, subject: Subject) -> tuple[Draws, Draws]:
        """Returns draws of every test image: as they came, and less their control variates."""
        step = evaluation.make_eval_step(subject.model, subject.mesh, self.by)
        repeats = self.repeats
        if self.wanted is not None:
            trial = drawn(step, subject, jax.random.fold_in(self.key, 2), PILOT_REPEATS, "pilot")
            self.pilot_calls += np.size(trial.t)
            repeats = enough(trial.controlled(self.by.coefficients), subject.bound, self.wanted)
        draws = drawn(step, subject, self.key, repeats, "evaluating")
        return draws, draws.controlled(self.by.coefficients)
