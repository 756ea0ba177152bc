"""ImageNet at 32x32 and 64x64: two pairs of datasets, which differ in how they were made small.

- "downsampled_imagenet/32x32" and ".../64x64": the PNGs of van den Oord et al. (2016), which the
  papers on bits per dim use, VDM's among them. Their site is closed: the archives must be there.
- "imagenet_resized/32x32" and ".../64x64": those of Chrabaszcz et al. (2017), with class labels.

Bits per dim on one don't compare with those on the other (they differ by about 0.25): neither
ever stands in for the other.

The archives are decoded straight into `vdm_jax.data.decoded_cache`, in one pass. The order is that
of the archives: of their members in a tar, of the numbers in the members' names in a zip.
"""

import io
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from vdm_jax.data import archives, decoded_cache, picture_decoding
from vdm_jax.data.archives import Archive
from vdm_jax.data.decoded_cache import Block, Stream
from vdm_jax.data.image_data import ImageData

LEVELS = 256
_LABELS = "image_classification/imagenet_resized_labels.txt"  # in tensorflow-datasets


class Imagenet(NamedTuple):
    """The number of images in "train" and in "test" (ImageNet's validation part), and their files.

    The archives of each part are in order.
    """

    counts: Mapping[str, int]
    archives: Mapping[str, tuple[Archive, ...]]


def load_imagenet(name: str, data_dir: Path, manual_dir: Path) -> ImageData:
    """Returns a dataset of the table `IMAGENET`, uint8 with 256 levels, memory-mapped.

    The first of these that exists is used: the decoded copy in `data_dir/decoded`; the archives
    in `manual_dir`; those downloaded before; a download, where there is one.

    Raises:
      DataError: it can't be had, or an archive is not the published one.
    """
    wanted = [archive for part in IMAGENET[name].archives.values() for archive in part]
    folder = decoded_cache.folder(data_dir, archives.key(name, wanted))
    if not folder.exists():
        kind, size = name.split("/")
        instead = "use the embedded data set 'digits'"
        if kind == "downsampled_imagenet":
            other = "can be downloaded, but is another data set with other bits per dim"
            instead = f"'imagenet_resized/{size}' {other}"
        paths = archives.obtain(name, wanted, data_dir, manual_dir, instead)
        print(f"vdm_jax: preparing {name} in {data_dir} (once)", file=sys.stderr)
        train, test = (_stream(name, part, paths) for part in ("train", "test"))
        label_names = _label_names() if kind == "imagenet_resized" else ()
        decoded_cache.write(folder, train, test, LEVELS, label_names=label_names)
    return decoded_cache.read(folder, name)


def _label_names() -> list[str]:
    """Returns the classes' WordNet ids in the order of the labels."""
    import tensorflow_datasets as tfds

    return str(tfds.core.tfds_path(_LABELS).read_text()).split()


def _stream(name: str, part: str, paths: Mapping[str, Path]) -> Stream:
    spec, size = IMAGENET[name], int(name.split("x")[-1])

    def blocks() -> Iterator[Block]:
        for archive in spec.archives[part]:
            path = paths[archive.filename]
            yield from png_blocks(path) if path.suffix == ".tar" else npz_blocks(path, size)

    return Stream(f"{name}, {part}", (spec.counts[part], size, size, 3), blocks())


def png_blocks(path: Path) -> Iterator[Block]:
    """Yields the PNG files of a tar one by one, in the order in which they stand there."""
    with tarfile.open(path, "r|") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # of a million files it is much
            if member.isfile() and member.name.lower().endswith(".png"):
                content = archive.extractfile(member).read()  # type: ignore[union-attr]
                yield picture_decoding.pixels(picture_decoding.decode(content, 3))[None], None


def npz_blocks(path: Path, size: int) -> Iterator[Block]:
    """Yields the .npz files in a zip, in the order of their numbers.

    Each holds "data" [n, 3 * size * size], channels first, and "labels" [n] from 1 on: at most 1.6
    GB, and twice that of memory.
    """
    with zipfile.ZipFile(path) as outer:
        names = [name for name in outer.namelist() if name.endswith(".npz")]
        for name in sorted(names, key=_number):
            with np.load(io.BytesIO(outer.read(name))) as inner:
                rows = inner["data"].reshape(-1, 3, size, size)
                yield rows.transpose(0, 2, 3, 1), inner["labels"] - 1


def _number(name: str) -> int:
    """Returns the last number in a member's name, "train_data_batch_10.npz": 10."""
    return int(re.findall(r"\d+", "0" + PurePosixPath(name).stem)[-1])


_Told = tuple[int, str]  # size in bytes and sha256


def _old(size: str, train: _Told, valid: _Told) -> Imagenet:
    site = "http://image-net.org/small/"  # closed
    archives = {
        part: (Archive(f"{site}{file}_{size}.tar", *told, offered=False),)
        for part, file, told in (("train", "train", train), ("test", "valid", valid))
    }
    return Imagenet({"train": 1_281_149, "test": 49_999}, archives)


def _new(size: int, train: Mapping[str, _Told], valid: _Told) -> Imagenet:
    start = f"http://www.image-net.org/data/downsample//Imagenet{size}_"
    archives = {
        "train": tuple(Archive(f"{start}{file}_npz.zip", *told) for file, told in train.items()),
        "test": (Archive(f"{start}val_npz.zip", *valid),),
    }
    return Imagenet({"train": 1_281_167, "test": 50_000}, archives)


# fmt: off
IMAGENET: dict[str, Imagenet] = {
    "downsampled_imagenet/32x32": _old(
        "32x32",
        (4_113_018_880, "244a323d48f8d72f65ad8b54658c01fed68d2d7bdc77ccb43da58c11e94224e5"),
        (161_474_560, "862e559462b24cf736212a19f6b0d47b55c2dc8ebdaa95ccecfe71260124c8f7"),
    ),
    "downsampled_imagenet/64x64": _old(
        "64x64",
        (12_112_588_800, "e2a2c1947a748d0d256e98e6d82800d855441dc9e4de2e71a773f1324c4524d7"),
        (477_255_680, "eeac03ec4f585baf871d2b4cb9c974bfe345e74878a74e5820fe6eb1041629cd"),
    ),
    "imagenet_resized/32x32": _new(
        32,
        {"train": (3_580_435_279,
                   "94226337ecc1b0309d9fcd0167127aaadc931587035fbcb53925235edbaec4fc")},
        (139_697_668, "013990e6dec1237dcd1f9beadbab81ead6604cc119af5cacbfb59ae28148377a"),
    ),
    "imagenet_resized/64x64": _new(
        64,
        {"train_part1": (6_783_426_789,
                         "9422dc1dc5d092e9814a70a1cb7fc74880d2db5d88a0cb8a34ee363b12bde3f1"),
         "train_part2": (6_780_506_068,
                         "9fafc115afb7e6c301e66dc16b2d737152b427bd5dab26e1293487a6819c7f30")},
        (529_522_927, "e1e75133158a1924135a9c6f97a80d2d237b158945e0b34074e58e6c8430eeb8"),
    ),
}
# fmt: on
