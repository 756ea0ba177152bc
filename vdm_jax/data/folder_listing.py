"""The pictures in a folder: which of them are there to train on and which to test on.

Either it has the subfolders `train` and `test`, or a part of it is held out by a hash: a picture
is a test image if the sha256 of its path below the folder, read as a fraction of 2**256, lies
below `held_out`. So each picture's part depends on its own path alone, and adding or removing
others moves none. Pictures that belong together (frames, bursts, copies) may come apart: use
`train` and `test` for those.

Each part is in the order of these hashes, which is as good as random: `validation_split` takes
its last images, and would hold out single classes were they in alphabetical order.
"""

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vdm_jax.data import file_states
from vdm_jax.errors import UserError, reaching, reason

HELD_OUT = 0.1
_TAKEN = (".png", ".jpg", ".jpeg", ".webp")
_WANTED = ", ".join(_TAKEN)
# Pictures too, but of kinds that aren't read: to pass over them would be to lose them unnoticed.
_REFUSED = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".jpe", ".jfif", ".jxl", ".pbm", ".pgm"),
    *(".pnm", ".ppm", ".svg", ".tga", ".tif", ".tiff"),
)
# Folders that storage devices and systems make for themselves, with thumbnails and removed files.
_ASIDE = {
    "@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "__macosx", "lost+found",
    "system volume information", ".thumbnails",
}  # fmt: skip
_PARTS = ("train", "test")


class Listing(NamedTuple):
    """The pictures of a folder."""

    root: Path
    # For "train" and "test" the paths below `root`, with "/", in the order of their hashes.
    parts: Mapping[str, list[str]]
    above: int  # how many folders of a path lie above a class: 1 for `train` and `test`, else 0

    def state(self) -> str:
        """Returns a digest of all paths, sizes and times."""
        try:
            return file_states.unread(self.root / name for p in _PARTS for name in self.parts[p])
        except OSError as error:
            raise UserError(f"{error.filename} can't be read: {reason(error)}") from error

    def labels(self) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        """Returns the class of each picture, int32 in the order of `parts`, and the names.

        A class is a subfolder, at whatever depth below it the picture lies; they are numbered in
        the order of their names.
        """
        found = {part: [self._class(name) for name in names] for part, names in self.parts.items()}
        classes = sorted({*found["train"], *found["test"]})
        number = {name: i for i, name in enumerate(classes)}
        labels = {p: np.array([number[c] for c in found[p]], np.int32) for p in found}
        return labels, tuple(classes)

    def _class(self, name: str) -> str:
        *folders, _ = name.split("/")
        if len(folders) <= self.above:
            path, wanted = self.root / name, "with class_labels each image must lie in a subfolder"
            raise UserError(f"{path} lies in no class: {wanted} of {path.parent} named by it")
        return folders[self.above]


def find(root: Path, held_out: float | None) -> Listing:
    """Returns the pictures below `root`; says on stderr how many other files there are.

    Raises UserError for no such folder, no pictures, or pictures that would be lost unnoticed.
    """
    if not root.is_dir():
        what = "is a file" if root.exists() else "is not there"
        raise UserError(f"{root} {what}; path= must name a folder of PNG, JPEG or WebP images")
    inside = [part for part in _PARTS if (root / part).is_dir()]
    if len(inside) == 1:
        lacking = _PARTS[1 - _PARTS.index(inside[0])]
        raise UserError(f"{root} has a subfolder {inside[0]!r} but no {lacking!r}; give both")
    names, skipped = walk(root)
    if skipped:
        said = f"vdm_jax: {len(skipped)} entries of {root} are left out: no images by their names,"
        first = f"(the first is {skipped[0]})"
        print(f"{said} or folders for thumbnails or removed files {first}", file=sys.stderr)
    if not names:
        raise UserError(f"{root} holds no images; wanted {_WANTED} in it")
    return _two_folders(root, names, held_out) if inside else _split(root, names, held_out)


def _two_folders(root: Path, names: list[str], held_out: float | None) -> Listing:
    if held_out is not None:
        raise UserError(f"held_out={held_out} is for folders without train and test; leave it out")
    parts: dict[str, list[str]] = {part: [] for part in _PARTS}
    for name in sorted(names, key=lambda name: _hash(name.partition("/")[2])):
        part, below, _ = name.partition("/")
        if not below or part not in parts:
            raise UserError(f"{root / name} lies beside train and test; move it into one or away")
        parts[part].append(name)
    for part, found in parts.items():
        if not found:
            raise UserError(f"{root / part} holds no images; wanted {_WANTED} in it")
    return Listing(root, parts, above=1)


def _split(root: Path, names: list[str], held_out: float | None) -> Listing:
    fraction = HELD_OUT if held_out is None else held_out
    if not isinstance(fraction, (int, float)) or not 0 < fraction < 1:
        raise UserError(f"held_out={held_out!r} must lie between 0 and 1: the fraction to test on")
    ordered = sorted(names, key=_hash)
    count = sum(_hash(name) < fraction * 2.0**256 for name in ordered)
    if count in (0, len(ordered)):
        said = f"of the {len(ordered)} images in {root} {count} would be test images"
        hint = "add images, or put them into subfolders train and test"
        raise UserError(f"{said} with held_out={fraction}; {hint}")
    return Listing(root, {"train": ordered[count:], "test": ordered[:count]}, above=0)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest(), "big")


def walk(root: Path) -> tuple[list[str], list[str]]:
    """Returns the paths below `root` of its pictures, and those of its other files, with "/".

    Hidden files and folders are passed over; the folders in _ASIDE are among the others. Raises
    UserError for pictures of a kind that isn't read, and for what can't be walked over.
    """
    names: list[str] = []
    skipped: list[str] = []
    for name in _files(root, root, ()):
        suffix = os.path.splitext(name)[1].lower()
        if suffix in _REFUSED:
            said = f"is a {suffix} file; wanted only {_WANTED}: convert it or move it away"
            raise UserError(f"{root / name} {said}")
        (names if suffix in _TAKEN else skipped).append(name)
    return names, skipped


def _files(root: Path, folder: Path, above: tuple[Path, ...]) -> Iterator[str]:
    """Yields files that aren't hidden, and the folders in _ASIDE, in order; follows links."""
    real = folder.resolve()
    if real in above:
        raise UserError(f"{folder} is a link to a folder that it lies in; remove it")
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder} can't be read: {reason(error)}; see to it") from error
    for entry in entries:
        aside = entry.name.lower() in _ASIDE  # what is in there doesn't matter
        if entry.name.startswith(".") and not aside:
            continue
        with reaching(entry):  # a broken link is told when it is looked up
            is_file, is_folder = entry.is_file() or not entry.exists(), entry.is_dir()
        if aside or is_file:
            yield entry.relative_to(root).as_posix()
        elif is_folder:
            yield from _files(root, entry, (*above, real))
        else:
            raise UserError(f"{entry} is neither file nor folder (a pipe?); move it away")
