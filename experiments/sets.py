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
from matplotlib.axes import Axes
from scipy import stats

from experiments import tables, trainings
from vdm_jax import VDM, files, schedule
from vdm_jax.data import point_sets
from vdm_jax.evaluation import report, sample_distances
from vdm_jax.evaluation.likelihood import By, LikelihoodProfile, profile
from vdm_jax.nn.counts import Categorical, Counts
from vdm_jax.nn.sets import SetTransformer
from vdm_jax.run import cli
from vdm_jax.train import fit, optimizer, plots
from vdm_jax.train.model import Model, Params
from vdm_jax.types import Key, PerExample, Tensor

ENDS = -8.0, 5.0  # gamma
STEPS, TRAIN = 3000, 200_000
TEST, BY_ODE, RANKED, SAMPLES, PERMUTED = 2000, 100, 400, 400, 400  # sets, and permutations
TOGETHER, TRUTH = 20, 0.3  # sets of one theta, whose profile is drawn
DRAWS = 8, 16  # of the bound, for each set: repeats and times
SOLVER = {"rtol": 1e-4, "atol": 1e-4}
CELLS, BINS = 24, 10  # of the posterior of theta on [-1, 1], and of the ranks
HEADS = ("sets", "bound", "ODE", "number", "ranks", "ranks, exact", "MMD", "sliced W2")


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
    uniform = np.random.default_rng(seed).uniform(-1.0, 1.0, count).astype(np.float32)
    theta = uniform if theta is None else np.full_like(uniform, theta)
    x, mask = point_sets.draw(name, count, theta, seed)
    return make_sets(name, theta, x, mask, mask.sum(axis=(1, 2)).astype(int))


def make_model(most: int) -> Model:
    """Returns the diffusion model of the points of a set, of which at most `most` are there."""
    network = SetTransformer(*ENDS, head="v")

    def init(key: Key) -> Params:
        start = jnp.zeros((1, most, 2)), jnp.zeros(1), jnp.zeros(1)
        return network.init(key, *start)["params"]

    def bind(
        params: Params, theta: Tensor, dropout: Key | None = None, mask: Tensor | None = None
    ) -> VDM:
        def denoise(z_t: Tensor, gamma_t: PerExample) -> Tensor:
            return network.apply({"params": params}, z_t, gamma_t, theta, mask)

        return VDM(denoise, schedule.linear(*ENDS), (most, 2), None, "v", mask=mask)

    return Model(init, bind)


def fit_number(data: Sets, steps: int) -> Callable[[ArrayLike], Categorical]:
    """Returns theta [batch] -> the number of points, trained by maximum likelihood."""
    network, tx = Counts(point_sets.MOST[data.name]), optax.adam(3e-3)
    theta, number = jnp.asarray(data.theta), jnp.asarray(data.number)

    def one(i: Any, carry: Any) -> Any:
        params, state = carry
        rows = jax.random.randint(jax.random.key(i), (512,), 0, len(theta))
        loss = lambda p: -jnp.mean(network.apply(p, theta[rows]).log_prob(number[rows]))  # noqa: E731
        updates, state = tx.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    params = network.init(jax.random.key(0), theta[:1])
    run = jax.jit(lambda carry: jax.lax.fori_loop(0, steps, one, carry))
    params, _ = run((params, tx.init(params)))
    return lambda theta: cast(Categorical, network.apply(params, theta))


class Fitted(NamedTuple):
    """A trained model of sets: theta and mask -> model of the points, theta -> their number."""

    points: Callable[[Tensor, Tensor], VDM]
    number: Callable[[Tensor], Categorical]


def train(name: str, workdir: Path, scale: float) -> Fitted:
    """Returns the model of a name, trained below `workdir` or read from there."""
    data, steps = make_sets(name, TRAIN, seed=0), max(round(STEPS * scale), 10)
    model = make_model(point_sets.MOST[name])
    rate = optimizer.learning_rate(2e-3, min(100, steps // 2), "cosine", steps)
    given = {"x": data.x, "condition": data.theta, "mask": data.mask}
    fitted = fit(
        model, given, optimizer.make(rate, clip_norm=1.0), steps, workdir / name,
        batch_size=256, ema_rate=0.99,
    )  # fmt: skip
    bind = partial(model.bind, fitted.params)
    return Fitted(lambda theta, mask: bind(theta, mask=mask), fit_number(data, steps))


def measure(name: str, fitted: Fitted) -> dict[str, Any]:
    """Returns all that is compared with the truth of the sets of a name."""
    test, ranked, key = make_sets(name, TEST, 1), make_sets(name, RANKED, 2), jax.random.key(3)
    found = {"name": name} | {by: excess(test, fitted, by, key) for by in ("bound", "ode")}
    number = fitted.number(test.theta).log_prob(test.number)
    found["number"] = _mean(test.log_probs(test.theta)[0] - np.asarray(number))
    centres = (np.arange(CELLS) + 0.5) * 2.0 / CELLS - 1.0
    of_points = _profile(fitted, ranked, centres, key).difference
    of_number = [_log_number(fitted, ranked, theta) for theta in centres]
    exact = [sum(ranked.log_probs(theta)) for theta in centres]
    for kind, log_prob in (("model", of_points + np.array(of_number)), ("exact", np.array(exact))):
        rank = ranks(log_prob, ranked.theta)
        counts, _ = np.histogram(rank, BINS, (0.0, 1.0))
        found[kind] = {"counts": counts.tolist(), "p": float(stats.chisquare(counts).pvalue)}
    return found | two_samples(name, fitted, key)


def _log_number(fitted: Fitted, sets: Sets, theta: float) -> np.ndarray:
    """Returns the model's log p(N | theta) of each set, theta the same for all."""
    number = fitted.number(np.full(len(sets.x), theta, np.float32))
    return np.asarray(number.log_prob(sets.number), np.float64)


def excess(test: Sets, fitted: Fitted, by: By, key: Key) -> dict[str, float]:
    """Returns the mean of the truth less the model's log p(x | N, theta), nats per coordinate."""
    count = TEST if by == "bound" else BY_ODE
    x, mask = test.x[:count], test.mask[:count]
    vdm = fitted.points(test.theta[:count], mask)
    solver = {} if by == "bound" else SOLVER
    log_prob = profile(lambda _: vdm, x, jnp.zeros(1), key, by, DRAWS, **solver).log_prob[0]
    coordinates = 2 * test.number[:count]
    return _mean(test.log_probs(test.theta)[1][:count] - log_prob, coordinates)


def _mean(values: np.ndarray, of: ArrayLike = 1.0) -> dict[str, float]:
    """Returns the sum of the values over the sum of `of`, and its standard error."""
    of = np.broadcast_to(of, values.shape)
    mean = values.sum() / of.sum()
    error = np.std(values - mean * of, ddof=1) * math.sqrt(len(values)) / of.sum()
    return {"mean": float(mean), "error": float(error)}


def _profile(
    fitted: Fitted, of: Sets, grid: np.ndarray, key: Key, by: By = "bound", **options: Any
) -> LikelihoodProfile:
    bind = lambda theta: fitted.points(theta, of.mask)  # noqa: E731
    return profile(bind, of.x, grid.astype(np.float32), key, by, **options)


def ranks(log_prob: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Returns the posterior's distribution function at theta [sets], from log p [cells, sets].

    The prior is uniform on [-1, 1], and the posterior constant in each of the equal cells.
    """
    p = np.exp(log_prob - log_prob.max(axis=0))
    cdf = np.pad(np.cumsum(p, axis=0), ((1, 0), (0, 0))) / p.sum(axis=0)
    edges = np.linspace(-1.0, 1.0, len(cdf))
    return np.array([np.interp(t, edges, c) for t, c in zip(theta, cdf.T, strict=True)])


def two_samples(name: str, fitted: Fitted, key: Key) -> dict[str, float]:
    """Returns p values of permutation tests: (theta, N, points) of the data and of the model."""
    data, other = make_sets(name, SAMPLES, 4), make_sets(name, SAMPLES, 5)
    key_number, key_points, key_test = jax.random.split(key, 3)
    number = fitted.number(other.theta).sample(key_number)
    mask = (jnp.arange(other.x.shape[1]) < number[:, None])[..., None]
    x = fitted.points(other.theta, mask).sample(key_points, SAMPLES, 200)
    of_data = _features(data.theta, data.x, data.mask)
    of_model = _features(other.theta, np.asarray(x), np.asarray(mask))
    middle = float(sample_distances.median_distance(of_data))
    along = sample_distances.directions(key, 100, of_data.shape[1])
    tests = {
        "mmd": lambda a, b: sample_distances.mmd(a, b, [middle / 2, middle, 2 * middle]),
        "sliced_wasserstein": lambda a, b: sample_distances.sliced_wasserstein(a, b, along),
    }
    found = {}
    for test, distance in tests.items():
        mixed = sample_distances.permuted(key_test, of_data, of_model, distance, PERMUTED)
        larger = np.sum(np.asarray(mixed) >= float(distance(of_data, of_model)))
        found[test] = float((1 + larger) / (1 + PERMUTED))
    return found


def _features(theta: np.ndarray, x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns theta, N and the points in the order of their first coordinates, [sets, features]."""
    order = np.argsort(np.where(mask[..., 0], x[..., 0], np.inf), axis=1)
    points = np.take_along_axis(np.where(mask, x, 0.0), order[..., None], axis=1)
    columns = theta[:, None], mask.sum(axis=1), points.reshape(len(x), -1)
    return np.concatenate(columns, axis=1)


def draw(file: Path, fitted: dict[str, Fitted], found: list[dict[str, Any]]) -> None:
    """Draws, for each name, a profile of several sets together, the ranks, and samples."""
    title, shape = "Sets of points with a known density", (len(found), 3)
    with plots.figure(file, title, (13, 8), shape) as axes:
        for row, numbers in zip(np.reshape(axes, shape), found, strict=True):
            name = numbers["name"]
            _draw_profile(row[0], name, fitted[name])
            row[1].stairs(numbers["model"]["counts"], label="model")
            row[1].stairs(numbers["exact"]["counts"], label="exact", linestyle=":")
            row[1].set(title=f"ranks of theta, {name}", ylim=(0, None))
            _draw_samples(row[2], name, fitted[name])


def _draw_profile(axes: Axes, name: str, fitted: Fitted) -> None:
    sets, grid = make_sets(name, TOGETHER, 6, TRUTH), np.linspace(-0.6, 1.0, 9)
    middle = int(np.abs(grid - TRUTH).argmin())
    number = np.stack([_log_number(fitted, sets, theta) for theta in grid])
    for by, style, solver in (("bound", "o", {}), ("ode", "x", SOLVER)):
        found = _profile(fitted, sets, grid, jax.random.key(7), by, reference=middle, **solver)
        nats = (found.difference + number - number[middle]).sum(axis=1)
        error = np.sqrt((found.error**2).sum(axis=1))
        axes.errorbar(grid, nats, error, fmt=style, capsize=3, label=f"model, by the {by}")
    exact = np.array([np.sum(sets.log_probs(theta)) for theta in grid])
    axes.plot(grid, exact - exact[middle], color="grey", label="exact")
    axes.set(title=f"log p({TOGETHER} sets | theta), {name}", xlabel="theta", ylabel="nats")
    axes.legend()


def _draw_samples(axes: Axes, name: str, fitted: Fitted) -> None:
    data = make_sets(name, SAMPLES, 8, TRUTH)
    x = fitted.points(data.theta, data.mask).sample(jax.random.key(9), SAMPLES, 200)
    for label, points in (("data", data.x), ("model", np.asarray(x))):
        there = points[data.mask[..., 0] > 0]
        axes.scatter(*there.T, s=3, alpha=0.5, label=label)
    axes.set(title=f"points, theta = {TRUTH}", aspect="equal")


def _row(found: dict[str, Any]) -> list[str]:
    """Returns a row of the table."""
    nats = [
        f"{found[k]['mean']:+.4f} ± {found[k]['error']:.4f}" for k in ("bound", "ode", "number")
    ]
    p = [found["model"]["p"], found["exact"]["p"], found["mmd"], found["sliced_wasserstein"]]
    return [found["name"], *nats, *(f"{value:.3f}" for value in p)]


def main(argv: list[str]) -> list[dict[str, Any]]:
    """Trains, compares, writes the files, and returns the numbers."""
    workdir, page, scale = trainings.parse(argv, __doc__, "sets.md", ["sets"])
    fitted = {name: train(name, workdir, scale) for name in point_sets.NAMES}
    found = [measure(name, fitted[name]) for name in fitted]
    files.write_json(workdir / "sets.json", found)
    draw(page.with_suffix("") / "profiles.png", fitted, found)
    text = report.table(HEADS, map(_row, found))
    tables.replace(page, {"sets": text})
    print(text)
    return found


if __name__ == "__main__":
    cli.guard(lambda: main(sys.argv))
