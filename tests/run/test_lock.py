"""A folder holds one run at a time."""

import os
import platform

import filelock
import pytest

from vdm_jax.errors import UserError
from vdm_jax.run import build


def test_a_folder_is_held_and_let_go(tmp_path):
    with build.owned(tmp_path):
        said = f"in use by another run (process {os.getpid()} on {platform.node()}): wait until"
        with pytest.raises(UserError) as error, build.owned(tmp_path):
            pass
        assert said in str(error.value) and f"--workdir={tmp_path}" in str(error.value)
    with build.owned(tmp_path):
        pass
    (tmp_path / ".holder").unlink()
    refused = pytest.raises(UserError, match="just starting")
    with filelock.FileLock(tmp_path / ".lock"), refused, build.owned(tmp_path):
        pass


def test_a_file_system_without_locks_gets_a_warning(tmp_path, monkeypatch, capsys):
    def none(*_, **__):
        raise NotImplementedError("no locks")

    monkeypatch.setattr(filelock.FileLock, "acquire", none)
    with build.owned(tmp_path):
        assert "can't be locked (no locks): start no second run in it" in capsys.readouterr().out
