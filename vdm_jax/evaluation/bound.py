"""The bound on a test set: one exact pass, with standard errors."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vdm_jax import control, loss, timestep
from vdm_jax.control import Linear
from vdm_jax.timestep import Proposal
from vdm_jax.train import sharding
from vdm_jax.train.model import BITS, Batch, Bound, Model, Params, Unit, unit
from vdm_jax.types import Images, Key, PerExample, Tensor
from vdm_jax.vdm import VDM

__all__ = [
    "Drawn",
    "Draws",
    "Estimate",
    "Evaluation",
    "Reduction",
    "collect",
    "draw",
    "estimate",
    "make_eval_step",
    "summarise",
]

Batches = Callable[[], Iterable[Mapping[str, np.ndarray]]]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over images and its standard error, split into its two causes.

    Attributes:
      mean: over images, each the mean of its draws.
      standard_error: of the mean as that of all images of the same source: standard deviation
        between images (or between groups of them that belong together) / root of their number.
        Holds both causes.
      monte_carlo: the part due to the draws of time and noise, which more repeats make smaller;
        NaN where each image has one draw only, or none (an exact value has 0).
      between: the rest, due to the choice of images; only more images make it smaller.
    """

    mean: float
    standard_error: float
    monte_carlo: float = np.nan

    @property
    def between(self) -> float:
        """sqrt(standard_error^2 - monte_carlo^2), 0 where the estimates leave nothing."""
        rest = self.standard_error**2 - self.monte_carlo**2
        return float(np.sqrt(np.maximum(rest, 0.0)))

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.standard_error:.4f}"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The bound on a test set, whole and term by term, in `unit`."""

    total: Estimate
    reconstruction: Estimate
    prior: Estimate
    diffusion: Estimate
    num_images: int
    repeats: int
    unit: Unit = BITS

    def scalars(self) -> dict[str, float]:
        """Flat numbers for a log; no standard error of a single image."""
        key = self.unit.key
        numbers = {
            key: self.total.mean,
            f"{key}_standard_error": self.total.standard_error,
            f"{key}_monte_carlo_error": self.total.monte_carlo,
            "reconstruction": self.reconstruction.mean,
            "prior": self.prior.mean,
            "diffusion": self.diffusion.mean,
        }
        return {name: value for name, value in numbers.items() if not np.isnan(value)}


@dataclasses.dataclass(frozen=True)
class Draws:
    """All draws of an evaluation, [repeats, images] each.

    Attributes:
      terms: of the bound, in nats.
      t: the times.
      weight: what the diffusion term was multiplied by, because t came from a proposal; 1 without.
      controls: control variates of the diffusion term without the weight, [repeats, images, k];
        None where the model has none.
    """

    terms: loss.ElboTerms
    t: np.ndarray
    weight: np.ndarray
    controls: np.ndarray | None = None

    def controlled(self, coefficients: np.ndarray) -> "Draws":
        """The same with the control variates subtracted from the diffusion term.

        `coefficients` [bins, k] are `control.fit`'s, of draws other than these: the expectation of
        each draw stays. Raises ValueError if there are no control variates.
        """
        if self.controls is None:
            raise ValueError("the draws have no control variates: give the model a `control`.")
        plain = self.terms.diffusion / self.weight
        rest = control.subtracted(self.t, plain, self.controls, coefficients)
        terms = self.terms._replace(diffusion=self.weight * rest)
        return dataclasses.replace(self, terms=terms, controls=None)


class Drawn(NamedTuple):
    """One draw of each example's bound, for an evaluation; all [batch]."""

    terms: loss.ElboTerms
    """Terms in nats."""
    t: PerExample
    """Times; where there are none, those given, on which nothing depends."""
    weight: PerExample
    """Factor by which the diffusion term was multiplied."""
    controls: Tensor | None = None
    """Control variates of the diffusion term without that factor, [batch, k], of mean zero at each
    t; None without a linear denoiser."""


class Reduction(NamedTuple):
    """The means by which an evaluation of a VDM needs fewer draws; neither changes the mean."""

    proposal: Proposal | None = None
    """Density from which times are drawn; None for the uniform one."""
    linear: Linear | None = None
    """Linear denoiser that makes the control variates; None for none."""


PLAIN = Reduction()
"""No reduction: uniform times, no control variates."""

EvalStep = Callable[[Params, Batch, Key, int, int], tuple[Drawn, jax.Array]]


def draw(
    bound: Bound, images: Images | Tensor, u: PerExample, keys: Key, by: Reduction = PLAIN
) -> Drawn:
    """Returns one draw of each image's terms, from a uniform time and a key for each, [batch]."""
    t, weight = (u, jnp.ones_like(u)) if by.proposal is None else by.proposal.at(u)
    terms = bound.elbo_by_keys(images, t, keys)
    terms = terms._replace(diffusion=weight * terms.diffusion)
    if by.linear is None:
        return Drawn(terms, t, weight)
    vdm = cast(VDM, bound)
    level = loss.noise_level(t, vdm.gamma, vdm.num_steps)
    x, eps = loss.to_data(images, vdm.levels), loss.noise(keys, vdm.event_shape)
    controls = by.linear.controls(x, eps, level.gamma_t)
    return Drawn(terms, t, weight, 0.5 * level.weight[:, None] * controls)


def make_eval_step(model: Model, mesh: Mesh, by: Reduction = PLAIN) -> EvalStep:
    """Returns (params, batch, key, repeat, repeats) -> (`Drawn`, mask [batch]), compiled.

    That is one draw of each image's terms, number `repeat` of `repeats`. Noise and time
    are functions of the key, the repeat and the image's `index` alone: batch size, padding and
    devices don't matter. Parameters lie on the devices as `sharding.of_parameters` has it.
    Even and odd repeats are two groups with independent times, equally spaced within a group; the
    difference of the groups tells the Monte-Carlo error (`estimate`).
    """

    def step(
        params: Params, batch: Batch, key: Key, repeat: jax.Array, repeats: jax.Array
    ) -> tuple[Drawn, jax.Array]:
        key_t, key_noise = jax.random.split(key)
        group = repeat % 2
        u = jax.random.uniform(jax.random.fold_in(key_t, group))
        t = timestep.spread(u, batch["index"], repeat // 2, (repeats + 1 - group) // 2)
        key_noise = jax.random.fold_in(key_noise, repeat)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key_noise, batch["index"])
        # The mask of all hosts, as the draws.
        whole_params = sharding.gathered(mesh, params)
        bound = model.bind(whole_params, batch["conditioning"])
        return draw(bound, model.data(batch["images"]), t, keys, by), batch["mask"]

    whole, split = sharding.replicated(mesh), sharding.split_over(mesh)
    shares = sharding.of_parameters(mesh, jax.eval_shape(model.init, jax.random.key(0)))
    return jax.jit(step, in_shardings=(shares, split, whole, whole, whole), out_shardings=whole)


def collect(
    eval_step: EvalStep, params: Params, batches: Batches, mesh: Mesh, key: Key, repeats: int = 1
) -> Draws:
    """`repeats` draws of every image that `batches()` gives, each exactly once per repeat.

    Args:
      batches: called once; each of its dicts has `images` [batch, *event], and `conditioning`,
        `index` (the image's number in the set) and `mask` (0 where the last batch is padded).
      key: settles all times and noise.
      repeats: draws of time and noise per image.

    Raises:
      ValueError: if there are no images, or `repeats` is below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}.")
    found: list[Drawn] = []
    for batch in batches():
        on_devices = sharding.put(batch, mesh)
        drawn: list = []
        for repeat in range(repeats):
            drawn.append(eval_step(params, on_devices, key, repeat, repeats))
            if repeat:  # one in flight while the one before comes back, never a long queue
                drawn[-2] = jax.device_get(drawn[-2])
        kept = [
            jax.tree.map(lambda values, rows=mask > 0: values[rows], one)
            for one, mask in jax.device_get(drawn)
        ]
        found.append(jax.tree.map(lambda *repeats: np.stack(repeats), *kept))
    if not found:
        raise ValueError("there are no images to evaluate.")
    whole = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1).astype(np.float64), *found)
    return Draws(*whole)


def summarise(draws: Draws, bound: Bound, groups: np.ndarray | None = None) -> Evaluation:
    """Returns means and standard errors of the terms, in the unit of `bound`.

    `groups` are as in `estimate`.
    """
    of_unit = unit(bound)

    def of(nats: jax.Array, t: np.ndarray | None = None) -> Estimate:
        return estimate(np.asarray(of_unit.of(nats, bound.event_shape), np.float64), groups, t)

    repeats, count = draws.t.shape
    terms = draws.terms
    return Evaluation(
        total=of(terms.total, draws.t),
        reconstruction=of(terms.reconstruction),
        prior=of(terms.prior),
        diffusion=of(terms.diffusion, draws.t),
        num_images=count,
        repeats=repeats,
        unit=of_unit,
    )


def estimate(
    draws: np.ndarray, groups: np.ndarray | None = None, t: np.ndarray | None = None
) -> Estimate:
    """Mean and standard errors of numbers [repeats, images], whatever their unit.

    Args:
      draws: even and odd repeats are two independent samples of each image.
      groups: a label per image where some belong together (crops of one photo): then the standard
        error is that between groups. None: each image for itself.
      t: the draws' times [repeats, images], where they are spread evenly over [0, 1] as by
        `make_eval_step`: then what depends on t alone adds nothing to the error of the mean, and
        is taken out of the draws before errors are estimated. None: no times.
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
    """Standard error of the mean over images that the draws alone cause, for draws as they are."""
    repeats, count = draws.shape
    if repeats == 1:
        return np.nan
    even, odd = draws[::2], draws[1::2]
    difference = even.mean(axis=0) - odd.mean(axis=0)
    # With n draws in all, n_0 and n_1 in the groups: Var(mean) = Var(difference) n_0 n_1 / n^2.
    variance = np.sum(difference**2) * len(even) * len(odd) / repeats**2
    return float(np.sqrt(variance)) / count


def _by_time(t: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """The mean of `draws` as a function of their times: by bins, interpolated in between."""
    bins = _bins(t)
    means = timestep.profile(t, draws, bins).mean
    return np.interp(t, (np.arange(bins) + 0.5) / bins, means)


def _bins(t: np.ndarray) -> int:
    return int(np.clip(t.size // 8, 1, 64))
