"""Whether a published data set's archives can be had, found out before anything slow starts."""

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

from vdm_jax.data.errors import DataError, reason
from vdm_jax.data.published import Archive, Published

LIMIT_S = 5.0


def require_archives(
    spec: Published, manual_dir: Path, downloaded: Callable[[Archive], Path | None]
) -> None:
    """Returns if every archive lies in `manual_dir`, is `downloaded` already or can be reached.

    Without this, tensorflow-datasets spends minutes on retries where there is no network.

    Raises:
      DataError: a file that is there is not the published one, or an archive is nowhere.
    """
    missing = []
    for archive in spec.archives:
        manual = manual_dir / archive.filename
        path = manual if manual.exists() else downloaded(archive)
        if path is None:
            missing.append(archive)
        else:
            _check(path, archive)
    problem = unreachable(missing[0].url, LIMIT_S) if missing else None
    if problem is None:
        return
    wanted = ", ".join(f"{a.filename} (sha256 {a.sha256})" for a in missing)
    raise DataError(
        f"{spec.name} is not on this machine and {missing[0].url} can't be downloaded ({problem}); "
        f"put {wanted} into manual_dir={manual_dir}, or use the embedded data set 'digits'"
    )


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
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest == archive.sha256:
            return
        what = f"has sha256 {digest}; wanted {archive.sha256}"
    raise DataError(
        f"{path} has a wrong checksum: it {what}; it is cut short or another file: get it anew "
        f"from {archive.url} (sha256 {archive.sha256}), or delete it"
    )
