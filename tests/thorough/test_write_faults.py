"""A fault at each call that writes: the run says so, and a restart ends as the run left alone.

`faults.c` stands before libc's calls: open to write, write, fsync, truncate, rename, unlink, mkdir,
link. At one of them the process is killed (in the middle of a write), or that call fails (EIO), or
from there on the disk is full (ENOSPC). Orbax writes through TensorStore, which is C++ with threads
of its own: by `strace` it calls open, write, writev, fsync, rename and unlink of libc, so the
library sees them; nothing here reaches the kernel by `syscall()`.
"""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PARTS = 4  # all points are walked through, in so many tests of a minute or two


def walked(folder, part):
    """What `faulty_runs.py` prints: the run left alone, and each point."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler (cc, gcc) is found: the faults are injected by a C library")
    library, control, runs = folder / "faults.so", folder / "control", folder / "runs"
    command = [compiler, "-shared", "-fPIC", "-o", library, HERE / "faults.c", "-ldl"]
    subprocess.run(command, check=True)
    control.write_bytes(bytes(2**14))
    runs.mkdir()
    command = [sys.executable, HERE / "faulty_runs.py", runs, control, part, PARTS]
    done = subprocess.run(
        list(map(str, command)),
        env={
            **os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "VDM_JAX_CACHE": "off",
            "PYTHONPATH": f"{HERE.parents[1]}:{HERE.parent}", "LD_PRELOAD": str(library),
            "FAULTS_FOLDER": str(runs), "FAULTS_CONTROL": str(control),
        },
        capture_output=True, text=True, timeout=3600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return map(json.loads, done.stdout.splitlines())


def differing(one, other):
    names = one["left"].keys() | other.get("left", {}).keys()
    return [n for n in sorted(names) if one["left"].get(n) != other.get("left", {}).get(n)]


@pytest.mark.parametrize("part", range(PARTS))
def test_no_fault_at_any_write_is_silent_or_changes_where_the_run_ends(part, tmp_path):
    alone, *points = walked(tmp_path, part)
    assert alone["code"] == 0 and alone["count"] > 150
    assert len(points) == len(range(part, alone["points"], PARTS))
    ends, bad = Counter(), []
    for point in points:
        first, then = point["first"], point["then"]
        told = first["code"] == 2 and first["said"][-1].startswith("error: ")
        told &= not any("Traceback" in line for line in first["said"])
        ended = first["code"] == 0 and first["left"] == alone["left"]
        killed = first["code"] == -9 and point["mode"] == "kill"
        same = then["code"] == 0 and then["left"] == alone["left"]
        ends["killed" if killed else "told" if told else "ended well" if ended else "bad"] += 1
        if not (same and (killed or told or ended)):
            bad.append((point["mode"], first["call"], first["code"], first["said"][-1:]))
            bad.append((then["code"], then["said"][-1:], differing(alone, then)))
    print(f"{len(points)} of {alone['points']} points, {alone['count']} calls: {dict(ends)}")
    assert not bad, "\n".join(map(str, bad))
