"""ImageNet at 32x32 and 64x64: two pairs of data sets, which differ in how they were made small.

- "downsampled_imagenet/32x32" and ".../64x64": the PNGs of van den Oord et al. (2016), which the
  papers on bits per dim use, VDM's among them. Their site is closed: the archives must be there.
- "imagenet_resized/32x32" and ".../64x64": those of Chrabaszcz et al. (2017), with class labels.

Bits per dim on one don't compare with those on the other (they differ by about 0.25): neither
ever stands in for the other.

The archives are decoded straight into `vdm_jax.data.cache`, in one pass. The record folder of
tensorflow-datasets that CIFAR-10 has in between would cost as much disk again, and a preparation
that encodes a million images as PNG; the order of its records has no use here. The order is that
of the archives: of their members in a tar, of the numbers in the members' names in a zip.
"""

import dataclasses
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from vdm_jax.data import cache, fetch
from vdm_jax.data.imagenet_files import Shape, npz_blocks, png_blocks
from vdm_jax.data.images import ImageData
from vdm_jax.data.published import Archive
from vdm_jax.data.stream import Block, Stream

LEVELS = 256
_LABELS = "image_classification/imagenet_resized_labels.txt"  # in tensorflow-datasets


@dataclasses.dataclass(frozen=True)
class Imagenet:
    """One of the four.

    Attributes:
      name: as tensorflow-datasets has it.
      event_shape: (height, width, 3).
      counts: number of images in "train" and in "test" (the validation part of ImageNet).
      archives: the files of each part, in order.
      blocks: `blocks(path, event_shape, scratch)` yields the images of one archive; `scratch`
        is a folder for temporary files.
      has_labels: whether the archives hold class labels.
      instead: what a message says to whom the archives can't be had.
    """

    name: str
    event_shape: Shape
    counts: Mapping[str, int]
    archives: Mapping[str, tuple[Archive, ...]]
    blocks: Callable[[Path, Shape, Path], Iterator[Block]]
    has_labels: bool
    instead: str


def load_imagenet(name: str, data_dir: Path, manual_dir: Path | None) -> ImageData:
    """Returns a data set of the table `IMAGENET`, uint8 with 256 levels, memory-mapped.

    The first of these that exists is used: the decoded copy in `data_dir/decoded`; the archives
    in `manual_dir`; those downloaded before; a download, where there is one.

    Args:
      name: a key of `IMAGENET`.
      data_dir: where everything is kept.
      manual_dir: a folder with the original archives; `data_dir/manual` where it isn't given.

    Raises:
      DataError: it can't be had, or an archive is not the published one or broken.
    """
    spec = IMAGENET[name]
    archives = [archive for part in spec.archives.values() for archive in part]
    content = "".join(archive.sha256 for archive in archives)
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    folder = cache.decoded(data_dir, f"{name.replace('/', '-')}-{digest}")
    if not folder.exists():
        paths = fetch.obtain(
            name, archives, data_dir, manual_dir or data_dir / "manual", spec.instead
        )
        print(f"vdm_jax: preparing {name} in {data_dir} (once)", file=sys.stderr)
        names = _label_names(name) if spec.has_labels else ()
        train, test = (_stream(spec, part, paths, data_dir) for part in ("train", "test"))
        cache.write(folder, train, test, LEVELS, label_names=names)
    return cache.read(folder, name)


def _stream(spec: Imagenet, part: str, paths: Mapping[str, Path], scratch: Path) -> Stream:
    def blocks() -> Iterator[Block]:
        for archive in spec.archives[part]:
            yield from spec.blocks(paths[archive.filename], spec.event_shape, scratch)

    shape = (spec.counts[part], *spec.event_shape)
    return Stream(f"{spec.name}, {part}", shape, blocks())


def _label_names(name: str) -> list[str]:
    """The classes' WordNet ids in the order of the labels."""
    tfds = fetch.import_tfds(name)
    names: list[str] = tfds.core.tfds_path(_LABELS).read_text().split()
    return names


_OLD_SITE = "http://image-net.org/small/"  # closed
_NEW_SITE = "http://www.image-net.org/data/downsample//"


def _downsampled(size: int, *archives: Archive) -> Imagenet:
    train, valid = archives
    return Imagenet(
        name=f"downsampled_imagenet/{size}x{size}",
        event_shape=(size, size, 3),
        counts={"train": 1_281_149, "test": 49_999},
        archives={"train": (train,), "test": (valid,)},
        blocks=png_blocks,
        has_labels=False,
        instead=(
            f"'imagenet_resized/{size}x{size}' can be downloaded, but is another data set with "
            "other bits per dim"
        ),
    )


def _resized(size: int, *archives: Archive) -> Imagenet:
    *train, valid = archives
    return Imagenet(
        name=f"imagenet_resized/{size}x{size}",
        event_shape=(size, size, 3),
        counts={"train": 1_281_167, "test": 50_000},
        archives={"train": tuple(train), "test": (valid,)},
        blocks=npz_blocks,
        has_labels=True,
        instead="use the embedded data set 'digits'",
    )


def _old(name: str, size: int, sha256: str) -> Archive:
    return Archive(_OLD_SITE + name, size, sha256, offered=False)


def _new(name: str, size: int, sha256: str) -> Archive:
    return Archive(_NEW_SITE + name, size, sha256)


_ALL = (
    _downsampled(
        32,
        _old(
            "train_32x32.tar",
            4_113_018_880,
            "244a323d48f8d72f65ad8b54658c01fed68d2d7bdc77ccb43da58c11e94224e5",
        ),
        _old(
            "valid_32x32.tar",
            161_474_560,
            "862e559462b24cf736212a19f6b0d47b55c2dc8ebdaa95ccecfe71260124c8f7",
        ),
    ),
    _downsampled(
        64,
        _old(
            "train_64x64.tar",
            12_112_588_800,
            "e2a2c1947a748d0d256e98e6d82800d855441dc9e4de2e71a773f1324c4524d7",
        ),
        _old(
            "valid_64x64.tar",
            477_255_680,
            "eeac03ec4f585baf871d2b4cb9c974bfe345e74878a74e5820fe6eb1041629cd",
        ),
    ),
    _resized(
        32,
        _new(
            "Imagenet32_train_npz.zip",
            3_580_435_279,
            "94226337ecc1b0309d9fcd0167127aaadc931587035fbcb53925235edbaec4fc",
        ),
        _new(
            "Imagenet32_val_npz.zip",
            139_697_668,
            "013990e6dec1237dcd1f9beadbab81ead6604cc119af5cacbfb59ae28148377a",
        ),
    ),
    _resized(
        64,
        _new(
            "Imagenet64_train_part1_npz.zip",
            6_783_426_789,
            "9422dc1dc5d092e9814a70a1cb7fc74880d2db5d88a0cb8a34ee363b12bde3f1",
        ),
        _new(
            "Imagenet64_train_part2_npz.zip",
            6_780_506_068,
            "9fafc115afb7e6c301e66dc16b2d737152b427bd5dab26e1293487a6819c7f30",
        ),
        _new(
            "Imagenet64_val_npz.zip",
            529_522_927,
            "e1e75133158a1924135a9c6f97a80d2d237b158945e0b34074e58e6c8430eeb8",
        ),
    ),
)
IMAGENET: dict[str, Imagenet] = {spec.name: spec for spec in _ALL}
