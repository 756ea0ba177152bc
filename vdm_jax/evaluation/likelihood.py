"""Measurements of an evaluation: the bound, its profile over t, other bounds on the likelihood.

And of one's own data x: `profile`, log p(x | theta) over a grid of theta.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from vdm_jax import bounds, checks, flow, loss, mixed, timestep
from vdm_jax.errors import UserError
from vdm_jax.evaluation.bound import TERMS, Draws, over_devices, summarise
from vdm_jax.evaluation.estimate import Estimate, estimate
from vdm_jax.evaluation.subject import Subject
from vdm_jax.evaluation.variance_reduction import Evaluator, drawn, plan
from vdm_jax.ode import Solver
from vdm_jax.pixels import Dequantization
from vdm_jax.train import memory
from vdm_jax.train.model import BITS, Batch, Bound, Params, Unit, unit
from vdm_jax.types import Images, Key, PerExample, Tensor
from vdm_jax.vdm import VDM

BINS = 50  # of a profile over t

Row = dict[str, Any]

By = Literal["bound", "ode"]


class Settings(NamedTuple):
    """Settings of an evaluation; names and meanings are those of the command's flags.

    `dequantizations` and the `solver` are of the ODE. With an error asked for there are as many
    draws of an image as it takes, in place of `repeats`.
    """

    repeats: int
    num_steps: tuple[int | None, ...] = (None,)
    seed: int = 0
    monte_carlo_error: float | None = None
    importance: bool = False
    control_variates: bool = False
    chains: int = 0
    chain_steps: int = 100
    chain_images: int = 64
    ode_images: int = 0
    ode_samples: int = 1
    dequantizations: tuple[Dequantization, ...] = ("truncated_normal",)
    solver: Solver = Solver()


def measure(subject: Subject, asked: Settings, say: Callable[[Row], None]) -> dict[str, Any]:
    """Returns all that the settings ask for, as one JSON object; `say` gets each row when found."""
    is_vdm, groups = isinstance(subject.bound, VDM), subject.groups
    key, failed = jax.random.key(asked.seed), None
    by = plan(subject, asked.importance, asked.control_variates)
    evaluator = Evaluator(by, key, asked.repeats, asked.monte_carlo_error)
    rows: list[Row] = []
    shape: dict[str, Any] = {}

    def add(row: Row) -> None:
        rows.append(row)
        say(row)

    def add_bound(some: Subject, num_steps: int | None, words: str = "") -> Draws:
        of = some.at(num_steps) if is_vdm else some
        draws, controlled = evaluator.draw(of)
        row = of_draws(controlled, of.bound, of.groups)
        add(row | {"quantity": row["quantity"] + words})
        return draws

    try:
        with memory.exhausted(memory.lower_batch(subject.batch_size)):
            for num_steps in asked.num_steps:
                draws = add_bound(subject, num_steps)
                if is_vdm and (num_steps is None or not shape):
                    shape = loss_profile(draws, subject.vdm)
            for some, steps, others in _others(subject, asked, jax.random.fold_in(key, 1)):
                count = len(some.images.test)  # the bound on the very images that others are of
                if count < len(subject.images.test) or steps not in asked.num_steps:
                    add_bound(some, steps, f", first {count} images")
                for other in others:
                    add(other())
    except UserError as error:  # what was found before is reported nevertheless
        if not rows:
            raise
        failed = str(error)
    numbers = [len(np.unique(groups[: row["num_images"]])) for row in rows if groups is not None]
    found = {"groups": min(numbers, default=None), "rows": rows}
    found["pilot_calls"] = evaluator.pilot_calls
    return found | {"failed": failed, "note": subject.bound.note, "profile": shape}


def _others(
    subject: Subject, asked: Settings, key: Key
) -> Iterator[tuple[Subject, int | None, list[Callable[[], Row]]]]:
    """Yields images, a number of steps for the bound on them, and other bounds on them."""
    key_chain, key_ode = jax.random.split(key)
    if asked.chains:
        some, steps = subject.first(asked.chain_images), asked.chain_steps
        yield some, steps, [partial(chains, some, asked.chains, steps, key_chain)]
    if asked.ode_images:
        some, settings = subject.first(asked.ode_images), (asked.ode_samples, asked.solver, key_ode)
        yield some, None, [partial(of_ode, some, one, *settings) for one in asked.dequantizations]


def of_draws(draws: Draws, model: Bound, groups: np.ndarray | None = None) -> Row:
    """Returns a row of the bound and its three terms."""
    result = summarise(draws, model, groups)
    terms = {name: dataclasses.asdict(getattr(result, name)) for name in TERMS}
    words = f"bound, {model.words}", "variational bound"
    row = _row(words, result.total, (result.repeats, result.num_images), 1, result.unit)
    return row | {"num_steps": getattr(model, "num_steps", None), "terms": terms}


def _row(
    words: tuple[str, str], of: Estimate, shape: tuple[int, ...], calls: float, unit: Unit = BITS
) -> Row:
    """Returns a row; `words` are quantity and kind, `shape` [draws, images], `calls` of a draw."""
    draws, images = shape
    row: Row = {"quantity": words[0], "kind": words[1], "unit": unit.name, unit.key: of.mean}
    row |= {"standard_error": of.standard_error, "monte_carlo_error": of.monte_carlo}
    row |= {"between_images_error": of.between, "num_images": images, "draws": draws}
    return row | {"network_calls": round(images * draws * calls)}


def loss_profile(draws: Draws, vdm: VDM) -> dict[str, Any]:
    """Returns the diffusion loss by bins of t, in the bound's unit, and gamma's mean there."""
    of_unit = unit(vdm)
    losses = of_unit.of(draws.terms.diffusion / draws.weight, vdm.event_shape)
    found = timestep.profile(draws.t, losses, BINS, draws.weight)
    centres = (np.arange(BINS) + 0.5) / BINS
    gamma = np.asarray(timestep.mean_gamma(vdm.gamma(jnp.asarray(centres))))
    columns = {"t": centres, "gamma": gamma, "mean": found.mean, "rms": found.rms}
    return {"unit": of_unit.name, **{name: values.tolist() for name, values in columns.items()}}


def chains(subject: Subject, number: int, num_steps: int, key: Key) -> Row:
    """Returns a row of the importance-weighted bound."""

    def nats(params: Params, batch: Batch, key: Key) -> tuple[PerExample, jax.Array]:
        vdm = subject.model.bind(params, batch["conditioning"])
        vdm = vdm._replace(num_steps=num_steps)
        log_weights = bounds.chains(vdm, key, batch["images"], number)
        return bounds.importance_weighted(log_weights), jnp.zeros(())

    bits, _ = per_image(nats, subject, key)
    kind = f"importance-weighted bound, K = {number}"
    words = f"bound of {number} chain(s), T = {num_steps}", kind
    row = _row(words, estimate(bits, subject.groups), bits.shape, number * num_steps)
    return row | {"chains": number, "num_steps": num_steps}


def of_ode(subject: Subject, method: Dequantization, samples: int, solver: Solver, key: Key) -> Row:
    """Returns a row of the likelihood by the probability-flow ODE."""

    def nats(params: Params, batch: Batch, key: Key) -> tuple[PerExample, jax.Array]:
        vdm = subject.model.bind(params, batch["conditioning"])
        found = flow.dequantized_nats(vdm, key, batch["images"], method, samples, solver)
        return found.nats, found.num_evaluations / samples

    bits, evaluations = per_image(nats, subject, key)
    if not np.isfinite(bits).all():
        raise UserError(
            f"the ODE's solver gave up at --tolerance={solver.rtol}: take a larger one, up to 1e-3"
        )
    kind = "density of the ODE" + (f", K = {samples}" if samples > 1 else "")
    words = f"ODE, {method.replace('_', '-')} dequantisation", kind
    found, mean = estimate(bits, subject.groups), float(np.mean(evaluations))
    row = _row(words, found, bits.shape, samples * mean)
    probes = None if solver.trace == "exact" else f"{solver.num_probes} {solver.probes}"
    row |= {"trace": solver.trace, "probes": probes, "tolerance": solver.rtol}
    return row | {"function_evaluations": mean, "ode_samples": samples}


def per_image(
    nats: Callable[[Params, Batch, Key], tuple[PerExample, jax.Array]],
    subject: Subject,
    key: Key,
    draws: int = 2,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns bits per dim of `nats`, and its second results, both [draws, images]."""
    mesh = subject.mesh
    size = min(subject.batch_size, mesh.size * math.ceil(len(subject.images.test) / mesh.size))

    def step(
        params: Params, batch: Batch, key: Key, repeat: jax.Array, repeats: jax.Array
    ) -> tuple[PerExample, PerExample]:
        keys = jax.random.split(jax.random.fold_in(key, batch["index"][0] // size), draws)
        found, second = nats(params, batch, keys[repeat])
        return found, jnp.broadcast_to(second, found.shape)

    compiled, of = over_devices(step, mesh, subject.params), subject._replace(batch_size=size)
    found, second = drawn(compiled, of, key, draws, "evaluating")
    return np.asarray(loss.bits_per_dim(found, subject.bound.event_shape), np.float64), second


class LikelihoodProfile(NamedTuple):
    """The log-likelihood of each example at each theta of a grid, in nats: [grid, batch]."""

    log_prob: np.ndarray
    """log p(x | theta); by the bound an estimate of what lies below it."""
    reference: np.ndarray
    """Index in the grid, for each example, of the theta that others are compared with, [batch]."""
    difference: np.ndarray
    """log p(x | theta) less that at the reference."""
    error: np.ndarray
    """Standard error of the difference: the deviation over repeats, over the root of their number.
    0 at the reference, and where nothing is drawn."""


def profile(
    bind: Callable[[Any], VDM],
    x: ArrayLike,
    grid: Any,
    key: Key,
    by: By = "bound",
    draws: tuple[int, int] = (16, 16),
    reference: int | None = None,
    **solver: Any,
) -> LikelihoodProfile:
    """Returns log p(x | theta) of examples x [batch, *event] over a grid of theta.

    The noises and times are the same for each theta, so that a difference between two of them has
    far less error than either. Errors of different examples are independent: with one `reference`
    for all, the profile of many is the sum of theirs.

    Args:
      bind: function from theta, repeated for each example, to the model, as
        `lambda theta: model.bind(params, theta)`.
      grid: points in the space of theta, a pytree with leaves [grid, ...].
      by: "bound", or "ode" for the density of the probability-flow ODE (`VDM.log_prob`).
      draws: number of independent repeats, at least 2, and of the equally spaced times of each
        (of which the ODE needs none; nor repeats, for continuous data and the exact trace).
      reference: index in the grid; by default that of each example's best theta.
      solver: fields of `vdm_jax.ode.Solver`, for the ODE.

    Raises ValueError for a reference that isn't in the grid, and where log p is not finite.
    """
    checks.choice(by, "by", get_args(By))
    if by == "bound" and solver:
        raise ValueError(f"{next(iter(solver))} is no argument of profile, or only of by='ode'.")
    repeats, times = draws
    checks.count(repeats, "the number of repeats", least=2)
    if reference is not None:
        checks.count(reference, "reference", 0, len(jax.tree.leaves(grid)[0]) - 1)
    keys, data = jax.random.split(key, repeats), jnp.asarray(x)

    def at(theta: Any) -> jax.Array:
        vdm = bind(jax.tree.map(lambda leaf: jnp.repeat(leaf[None], len(data), axis=0), theta))
        if by == "ode":
            exact = set(mixed.kinds(vdm.levels)) == {None}  # nothing is dequantised
            drawn = not exact or solver.get("trace") == "hutchinson"
            of_key = lambda key: vdm.log_prob(key, data, **solver)  # noqa: E731
            return jax.lax.map(of_key, keys if drawn else keys[:1])
        return jax.lax.map(lambda key: -_mean_bound(vdm, data, key, times), keys)

    over_grid = jax.jit(partial(jax.lax.map, at))
    nats = np.asarray(over_grid(jax.tree.map(jnp.asarray, grid)), np.float64)
    if not (good := np.isfinite(nats)).all():
        raise ValueError(
            f"log p(x | theta) is not finite in {np.sum(~good)} of {nats.size} draws: the network "
            "gave NaN, or the ODE's solver gave up (raise rtol and atol)."
        )
    mean = nats.mean(axis=1)
    chosen = mean.argmax(axis=0) if reference is None else np.full(mean.shape[1:], reference)
    apart = nats - np.take_along_axis(nats, chosen[None, None], axis=0)
    error = apart.std(axis=1, ddof=min(1, apart.shape[1] - 1)) / math.sqrt(apart.shape[1])
    return LikelihoodProfile(mean, chosen, apart.mean(axis=1), error)


def _mean_bound(vdm: VDM, x: Images | Tensor, key: Key, times: int) -> PerExample:
    """Returns the mean of the bound at equally spaced times of each example, [batch] nats."""
    key_t, key_eps = jax.random.split(key)
    spaced = jax.vmap(lambda key: timestep.antithetic(key, times), out_axes=1)
    t = spaced(jax.random.split(key_t, len(x)))
    bound = jax.vmap(lambda t, keys: vdm.elbo_by_keys(x, t, keys).total)
    return jnp.mean(bound(t, jax.random.split(key_eps, t.shape)), axis=0)
