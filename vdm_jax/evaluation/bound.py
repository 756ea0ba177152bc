"""The bound on a test set: one exact pass, with standard errors."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vdm_jax import checks, loss, timestep
from vdm_jax.evaluation import control_variates
from vdm_jax.evaluation.control_variates import Linear
from vdm_jax.evaluation.estimate import Estimate, estimate
from vdm_jax.evaluation.subject import Batches
from vdm_jax.timestep import Proposal
from vdm_jax.train import sharding
from vdm_jax.train.model import BITS, Batch, Bound, Model, Params, Unit, unit
from vdm_jax.types import Images, Key, PerExample, Tensor
from vdm_jax.vdm import VDM

TERMS = ("reconstruction", "prior", "diffusion")


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
        """Returns flat numbers for a log; no standard error of a single image."""
        key, total = self.unit.key, self.total
        numbers = {key: total.mean, f"{key}_standard_error": total.standard_error}
        numbers[f"{key}_monte_carlo_error"] = total.monte_carlo
        numbers |= {name: getattr(self, name).mean for name in TERMS}
        return {name: value for name, value in numbers.items() if not np.isnan(value)}


class Draws(NamedTuple):
    """Draws of the bound: one of each example of a batch, [batch], or all, [repeats, images]."""

    terms: loss.ElboTerms  # of the bound, in nats
    t: PerExample  # times; those given, where nothing depends on them
    weight: PerExample  # that multiplied the diffusion term, as t came from a proposal; else 1
    controls: Tensor | None = None  # variates [*shape, k] of that term without the weight, if any
    u: PerExample | None = None  # evenly spread numbers that became t; None: t itself

    def controlled(self, coefficients: np.ndarray | None) -> "Draws":
        """Returns them less any control variates, by `control_variates.fit` of other draws."""
        if coefficients is None:
            return self
        plain, controls = self.terms.diffusion / self.weight, cast(Tensor, self.controls)
        rest = control_variates.subtracted(self.t, plain, controls, coefficients)
        terms = self.terms._replace(diffusion=self.weight * cast(PerExample, rest))
        return self._replace(terms=terms, controls=None)


class Reduction(NamedTuple):
    """The means by which an evaluation of a VDM needs fewer draws; none changes the mean."""

    proposal: Proposal | None = None  # density of times; None for the uniform one
    linear: Linear | None = None  # denoiser that makes the control variates, if any
    coefficients: np.ndarray | None = None  # [bins, k], of the control variates
    calls: int = 0  # of the network, that it took to measure these


PLAIN = Reduction()

EvalStep = Callable[[Params, Batch, Key, int, int], tuple[Any, jax.Array]]
Times = Callable[[Key, jax.Array, jax.Array, jax.Array], PerExample]


def draw(
    bound: Bound, images: Images | Tensor, u: PerExample, keys: Key, by: Reduction = PLAIN
) -> Draws:
    """Returns one draw of each image's terms, from a uniform time and a key for each, [batch]."""
    t, weight = (u, jnp.ones_like(u)) if by.proposal is None else by.proposal.at(u)
    terms = bound.elbo_by_keys(images, t, keys)
    terms = terms._replace(diffusion=weight * terms.diffusion)
    if by.linear is None:
        return Draws(terms, t, weight, None, u)
    vdm = cast(VDM, bound)
    level = timestep.noise_level(t, vdm.gamma, vdm.num_steps)
    x, eps = loss.to_data(images, vdm.levels, vdm.mask), loss.noise(keys, vdm.event_shape)
    controls = by.linear.controls(x, eps, level.gamma_t)
    return Draws(terms, t, weight, 0.5 * level.weight[:, None] * controls, u)


def two_groups(key: Key, index: jax.Array, repeat: jax.Array, repeats: jax.Array) -> PerExample:
    """Returns uniform times [batch], spread evenly within the even and within the odd repeats.

    The two groups are independent, for `estimate`.
    """
    group = repeat % 2
    u = jax.random.uniform(jax.random.fold_in(key, group))
    return timestep.spread(u, index, repeat // 2, (repeats + 1 - group) // 2)


def over_devices(step: Callable, mesh: Mesh, params: Params) -> EvalStep:
    """Returns (params, batch, key, repeat, repeats) -> (what `step` does, "present"), compiled.

    Parameters are like `params`. The batch is split over the devices; all else is whole on all of
    them, also the results.
    """
    whole, split = sharding.replicated(mesh), sharding.split_over(mesh)
    shares = sharding.of_parameters(mesh, params)
    return jax.jit(
        lambda params, batch, *rest: (
            step(sharding.gathered(mesh, params), batch, *rest),
            batch["present"],
        ),
        in_shardings=(shares, split, whole, whole, whole),
        out_shardings=whole,
    )


def make_eval_step(
    model: Model, mesh: Mesh, by: Reduction = PLAIN, times: Times = two_groups
) -> EvalStep:
    """Returns (params, batch, key, repeat, repeats) -> (`Draws`, "present"), compiled.

    Noise and time are functions of the key, the repeat and the image's `index` alone.
    """

    def step(
        params: Params, batch: Batch, key: Key, repeat: jax.Array, repeats: jax.Array
    ) -> Draws:
        key_t, key_noise = jax.random.split(key)
        t = times(key_t, batch["index"], repeat, repeats)
        key_noise = jax.random.fold_in(key_noise, repeat)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key_noise, batch["index"])
        bound = model.bind_batch(params, batch)
        return draw(bound, model.data(batch["images"]), t, keys, by)

    return over_devices(step, mesh, jax.eval_shape(model.init, jax.random.key(0)))


def collect(
    eval_step: EvalStep, params: Params, batches: Batches, mesh: Mesh, key: Key, repeats: int = 1
) -> Any:
    """Returns what the step does, mostly `Draws`, `repeats` times for every image of `batches()`.

    Each batch has `images` [batch, *event], `conditioning`, `index` (the image's number in the set)
    and `present` (0 where the last batch is padded).
    """
    checks.count(repeats, "repeats")
    found = []
    for batch in batches():
        on_devices = sharding.put(batch, mesh)
        drawn: list = []
        for repeat in range(repeats):
            drawn.append(eval_step(params, on_devices, key, repeat, repeats))
            if repeat:  # one in flight while the one before comes back, never a long queue
                drawn[-2] = jax.device_get(drawn[-2])
        each, present = zip(*jax.device_get(drawn), strict=True)
        found.append(jax.tree.map(lambda *of, rows=present[0] > 0: np.stack(of)[:, rows], *each))
    if not found:
        raise ValueError("there are no images to evaluate.")
    return jax.tree.map(lambda *parts: np.concatenate(parts, axis=1).astype(np.float64), *found)


def summarise(
    draws: Draws, bound: Bound, groups: np.ndarray | None = None, mask: np.ndarray | None = None
) -> Evaluation:
    """Returns means and standard errors of the terms, in the unit of `bound` (`estimate`).

    With the `mask` of all images [images, *event] it is for each dimension that is there.
    """
    of_unit, terms = unit(bound), draws.terms
    t = np.asarray(draws.t if draws.u is None else draws.u)

    def of(nats: jax.Array, t: np.ndarray | None = None) -> Estimate:
        each = np.asarray(of_unit.of(nats, bound.event_shape, mask), np.float64)
        return estimate(each, groups, t)

    three = of(terms.reconstruction), of(terms.prior), of(terms.diffusion, t)
    return Evaluation(of(terms.total, t), *three, t.shape[1], t.shape[0], of_unit)
