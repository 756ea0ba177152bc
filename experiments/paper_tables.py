"""The paper's results at small scale, on digits: the tables and plots of docs/results.md.

    python -m experiments.paper_tables --workdir=DIR [--out=docs] [--scale=1.0]

Trains eight small models on digits, below DIR, and measures on them what the paper's tables and
figures show on CIFAR-10. A run that is there already is not trained again. Leaves all numbers in
DIR/results.json. --scale shortens or lengthens every training, for a copy of the page in another
--out.
"""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

from experiments import tables, trainings
from experiments.configs import digits
from experiments.tables import terms
from vdm_jax import bounds, loss, pixels, schedule
from vdm_jax.evaluation import likelihood
from vdm_jax.evaluation.bound import TERMS
from vdm_jax.evaluation.estimate import estimate as over_images
from vdm_jax.evaluation.likelihood import Row
from vdm_jax.evaluation.report import estimate, table
from vdm_jax.evaluation.subject import Subject
from vdm_jax.run import cli
from vdm_jax.train.model import Batch, Model, Params
from vdm_jax.train.plots import figure
from vdm_jax.types import Gamma, Key
from vdm_jax.vdm import VDM

Found = Mapping[str, Any]

SWEEP = (10, 100, 250, 500, 1000, 10000, None)  # numbers of steps T that a model is evaluated with
FORMS = (4, 16, 64, 256, 1024)  # T of the two forms of the bound
NETWORKS = ("eps", "eps, Fourier features", "x", "v")  # what the network predicts, and its input
ENDS = (-13.3, 5.0)  # the paper's end points of gamma, for the table of variances
# The paper's table 2 (CIFAR-10, no augmentation): (T trained, T evaluated) -> bits per dim.
PAPER_SWEEP = {
    (10, 10): 4.31, (100, 100): 2.84, (None, 10): 7.54, (None, 100): 2.90, (None, 250): 2.74,
    (None, 500): 2.69, (None, 1000): 2.67, (None, 10000): 2.65, (None, None): 2.65,
}  # fmt: skip
# The paper's figure 4b (CIFAR-10): Var of the estimated bits per dim.
PAPER_VARIANCE = {"learned": 0.53, "linear log-SNR": 6.35, "cosine": 31.1, "beta-linear": 31.6}
FORM_NAMES = {"matching": "denoising-matching", "consistency": "consistency"}

# What differs from configs/digits.py.
RUNS: dict[str, dict[str, Any]] = {
    "main": {"train.steps": 5_000},
    "T=10": {"train.steps": 5_000, "model.num_steps": 10},
    "T=100": {"train.steps": 5_000, "model.num_steps": 100},
    "learned": {
        "train.steps": 6_000, "train.batch_size": 64, "optimizer.b2": 0.999,
        "model.gamma": "monotone", "model.gamma_objective": "variance",
        "model.learn_end_points": False, "model.gamma_min": ENDS[0], "model.gamma_max": ENDS[1],
    },
    **{head: {"train.steps": 3_000, "model.head": head} for head in ("eps", "x", "v")},
    "eps, Fourier features": {
        "train.steps": 3_000, "model.head": "eps", "model.fourier_features": True,
    },
}  # fmt: skip


def reproduce(argv: list[str]) -> dict[str, Any]:
    """Parses `argv`, trains, measures, and puts the numbers, which are returned, into the page."""
    study = trainings.parse(argv, __doc__, "results.md", TABLES)
    models = {name: study.train(name, digits.get_config(), of)[0] for name, of in RUNS.items()}
    print("\n== measuring", flush=True)
    found = {
        "scale": study.scale, "minutes": study.minutes, "sweep": _measure_sweep(models),
        "variance": _measure_variance(models["learned"]),
        "networks": [trainings.bound(models[name])[0] | {"network": name} for name in NETWORKS],
        "forms": _measure_forms(models["main"]),
        "likelihoods": trainings.likelihoods(
            models["main"], num_steps=(None, 20), chains=32, chain_steps=20,
            dequantizations=pixels.DEQUANTIZATIONS,
        ),
    }  # fmt: skip
    study.report(found, TABLES, PLOTS)
    return found


def _measure_sweep(models: dict[str, Subject]) -> list[Row]:
    """Returns the paper's table 2: trained with one T, evaluated with another."""
    evaluated = {"T=10": (10,), "T=100": (100,), "main": SWEEP}
    pairs = [(models[name], steps) for name in evaluated for steps in evaluated[name]]
    return [trainings.bound(of, num_steps=n)[0] | {"trained": of.vdm.num_steps} for of, n in pairs]


def _measure_variance(trained: Subject) -> list[Row]:
    """Returns the paper's figure 4b: four schedules between the same end points, one network."""
    schedules: dict[str, dict[str, Gamma]] = {
        "learned": {},
        "linear log-SNR": {"gamma": schedule.linear(*ENDS)},
        "cosine": {"gamma": schedule.cosine(*ENDS)},
        "beta-linear": {"gamma": schedule.beta_linear(*ENDS)},
    }
    return measure_schedules(trained, schedules, 4 * trainings.REPEATS)


def measure_schedules(
    trained: Subject, schedules: Mapping[str, Mapping[str, Gamma]], repeats: int
) -> list[Row]:
    """Returns the bound with each schedule, the variance of a draw, and its profile over t."""
    rows = []
    for name, gamma in schedules.items():
        row, draws, of = trainings.bound(trained, repeats, **gamma)
        variance = float(np.var(loss.bits_per_dim(draws.terms.total, of.vdm.event_shape)))
        profile = likelihood.loss_profile(draws, of.vdm)
        rows.append(row | {"schedule": name, "variance": variance, "profile": profile})
    return rows


def _measure_forms(trained: Subject) -> list[Row]:
    """Returns mean and variance of a draw of Luo's two forms of one bound, for several T."""
    rows = []
    for num_steps in FORMS:
        row: Row = {"num_steps": num_steps}
        for form, function in (("matching", VDM.elbo), ("consistency", bounds.consistency)):
            nats = partial(_nats, trained.at(num_steps).model, function)
            bits, _ = likelihood.per_image(nats, trained, jax.random.key(0), 32)
            of = over_images(bits, trained.groups)
            row[form] = {"mean": of.mean, "error": of.standard_error, "variance": bits.var(ddof=1)}
        rows.append(row)
    return rows


def _nats(
    model: Model, form: Callable[..., loss.ElboTerms], params: Params, batch: Batch, key: Key
) -> tuple[jax.Array, jax.Array]:
    """Returns a draw of one form of the bound [batch] in nats, and 0."""
    vdm = model.bind(params, batch["conditioning"])
    return form(vdm, key, batch["images"]).total, jnp.zeros(())


def _variance(found: Found) -> str:
    rows = [
        (r["schedule"], f"{r['variance']:.2f}", f"{PAPER_VARIANCE[r['schedule']]:.2f}", estimate(r))
        for r in found["variance"]
    ]
    return table(("schedule", "Var(bpd) here", "Var(bpd), paper", "bpd here"), rows)


def _sweep(found: Found) -> str:
    rows = []
    for row in found["sweep"]:
        steps = row["trained"], row["num_steps"]
        words = ["continuous" if T is None else str(T) for T in steps]
        error = f"{row['monte_carlo_error']:.4f}"
        rows.append((*words, estimate(row), error, f"{PAPER_SWEEP[steps]:.2f}"))
    return table(("T trained", "T evaluated", "bpd here", "± of the draws", "bpd, paper"), rows)


def _networks(found: Found) -> str:
    rows = [(row["network"], estimate(row), *terms(row)) for row in found["networks"]]
    return table(("the network predicts", "bpd here", *TERMS), rows)


def _forms(found: Found) -> str:
    rows = []
    for row in found["forms"]:
        forms = [row[form] for form in FORM_NAMES]
        means = [f"{form['mean']:.4f} ± {form['error']:.4f}" for form in forms]
        rows.append((str(row["num_steps"]), *means, *(f"{form['variance']:.3g}" for form in forms)))
    names = FORM_NAMES.values()
    return table(("T", *names, *(f"Var, {name}" for name in names)), rows)


def _likelihoods(found: Found) -> str:
    rows = []
    for row in found["likelihoods"]:
        calls = f"{row['function_evaluations']:.0f}" if "function_evaluations" in row else "-"
        error = f"{row['monte_carlo_error']:.4f}"
        rows.append((row["quantity"], row["kind"], estimate(row), error, calls))
    return table(("quantity", "kind", "bpd", "± of the draws", "network evaluations"), rows)


TABLES = tables.by_name(_variance, _sweep, _networks, _forms, _likelihoods)


def _plot_sweep(path: Path, found: Found) -> None:
    paper: list[Row] = [
        {"trained": trained, "num_steps": steps, "bpd": bpd, "standard_error": 0.0}
        for (trained, steps), bpd in PAPER_SWEEP.items()
    ]
    both = {"digits, here": found["sweep"], "CIFAR-10, paper": paper}
    with figure(path, "Bound by the number of steps T", (10, 5), (1, 2)) as both_axes:
        for axes, (title, some) in zip(both_axes, both.items(), strict=True):
            _plot_bounds(axes, some)
            axes.set(title=title, xscale="log", ylabel="bits per dim")
            axes.set_xlabel("number of steps T of the evaluation")


def _plot_bounds(axes: Axes, rows: list[Row]) -> None:
    one = [row for row in rows if row["trained"] is None and row["num_steps"]]
    own = [row for row in rows if row["trained"]]
    (limit,) = (row for row in rows if row["trained"] is row["num_steps"] is None)
    groups = (one, "o-", "trained in continuous time"), (own, "s", "trained with this T")
    for group, style, label in groups:
        steps, bpd = [row["num_steps"] for row in group], [row["bpd"] for row in group]
        error = [row["standard_error"] for row in group]
        axes.errorbar(steps, bpd, error, fmt=style, capsize=3, label=label)
    axes.axhline(limit["bpd"], color="black", linestyle=":", label="continuous time")


def _plot_forms(path: Path, found: Found) -> None:
    rows = found["forms"]
    with figure(path, "Two forms of one bound: variance of a draw") as (axes,):
        for form, label in FORM_NAMES.items():
            variances = [row[form]["variance"] for row in rows]
            axes.loglog([row["num_steps"] for row in rows], variances, marker="o", label=label)
        axes.set(xlabel="number of steps T", ylabel="variance of one draw, (bits per dim)²")


def _plot_schedules(path: Path, found: Found) -> None:
    title = "Four schedules, and what each t costs"
    draw_schedules(path, title, found["variance"])


def draw_schedules(path: Path, title: str, rows: list[Row]) -> None:
    """Draws schedules, and below them the root mean square of a draw of the loss at each t."""
    with figure(path, title, (7, 6), (2, 1)) as (above, below):
        for row in rows:
            profile, label = row["profile"], f"{row['schedule']}: variance {row['variance']:.2f}"
            above.plot(profile["t"], profile["gamma"], label=label)
            below.plot(profile["t"], profile["rms"])
        above.set_ylabel(r"$\gamma(t) = -\log\,\mathrm{SNR}$")
        below.set(xlabel="t", ylabel="root mean square of a draw,\nbits per dim")
        peaks = [max(row["profile"]["rms"]) for row in rows]
        below.set_ylim(0.0, min(4.0 * min(peaks), 1.05 * max(peaks)))


PLOTS = {"steps": _plot_sweep, "schedules": _plot_schedules, "forms": _plot_forms}


if __name__ == "__main__":
    cli.guard(lambda: reproduce(sys.argv))
