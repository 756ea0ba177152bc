"""What an evaluation measures: the bound, its profile over t, other bounds on the likelihood."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import bounds, flow, loss, timestep
from vdm_jax.errors import UserError
from vdm_jax.evaluation.bound import Draws, over_devices, summarise
from vdm_jax.evaluation.estimate import Estimate, estimate
from vdm_jax.evaluation.subject import Subject
from vdm_jax.evaluation.variance_reduction import Evaluator, plan
from vdm_jax.ode import Solver
from vdm_jax.pixels import Dequantization
from vdm_jax.train import sharding
from vdm_jax.train.model import BITS, Batch, Bound, Params, Unit, unit
from vdm_jax.types import Key, PerExample
from vdm_jax.vdm import VDM

__all__ = [
    "Chains",
    "Ode",
    "Row",
    "Settings",
    "chains",
    "measure",
    "of_draws",
    "of_ode",
    "per_image",
    "profile",
    "variance",
]

BINS = 50  # of a profile over t

Row = dict[str, Any]


class Chains(NamedTuple):
    """Settings of the importance-weighted bound."""

    number: int
    """Number of chains, K."""
    num_steps: int = 100
    """Number of steps of each."""
    images: int = 64
    """Number of images that it is computed for."""


class Ode(NamedTuple):
    """Settings of the likelihood by the probability-flow ODE."""

    images: int
    """Number of images that it is computed for."""
    dequantizations: tuple[Dequantization, ...] = ("truncated_normal",)
    """Dequantisations, a row for each."""
    samples: int = 1
    """Draws of the dequantisation that one bound is made of."""
    solver: Solver = Solver()
    """Settings of its solver."""


class Settings(NamedTuple):
    """What an evaluation is asked for."""

    repeats: int
    """Draws of each image."""
    num_steps: tuple[int | None, ...] = (None,)
    """Numbers of steps of a VDM, a row for each."""
    seed: int = 0
    """Seed of all draws."""
    monte_carlo_error: float | None = None
    """Error that takes the place of `repeats`: as many draws as bring it below."""
    importance: bool = False
    """Whether times are drawn by importance."""
    control_variates: bool = False
    """Whether control variates are subtracted."""
    chains: Chains | None = None
    """Importance-weighted bound, if any."""
    ode: Ode | None = None
    """Likelihood by the ODE, if any."""


def measure(subject: Subject, asked: Settings, say: Callable[[Row], None]) -> dict[str, Any]:
    """Returns all that the settings ask for, as one JSON object; `say` gets each row when found."""
    is_vdm = isinstance(subject.bound, VDM)
    key = jax.random.key(asked.seed)
    by = plan(subject, asked.importance, asked.control_variates)
    evaluator = Evaluator(by, key, asked.repeats, asked.monte_carlo_error)
    found: dict[str, Any] = {"groups": None, "rows": [], "pilot_calls": 0, "failed": None}
    found |= {"note": subject.bound.note, "profile": {}}
    if subject.groups is not None:
        found["groups"] = len(np.unique(subject.groups))

    def add(row: Row) -> None:
        found["rows"].append(row)
        say(row)

    def drawn(some: Subject, num_steps: int | None, words: str = "") -> Draws:
        """Adds a row of the bound, and returns its draws without control variates."""
        of = some.at(num_steps) if is_vdm else some
        draws, controlled = evaluator.draw(of)
        row = of_draws(controlled, of.bound, of.groups)
        add(row | {"quantity": row["quantity"] + words})
        return draws

    def compared(some: Subject, num_steps: int | None) -> Subject:
        """Adds the bound on the very images that another one is computed for."""
        if len(some.images.test) < len(subject.images.test) or num_steps not in asked.num_steps:
            drawn(some, num_steps, f", first {len(some.images.test)} images")
        return some

    for num_steps in asked.num_steps:
        draws = drawn(subject, num_steps)
        if is_vdm and (num_steps is None or not found["profile"]):
            found["profile"] = profile(draws, subject.vdm)
    key_chain, key_ode = jax.random.split(jax.random.fold_in(key, 1))
    if asked.chains:
        some = compared(subject.first(asked.chains.images), asked.chains.num_steps)
        add(chains(some, asked.chains, key_chain))
    if asked.ode:
        some = compared(subject.first(asked.ode.images), None)
        try:
            for method in asked.ode.dequantizations:
                add(of_ode(some, asked.ode, method, key_ode))
        except UserError as error:  # what was found before is reported nevertheless
            found["failed"] = str(error)
    return found | {"pilot_calls": evaluator.pilot_calls}


def of_draws(draws: Draws, model: Bound, groups: np.ndarray | None = None) -> Row:
    """Returns a row of the bound and its three terms."""
    result = summarise(draws, model, groups)
    terms = {
        name: dataclasses.asdict(getattr(result, name))
        for name in ("reconstruction", "prior", "diffusion")
    }
    words = f"bound, {model.words}", "variational bound"
    row = _row(words, result.total, (result.repeats, result.num_images), 1, result.unit)
    return row | {"num_steps": getattr(model, "num_steps", None), "terms": terms}


def _row(
    words: tuple[str, str],
    of: Estimate,
    shape: tuple[int, ...],
    calls: float,
    unit: Unit = BITS,
) -> Row:
    """`words` are quantity and kind, `shape` [draws, images], `calls` those of one draw's."""
    draws, images = shape
    return {
        "quantity": words[0],
        "kind": words[1],
        "unit": unit.name,
        unit.key: of.mean,
        "standard_error": of.standard_error,
        "monte_carlo_error": of.monte_carlo,
        "between_images_error": of.between,
        "num_images": images,
        "draws": draws,
        "network_calls": round(images * draws * calls),
    }


def profile(draws: Draws, vdm: VDM) -> dict[str, Any]:
    """Returns the diffusion loss by bins of t, in the bound's unit, and gamma there."""
    of_unit = unit(vdm)
    losses = of_unit.of(draws.terms.diffusion / draws.weight, vdm.event_shape)
    found = timestep.profile(draws.t, losses, BINS, draws.weight)
    centres = (np.arange(BINS) + 0.5) / BINS
    return {
        "unit": of_unit.name,
        "t": centres.tolist(),
        "gamma": np.asarray(vdm.gamma(jnp.asarray(centres))).tolist(),
        "mean": found.mean.tolist(),
        "rms": found.rms.tolist(),
    }


def variance(draws: Draws, event_shape: tuple[int, ...]) -> float:
    """Returns the variance of one image, one uniform t and one noise, in bits per dim."""
    return float(np.var(loss.bits_per_dim(draws.terms.total, event_shape)))


# ---- other bounds on the same likelihood ----


def chains(subject: Subject, asked: Chains, key: Key) -> Row:
    """Returns a row of the importance-weighted bound."""

    def nats(params: Params, batch: Batch, key: Key) -> tuple[PerExample, jax.Array]:
        vdm = subject.model.bind(params, batch["conditioning"])
        vdm = vdm._replace(levels=subject.images.levels, num_steps=asked.num_steps)
        log_weights = bounds.chains(vdm, key, batch["images"], asked.number)
        return bounds.importance_weighted(log_weights), jnp.zeros(())

    bits, _ = per_image(nats, subject, key)
    words = (
        f"bound of {asked.number} chain(s), T = {asked.num_steps}",
        f"importance-weighted bound, K = {asked.number}",
    )
    found = estimate(bits, subject.groups)
    row = _row(words, found, bits.shape, asked.number * asked.num_steps)
    return row | {"chains": asked.number, "num_steps": asked.num_steps}


def of_ode(subject: Subject, asked: Ode, method: Dequantization, key: Key) -> Row:
    """Returns a row of the likelihood by the probability-flow ODE."""

    def nats(params: Params, batch: Batch, key: Key) -> tuple[PerExample, jax.Array]:
        vdm = subject.model.bind(params, batch["conditioning"])
        vdm = vdm._replace(levels=subject.images.levels)
        found = flow.dequantized_nats(
            vdm, key, batch["images"], method, asked.samples, asked.solver
        )
        return found.nats, found.num_evaluations / asked.samples

    solver = asked.solver
    bits, evaluations = per_image(nats, subject, key)
    if not np.isfinite(bits).all():
        raise UserError(
            f"the ODE's solver gave up at --tolerance={solver.rtol}: choose a larger one, up "
            "to 1e-3"
        )
    words = (
        f"ODE, {method.replace('_', '-')} dequantisation",
        "density of the ODE" + (f", K = {asked.samples}" if asked.samples > 1 else ""),
    )
    found, mean = estimate(bits, subject.groups), float(np.mean(evaluations))
    return _row(words, found, bits.shape, asked.samples * mean) | {
        "trace": solver.trace,
        "probes": None if solver.trace == "exact" else f"{solver.num_probes} {solver.probes}",
        "tolerance": solver.rtol,
        "function_evaluations": mean,
        "ode_samples": asked.samples,
    }


def per_image(
    nats: Callable[[Params, Batch, Key], tuple[PerExample, jax.Array]],
    subject: Subject,
    key: Key,
    draws: int = 2,
) -> tuple[np.ndarray, list[float]]:
    """Returns bits per dim, [draws, images], of `nats`, and its second results."""
    mesh = subject.mesh

    def masked(params: Params, batch: Batch, key: Key) -> tuple[jax.Array, ...]:
        return *nats(params, batch, key), batch["mask"]

    compiled = over_devices(masked, mesh, subject.params, 1)
    found: list[np.ndarray] = []
    extra: list[float] = []
    size = min(subject.batch_size, mesh.size * math.ceil(len(subject.images.test) / mesh.size))
    for number, batch in enumerate(subject._replace(batch_size=size).batches()()):
        on_devices = sharding.put(batch, mesh)
        keys = jax.random.split(jax.random.fold_in(key, number), draws)
        drawn = [jax.device_get(compiled(subject.params, on_devices, k)) for k in keys]
        found.append(np.stack([values[mask > 0] for values, _, mask in drawn]))
        extra += [float(second) for _, second, _ in drawn]
    bits = loss.bits_per_dim(np.concatenate(found, axis=1), subject.bound.event_shape)
    return np.asarray(bits, np.float64), extra
