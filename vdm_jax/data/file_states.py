"""States of files, to see whether they changed: size and time of change, and sha256."""

import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

AT_REST_S = 2.0  # file systems keep times to a second or two at worst


def sha256(path: Path) -> str:
    """Returns the sha256 (hex) of a file, read now."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unread(paths: Iterable[Path]) -> str:
    """Returns a digest (hex) of the files' paths, sizes and times, without reading them.

    It waits until the last change is some seconds ago: a later one then has another time, also
    that of the inode, which nobody can set.
    """
    running = hashlib.sha256()
    youngest = 0.0
    for path in paths:
        stat = path.stat()
        told = (os.path.abspath(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        running.update(repr(told).encode())
        youngest = max(youngest, stat.st_mtime, stat.st_ctime)
    time.sleep(min(max(0.0, youngest + AT_REST_S - time.time()), AT_REST_S))
    return running.hexdigest()
