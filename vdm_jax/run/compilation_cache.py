"""Compiled programs kept on disk, so that the same command starts sooner the next time."""

import hashlib
import os
import platform
import sys
from pathlib import Path

import jax
from filelock import FileLock

__all__ = ["folder", "switch_on"]

VARIABLE = "VDM_JAX_CACHE"
OFF = "off"
AT_LEAST_S = 0.5  # of compiling; what takes less is not worth a file
AT_MOST = 4 << 30  # bytes of `folder()`; beyond, JAX deletes what was used longest ago
LOCK_S = 10.0  # so long JAX waits for another process that reads or writes a program


def folder() -> Path | None:
    """$VDM_JAX_CACHE, or vdm_jax/compiled in the user's cache folder; None for "off".

    Programs for a CPU use all that it can do, and would crash on a lesser one that shares the
    folder: so each kind of processor has a folder of its own in it.
    """
    given = os.environ.get(VARIABLE)
    if given == OFF:
        return None
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(given or f"{caches}/vdm_jax/compiled").expanduser() / _processor()


def switch_on() -> None:
    """Let JAX keep compiled programs in `folder()`; a warning where that can't be written.

    A folder that JAX was given by its own settings is left alone.
    """
    try:
        where = folder()
    except RuntimeError as error:  # a user without a home
        print(f"warning: compiled programs are not kept ({error}); {VARIABLE}=DIR names a folder",
              file=sys.stderr)  # fmt: skip
        return
    if where is None or jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    try:
        where.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(where, os.W_OK | os.X_OK) else "it is read-only"
        if reason is None:
            _remove_halves(where)
    except (OSError, NotImplementedError) as error:  # the latter where files can't be locked
        reason = getattr(error, "strerror", None) or str(error)
    if reason is not None:
        print(
            f"warning: compiled programs are not kept: no writing to {where} ({reason}); "
            f"{VARIABLE}=DIR names another folder, {VARIABLE}={OFF} none",
            file=sys.stderr,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(where))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", AT_LEAST_S)
    if jax.config.values["jax_compilation_cache_max_size"] == -1:  # JAX's default
        jax.config.update("jax_compilation_cache_max_size", AT_MOST)


def _remove_halves(where: Path) -> None:
    """Delete programs that were being written when their process was killed or the disk full.

    JAX would find them damaged at each start and never replace them. With a limit of size it
    writes KEY-cache and then KEY-atime, both while it holds this lock.
    """
    with FileLock(where / ".lockfile", timeout=LOCK_S):
        for program in where.glob("*-cache"):
            if not program.with_name(program.name.removesuffix("cache") + "atime").exists():
                program.unlink(missing_ok=True)


def _processor() -> str:
    """A short name for what this machine's processor can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    wanted = ("model name", "flags", "Features", "CPU part")
    seen = sorted({line for line in lines if line.split("\t")[0].strip() in wanted})
    told = "\n".join([platform.machine(), platform.processor(), *seen])
    return f"{platform.machine()}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
