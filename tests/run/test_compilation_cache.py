"""Compiled programs are kept where they should be; what a killed process left half is deleted."""

import jax
import pytest
import tiny

from vdm_jax.run import compilation_cache


@pytest.fixture
def settings():
    """JAX's settings as a user has them who has set nothing; the former ones return."""
    with tiny.jax_settings():
        jax.config.update("jax_compilation_cache_dir", None)
        yield


def test_the_folder_is_the_user_s_or_the_one_given_or_none(monkeypatch, tmp_path):
    monkeypatch.delenv("VDM_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert compilation_cache.folder().parent == tmp_path / "xdg" / "vdm_jax" / "compiled"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert compilation_cache.folder().parents[1] == tmp_path / "home" / ".cache" / "vdm_jax"
    monkeypatch.setenv("VDM_JAX_CACHE", str(tmp_path / "own"))
    here = compilation_cache.folder()
    assert here.parent == tmp_path / "own" and compilation_cache.folder() == here
    monkeypatch.setattr(compilation_cache.platform, "processor", lambda: "another")
    assert compilation_cache.folder() != here and compilation_cache.folder().parent == here.parent
    monkeypatch.setenv("VDM_JAX_CACHE", "off")
    assert compilation_cache.folder() is None


def test_off_is_off_and_a_folder_of_jax_s_own_is_left_alone(monkeypatch, tmp_path, settings):
    compilation_cache.switch_on()  # as tests run, see conftest.py
    assert jax.config.values["jax_compilation_cache_dir"] is None
    monkeypatch.setenv("VDM_JAX_CACHE", str(tmp_path / "ours"))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "theirs"))
    compilation_cache.switch_on()
    assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "theirs")
    assert not (tmp_path / "ours").exists()


def test_programs_are_kept_and_halves_of_them_deleted(monkeypatch, tmp_path, settings):
    monkeypatch.setenv("VDM_JAX_CACHE", str(tmp_path))
    always = {"jax_persistent_cache_min_compile_time_secs": 0.0}
    monkeypatch.setattr(compilation_cache, "SETTINGS", compilation_cache.SETTINGS | always)
    where = compilation_cache.folder()
    where.mkdir()
    (where / "half-cache").write_bytes(b"x")
    for end in ("cache", "atime"):
        (where / f"whole-{end}").write_bytes(bytes(8))
    compilation_cache.switch_on()
    assert not (where / "half-cache").exists() and (where / "whole-cache").exists()
    assert jax.config.values["jax_compilation_cache_max_size"] == 4 * 2**30
    jax.jit(lambda x: jax.numpy.sin(x) @ x.T)(jax.numpy.ones((3, 5))).block_until_ready()
    kept = {file.name.rsplit("-", 1)[0] for file in where.glob("jit*-cache")}
    assert kept and kept == {file.name.rsplit("-", 1)[0] for file in where.glob("jit*-atime")}


def test_a_folder_that_cannot_be_written_is_a_warning(monkeypatch, tmp_path, settings, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VDM_JAX_CACHE", str(tmp_path / "file"))
    compilation_cache.switch_on()
    err = capsys.readouterr().err
    assert err.startswith("warning: compiled programs are not kept (") and err.count("\n") == 1
    assert "VDM_JAX_CACHE=DIR names another folder, VDM_JAX_CACHE=off none" in err
    assert jax.config.values["jax_compilation_cache_dir"] is None
