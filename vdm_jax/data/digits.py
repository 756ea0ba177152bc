"""The embedded default dataset: scikit-learn's 8x8 handwritten digits."""

import functools

import numpy as np

from vdm_jax.data.image_data import ImageData, fingerprint

LEVELS = {"digits": 17, "digits_binary": 2}  # the published values are 0..16
TRAIN_COUNT = 1437


@functools.cache
def load_digits(name: str = "digits") -> ImageData:
    """Returns the 1797 digits, uint8 [n, 8, 8, 1]: 1437 to train on, 360 to test on.

    "digits" are grey, in [0, 17); "digits_binary" are 1 where the grey level is 8 or more, else 0.
    The first 1437 entries of `np.random.RandomState(0).permutation(1797)` are the training part.
    """
    from sklearn.datasets import load_digits as sklearn_digits

    published = sklearn_digits()
    images = published.images.astype(np.uint8)[..., None]
    if name == "digits_binary":
        images = (images >= 8).astype(np.uint8)
    classes = published.target.astype(np.int32)
    order = np.random.RandomState(0).permutation(len(images))
    train, test = images[order[:TRAIN_COUNT]], images[order[TRAIN_COUNT:]]
    labels = {"train": classes[order[:TRAIN_COUNT]], "test": classes[order[TRAIN_COUNT:]]}
    for part in (train, test, *labels.values()):
        part.flags.writeable = False  # shared by all callers
    levels, names = LEVELS[name], tuple(map(str, range(10)))
    digest = fingerprint(train, test, levels)
    return ImageData(name, train, test, levels, digest, labels=labels, label_names=names)
