"""Every augmentation gives one of its allowed transforms, as often as it should."""

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy import ndimage

from vdm_jax.data import AUGMENTATIONS, augmented, train_batches

DRAWS = 4800
IMAGE = np.random.default_rng(0).integers(1, 256, (6, 6, 3), dtype=np.uint8)  # no symmetry
PLAIN = (0, 0, (0, 1, 2))


def _turned(image):
    """All ways to mirror, turn and permute an image: {(flip, turns, order of channels): image}."""
    return {
        (flip, turns, order): np.rot90(image[:, ::-1] if flip else image, turns)[..., list(order)]
        for flip in (0, 1)
        for turns in range(4)
        for order in itertools.permutations(range(3))
    }


def _batch(augment: str, images: np.ndarray, size: int) -> dict[str, np.ndarray]:
    examples = {"images": images, "conditioning": None}
    transform = augmented(augment, images.shape[1:])
    return train_batches(examples, batch_size=size, seed=3, transform=transform)[0]


def _outcomes(augment: str, allowed) -> list[tuple[object, float]]:
    names = {image.tobytes(): name for name, image in allowed.items()}
    batch = _batch(augment, IMAGE[None], DRAWS)
    drawn = [names[image.tobytes()] for image in batch["images"]]  # else none of the allowed
    return list(zip(drawn, batch["conditioning"], strict=True))


def _check_frequencies(found, wanted: dict[object, float]) -> None:
    counts = Counter(found)
    assert sum(wanted.values()) == pytest.approx(1) and set(counts) <= set(wanted)
    for outcome, p in wanted.items():
        bound = 5 * np.sqrt(DRAWS * p * (1 - p)) + 1e-9  # five standard deviations
        assert abs(counts[outcome] - DRAWS * p) < bound, (outcome, counts[outcome], DRAWS * p)


_ORDERS = dict.fromkeys(itertools.permutations(range(3)), 1 / 12) | {(0, 1, 2): 7 / 12}
_TURNS = {(flip, k): 1 / 12 for flip in (0, 1) for k in (1, 2, 3)} | {(0, 0): 1 / 4, (1, 0): 1 / 4}
_FLIPS = {(0, 0): 1 / 2, (1, 0): 1 / 2}


@pytest.mark.parametrize(
    ("augment", "turns", "orders"),
    [
        ("none", {(0, 0): 1.0}, {(0, 1, 2): 1.0}),
        ("flip", _FLIPS, {(0, 1, 2): 1.0}),
        ("flip_rot90", _TURNS, {(0, 1, 2): 1.0}),
        ("flip_rot90_channels", _TURNS, _ORDERS),
    ],
)
def test_turns_and_permutations(augment, turns, orders):
    outcomes = _outcomes(augment, _turned(IMAGE))
    _check_frequencies([kind[:2] for kind, _ in outcomes], turns)
    _check_frequencies([kind[2] for kind, _ in outcomes], orders)
    assert all(flag == 1 for kind, flag in outcomes if kind != PLAIN)
    # Half of the permutations drawn are all 6, so one of 12 leaves the channels as they are.
    drawn = turns[0, 0] * (1 / 2 if augment == "flip_rot90_channels" else 1)
    _check_frequencies([flag for _, flag in outcomes], {0.0: drawn, 1.0: 1 - drawn})


def test_shift():
    moves = itertools.product((-1, 0, 1), repeat=2)
    shifts = {move: ndimage.shift(IMAGE, (*move, 0), order=0) for move in moves}
    outcomes = _outcomes("shift", shifts)
    assert all(flag == (move != (0, 0)) for move, flag in outcomes)
    wanted = dict.fromkeys(shifts, 1 / 16) | {(0, 0): 1 / 2}
    _check_frequencies([move for move, _ in outcomes], wanted)


def test_unfit_arguments(one_clear_line):
    with one_clear_line("augment='mirror' is unknown; choose one of none, flip, flip_rot90"):
        augmented("mirror", IMAGE.shape)
    with one_clear_line("augment='flip_rot90' .* square images, but these are 6x5 "):
        augmented("flip_rot90", IMAGE[:, :5].shape)
    for augment in AUGMENTATIONS:  # batches have memory of their own
        images = IMAGE[None].copy()
        _batch(augment, images, 8)["images"][:] = 0
        np.testing.assert_array_equal(images[0], IMAGE)
