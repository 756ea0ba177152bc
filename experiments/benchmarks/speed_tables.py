"""The tables of docs/benchmarks.md."""

import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from vdm_jax.evaluation.report import table

__all__ = ["TABLES", "machine"]

Found = Mapping[str, Any]
Row = Mapping[str, Any]


def machine() -> str:
    """Returns the device in words."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{device.device_kind}, jax {jax.__version__}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.processor() or platform.machine()
    return f"{len(models) or '?'} cores of {name}, no accelerator, jax {jax.__version__}"


def _run(found: Found) -> str:
    options = found["options"]
    command = "python -m experiments.benchmarks.speed --workdir=DIR"
    if options["official-code"]:
        command += " --official-code=PATH"
    for name in ("batch_size", "channels", "num_blocks", "rounds"):
        command += f" --{name}={options[name]}"
    loader = f"{found['loader']:,.0f}"
    head = ("machine", "command", "images a second of the loader")
    return table(head, [(found["machine"], f"`{command}`", loader)])


def _steps(found: Found) -> str:
    """In brackets is the ratio to the first row."""
    base = found["steps"][0]

    def cell(row: Row, name: str, spec: str, unit: int = 1) -> str:
        text = f"{row[name] / unit:{spec}}"
        return f"{text} ({row[name] / base[name]:.2f})" if row is not base and base[name] else text

    head = ["", "compiling, s", "of which the step", "step, s", "temporaries, MiB", "in all, MiB"]
    head += ["TFLOP/s", "share of peak", "a step of sampling, s"]
    cells = [
        [
            row["name"],
            cell(row, "compile", ".1f"),
            cell(row, "compile_step", ".1f"),
            cell(row, "step", ".3g"),
            cell(row, "temporaries", ",.0f", 2**20),
            cell(row, "need", ",.0f", 2**20),
            f"{row['tflops']:.2f}",
            "-" if row["share"] is None else f"{row['share']:.0%}",
            cell(row, "sample", ".3g"),
        ]
        for row in found["steps"]
    ]
    return table(head, cells)


def _samples(found: Found) -> str:
    if "quality" not in found:
        return ""
    head = ("sampler", "network calls", "MMD² x1000", "sliced W2² x1000")
    rows = [
        (
            row["sampler"],
            str(row["calls"] or "-"),
            *(f"{1e3 * row[name]:.3f} ± {1e3 * row[f'{name}_error']:.3f}" for name in DISTANCES),
        )
        for row in found["quality"]
    ]
    return table(head, rows)


def _evaluation(found: Found) -> str:
    if "quality" not in found:
        return ""
    head = ("method", "variance of a call", "calls for ±0.001", "times fewer")
    rows = [
        (r["method"], f"{r['variance']:.3f}", f"{r['calls']:,}", f"{r['times_fewer']:.1f}")
        for r in found["evaluation"]
    ]
    return table(head, rows)


DISTANCES = ("mmd", "sliced_wasserstein")
TABLES: dict[str, Callable[[Found], str]] = {
    make.__name__.strip("_"): make for make in (_run, _steps, _samples, _evaluation)
}
