"""Sets of points whose density is known: the table and the figure of docs/sets.md.

    python -m experiments.sets --workdir=DIR [--out=docs] [--scale=1.0]

Trains a transformer for sets on each of `vdm_jax.data.point_sets`, below DIR, and the distribution
of their number of points; compares the bound and the ODE's density with the truth, the posterior
of theta by its ranks, and samples by two-sample tests. A training that has ended is not repeated.
Leaves the numbers in DIR/sets.json. --scale shortens or lengthens the trainings, for a copy of the
page in another --out.
"""

import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from scipy import special, stats

from experiments import tables, trainings
from vdm_jax import VDM, schedule
from vdm_jax.data import point_sets
from vdm_jax.evaluation import report, sample_distances
from vdm_jax.evaluation.likelihood import By, profile
from vdm_jax.nn.counts import Categorical, Counts
from vdm_jax.nn.sets import SetTransformer
from vdm_jax.run import cli
from vdm_jax.train import fit, optimizer, plots
from vdm_jax.train.model import Model, Params
from vdm_jax.types import Key, PerExample, Tensor

ENDS = -8.0, 5.0  # gamma
STEPS, TRAIN = 3000, 200_000
TEST, BY_ODE, RANKED, SAMPLES, PERMUTED = 2000, 100, 400, 400, 400  # sets, and permutations
TOGETHER = 20  # sets of one theta, whose profile is drawn
DRAWS = 8, 16  # of the bound, for each set: repeats and times
SOLVER: dict[str, dict[str, Any]] = {"bound": {}, "ode": {"rtol": 1e-4, "atol": 1e-4}}
CELLS, BINS = 24, 10  # of the posterior of theta on [-1, 1], and of the ranks
HEADS = ("sets", "bound", "ODE", "number", "posterior", "ranks", "ranks, exact", "MMD", "sliced W2")


class Sets(NamedTuple):
    """Sets of points, what they were drawn for, and the number of points of each."""

    name: str
    theta: np.ndarray
    x: np.ndarray
    mask: np.ndarray
    number: np.ndarray

    def log_probs(self, theta: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Returns log p(N | theta) and log p(x_1, ..., x_N | N, theta), each [count]."""
        theta = np.broadcast_to(theta, self.theta.shape)
        number = point_sets.number_log_prob(self.name, theta)[np.arange(len(theta)), self.number]
        return number, point_sets.log_prob(self.name, self.x, self.mask, theta) - number


def make_sets(name: str, count: int, seed: int, theta: float | None = None) -> Sets:
    """Returns sets of points, of theta uniform on [-1, 1] unless it is given."""
    rng = np.random.default_rng((seed, len(point_sets.NAMES)))  # another than that of the points
    thetas = rng.uniform(-1.0, 1.0, count).astype(np.float32)
    thetas = thetas if theta is None else np.full_like(thetas, theta)
    x, mask = point_sets.draw(name, count, thetas, seed)
    return Sets(name, thetas, x, mask, mask.sum(axis=(1, 2)).astype(int))


def make_model(most: int) -> Model:
    """Returns the diffusion model of the points of a set, of which at most `most` are there."""
    network = SetTransformer(*ENDS, head="v")

    def init(key: Key) -> Params:
        start = jnp.zeros((1, most, 2)), jnp.zeros(1), jnp.zeros(1)
        return cast(Params, network.init(key, *start)["params"])

    def bind(
        params: Params, theta: Tensor, dropout: Key | None = None, mask: Tensor | None = None
    ) -> VDM:
        def denoise(z_t: Tensor, gamma_t: PerExample) -> Tensor:
            return cast(Tensor, network.apply({"params": params}, z_t, gamma_t, theta, mask))

        return VDM(denoise, schedule.linear(*ENDS), (most, 2), None, "v", mask=mask)

    return Model(init, bind)


def fit_number(data: Sets, steps: int) -> Callable[[ArrayLike], Categorical]:
    """Returns theta [batch] -> the number of points, trained by maximum likelihood."""
    network = Counts(point_sets.MOST[data.name])
    thetas, numbers = jnp.asarray(data.theta), jnp.asarray(data.number)

    def of(params: Params, theta: ArrayLike) -> Categorical:
        return cast(Categorical, network.apply(params, theta))

    def nats(params: Params, key: Key) -> Tensor:
        rows = jax.random.randint(key, (512,), 0, len(thetas))
        return -jnp.mean(of(params, thetas[rows]).log_prob(numbers[rows]))

    key_init, key_data = jax.random.split(jax.random.key(0))
    start = network.init(key_init, thetas[:1])
    params, _ = trainings.minimise(nats, start, optax.adam(3e-3), steps, key_data)
    return partial(of, params)


class SetModel(NamedTuple):
    """A trained model of sets: theta and mask -> model of the points, theta -> their number."""

    points: Callable[[ArrayLike, ArrayLike], VDM]
    number: Callable[[ArrayLike], Categorical]


def train(name: str, workdir: Path, scale: float) -> SetModel:
    """Returns the model of a name, trained below `workdir` or read from there."""
    data, steps = make_sets(name, TRAIN, seed=0), max(round(STEPS * scale), 10)
    print(f"\n== {name}: {TRAIN:,} sets, {steps} steps", flush=True)
    model = make_model(point_sets.MOST[name])
    rate = optimizer.learning_rate(2e-3, min(100, steps // 2), "cosine", steps)
    given = {"x": data.x, "condition": data.theta, "mask": data.mask}
    fitted = fit(
        model, given, optimizer.make(rate, clip_norm=1.0), steps, workdir / f"{name}-{steps}",
        batch_size=256, ema_rate=0.99,
    )  # fmt: skip
    bind = partial(model.bind, fitted.params)
    return SetModel(lambda theta, mask: bind(theta, mask=mask), fit_number(data, steps))


def measure(name: str, fitted: SetModel) -> dict[str, Any]:
    """Returns all that is compared with the truth of the sets of a name."""
    test, key = make_sets(name, TEST, 1), jax.random.key(3)
    of_number, of_points = test.log_probs(test.theta)
    missed = of_number - np.asarray(fitted.number(test.theta).log_prob(test.number))
    found = {"name": name, "number": _mean(missed, np.ones(TEST))}
    for by, count in (("bound", TEST), ("ode", BY_ODE)):
        first = Sets(name, *(values[:count] for values in test[1:]))
        found[by] = _mean(of_points[:count] - log_points(fitted, first, by), 2 * first.number)
    ranked, centres = make_sets(name, RANKED, 2), (np.arange(CELLS) + 0.5) * 2.0 / CELLS - 1.0
    model, _ = log_likelihoods(fitted, ranked, centres, "bound")
    at_truth = {}
    for kind, log_prob in (("model", model), ("exact", exact(ranked, centres))):
        rank, at_truth[kind] = posterior(log_prob, ranked.theta)
        counts, _ = np.histogram(rank, BINS, (0.0, 1.0))
        found[kind] = {"counts": counts.tolist(), "p": float(stats.chisquare(counts).pvalue)}
    found["posterior"] = _mean(at_truth["exact"] - at_truth["model"], np.ones(RANKED))
    return found | two_samples(name, fitted, key)


def _mean(values: np.ndarray, of: np.ndarray) -> dict[str, float]:
    """Returns the sum of the values over the sum of `of`, and its standard error."""
    mean = values.sum() / of.sum()
    error = np.std(values - mean * of, ddof=1) * math.sqrt(len(values)) / of.sum()
    return {"mean": float(mean), "error": float(error)}


def log_points(fitted: SetModel, sets: Sets, by: str) -> np.ndarray:
    """Returns the model's log p(x_1, ..., x_N | N, theta), [sets]."""
    vdm, one, key = fitted.points(sets.theta, sets.mask), np.zeros(1, np.float32), jax.random.key(7)
    found = profile(lambda _: vdm, sets.x, one, key, cast(By, by), DRAWS, **SOLVER[by])
    return found.log_prob[0]  # each set has its own theta


def exact(sets: Sets, grid: np.ndarray) -> np.ndarray:
    """Returns log p(set | theta) over a grid of theta, [grid, sets]."""
    return np.array([np.add(*sets.log_probs(theta)) for theta in grid])


def log_likelihoods(
    fitted: SetModel, sets: Sets, grid: np.ndarray, by: str, reference: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the model's log p(set | theta) less that at the reference, and its standard error."""
    grid = grid.astype(np.float32)
    bind, key = lambda theta: fitted.points(theta, sets.mask), jax.random.key(7)
    found = profile(bind, sets.x, grid, key, cast(By, by), DRAWS, reference, **SOLVER[by])
    repeated = (np.full(len(sets.x), theta) for theta in grid)
    number = np.array([fitted.number(theta).log_prob(sets.number) for theta in repeated])
    return found.difference + number - number[reference], found.error


def posterior(log_prob: np.ndarray, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rank of theta [sets] in its posterior, and the posterior's log density there.

    The rank is the distribution function, in [0, 1]. The prior is uniform on [-1, 1], the posterior
    constant in each of equal cells, of log p(set | theta) [cells, sets].
    """
    p, cells = special.softmax(log_prob, axis=0), len(log_prob)
    cdf = np.pad(np.cumsum(p, axis=0), ((1, 0), (0, 0)))
    edges, places = np.linspace(-1.0, 1.0, cells + 1), range(len(theta))
    rank = np.array([np.interp(theta[i], edges, cdf[:, i]) for i in places])
    cell = np.minimum((theta + 1.0) / 2.0 * cells, cells - 1).astype(int)
    return rank, np.log(p[cell, places] * cells / 2.0)


def two_samples(name: str, fitted: SetModel, key: Key) -> dict[str, float]:
    """Returns p values of permutation tests: (theta, N, points) of the data and of the model."""
    data, other = make_sets(name, SAMPLES, 4), make_sets(name, SAMPLES, 5)
    number = fitted.number(other.theta).sample(key)
    mask = (np.arange(other.x.shape[1]) < np.asarray(number)[:, None])[..., None]
    x = np.asarray(fitted.points(other.theta, mask).sample(key, SAMPLES, 200))
    of_data, of_model = _features(data.theta, data.x, data.mask), _features(other.theta, x, mask)
    found = {}
    for test, distance in sample_distances.compiled(of_data).items():
        mixed = sample_distances.permuted(key, of_data, of_model, distance, PERMUTED)
        larger = np.sum(np.asarray(mixed) >= float(distance(of_data, of_model)))
        found[test] = float((1 + larger) / (1 + PERMUTED))
    return found


def _features(theta: np.ndarray, x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns theta, N and the points in the order of their first coordinates, [sets, features]."""
    order = np.argsort(np.where(mask[..., 0], x[..., 0], np.inf), axis=1)
    points = np.take_along_axis(np.where(mask, x, 0.0), order[..., None], axis=1)
    columns = theta[:, None], mask.sum(axis=1), points.reshape(len(x), -1)
    return np.concatenate(columns, axis=1)


def draw(fitted: dict[str, SetModel], file: Path, found: list[dict[str, Any]]) -> None:
    """Draws, for each name, the profile of several sets together, and the ranks of theta."""
    grid, middle = np.linspace(-0.6, 1.0, 9), 4
    title, shape = "Sets of points with a known density", (len(found), 2)
    with plots.figure(file, title, (10, 7), shape) as axes:
        for numbers, of_profile, of_ranks in zip(found, axes[::2], axes[1::2], strict=True):
            sets = make_sets(numbers["name"], TOGETHER, 6, grid[middle])
            nats = exact(sets, grid).sum(axis=1)
            of_profile.plot(grid, nats - nats[middle], color="grey", label="exact")
            for by, words, style in (("bound", "bound", "o"), ("ode", "ODE", "x")):
                each, error = log_likelihoods(fitted[sets.name], sets, grid, by, middle)
                errors = np.sqrt(np.sum(error**2, axis=1))
                label = f"model, by the {words}"
                of_profile.errorbar(grid, each.sum(axis=1), errors, fmt=style, label=label)
            of_profile.set(
                title=f"log p({TOGETHER} sets | theta), {sets.name}", xlabel="theta", ylabel="nats"
            )
            for kind, style in (("model", "-"), ("exact", ":")):
                of_ranks.stairs(numbers[kind]["counts"], label=kind, linestyle=style)
            of_ranks.set(title=f"ranks of theta, {sets.name}", ylim=(0, None))
            of_ranks.legend()


def _sets(found: list[dict[str, Any]]) -> str:
    rows = []
    for row in found:
        means = row["bound"], row["ode"], row["number"], row["posterior"]
        p = row["model"]["p"], row["exact"]["p"], row["mmd"], row["sliced_wasserstein"]
        nats = [f"{each['mean']:+.4f} ± {each['error']:.4f}" for each in means]
        rows.append([row["name"], *nats, *(f"{value:.3f}" for value in p)])
    return report.table(HEADS, rows)


TABLES = tables.by_name(_sets)


def main(argv: list[str]) -> list[dict[str, Any]]:
    """Trains, compares, writes the files, and returns the numbers."""
    study = trainings.parse(argv, __doc__, "sets.md", TABLES)
    fitted = {name: train(name, study.workdir, study.scale) for name in point_sets.NAMES}
    found = [measure(name, fitted[name]) for name in fitted]
    study.report(found, TABLES, {"profiles": partial(draw, fitted)})
    print(_sets(found))
    return found


if __name__ == "__main__":
    cli.guard(lambda: main(sys.argv))
