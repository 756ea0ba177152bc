"""Compiled programs kept on disk, so that the same command starts sooner the next time."""

import hashlib
import os
import platform
import sys
from pathlib import Path

import jax
from filelock import FileLock

SETTINGS = {
    "jax_persistent_cache_min_compile_time_secs": 0.5,  # what takes less is not worth a file
    "jax_compilation_cache_max_size": 4 << 30,  # beyond, JAX deletes what was used longest ago
}


def folder() -> Path | None:
    """Returns $VDM_JAX_CACHE, or vdm_jax/compiled in the user's cache folder; None for "off".

    Each kind of processor has a folder of its own in it: a lesser one would crash.
    """
    given = os.environ.get("VDM_JAX_CACHE")
    if given == "off":
        return None
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(given or f"{caches}/vdm_jax/compiled").expanduser() / _processor()


def switch_on() -> None:
    """Lets JAX keep compiled programs in `folder()`, unless its own settings name a folder."""
    try:
        where = folder()
        if where is None or jax.config.values["jax_compilation_cache_dir"] is not None:
            return
        where.mkdir(parents=True, exist_ok=True)
        _remove_halves(where)
    except (OSError, RuntimeError, NotImplementedError) as error:  # no home; no locks
        print(f"warning: compiled programs are not kept ({error}); VDM_JAX_CACHE=DIR names another "
              "folder, VDM_JAX_CACHE=off none", file=sys.stderr)  # fmt: skip
        return
    jax.config.update("jax_compilation_cache_dir", str(where))
    for name, value in SETTINGS.items():
        jax.config.update(name, value)


def _remove_halves(where: Path) -> None:
    """Deletes programs that were being written when their process was killed or the disk full.

    JAX would find them damaged at each start and never replace them. With a limit of size it
    writes KEY-cache and then KEY-atime, both while it holds this lock.
    """
    with FileLock(where / ".lockfile", timeout=10):
        for program in where.glob("*-cache"):
            if not program.with_name(program.name.removesuffix("cache") + "atime").exists():
                program.unlink(missing_ok=True)


def _processor() -> str:
    """Returns a short name for what this machine's processor can do."""
    info, wanted = Path("/proc/cpuinfo"), ("model name", "flags", "Features", "CPU part")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    seen = sorted({line for line in lines if line.split("\t")[0].strip() in wanted})
    told = "\n".join([platform.machine(), platform.processor(), *seen])
    return f"{platform.machine()}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
