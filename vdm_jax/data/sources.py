"""`load`: the one door to all datasets."""

import dataclasses
import functools
import os
from pathlib import Path

import numpy as np

from vdm_jax.data.arrays import load_arrays
from vdm_jax.data.cifar10_mnist import load_published
from vdm_jax.data.folder import FolderOptions, load_folder
from vdm_jax.data.image_data import ImageData, fingerprint
from vdm_jax.data.imagenet import IMAGENET, load_imagenet
from vdm_jax.errors import UserError, reason, user_path

OWN = ("digits", "digits_binary", "photos32", "arrays", "folder")
SOURCES = (*OWN, "cifar10", "mnist", *IMAGENET)

LEVELS = {"digits": 17, "digits_binary": 2}  # the published values are 0..16
TRAIN_COUNT = 1437  # of the digits

_PathLike = str | os.PathLike[str] | None
_NO_OPTIONS = FolderOptions()
# photos32.md beside it says whose they are.
_PHOTOS = Path(__file__).parents[2] / "experiments" / "photos32"


def load(
    name: str,
    *,
    data_dir: _PathLike = None,
    manual_dir: _PathLike = None,
    path: _PathLike = None,
    levels: int = 256,
    folder: FolderOptions = _NO_OPTIONS,
    class_labels: bool = False,
) -> ImageData:
    """Returns a dataset by name.

    Args:
      name: "digits" (embedded: scikit-learn's 8x8 digits, 17 levels) or "digits_binary" (the same
        in black and white, 2 levels); "photos32" (4,608 crops of 18 photographs, in the
        repository); "arrays" (an .npz file); "folder" (pictures); "cifar10", "mnist" or
        "imagenet_resized/SIZE" (downloaded once, or built from `manual_dir`);
        "downsampled_imagenet/SIZE" (built from `manual_dir`); SIZE is 32x32 or 64x64.
      data_dir: folder of decoded and downloaded data, by default $VDM_JAX_DATA or ~/.cache/vdm_jax.
      manual_dir: folder of original archives, by default `data_dir/manual`.
      path: the .npz file or the folder; for "arrays" and "folder" only.
      levels: number of pixel values, 2..256; for "arrays" only, the others have their own.
      folder: what pictures are made into; for "folder" only.
      class_labels: whether labels are wanted: an error where there are none.
    """
    _check_unused(name, path, levels, folder)
    if name in LEVELS:  # which need no data_dir, so they do without a home, too
        return _digits(name)
    root = _root(data_dir)
    manual = user_path(manual_dir, "manual_dir") if manual_dir else root / "manual"
    try:
        if name == "photos32":
            data = _photos(root)
        elif name == "arrays":
            data = load_arrays(path, levels, root)
        elif name == "folder":
            data = load_folder(path, folder, class_labels, root)
        elif name in IMAGENET:
            data = load_imagenet(name, root, manual)
        else:
            data = load_published(name, root, manual)
    except (OSError, NotImplementedError) as error:  # the latter: a disk without file locks
        said = f"{name} can't be kept in data_dir={root}: {reason(error)}"
        hint = "make space or mend the permissions, or choose another data_dir (or $VDM_JAX_DATA)"
        raise UserError(f"{said}; {hint}") from error
    if class_labels and data.labels is None:
        raise UserError(f"{data.name} has no class labels; leave class_labels out")
    if class_labels and (unseen := data.unseen_class) is not None:
        said = f"class {unseen!r} of {data.name} has test images"
        raise UserError(f"{said} but none to train on; remove it or give it some")
    return data


@functools.cache
def _digits(name: str) -> ImageData:
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


def _photos(root: Path) -> ImageData:
    """Returns the crops of the repository's photographs; each photograph is a group."""
    if not _PHOTOS.is_dir():
        raise UserError("photos32 lies in the repository: work in a clone of it, or use 'folder'")
    data = load_folder(_PHOTOS, FolderOptions(size=32, fit="tiles"), False, root)
    return dataclasses.replace(data, name="photos32")


def _root(data_dir: _PathLike) -> Path:
    """Returns the folder for data. Raises UserError where neither it nor a home is named."""
    variable = os.environ.get("VDM_JAX_DATA")
    if not data_dir and not variable and os.path.expanduser("~") == "~":
        raise UserError("there is no home directory to keep data in: set VDM_JAX_DATA=DIR")
    name = "data_dir" if data_dir else "$VDM_JAX_DATA"
    return user_path(data_dir or variable or "~/.cache/vdm_jax", name)


def _check_unused(name: str, path: _PathLike, levels: int, folder: FolderOptions) -> None:
    """Raises UserError for an unknown name, and for what means nothing with the name."""
    if name not in SOURCES:
        raise UserError(f"dataset {name!r} is unknown; choose one of {', '.join(SOURCES)}")
    if type(levels) is not int or not 2 <= levels <= 256:
        raise UserError(f"levels={levels!r} must be a whole number in 2..256, as images are uint8")
    own = levels if name == "arrays" else LEVELS.get(name, 256)
    if levels not in (own, 256):
        raise UserError(f"levels={levels} can't be set for {name!r}, which has {own}; leave it out")
    if path and name not in ("arrays", "folder"):
        raise UserError(f"path={str(path)!r} is for arrays and folder, not {name!r}; leave it out")
    for key, value in dataclasses.asdict(folder).items():
        if name != "folder" and value != getattr(_NO_OPTIONS, key):
            raise UserError(f"{key}={value!r} is for 'folder', not for {name!r}; leave it out")
