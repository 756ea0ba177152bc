"""Images of a file or folder as one array, and the file or folder again from that array.

- An .npy of integers [n, height, width] or [n, height, width, channels] comes back with the same
  values, type, byte order, shape and memory order.
- An .npz comes back with the same arrays under the same names in the same order. Those that hold
  integers in 3 or 4 axes are the images; the others are kept as they are.
- A folder of PNG, JPEG and WebP pictures of one size comes back as a folder of PNG files: their
  pixels as decoded, upright as EXIF says, not their files. EXIF, colour profiles and an alpha
  channel that is opaque are not kept. A grey picture comes back as grey, one with a palette as RGB.
  NAME.png keeps its name, any other NAME comes back as NAME.png.
"""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax import files
from vdm_jax.data.pictures_meta import Array, Folder, Npy, Npz, unpack
from vdm_jax.data.pictures_read import Pictures, of_array, read
from vdm_jax.errors import UserError

__all__ = ["Pictures", "check_meta", "of_array", "read", "write"]

_PIECE = 1 << 24  # bytes


_SUFFIXES = {Npy: ".npy", Npz: ".npz", Folder: ""}
_KINDS = {".npy": "an .npy", ".npz": "an .npz", "": "a folder"}


def check_meta(meta: bytes, shape: tuple[int, ...], out: Path | None = None) -> str:
    """Returns in words what came in, such as "folder of 12 pictures".

    `meta` may be anything: nothing in it is run, or unpacked to more than 64 MiB.

    Raises:
      ValueError: it isn't one for images of `shape`, [n, height, width, channels].
      UserError: `out`, where it is to be written, has the suffix of something else.
    """
    layout = unpack(meta, shape)
    wanted = _SUFFIXES[type(layout)]
    found = out.suffix.lower() if out else wanted
    if found != wanted and found in (".npy", ".npz", ".png", ".jpg", ".jpeg", ".webp"):
        raise UserError(f"{out} would be {_KINDS[wanted]}, as what was compressed; name it so")
    return layout.words()


def write(meta: bytes, images: np.ndarray, out: Path) -> None:
    """Writes uint8 `images` [n, height, width, channels] as what they came in as.

    `out` is there as a whole, and on the disk, or not at all.

    Raises:
      ValueError: `meta` isn't one for images of this shape.
      UserError: `out` is there already or can't be written, or the images don't go with `meta`.
    """
    if images.dtype != np.uint8:
        raise ValueError(f"images must be uint8, not {images.dtype}")
    layout = unpack(meta, images.shape)
    with files.writing(out) as partial:
        if isinstance(layout, Folder):
            _write_folder(partial, layout, images)
        else:
            with files.durable(partial) as file:
                _write_file(file, layout, images)


def _write_file(file: Any, layout: Npy | Npz, images: np.ndarray) -> None:
    if isinstance(layout, Npy):
        _write_array(file, layout.array, images)
        return
    first = at = 0
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in layout.arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                if array.is_images:
                    _write_array(member, array, images[first : first + array.shape[0]])
                    first += array.shape[0]
                else:
                    _write_header(member, array)
                    member.write(layout.others[at : at + array.bytes])
                    at += array.bytes


def _write_header(file: Any, array: Array) -> None:
    """As numpy writes it, to the byte."""
    told = {
        "descr": np.lib.format.dtype_to_descr(array.dtype),
        "fortran_order": array.by_columns,
        "shape": array.shape,
    }
    np.lib.format.write_array_header_1_0(file, told)


def _write_array(file: Any, array: Array, images: np.ndarray) -> None:
    most = int(images.max())
    if most > np.iinfo(array.dtype).max:
        raise UserError(
            f"the images hold the value {most}, which {array.dtype} can't: they or the words on "
            "what came in are damaged"
        )
    _write_header(file, array)
    rows = images.reshape(array.shape)
    if array.by_columns:
        rows = rows.T
    step = max(1, _PIECE // (array.bytes // len(rows)))
    for start in range(0, len(rows), step):
        file.write(rows[start : start + step].astype(array.dtype).tobytes())


def _write_folder(partial: Path, folder: Folder, images: np.ndarray) -> None:
    made = {partial}
    partial.mkdir()
    for index, (name, pixels) in enumerate(zip(folder.names(), images, strict=True)):
        path = partial / name
        if path.parent not in made:
            path.parent.mkdir(parents=True, exist_ok=True)
            made.update(path.parents[: len(Path(name).parents) - 1])
        with files.durable(path) as file:
            file.write(_png(pixels, folder.is_grey(index), name))
    for each in made:
        files.sync(each)


def _png(pixels: np.ndarray, is_grey: bool, name: str) -> bytes:
    from PIL import Image

    if is_grey:
        if (pixels != pixels[..., :1]).any():
            raise UserError(f"{name!r} was grey, but its pixels are not: they are damaged")
        pixels = pixels[..., 0]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()
