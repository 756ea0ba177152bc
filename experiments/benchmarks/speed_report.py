"""The page that `experiments.bench` writes."""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from vdm_jax.evaluation import report as results
from vdm_jax.train import memory

__all__ = ["Row", "equal_quality", "machine", "page"]

Row = dict[str, Any]


def machine() -> str:
    """The device in words."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{device.device_kind}, jax {jax.__version__}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.processor() or platform.machine()
    return f"{len(models) or '?'} cores of {name}, no accelerator, jax {jax.__version__}"


def page(found: Mapping[str, Any]) -> str:
    """benchmarks.md."""
    options, steps = found["options"], found["steps"]
    base = steps[0]
    of = "the published code" if base["name"] == "published" else f"“{base['name']}”"
    command = "python -m experiments.bench --workdir=DIR"
    rounds, channels, blocks = (options[name] for name in ("rounds", "channels", "num_blocks"))
    if options["official-code"]:
        command += " --official-code=PATH"
    for name in ("batch_size", "channels", "num_blocks", "rounds"):
        command += f" --{name}={options[name]}"
    parts = [
        "# Benchmarks",
        f"Machine: {found['machine']}. Written by",
        f"    {command}",
        f"""Contenders did the same work in one process and took turns for {rounds} rounds; seconds
are medians, but that each was compiled once. In brackets: the ratio to {of}.""",
        "## Training",
        f"""The CIFAR-10 network ({blocks} + {blocks + 1} blocks of {channels} channels), batch
{options["batch_size"]}: the whole training step with dropout, AdamW and the average of the
parameters. “Compiling” is that of the first state and of the step, “temporaries” what the compiler
lays out beside state and batch.""",
        _steps(steps),
    ]
    if found["largest"]:
        parts += ["The largest batch, by powers of two, that fits:", _largest(found["largest"])]
    parts += [
        "## Data",
        f"""Batches of 128 shuffled, flipped 32x32 RGB images: {found["loader"]:,.0f} images a
second.""",
    ]
    if "quality" in found:
        parts += _bought(found, steps)
    return "\n\n".join(parts) + "\n"


def _steps(rows: Sequence[Row]) -> str:
    base = rows[0]

    def cell(row: Row, name: str, text: str) -> str:
        return f"{text} ({row[name] / base[name]:.2f})" if row is not base and base[name] else text

    head = ["", "compiling, s", "of which the step", "step, s", "temporaries, MiB", "in all, MiB"]
    head += ["TFLOP/s", "share of peak", "a step of sampling, s"]
    cells = [
        [
            row["name"],
            cell(row, "compile", f"{row['compile']:.1f}"),
            cell(row, "compile_step", f"{row['compile_step']:.1f}"),
            cell(row, "step", f"{row['step']:.3g}"),
            cell(row, "temporaries", f"{row['temporaries'] / 2**20:,.0f}"),
            cell(row, "need", f"{row['need'] / 2**20:,.0f}"),
            f"{row['tflops']:.2f}",
            "-" if row["share"] is None else f"{row['share']:.0%}",
            cell(row, "sample", f"{row['sample']:.3g}"),
        ]
        for row in rows
    ]
    return results.table(head, cells)


def _largest(rows: Sequence[Row]) -> str:
    cells = [
        [row["name"], row["model"], str(row["batch"]), memory.words(row["need"])] for row in rows
    ]
    return results.table(("", "model", "batch", "needs"), cells)


# ---- what a call of the network buys ----


def equal_quality(rows: Sequence[Row]) -> Row | None:
    """The fewest calls that are as good as the most ancestral steps, by both distances.

    As good: no farther from the test images by more than two standard errors of the difference.
    """
    best = max((r for r in rows if r["sampler"] == "ancestral"), key=lambda row: row["calls"])

    def as_good(row: Row) -> bool:
        return all(
            row[name] - best[name]
            <= 2.0 * (row[f"{name}_error"] ** 2 + best[f"{name}_error"] ** 2) ** 0.5
            for name in ("mmd", "sliced_wasserstein")
        )

    fast = [row for row in rows if row["calls"] and row["sampler"] != "ancestral" and as_good(row)]
    return min(fast, key=lambda row: row["calls"]) if fast else None


def _bought(found: Mapping[str, Any], steps: Sequence[Row]) -> list[str]:
    cells = [
        [
            row["sampler"],
            str(row["calls"] or "-"),
            *(
                f"{1e3 * row[name]:.3f} ± {1e3 * row[f'{name}_error']:.3f}"
                for name in ("mmd", "sliced_wasserstein")
            ),
        ]
        for row in found["quality"]
    ]
    costs = [
        [
            row["method"],
            f"{row['variance']:.3f}",
            f"{row['calls']:,}",
            f"{row['times_fewer']:.1f}",
        ]
        for row in found["evaluation"]
    ]
    return [
        "## Samples",
        """Digits, the model of `make train`: distances of samples to the test images (squared MMD
and squared sliced Wasserstein distance, times 1000), the mean of five sets and its standard error,
by sampler and calls of the network.""",
        results.table(("sampler", "network calls", "MMD² x1000", "sliced W2² x1000"), cells),
        _speed(found["quality"], steps),
        "## Evaluation",
        """The same model: the variance of the bound that one call of the network leaves (squares of
bits per dim), and the calls that bring the Monte-Carlo error to 0.001 bits per dim.""",
        results.table(("method", "variance of a call", "calls for ±0.001", "times fewer"), costs),
    ]


def _speed(quality: Sequence[Row], steps: Sequence[Row]) -> str:
    equal = equal_quality(quality)
    if equal is None:
        return "None of the fast samplers' settings is as good as 1000 ancestral steps here."
    base = steps[0]
    text = (
        f"As good as 1000 ancestral steps, by both distances within two standard errors of the "
        f"difference: {equal['sampler']} with {equal['calls']} calls"
    )
    if base["name"] != "published":
        return f"{text}, {1000 / equal['calls']:.0f} times fewer."
    times = 1000 * base["sample"] / (equal["calls"] * steps[1]["sample"])
    return (
        f"{text}. With a step of sampling of the CIFAR-10 network as above, the published code's "
        f"1000 steps take {times:.0f} times as long as these."
    )
