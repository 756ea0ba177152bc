"""A published data set's archives: whether they can be had, found out before anything slow starts.

And their download, for what isn't prepared by tensorflow-datasets.
"""

import hashlib
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vdm_jax.data.errors import DataError
from vdm_jax.data.published import Archive
from vdm_jax.errors import reason

LIMIT_S = 5.0
_LARGE = 1_000_000_000  # bytes; more takes a while to read


def require_archives(
    name: str, archives: Sequence[Archive], data_dir: Path, manual_dir: Path, instead: str
) -> dict[str, Path]:
    """Returns the archives on this machine by name, if all others can be reached.

    They lie in `manual_dir`, or in `data_dir/downloads` from an earlier download, and are
    checked. Without this, tensorflow-datasets spends minutes on retries where there is no network.

    Raises:
      DataError: a file that is there is not the published one, or an archive is nowhere;
        `instead` says what else could be done.
    """
    paths = {}
    missing = []
    for archive in archives:
        manual = manual_dir / archive.filename
        path = manual if manual.exists() else _downloaded(archive, data_dir)
        if path is None:
            missing.append(archive)
        else:
            _check(path, archive)
            paths[archive.filename] = path
    if not missing:
        return paths
    url = missing[0].url
    if missing[0].offered:
        problem = unreachable(url, LIMIT_S)
        if problem is None:
            return paths
        problem = f"{url} can't be downloaded ({problem})"
    else:
        problem = f"can't be downloaded, as {urlsplit(url).netloc} doesn't offer it any more"
    wanted = ", ".join(f"{a.filename} ({a.size:,} bytes, sha256 {a.sha256})" for a in missing)
    raise DataError(
        f"{name} is not on this machine and {problem}; put {wanted} into "
        f"manual_dir={manual_dir}, or {instead}"
    )


def obtain(
    name: str, archives: Sequence[Archive], data_dir: Path, manual_dir: Path, instead: str
) -> dict[str, Path]:
    """Returns where each archive lies, by name, downloading those that aren't there.

    Raises:
      DataError: as `require_archives`; or a download fails or isn't the published file.
    """
    paths = require_archives(name, archives, data_dir, manual_dir, instead)
    missing = {a.filename: a for a in archives if a.filename not in paths}
    return paths | (_download(name, missing, data_dir, manual_dir) if missing else {})


def _download(
    name: str, archives: Mapping[str, Archive], data_dir: Path, manual_dir: Path
) -> dict[str, Path]:
    tfds = import_tfds(name)
    from tensorflow_datasets.core.download.checksums import UrlInfo
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    from tensorflow_datasets.core.download.util import DownloadError

    size = sum(archive.size for archive in archives.values())
    print(f"vdm_jax: downloading {', '.join(archives)} ({size:,} bytes)", file=sys.stderr)
    try:
        manager = tfds.download.DownloadManager(
            download_dir=data_dir / "downloads",
            url_infos={a.url: UrlInfo(a.size, a.sha256, a.filename) for a in archives.values()},
            dataset_name=name.replace("/", "_"),
        )
        paths = manager.download({file: archive.url for file, archive in archives.items()})
    except NonMatchingChecksumError as error:
        raise wrong_download(name, error, manual_dir) from error
    except (OSError, DownloadError) as error:
        raise DataError(
            f"{', '.join(archives)} of {name} could not be downloaded to {data_dir}: "
            f"{reason(error)}; see to the network and the disk, or put the original archives into "
            f"manual_dir={manual_dir}"
        ) from error
    return {file: Path(path) for file, path in paths.items()}


def wrong_download(name: str, error: Exception, manual_dir: Path) -> DataError:
    """Returns what to say of a download that isn't the published file."""
    return DataError(
        f"the download of {name} has a wrong checksum ({reason(error, 400)}); try again, or put "
        f"the original archive into manual_dir={manual_dir}"
    )


def import_tfds(name: str) -> Any:
    """Returns the module tensorflow_datasets, for the data set `name`; DataError without it."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(
            f"{name} needs tensorflow-datasets, which can't be imported ({reason(error)}); "
            "install tensorflow-datasets, importlib_resources, array_record and pillow, or use "
            "the embedded data set 'digits'"
        ) from error
    return tfds


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


def _check(path: Path, archive: Archive) -> None:
    size = path.stat().st_size
    if size != archive.size:
        what = f"has {size} bytes; wanted {archive.size}"
    else:
        if size > _LARGE:
            print(f"vdm_jax: checking {path.name} ({size:,} bytes)", file=sys.stderr)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest == archive.sha256:
            return
        what = f"has sha256 {digest}; wanted {archive.sha256}"
    origin = f" from {archive.url}" if archive.offered else ""
    raise DataError(
        f"{path} has a wrong checksum: it {what}; it is cut short or another file: get it anew"
        f"{origin} (sha256 {archive.sha256}), or delete it"
    )


def _downloaded(archive: Archive, data_dir: Path) -> Path | None:
    folder = data_dir / "downloads"
    if not archive.offered or not folder.is_dir():
        return None
    from tensorflow_datasets.core.download.resource import get_dl_fname

    return next(folder.rglob(get_dl_fname(archive.url, archive.sha256)), None)
