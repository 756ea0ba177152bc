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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vdm_jax.data import archives, decoded_cache, npy, picture_decoding
from vdm_jax.data.archives import INSTEAD, Archive
from vdm_jax.data.decoded_cache import Block, Stream
from vdm_jax.data.image_data import ImageData

_LABELS = "image_classification/imagenet_resized_labels.txt"  # in tensorflow-datasets


class Imagenet(NamedTuple):
    """The number of images in "train" and "test" (ImageNet's validation part); their files."""

    counts: Mapping[str, int]
    archives: Mapping[str, tuple[Archive, ...]]


def load_imagenet(name: str, data_dir: Path, manual_dir: Path) -> ImageData:
    """Returns a dataset of the table `IMAGENET`, as `archives.load` does."""
    kind, size = name.split("/")
    spec, side, instead = IMAGENET[name], int(size.split("x")[0]), INSTEAD
    if kind == "downsampled_imagenet":
        other = "can be downloaded, but is another dataset with other bits per dim"
        instead = f"'imagenet_resized/{size}' {other}"

    def blocks(part: str, paths: Mapping[str, Path]) -> Iterator[Block]:
        for archive in spec.archives[part]:
            path = paths[archive.filename]
            yield from png_blocks(path) if path.suffix == ".tar" else npz_blocks(path, side)

    def build(paths: Mapping[str, Path], folder: Path) -> None:
        train, test = (
            Stream(f"{name}, {part}", spec.counts[part], (side, side, 3), blocks(part, paths))
            for part in ("train", "test")
        )
        names: list[str] = []
        if kind == "imagenet_resized":  # the classes' WordNet ids in the order of the labels
            import tensorflow_datasets as tfds

            names = str(tfds.core.tfds_path(_LABELS).read_text()).split()
        decoded_cache.write(folder, train, test, 256, label_names=names)

    wanted = [archive for part in spec.archives.values() for archive in part]
    return archives.load(name, wanted, data_dir, manual_dir, build, instead)


def png_blocks(path: Path) -> Iterator[Block]:
    """Yields the PNG files of a tar one by one, in the order in which they stand there."""
    with tarfile.open(path, "r|") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # of a million files it is much
            if member.isfile() and member.name.lower().endswith(".png"):
                content = archive.extractfile(member).read()  # type: ignore[union-attr]
                yield picture_decoding.pixels(picture_decoding.decode(content, 3))[None], {}


def npz_blocks(path: Path, size: int) -> Iterator[Block]:
    """Yields the .npz files in a zip, in the order of the last numbers in their names.

    Each holds "data" [n, 3 * size * size], channels first, and "labels" [n] from 1 on: at most 1.6
    GB, and twice that of memory.
    """
    with zipfile.ZipFile(path) as outer:
        names = [name for name in outer.namelist() if name.endswith(".npz")]
        for name in sorted(names, key=lambda name: int(re.findall(r"\d+", f"0{name}")[-1])):
            inner, _ = npy.members(io.BytesIO(outer.read(name)), ("data", "labels"))
            rows = inner["data"].reshape(-1, 3, size, size)
            yield rows.transpose(0, 2, 3, 1), {"label": inner["labels"] - 1}


_OLD = "http://image-net.org/small/"  # closed
_NEW = "http://www.image-net.org/data/downsample//Imagenet"
# fmt: off
_FILES = {  # size in bytes and sha256
    "train_32x32.tar": (4_113_018_880,
        "244a323d48f8d72f65ad8b54658c01fed68d2d7bdc77ccb43da58c11e94224e5"),
    "valid_32x32.tar": (161_474_560,
        "862e559462b24cf736212a19f6b0d47b55c2dc8ebdaa95ccecfe71260124c8f7"),
    "train_64x64.tar": (12_112_588_800,
        "e2a2c1947a748d0d256e98e6d82800d855441dc9e4de2e71a773f1324c4524d7"),
    "valid_64x64.tar": (477_255_680,
        "eeac03ec4f585baf871d2b4cb9c974bfe345e74878a74e5820fe6eb1041629cd"),
    "32_train_npz.zip": (3_580_435_279,
        "94226337ecc1b0309d9fcd0167127aaadc931587035fbcb53925235edbaec4fc"),
    "32_val_npz.zip": (139_697_668,
        "013990e6dec1237dcd1f9beadbab81ead6604cc119af5cacbfb59ae28148377a"),
    "64_train_part1_npz.zip": (6_783_426_789,
        "9422dc1dc5d092e9814a70a1cb7fc74880d2db5d88a0cb8a34ee363b12bde3f1"),
    "64_train_part2_npz.zip": (6_780_506_068,
        "9fafc115afb7e6c301e66dc16b2d737152b427bd5dab26e1293487a6819c7f30"),
    "64_val_npz.zip": (529_522_927,
        "e1e75133158a1924135a9c6f97a80d2d237b158945e0b34074e58e6c8430eeb8"),
}
# fmt: on


def _imagenet(train: Sequence[str], test: str) -> Imagenet:
    old = test.endswith(".tar")
    site, counts = (_OLD, (1_281_149, 49_999)) if old else (_NEW, (1_281_167, 50_000))
    parts = {"train": train, "test": [test]}
    archives = {
        part: tuple(Archive(site + file, *_FILES[file], offered=not old) for file in files)
        for part, files in parts.items()
    }
    return Imagenet(dict(zip(parts, counts, strict=True)), archives)


IMAGENET: dict[str, Imagenet] = {
    "downsampled_imagenet/32x32": _imagenet(["train_32x32.tar"], "valid_32x32.tar"),
    "downsampled_imagenet/64x64": _imagenet(["train_64x64.tar"], "valid_64x64.tar"),
    "imagenet_resized/32x32": _imagenet(["32_train_npz.zip"], "32_val_npz.zip"),
    "imagenet_resized/64x64": _imagenet(
        ["64_train_part1_npz.zip", "64_train_part2_npz.zip"], "64_val_npz.zip"
    ),
}
