"""Reads the images of a file or folder, and what is needed to give it back."""

import contextlib
import dataclasses
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vdm_jax.data import DataError, bounded, listing, picture
from vdm_jax.data.packing import order
from vdm_jax.data.pictures_meta import MOST, Array, Folder, Npy, Npz
from vdm_jax.errors import UserError, reaching, reason, user_path

__all__ = ["Pictures", "of_array", "read"]

MOST_PIXELS = 1 << 32  # values of all images together: bytes of memory
_NPY_MARK, _ZIP_MARK = b"\x93NUMPY", b"PK"
_PNG_MARK, _JPEG_MARK, _WEBP_MARK = b"\x89PNG", b"\xff\xd8", b"RIFF"
_PIECE = 1 << 24
_TOLD = 12  # arrays in an error
_WANTED = (
    "an .npy or .npz of integers [n, height, width] or [n, height, width, channels], or a folder "
    "of PNG, JPEG or WebP pictures"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
    """What came in.

    Attributes:
      images: uint8 [n, height, width, channels], in C order.
      meta: all that `pictures_io.write` needs, besides the pixels, to give the input back.
      words: what it was, for a summary.
    """

    images: np.ndarray
    meta: bytes
    words: str


def read(path: Path, levels: int = 256) -> Pictures:
    """Returns the images of an .npy, an .npz or a folder, told by content and not by name.

    Args:
      path: see `pictures_io` for what is taken.
      levels: values lie in [0, levels), at most 256.

    Raises:
      UserError: it isn't there, can't be read, is of another kind, or holds other values.
    """
    if not 1 <= levels <= 256:
        raise ValueError(f"levels must lie in 1..256, got {levels}")
    try:
        path = user_path(path, "the input")
        with reaching(path):
            is_folder, is_file = path.is_dir(), path.is_file()
        if is_folder:
            return _read_folder(path, levels)
        if not is_file:
            raise UserError(f"{path} is not there; wanted {_WANTED}")
        return _read_file(path, levels)
    except DataError as error:
        raise UserError(str(error)) from error


def of_array(images: np.ndarray, words: str) -> Pictures:
    """Returns uint8 images [n, height, width, channels] as if an .npy of them had been read."""
    npy = Npy(Array(images.dtype, images.shape, False))
    return Pictures(np.ascontiguousarray(images), npy.pack(), words)


def _read_file(path: Path, levels: int) -> Pictures:
    with _readable(str(path)), path.open("rb") as file:
        start = file.read(len(_NPY_MARK))
    if start == _NPY_MARK:
        return _read_npy(path, levels)
    if start.startswith(_ZIP_MARK):
        return _read_npz(path, levels)
    if start.startswith((_PNG_MARK, _JPEG_MARK, _WEBP_MARK)):
        raise UserError(f"{path} is a single picture; put it into a folder and name that")
    raise UserError(f"{path} is none of what is taken: {_WANTED}")


def _read_npy(path: Path, levels: int) -> Pictures:
    with _readable(str(path)), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        shape, by_columns, dtype, offset = bounded.header(file, size, "the file")
        array = Array(dtype, shape, by_columns)
        _check_images(array, str(path))
        elements = np.memmap(file, dtype, "r", offset, shape, "F" if by_columns else "C")
        images = _pixels(elements, levels, str(path)).reshape(-1, *array.event)
    words = f"{_counted(images, 'images')} of {path.name} ({dtype.name})"
    return Pictures(images, Npy(array).pack(), words)


def _check_images(array: Array, what: str) -> None:
    """Raises UserError for an array that isn't images."""
    if array.dtype.kind not in "iu":
        raise UserError(f"{what} holds {array.dtype} values; wanted integers in [0, 256)")
    if not array.is_images:
        how = " (for one image alone save images[None])" if len(array.shape) == 2 else ""
        raise UserError(
            f"{what} has shape {array.shape}; wanted at least one image, as [n, height, width] or "
            f"[n, height, width, channels]{how}"
        )
    _check_size(array.shape, what)


def _check_size(shape: tuple[int, ...], what: str) -> None:
    if np.prod(shape, dtype=object) > MOST_PIXELS:
        raise UserError(
            f"{what} has shape {shape}, more than {MOST_PIXELS:,} values; give it in parts"
        )


def _pixels(array: np.ndarray, levels: int, what: str) -> np.ndarray:
    """Returns integers as uint8 in C order. Raises UserError for those outside [0, levels)."""
    for extreme in (int(array.min()), int(array.max())):
        if not 0 <= extreme < levels:
            raise UserError(f"{what} holds the value {extreme}, outside [0, {levels})")
    return np.array(array, np.uint8, order="C")


def _read_npz(path: Path, levels: int) -> Pictures:
    with _readable(str(path)), zipfile.ZipFile(path) as archive:
        members = _members(archive, path)
        arrays = {key: Array(m.dtype, m.shape, m.by_columns) for key, m in members.items()}
        keys = _images_of(arrays, path)
        blocks, others = [], []
        for key, member in members.items():
            with _readable(f"array {key!r} in {path}"):
                if key not in keys:
                    others.append(member.content(MOST))
                    continue
                for block in member.rows(_PIECE, MOST_PIXELS):
                    pixels = _pixels(block, levels, f"array {key!r} in {path}")
                    blocks.append(pixels.reshape(-1, *arrays[key].event))
        images = np.concatenate(blocks)
        meta = Npz(arrays, b"".join(others)).pack()
    kinds = ", ".join(f"{key} {arrays[key].dtype.name}" for key in keys)
    kept = f"; {len(others)} other arrays kept" if others else ""
    return Pictures(images, meta, f"{_counted(images, 'images')} of {path.name} ({kinds}{kept})")


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, bounded.Member]:
    members: dict[str, bounded.Member] = {}
    for name in archive.namelist():
        key = name.removesuffix(".npy")
        if key == name:
            raise UserError(f"{path} holds {name!r}, which is no array; take it out")
        if key in members:
            raise UserError(f"{path} holds the array {key!r} twice; write it anew with numpy.savez")
        with _readable(f"array {key!r} in {path}"):
            members[key] = bounded.member(archive, key)
    return members


def _images_of(arrays: dict[str, Array], path: Path) -> list[str]:
    """The names of those that are images. Raises UserError unless there are, all of one shape."""
    keys = [key for key, array in arrays.items() if array.is_images]
    told = [f"{key!r} {array.dtype} {array.shape}" for key, array in arrays.items()]
    found = ", ".join(told[:_TOLD]) + f" and {len(told) - _TOLD} more" * (len(told) > _TOLD)
    if not keys:
        raise UserError(
            f"{path} holds no images, integers [n, height, width] or [n, height, width, channels]; "
            f"found {found or 'no arrays'}"
        )
    if len({arrays[key].event for key in keys}) > 1:
        raise UserError(
            f"{path} holds integer arrays of 3 or 4 axes that aren't images of one shape; found "
            f"{found}; save those of one shape only"
        )
    _check_size((sum(arrays[key].shape[0] for key in keys), *arrays[keys[0]].event), str(path))
    others = sum(array.bytes for key, array in arrays.items() if key not in keys)
    if others > MOST:
        raise UserError(
            f"arrays in {path} that are no images have {others:,} bytes, of which {MOST:,} can be "
            f"kept; take some out; found {found}"
        )
    return keys


def _read_folder(root: Path, levels: int) -> Pictures:
    there, skipped = listing.walk(root)
    if not there:
        raise UserError(f"{root} holds no pictures; wanted PNG, JPEG or WebP files in it")
    names = sorted(((_name_out(root, name), name) for name in there), key=lambda n: order(n[0]))
    pictures = []
    converted = 0
    for _, name in names:
        content, pixels = _decoded(root / name, levels)
        converted += not content.startswith(_PNG_MARK)
        pictures.append(pixels)
        if pixels.shape[:2] != pictures[0].shape[:2]:
            raise UserError(
                f"{root / name} is {_size(pixels)} (height x width) but {root / names[0][1]} is "
                f"{_size(pictures[0])}; wanted pictures of one size"
            )
        if len(pictures) == 1:
            _check_size((len(names), *pixels.shape[:2], 3), str(root))
    grey = np.array([pixels.shape[2] == 1 for pixels in pictures])
    images = np.empty((len(names), *pictures[0].shape[:2], 1 if grey.all() else 3), np.uint8)
    for i, pixels in enumerate(pictures):
        images[i] = pixels
    bits = b"" if grey.all() else np.packbits(grey).tobytes()
    try:
        meta = Folder(bits, b"".join(name + b"\0" for name, _ in names)).pack()
    except ValueError as error:
        raise UserError(f"{root}: as PNG files, {error}; rename it") from error
    words = f"{_counted(images, 'pictures')} of the folder {root.name}"
    return Pictures(images, meta, words + _not_kept(converted, skipped))


def _name_out(root: Path, name: str) -> bytes:
    """What it is called when it comes back."""
    try:
        encoded = name.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{str(root / name)!r} is no name in UTF-8; rename it") from error
    return encoded if encoded.lower().endswith(b".png") else encoded + b".png"


def _decoded(path: Path, levels: int) -> tuple[bytes, np.ndarray]:
    """The picture's file, and its pixels [height, width, 1 or 3]."""
    with _readable(str(path)):
        content = path.read_bytes()
    try:
        pixels = picture.pixels(picture.decode(content, None))
    except ValueError as error:
        raise UserError(f"{path} {error}") from error
    return content, _pixels(pixels, levels, str(path))


def _not_kept(converted: int, skipped: list[str]) -> str:
    said = []
    if converted:
        said.append(f"pixels of {converted} JPEG or WebP pictures are kept, not their files")
    if skipped:
        said.append(f"left out, as no pictures by name: {len(skipped)}, first {skipped[0]!r}")
    return f" ({'; '.join(said)})" if said else ""


def _size(pixels: np.ndarray) -> str:
    return "x".join(map(str, pixels.shape[:2]))


def _counted(images: np.ndarray, what: str) -> str:
    count, *event = images.shape
    what = what.removesuffix("s") if count == 1 else what
    return f"{count} {what} {'x'.join(map(str, event))}"


@contextlib.contextmanager
def _readable(what: str) -> Iterator[None]:
    try:
        yield
    except (UserError, DataError):
        raise
    except bounded.UNREADABLE as error:
        raise UserError(
            f"{what} can't be read ({reason(error)}); see that it is whole and may be read"
        ) from error
