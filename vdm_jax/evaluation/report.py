"""The files that evaluations and samples leave: JSON, Markdown tables, plots."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vdm_jax import files
from vdm_jax.evaluation.bound import TERMS
from vdm_jax.evaluation.estimate import Estimate
from vdm_jax.evaluation.sample_distances import DISTANCES
from vdm_jax.train.model import unit_of
from vdm_jax.train.plots import figure

HEADS = ("MMD² x1000", "sliced W2² x1000")
QUALITY = ("sampler", "spacing", "network calls", *HEADS, "seconds")  # heads of `of_quality`

Row = Mapping[str, Any]


def new_folder(parent: Path, step: int) -> Path:
    """Returns a new folder, step-STEP or step-STEP-2, -3, ...: nothing is overwritten."""
    number = 1
    while True:
        folder = parent / (f"step-{step}" if number == 1 else f"step-{step}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Returns a Markdown table."""
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(folder: Path, found: Row) -> None:
    """Writes result.json, result.md and, of a VDM, diffusion_loss.png; prints the table."""
    text = _markdown(found)
    try:
        strict = json.loads(json.dumps(found), parse_constant=lambda _: None)  # JSON has no NaN
        files.write_json(folder / "result.json", strict)
        files.write(folder / "result.md", text)
        if found["profile"]:
            _plot_profile(found["profile"], folder / "diffusion_loss.png")
    finally:
        print(f"\n{text}")  # on a full disk it is all that is left of hours
    print(f"written to {folder}")


def _markdown(found: Row) -> str:
    data, model = found["data"], found["model"]
    sources, rows = found["groups"], found["rows"]
    units = "sources" if sources else "images"
    given = f", given the {data['given']} of each image" if data["given"] else ""
    head = ["quantity", "kind", rows[0]["unit"], "± in all", "± of the draws"]
    head += [f"± between {units}", *TERMS, "images", "draws each", "network calls"]
    notes = [_ode_note(row) for row in rows if "function_evaluations" in row]
    if calls := found["pilot_calls"]:
        notes.append(f"Before these, {calls} network calls told how to draw; no estimate has them.")
    if found["note"]:
        notes.append(f"Of this model {found['note']}.")
    if any(row["between_images_error"] == 0.0 for row in rows):
        notes.append("Between images 0: too small to be seen beside the draws; --repeats helps.")
    number = sources or min(row["num_images"] for row in rows)
    if number == 1:
        notes.append(f"A row of one {units[:-1]} has no error between {units}, nor one in all.")
    elif number < 20:
        notes.append(f"Fewer than 20 {units}: the errors between them are themselves rough.")
    if sources:
        most = f"errors are those of sources, {sources} or more"
        notes.append(f"Images of one source are alike: {most}.")
    on = f"{model['name']} at step {model['step']}, on the {data['part']} images of {data['name']}"
    text = f"{on}{given}.\n\n    {found['command']}\n\n{table(head, map(_cells, rows))}\n"
    return text + "".join(f"\n{note}\n" for note in notes)


def _cells(row: Row) -> list[str]:
    terms = row.get("terms", {})
    errors = ("standard_error", "monte_carlo_error", "between_images_error")
    numbers = [value(row), *(row[name] for name in errors)]
    numbers += [terms[name]["mean"] if terms else math.nan for name in TERMS]
    counts = (str(row[name]) for name in ("num_images", "draws", "network_calls"))
    shown = ("-" if math.isnan(number) else f"{number:.4f}" for number in numbers)
    return [row["quantity"], row["kind"], *shown, *counts]


def value(row: Row) -> float:
    """Returns the number of a row, in the row's unit."""
    return float(row[unit_of(row).key])


def estimate(row: Row) -> str:
    """Returns the number of a row and its standard error, as in 1.2345 ± 0.0067."""
    return str(Estimate(value(row), row["standard_error"], row.get("monte_carlo_error", math.nan)))


def line(row: Row) -> str:
    """Returns a row in one line, as it is found."""
    return f"{row['quantity']}: {estimate(row)} {row['unit']}"


def _ode_note(row: Row) -> str:
    probes = "" if row["probes"] is None else f", {row['probes']} probe(s)"
    return (
        f"{row['quantity']}: tolerance {row['tolerance']:g}, {row['function_evaluations']:.0f} "
        f"evaluations of the network, {row['trace']} trace{probes}; of images it gives a bound."
    )


def _plot_profile(profile: Row, path: Path) -> None:
    title = "Learned or given schedule, and what each noise level costs"
    t = profile["t"]
    with figure(path, title, (7, 6), (2, 1)) as (above, below):
        above.plot(t, profile["gamma"])
        above.set(ylabel=r"$\gamma(t) = -\log\,\mathrm{SNR}$")
        below.step(t, profile["mean"], where="mid", label="mean (its area is the diffusion term)")
        below.step(
            t, profile["rms"], where="mid", linestyle=":", label="root mean square of a draw"
        )
        below.set(xlabel="t", ylabel=f"diffusion loss at t, {profile['unit']}")
        below.set_ylim(bottom=0.0)


def of_distances(rows: Iterable[Row]) -> str:
    """Returns a table of `sample_quality.distances`."""
    cells = []
    for row in rows:
        cell = [row["images"], str(row["count"])]
        for name in DISTANCES:
            cell += [f"{1e3 * row[name]:.3f}", _thousandths(*row[f"{name}_by_chance"])]
        cells.append(cell)
    heads = [word for head in HEADS for word in (head, "by chance")]
    return table(("to as many test images", "images", *heads), cells)


def of_quality(row: Row) -> list[str]:
    """Returns the cells of a row of `sample_quality.quality`."""
    errors = [_thousandths(row[name], row[f"{name}_error"]) for name in DISTANCES]
    calls = str(row["calls"] or "-")
    return [row["sampler"], row["spacing"], calls, *errors, f"{row['seconds']:.1f}"]


def _thousandths(mean: float, error: float) -> str:
    return f"{1e3 * mean:.3f} ± {1e3 * error:.3f}"
