"""One picture file as pixels: what is taken, what is refused, and how it is brought to a size.

Taken are still PNG, JPEG and WebP images of 8 bits or fewer a channel: grey, RGB or palette, told
by their content, not by their name. They are turned as their EXIF orientation says. Colour
profiles and gamma are not applied: the values are those in the file. Grey from RGB is Pillow's
(299 R + 587 G + 114 B) / 1000; RGB from grey repeats it. An alpha channel that is opaque
everywhere is dropped. Metadata that is damaged or endless is passed over: the pixels are whole.

Refused, as there is no one right way to take them: transparency (what lies behind?), 16 bits,
CMYK, animations.
"""

import contextlib
import io
import math
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.errors import UserError, reason

_FORMATS = ("PNG", "JPEG", "WEBP")
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
_GREY = ("1", "L", "LA")
_JPEG_MARK, _WEBP_MARK = b"\xff\xd8", b"RIFF"
_PNG_MARK, _PNG_DEPTH = b"\x89PNG\r\n\x1a\n", 24  # where the header has the bits a channel

_PNG_NEEDED = (b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT")  # beside what is in capitals
_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF's orientation: Pillow's Transpose
_JPEG_METADATA = (*range(0xE0, 0xF0), 0xFE)
_JPEG_NEEDED = {0xE0: 16, 0xE1: 2, 0xEE: 14}  # JFIF, EXIF and Adobe's kind of colours: least bytes


def read(path: Path, channels: int | None) -> np.ndarray:
    """Returns the picture in a file, as `decode` does. Raises UserError, which names the file."""
    try:
        return decode(path.read_bytes(), channels)
    except OSError as error:
        raise UserError(f"{path} can't be read: {reason(error)}; check its permissions") from error
    except ValueError as error:
        raise UserError(f"{path} {error}") from error


def decode(content: bytes, channels: int | None) -> np.ndarray:
    """Returns a picture file's content as uint8 [height, width, channels], 1 (grey) or 3 (RGB).

    With None a grey picture has 1 and any other, also one with a palette, has 3. Raises ValueError,
    which doesn't name the file, for what is broken or of a kind that is refused.
    """
    from PIL import Image, UnidentifiedImageError

    if not content:
        raise ValueError("is empty; delete it or get it anew")
    if content.startswith(_PNG_MARK) and content[_PNG_DEPTH : _PNG_DEPTH + 1] == b"\x10":
        raise ValueError("has 16 bits a channel; convert it to 8")  # Pillow cuts RGB to 8 silently
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            try:
                file = _loaded(content)
            except Exception:  # perhaps for its metadata alone
                file = _loaded(_without_metadata(content))
            frames = getattr(file, "n_frames", 1)
            image = _upright(file)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(f"is too large ({reason(error)}); make it smaller") from error
    except Exception as error:  # Pillow's decoders raise many kinds for broken files
        unknown = isinstance(error, UnidentifiedImageError)
        if unknown and not content.startswith((_PNG_MARK, _JPEG_MARK, _WEBP_MARK)):
            raise ValueError("is no PNG, JPEG or WebP image; convert it or move it away") from error
        why = "its header" if unknown else reason(error)
        raise ValueError(f"is broken ({why}); delete it or get it anew") from error
    if frames > 1 and not content.startswith(_JPEG_MARK):  # a camera may add copies to its JPEG
        raise ValueError(f"is an animation of {frames} pictures; wanted one")
    return np.atleast_3d(np.asarray(_converted(image, channels)))


def _loaded(content: bytes) -> Any:
    """Returns a file's content as a Pillow image, of a PNG with all checksums verified."""
    from PIL import Image, PngImagePlugin

    # Metadata may be long: Pillow's limit of a text is 1 MiB, and 64 of them for all together.
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
    if content.startswith(_PNG_MARK):
        Image.open(io.BytesIO(content), formats=("PNG",)).verify()  # `load` skips checksums
    file = Image.open(io.BytesIO(content), formats=_FORMATS)
    file.load()
    return file


def _without_metadata(content: bytes) -> bytes:
    """Returns a PNG with nothing but what its pixels, its frames and its orientation need.

    Of a JPEG without the segments that Pillow alone reads, as are those too short to be what they
    are called; of others all. Raises ValueError where one of these has a wrong checksum.
    """
    if content.startswith(_JPEG_MARK):
        at = 2
        kept = [content[:at]]
        while content[at : at + 1] == b"\xff" and content[at + 1 : at + 2] != b"\xda":
            mark, size = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
            needed = size >= _JPEG_NEEDED.get(mark, math.inf) or mark not in _JPEG_METADATA
            kept += [content[at : at + 2 + size]] * needed
            at += 2 + size
        return b"".join([*kept, content[at:]])
    if not content.startswith(_PNG_MARK):
        return content
    at, kept = len(_PNG_MARK), [_PNG_MARK]
    while at < len(content) and kept[-1][4:8] != b"IEND":
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        kind, chunk = content[at + 4 : at + 8], content[at:end]
        needed = kind[:1].isupper() or kind in _PNG_NEEDED
        if needed and zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
            raise ValueError(f"the checksum of its part {kind!r} is wrong")
        kept += [chunk] * needed
        at = end
    return b"".join(kept)


def _upright(image: Any) -> Any:
    """Returns an image turned as its orientation says, if that can be read."""
    turn = None
    with contextlib.suppress(Exception):  # Pillow raises many kinds for what is no EXIF
        turn = _TURNS.get(image.getexif().get(0x0112))
    return image if turn is None else image.transpose(turn)


def _converted(image: Any, channels: int | None) -> Any:
    if image.mode not in _MODES:
        raise ValueError(f"holds {image.mode} pixels; convert it to 8-bit RGB or grey")
    if image.has_transparency_data:
        image = image.convert("RGBA") if image.mode not in _GREY else image.convert("LA")
        if seen_through := int((np.asarray(image.getchannel("A")) < 255).sum()):
            said = f"is transparent in {seen_through} of its pixels"
            raise ValueError(f"{said}; lay it on a background and save it without transparency")
    if channels != 3 and image.mode in _GREY:
        return image.convert("L")
    image = image.convert("RGB")  # a palette's entries first, their grey then
    return image.convert("L") if channels == 1 else image


def fitted(pixels: np.ndarray, size: tuple[int, int], fit: str) -> np.ndarray:
    """Returns a picture of exactly `size` = (height, width), by Lanczos with antialiasing.

    "crop" takes the largest part of that shape about the centre, "resize" stretches the picture.
    Neither touches one that has the size.
    """
    from PIL import Image, ImageOps

    if pixels.shape[:2] == size:
        return pixels
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    bring = ImageOps.fit if fit == "crop" else Image.Image.resize
    return np.atleast_3d(np.asarray(bring(image, size[::-1], Image.Resampling.LANCZOS)))


def tiles(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the tiles [n, *size, channels] that lie side by side in a picture, row by row."""
    rows, columns = pixels.shape[0] // size[0], pixels.shape[1] // size[1]
    whole, channels = pixels[: rows * size[0], : columns * size[1]], pixels.shape[2]
    split = whole.reshape(rows, size[0], columns, size[1], channels).swapaxes(1, 2)
    return split.reshape(rows * columns, *size, channels)
