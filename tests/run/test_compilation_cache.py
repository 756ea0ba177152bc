"""Compiled programs are kept where they should be, and change nothing."""

import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny
from commands import ROOT, TINY, environment, run
from filelock import FileLock
from tiny import last_state

from vdm_jax.run import compilation_cache as cache

SHORT = (*TINY, "--config.train.steps=3", "--config.train.steps_per_call=1",
         "--config.optimizer.warmup_steps=1", "--config.sample.num_steps=1")  # fmt: skip


@pytest.fixture
def settings():
    with tiny.jax_settings():
        yield


def test_the_folder_is_the_user_s_or_the_one_given_or_none(monkeypatch, tmp_path):
    monkeypatch.delenv("VDM_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder().parent == tmp_path / "xdg" / "vdm_jax" / "compiled"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.folder().parent == tmp_path / "home" / ".cache" / "vdm_jax" / "compiled"
    monkeypatch.setenv("VDM_JAX_CACHE", str(tmp_path / "own"))
    assert cache.folder().parent == tmp_path / "own"
    monkeypatch.setenv("VDM_JAX_CACHE", "off")
    assert cache.folder() is None


def test_another_processor_has_another_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("VDM_JAX_CACHE", str(tmp_path))
    here = cache.folder()
    assert cache.folder() == here
    monkeypatch.setattr(cache.platform, "processor", lambda: "another")
    assert cache.folder() != here and cache.folder().parent == here.parent


def test_off_is_off_and_a_folder_of_jax_s_own_settings_is_left_alone(
    monkeypatch, tmp_path, settings
):
    cache.switch_on()  # as tests run, see conftest.py
    assert jax.config.values["jax_compilation_cache_dir"] is None
    monkeypatch.setenv("VDM_JAX_CACHE", str(tmp_path / "ours"))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "theirs"))
    cache.switch_on()
    assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "theirs")
    assert not (tmp_path / "ours").exists()


def test_a_folder_that_can_not_be_made_is_a_warning(monkeypatch, tmp_path, capsys, settings):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VDM_JAX_CACHE", str(tmp_path / "file"))
    cache.switch_on()
    line = capsys.readouterr().err
    assert line.startswith("warning: compiled programs are not kept: no writing to ")
    assert line.count("\n") == 1 and "VDM_JAX_CACHE=off" in line
    assert jax.config.values["jax_compilation_cache_dir"] is None


def test_a_folder_that_another_process_keeps_locked_is_a_warning(
    monkeypatch, tmp_path, capsys, settings
):
    monkeypatch.setenv("VDM_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "LOCK_S", 0.1)
    cache.folder().mkdir()
    with FileLock(cache.folder() / ".lockfile"):
        cache.switch_on()
    line = capsys.readouterr().err
    assert line.startswith("warning: compiled programs are not kept: ") and "lock" in line
    assert line.count("\n") == 1
    assert jax.config.values["jax_compilation_cache_dir"] is None


def test_what_was_used_longest_ago_goes_once_they_take_too_much(monkeypatch, tmp_path, settings):
    monkeypatch.setenv("VDM_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "AT_LEAST_S", 0.0)
    monkeypatch.setattr(cache, "AT_MOST", 12_000)
    cache.switch_on()
    names = []
    for n in range(6):
        jax.jit(lambda x, n=n: x @ x + n)(np.ones((9, 9)))
        files = set(cache.folder().glob("*-cache"))
        assert sum(file.stat().st_size for file in files) <= 12_000
        names.append({file.name for file in files})
    assert len(names[-1]) > 1  # a program takes 3,000
    assert not names[0] & names[-1]  # the first has gone


# One program is compiled, with files of at most so many bytes; then the lock is asked for.
ONE = """
import resource, sys
import jax, numpy as np
from experiments import cache
cache.AT_LEAST_S = 0.0
cache.switch_on()
(cache.folder() / ".lockfile").unlink()
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), -1))
jax.jit(lambda x: x @ x)(np.ones((9, 9)))
assert (cache.folder() / ".lockfile").exists()
"""


def test_half_a_program_is_compiled_anew_and_whole_ones_stay(tmp_path):
    """Where the disk was full, or the process killed; JAX itself would keep the half for ever."""

    def compiled(limit):
        done = subprocess.run(
            [sys.executable, "-c", ONE, str(limit)], cwd=ROOT, capture_output=True, text=True,
            env=environment() | {"VDM_JAX_CACHE": str(tmp_path)}, timeout=120, check=True,
        )  # fmt: skip
        files = tmp_path.glob("*/jit_*")
        return done.stderr, {file.name.split("-")[-1]: file for file in files}

    said, files = compiled(200)
    assert "Error writing persistent compilation cache" in said
    assert set(files) == {"cache"} and files["cache"].stat().st_size == 200
    said, files = compiled(-1)
    assert said == ""
    assert set(files) == {"cache", "atime"} and files["cache"].stat().st_size > 200
    before = files["cache"].stat()
    said, files = compiled(-1)
    assert said == "" and files["cache"].stat().st_mtime_ns == before.st_mtime_ns


def test_a_run_is_the_same_bit_for_bit_with_kept_programs_new_ones_and_none(tmp_path):
    kept = tmp_path / "kept"
    states = []
    for name, where in (("none", "off"), ("new", str(kept)), ("kept", str(kept))):
        before = {file.name: file.stat().st_mtime_ns for file in kept.glob("*/*-cache")}
        done = run("digits", f"--workdir={tmp_path / name}", *SHORT, VDM_JAX_CACHE=where)
        assert done.returncode == 0, done.stderr
        assert "needs about" in done.stdout
        after = {file.name: file.stat().st_mtime_ns for file in kept.glob("*/*-cache")}
        assert {"none": not after, "new": after and not before, "kept": after == before}[name]
        states.append(last_state(tmp_path / name)[1])
    for state in states[1:]:
        same = jax.tree.map(lambda a, b: (a == b).all(), states[0], state)
        assert all(jax.tree.leaves(same))
