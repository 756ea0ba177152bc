"""compress and decompress refuse in one line what they can't do, and leave nothing behind."""

import errno
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import vdmz
from commands import ROOT
from PIL import Image

from experiments import compress
from vdm_jax import compression
from vdm_jax.run import cli
from vdm_jax.run.cli import UserError

pytestmark = pytest.mark.usefixtures("compiled_once")
GOLDEN = ROOT / "tests" / "data" / "scalar_gamma" / "checkpoints-0"


@pytest.fixture
def out(tmp_path):
    """A folder that must be empty when the test ends."""
    folder = tmp_path / "out"
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []


def refused(command, *arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        command(*arguments)
    said = str(caught.value)
    assert said and "\n" not in said
    return said


@pytest.fixture
def images(tmp_path):
    """Folders and files, of which `good.npy` alone is what the run takes."""
    folder = tmp_path / "in"
    (folder / "empty").mkdir(parents=True)
    good = vdmz.digits(3)
    np.save(folder / "good.npy", good)
    np.save(folder / "small.npy", good[:, :7])
    np.save(folder / "colours.npy", np.stack([good] * 3, axis=-1))
    np.save(folder / "bright.npy", good + 1)
    np.save(folder / "float.npy", good.astype(float))
    Image.fromarray(good[0]).save(folder / "one.png")
    (folder / "text.npy").write_text("no images")
    return folder


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["small.npy"], "the images are 7x8x1, but .*, step 60 is for 8x8x1 .*bring them to that"),
        (["colours.npy"], "the images are 8x8x3, but .* is for 8x8x1 "),
        (["bright.npy"], r"bright.npy holds the value 17, outside \[0, 17\)"),
        (["float.npy"], "float64 values; wanted integers"),
        (["text.npy"], "text.npy is none of what is taken"),
        (["one.png"], "single picture; put it into a folder"),
        (["empty"], "holds no pictures"),
        (["none.npy"], "none.npy is not there"),
        (["good.npy", "good.npy"], "unexpected argument '.*good.npy'"),
        ([], "wanted INPUT, .* or --split=test"),
        (["good.npy", "--split=test"], r"INPUT \(.*good.npy\) and --split exclude each other"),
        (["--split=all"], "--split=all: .*train"),
        (["good.npy", "--blocks=4"], "--blocks=4 is more than there are images, 3"),
        (["good.npy", "--blocks=0"], "--blocks=0"),
        (["good.npy", "--num_steps=0"], "--num_steps=0"),
        (["good.npy", "--num_steps=5000"], "--num_steps=5000"),
        (["good.npy", "--num_steps=few"], "wanted a whole number"),
        (["good.npy", "--grid=65"], "--grid=65"),
        (["good.npy", "--gird=2"], "Unknown command line flag 'gird'"),
        (["good.npy", "--checkpoint=7"], "no checkpoint of step 7"),
        (["good.npy", "--checkpoint=new"], "neither a step nor the folder of a checkpoint"),
        (["good.npy", "--official=x"], "one of --workdir=DIR, .* and --official=PATH"),
        (["good.npy", "--model=cifar10"], "--model goes with --official"),
    ],
)
def test_what_compress_refuses(digits_run, images, out, given, said):
    arguments = [value if value.startswith("-") else images / value for value in given]
    made = out / "a.vdmz"
    assert vdmz.matches(said, refused(vdmz.compress, digits_run, *arguments, "-o", made))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "name the model by one of --workdir=DIR"),
        (["--workdir=NOWHERE"], "NOWHERE holds no run: it has no config.json"),
        ([f"--official={GOLDEN}", "--checkpoint=3"], "--official and --checkpoint exclude"),
        ([f"--official={GOLDEN}"], r"is for images of 3 channel\(s\), but these have 1"),
        ([f"--official={GOLDEN}", "--model=other"], "--model=other is no file and none of"),
        (["--official=NOWHERE", "--model=cifar10"], "--official: .*NOWHERE"),
    ],
)
def test_what_neither_takes_for_a_model(images, digits_file, out, given, said):
    packed, unpacked = [images / "good.npy", "-o", out / "a.vdmz"], [
        digits_file.path, "-o", out / "a",
    ]  # fmt: skip
    for command, arguments in ((vdmz.plain_compress, packed), (vdmz.plain_decompress, unpacked)):
        assert vdmz.matches(said, refused(command, *given, *arguments))


def test_a_split_is_of_a_run(out):
    given = [f"--official={GOLDEN}", "--split=test", "-o", out / "a.vdmz"]
    assert "--split is of a run's images" in refused(vdmz.plain_compress, *given)


def altered(digits_run: Path, folder: Path, **parts) -> Path:
    """The run without its data and with another config.json; `data` replaces what it has."""
    folder.mkdir()
    shutil.copytree(digits_run / "checkpoints", folder / "checkpoints")
    saved = json.loads((digits_run / "config.json").read_text())
    for name, values in parts.items():
        (saved if name == "data" else saved["config"])[name].update(values)
    (folder / "config.json").write_text(json.dumps(saved))
    return folder


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"data": {"classes": 10}}, "conditioned on the class"),
        ({"data": {"classes": "many"}}, "config.json is damaged"),
        ({"data": {"event_shape": None}}, "config.json is damaged"),
        ({"data": {"event_shape": [8, 8]}}, "config.json is damaged"),
        ({"data": {"event_shape": [8, 8, 0]}}, "config.json is damaged"),
        ({"data": {"event_shape": [8, 1 << 40, 1]}}, "config.json is damaged"),
        ({"data": {"levels": "17"}}, "config.json is damaged"),
        ({"data": {"levels": 1}}, "config.json is damaged"),
        ({"data": {"levels": 1000}}, "config.json is damaged"),
        ({"data": {"levels": None}}, "config.json is damaged"),
        ({"model": {"channels": 32}}, "checkpoint"),
        ({"model": {"network": "other"}}, "config.model.network is 'other'"),
        ({"model": {"decoder": "density"}}, r"is no VDM of pixel levels \(.*\); only those"),
        (
            {"model": {"head": "logits", "process": "binomial", "num_steps": 9},
             "data": {"levels": 2}},
            "is no VDM of pixel levels",
        ),
        (
            {"hierarchy": {"depth": 1}, "model": {"head": "eps"}},
            r"is no VDM of pixel levels \(VAE",
        ),
    ],
)  # fmt: skip
def test_runs_that_do_not_compress(digits_run, digits_file, images, tmp_path, out, parts, said):
    workdir = altered(digits_run, tmp_path / "run", **parts)
    found = refused(vdmz.compress, workdir, images / "good.npy", "-o", out / "a.vdmz")
    assert vdmz.matches(said, found)
    assert found == refused(vdmz.decompress, workdir, digits_file.path, out / "a.npy")


def test_a_config_that_is_no_json(digits_run, images, tmp_path, out):
    workdir = altered(digits_run, tmp_path / "run")
    content = (workdir / "config.json").read_text()
    for damaged in ("", content[:-20], "[1]", '{"config": 1}', "\0"):
        (workdir / "config.json").write_text(damaged)
        said = refused(vdmz.compress, workdir, images / "good.npy", "-o", out / "a.vdmz")
        assert "config.json is damaged" in said


@pytest.mark.parametrize("command", ["compress", "decompress"])
def test_where_nothing_can_be_written(digits_run, digits_file, images, tmp_path, command):
    given = images / "good.npy" if command == "compress" else digits_file.path

    def said(*output: object) -> str:
        run = vdmz.plain_compress if command == "compress" else vdmz.plain_decompress
        return refused(run, f"--workdir={digits_run}", given, *output)

    there = tmp_path / "there"
    there.write_text("mine")
    assert "there is there already; name another, or remove it" in said("-o", there)
    assert there.read_text() == "mine"
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nothing")
    assert "dangling is there already" in said("-o", dangling)
    assert dangling.is_symlink() and not (tmp_path / "nothing").exists()
    assert "nowhere is no folder; make it first" in said("-o", tmp_path / "nowhere" / "a")
    assert "there is no folder" in said("-o", there / "a")
    assert "can't be a path: " in said("-o", tmp_path / ("long" * 100))
    assert "is missing" in said()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "in", "there"]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "can't be written to: No space left on device.*; nothing was written"),
        (errno.EACCES, "a.* can't be written: Permission denied; nothing was written"),
        (errno.EIO, "a.* can't be written: Input/output error; nothing was written"),
    ],
)
def test_a_disk_that_fails_leaves_nothing(
    digits_run, digits_file, images, out, monkeypatch, number, said
):
    def fails(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fails)
    packed = [digits_run, images / "good.npy", "--nocompare", "-o", out / "a.vdmz"]
    assert vdmz.matches(said, refused(vdmz.compress, *packed))
    unpacked = [digits_run, digits_file.path, out / "a.npy"]
    assert vdmz.matches(said, refused(vdmz.decompress, *unpacked))


def test_what_appears_meanwhile_is_left_alone(digits_run, images, tmp_path, monkeypatch):
    made, fsync = tmp_path / "a.vdmz", os.fsync

    def slow(handle: int) -> None:
        made.write_text("theirs")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", slow)
    said = refused(vdmz.compress, digits_run, images / "good.npy", "--nocompare", "-o", made)
    assert "a.vdmz is there already" in said and made.read_text() == "theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.vdmz", "in"]


def test_what_does_not_decode_is_not_written(digits_run, images, out, monkeypatch):
    decode = compression.decompress
    arguments = [digits_run, images / "good.npy", "-o", out / "a.vdmz"]

    def other(content, vdm, progress):
        pixels, meta = decode(content, vdm, progress)
        pixels[-1, 0, 0] ^= 1
        return pixels, meta

    monkeypatch.setattr(compression, "decompress", other)
    said = refused(vdmz.compress, *arguments)
    assert said == "nothing was written: it did not decode to the same images"
    monkeypatch.setattr(compression, "decompress", lambda *given: (decode(*given)[0], b"else"))
    assert said == refused(vdmz.compress, *arguments)

    def fails(content, vdm, progress):
        raise compression.VdmzError("a probe of its outputs differs")

    monkeypatch.setattr(compression, "decompress", fails)
    said = refused(vdmz.compress, *arguments)
    assert said == "nothing was written: on decoding, a probe of its outputs differs"


def test_decompress_says_what_it_can_not_read(digits_run, images, out):
    with (images / "huge.vdmz").open("wb") as huge:  # more than any memory
        huge.truncate(1 << 42)
    for name, said in (
        ("none.vdmz", "none.vdmz can't be read: No such file or directory"),
        ("empty", "empty can't be read: Is a directory"),
        ("one.png", "one.png: it is no VDMZ file"),
        ("huge.vdmz", "huge.vdmz: it is no VDMZ file"),
        ("/dev/zero", "/dev/zero is no file; wanted"),
    ):
        assert said in refused(vdmz.decompress, digits_run, images / name, out / "a.npy")
    given = [f"--workdir={digits_run}", "-o", out / "a.npy"]
    assert refused(vdmz.plain_decompress, *given) == (
        "wanted FILE.vdmz, which experiments.compress wrote"
    )
    assert "unexpected argument 'b'" in refused(vdmz.plain_decompress, *given, "a", "b")
    assert "num_steps" in refused(vdmz.plain_decompress, *given, "a", "--num_steps=3")


@pytest.mark.parametrize("name", ["compress", "decompress"])
def test_a_refusal_ends_in_exit_code_2(monkeypatch, capsys, name, tmp_path):
    monkeypatch.setattr(cli, "_leave", sys.exit)
    with pytest.raises(SystemExit) as end:
        cli.guard(lambda: getattr(vdmz, f"plain_{name}")("a", "-o", tmp_path / "b"))
    assert end.value.code == 2
    assert capsys.readouterr().err.count("error: ") == 1


def test_a_name_of_another_kind_of_output_is_refused(digits_run, digits_file, out):
    for name, kind in (("a.png", ".npy"), ("a.NPZ", ".npy")):
        said = refused(vdmz.decompress, digits_run, digits_file.path, out / name)
        assert said.endswith(f"{name} would be an {kind}, as what was compressed; name it so")


def test_what_may_not_be_looked_at_is_told(digits_run, images, out, monkeypatch):
    """As for all but root, whom nothing is forbidden."""
    stat = Path.stat

    def forbidden(self, **given):
        if "hidden" in str(self):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return stat(self, **given)

    monkeypatch.setattr(Path, "stat", forbidden)
    hidden = out / "hidden" / "a"
    for given in (
        [digits_run, hidden, "-o", out / "a.vdmz"],
        [digits_run, images / "good.npy", "-o", hidden],
        [hidden, images / "good.npy", "-o", out / "a.vdmz"],
    ):
        said = refused(vdmz.compress, *given)
        assert "can't be reached: Permission denied" in said
    said = refused(vdmz.decompress, digits_run, hidden, out / "a.npy")
    assert said == f"{hidden} can't be read: Permission denied"


def test_codecs_that_can_not_take_the_images_are_left_out():
    wide = np.zeros((1, 1, 8200, 1), np.uint8)
    told = compress.compared(wide, 2, 100, "this file")
    assert told.startswith("| codec") and "| this file |" in told
    assert "Other codecs were not compared: images must have at most 8192 pixels a side" in told


def test_a_memory_that_is_too_small_is_told(digits_run, images, out, monkeypatch):
    def short(*given):
        raise MemoryError

    monkeypatch.setattr(compression, "compress", short)
    said = refused(vdmz.compress, digits_run, images / "good.npy", "-o", out / "a.vdmz")
    assert "more memory than there is; with fewer --blocks" in said
