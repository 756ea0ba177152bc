"""Output is there as a whole or not at all, however the writing ends."""

import errno
import os
import shutil
import signal

import pytest

from vdm_jax import files
from vdm_jax.errors import UserError
from vdm_jax.signals import ENDING


def left(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(autouse=True)
def as_in_the_foreground():
    """Each signal ends a program, as those do not that `nohup` or a shell have switched off."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in ENDING}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [*ENDING, signal.SIGINT])
def test_a_signal_in_the_middle_leaves_nothing(number, tmp_path, capsys):
    def halfway():
        with files.writing(tmp_path / "out") as partial:
            partial.mkdir()
            (partial / "half").write_text("...")
            signal.raise_signal(number)

    before = signal.getsignal(number)
    with pytest.raises((SystemExit, KeyboardInterrupt)) as ended:
        halfway()
    assert left(tmp_path) == [] and signal.getsignal(number) is before
    if number != signal.SIGINT:
        assert ended.value.code == 128 + number
        name = signal.Signals(number).name
        assert capsys.readouterr().err == f"error: terminated ({name})\n"


def test_a_second_sigterm_does_not_keep_the_first_from_cleaning_up(tmp_path, monkeypatch):
    rmtree = shutil.rmtree

    def removing(path, **given):
        signal.raise_signal(signal.SIGTERM)
        rmtree(path, **given)

    def halfway():
        with files.writing(tmp_path / "out") as partial:
            partial.mkdir()
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(shutil, "rmtree", removing)
    with pytest.raises(SystemExit):
        halfway()
    assert left(tmp_path) == []


def test_what_is_there_already_or_by_then_is_left_alone(tmp_path):
    out = tmp_path / "out"

    def late():
        with files.writing(out) as partial:
            partial.write_text("ours")
            out.write_text("theirs")

    with pytest.raises(UserError, match="out is there already"):
        late()
    assert out.read_text() == "theirs" and left(tmp_path) == ["out"]
    with pytest.raises(UserError, match="out is there already"), files.writing(out):
        pytest.fail("it was begun")
    out.unlink()
    with files.writing(out) as partial, files.whole(partial) as file:
        file.write(b"ours")
        assert not out.exists()
    assert out.read_bytes() == b"ours" and left(tmp_path) == ["out"]


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})

    def broken():
        with files.whole(path) as file:
            file.write(b"half")
            raise OSError(28, "full")

    with pytest.raises(OSError, match="full") as raised:
        broken()
    assert raised.value.filename == str(path)
    assert path.read_text() == '{\n "a": 1\n}\n' and left(tmp_path) == ["a.json"]


def test_nothing_is_written_through_a_link(tmp_path):
    other, path = tmp_path / "other", tmp_path / "link"
    other.write_text("theirs")
    path.symlink_to(other)
    with pytest.raises(OSError, match="link"):
        files.append(path, "ours")
    files.write(path, "ours")
    assert not path.is_symlink() and path.read_text() == "ours" and other.read_text() == "theirs"


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    (tmp_path / ".partial-1-ab").write_text("half")
    (tmp_path / ".partial-2-ab" / "in").mkdir(parents=True)
    (tmp_path / "whole").touch()
    files.remove_partials(tmp_path)
    assert left(tmp_path) == ["whole"]


def test_a_folder_that_cannot_be_written_to_is_told_before_anything_is_made(tmp_path, monkeypatch):
    def read_only(dir):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), f"{dir}/x")

    files.check_free(tmp_path / "out")
    assert left(tmp_path) == []
    monkeypatch.setattr(files.tempfile, "TemporaryFile", read_only)
    with pytest.raises(UserError, match=f"^{tmp_path} can't be written to: Read-only file system$"):
        files.check_free(tmp_path / "out")
