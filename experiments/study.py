"""docs/results.md: the numbers of `experiments.reproduce` beside the paper's, with plots."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vdm_jax.evaluation.report import table

__all__ = ["write"]

# The paper's table 2 (CIFAR-10, no augmentation): (T trained, T evaluated) -> bits per dim.
PAPER_SWEEP = {
    (10, 10): 4.31,
    (100, 100): 2.84,
    (None, 10): 7.54,
    (None, 100): 2.90,
    (None, 250): 2.74,
    (None, 500): 2.69,
    (None, 1000): 2.67,
    (None, 10000): 2.65,
    (None, None): 2.65,
}
# The paper's figure 4b (CIFAR-10): Var of the estimated bits per dim.
PAPER_VARIANCE = {"learned": 0.53, "linear log-SNR": 6.35, "cosine": 31.1, "beta-linear": 31.6}


def write(out: Path, found: Mapping[str, Any]) -> None:
    """results.md in `out`, its plots in `out`/results."""
    plots = out / "results"
    plots.mkdir(parents=True, exist_ok=True)
    _plot_steps(plots / "steps.png", found["sweep"])
    _plot_schedules(plots / "schedules.png", found["variance"])
    _plot(plots / "forms.png", _plot_forms, found["forms"])
    sections = (_head, _variance, _sweep, _networks, _forms, _likelihoods)
    (out / "results.md").write_text("\n".join(section(found) for section in sections))


def _head(found: Mapping[str, Any]) -> str:
    trained = "; ".join(f"`{name}`: {count:,}" for name, count in found["steps"].items())
    scale = found["scale"]
    shorter = "" if scale == 1 else f" with `--scale={scale:g}` (trainings that much as long)"
    return f"""# The paper's results at small scale

Written by `make reproduce` (`python -m experiments.reproduce`){shorter}. Training and measuring
took {found["minutes"]:.0f} minutes; every number below is from that run.

What differs from the paper, everywhere: the data are scikit-learn's 8x8 handwritten digits in 17
grey levels ({found["images"]} test images, embedded) in place of CIFAR-10's 32x32x3 in 256 levels;
the network is a residual network of 0.3 to 0.4 M parameters (`vdm_jax/nn/resnet.py`) in place of a
U-Net of 31 M; each model is trained for some thousand steps of 32 images in place of ten million of
128. So the bits per dim cannot be compared with the paper's; what can be is how they change with
the method. Steps of each run: {trained}.

Every figure is in bits per dim on the test images, ± its standard error. Where rows are of one
model and differ in the evaluation alone, they share their draws.
"""


def _variance(found: Mapping[str, Any]) -> str:
    rows = found["variance"]
    by_name = {row["schedule"]: row["variance"] for row in rows}
    ratio = by_name["linear log-SNR"] / by_name["learned"]
    body = table(
        ("schedule", "Var(bpd) here", "Var(bpd), paper", "bpd here"),
        (
            (
                row["schedule"],
                f"{row['variance']:.2f}",
                f"{PAPER_VARIANCE[row['schedule']]:.2f}",
                _bpd(row),
            )
            for row in rows
        ),
    )
    return f"""## Variance of the estimate, by schedule (paper: figure 4b, section 5.2)

One network, four schedules between the same end points, gamma from -13.3 to 5: the variance of the
bits per dim that one image, one uniform time and one noise give. The learned schedule is the
monotone network trained to minimise it (appendix I.2) in the same run as the network; its variance
is {ratio:.1f} times below the linear one's here, {6.35 / 0.53:.1f} times in the paper.

{body}

Four estimates of one integral: it doesn't depend on the schedule between its end points (paper,
eq. 18), only the error bars in the last column do. The end points are the paper's, for 256 levels.
At 17 levels the part of the range below gamma = -8 costs next to nothing, which the linear schedule
spends 29% of its times on and the learned one skips: between -8 and 5 the linear schedule's
variance would be smaller, and with it the ratio.

![Schedules and what each time costs](results/schedules.png)
"""


def _sweep(found: Mapping[str, Any]) -> str:
    body = table(
        ("T trained", "T evaluated", "bpd here", "± of the draws", "bpd, paper"),
        (
            (
                _steps(row["trained"]),
                _steps(row["num_steps"]),
                _bpd(row),
                f"{row['monte_carlo_error']:.4f}",
                f"{PAPER_SWEEP[row['trained'], row['num_steps']]:.2f}",
            )
            for row in found["sweep"]
        ),
    )
    by_steps = {(row["trained"], row["num_steps"]): row for row in found["sweep"]}
    verdicts = []
    for steps in (10, 100):
        own, other = by_steps[steps, steps], by_steps[None, steps]
        gain = other["bpd"] - own["bpd"]
        error = np.hypot(own["monte_carlo_error"], other["monte_carlo_error"])
        word = "better" if gain > 2 * error else "worse" if gain < -2 * error else "no different"
        verdicts.append(f"at T = {steps} it is {word} ({gain:+.3f} ± {error:.3f})")
    return f"""## Number of steps T, discrete and continuous training (paper: table 2)

In the paper more steps give a lower bound, and for few steps a model trained with as many is better
than the one trained in continuous time; here {" and ".join(verdicts)}. The schedule is linear and
fixed, gamma from -8 to 5 (at 17 levels -8 is to a pixel's bin what -13.3 is at 256).

{body}

![Bits per dim against T, here and in the paper](results/steps.png)
"""


def _networks(found: Mapping[str, Any]) -> str:
    rows = {row["network"]: row for row in found["networks"]}
    without, with_features = rows["eps"], rows["eps, Fourier features"]
    gain = without["bpd"] - with_features["bpd"]
    body = table(
        ("the network predicts", "bpd here", "reconstruction", "prior", "diffusion"),
        (
            (name, _bpd(row), *(f"{row['terms'][t]['mean']:.4f}" for t in row["terms"]))
            for name, row in rows.items()
        ),
    )
    return f"""## What the network predicts, and Fourier features (paper: figure 5, section 3.4)

The same network and training, with another last layer or another input. Fourier features of the
latent (periods of one and of two bins of a pixel) {"lower" if gain > 0 else "raise"} the bound by
{abs(gain):.3f} here. The paper shows in its figure 5 a clear gain on CIFAR-10, most of it only with
learned end points of the schedule; it uses eps throughout and has no table for x and v.

{body}

All four are the bound of the same kind of model; which is easiest to learn depends on the data. The
main model of this repository's digits experiment predicts the odds of the pixel levels instead:
{_bpd(_main(found))} after {found["steps"]["main"]:,} steps.
"""


def _forms(found: Mapping[str, Any]) -> str:
    body = table(
        ("T", "denoising-matching", "consistency", "Var, denoising-matching", "Var, consistency"),
        (
            (
                str(row["num_steps"]),
                *(f"{row[f]['mean']:.4f} ± {row[f]['error']:.4f}" for f in FORMS),
                *(f"{row[f]['variance']:.3g}" for f in FORMS),
            )
            for row in found["forms"]
        ),
    )
    return f"""## Two forms of one bound (Luo 2022, eq. 45 and 58)

The denoising-matching form averages over one latent, the consistency form over two. With the
second's latents drawn jointly (`vdm_jax/bounds.py` says how, and why his eq. 45 read literally is
another number) their expectations are the same; their variances part as T grows. Not in the paper.

{body}

![Variance of the two forms](results/forms.png)
"""


FORMS = ("matching", "consistency")


def _likelihoods(found: Mapping[str, Any]) -> str:
    part = found["likelihoods"]
    rows = part["rows"]
    body = table(
        ("quantity", "kind", "bpd", "± of the draws", "network evaluations"),
        (
            (
                row["quantity"],
                row["kind"],
                _bpd(row),
                f"{row['monte_carlo_error']:.4f}",
                f"{row['function_evaluations']:.0f}" if "function_evaluations" in row else "-",
            )
            for row in rows
        ),
    )
    return f"""## Bound, importance-weighted bound and ODE (paper: section 6, not computed there)

The main model on the first {rows[0]["num_images"]} test images. The chains' bound is to be compared
with the plain bound of the same T: it is never above it in expectation. The ODE's rows are its
density (Hutchinson's trace, tolerance {rows[-1]["tolerance"]:g}) with the pixels dequantised, which
makes them bounds too, of another model: that of the deterministic flow. Uniform dequantisation asks
the network about noise it was not trained on, which is what the truncated-normal one is for.

{body}
"""


# ---- helpers ----


def _main(found: Mapping[str, Any]) -> Mapping[str, Any]:
    rows = [row for row in found["sweep"] if row["trained"] is row["num_steps"] is None]
    return rows[0]


def _bpd(row: Mapping[str, Any]) -> str:
    return f"{row['bpd']:.4f} ± {row['standard_error']:.4f}"


def _steps(num_steps: int | None) -> str:
    return "continuous" if num_steps is None else str(num_steps)


def _plot(path: Path, draw: Callable[[Axes, Any], None], rows: Any) -> None:
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.add_subplot()
    draw(axes, rows)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def _plot_steps(path: Path, rows: list[Mapping[str, Any]]) -> None:
    """Ours and, beside it, the paper's."""
    paper: list[Mapping[str, Any]] = [
        {"trained": trained, "num_steps": steps, "bpd": bpd, "standard_error": 0.0}
        for (trained, steps), bpd in PAPER_SWEEP.items()
    ]
    figure = Figure(figsize=(9, 4), layout="constrained")
    both = {"digits, here": rows, "CIFAR-10, paper": paper}
    for axes, (title, some) in zip(figure.subplots(1, 2), both.items(), strict=True):
        _plot_sweep(axes, some)
        axes.set_title(title)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=110)


def _plot_sweep(axes: Axes, rows: list[Mapping[str, Any]]) -> None:
    one = [row for row in rows if row["trained"] is None and row["num_steps"]]
    own = [row for row in rows if row["trained"]]
    (limit,) = (row for row in rows if row["trained"] is row["num_steps"] is None)
    for group, style, label in (
        (one, "o-", "trained in continuous time"),
        (own, "s", "trained with this T"),
    ):
        axes.errorbar(
            [row["num_steps"] for row in group],
            [row["bpd"] for row in group],
            [row["standard_error"] for row in group],
            fmt=style, capsize=3, label=label,
        )  # fmt: skip
    axes.axhline(limit["bpd"], color="black", linestyle=":", label="continuous time")
    axes.set_xscale("log")
    axes.set_xlabel("number of steps T of the evaluation")
    axes.set_ylabel("bits per dim")


def _plot_forms(axes: Axes, rows: list[Mapping[str, Any]]) -> None:
    for form, label in zip(FORMS, ("denoising-matching", "consistency"), strict=True):
        axes.plot(
            [row["num_steps"] for row in rows],
            [row[form]["variance"] for row in rows],
            "o-", label=label,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("number of steps T")
    axes.set_ylabel("variance of one draw, (bits per dim)²")


def _plot_schedules(path: Path, rows: list[Mapping[str, Any]]) -> None:
    figure = Figure(figsize=(7, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for row in rows:
        profile = row["profile"]
        above.plot(profile["t"], profile["gamma"], label=row["schedule"])
        below.plot(profile["t"], np.maximum(profile["rms"], 1e-3), label=row["schedule"])
    above.set_ylabel(r"$\gamma(t) = -\log\,\mathrm{SNR}$")
    below.set_ylabel("root mean square of a draw,\nbits per dim")
    below.set_xlabel("t")
    learned = next(row["profile"]["rms"] for row in rows if row["schedule"] == "learned")
    below.set_ylim(0.0, 4.0 * max(learned))
    above.legend()
    for axes in (above, below):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
