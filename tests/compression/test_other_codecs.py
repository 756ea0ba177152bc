"""Other codecs' sizes: of pixels that come back, on the pictures that are meant."""

import io
import lzma
import sys

import numpy as np
import pytest
from PIL import Image

from vdm_jax.compression import other_codecs

RNG = np.random.default_rng(0)
OPTIONS = {"PNG": {"optimize": True}, "WebP": {"lossless": True, "quality": 100, "method": 6}}


def test_each_image_is_a_file_and_all_are_a_mosaic():
    images = RNG.integers(0, 256, (3, 4, 5, 3), np.uint8)
    found = other_codecs.sizes(images)
    assert list(found)[-2:] == ["xz", "raw"] and found["raw"] == images.size
    assert found["xz"] == len(lzma.compress(images.tobytes(), preset=9 | lzma.PRESET_EXTREME))
    mosaic = np.zeros((8, 10, 3), np.uint8)
    for index, image in enumerate(images):
        row, column = divmod(index, 2)
        mosaic[4 * row :, 5 * column :][:4, :5] = image
    for name, options in OPTIONS.items():
        for kind, pictures in (("each image", images), ("one mosaic", [mosaic])):
            size = 0
            for picture in pictures:
                Image.fromarray(picture).save(buffer := io.BytesIO(), name, **options)
                size += len(buffer.getvalue())
            assert found[f"{name}, {kind}"] == size


@pytest.mark.parametrize("event", [(2, 3), (4, 4, 3)])
def test_mosaics_keep_within_their_side(monkeypatch, event):
    monkeypatch.setattr(other_codecs, "SIDE", 10)
    planes = RNG.integers(1, 256, (37, *event), np.uint8)
    mosaics = list(other_codecs._mosaics(planes))
    assert max(side for mosaic in mosaics for side in mosaic.shape[:2]) <= 10
    assert sum(int(mosaic.sum()) for mosaic in mosaics) == int(planes.sum())


def test_two_channels_lie_side_by_side():
    plane = other_codecs._plane(image := RNG.integers(0, 256, (4, 5, 2), np.uint8))
    np.testing.assert_array_equal(plane[:, :5], image[..., 0])
    np.testing.assert_array_equal(plane[:, 5:], image[..., 1])


def test_pictures_of_several_sizes_are_taken_one_by_one():
    """Each as if it were alone."""
    pictures = [RNG.integers(0, 256, (size, 7, 3), np.uint8) for size in (5, 9)]
    found = other_codecs.sizes(pictures)
    for name in ("PNG, each image", "WebP, each image", "raw"):
        assert found[name] == sum(other_codecs.sizes(one[None])[name] for one in pictures)
    assert not any("mosaic" in name for name in found)


def test_what_is_lossy_missing_or_too_large_is_told(monkeypatch):
    with pytest.raises(ValueError, match="at most 8192 pixels a side"):
        other_codecs.sizes(np.zeros((1, 1, 8193, 1), np.uint8))
    lossy = {"format": "WEBP", "lossless": False, "quality": 5}
    with monkeypatch.context() as patch:
        patch.setitem(other_codecs._OPTIONS, "WebP", lossy)
        with pytest.raises(RuntimeError, match=r"WebP is not lossless on a picture of shape \(16"):
            other_codecs.sizes(RNG.integers(0, 256, (1, 16, 16, 3), np.uint8))
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    for codec in ("WEBP", "JXL"):
        monkeypatch.delitem(Image.SAVE, codec, raising=False)
    found = other_codecs.sizes(np.zeros((1, 6, 8, 1), np.uint8))
    assert list(found) == ["PNG, each image", "PNG, one mosaic", "xz", "raw"]
