"""A folder of the user's pictures, decoded once.

The decoded copy is named by every file's path, size, time of change and time of its inode's change:
at each start a changed, new, removed or renamed picture is noticed.
"""

import dataclasses
import hashlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vdm_jax.data import decoded_cache, picture_decoding
from vdm_jax.data.decoded_cache import Block, Stream
from vdm_jax.data.folder_listing import Listing, find
from vdm_jax.data.image_data import ImageData
from vdm_jax.errors import UserError, reaching, user_path

MOST_PIXELS = 1 << 26  # of a size to bring pictures to
_LOOKED_AT = 100  # pictures, to see whether they are grey
FITS = ("none", "crop", "resize", "tiles")

Size = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class FolderOptions:
    """The settings of how pictures are brought to one shape, and of how many are held out.

    `fit` "none" takes images of the one size only; "crop" takes the largest part of that shape
    about the centre and brings it to the size; "resize" stretches; "tiles" cuts each image into as
    many of that size as lie side by side in it, from its top left corner: it is their group.
    """

    size: int | str | Size | None = None  # 64, "48x64" (height x width); None: the first's
    fit: str = "none"
    channels: int = 3  # RGB; 1: grey
    held_out: float | None = None  # fraction to test on, without `train` and `test`; None: 0.1


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
    with reaching(root := user_path(path, "path")):
        listing = find(root, options.held_out)
    labels, names = listing.labels() if class_labels else (None, ())
    state = listing.state()
    content = repr((state, len(listing.parts["test"]), size, options.fit, options.channels))
    key = hashlib.sha256(content.encode()).hexdigest()[:32]
    folder = decoded_cache.folder(data_dir, f"folder-{key}")
    if not folder.exists():
        _decode(folder, listing, options, size, state)
    data = decoded_cache.read(folder, f"folder:{listing.root.resolve().name}")
    if labels and data.source:
        labels = {part: labels[part][data.source[part]] for part in labels}
    some = data.train[:: -(-len(data.train) // _LOOKED_AT)]
    if options.channels == 3 and np.array_equal(some[..., :2], some[..., 1:]):
        said = f"{len(some)} images of {listing.root} that were looked at are grey: each is taken"
        print(f"vdm_jax: {said} as three equal channels; channels=1 takes one", file=sys.stderr)
    return dataclasses.replace(data, labels=labels, label_names=names)


def _checked_size(options: FolderOptions) -> Size | None:
    size, fit, channels = options.size, options.fit, options.channels
    if fit not in FITS:
        raise UserError(f"fit={fit!r} is unknown; choose one of {', '.join(FITS)}")
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
        raise UserError(f"size={size!r} is no size; give '64' or '48x64' (height x width)")
    if height * width > MOST_PIXELS:
        raise UserError(f"size={size!r} has more than {MOST_PIXELS:,} pixels; give a smaller one")
    return height, width


def _decode(
    folder: Path, listing: Listing, options: FolderOptions, size: Size | None, state: str
) -> None:
    root, channels = listing.root, options.channels
    first = root / listing.parts["train"][0]
    wanted = size or picture_decoding.read(first, channels).shape[:2]
    tiles = options.fit == "tiles"
    enlarged = 0

    def blocks(names: list[str]) -> Iterator[Block]:
        nonlocal enlarged
        for number, name in enumerate(names):
            path = root / name
            pixels = picture_decoding.read(path, channels)
            found = pixels.shape[:2]
            if tiles:
                cut = picture_decoding.tiles(pixels, wanted)
                if not len(cut):
                    said = f"{path} is {_by(found)} (height x width) and has no tile of"
                    raise UserError(f"{said} {_by(wanted)}; move it away, or give a smaller size=")
                yield cut, {"source": np.full(len(cut), number)}
                continue
            if options.fit == "none" and found != wanted:
                said = f"{path} is {_by(found)} but {'size=' if size else first} is {_by(wanted)}"
                hint = "set size= and fit='crop' or 'resize' to bring them to one size"
                raise UserError(f"{said} (height x width); {hint}")
            enlarged += found[0] < wanted[0] or found[1] < wanted[1]
            yield picture_decoding.fitted(pixels, wanted, options.fit)[None], {}
        if listing.state() != state:
            raise UserError(f"{root} was changed while it was read; run again when it is at rest")

    shape = (*wanted, channels)
    train, test = (
        Stream(f"{root}, {part}", None if tiles else len(names), shape, blocks(names))
        for part, names in listing.parts.items()
    )
    decoded_cache.write(folder, train, test, 256)
    if enlarged:
        said = f"{enlarged} images of {root} are smaller than {_by(wanted)} and were enlarged"
        print(f"vdm_jax: {said}", file=sys.stderr)


def _by(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
