"""A folder of the user's pictures.

Either it has the subfolders `train` and `test`, or a part of it is held out by a hash: a picture
is a test image if the sha256 of its path below the folder, read as a fraction of 2**256, lies
below `held_out`. So each picture's part depends on its own path alone, and adding or removing
others moves none. Pictures that belong together (frames, bursts, copies) may come apart: use
`train` and `test` for those.

Each part is in the order of these hashes, which is as good as random: `validation_split` takes
its last images, and would hold out single classes were they in alphabetical order.

The pictures are decoded once, into a copy that is named by their content. At each start every
file's path, size, time of change and time of its inode's change is looked up. If any of these
differs from the last time, or is younger than some seconds, the content of all files is read
and hashed; and what is decoded is hashed once more, from the very bytes that are decoded. So a
changed, new, removed or renamed picture is noticed, even one of the same size and time.
"""

import dataclasses
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.data import cache, picture, seen
from vdm_jax.data.errors import DataError
from vdm_jax.data.images import ImageData
from vdm_jax.data.listing import Listing, find
from vdm_jax.data.stream import Block, Stream
from vdm_jax.errors import reason, user_path

LEVELS = 256
MOST_BYTES = 1 << 28  # of a picture file
MOST_PIXELS = 1 << 26  # of a size to bring pictures to

Size = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Options:
    """What pictures are made into; see `load` for the meaning."""

    size: Size | None
    fit: str
    channels: int


def options(size: int | str | Size | None, fit: str, channels: int) -> Options:
    """Returns the options, checked. A size may also be written "64" or "48x64".

    Raises:
      DataError: a size, fit or number of channels that isn't one.
    """
    if fit not in picture.FITS:
        raise DataError(f"fit={fit!r} is unknown; choose one of {', '.join(picture.FITS)}")
    if isinstance(channels, bool) or channels not in (1, 3):
        raise DataError(f"channels={channels!r} must be 3 (RGB) or 1 (grey)")
    if size is None:
        if fit != "none":
            raise DataError(f"fit={fit!r} needs a size: set size= to what the images shall have")
        return Options(None, fit, int(channels))
    sides: list[Any] = [size]
    if isinstance(size, str):
        short = (side.isdecimal() and len(side) < 10 for side in size.split("x"))
        sides = [
            int(side) if whole else side for side, whole in zip(size.split("x"), short, strict=True)
        ]
    elif isinstance(size, (list, tuple)):
        sides = list(size)
    sides = sides * 2 if len(sides) == 1 else sides
    whole = (isinstance(s, (int, np.integer)) and not isinstance(s, bool) and s > 0 for s in sides)
    if len(sides) != 2 or not all(whole):
        raise DataError(
            f"size={size!r} is no size; give one number for a square or (height, width), written "
            "'64' or '48x64'"
        )
    if sides[0] * sides[1] > MOST_PIXELS:
        raise DataError(f"size={size!r} has more than {MOST_PIXELS:,} pixels; give a smaller one")
    return Options((int(sides[0]), int(sides[1])), fit, int(channels))


def load_folder(
    path: str | os.PathLike[str] | None,
    wanted: Options,
    held_out: float | None,
    class_labels: bool,
    data_dir: Path,
) -> ImageData:
    """Returns the pictures of a folder, memory-mapped from a decoded copy below `data_dir`.

    Args:
      path: the folder; read with all its subfolders.
      wanted: what the pictures are made into.
      held_out: the fraction held out of a folder without `train` and `test`; None is 0.1.
      class_labels: whether each picture's class is the name of the subfolder that it lies in
        (the first one below `train` or `test`, or below `path`).
      data_dir: where the decoded copy is kept, one for each content of the folder.

    Raises:
      DataError: no folder, or no fit pictures in it; names the file.
    """
    if not path:
        raise DataError("folder needs path=, the folder with the pictures")
    listing = find(user_path(path, "path"), held_out)
    root = listing.root
    labels, names = listing.labels() if class_labels else (None, ())
    digests = _digests(listing, data_dir)
    key = hashlib.sha256(repr((digests, dataclasses.astuple(wanted))).encode()).hexdigest()[:32]
    folder = cache.decoded(data_dir, f"folder-{key}")
    if not folder.exists():
        size = wanted.size or _first_size(listing, wanted.channels)
        work = {part: _Decoding(listing, part, wanted, size, digests[part]) for part in digests}
        cache.write(folder, work["train"].stream(), work["test"].stream(), LEVELS)
        _say_enlarged(sum(part.enlarged for part in work.values()), root, size)
    data = cache.read(folder, f"folder:{root.resolve().name}")
    return dataclasses.replace(data, labels=labels, label_names=names)


def _digests(listing: Listing, data_dir: Path) -> dict[str, str]:
    """The sha256 of each part's content: of the digests of its files, in order."""
    state, changed = listing.state()
    note = seen.recall(listing.root, data_dir)
    if note.get("state") == state and seen.settled(changed):
        known = note.get("content")
        if isinstance(known, dict) and known.keys() == listing.parts.keys():
            return {part: str(digest) for part, digest in known.items()}
    digests = {}
    for part, names in listing.parts.items():
        running = hashlib.sha256()
        for name in names:
            running.update(hashlib.sha256(_read(listing.file(part, name))).digest())
        digests[part] = running.hexdigest()
    if seen.settled(changed):
        seen.remember(listing.root, data_dir, {"state": state, "content": digests})
    return digests


@dataclasses.dataclass
class _Decoding:
    """One part on its way into the decoded copy; counts the images that were enlarged."""

    listing: Listing
    part: str
    wanted: Options
    size: Size
    digest: str
    enlarged: int = 0

    def stream(self) -> Stream:
        shape = (len(self.listing.parts[self.part]), *self.size, self.wanted.channels)
        return Stream(f"{self.listing.root}, {self.part}", shape, self._blocks())

    def _blocks(self) -> Iterator[Block]:
        running = hashlib.sha256()
        for name in self.listing.parts[self.part]:
            path = self.listing.file(self.part, name)
            content = _read(path)
            running.update(hashlib.sha256(content).digest())
            image = _decode(path, content, self.wanted.channels)
            yield picture.pixels(self._fitted(image, path))[None], None
        if running.hexdigest() != self.digest:
            raise DataError(
                f"{self.listing.root} was changed while it was read; run again when it is at rest"
            )

    def _fitted(self, image: Any, path: Path) -> Any:
        found = (image.height, image.width)
        if self.wanted.fit != "none":
            self.enlarged += found[0] < self.size[0] or found[1] < self.size[1]
            return picture.fitted(image, self.size, self.wanted.fit)
        if found == self.size:
            return image
        if self.wanted.size is not None:
            problem = f"{path} is {_by(found)}; wanted size={_by(self.size)}"
        else:
            first = self.listing.file("train", self.listing.parts["train"][0])
            problem = f"{first} is {_by(self.size)} but {path} is {_by(found)}"
        raise DataError(
            f"{problem} (height x width); images must have one size: set size= and fit='crop' or "
            "'resize' to bring them to it"
        )


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise DataError(
                f"{path} has {size:,} bytes; wanted pictures of at most {MOST_BYTES:,}: make it "
                "smaller or move it away"
            )
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} can't be read: {reason(error)}; check its permissions") from error


def _decode(path: Path, content: bytes, channels: int) -> Any:
    try:
        return picture.decode(content, channels)
    except ValueError as error:
        raise DataError(f"{path} {error}") from error


def _first_size(listing: Listing, channels: int) -> Size:
    path = listing.file("train", listing.parts["train"][0])
    image = _decode(path, _read(path), channels)
    return image.height, image.width


def _by(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _say_enlarged(count: int, root: Path, size: Size) -> None:
    if count:
        print(
            f"vdm_jax: {count} images of {root} are smaller than {_by(size)} and were enlarged",
            file=sys.stderr,
        )
