"""Every augmentation gives one of its allowed transforms, as often as it should."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdm_jax.data import AUGMENTATIONS, train_batches
from vdm_jax.data.augment import shifted

DRAWS = 4800
IMAGE = np.random.default_rng(0).integers(1, 256, (6, 6, 3), dtype=np.uint8)  # no symmetry


def _dihedral(image):
    """The eight turned and mirrored versions of an image: {(flip, turns): image}."""
    return {
        (flip, turns): np.rot90(image[:, ::-1] if flip else image, turns)
        for flip in (False, True)
        for turns in range(4)
    }


def _permuted(image):
    return {
        (kind, order): turned[..., list(order)]
        for kind, turned in _dihedral(image).items()
        for order in itertools.permutations(range(3))
    }


def _shifts(image):
    """Moved by slicing a padded image: another way than the code's."""
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    return {
        (dy, dx): padded[1 - dy : 7 - dy, 1 - dx : 7 - dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)
    }


def _draw(augment: str) -> tuple[list[bytes], np.ndarray]:
    batch = train_batches(IMAGE[None], batch_size=DRAWS, seed=3, augment=augment)[0]
    return [image.tobytes() for image in batch["images"]], batch["conditioning"]


def _outcomes(augment: str, allowed) -> list[tuple[object, float]]:
    names = {image.tobytes(): name for name, image in allowed.items()}
    assert len(names) == len(allowed)
    images, conditioning = _draw(augment)
    assert set(images) <= set(names), "an image that is none of the allowed transforms"
    return [(names[image], flag) for image, flag in zip(images, conditioning, strict=True)]


def _check_frequencies(counts: Counter, wanted: dict[object, float]) -> None:
    assert sum(wanted.values()) == pytest.approx(1)
    assert set(counts) <= set(wanted)
    for outcome, p in wanted.items():
        bound = 5 * np.sqrt(DRAWS * p * (1 - p))  # five standard deviations
        assert abs(counts[outcome] - DRAWS * p) < bound, (outcome, counts[outcome], DRAWS * p)


def test_none():
    images, conditioning = _draw("none")
    assert set(images) == {IMAGE.tobytes()}
    np.testing.assert_array_equal(conditioning, 0)


def test_flip():
    outcomes = _outcomes("flip", {1: IMAGE[:, ::-1], 0: IMAGE})
    assert all(flag == flipped for flipped, flag in outcomes)
    _check_frequencies(Counter(flipped for flipped, _ in outcomes), {0: 1 / 2, 1: 1 / 2})


def test_flip_rot90():
    outcomes = _outcomes("flip_rot90", _dihedral(IMAGE))
    assert all(flag == (kind != (False, 0)) for kind, flag in outcomes)
    wanted = {(flip, k): 1 / 12 for flip in (False, True) for k in (1, 2, 3)}
    wanted |= {(False, 0): 1 / 4, (True, 0): 1 / 4}
    _check_frequencies(Counter(kind for kind, _ in outcomes), wanted)


def test_flip_rot90_channels():
    outcomes = _outcomes("flip_rot90_channels", _permuted(IMAGE))
    plain = ((False, 0), (0, 1, 2))
    assert all(flag == 1 for kind, flag in outcomes if kind != plain)
    orders = dict.fromkeys(itertools.permutations(range(3)), 1 / 12)
    _check_frequencies(Counter(order for (_, order), _ in outcomes), orders | {(0, 1, 2): 7 / 12})
    turned = {(flip, k): 1 / 12 for flip in (False, True) for k in (1, 2, 3)}
    turned |= {(False, 0): 1 / 4, (True, 0): 1 / 4}
    _check_frequencies(Counter(turn for (turn, _), _ in outcomes), turned)
    _check_frequencies(Counter(flag for _, flag in outcomes), {0.0: 1 / 8, 1.0: 7 / 8})


def test_shift():
    outcomes = _outcomes("shift", _shifts(IMAGE))
    assert all(flag == (move != (0, 0)) for move, flag in outcomes)
    wanted = {(dy, dx): 1 / 16 for dy in (-1, 0, 1) for dx in (-1, 0, 1)} | {(0, 0): 1 / 2}
    _check_frequencies(Counter(move for move, _ in outcomes), wanted)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(-1, 1), st.integers(-1, 1))
def test_shifted_moves_every_pixel_that_stays_inside(height, width, dy, dx):
    image = np.arange(1, height * width + 1, dtype=np.uint8).reshape(height, width, 1)
    out = shifted(image, dy, dx)
    for y, x in np.ndindex(height, width):
        inside = 0 <= y - dy < height and 0 <= x - dx < width
        assert out[y, x, 0] == (image[y - dy, x - dx, 0] if inside else 0)


def test_images_draw_independently():
    # Two neighbours in a batch, and one image in two epochs, agree about as often as not.
    flags = train_batches(IMAGE[None], batch_size=DRAWS, seed=0, augment="flip")[0]["conditioning"]
    agree = np.mean(flags[1:] == flags[:-1])
    assert abs(agree - 0.5) < 5 * 0.5 / np.sqrt(DRAWS)


def test_the_set_itself_is_left_alone():
    images = np.stack([IMAGE, IMAGE + 1])
    before = images.copy()
    for augment in AUGMENTATIONS:
        for size in (1, 4):
            batch = train_batches(images, batch_size=size, seed=0, augment=augment)[0]
            batch["images"][:] = 0
    np.testing.assert_array_equal(images, before)


def test_unfit_arguments(one_clear_line):
    with one_clear_line("augment='mirror' is unknown; choose one of none, flip, flip_rot90"):
        train_batches(IMAGE[None], batch_size=1, seed=0, augment="mirror")
    for augment in ("flip_rot90", "flip_rot90_channels"):
        with one_clear_line(f"augment='{augment}' .* square ones, but these are 6x5 "):
            train_batches(IMAGE[None, :, :5], batch_size=1, seed=0, augment=augment)
    assert train_batches(IMAGE[None, :, :5], batch_size=1, seed=0, augment="flip")[0]
