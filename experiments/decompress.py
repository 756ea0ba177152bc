"""Images from a file that experiments.compress wrote.

    python -m experiments.decompress --workdir=RUN FILE.vdmz -o OUTPUT
    python -m experiments.decompress --pretrained=digits FILE.vdmz -o OUTPUT
    python -m experiments.decompress --official=PATH --model=cifar10 FILE.vdmz -o OUTPUT

OUTPUT is what came in: a folder of pictures or an .npy, with the same pixels. The model must be the
one that the file was made with. Everything is checked in order before OUTPUT is there: that it is a
VDMZ file, whole and undamaged, of this model, on a machine that computes alike, and that the images
are what they were.
"""

import sys
from pathlib import Path

from absl import flags

from vdm_jax import compression
from vdm_jax.compression import VdmzError, file
from vdm_jax.data import pictures_io
from vdm_jax.errors import UserError, reaching
from vdm_jax.run import cli, restore, vdmz
from vdm_jax.train import memory

WANTED = "wanted FILE.vdmz, which experiments.compress wrote"


def decompress(argv: list[str]) -> Path:
    """Parses `argv`, writes the images; returns where."""
    values = flags.FlagValues()
    restore.define_model_flags(values)
    flags.DEFINE_string("output", None, "what to write", short_name="o", flag_values=values)
    options, rest = cli.parse_flags(values, argv, __doc__, most=1)
    if not rest:
        raise UserError(WANTED)
    out = vdmz.free(options["output"], "-o OUTPUT")
    path = Path(rest[0])
    try:
        content = _content(path)
        header, _ = file.unpack(content)
        columns = len(header.conditioning) // (4 * header.images)
        model, name = vdmz.load(options, header.event_shape, columns)
        compression.read_header(content, *model)
        said = pictures_io.check_meta(header.meta, (header.images, *header.event_shape), out)
        vdmz.check_room(model, header)
        print(f"{said}; {name}, T = {header.num_steps}", flush=True)
        with memory.exhausted(_too_large), vdmz.progress("decoded", header.images) as tell:
            images, meta = compression.decompress(content, *model, progress=tell)
    except ValueError as error:
        if isinstance(error, UserError) and not isinstance(error, VdmzError):
            raise
        raise UserError(f"{path}: {error}") from error
    pictures_io.write(meta, images, out)
    print(f"written to {out}")
    return out


def _too_large(said: str) -> VdmzError:
    return VdmzError(f"decoding takes more memory than there is ({said})")


def _content(path: Path) -> bytes:
    """Returns the bytes of a VDMZ file, whatever it holds; what doesn't begin as one isn't read."""
    with reaching(path):
        if not path.is_file():  # others may never end
            raise UserError(f"{path} is no file; {WANTED}")
        with path.open("rb") as opened:
            start = opened.read(file.START)
            file.check_start(start)
            try:
                return start + opened.read()
            except MemoryError:
                raise UserError(f"{path} is larger than the memory that there is") from None


if __name__ == "__main__":
    cli.guard(lambda: decompress(sys.argv))
