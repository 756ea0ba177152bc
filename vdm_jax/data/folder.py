"""A folder of the user's pictures, decoded once.

The decoded copy is named by every file's path, size, time of change and time of its inode's change.
So at each start a changed, new, removed or renamed picture is noticed, even one of the same size
and time. `vdm_jax.data.folder_listing` says which pictures are there to test on.
"""

import dataclasses
import hashlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vdm_jax.data import decoded_cache, picture_decoding
from vdm_jax.data.decoded_cache import Block, Stream
from vdm_jax.data.folder_listing import Listing, find
from vdm_jax.data.image_data import ImageData
from vdm_jax.errors import UserError, user_path

MOST_PIXELS = 1 << 26  # of a size to bring pictures to

Size = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class FolderOptions:
    """The settings of how pictures are brought to one shape, and of how many are held out.

    Attributes:
      size: the height and width of all images, as one number for a square, as (height, width) or
        as "48x64"; None takes that of the first image, and all must have it.
      fit: "none" takes images of the one size only; "crop" takes the largest part of that shape
        about the centre and brings it to the size; "resize" stretches.
      channels: 3 (RGB) or 1 (grey).
      held_out: for a folder without `train` and `test`: the fraction of the images to test on,
        chosen by a hash of their paths; None is 0.1.
    """

    size: int | str | Size | None = None
    fit: str = "none"
    channels: int = 3
    held_out: float | None = None


def load_folder(
    path: str | os.PathLike[str] | None, options: FolderOptions, class_labels: bool, data_dir: Path
) -> ImageData:
    """Returns the pictures of a folder, memory-mapped from a decoded copy below `data_dir`.

    With `class_labels` each picture's class is the name of the subfolder that it lies in: the first
    one below `train` or `test`, or below `path`. Raises UserError, which names the file.
    """
    size = _checked_size(options)
    if not path:
        raise UserError("folder needs path=, the folder with the pictures")
    listing = find(user_path(path, "path"), options.held_out)
    labels, names = listing.labels() if class_labels else (None, ())
    state = listing.state()
    content = repr((state, len(listing.parts["test"]), size, options.fit, options.channels))
    key = hashlib.sha256(content.encode()).hexdigest()[:32]
    folder = decoded_cache.folder(data_dir, f"folder-{key}")
    if not folder.exists():
        wanted = size or _first_size(listing, options.channels)
        work = _Decoding(listing, options, wanted, state)
        decoded_cache.write(folder, work.stream("train"), work.stream("test"), 256)
        if work.enlarged:
            print(
                f"vdm_jax: {work.enlarged} images of {listing.root} are smaller than {_by(wanted)} "
                "and were enlarged",
                file=sys.stderr,
            )
    data = decoded_cache.read(folder, f"folder:{listing.root.resolve().name}")
    return dataclasses.replace(data, labels=labels, label_names=names)


def _checked_size(options: FolderOptions) -> Size | None:
    """Returns the size as (height, width) or None. Raises UserError for unfit options."""
    size, fit, channels = options.size, options.fit, options.channels
    if fit not in (known := picture_decoding.FITS):
        raise UserError(f"fit={fit!r} is unknown; choose one of {', '.join(known)}")
    if isinstance(channels, bool) or channels not in (1, 3):
        raise UserError(f"channels={channels!r} must be 3 (RGB) or 1 (grey)")
    if size is None and fit != "none":
        raise UserError(f"fit={fit!r} needs a size: set size= to what the images shall have")
    if size is None:
        return None
    text = "x".join(map(str, size)) if isinstance(size, (list, tuple)) else str(size)
    sides = re.fullmatch("([0-9]{1,9})(?:x([0-9]{1,9}))?", text)
    height, width = (int(sides[1]), int(sides[2] or sides[1])) if sides else (0, 0)
    if not height * width:
        raise UserError(
            f"size={size!r} is no size; give one number for a square or (height, width), written "
            "'64' or '48x64'"
        )
    if height * width > MOST_PIXELS:
        raise UserError(f"size={size!r} has more than {MOST_PIXELS:,} pixels; give a smaller one")
    return height, width


@dataclasses.dataclass
class _Decoding:
    """Pictures on their way into the decoded copy; counts the images that were enlarged."""

    listing: Listing
    options: FolderOptions
    size: Size
    state: str
    enlarged: int = 0

    def stream(self, part: str) -> Stream:
        """Returns the images of a part."""
        shape = (len(self.listing.parts[part]), *self.size, self.options.channels)
        return Stream(f"{self.listing.root}, {part}", shape, self._blocks(part))

    def _blocks(self, part: str) -> Iterator[Block]:
        for name in self.listing.parts[part]:
            path = self.listing.root / name
            image = picture_decoding.read(path, self.options.channels)
            yield picture_decoding.pixels(self._fitted(image, path))[None], None
        if self.listing.state() != self.state:
            raise UserError(
                f"{self.listing.root} was changed while it was read; run again when it is at rest"
            )

    def _fitted(self, image: Any, path: Path) -> Any:
        found = (image.height, image.width)
        if self.options.fit != "none":
            self.enlarged += found[0] < self.size[0] or found[1] < self.size[1]
            return picture_decoding.fitted(image, self.size, self.options.fit)
        if found == self.size:
            return image
        problem = f"{path} is {_by(found)}; wanted size={_by(self.size)}"
        if self.options.size is None:
            first = self.listing.root / self.listing.parts["train"][0]
            problem = f"{first} is {_by(self.size)} but {path} is {_by(found)}"
        raise UserError(
            f"{problem} (height x width); images must have one size: set size= and fit='crop' or "
            "'resize' to bring them to it"
        )


def _first_size(listing: Listing, channels: int) -> Size:
    image = picture_decoding.read(listing.root / listing.parts["train"][0], channels)
    return image.height, image.width


def _by(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
