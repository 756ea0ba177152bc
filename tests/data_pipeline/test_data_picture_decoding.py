"""One picture: its exact pixels in every kind that is taken, and a reason for each that isn't."""

import io

import numpy as np
import pytest
from PIL import Image

from vdm_jax.data.picture_decoding import decode, fitted, pixels

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
    return pixels(decode(content, channels))


def _luma(rgb: np.ndarray) -> np.ndarray:
    return (rgb @ np.array([299, 587, 114]) / 1000)[..., None]


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
    ],
)
def test_what_is_refused(content, match):
    with pytest.raises(ValueError, match=f"^{match}"):
        decode(content, 3)


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
    crop = pixels(fitted(Image.fromarray(image if across else image.T), (4, 4), "crop"))[..., 0]
    lines = crop if across else crop.T
    # Each new pixel stands for two old ones; the filter overshoots a little at the step.
    np.testing.assert_allclose(lines[0], [60, 60, 200, 200], atol=15)
    np.testing.assert_array_equal(lines, np.broadcast_to(lines[0], (4, 4)))


def test_a_resize_takes_all_of_the_image_and_averages():
    ramp = np.ascontiguousarray(np.broadcast_to(np.arange(0, 256, 2, dtype=np.uint8), (32, 128)))
    small = pixels(fitted(Image.fromarray(ramp), (8, 8), "resize"))[..., 0]
    # Cells of 16 columns: averages of the ramp over each, up to what the filter does at the ends.
    np.testing.assert_allclose(small[0], 15 + 32 * np.arange(8), atol=3)
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    flat = pixels(fitted(Image.fromarray(board), (8, 8), "resize"))
    assert np.abs(flat.astype(int) - 127).max() <= 2  # no aliasing: grey, not black or white
    assert fitted(Image.fromarray(RGB), (9, 13), "crop").tobytes() == RGB.tobytes()
