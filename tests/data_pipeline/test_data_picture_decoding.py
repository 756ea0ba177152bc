"""One picture: its exact pixels in every kind that is taken, and a reason for each that isn't."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vdm_jax.data.picture_decoding import decode, fitted

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (9, 13, 3), dtype=np.uint8)
GREY = RGB[..., 0]
OPAQUE = np.full_like(GREY, 255)


def _file(image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def _pixels(content: bytes, channels: int | None = 3) -> np.ndarray:
    return decode(content, channels)


def _luma(rgb: np.ndarray) -> np.ndarray:
    return (rgb @ np.array([299, 587, 114]) / 1000)[..., None]


def _chunk(kind: bytes, body: bytes) -> bytes:
    """A part of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _segment(kind: int, body: bytes) -> bytes:
    """A part of a JPEG."""
    return bytes([0xFF, kind]) + struct.pack(">H", len(body) + 2) + body


PALETTE = Image.new("P", (13, 9))
PALETTE.putdata(GREY.reshape(-1).tolist())
PALETTE.putpalette(RNG.integers(0, 256, 768, dtype=np.uint8).tolist())
COLOURS = np.array(PALETTE.getpalette(), np.uint8).reshape(256, 3)[GREY]
JPEG = _file(RGB, "JPEG", quality=90)
GREY_RGB = np.repeat(GREY[..., None], 3, axis=2)


@pytest.mark.parametrize(
    ("content", "wanted", "is_grey"),
    [
        (_file(RGB), RGB, False),
        (_file(RGB, "WEBP", lossless=True), RGB, False),
        (JPEG, np.asarray(Image.open(io.BytesIO(JPEG))), False),
        (_file(PALETTE), COLOURS, False),
        (_file(np.dstack([GREY, OPAQUE])), GREY_RGB, True),
        (_file(GREY), GREY_RGB, True),
        (_file(GREY > 99), (GREY_RGB > 99) * np.uint8(255), True),
    ],
)
def test_pixels(content, wanted, is_grey):
    np.testing.assert_array_equal(_pixels(content), wanted)
    np.testing.assert_array_equal(_pixels(content, None), wanted[..., :1] if is_grey else wanted)
    grey = _pixels(content, 1)
    assert grey.shape == (9, 13, 1)
    if is_grey:
        np.testing.assert_array_equal(grey, wanted[..., :1])
    assert np.abs(grey - _luma(wanted)).max() <= 1


def test_transparency_is_refused():
    alpha = OPAQUE.copy()
    alpha[2, 3:5] = 254
    flat = np.full((4, 4), 7, np.uint8)
    for content, count in (
        (_file(np.dstack([RGB, alpha])), "2"),
        (_file(np.dstack([GREY, alpha])), "2"),
        (_file(Image.fromarray(RGB).quantize(4), transparency=0), "[0-9]+"),
        (_file(flat, transparency=7), "16"),
    ):
        with pytest.raises(ValueError, match=f"^is transparent in {count} of its pixels; lay it"):
            decode(content, 3)
    # A transparent colour that no pixel has hides nothing.
    np.testing.assert_array_equal(_pixels(_file(flat, transparency=8), 1)[..., 0], flat)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_orientation_of_a_camera(kind):
    stored = np.asarray(Image.open(io.BytesIO(_file(RGB, kind))))
    for orientation, turned in ((2, stored[:, ::-1]), (6, np.rot90(stored, -1))):
        exif = Image.Exif()
        exif[0x0112] = orientation
        np.testing.assert_array_equal(_pixels(_file(RGB, kind, exif=exif)), turned)


TWO = {"save_all": True, "append_images": [Image.fromarray(RGB[::-1].copy())]}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty"),
        (_file(RGB, "GIF"), "is no PNG, JPEG or WebP image"),
        (_file(RGB)[:-30], "is broken"),
        (_file(RGB, "WEBP")[:13], "is broken"),
        (_file(RGB, "JPEG")[:-60], "is broken .image file is truncated"),
        (_file(RGB, "WEBP")[:-20], "is broken"),
        (_file(GREY.astype(np.uint16)), "has 16 bits a channel; convert it to 8"),
        (_file(Image.fromarray(RGB).convert("CMYK"), "JPEG"), "holds CMYK pixels; convert it"),
        (_file(RGB, "WEBP", **TWO), "is an animation of 2 pictures"),
        (_file(Image.new("1", (10_000, 10_000))), "is too large"),
        (b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", bytes(8) + b"\x08\2\0\0\0"), "is broken"),
        (_file(RGB, "PNG", **TWO), "is an animation of 2 pictures"),
        (_file(RGB)[:29] + b"?" + _file(RGB)[30:], "is broken"),
    ],
)
def test_what_is_refused(content, match):
    with pytest.raises(ValueError, match=f"^{match}"):
        decode(content, 3)


TEXTS = {  # the beginnings of compressed texts and colour profiles
    b"iTXt": b"XML:com.adobe.xmp\0\1\0\0\0", b"zTXt": b"k\0\0", b"iCCP": b"k\0\0",
}  # fmt: skip
LONG, ENDLESS = (zlib.compress(bytes(size)) for size in (1_500_000, 70_000_000))


@pytest.mark.parametrize(
    "chunks",
    [
        *(_chunk(kind, start + text) for kind, start in TEXTS.items() for text in (LONG, ENDLESS)),
        _chunk(b"tEXt", b"k\0" + bytes(900_000)) * 80,
        _chunk(b"tEXt", b"k\0v")[:-1] + b"?",
        _chunk(b"zTXt", b"k\0\7no method"), _chunk(b"iCCP", b""), _chunk(b"pHYs", b"short"),
        _chunk(b"eXIf", b"no TIFF"), _chunk(b"eXIf", bytes(5_000_000)), _chunk(b"prVt", LONG),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_the_metadata_of_a_png_is_none_of_its_pixels(chunks):
    whole = _file(RGB)
    for content in (whole[:33] + chunks + whole[33:], whole[:-12] + chunks + whole[-12:] + b"more"):
        np.testing.assert_array_equal(_pixels(content), RGB)


@pytest.mark.parametrize(
    "segment",
    [_segment(0xE2, b"ICC_PROFILE\0"), _segment(0xED, b"Photoshop 3.0\x008BIM\4\4"),
     _segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\1"), _segment(0xE2, b"MPF\0no"),
     _segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b"<" * 60_000) * 20,
     _segment(0xE0, b"JFIF\0"), _segment(0xEE, b"Adobe\0")],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_the_metadata_of_a_jpeg_is_none_of_its_pixels(segment):
    content = JPEG[:2] + segment + JPEG[2:] + bytes(9)
    np.testing.assert_array_equal(_pixels(content), _pixels(JPEG))


def test_an_orientation_is_seen_beside_metadata_that_is_passed_over():
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind, at, metadata in (
        ("PNG", 33, _chunk(b"iCCP", b"")),
        ("JPEG", 2, _segment(0xED, b"Photoshop 3.0\x008BIM\4\4")),
    ):
        content = _file(RGB, kind, exif=exif)
        found = _pixels(content[:at] + metadata + content[at:])
        np.testing.assert_array_equal(found, _pixels(content))
        assert found.shape == (13, 9, 3)


def test_a_camera_s_jpeg_with_a_second_picture_in_it_gives_the_first():
    np.testing.assert_array_equal(_pixels(_file(RGB, "MPO", **TWO)), _pixels(_file(RGB, "JPEG")))


def test_a_flipped_bit_of_a_png_is_noticed():
    content = bytearray(_file(RGB))
    for place in range(8, len(content) - 12, 5):  # the last 12 bytes only say that it ends
        content[place] ^= 4
        with pytest.raises(ValueError, match=r"^(is broken|is no PNG|has 16 bits)"):
            decode(bytes(content), 3)
        content[place] ^= 4


@pytest.mark.parametrize("across", [True, False])
def test_a_crop_is_about_the_centre_and_keeps_the_shape_of_things(across):
    # Stripes of 4 pixels; of the six the two in the middle stay.
    stripes = np.repeat(np.array([10, 10, 60, 200, 90, 90], np.uint8), 4)
    image = np.ascontiguousarray(np.broadcast_to(stripes, (8, 24)))
    crop = fitted(np.atleast_3d(image if across else image.T), (4, 4), "crop")[..., 0]
    lines = crop if across else crop.T
    # Each new pixel stands for two old ones; the filter overshoots a little at the step.
    np.testing.assert_allclose(lines[0], [60, 60, 200, 200], atol=15)
    np.testing.assert_array_equal(lines, np.broadcast_to(lines[0], (4, 4)))
    # Of a shape where rounding would put the part's edge outside.
    assert fitted(np.zeros((243, 38, 1), np.uint8), (57, 1), "crop").shape == (57, 1, 1)


def test_a_resize_takes_all_of_the_image_and_averages():
    ramp = np.ascontiguousarray(np.broadcast_to(np.arange(0, 256, 2, dtype=np.uint8), (32, 128)))
    small = fitted(np.atleast_3d(ramp), (8, 8), "resize")[..., 0]
    # Cells of 16 columns: averages of the ramp over each, up to what the filter does at the ends.
    np.testing.assert_allclose(small[0], 15 + 32 * np.arange(8), atol=3)
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    flat = fitted(np.atleast_3d(board), (8, 8), "resize")
    assert np.abs(flat.astype(int) - 127).max() <= 2  # no aliasing: grey, not black or white
    assert fitted(RGB, (9, 13), "crop").tobytes() == RGB.tobytes()
