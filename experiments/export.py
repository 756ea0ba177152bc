"""Writes a trained model as one file, of 2 bytes a parameter, that `--pretrained` takes.

    python -m experiments.export --workdir=RUN -o MODEL.npz

The file holds the average of the parameters (EMA) as float16 and the settings of the run, without
its folders. `--pretrained=MODEL.npz` of evaluate, sample, compress and decompress takes it, and
`--init_from=MODEL.npz` of a training.
"""

import sys
from pathlib import Path

import jax
from absl import flags

from vdm_jax import files
from vdm_jax.errors import UserError
from vdm_jax.run import build, cli, pretrained, restore, vdmz
from vdm_jax.run.models import make_model


def export(argv: list[str]) -> Path:
    """Parses `argv`, writes the file; returns where."""
    values = flags.FlagValues()
    text, _, _ = cli.definers(values)
    text("workdir", restore.ENOUGH)
    text("checkpoint", "a step of the run, or a checkpoint's folder; the newest if not given")
    flags.DEFINE_string("output", None, "the file to write", short_name="o", flag_values=values)
    options, _ = cli.parse_flags(values, argv, __doc__)
    if not options["workdir"]:
        raise UserError("--workdir=DIR is missing: the folder of the run")
    out = vdmz.free(options["output"], "-o MODEL.npz")
    of = restore.saved(Path(options["workdir"]), options["checkpoint"])
    shape, levels, condition = pretrained.images_told(of)
    model = make_model(of.config, shape, levels, condition)
    expected = jax.eval_shape(model.init, jax.random.key(0))
    params = pretrained.parameters(of, expected, build.make_mesh())
    with files.writing(out) as partial:
        pretrained.write(partial, of, params)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{out}: {count:,} parameters in {out.stat().st_size:,} bytes, step {of.step}")
    return out


if __name__ == "__main__":
    cli.guard(lambda: export(sys.argv))
