"""The section of docs/scale.md that says where each axis stops paying."""

from experiments import plans, results
from experiments.chips import CHIPS
from experiments.plans import ALLOWANCE, CASES, Case
from vdm_jax.nn.blocks import REMATS

__all__ = ["advice"]

A100, H100 = CHIPS[:2]
MEMORIES = (16e9, 40e9, 80e9, 141e9)


def advice() -> str:
    """Where more chips, split parameters, remat, bfloat16 and micro-batches pay."""
    return "\n\n".join([_data_axis(), _fsdp(), _remat()])


def _data_axis() -> str:
    rows = [
        [case.name, dtype]
        + [
            f"{plans.break_even(case.with_settings(dtype=dtype), chips, chip):.2g}"
            for chip in (A100, H100)
            for chips in (8, 64)
        ]
        for case in CASES
        for dtype in ("float32", "bfloat16")
    ]
    head = ["run", "dtype", "8 A100", "64 A100", "8 H100", "64 H100"]
    cifar = plans.seconds(CASES[0].with_settings(dtype="bfloat16"), 64, H100)
    share = cifar.exchange / cifar.middle
    eight = plans.seconds(CASES[0].with_settings(dtype="bfloat16"), 8, H100)
    slow, fast, gain = 1e3 * eight.middle, 1e3 * cifar.middle, eight.middle / cifar.middle
    return f"""## Where each axis stops paying

**More chips for the same batch.** Images a chip (in a micro-batch) at which the exchange takes as
long as computing:

{results.table(head, rows)}

Within a machine it hardly matters. cifar10's 128 images over 64 chips are 2 each: in bfloat16 on
H100s a step takes an expected {fast:.1f} ms, {share:.0%} of it exchange, against {slow:.1f} ms on
8 chips: {gain:.1f} times faster with 8 times the chips; and 2 images fill no chip, so that its
utilisation falls below what is assumed. Use 8 chips for it, or a larger batch with another learning
rate."""


def _fsdp() -> str:
    rows = []
    for case in CASES:
        cells = [case.name, f"{plans.plan(case, 64).parameters / 2**20:.0f}"]
        for shards in (1, 8, 64):
            found = plans.plan(case, 64, shards)
            cells.append(f"{found.state / 2**20:,.0f} + {found.gathered / 2**20:,.0f}")
        rows.append(cells)
    head = ["run", "parameters, MiB", "shard_params 1", "8", "64"]
    return f"""**`shard_params`.** State and gathered copy a chip, MiB:

{results.table(head, rows)}

It saves at most three of the four copies of the state, whichever way they are split further, and
costs nothing on the network if it stays within a machine (8): the sum of what is sent is the same,
and the part between machines is of shares. With these networks state is a small part of an
80 GB chip: what fills it is activations, which a split of parameters doesn't touch. Use it on chips
of 16 GB, or for networks ten times as large."""


def _remat() -> str:
    return f"""**`remat`, `bfloat16`, `accumulate`.** Bytes an image, operations relative to `none`,
and the largest batch of one chip (the count with the factor {ALLOWANCE}):

{_remat_table(CASES[0])}

{_remat_table(CASES[-1])}

`matmuls` repeats no convolution and keeps a fraction of what `none` does: there is no reason for
`none`. `blocks` pays only where `matmuls` doesn't fit and `accumulate` would leave fewer images at
a time than fill the chip. `bfloat16` nearly halves what is kept and doubles the peak; it is the
first thing to try on an accelerator (on a CPU it saves nothing). `accumulate` costs no operations,
but each micro-batch exchanges the gradient: across machines keep the images of a micro-batch above
the first table of this section."""


def _remat_table(case: Case) -> str:
    none = plans.counted_cost(case.with_settings(remat="none")).flops
    rows = []
    for remat in REMATS:
        for dtype in ("float32", "bfloat16"):
            of = case.with_settings(remat=remat, dtype=dtype)
            counted = plans.counted_cost(of)
            batches = [plans.largest_batch(of, memory) for memory in MEMORIES]
            rows.append(
                [f"{remat}, {dtype}", f"{counted.image / 2**20:.0f}", f"{counted.flops / none:.2f}",
                 *map(str, batches)]
            )  # fmt: skip
    head = [case.name, "MiB an image", "operations", *(f"{m / 1e9:.0f} GB" for m in MEMORIES)]
    return results.table(head, rows)
