"""What `experiments.evaluate` measures: the bound, its profile over t, other bounds."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vdm_jax import bounds, flow, loss, pixels, timestep
from vdm_jax.data import ImageData
from vdm_jax.evaluation import bound as evaluation
from vdm_jax.evaluation.bound import Draws, Estimate
from vdm_jax.run import build as setup
from vdm_jax.run.cli import UserError
from vdm_jax.run.restore import Restored
from vdm_jax.train import sharding
from vdm_jax.train.model import BITS, Batch, Bound, Unit
from vdm_jax.train.model import unit as unit_of_bound
from vdm_jax.types import Key
from vdm_jax.vdm import VDM

__all__ = [
    "Row",
    "chains",
    "first",
    "of_draws",
    "of_ode",
    "per_image",
    "profile",
    "trace_of",
    "variance",
]

BINS = 50  # of a profile over t
EXACT_UP_TO = 64  # elements of an image, for --trace=auto

Row = dict[str, Any]


def of_draws(draws: Draws, model: Bound, groups: np.ndarray | None = None) -> Row:
    """A row of the bound and its three terms."""
    result = evaluation.summarise(draws, model, groups)
    terms = {
        name: dataclasses.asdict(getattr(result, name))
        for name in ("reconstruction", "prior", "diffusion")
    }
    name, kind = f"bound, {model.words}", "variational bound"
    row = _row(name, kind, result.total, result.num_images, result.repeats, result.unit)
    return row | {"num_steps": getattr(model, "num_steps", None), "terms": terms}


def _row(
    name: str, kind: str, of: Estimate, images: int, draws: int, unit: Unit = BITS, calls: float = 1
) -> Row:
    """`calls` is how often each draw of an image calls the network."""
    return {
        "quantity": name,
        "kind": kind,
        "unit": unit.name,
        unit.key: of.mean,
        "standard_error": of.standard_error,
        "monte_carlo_error": of.monte_carlo,
        "between_images_error": of.between,
        "num_images": images,
        "draws": draws,
        "network_calls": round(images * draws * calls),
    }


def profile(draws: Draws, trained: Restored) -> dict[str, Any]:
    """What each noise level costs: the diffusion loss by bins of t, in its unit, and gamma."""
    vdm = trained.vdm
    unit = unit_of_bound(vdm)
    losses = unit.of(draws.terms.diffusion / draws.weight, vdm.event_shape)
    found = timestep.profile(draws.t, losses, BINS, draws.weight)
    centres = (np.arange(BINS) + 0.5) / BINS
    return {
        "unit": unit.name,
        "t": centres.tolist(),
        "gamma": np.asarray(vdm.gamma(jnp.asarray(centres))).tolist(),
        "mean": found.mean.tolist(),
        "rms": found.rms.tolist(),
    }


def variance(draws: Draws, event_shape: tuple[int, ...]) -> float:
    """Var of the estimate that one image, one uniform t and one noise give, in bits per dim."""
    return float(np.var(loss.bits_per_dim(draws.terms.total, event_shape)))


# ---- other bounds on the same likelihood ----


def chains(
    trained: Restored,
    images: ImageData,
    options: Mapping[str, Any],
    size: int,
    mesh: Mesh,
    key: Key,
) -> Row:
    """The importance-weighted bound."""
    count, num_steps = options["chains"], options["chain_steps"]

    def nats(params: Any, batch: Batch, key: Key) -> tuple[jax.Array, jax.Array]:
        vdm = trained.model.bind(params, batch["conditioning"])
        vdm = vdm._replace(levels=images.levels, num_steps=num_steps)
        log_weights = bounds.chains(vdm, key, batch["images"], count)
        return bounds.importance_weighted(log_weights), jnp.zeros(())

    some = first(images, options["chain_images"])
    bits, _ = per_image(nats, trained, some, size, mesh, key)
    kind = f"importance-weighted bound, K = {count}"
    name = f"bound of {count} chain(s), T = {num_steps}"
    draws, number = bits.shape
    row = _row(name, kind, _estimate(bits, some), number, draws, calls=count * num_steps)
    return row | {"chains": count, "num_steps": num_steps}


def of_ode(
    trained: Restored,
    images: ImageData,
    options: Mapping[str, Any],
    method: pixels.Dequantization,
    size: int,
    mesh: Mesh,
    key: Key,
) -> Row:
    """The likelihood by the probability-flow ODE."""
    samples, tolerance = options["ode_samples"], options["tolerance"]
    trace = trace_of(options, trained.vdm)
    solver = flow.Solver(trace, options["probes"], options["num_probes"], tolerance, tolerance)

    def nats(params: Any, batch: Batch, key: Key) -> tuple[jax.Array, jax.Array]:
        vdm = trained.model.bind(params, batch["conditioning"])._replace(levels=images.levels)
        found = flow.dequantized_nats(vdm, key, batch["images"], method, samples, solver)
        return found.nats, found.num_evaluations / samples

    some = first(images, options["ode_images"])
    bits, evaluations = per_image(nats, trained, some, size, mesh, key)
    if not np.isfinite(bits).all():
        raise UserError(
            f"the ODE's solver gave up at --tolerance={tolerance}: choose a larger one, up to 1e-3"
        )
    words = method.replace("_", "-")
    kind = "density of the ODE" + (f", K = {samples}" if samples > 1 else "")
    draws, number = bits.shape
    name, calls = f"ODE, {words} dequantisation", samples * float(np.mean(evaluations))
    row = _row(name, kind, _estimate(bits, some), number, draws, calls=calls)
    return row | {
        "trace": trace,
        "probes": None if trace == "exact" else f"{options['num_probes']} {options['probes']}",
        "tolerance": tolerance,
        "function_evaluations": float(np.mean(evaluations)),
        "ode_samples": samples,
    }


def trace_of(options: Mapping[str, Any], model: VDM) -> Any:
    """Which trace the ODE takes. Raises UserError where several samples can't go with it."""
    trace = options["trace"]
    if trace == "auto":
        trace = "exact" if math.prod(model.event_shape) <= EXACT_UP_TO else "hutchinson"
    if trace == "hutchinson" and options["ode_samples"] > 1:
        raise UserError(
            "--ode_samples above 1 needs --trace=exact: the noise of a stochastic trace would bias "
            "the mean of exp(log p)"
        )
    return trace


def per_image(
    nats: Callable[..., tuple[jax.Array, jax.Array]],
    trained: Restored,
    images: ImageData,
    size: int,
    mesh: Mesh,
    key: Key,
    draws: int = 2,
) -> tuple[np.ndarray, list[float]]:
    """Bits per dim, [draws, images], of `nats(params, batch, key)`, and its second results."""
    whole, split = sharding.replicated(mesh), sharding.split_over(mesh)

    def masked(params: Any, batch: Batch, key: Key) -> tuple[jax.Array, jax.Array, jax.Array]:
        return *nats(sharding.gathered(mesh, params), batch, key), batch["mask"]

    shares = sharding.of_parameters(mesh, trained.params)
    compiled = jax.jit(masked, in_shardings=(shares, split, whole), out_shardings=whole)
    found: list[np.ndarray] = []
    extra: list[float] = []
    size = min(size, mesh.size * math.ceil(len(images.test) / mesh.size))
    for number, batch in enumerate(_sharded(setup.batches(images, size)(), mesh)):
        keys = jax.random.split(jax.random.fold_in(key, number), draws)
        drawn = [jax.device_get(compiled(trained.params, batch, k)) for k in keys]
        found.append(np.stack([values[mask > 0] for values, _, mask in drawn]))
        extra += [float(second) for _, second, _ in drawn]
    bits = loss.bits_per_dim(np.concatenate(found, axis=1), trained.bound.event_shape)
    return np.asarray(bits, np.float64), extra


def _sharded(batches: Iterable[Mapping[str, np.ndarray]], mesh: Mesh) -> Iterable[Batch]:
    return (sharding.put(batch, mesh) for batch in batches)


def _estimate(bits: np.ndarray, images: ImageData) -> Estimate:
    return evaluation.estimate(bits, (images.source or {}).get("test"))


# ---- helpers ----


def first(images: ImageData, count: int | None) -> ImageData:
    """The data set with its first `count` test images only."""
    if count is None or count >= len(images.test):
        return images

    def cut(by_part: Mapping[str, np.ndarray] | None) -> dict[str, np.ndarray] | None:
        if by_part is None:
            return None
        return {k: v[:count] if k == "test" else v for k, v in by_part.items()}

    return dataclasses.replace(
        images, test=images.test[:count], source=cut(images.source), labels=cut(images.labels)
    )
