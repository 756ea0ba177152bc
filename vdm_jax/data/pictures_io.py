"""Images of a file or folder as one array, and the file or folder again from that array.

An .npy comes back with the same values, integer type and shape; a folder of pictures of one size,
or of any sizes if they are cut into tiles, as a folder of PNG files with the same pixels, upright
as EXIF says, each called NAME.png. What that needs besides the pixels is a few bytes, `meta`:
docs/vdmz.md has their format. They may come from anybody, so no name in them leads out of a folder.
"""

import dataclasses
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vdm_jax import files
from vdm_jax.data import folder_listing, npy, picture_decoding
from vdm_jax.data.image_data import as_images
from vdm_jax.errors import UserError, reaching, user_path

_NPY, _FOLDER, _TILED = b"\1", b"\3\1", b"\3\2"  # what meta begins with
_SIZE, _SIGNED, _CHANNEL_AXIS = 3, 4, 32  # bits of an .npy's second byte
_MOST_NAMES = 64 << 20  # bytes
_LONGEST = 4096  # characters of a path
_WANTED = "an .npy of integers [n, height, width(, channels)], or a folder of PNG, JPEG or WebP"


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
    """Images, and what they came in."""

    images: np.ndarray  # uint8 [n, height, width, channels], in C order
    meta: bytes  # all that `write` needs, besides the pixels, to give the input back
    words: str  # what it was, for a summary
    cut: np.ndarray | Sequence[np.ndarray] | None = None  # what `images` were made of, if not alike
    conditioning: np.ndarray | None = None  # of each image, float32 [n, k]

    @property
    def whole(self) -> np.ndarray | Sequence[np.ndarray]:
        """The images as they came, [height, width, channels] each: not cut, and grey if grey."""
        return self.images if self.cut is None else self.cut

    @property
    def grey_folder(self) -> bool:
        """Returns whether these are the pictures of a folder, all grey: `tripled` takes them."""
        return self.meta.startswith((_FOLDER, _TILED)) and self.images.shape[-1] == 1


def read(path: Path, tile: int | None = None) -> Pictures:
    """Returns an .npy's or a folder's images, with values in [0, 256), or raises UserError.

    With `tile` the pictures of a folder are cut into squares of that many pixels a side; where a
    square goes beyond the right or lower edge, the last column or row is repeated.
    """
    path = user_path(path, "the input")
    with reaching(path):
        if path.is_dir():
            return _read_folder(path, tile)
        if not path.is_file():
            raise UserError(f"{path} is not there; wanted {_WANTED}")
    if tile:
        raise UserError(f"--tile cuts the pictures of a folder; {path} is a file")
    return _read_npy(path)


def of_array(images: np.ndarray, words: str) -> Pictures:
    """Returns uint8 images [n, height, width, channels] as if an .npy of them had been read."""
    return Pictures(np.ascontiguousarray(images), _npy_meta(images), words)


def tripled(pictures: Pictures) -> Pictures:
    """Returns the grey pictures of a folder as three equal channels, which `write` makes grey."""
    layout = _unpack(pictures.meta, pictures.images.shape)
    assert isinstance(layout, _Folder)
    words = f"{pictures.words}, grey; for the model, and in net and bound, three equal channels"
    images = np.repeat(pictures.images, 3, axis=3)
    return Pictures(images, _folder_meta(layout, 3), words, pictures.whole)


def check_meta(meta: bytes, shape: tuple[int, ...], out: Path | None = None) -> str:
    """Returns in words what came in, such as "folder of 12 pictures".

    Raises ValueError where `meta` isn't one for images of `shape`, [n, height, width, channels];
    UserError where `out`, the file or folder to be written, has the suffix of something else.
    """
    layout = _unpack(meta, shape)
    if isinstance(layout, _Npy):
        what, words, own = "an .npy", f".npy of {layout.dtype.name}", ".npy"
    else:
        what, words, own = "a folder", f"folder of {len(layout.names)} pictures", ""
    known = (".npy", ".npz", ".png", ".jpg", ".jpeg", ".webp")
    if out and out.suffix.lower() in known and out.suffix.lower() != own:
        raise UserError(f"{out} would be {what}, as what was compressed; name it so")
    return words


def write(meta: bytes, images: np.ndarray, out: Path) -> None:
    """Writes uint8 `images` [n, height, width, channels] as what they came in as.

    `out` is there as a whole, and on the disk, or not at all. Raises ValueError where `meta` isn't
    one for images of this shape, UserError where `out` is there already or can't be written.
    """
    from PIL import Image

    layout = _unpack(meta, images.shape)
    with files.writing(out) as partial:
        if isinstance(layout, _Npy):
            with files.whole(partial) as file:
                np.save(file, images.reshape(layout.shape).astype(layout.dtype))
            return
        whole = images if layout.sizes is None else _put_together(images, layout.sizes)
        for name, pixels, grey in zip(layout.names, whole, layout.grey, strict=True):
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():  # on a disk that doesn't tell a from A
                said = f"{out} lies on a disk that takes {name} for the name of another picture"
                raise UserError(f"{said}: choose another disk")
            with files.whole(path) as file:
                Image.fromarray(pixels[..., 0] if grey else pixels).save(file, "PNG")
        for folder in (partial, *partial.rglob("*/")):
            files.sync(folder)


class _Npy(NamedTuple):
    dtype: np.dtype
    shape: tuple[int, ...]


def _read_npy(path: Path) -> Pictures:
    try:
        array = npy.mapped(path)
    except ValueError as error:
        what = "is an .npz" if path.suffix == ".npz" else f"can't be read ({error})"
        raise UserError(f"{path} {what}; wanted {_WANTED}") from error
    images = as_images(array, 256, str(path))
    by = "x".join(map(str, images.shape[1:]))
    words = f"{len(images)} images {by} of {path.name} ({array.dtype.name})"
    return Pictures(images, _npy_meta(array), words)


def _npy_meta(array: np.ndarray) -> bytes:
    flags = array.dtype.itemsize.bit_length() - 1
    flags |= _SIGNED * (array.dtype.kind == "i") | _CHANNEL_AXIS * (array.ndim == 4)
    return _NPY + bytes([flags])


class _Folder(NamedTuple):
    grey: np.ndarray  # bool [n]: whether each picture is written as grey
    names: list[str]
    sizes: np.ndarray | None = None  # [n, 2], height and width, if they are cut into tiles


def _read_folder(root: Path, tile: int | None) -> Pictures:
    there, skipped = folder_listing.walk(root)
    if not there:
        raise UserError(f"{root} holds no pictures; wanted PNG, JPEG or WebP files in it")
    # (name when it comes back, name now)
    names = sorted((n if n.lower().endswith(".png") else f"{n}.png", n) for n in there)
    try:
        _check_names([out for out, _ in names])
    except ValueError as error:
        raise UserError(f"{root}: as PNG files, {error}; rename it") from error
    files_in = [root / name for _, name in names]
    pictures = [picture_decoding.read(file, None) for file in files_in]
    for file, pixels in zip(files_in, pictures, strict=True):
        if not tile and pixels.shape[:2] != pictures[0].shape[:2]:
            said = f"{file} is {pixels.shape[:2]} (height, width) but {files_in[0]} is"
            hint = "wanted pictures of one size, or --tile to cut them"
            raise UserError(f"{said} {pictures[0].shape[:2]}; {hint}")
    grey = np.array([pixels.shape[2] == 1 for pixels in pictures])
    channels = 1 if grey.all() else 3
    whole = pictures if tile or 0 < grey.sum() < len(grey) else None
    pictures = [np.broadcast_to(p, (*p.shape[:2], channels)) for p in pictures]
    left_out = f"; files left out: {len(skipped)}" * bool(skipped)
    layout = _Folder(grey, [out for out, _ in names])
    of = f"of the folder {root.name} (their pixels{left_out})"
    if tile:
        images = np.concatenate([_cut(picture, tile) for picture in pictures])
        layout = layout._replace(sizes=np.array([p.shape[:2] for p in pictures], "<u4"))
        words = f"{len(pictures)} pictures in {len(images)} tiles {tile}x{tile} {of}"
        return Pictures(images, _folder_meta(layout, channels), words, whole)
    by = "x".join(map(str, pictures[0].shape))
    words = f"{len(pictures)} pictures {by} {of}"
    return Pictures(np.stack(pictures), _folder_meta(layout, channels), words, whole)


def _cut(picture: np.ndarray, tile: int) -> np.ndarray:
    """Returns the tiles [n, tile, tile, channels] of a picture, also those beyond its edges."""
    beyond = [(0, -side % tile) for side in picture.shape[:2]]
    padded = np.pad(picture, [*beyond, (0, 0)], mode="edge")
    return picture_decoding.tiles(padded, (tile, tile))


def _put_together(tiles: np.ndarray, sizes: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the pictures that `_cut` made these tiles of."""
    start, (high, wide) = 0, tiles.shape[1:3]
    for height, width in sizes.tolist():
        rows, columns = -(-height // high), -(-width // wide)
        part = tiles[start : start + rows * columns]
        start += rows * columns
        split = part.reshape(rows, columns, high, wide, -1).swapaxes(1, 2)
        yield split.reshape(rows * high, columns * wide, -1)[:height, :width]


def _folder_meta(layout: _Folder, channels: int) -> bytes:
    """Returns the meta of a folder: a bit for each picture, unless all are grey, and the names.

    Before them, of pictures that are cut into tiles, their number and sizes.
    """
    marks = b"" if channels == 1 else np.packbits(layout.grey).tobytes()
    content = marks + b"".join(name.encode() + b"\0" for name in layout.names)
    if layout.sizes is None:
        return _FOLDER + zlib.compress(content, 9)
    sizes = layout.sizes.astype("<u4").tobytes()
    return _TILED + zlib.compress(len(layout.names).to_bytes(4, "little") + sizes + content, 9)


def _check_names(names: list[str]) -> None:
    """Raises ValueError unless these are names of PNG files below a folder, each there once."""
    taken: set[str] = set()
    for name in names:
        # Encoding raises UnicodeEncodeError for what isn't Unicode; no disk takes longer parts.
        parts = name.split("/")
        plain = all(part[:1] not in ("", ".") and len(part.encode()) <= 255 for part in parts)
        if not (plain and len(name) <= _LONGEST and name.lower().endswith(".png")):
            said = f"{name[:255]!r} is no plain relative path of a PNG file"
            raise ValueError(f"{said}, with parts of 255 bytes at most")
        if name in taken:
            raise ValueError(f"{name!r} is there twice")
        taken.add(name)
    for name in names:
        ends = (at.start() for at in re.finditer(r"(?i)(?<=\.png)/", name))
        if not taken.isdisjoint(name[:end] for end in ends):
            raise ValueError(f"{name!r} lies in a folder that is a picture, too")


def _unpack(meta: bytes, shape: tuple[int, ...]) -> _Npy | _Folder:
    """Returns what `meta` says of images [n, height, width, channels]. Raises ValueError."""
    count, *_, channels = shape
    if meta[:1] == _NPY and len(meta) == 2:
        flags, axes = meta[1], 4 if meta[1] & _CHANNEL_AXIS else 3
        if flags & ~(_SIZE | _SIGNED | _CHANNEL_AXIS) or (axes == 3 and channels != 1):
            raise ValueError(f"the layout {flags} is none of an .npy of these images")
        kind = f"{'i' if flags & _SIGNED else 'u'}{1 << (flags & _SIZE)}"
        return _Npy(np.dtype(kind), shape[:axes])
    if not meta.startswith((_FOLDER, _TILED)) or channels not in (1, 3):
        raise ValueError("of no known kind; known are an .npy and a folder of pictures")
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(meta[2:], _MOST_NAMES)
    except zlib.error as error:
        raise ValueError(f"the names can't be unpacked ({error})") from error
    if not unpacker.eof or unpacker.unused_data:
        raise ValueError("the names are cut short, go on after their end, or are too many")
    sizes = None
    if meta.startswith(_TILED):
        count, content, sizes = _unpack_sizes(content, shape)
    marks = -(-count // 8) if channels == 3 else 0
    names = content[marks:].decode().split("\0", count + 1)  # not more than are wanted
    if len(names) != count + 1 or names.pop():
        raise ValueError(f"there aren't names for {count} pictures")
    _check_names(names)
    bits = np.unpackbits(np.frombuffer(content[:marks], np.uint8), count=count if marks else None)
    return _Folder(bits.astype(bool) if marks else np.ones(count, bool), names, sizes)


def _unpack_sizes(content: bytes, shape: tuple[int, ...]) -> tuple[int, bytes, np.ndarray]:
    """Returns the number of pictures, what follows their sizes, and these. Raises ValueError."""
    count, tiles = int.from_bytes(content[:4], "little"), 0
    if not 0 < count <= shape[0] or len(content) < 4 + 8 * count:
        raise ValueError(f"there aren't sizes for {count} pictures of {shape[0]} tiles")
    sizes = np.frombuffer(content, "<u4", 2 * count, 4).reshape(count, 2)
    for height, width in sizes.tolist():
        tiles += -(-height // shape[1]) * -(-width // shape[2])
    if tiles != shape[0] or not sizes.all():
        raise ValueError(f"the sizes of the pictures are those of {tiles} tiles, not {shape[0]}")
    return count, content[4 + 8 * count :], sizes
