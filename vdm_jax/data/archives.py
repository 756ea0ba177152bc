"""The original archives of published datasets: found on this machine and checked, or downloaded.

Whether a download can succeed is found out first: without a network tensorflow-datasets spends
minutes on retries.
"""

import dataclasses
import hashlib
import sys
import threading
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from vdm_jax.data import file_states
from vdm_jax.data.errors import DataError
from vdm_jax.errors import reason

LIMIT_S = 5.0


@dataclasses.dataclass(frozen=True)
class Archive:
    """A file as its publisher offers it: address, size in bytes and sha256 (hex).

    Where it isn't `offered` any more, the address is only the file's name and its origin.
    """

    url: str
    size: int
    sha256: str
    offered: bool = True

    @property
    def filename(self) -> str:
        """The file's own name, the last part of its address."""
        return PurePosixPath(urlsplit(self.url).path).name


def key(name: str, archives: Sequence[Archive]) -> str:
    """Returns what the decoded copy of a dataset is called: its name and its archives' digest."""
    content = "".join(archive.sha256 for archive in archives)
    return f"{name.replace('/', '-')}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def obtain(
    name: str, archives: Sequence[Archive], data_dir: Path, manual_dir: Path, instead: str
) -> dict[str, Path]:
    """Returns where each archive lies, by file name, and downloads those that aren't there.

    They lie in `manual_dir`, or in `data_dir/downloads` from an earlier download, and are checked.

    Raises:
      DataError: a file that is there is not the published one, or an archive is nowhere;
        `instead` says what else could be done.
    """
    paths = {}
    for archive in archives:
        manual = manual_dir / archive.filename
        if path := manual if manual.exists() else _downloaded(archive, data_dir):
            _check(path, archive)
            paths[archive.filename] = path
    if missing := [archive for archive in archives if archive.filename not in paths]:
        _check_offered(name, missing, f"manual_dir={manual_dir}, or {instead}")
        paths |= _download(name, missing, data_dir, manual_dir)
    return paths


def _downloaded(archive: Archive, data_dir: Path) -> Path | None:
    folder = data_dir / "downloads"
    if not archive.offered or not folder.is_dir():
        return None
    from tensorflow_datasets.core.download.resource import get_dl_fname

    return next(folder.rglob(get_dl_fname(archive.url, archive.sha256)), None)


def _check(path: Path, archive: Archive) -> None:
    digest = file_states.sha256(path)
    if digest != archive.sha256:
        raise DataError(
            f"{path} has a wrong checksum: it has {path.stat().st_size} bytes and sha256 {digest}; "
            f"wanted {archive.size} and {archive.sha256}: it is cut short or another file; get it "
            f"anew{f' from {archive.url}' * archive.offered}, or delete it"
        )


def _check_offered(name: str, missing: Sequence[Archive], where: str) -> None:
    url = missing[0].url
    if not missing[0].offered:
        problem = f"can't be downloaded, as {urlsplit(url).netloc} doesn't offer it any more"
    elif found := unreachable(url, LIMIT_S):
        problem = f"{url} can't be downloaded ({found})"
    else:
        return
    wanted = ", ".join(f"{a.filename} ({a.size:,} bytes, sha256 {a.sha256})" for a in missing)
    raise DataError(f"{name} is not on this machine and {problem}; put {wanted} into {where}")


def unreachable(url: str, limit_s: float) -> str | None:
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
        except requests.ConnectionError as error:
            problem[:] = [f"no connection ({type(error).__name__}); no network?"]
        except (requests.RequestException, OSError, ValueError) as error:
            problem[:] = [reason(error, 120)]

    thread = threading.Thread(target=ask, name="vdm_jax-probe", daemon=True)
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
        raise DataError(
            f"{files} of {name} could not be downloaded to {data_dir}: {reason(error, 400)}; see "
            "to the network and the disk and try again, or put the original archives into "
            f"manual_dir={manual_dir}"
        ) from error
    return {file: Path(path) for file, path in paths.items()}
