"""What is measured before an evaluation so that it needs fewer calls of the network.

On training images: where along t the loss is noisy, and what a linear denoiser says of that noise.
On the images themselves, with draws that are then thrown away: how many are needed. None of these
draws is used for the estimate, to which all that is found here is therefore constant.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vdm_jax import control, loss, timestep
from vdm_jax.control import Linear
from vdm_jax.data import ImageData
from vdm_jax.evaluation import bound as evaluation
from vdm_jax.evaluation.bound import PLAIN, Drawn, Draws, Reduction
from vdm_jax.run import build as setup
from vdm_jax.run.cli import UserError
from vdm_jax.run.restore import Restored
from vdm_jax.train import sharding
from vdm_jax.train.model import Batch, Bound, Model, unit
from vdm_jax.types import Key

__all__ = ["Evaluator", "Plan", "enough", "evaluation_cost", "linear", "plan"]

DENSITY_BINS = 50  # of t
COEFFICIENT_BINS = 20
IMAGES = 1024  # training images the plan is measured on
TIMES = 2  # of each of them
LINEAR_IMAGES = 20_000  # training images the linear denoiser is fitted to
PILOT_REPEATS = 16  # draws of each image that tell how many are needed
MARGIN = 1.1  # of the number of draws, as the error they are computed from is an estimate
MOST_REPEATS = 1_000_000

Row = dict[str, Any]


class Plan(NamedTuple):
    """How an evaluation is to draw, and what it is to subtract."""

    by: Reduction
    """Proposal and linear denoiser, as asked for."""
    coefficients: np.ndarray | None
    """Of the control variates, [bins, k]."""
    calls: int
    """Of the network, that this took: one for each image, time and noise."""

    def controlled(self, draws: Draws) -> Draws:
        """`draws` less their control variates, if the plan has any."""
        return draws if self.coefficients is None else draws.controlled(self.coefficients)


def plan(trained: Restored, size: int, mesh: Mesh, importance: bool, controls: bool) -> Plan:
    """Times by importance and control variates, each if asked for, from training images alone.

    Times spread evenly leave the noise alone to cause an error, which is least with a density in
    proportion to its standard deviation at t: that between two noises of one image at one time, of
    what the control variates leave.

    Raises UserError for images too large for control variates.
    """
    if not importance and not controls:
        return Plan(PLAIN, None, 0)
    by = Reduction(linear=linear(trained.images) if controls else None)
    t, losses, variates, calls = _pairs(trained, by, size, mesh)
    coefficients = None
    if controls:
        coefficients = control.fit(t, losses, variates, COEFFICIENT_BINS)
        losses = control.subtracted(t, losses, variates, coefficients)
    if importance:
        spread = timestep.profile(t, losses, DENSITY_BINS).rms
        by = by._replace(proposal=timestep.proposal(spread))
    return Plan(by, coefficients, calls)


def linear(images: ImageData) -> Linear:
    """The linear denoiser of the training images. Raises UserError if they are too large."""
    try:
        return Linear.of(loss.to_data(jnp.asarray(images.train[:LINEAR_IMAGES]), images.levels))
    except ValueError as error:
        raise UserError(f"--control_variates: {error}") from error


def _pairs(
    trained: Restored, by: Reduction, size: int, mesh: Mesh
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Times [n], differences of two noises' losses [n] and control variates [n, k], and calls."""
    whole, split = sharding.replicated(mesh), sharding.split_over(mesh)

    def draw(params: Any, batch: Batch, key: Key, number: jax.Array) -> tuple[Drawn, jax.Array]:
        key_t, key_noise = jax.random.split(key)
        t = timestep.spread(jax.random.uniform(key_t), batch["index"], number // 2, TIMES)
        keys = jax.random.fold_in(key_noise, number)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(keys, batch["index"])
        whole_params = sharding.gathered(mesh, params)
        bound = trained.model.bind(whole_params, batch["conditioning"])
        images = trained.model.data(batch["images"])
        return evaluation.draw(bound, images, t, keys, by), batch["mask"]

    def step(params: Any, batch: Batch, key: Key, repeat: int, _: int) -> tuple[Drawn, jax.Array]:
        return compiled(params, batch, key, np.uint32(repeat))

    shares = sharding.of_parameters(mesh, trained.params)
    compiled = jax.jit(draw, in_shardings=(shares, split, whole, whole), out_shardings=whole)
    batches = setup.batches(_first(trained.images), size, "train")
    draws = evaluation.collect(step, trained.params, batches, mesh, jax.random.key(7), 2 * TIMES)

    # Of two draws at one time each, as differences over root 2: the variance is that of one.
    def between(draws: np.ndarray) -> np.ndarray:
        return (draws[::2] - draws[1::2]) / math.sqrt(2.0)

    t, losses = draws.t[::2], between(np.asarray(draws.terms.diffusion))
    controls = np.zeros((*draws.t.shape, 0)) if draws.controls is None else draws.controls
    return t.ravel(), losses.ravel(), between(controls).reshape(t.size, -1), draws.t.size


def _first(images: ImageData) -> ImageData:
    """The data set with its first training images only."""
    labels = images.labels
    if labels is not None:
        labels = {**labels, "train": labels["train"][:IMAGES]}
    return dataclasses.replace(images, train=images.train[:IMAGES], labels=labels)


def enough(draws: Draws, bound: Bound, wanted: float) -> int:
    """How many draws of each image bring the Monte-Carlo error below `wanted`, from a few draws.

    The error falls at least as the root of their number. It is itself an estimate, here and in the
    end, hence a margin. The number must not depend on the draws that are then averaged: stopping
    when these look good would favour those that happen to agree. So `draws` are others, of a key
    of their own.

    Raises UserError for an error that calls for more than a million draws of each image.
    """
    found = evaluation.summarise(draws, bound).total.monte_carlo
    repeats = MARGIN * len(draws.t) * (found / wanted) ** 2
    if not repeats <= MOST_REPEATS:
        least = found * math.sqrt(MARGIN * len(draws.t) / MOST_REPEATS)
        raise UserError(
            f"--monte_carlo_error={wanted:g} would take more than {MOST_REPEATS} draws of each "
            f"image; ask for at least {least:.1g}"
        )
    return max(2, math.ceil(repeats))


@dataclasses.dataclass
class Evaluator:
    """Draws of the bound of test images, by one plan.

    Attributes:
      trained: its parameters.
      plan: what is subtracted.
      size: images at once.
      mesh: the devices.
      key: settles all draws.
      repeats: draws of each image, where no error is asked for.
      wanted: the Monte-Carlo error to draw for, in the model's unit; None for `repeats`.
      pilot_calls: of the network, for draws that are no part of an estimate, so far.
    """

    trained: Restored
    plan: Plan
    size: int
    mesh: Mesh
    key: Key
    repeats: int
    wanted: float | None = None
    pilot_calls: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.pilot_calls = self.plan.calls

    def draw(self, images: ImageData, model: Model) -> tuple[Draws, Draws]:
        """Draws of every test image: as they came, and less their control variates if any.

        `model` is the trained one, perhaps with another number of steps.
        """
        step = evaluation.make_eval_step(model, self.mesh, self.plan.by)
        batches = setup.batches(images, self.size)

        def drawn(key: Key, repeats: int) -> tuple[Draws, Draws]:
            draws = evaluation.collect(step, self.trained.params, batches, self.mesh, key, repeats)
            return draws, self.plan.controlled(draws)

        repeats = self.repeats
        if self.wanted is not None:
            _, trial = drawn(jax.random.fold_in(self.key, 2), PILOT_REPEATS)
            self.pilot_calls += trial.t.size
            repeats = enough(trial, model.bind(self.trained.params), self.wanted)
        return drawn(self.key, repeats)


# ---- what it saves ----


def evaluation_cost(
    trained: Restored,
    mesh: Mesh,
    size: int,
    repeats: int = 32,
    seeds: int = 4,
    wanted: float = 1e-3,
) -> list[Row]:
    """What one call of the network is worth in an evaluation by each method, measured.

    Each row has the variance that one call of the network leaves (squares of the bound's unit),
    from the errors that the evaluations claim, and the one that their means show over the
    seeds, which of few seeds is rough; the calls for the error `wanted`; how many times fewer
    these are than with independent uniform times and all noise drawn; and the calls that the plan
    took besides. The first row is the variance within images of the evenly spread draws: each by
    itself is such a draw.
    """
    methods = (
        ("evenly spread times", False, False),
        ("evenly spread, importance", True, False),
        ("evenly spread, control variates", False, True),
        ("evenly spread, importance, control variates", True, True),
    )
    rows: list[Row] = []
    for name, importance, controls in methods:
        made = plan(trained, size, mesh, importance, controls)
        bound = trained.bound
        step = evaluation.make_eval_step(trained.model, mesh, made.by)
        found = []
        for seed in range(seeds):
            batches = setup.batches(trained.images, size)
            key = jax.random.key(seed)
            draws = evaluation.collect(step, trained.params, batches, mesh, key, repeats)
            if not rows:
                rows.append(_cost("independent uniform times", _independent(draws, bound), 0))
            draws = made.controlled(draws)
            found.append(evaluation.summarise(draws, bound).total)
        calls = repeats * len(trained.images.test)
        claimed = calls * float(np.mean([one.monte_carlo**2 for one in found]))
        shown = calls * float(np.var([one.mean for one in found], ddof=1))
        rows.append(_cost(name, claimed, made.calls) | {"variance_over_seeds": shown})
    for row in rows:
        row["calls"] = math.ceil(row["variance"] / wanted**2)
        row["times_fewer"] = rows[0]["variance"] / row["variance"]
    return rows


def _cost(method: str, variance: float, plan_calls: int) -> Row:
    return {"method": method, "variance": variance, "plan_calls": plan_calls}


def _independent(draws: Draws, bound: Bound) -> float:
    """The variance of one draw of an image whose time is uniform and independent of others."""
    bits = np.asarray(unit(bound).of(draws.terms.total, bound.event_shape), np.float64)
    return float(np.mean(np.var(bits, axis=0)))
