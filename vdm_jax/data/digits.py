"""The embedded default dataset: scikit-learn's 8x8 handwritten digits."""

import functools

import numpy as np

from vdm_jax.data.image_data import ImageData, fingerprint

LEVELS = 17  # the published values are 0..16
TRAIN_COUNT = 1437


@functools.cache
def load_digits_binary() -> ImageData:
    """Returns `load_digits` in black and white: 1 where the grey level is 8 or more, 2 levels."""
    grey = load_digits()
    train, test = ((part >= 8).astype(np.uint8) for part in (grey.train, grey.test))
    for part in (train, test):
        part.flags.writeable = False
    digest = fingerprint(train, test, 2)
    names = grey.label_names
    return ImageData("digits_binary", train, test, 2, digest, labels=grey.labels, label_names=names)


@functools.cache
def load_digits() -> ImageData:
    """Returns the 1797 digits, uint8 [n, 8, 8, 1] in [0, 17): 1437 to train on, 360 to test on.

    The split is fixed: `perm = np.random.RandomState(0).permutation(1797)`, its first 1437
    entries are the training part and the rest the test part, both in the order of `perm`. The
    class labels are the digits.
    """
    from sklearn.datasets import load_digits as sklearn_digits

    published = sklearn_digits()
    images = published.images.astype(np.uint8)[..., None]
    classes = published.target.astype(np.int32)
    order = np.random.RandomState(0).permutation(len(images))
    train, test = images[order[:TRAIN_COUNT]], images[order[TRAIN_COUNT:]]
    labels = {"train": classes[order[:TRAIN_COUNT]], "test": classes[order[TRAIN_COUNT:]]}
    for part in (train, test, *labels.values()):
        part.flags.writeable = False  # shared by all callers
    names = tuple(str(digit) for digit in range(10))
    digest = fingerprint(train, test, LEVELS)
    return ImageData("digits", train, test, LEVELS, digest, labels=labels, label_names=names)
