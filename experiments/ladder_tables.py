"""The tables and plots of docs/ladder.md, from the numbers of `experiments.ladder`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments import tables
from experiments.tables import terms
from vdm_jax import loss
from vdm_jax.evaluation.bound import TERMS
from vdm_jax.evaluation.report import estimate, table
from vdm_jax.train.plots import figure

Found = Mapping[str, Any]
Row = Mapping[str, Any]

VARIANCES = {"posterior": "the posterior's (w = 0)", "transition": "the forward step's (w = 1)",
             "learned": "learned w"}  # fmt: skip
PREDICTIONS = {"x": "the data x", "eps": "the noise eps", "score": "the score", "v": "v"}
COSTS = {"parameters": ",", "steps": ",", "minutes": ".1f"}


def _rungs(found: Found) -> str:
    first = ("no latents: each pixel by its own frequencies", estimate(found["histogram"]))
    rows = [(r["name"], estimate(r), _gain(r), *_costs(r)) for r in found["rungs"]]
    head = ("model", "test bits per dim", "lower than the row above by", *COSTS)
    return table(head, [(*first, *[""] * 4), *rows])


def _restrictions(found: Found) -> str:
    rows = []
    for row in found["restrictions"]:
        means = "---" if "VDM" in row["name"] else terms(row)  # it groups them otherwise
        rows.append((row["name"], estimate(row), *means, *_costs(row)[::2]))
    head = ("restriction", "test bits per dim", "reconstruction", "last level", "between")
    return table((*head, "parameters", "minutes"), rows)


def _forgetting(found: Found) -> str:
    rows = [(f"{r['t']:.2f}", f"{r['gamma']:.2f}", f"{r['kl']:.3g}") for r in found["forward"]]
    return table(("t", "gamma(t)", "KL(q(z_t), N(0, 1)), nats"), rows)


def _priors(found: Found) -> str:
    head = ("schedule", "KL(q(z_T given x), N(0, I)), bits per dim")
    bits = {name: loss.bits_per_dim(nats, (1,)) for name, nats in found["priors"].items()}
    return table(head, [(name, f"{float(value):.3g}") for name, value in bits.items()])


def _reverse(found: Found) -> str:
    rows = [(f"{row['step']:g}", f"{row['kl']:.3g}") for row in found["reverse"]]
    return table(("step in gamma", "KL to the best Gaussian, nats"), rows)


def _vdm(found: Found) -> str:
    return _with_terms([row for row in found["rungs"] if "VDM" in row["name"]], "test bits per dim")


def _variances(found: Found) -> str:
    every = found["variances"]
    rows = [(str(r["num_steps"]), VARIANCES[r["kind"]], estimate(r), _gain(r)) for r in every]
    head = ("T", "variance of p(z_s given z_t)", "test bits per dim")
    return table((*head, "lower than the posterior's by"), rows)


def _objectives(found: Found) -> str:
    rows = [(PREDICTIONS[row["name"]], estimate(row)) for row in found["objectives"]]
    steps = f"{found['objectives'][0]['steps']:,}"
    return table(("the network predicts", f"test bits per dim after {steps} steps"), rows)


def _densities(found: Found) -> str:
    return _with_terms(found["densities"], "nats per dim of a density")


def _bits(found: Found) -> str:
    rows = [(row["name"], estimate(row), *_costs(row)) for row in found["bits"]]
    return table(("model", "test bits per dim", *COSTS), rows)


def _flow(found: Found) -> str:
    rows = [(row["quantity"], row["kind"], estimate(row)) for row in found["flow"]]
    return table(("the same VDM, first 64 test images", "kind", "bits per dim"), rows)


def _swirl(found: Found) -> str:
    points = found["points"]
    rows = [("the data's own density", _pair(points["vdm"]["truth"], "nats"), "", "")]
    for kind, name in (("vdm", "VDM"), ("cnf", "flow trained by maximum likelihood")):
        for key, quantity in (("bound", "variational bound"), ("ode", "density by the ODE")):
            if row := points[kind][key]:
                seconds = f"{points[kind]['training_seconds']:.0f}"
                excess = _pair(row["excess"], "nats", "+")
                rows.append((f"{name}, {quantity}", _pair(row, "nats"), excess, seconds))
    head = ("a swirl in the plane", "nats per point (of a density)", "above the data's own")
    return table((*head, "seconds of training"), rows)


TABLES = tables.by_name(_rungs, _restrictions, _forgetting, _priors, _reverse, _vdm, _variances,
                        _objectives, _densities, _bits, _flow, _swirl)  # fmt: skip


def _pair(row: Row, key: str, sign: str = "") -> str:
    return f"{row[key]:{sign}.4f} ± {row['standard_error']:.4f}"


def _gain(row: Row) -> str:
    return "" if row["gain"] is None else _pair(row["gain"], "mean", "+")


def _with_terms(rows: list[Row], unit: str) -> str:
    cells = [(row["name"], estimate(row), *terms(row)) for row in rows]
    return table(("model", unit, *TERMS), cells)


def _costs(row: Row) -> tuple[str, ...]:
    """Returns the cells of what a training cost, empty for a row that wasn't trained."""
    trained = "steps" in row
    return tuple(f"{row[name]:{spec}}" if trained else "" for name, spec in COSTS.items())


def _plot_rungs(path: Path, found: Found) -> None:
    rows = found["rungs"]
    at, bpd = range(len(rows)), [row["bpd"] for row in rows]
    with figure(path, "Rungs of the ladder, on test digits", (8, 4.3)) as (axes,):
        axes.errorbar(at, bpd, [row["standard_error"] for row in rows], fmt="o", capsize=4)
        axes.axhline(found["histogram"]["bpd"], color="black", linestyle=":", label="no latents")
        axes.set_xticks(at, [row["name"] for row in rows], rotation=25, ha="right")
        axes.set_ylabel("test bits per dim")


def _plot_objectives(path: Path, found: Found) -> None:
    rows = found["objectives"]
    title = "Test bound during training, by what the network predicts"
    with figure(path, title, (7, 4)) as (axes,):
        for row in rows:
            steps, bpd = zip(*row["curve"], strict=True)
            axes.plot(steps, bpd, "o-", markersize=3, label=PREDICTIONS[row["name"]])
        low = min(bpd for row in rows for _, bpd in row["curve"])
        axes.set_ylim(low - 0.1, low + 3.0)
        xlabel = "step (values more than 3 above the best are cut off)"
        axes.set(xlabel=xlabel, ylabel="test bits per dim")


def _plot_reverse(path: Path, found: Found) -> None:
    steps, kl = np.array([(row["step"], row["kl"]) for row in found["reverse"]]).T
    with figure(path, "How far a reverse step is from a Gaussian", (6, 4)) as (axes,):
        axes.loglog(steps, kl, "o-", label="mean over z_t")
        axes.loglog(steps, kl[-1] * (steps / steps[-1]) ** 3, ":", label="the cube of the step")
        axes.set(xlabel="step in gamma", ylabel="KL to the best Gaussian, nats")


PLOTS = {"rungs": _plot_rungs, "objectives": _plot_objectives, "feller": _plot_reverse}
