"""The sections of docs/scale.md in which formulas and one machine stand beside each other."""

from collections.abc import Mapping
from typing import Any

from experiments import plans, results
from experiments.plans import ALLOWANCE, CASES

__all__ = ["exchanges", "memory", "operations", "times"]

BENCHMARK = {"matmuls": 655, "blocks": 529, "none": 2491}
"""MiB of temporaries of the CIFAR-10 network at batch 4, from docs/benchmarks.md and speed.md."""


def exchanges(found: Mapping[str, Any]) -> str:
    """Bytes of collective operations."""
    rows = []
    for of in found["exchanges"]:
        for kind in ("all-gather", "all-reduce"):
            expected, compiled = of["expected"][kind], of["compiled"][kind]
            rows.append(
                [f"({of['data']}, {of['fsdp']})", kind, f"{expected:,}", f"{compiled:,}",
                 f"{compiled - expected:,}"]
            )  # fmt: skip
    others = {
        kind: max(of["compiled"][kind] for of in found["exchanges"])
        for kind in ("reduce-scatter", "all-to-all", "collective-permute")
    }
    named = ", ".join(f"{kind} {size:,}" for kind, size in others.items())
    return f"""## Checked: exchanges

The training step of a U-Net of 2 + 3 blocks of 64 channels, compiled for 8 simulated CPU devices as
(data, fsdp); bytes of the results of collective operations, loops unrolled:

{results.table(("mesh", "operation", "formula", "compiled", "difference"), rows)}

The difference is sums of a few numbers: the loss, its terms, the gradient's norm. Others: {named}.
A CPU has no reduce-scatter: there the sum whose share a device keeps is an all-reduce, (s-1)/s P_s
more; a GPU's and a TPU's compilers are known to turn the pair into one, which was not seen here.
Gradients are exchanged for every micro-batch, also in the scan (`tests/experiments/test_scale.py`).

Parameters that are split are gathered before the forward pass, all at once (`sharding.gathered`).
Left to itself the compiler split activations by channels and exchanged those of the whole batch."""


def memory(found: Mapping[str, Any]) -> str:
    """Temporaries of a step."""
    rows = [
        [
            f"{of['num_blocks']}", str(of["batch"]), of["remat"], f"{of['count'] / 2**20:.0f}",
            f"{of['temporaries'] / 2**20:.0f}", f"{of['temporaries'] / of['count']:.2f}",
        ]
        for of in found["programs"]
    ]  # fmt: skip
    for remat, known in BENCHMARK.items():
        count = plans.counted_of(CASES[0].with_settings(remat=remat), 4) / 2**20
        rows.append(["32", "4", remat, f"{count:.0f}", f"{known:,}", f"{known / count:.2f}"])
    head = ["blocks in a half", "batch", "remat", "count, MiB", "XLA's temporaries, MiB", "ratio"]
    return f"""## Checked: memory

128 channels, float32, one device; the last three from [benchmarks.md](benchmarks.md) and
[speed.md](speed.md):

{results.table(head, rows)}

XLA on a CPU mostly needs more than the count, most with `blocks`; the tables of this page multiply
it by {ALLOWANCE}. A GPU's compiler fuses and schedules otherwise: a run says what its step needs
before it begins, and that is what counts. On a CPU bfloat16 saves next to nothing
([benchmarks.md](benchmarks.md)); the count is of an accelerator that has it."""


def operations(found: Mapping[str, Any]) -> str:
    """Beside the compiler's own count."""
    rows = [
        [
            str(of["num_blocks"]), str(of["batch"]), of["remat"], f"{of['flops'] / 1e9:.1f}",
            f"{of['compiler_flops'] / 1e9:.1f}",
        ]
        for of in found["programs"]
        if of["compiler_flops"]
    ]  # fmt: skip
    head = ["blocks in a half", "batch", "remat", "count, GFLOP", "XLA's cost analysis, GFLOP"]
    return f"""## Checked: operations

{results.table(head, rows)}

XLA counts a loop's body once whatever its length, so that with one block its number is the
program's and with four it is not; it also counts norms and the optimiser, and leaves out what falls
on an image's margin."""


def times(found: Mapping[str, Any]) -> str:
    """Ratios of steps."""
    base = found["programs"][0]
    rows = [
        [
            str(of["num_blocks"]), str(of["batch"]), of["remat"], f"{min(of['seconds']):.2f}",
            f"{of['flops'] / min(of['seconds']) / found['peak']:.0%}",
            f"{of['flops'] / base['flops']:.2f}",
            f"{min(of['seconds']) / min(base['seconds']):.2f}",
        ]
        for of in found["programs"]
    ]  # fmt: skip
    peak = found["peak"] / 1e9
    head = ["blocks in a half", "batch", "remat", "processor seconds a step", "of the peak"]
    head += ["ratio to the first, formula", "measured"]
    return f"""## Checked: times

The same steps, in seconds of processor time over all cores (the machine had other work), the least
of {found["rounds"]} rounds. The peak is that of a float32 matrix product in the same process,
{peak:.0f} GFLOP a processor second.

{results.table(head, rows)}"""
