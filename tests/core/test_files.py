"""Output is there as a whole or not at all, however the writing ends."""

import shutil
import signal

import pytest

from vdm_jax import files
from vdm_jax.errors import UserError
from vdm_jax.signals import ENDING


def left(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(autouse=True)
def ctrl_c():
    """It ends a program, as it does not where a shell has put the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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
    with files.writing(out) as partial, files.durable(partial) as file:
        file.write(b"ours")
        assert not out.exists()
    assert out.read_bytes() == b"ours" and left(tmp_path) == ["out"]
