"""ImageNet at 32x32 and 64x64: two pairs of datasets, which differ in how they were made small.

- "downsampled_imagenet/32x32" and ".../64x64": the PNGs of van den Oord et al. (2016), which the
  papers on bits per dim use, VDM's among them. Their site is closed: the archives must be there.
- "imagenet_resized/32x32" and ".../64x64": those of Chrabaszcz et al. (2017), with class labels.

Bits per dim on one don't compare with those on the other (they differ by about 0.25): neither
ever stands in for the other. Images are in the order of the archives.
"""

import io
import re
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from vdm_jax.data import archives, decoded_cache, npy, picture_decoding
from vdm_jax.data.decoded_cache import Block, Stream
from vdm_jax.data.image_data import ImageData

_LABELS = "image_classification/imagenet_resized_labels.txt"  # in tensorflow-datasets


class Imagenet(NamedTuple):
    """The number of images to train on and to test on (ImageNet's validation part); their files."""

    counts: tuple[int, int]
    train: tuple[str, ...]
    test: tuple[str, ...]


def load_imagenet(name: str, data_dir: Path, manual_dir: Path) -> ImageData:
    """Returns a dataset of the table `IMAGENET`, as `archives.load` does."""
    kind, size = name.split("/")
    spec, side, resized = IMAGENET[name], int(size.split("x")[0]), kind == "imagenet_resized"
    instead = "can be downloaded, but is another dataset with other bits per dim"
    instead = f"'imagenet_resized/{size}' {instead}"

    def blocks(files: Iterable[str], paths: Mapping[str, Path]) -> Iterator[Block]:
        for path in (paths[file] for file in files):
            yield from npz_blocks(path, side) if resized else png_blocks(path)

    def build(paths: Mapping[str, Path], folder: Path) -> None:
        train, test = (
            Stream(f"{name}, {part}", count, (side, side, 3), blocks(files, paths))
            for part, count, files in zip(("train", "test"), spec.counts, spec[1:], strict=True)
        )
        names: list[str] = []
        if resized:  # the classes' WordNet ids in the order of the labels
            import tensorflow_datasets as tfds

            names = str(tfds.core.tfds_path(_LABELS).read_text()).split()
        decoded_cache.write(folder, train, test, 256, label_names=names)

    files = (*spec.train, *spec.test)
    return archives.load(name, files, data_dir, manual_dir, build, None if resized else instead)


def png_blocks(path: Path) -> Iterator[Block]:
    """Yields the PNG files of a tar one by one, in the order in which they stand there."""
    with tarfile.open(path, "r|") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # of a million files it is much
            if member.isfile() and member.name.lower().endswith(".png"):
                content = archive.extractfile(member).read()  # type: ignore[union-attr]
                yield picture_decoding.decode(content, 3)[None], {}


def npz_blocks(path: Path, size: int) -> Iterator[Block]:
    """Yields the .npz files in a zip, in the order of the last numbers in their names.

    Each holds "data" [n, 3 * size * size], channels first, and "labels" [n] from 1 on.
    """
    with zipfile.ZipFile(path) as outer:
        names = [name for name in outer.namelist() if name.endswith(".npz")]
        for name in sorted(names, key=lambda name: int(re.findall(r"\d+", f"0{name}")[-1])):
            inner, _ = npy.members(io.BytesIO(outer.read(name)), ("data", "labels"))
            rows = inner["data"].reshape(-1, 3, size, size)
            yield rows.transpose(0, 2, 3, 1), {"label": inner["labels"] - 1}


_OLD, _NEW = (1_281_149, 49_999), (1_281_167, 50_000)
_PARTS_64 = ("Imagenet64_train_part1_npz.zip", "Imagenet64_train_part2_npz.zip")
IMAGENET = {
    "downsampled_imagenet/32x32": Imagenet(_OLD, ("train_32x32.tar",), ("valid_32x32.tar",)),
    "downsampled_imagenet/64x64": Imagenet(_OLD, ("train_64x64.tar",), ("valid_64x64.tar",)),
    "imagenet_resized/32x32": Imagenet(
        _NEW, ("Imagenet32_train_npz.zip",), ("Imagenet32_val_npz.zip",)
    ),
    "imagenet_resized/64x64": Imagenet(_NEW, _PARTS_64, ("Imagenet64_val_npz.zip",)),
}
