"""The page that `experiments.scale` writes."""

from collections.abc import Mapping
from typing import Any

from experiments import plans, results, scale_advice, scale_checks
from experiments.chips import CHIPS, LINKS, UTILISATION, Chip
from experiments.plans import CASES, Case

__all__ = ["needs_row", "page"]

COUNTS = (1, 8, 64)
A100, H100 = CHIPS[:2]
DAY = 86400.0


def page(found: Mapping[str, Any]) -> str:
    """scale.md, of what `scale_measure.measure` found."""
    parts = [_head(found), _needs(), _whole_runs(), _assumptions(), _formula()]
    parts += [
        scale_checks.exchanges(found),
        scale_checks.memory(found),
        scale_checks.operations(found),
        scale_checks.times(found),
        scale_advice.advice(),
    ]
    return "\n\n".join(parts) + "\n"


def _bfloat16(case: Case) -> Case:
    return case.with_settings(dtype="bfloat16")


def _head(found: Mapping[str, Any]) -> str:
    low, middle, high = (f"{u:.0%}" for u in UTILISATION)
    return f"""# Memory, network and time of the published runs

**Every step time here is expected, not measured**: operations that are counted, divided by a
maker's peak and an assumed utilisation of {middle} ({low} to {high}). No GPU and no TPU was
available. What could be checked was checked on {found["machine"]}: memory,
operations and exchanges by what XLA compiles there, the formula's ratios by small training steps.
Written by

    python -m experiments.scale --workdir=DIR

GB are 10^9 bytes, GiB 2^30."""


# ---- the published runs ----


def _needs() -> str:
    rows = [needs_row(case, chips) for case in CASES for chips in COUNTS]
    head = ["run", "batch", "chips", "accumulate", "images at a time", "memory a chip, GiB"]
    head += ["float32, GB sent a step", "A100, ms", "H100, ms", "H100 bfloat16, ms"]
    head += ["H100 bfloat16, days a million steps"]
    return f"""## What the runs need

`remat=matmuls` (the default), `shard_params=1`; `accumulate` is the least that fits into 80 GB in
float32, in all columns. Times are of a step: expected, in brackets at high and low utilisation.
The ImageNet runs are taken with 512 images a step and two million steps, said to be the paper's (it
could not be looked up here); the configurations have the published code's 128 and ten million.

{results.table(head, rows)}"""


def needs_row(case: Case, chips: int) -> list[str]:
    """Of the table of the published runs."""
    parts = plans.fewest_parts(case, chips, 80e9)
    if parts is None:
        return [case.name, str(case.batch), str(chips), "does not fit", *["-"] * 7]
    found = plans.plan(case, chips, accumulate=parts)
    narrow = _bfloat16(case)
    days = plans.seconds(narrow, chips, H100, parts).middle * 1e6 / DAY
    return [
        case.name,
        str(case.batch),
        str(chips),
        str(parts),
        f"{found.images:g}",
        f"{found.memory / 2**30:.1f}",
        f"{found.sent / 1e9:.2f}",
        _milliseconds(case, chips, A100, parts),
        _milliseconds(case, chips, H100, parts),
        _milliseconds(narrow, chips, H100, parts),
        f"{days:.3g}",
    ]


def _milliseconds(case: Case, chips: int, chip: Chip, parts: int) -> str:
    t = plans.seconds(case, chips, chip, parts)
    return f"{1e3 * t.middle:.3g} ({1e3 * t.low:.3g} to {1e3 * t.high:.3g})"


def _whole_runs() -> str:
    rows = []
    for case in CASES:
        cells = [case.name, f"{case.steps / 1e6:g} M of {case.batch}"]
        for chips, chip in ((8, A100), (8, H100), (64, H100)):
            cells += [_days(of, case, chips, chip) for of in (case, _bfloat16(case))]
        rows.append(cells)
    head = ["run", "steps", "8 A100", "the same, bfloat16", "8 H100", "the same, bfloat16"]
    head += ["64 H100", "the same, bfloat16"]
    return f"""Days of whole runs (expected). `cifar10:aug` names a hundred million steps, an upper
limit: stop it by its loss.

{results.table(head, rows)}"""


def _days(of: Case, as_float32: Case, chips: int, chip: Chip) -> str:
    parts = plans.fewest_parts(as_float32, chips, 80e9)
    if parts is None:
        return "-"
    return f"{plans.seconds(of, chips, chip, parts).middle * of.steps / DAY:.3g}"


# ---- assumptions and formula ----


def _assumptions() -> str:
    rows = [
        [
            chip.name,
            f"{chip.memory / 1e9:.0f}",
            f"{chip.float32 / 1e12:.0f}",
            f"{chip.bfloat16 / 1e12:.0f}",
            f"{chip.bandwidth / 1e12:.2f}",
            f"{chip.link / 1e9:.0f}",
            str(chip.machine),
            f"{chip.network / 1e9:.0f}",
        ]
        for chip in CHIPS
    ]
    head = ["chip", "memory, GB", "float32 peak, TFLOP/s", "bfloat16 peak, TFLOP/s"]
    head += ["memory, TB/s", "link, GB/s", "chips joined by it", "network of a machine, GB/s"]
    shares = ", ".join(f"{u:.0%}" for u in UTILISATION)
    narrow, wide = _passes(128, H100)
    return f"""## Assumptions

{results.table(head, rows)}

Peaks are without sparsity, links in one direction: the makers' data sheets (NVIDIA A100, H100 and
H200; Google Cloud, "TPU v5p"). "float32" is what JAX does by default with it: TF32 on these GPUs,
bfloat16 products on a TPU. Between machines of 8 GPUs one port of 400 Gb/s is assumed; a machine
with a port a GPU has eight times that.

Utilisation: {shares} of the peak, and {LINKS:.0%} of a link's rate. Memory traffic
is not counted apart, and is why more is not expected: between two convolutions of 128 channels the
norm, swish and dropout pass about five times over the activations, which at the H100's full
bandwidth takes {narrow:.1f} times as long as the bfloat16 convolution at full peak
({wide:.1f} times with 256 channels). Measure one step on your machine and divide: all times scale
with it."""


def _passes(channels: int, chip: Chip) -> list[float]:
    """Five reads or writes of 2 bytes a channel against a 3x3 convolution, at a pixel."""
    return [
        (10 * c / chip.bandwidth) / (18 * c**2 / chip.bfloat16) for c in (channels, 2 * channels)
    ]


def _formula() -> str:
    case = CASES[0]
    of, counted = plans.plan(case, 1), plans.counted_cost(case)
    fixed, image = counted.fixed / 2**20, counted.image / 2**20
    maps = case.config.model.num_blocks * 6 * case.config.model.channels * 32 * 32 * 4 / 2**20
    return f"""## The formula

With n chips, s of them sharing parameters (`--config.train.shard_params`), B images a step in
a (`--config.train.accumulate`) micro-batches, P bytes of parameters, of which P_s in leaves that
`vdm_jax.train.sharding.of_parameters` splits and P_c in leaves that are copied:

* state a chip = 4 (P_c + P_s / s): parameters, their average and Adam's two moments. Exact; it is
  what `step.abstract_state` says.
* a step's own memory a chip = fixed + image x B / (n a), plus P_s gathered if s > 1 and the sum of
  gradients if a > 1. Both are counted in the program that JAX traces (`experiments/cost.py`): each
  result is alive from its operation to its last use, and the worst moment counts. For cifar10
  that is {fixed:.0f} MiB, of the gradient what is there by then, and {image:.0f} MiB an image: with
  32 + 32 scanned blocks, `matmuls` keeps six maps of channels x pixels for each pair (two inputs,
  two results of a first convolution, the skip and its gradient), {maps:.0f} MiB, and the rest is
  one block's work. It is at least P, the gradient.
* sent a chip = (s-1)/s P_s for the gather, and for each micro-batch (s-1)/s P_s + 2 (n/s-1)/(n/s)
  P_s/s + 2 (n-1)/n P_c for the gradients. For a = 1 that is 2 (n-1)/n P, whatever s.
* operations = those of convolutions and matrix products in the same program:
  {counted.flops / 1e9:.0f} GFLOP an image of cifar10, three times the forward pass, and more with
  `remat=blocks`.
* time = operations / (n x peak x utilisation) + a x sent within and between machines / links.

cifar10 has {of.parameters / 1e6:.0f} MB of parameters and {of.state / 1e6:.0f} MB of state."""
