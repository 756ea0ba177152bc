"""What was found in a file, remembered for as long as the file isn't touched."""

import contextlib
import hashlib
import json
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_AT_REST_S = 2.0
MARK = ".partial-"


def file_sha256(path: Path, data_dir: Path) -> str:
    """Returns the sha256 (hex) of a file; unchanged size and time of change spare the reading.

    What is remembered lies below `data_dir`, and only for files that were at rest (not changed
    within the last seconds), so that a change too quick for the clock isn't missed.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = recall(path, data_dir)
        if at_rest(path, known):
            return str(known["sha256"])
    before = path.stat()
    digest = sha256(path)
    state = {"bytes": before.st_size, "mtime_ns": before.st_mtime_ns, "sha256": digest}
    if settled(before.st_mtime) and at_rest(path, state):
        remember(path, data_dir, state)
    return digest


def settled(changed: float) -> bool:
    """Whether a file that changed at the time `changed` (in seconds) can be told from a later one.

    File systems keep times to a second or two at worst.
    """
    return time.time() - changed > _AT_REST_S


def remember(path: Path, data_dir: Path, note: Mapping[str, Any]) -> None:
    """Keeps a small note on what was found in `path`. It only saves time: failure is harmless."""
    replace(_note(path, data_dir), note)


def recall(path: Path, data_dir: Path) -> dict[str, Any]:
    """Returns what `remember` kept for `path`; {} where there is nothing, or nothing readable."""
    try:
        note = json.loads(_note(path, data_dir).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}


def _note(path: Path, data_dir: Path) -> Path:
    key = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    return data_dir / "decoded" / "seen" / f"{key}.json"


def file_state(path: Path) -> dict[str, Any]:
    """Returns the size, time of change and sha256 of a file."""
    stat = path.stat()
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256(path)}


def at_rest(path: Path, state: Mapping[str, Any]) -> bool:
    """Whether a file has the size and time of change of `state`."""
    stat = path.stat()
    return (stat.st_size, stat.st_mtime_ns) == (state["bytes"], state["mtime_ns"])


def sha256(path: Path) -> str:
    """Returns the sha256 (hex) of a file, read now."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a small JSON file in one step. For notes that only save time: failure is harmless."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}{MARK}{uuid.uuid4().hex[:8]}")
        partial.write_text(json.dumps(content, indent=1))
        os.replace(partial, path)
