"""Images from a file that experiments.compress wrote.

    python -m experiments.decompress --workdir=RUN FILE.vdmz -o OUTPUT
    python -m experiments.decompress --official=PATH --model=cifar10 FILE.vdmz -o OUTPUT

OUTPUT is what came in: a folder of pictures, an .npz or an .npy, with the same pixels. The model
must be the one that the file was made with. Everything is checked in order before OUTPUT is there:
that it is a VDMZ file, whole and undamaged, of this model, on a machine that computes alike, and
that the images are what they were.
"""

import sys
from pathlib import Path
from typing import Any

from absl import flags

from vdm_jax import compression
from vdm_jax.compression import file
from vdm_jax.data import pictures_io
from vdm_jax.run import cli, coding
from vdm_jax.run.cli import UserError


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    coding.define_flags(values)
    flags.DEFINE_string(
        "output", None, "the file or folder to write", short_name="o", flag_values=values
    )
    return values


def decompress(argv: list[str]) -> Path:
    """Parse `argv`, write the images; returns where."""
    values = _flags()
    rest = cli.parse_flags(values, argv, __doc__, most=1)
    options: dict[str, Any] = {name: values[name].value for name in values if name != "help"}
    if not rest:
        raise UserError("wanted FILE.vdmz, which experiments.compress wrote")
    out = coding.free(options["output"], "-o OUTPUT")
    path = Path(rest[0])
    content = _content(path)
    try:
        header, _ = file.unpack(content)
        vdm, name = coding.load(options, header.event_shape)
        compression.read_header(content, vdm)
        said = pictures_io.check_meta(header.meta, (header.images, *header.event_shape), out)
        print(f"{said}; {name}, T = {header.num_steps}", flush=True)
        with coding.progress("decoded") as tell:
            images, meta = compression.decompress(content, vdm, tell)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    pictures_io.write(meta, images, out)
    print(f"written to {out}")
    return out


def _content(path: Path) -> bytes:
    """Of a VDMZ file, whatever it holds; what doesn't begin as one isn't read."""
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # it may never end
            raise UserError(
                f"{path} is no file; wanted FILE.vdmz, which experiments.compress wrote"
            )
        with path.open("rb") as opened:
            start = opened.read(file.START)
            file.check_start(start)
            return start + opened.read()
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}") from error
    except compression.VdmzError as error:
        raise UserError(f"{path}: {error}") from error
    except MemoryError as error:
        raise UserError(f"{path} is larger than the memory that there is") from error


if __name__ == "__main__":
    cli.guard(lambda: decompress(sys.argv))
