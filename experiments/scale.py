"""What the published runs need on 1, 8 and 64 chips: writes docs/scale.md.

    python -m experiments.scale --workdir=DIR [--out=docs] [--rounds=3]

Memory, bytes over the network and expected step times by a formula, and beside it what this
machine shows: the exchanges that XLA compiles for 8 simulated devices, the memory that it lays out,
and the processor time of small training steps. What was measured is left as scale.json in DIR;
--nomeasure writes the page anew from there.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags

from experiments import cli, scale_measure, scale_report, setup
from experiments.cli import UserError

__all__ = ["scale"]


def scale(argv: list[str]) -> Mapping[str, Any]:
    """Parse `argv`, measure, write the page; what was measured is returned."""
    values = flags.FlagValues()
    text, number, _ = cli.definers(values)
    text("workdir", "folder for scale.json")
    text("out", "folder for scale.md", "docs")
    number("rounds", "in which the measured steps take turns", 3)
    flags.DEFINE_bool("measure", True, "measure; else read DIR/scale.json", flag_values=values)
    cli.parse_flags(values, argv, __doc__)
    options: dict[str, Any] = {name: values[name].value for name in values if name != "help"}
    if not options["workdir"]:
        raise UserError("--workdir=DIR is missing: the folder for scale.json")
    workdir = setup.make_workdir(Path(options["workdir"]))
    out = setup.make_workdir(Path(options["out"]), "out")
    kept = workdir / "scale.json"
    if options["measure"]:
        found = scale_measure.measure(options["rounds"])
        kept.write_text(json.dumps(found, indent=1) + "\n")
    elif not kept.is_file():
        raise UserError(f"--nomeasure: there is no {kept}; measure first, without it")
    (out / "scale.md").write_text(scale_report.page(json.loads(kept.read_text())))
    print(f"written to {out / 'scale.md'}")
    return json.loads(kept.read_text())


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", scale_measure.DEVICES)
    cli.guard(lambda: scale(sys.argv))
