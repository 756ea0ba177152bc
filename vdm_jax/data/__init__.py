"""Image datasets: where they come from (`load`) and how they are batched (`train_batches`, ...).

Points in the plane, of a known density, are in `points`.

>>> images = load("digits")
>>> batches = train_batches({"images": images.train}, batch_size=64, seed=0)
>>> batches[1000]["images"].shape          # batch number 1000, without the 999 before it
(64, 8, 8, 1)
"""

from vdm_jax import extras

extras.need("data")

from vdm_jax.data import points
from vdm_jax.data.augment import AUGMENTATIONS, augmented, flagged
from vdm_jax.data.batches import Batch, eval_batches, stacked, train_batches
from vdm_jax.data.folder import FolderOptions
from vdm_jax.data.image_data import Condition, ImageData, validation_split
from vdm_jax.data.sources import SOURCES, load

__all__ = [
    "AUGMENTATIONS", "SOURCES", "Batch", "Condition", "FolderOptions", "ImageData",
    "augmented", "eval_batches", "flagged", "load", "points", "stacked", "train_batches",
    "validation_split",
]  # fmt: skip
