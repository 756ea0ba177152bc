"""The original archives of published datasets: found on this machine and checked, or downloaded.

Whether a download can succeed is found out first: without a network tensorflow-datasets spends
minutes on retries.
"""

import dataclasses
import hashlib
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from vdm_jax.data import decoded_cache, file_states
from vdm_jax.data.image_data import ImageData
from vdm_jax.errors import UserError, reason

INSTEAD = "use the embedded dataset 'digits'"


@dataclasses.dataclass(frozen=True)
class Archive:
    """A file as its publisher offers it."""

    url: str
    size: int  # in bytes
    sha256: str  # hex
    offered: bool = True  # else the address only tells the file's name and origin

    @property
    def filename(self) -> str:
        """The last part of the address."""
        return self.url.rpartition("/")[2]


def load(
    name: str,
    archives: Sequence[Archive],
    data_dir: Path,
    manual_dir: Path,
    build: Callable[[Mapping[str, Path], Path], None],
    instead: str = INSTEAD,
) -> ImageData:
    """Returns a published dataset, uint8 with 256 levels, memory-mapped.

    The first of these that exists is used: the decoded copy in `data_dir/decoded`, which
    `build(paths, folder)` writes from the archives' paths by file name; the archives in
    `manual_dir`; those downloaded before; a download, where there is one. Raises UserError where an
    archive is not the published one, or is nowhere; `instead` says what else could be done.
    """
    digest = hashlib.sha256("".join(archive.sha256 for archive in archives).encode()).hexdigest()
    folder = decoded_cache.folder(data_dir, f"{name.replace('/', '-')}-{digest[:16]}")
    if not folder.exists():
        paths = {}
        for archive in archives:
            manual = manual_dir / archive.filename
            if path := manual if manual.exists() else _downloaded(archive, data_dir):
                _check(path, archive)
                paths[archive.filename] = path
        if missing := [archive for archive in archives if archive.filename not in paths]:
            _check_offered(name, missing, f"manual_dir={manual_dir}, or {instead}")
            paths |= _download(name, missing, data_dir, manual_dir)
        print(f"vdm_jax: preparing {name} in {data_dir} (once)", file=sys.stderr)
        build(paths, folder)
    return decoded_cache.read(folder, name)


def _downloaded(archive: Archive, data_dir: Path) -> Path | None:
    folder = data_dir / "downloads"
    if not archive.offered or not folder.is_dir():
        return None
    from tensorflow_datasets.core.download.resource import get_dl_fname

    return next(folder.rglob(get_dl_fname(archive.url, archive.sha256)), None)


def _check(path: Path, archive: Archive) -> None:
    digest = file_states.sha256(path)
    if digest != archive.sha256:
        got = f"it has {path.stat().st_size} bytes and sha256 {digest}"
        hint = f"get it anew{f' from {archive.url}' * archive.offered}, or delete it"
        wanted = f"wanted {archive.size} and {archive.sha256}"
        raise UserError(f"{path} has a wrong checksum: {got}; {wanted}; {hint}")


def _check_offered(name: str, missing: Sequence[Archive], where: str) -> None:
    url = missing[0].url
    if not missing[0].offered:
        problem = f"can't be downloaded, as {urlsplit(url).netloc} doesn't offer it any more"
    elif found := unreachable(url):
        problem = f"{url} can't be downloaded ({found})"
    else:
        return
    wanted = ", ".join(f"{a.filename} ({a.size:,} bytes, sha256 {a.sha256})" for a in missing)
    raise UserError(f"{name} is not on this machine and {problem}; put {wanted} into {where}")


def unreachable(url: str, limit_s: float = 5.0) -> str | None:
    """Returns None if `url` answers within `limit_s` seconds, else the reason in a few words.

    Asks the way tensorflow-datasets downloads (`requests`, so the same proxies and
    certificates), in a thread of its own, as looking up a host name knows no time limit.
    """
    import requests  # type: ignore[import-untyped, unused-ignore]

    problem = [f"no answer within {limit_s:g} s; no network?"]

    def ask() -> None:
        try:
            with requests.get(url, stream=True, timeout=limit_s) as response:
                status = response.status_code
            problem[:] = [] if status < 400 else [f"the server answers HTTP {status}"]
        except requests.Timeout:
            pass
        except (OSError, ValueError) as error:  # of the first kind are all of requests' own
            problem[:] = [f"no connection ({type(error).__name__}); no network?"]

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(limit_s)
    return problem[0] if problem else None


def _download(
    name: str, archives: Sequence[Archive], data_dir: Path, manual_dir: Path
) -> dict[str, Path]:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.checksums import UrlInfo
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    from tensorflow_datasets.core.download.util import DownloadError

    files = ", ".join(archive.filename for archive in archives)
    size = sum(archive.size for archive in archives)
    print(f"vdm_jax: downloading {files} ({size:,} bytes)", file=sys.stderr)
    try:
        manager = tfds.download.DownloadManager(
            download_dir=data_dir / "downloads",
            url_infos={a.url: UrlInfo(a.size, a.sha256, a.filename) for a in archives},
            dataset_name=name.replace("/", "_"),
        )
        paths = manager.download({archive.filename: archive.url for archive in archives})
    except (NonMatchingChecksumError, OSError, DownloadError) as error:
        said = f"{files} of {name} could not be downloaded to {data_dir}: {reason(error, 400)}"
        hint = f"try again, or put the original archives into manual_dir={manual_dir}"
        raise UserError(f"{said}; {hint}") from error
    return {file: Path(path) for file, path in paths.items()}
