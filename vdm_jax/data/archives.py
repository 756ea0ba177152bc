"""The original archives of published datasets: found on this machine and checked, or downloaded."""

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from filelock import FileLock

from vdm_jax.data import decoded_cache, file_states
from vdm_jax.data.image_data import ImageData
from vdm_jax.errors import UserError, reaching
from vdm_jax.files import remove_partials, whole

TIMEOUT_S = (5, 60)  # most seconds to wait for a connection, and then for more bytes


class Archive(NamedTuple):
    """A file as its publisher offers it."""

    url: str
    size: int  # in bytes
    sha256: str  # hex
    offered: bool  # else the address only tells the file's name and origin

    @property
    def filename(self) -> str:
        """The last part of the address."""
        return self.url.rpartition("/")[2]


def known(dataset: str, files: Sequence[str], offered: bool) -> list[Archive]:
    """Returns what tensorflow-datasets knows of some archives of a dataset, in their order."""
    import tensorflow_datasets as tfds

    infos = tfds.builder_cls(dataset).url_infos.items()
    every = (Archive(url, int(info.size), info.checksum, offered) for url, info in infos)
    by_name = {archive.filename: archive for archive in every}
    return [by_name[file] for file in files]


def load(
    name: str,
    files: Sequence[str],
    data_dir: Path,
    manual_dir: Path,
    build: Callable[[Mapping[str, Path], Path], None],
    instead: str | None = None,
) -> ImageData:
    """Returns a published dataset, uint8 with 256 levels, memory-mapped.

    The first of these that exists is used: the decoded copy in `data_dir/decoded`, which
    `build(paths, folder)` writes from the archives' paths by file name; the archives, called
    `files`, in `manual_dir`; those downloaded before; a download, unless `instead` says what else
    can be done. Raises UserError where an archive is not the published one, or is nowhere.
    """
    archives = known(name.partition("/")[0], files, offered=instead is None)
    digest = hashlib.sha256("".join(archive.sha256 for archive in archives).encode()).hexdigest()
    folder = decoded_cache.folder(data_dir, f"{name.replace('/', '-')}-{digest[:16]}")
    if not folder.exists():
        paths, missing = dict[str, Path](), []
        for archive in archives:
            places = [place / archive.filename for place in (manual_dir, data_dir / "downloads")]
            path = paths[archive.filename] = next(filter(_there, places), places[-1])
            if path.exists():
                _check(path, archive)
            else:
                missing.append(archive)
        for archive in missing:
            if problem := _download(archive, paths[archive.filename]):
                wanted = (f"{a.filename} ({a.size:,} bytes, sha256 {a.sha256})" for a in missing)
                hint = f"put {', '.join(wanted)} into manual_dir={manual_dir}, or "
                hint += instead or "use the embedded dataset 'digits'"
                raise UserError(f"{name} is not on this machine and {problem}; {hint}")
            _check(paths[archive.filename], archive)
        print(f"vdm_jax: preparing {name} in {data_dir} (once)", file=sys.stderr)
        build(paths, folder)
    return decoded_cache.read(folder, name)


def _there(path: Path) -> bool:
    with reaching(path):
        return path.exists()


def _check(path: Path, archive: Archive) -> None:
    with reaching(path, "read"):
        digest = file_states.sha256(path)
    if digest != archive.sha256:
        got = f"it has {path.stat().st_size} bytes and sha256 {digest}"
        hint = f"get it anew{f' from {archive.url}' * archive.offered}, or delete it"
        wanted = f"wanted {archive.size} and {archive.sha256}"
        raise UserError(f"{path} has a wrong checksum: {got}; {wanted}; {hint}")


def _download(archive: Archive, path: Path) -> str | None:
    """Downloads an archive as `path`; returns why not, if it can't."""
    import requests  # type: ignore[import-untyped, unused-ignore]

    if not archive.offered:
        return f"can't be downloaded, as {urlsplit(archive.url).netloc} doesn't offer it any more"
    print(f"vdm_jax: downloading {archive.url} ({archive.size:,} bytes)", file=sys.stderr)
    try:
        with requests.get(archive.url, stream=True, timeout=TIMEOUT_S) as response:
            response.raise_for_status()
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.parent / ".lock", mode=0o666):
                if not path.exists():  # another process may have brought it meanwhile
                    remove_partials(path.parent)
                    _save(response, path, archive)
    except requests.RequestException as error:
        why = f"no connection ({type(error).__name__}); no network?"
        if error.response is not None:
            why = f"the server answers HTTP {error.response.status_code}"
        return f"{archive.url} can't be downloaded ({why})"
    return None


def _save(response: Any, path: Path, archive: Archive) -> None:
    with whole(path) as file, decoded_cache.progress() as bar:
        task = bar.add_task(archive.filename, total=archive.size)
        for part in response.iter_content(1 << 20):
            file.write(part)
            bar.advance(task, len(part))
