"""The tables and plots of docs/results.md, beside the paper's own numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from experiments import tables
from experiments.tables import terms
from vdm_jax.evaluation.bound import TERMS
from vdm_jax.evaluation.report import estimate, table
from vdm_jax.train.plots import figure

Found = Mapping[str, Any]
Row = Mapping[str, Any]

# The paper's table 2 (CIFAR-10, no augmentation): (T trained, T evaluated) -> bits per dim.
PAPER_SWEEP = {
    (10, 10): 4.31, (100, 100): 2.84, (None, 10): 7.54, (None, 100): 2.90, (None, 250): 2.74,
    (None, 500): 2.69, (None, 1000): 2.67, (None, 10000): 2.65, (None, None): 2.65,
}  # fmt: skip
# The paper's figure 4b (CIFAR-10): Var of the estimated bits per dim.
PAPER_VARIANCE = {"learned": 0.53, "linear log-SNR": 6.35, "cosine": 31.1, "beta-linear": 31.6}
FORMS = {"matching": "denoising-matching", "consistency": "consistency"}


def write(page: Path, found: Found) -> None:
    """Replaces the tables of the page, and draws its plots into the folder of its name."""
    plots = page.with_suffix("")
    _plot_sweep(plots / "steps.png", found["sweep"])
    _plot_schedules(plots / "schedules.png", found["variance"])
    _plot_forms(plots / "forms.png", found["forms"])
    tables.replace(page, {name: make(found) for name, make in TABLES.items()})


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
        forms = [row[form] for form in FORMS]
        means = [f"{form['mean']:.4f} ± {form['error']:.4f}" for form in forms]
        rows.append((str(row["num_steps"]), *means, *(f"{form['variance']:.3g}" for form in forms)))
    return table(("T", *FORMS.values(), *(f"Var, {name}" for name in FORMS.values())), rows)


def _likelihoods(found: Found) -> str:
    rows = []
    for row in found["likelihoods"]:
        calls = f"{row['function_evaluations']:.0f}" if "function_evaluations" in row else "-"
        error = f"{row['monte_carlo_error']:.4f}"
        rows.append((row["quantity"], row["kind"], estimate(row), error, calls))
    return table(("quantity", "kind", "bpd", "± of the draws", "network evaluations"), rows)


TABLES = tables.by_name(_variance, _sweep, _networks, _forms, _likelihoods)


def _plot_sweep(path: Path, rows: list[Row]) -> None:
    paper: list[Row] = [
        {"trained": trained, "num_steps": steps, "bpd": bpd, "standard_error": 0.0}
        for (trained, steps), bpd in PAPER_SWEEP.items()
    ]
    both = {"digits, here": rows, "CIFAR-10, paper": paper}
    with figure(path, "Bound by the number of steps T", (9, 4.3), (1, 2)) as both_axes:
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


def _plot_forms(path: Path, rows: list[Row]) -> None:
    with figure(path, "Two forms of one bound: variance of a draw") as (axes,):
        for form, label in FORMS.items():
            variances = [row[form]["variance"] for row in rows]
            axes.loglog([row["num_steps"] for row in rows], variances, "o-", label=label)
        axes.set(xlabel="number of steps T", ylabel="variance of one draw, (bits per dim)²")


def _plot_schedules(path: Path, rows: list[Row]) -> None:
    title = "Four schedules with the same end points, and what each t costs"
    with figure(path, title, (7, 6), (2, 1)) as (above, below):
        for row in rows:
            profile = row["profile"]
            above.plot(profile["t"], profile["gamma"], label=row["schedule"])
            below.plot(profile["t"], np.maximum(profile["rms"], 1e-3), label=row["schedule"])
        above.set_ylabel(r"$\gamma(t) = -\log\,\mathrm{SNR}$")
        below.set(xlabel="t", ylabel="root mean square of a draw,\nbits per dim")
        learned = next(row["profile"]["rms"] for row in rows if row["schedule"] == "learned")
        below.set_ylim(0.0, 4.0 * max(learned))
