"""Other codecs' sizes: of pixels that come back, on the pictures that are meant."""

import importlib.util
import io
import lzma
import sys

import numpy as np
import pytest
from PIL import Image, features

from vdm_jax.compression import other_codecs as image_codecs
from vdm_jax.data import digits

RNG = np.random.default_rng(0)
SMOOTH = np.add.outer(np.arange(6), np.arange(8)).astype(np.uint8)[..., None]
HAS_JXL = importlib.util.find_spec("pillow_jxl") is not None
CODECS = ["PNG", "WebP", *(["JPEG-XL"] if HAS_JXL else [])]


def test_all_are_there_in_order():
    found = image_codecs.sizes(np.stack([SMOOTH] * 4), 256)
    kinds = ("each image", "one mosaic")
    names = [f"{codec}, {kind}" for kind in kinds for codec in CODECS]
    assert [size.name for size in found] == [*names, "xz", "raw"]
    assert found[-1].bytes == 4 * 6 * 8


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (5, 7, 3), (64, 1)])
def test_pixels_come_back(name, shape):
    assert image_codecs._is_there(name)
    for pixels in (RNG.integers(0, 256, shape, np.uint8), np.zeros(shape, np.uint8)):
        content = image_codecs._encoded(name, pixels)
        found = image_codecs._decoded(content, len(shape) == 2)
        np.testing.assert_array_equal(found, pixels, strict=True)
        assert image_codecs._size(name, pixels) == len(content)


@pytest.mark.parametrize("name", ["PNG", "WebP"])
def test_each_image_is_a_file(name):
    images = RNG.integers(0, 17, (3, 8, 8, 1), np.uint8)
    found = dict(image_codecs.sizes(images, 17))
    options = {"PNG": {"optimize": True}, "WebP": {"lossless": True, "quality": 100, "method": 6}}
    total = 0
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image[..., 0]).save(buffer, name, **options[name])
        total += len(buffer.getvalue())
    assert found[f"{name}, each image"] == total


def test_a_codec_that_loses_pixels_is_told(monkeypatch):
    lossy = {"format": "WEBP", "lossless": False, "quality": 5}
    monkeypatch.setitem(image_codecs._OPTIONS, "WebP", lossy)
    images = RNG.integers(0, 256, (1, 16, 16, 3), np.uint8)
    with pytest.raises(RuntimeError, match=r"WebP is not lossless on a picture of shape \(16, 16"):
        image_codecs.sizes(images, 256)


def test_what_pillow_lacks_is_left_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    monkeypatch.setattr(features, "check", lambda name: name != "webp")
    found = image_codecs.sizes(SMOOTH[None], 256)
    assert [size.name for size in found] == ["PNG, each image", "PNG, one mosaic", "xz", "raw"]


def test_a_mosaic_has_every_image_in_its_place():
    planes = RNG.integers(1, 256, (7, 2, 5, 3), np.uint8)
    (mosaic,) = image_codecs._mosaics(planes)
    assert mosaic.shape == (3 * 2, 3 * 5, 3)
    for index, image in enumerate(planes):
        row, column = divmod(index, 3)
        np.testing.assert_array_equal(mosaic[2 * row :, 5 * column :][:2, :5], image)
    assert not mosaic[4:, 5:].any()


@pytest.mark.parametrize("event", [(2, 3), (10, 1), (1, 10), (4, 4, 3)])
def test_mosaics_keep_within_their_side(monkeypatch, event):
    monkeypatch.setattr(image_codecs, "SIDE", 10)
    planes = RNG.integers(1, 256, (37, *event), np.uint8)
    mosaics = list(image_codecs._mosaics(planes))
    assert max(side for mosaic in mosaics for side in mosaic.shape[:2]) <= 10
    assert len(mosaics) == -(-37 // ((10 // event[0]) * (10 // event[1])))
    assert sum(int(mosaic.sum()) for mosaic in mosaics) == int(planes.sum())
    names = [size.name for size in image_codecs.sizes(planes.reshape(37, *event[:2], -1), 256)]
    assert f"PNG, {len(mosaics)} mosaics" in names


def test_other_channels_lie_side_by_side():
    images = RNG.integers(0, 256, (3, 4, 5, 2), np.uint8)
    planes = image_codecs._planes(images)
    np.testing.assert_array_equal(planes[..., :5], images[..., 0])
    np.testing.assert_array_equal(planes[..., 5:], images[..., 1])


@pytest.mark.parametrize(
    ("images", "levels", "said"),
    [
        (SMOOTH, 256, r"\[n, height, width, channels\], not uint8 \(6, 8, 1\)"),
        (SMOOTH[None].astype(int), 256, "must be uint8"),
        (SMOOTH[None][:0], 256, "must be uint8"),
        (SMOOTH[None], 12, r"value 12, outside \[0, 12\)"),
        (np.zeros((1, 1, 8193, 1), np.uint8), 2, "at most 8192 pixels a side"),
    ],
)
def test_refusals(images, levels, said):
    with pytest.raises(ValueError, match=said):
        image_codecs.sizes(images, levels)


def test_digits_cost_what_is_known(monkeypatch):
    """Bits per dim as measured; libraries of other versions pack a little otherwise."""
    images = digits.load_digits().test
    (mosaic,) = image_codecs._mosaics(image_codecs._planes(images))
    assert mosaic.shape == (19 * 8, 19 * 8)
    wanted = {"PNG": 3.80, "WebP": 3.07, "JPEG-XL": 2.59}
    for name in CODECS:
        assert image_codecs._is_there(name)
        assert 8 * image_codecs._size(name, mosaic) / images.size == pytest.approx(
            wanted[name], abs=0.1
        )
    monkeypatch.setattr(image_codecs, "_OPTIONS", {})
    found = dict(image_codecs.sizes(images, digits.LEVELS))
    assert 8 * found["xz"] / images.size == pytest.approx(2.86, abs=0.05)
    assert found["xz"] == len(lzma.compress(images.tobytes(), preset=9 | lzma.PRESET_EXTREME))
