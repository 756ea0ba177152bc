"""The files that `experiments.evaluate` leaves: JSON, a Markdown table, a plot."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vdm_jax.train.model import unit_of

__all__ = ["markdown", "new_folder", "plot_profile", "table", "value", "write"]


def new_folder(parent: Path, step: int) -> Path:
    """A folder that isn't there yet, step-STEP or step-STEP-2, -3, ...: nothing is overwritten."""
    number = 1
    while True:
        folder = parent / (f"step-{step}" if number == 1 else f"step-{step}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


def write(folder: Path, found: Mapping[str, Any]) -> None:
    """result.json, result.md and, of a VDM, diffusion_loss.png in `folder`; prints the table."""
    text = markdown(found)
    print(f"\n{text}")  # first: on a full disk it is all that is left of hours
    (folder / "result.json").write_text(json.dumps(_without_nan(found), indent=1) + "\n")
    (folder / "result.md").write_text(text)
    if found["profile"]:
        plot_profile(found["profile"], folder / "diffusion_loss.png")
    print(f"written to {folder}")


def markdown(found: Mapping[str, Any]) -> str:
    """The results as Markdown: what was evaluated, by which command, and one row a quantity."""
    data, model = found["data"], found["model"]
    given = ", given the class of each image" if data["given_class"] else ""
    lines = [
        f"{model['name']} at step {model['step']}, on the {data['part']} images of {data['name']}"
        f"{given}.",
        "",
        f"    {found['command']}",
        "",
        table(
            (
                "quantity", "kind", found["rows"][0]["unit"], "± in all", "± of the draws",
                f"± between {'images' if found['groups'] is None else 'sources'}",
                "reconstruction", "prior", "diffusion", "images", "draws each",
                "network calls",
            ),
            [_cells(row) for row in found["rows"]],
        ),
    ]  # fmt: skip
    lines += [note for row in found["rows"] if (note := _note(row))]
    if found["pilot_calls"]:
        lines.append(
            f"\nBefore these, {found['pilot_calls']} network calls told how to draw. "
            "No estimate holds them."
        )
    if found["note"]:
        lines.append(f"\nOf this model {found['note']}.")
    if any(row["between_images_error"] == 0.0 for row in found["rows"]):
        lines.append("\nBetween images 0: too small to be seen beside the draws; --repeats helps.")
    if (found["groups"] or min(row["num_images"] for row in found["rows"])) < 20:
        few = "sources" if found["groups"] else "images"
        lines.append(f"\nFewer than 20 {few}: the errors between them are themselves rough.")
    if found["groups"] is not None:
        lines.append(
            f"\nImages of one source are alike: the error between them is that of "
            f"{found['groups']} sources."
        )
    return "\n".join(lines) + "\n"


def _cells(row: Mapping[str, Any]) -> list[str]:
    terms = row.get("terms", {})
    errors = ("standard_error", "monte_carlo_error", "between_images_error")
    return [
        row["quantity"],
        row["kind"],
        _number(value(row)),
        *(_number(row[name]) for name in errors),
        *(
            _number(terms[name]["mean"]) if terms else "-"
            for name in ("reconstruction", "prior", "diffusion")
        ),
        str(row["num_images"]),
        str(row["draws"]),
        str(row["network_calls"]),
    ]


def value(row: Mapping[str, Any]) -> float:
    """The number of a row, in the row's unit."""
    return float(row[unit_of(row).key])


def _note(row: Mapping[str, Any]) -> str:
    if "function_evaluations" not in row:
        return ""
    probes = "" if row["probes"] is None else f", {row['probes']} probe(s)"
    return (
        f"\n{row['quantity']}: tolerance {row['tolerance']:g}, on average "
        f"{row['function_evaluations']:.0f} evaluations of the network, {row['trace']} trace"
        f"{probes}. The density is exact up to the tolerance; for the discrete images it gives a "
        "bound, through the dequantisation."
    )


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def plot_profile(profile: Mapping[str, Any], path: Path) -> None:
    """The schedule gamma(t), and below it what each noise level costs."""
    t = np.asarray(profile["t"])
    figure = Figure(figsize=(7, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    above.plot(t, profile["gamma"], color="tab:green")
    above.set_ylabel(r"$\gamma(t) = -\log\,\mathrm{SNR}$")
    below.step(t, profile["mean"], where="mid", label="mean (its area is the diffusion term)")
    below.step(t, profile["rms"], where="mid", linestyle=":", label="root mean square of a draw")
    below.set_xlabel("t")
    below.set_ylabel(f"diffusion loss at t, {profile['unit']}")
    below.set_ylim(bottom=0.0)
    below.legend()
    for axes in (above, below):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _without_nan(value: Any) -> Any:
    """The same with None for NaN, which JSON has not."""
    if isinstance(value, Mapping):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value
