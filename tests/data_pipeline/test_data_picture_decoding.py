"""One picture: its exact pixels in every kind that is taken, and a reason for each that isn't."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vdm_jax.data import picture_decoding as picture

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (9, 13, 3), dtype=np.uint8)
GREY = RGB[..., 0]


def _file(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def _png16(colour_type: int) -> bytes:
    """A PNG of 16 bits a channel, made by hand: 2 x 2 grey (0) or RGB (2)."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">2I5B", 2, 2, 16, colour_type, 0, 0, 0)
    row = b"\0" + bytes(2 * 2 * (3 if colour_type else 1))
    rest = chunk(b"IDAT", zlib.compress(2 * row)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + rest


def _pixels(content: bytes, channels: int = 3) -> np.ndarray:
    return picture.pixels(picture.decode(content, channels))


def _luma(rgb: np.ndarray) -> np.ndarray:
    return (rgb @ np.array([299, 587, 114]) / 1000)[..., None]


def test_rgb():
    for content in (
        _file(Image.fromarray(RGB)),
        _file(Image.fromarray(RGB), "WEBP", lossless=True),
    ):
        np.testing.assert_array_equal(_pixels(content), RGB)
        grey = _pixels(content, 1)
        assert grey.shape == (9, 13, 1)
        assert np.abs(grey - _luma(RGB)).max() <= 1


def test_grey_and_black_and_white():
    content = _file(Image.fromarray(GREY))
    np.testing.assert_array_equal(_pixels(content), np.stack([GREY] * 3, axis=-1))
    np.testing.assert_array_equal(_pixels(content, 1), GREY[..., None])
    bits = GREY > 99
    np.testing.assert_array_equal(_pixels(_file(Image.fromarray(bits)), 1)[..., 0], bits * 255)


def test_a_jpeg_is_what_its_decoder_gives():
    content = _file(Image.fromarray(RGB), "JPEG", quality=90)
    np.testing.assert_array_equal(_pixels(content), np.asarray(Image.open(io.BytesIO(content))))


def test_palette():
    colours = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
    image = Image.new("P", (13, 9))
    image.putdata(GREY.reshape(-1).tolist())
    image.putpalette(colours.reshape(-1).tolist())
    content = _file(image)
    np.testing.assert_array_equal(_pixels(content), colours[GREY])
    assert np.abs(_pixels(content, 1) - _luma(colours[GREY])).max() <= 1


def _with_alpha(alpha: np.ndarray) -> bytes:
    return _file(Image.fromarray(np.dstack([RGB, alpha])))


def test_opaque_alpha_is_dropped():
    np.testing.assert_array_equal(_pixels(_with_alpha(np.full((9, 13), 255, np.uint8))), RGB)
    grey = Image.fromarray(np.dstack([GREY, np.full_like(GREY, 255)]))
    np.testing.assert_array_equal(_pixels(_file(grey), 1)[..., 0], GREY)


def test_transparency_is_refused():
    alpha = np.full((9, 13), 255, np.uint8)
    alpha[2, 3:5] = 254
    palette = Image.fromarray(RGB).quantize(4)
    absent = np.full((4, 4), 7, np.uint8)
    for content, count in (
        (_with_alpha(alpha), "2"),
        (_file(palette, transparency=0), "[0-9]+"),
        (_file(Image.fromarray(absent), transparency=7), "16"),
        (_file(Image.fromarray(np.dstack([GREY, alpha]))), "2"),
    ):
        with pytest.raises(ValueError, match=f"^is transparent in {count} of its pixels; lay it"):
            picture.decode(content, 3)
    # A transparent colour that no pixel has hides nothing.
    np.testing.assert_array_equal(
        _pixels(_file(Image.fromarray(absent), transparency=8), 1)[..., 0], absent
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (6, lambda a: np.rot90(a, -1)),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_the_orientation_of_a_camera(kind, orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    content = _file(Image.fromarray(RGB), kind, exif=exif, **options)
    stored = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    np.testing.assert_array_equal(_pixels(content), turned(stored))


_FRAMES = [Image.fromarray(RGB), Image.fromarray(RGB[::-1].copy())]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty"),
        (b"hello", "is no PNG, JPEG or WebP image"),
        (_file(_FRAMES[0], "GIF"), "is no PNG, JPEG or WebP image"),
        (_file(_FRAMES[0])[:-30], "is broken"),
        (_file(_FRAMES[0])[:200], "is broken"),
        (_file(_FRAMES[0])[:9], "is broken"),
        (_file(_FRAMES[0], "JPEG")[:9], "is broken"),
        (_file(_FRAMES[0], "WEBP")[:13], "is broken"),
        (_file(_FRAMES[0], "JPEG")[:-60], "is broken .image file is truncated"),
        (_file(_FRAMES[0], "WEBP")[:-20], "is broken"),
        (_png16(0), "has 16 bits a channel; convert it to 8"),
        (_png16(2), "has 16 bits a channel; convert it to 8"),
        (_file(_FRAMES[0].convert("CMYK"), "JPEG"), "holds CMYK pixels; convert it"),
        (
            _file(_FRAMES[0], "PNG", save_all=True, append_images=_FRAMES[1:]),
            "is an animation of 2 pictures",
        ),
        (
            _file(_FRAMES[0], "WEBP", save_all=True, append_images=_FRAMES[1:]),
            "is an animation of 2 pictures",
        ),
    ],
)
def test_what_is_refused(content, match):
    with pytest.raises(ValueError, match=f"^{match}"):
        picture.decode(content, 3)


def test_a_camera_s_jpeg_with_a_second_picture_in_it_gives_the_first():
    single = _file(_FRAMES[0], "JPEG")
    double = _file(_FRAMES[0], "MPO", save_all=True, append_images=_FRAMES[1:])
    np.testing.assert_array_equal(_pixels(double), _pixels(single))


def test_a_flipped_bit_of_a_png_is_noticed():
    content = bytearray(_file(Image.fromarray(RGB)))
    for place in range(8, len(content) - 12, 5):  # the last 12 bytes only say that it ends
        content[place] ^= 4
        with pytest.raises(ValueError, match=r"^(is broken|is no PNG|has 16 bits)"):
            picture.decode(bytes(content), 3)
        content[place] ^= 4


def test_fitted_leaves_an_image_of_the_size_alone():
    for fit in ("crop", "resize"):
        image = Image.fromarray(RGB)
        assert picture.fitted(image, (9, 13), fit) is image


@pytest.mark.parametrize("kind", [0, 1])
def test_a_crop_is_about_the_centre_and_keeps_the_shape_of_things(kind):
    # Stripes of 4 pixels; of the six the two in the middle stay.
    stripes = np.repeat(np.array([10, 10, 60, 200, 90, 90], np.uint8), 4)
    across = np.broadcast_to(stripes, (8, 24))
    image = Image.fromarray(np.ascontiguousarray(across if kind == 0 else across.T))
    crop = picture.pixels(picture.fitted(image, (4, 4), "crop"))[..., 0]
    lines = crop if kind == 0 else crop.T
    # Each new pixel stands for two old ones; the filter overshoots a little at the step.
    np.testing.assert_allclose(lines[0], [60, 60, 200, 200], atol=15)
    np.testing.assert_array_equal(lines, np.broadcast_to(lines[0], (4, 4)))


def test_a_resize_takes_all_of_the_image_and_averages():
    ramp = np.broadcast_to(np.arange(0, 256, 2, dtype=np.uint8), (32, 128))
    small = picture.pixels(picture.fitted(Image.fromarray(ramp.copy()), (8, 8), "resize"))[..., 0]
    assert small.shape == (8, 8)
    # Cells of 16 columns: averages of the ramp over each, up to what the filter does at the ends.
    np.testing.assert_allclose(small[0], 15 + 32 * np.arange(8), atol=3)
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    flat = picture.pixels(picture.fitted(Image.fromarray(board), (8, 8), "resize"))
    assert np.abs(flat.astype(int) - 127).max() <= 2  # no aliasing: grey, not black or white
