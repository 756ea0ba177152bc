"""`experiments.evaluate` refuses what it can't do in one line that says how to mend it."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from commands import ROOT

from vdm_jax.run import build as setup
from vdm_jax.run import cli
from vdm_jax.run import training as run

GOLDEN = ROOT / "tests" / "data" / "scalar_gamma" / "checkpoints-0"


@pytest.fixture
def refusal(monkeypatch, capsys):
    """The one line of the command in this process, which ends with exit code 2."""

    def ask(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["experiments.evaluate", *map(str, arguments)])
        monkeypatch.setattr(cli, "_leave", sys.exit)
        monkeypatch.delitem(sys.modules, "experiments.evaluate", raising=False)
        with pytest.raises(SystemExit) as end:
            runpy.run_module("experiments.evaluate", run_name="__main__")
        ask.out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert end.value.code == 2 and len(lines) == 1, err
        assert err.endswith(lines[0] + "\n"), err
        return lines[0]

    return ask


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Two runs, `a` and `b`, of different models; three checkpoints each."""
    folder = tmp_path_factory.mktemp("runs")
    for name, channels in (("a", 8), ("b", 4)):
        config = tiny.config()
        config.model.update(channels=channels, network="mlp")
        config.train.update(steps=6, steps_per_call=2, checkpoint_every=2, log_every=2)
        config.eval.update(every=6, final_repeats=1)
        config.sample.update(every=6, num_steps=1, count=1)
        with tiny.one_device():
            run.train(config, folder / name)
    return folder


@pytest.fixture
def images(tmp_path):
    """Writes an .npz file of RGB images and says how the command gets it."""

    def write(channels: int = 3, seed: int = 0) -> tuple[str, ...]:
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 8, channels), np.uint8)
        np.savez(tmp_path / "images.npz", train=pixels, test=pixels)
        return "--data=arrays", f"--path={tmp_path / 'images.npz'}", f"--data_dir={tmp_path / 'd'}"

    return write


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--workdir=DIR is missing"),
        (["--workdir=W", "extra"], "unexpected argument 'extra'"),
        (["--workdir=W", "--repeats=0"], "repeats"),
        (["--workdir=W", "--images=0"], "images"),
        (["--workdir=W", "--repeats=many"], "wanted a whole number"),
        (["--workdir=W", "--dequantization=none"], "uniform"),
        (["--workdir=W", "--tolerance=0"], "--tolerance=0.0: rtol must be positive"),
        (["--workdir=W", "--tolerance=nan"], "--tolerance=nan: rtol must be positive"),
        (["--workdir=W", "--tolerance=1e-8"], "are finer than float32 resolves"),
        (["--workdir=W", "--tolerance=inf"], "--tolerance must be at most 0.1, got inf"),
        (["--workdir=W", "--seed=99999999999999999999"], "--seed"),
        (["--workdir=W"], "W holds no run: it has no config.json"),
        (["--workdir=W", "--official=X", "--checkpoint=3"], "--official and --checkpoint exclude"),
        (["--workdir=W", "--model=cifar10"], "--model goes with --official"),
        (
            ["--workdir=W", f"--official={GOLDEN}", "--model=cifar11"],
            "none of cifar10, cifar10_aug",
        ),
        (["--workdir=W", f"--official={GOLDEN}"], "--data=NAME is missing"),
        (["--workdir=W", "--official=NOTHING", "--model=cifar10"], "NOTHING"),
        (["--workdir=W", f"--official={GOLDEN}", "--data=cifar"], "cifar10"),
        (["--workdir=W", f"--official={GOLDEN}", "--data=folder", "--path=EMPTY"], "EMPTY"),
        (["--workdir=W", f"--official={GOLDEN}", "--data=digits"], "of 3 channel(s), but digits"),
    ],
)
def test_mistakes_get_one_line_that_names_them(arguments, message, refusal, tmp_path):
    (tmp_path / "EMPTY").mkdir()
    for word in ("W", "NOTHING", "EMPTY"):
        arguments = [a.replace(f"={word}", f"={tmp_path / word}") for a in arguments]
    assert message in refusal(*arguments)
    assert not (tmp_path / "W").exists()  # and nothing was begun


@pytest.mark.parametrize("text", ["0", "10,abc", "-5", "", "10,,20", "1.5"])
def test_what_is_no_number_of_steps(text, refusal, runs):
    line = refusal(f"--workdir={runs / 'a'}", f"--num_steps={text}")
    word = next(w for w in text.split(",") if not w.isdigit() or w == "0")
    assert f"--num_steps={text}: {word!r} is no number of steps" in line


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"config": 3}', '{"config": {"model": 3}}', '{"config": null}'],
)
def test_a_damaged_config(content, refusal, tmp_path):
    (tmp_path / "config.json").write_text(content)
    line = refusal(f"--workdir={tmp_path}")
    assert f"{tmp_path / 'config.json'} is damaged" in line


def test_checkpoints_that_are_not_there(refusal, runs, tmp_path):
    line = refusal(f"--workdir={runs / 'a'}", "--checkpoint=5")
    assert "no checkpoint of step 5 in" in line and line.endswith("there: 2, 4, 6.")
    for given in ("latest", tmp_path / "4", runs / "a" / "checkpoints"):
        line = refusal(f"--workdir={runs / 'a'}", f"--checkpoint={given}")
        assert f"--checkpoint={given} is neither a step nor the folder of a checkpoint" in line
    shutil.copy(runs / "a" / "config.json", tmp_path)
    assert f"no folder {tmp_path / 'checkpoints'}" in refusal(f"--workdir={tmp_path}")


def test_a_checkpoint_of_another_model(refusal, runs):
    other = runs / "b" / "checkpoints" / "4"
    line = refusal(f"--workdir={runs / 'a'}", f"--checkpoint={other}")
    first = line.split("the parameter ")[1].split(" of ")[0]
    assert first.startswith("score_model/") and f"{other} is float32[" in line
    assert "4]" in line.split(" is float32[")[1].split(", but")[0]
    assert "8]" in line.split("calls for float32[")[1] and "they belong to different models" in line


def test_a_damaged_checkpoint(refusal, runs, tmp_path):
    shutil.copytree(runs / "a", tmp_path / "a")
    for file in (tmp_path / "a" / "checkpoints" / "6" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:5])
    line = refusal(f"--workdir={tmp_path / 'a'}")
    assert "checkpoints/6 is damaged" in line and "others there: 2, 4." in line


def test_a_published_checkpoint_cut_short(refusal, tmp_path):
    whole = next(GOLDEN.iterdir()).read_bytes()
    (tmp_path / "ckpt-3.flax").write_bytes(whole[: len(whole) // 2])
    shutil.copy(GOLDEN.parent / "model_config.json", tmp_path)
    line = refusal(f"--workdir={tmp_path / 'w'}", f"--official={tmp_path}", "--data=digits")
    assert f"--official: {tmp_path / 'ckpt-3.flax'} is damaged, cut short or not" in line


def test_a_published_checkpoint_without_its_configuration(refusal, tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "c" / "c")
    where = f"--official={tmp_path / 'c' / 'c'}"
    line = refusal(f"--workdir={tmp_path / 'w'}", where)
    assert "--model=NAME is missing, one of cifar10, cifar10_aug, imagenet32, imagenet64" in line
    assert "no model_config.json beside" in line
    (tmp_path / "broken.json").write_text("{")
    line = refusal(f"--workdir={tmp_path / 'w'}", where, f"--model={tmp_path / 'broken.json'}")
    assert "broken.json is no JSON file" in line
    (tmp_path / "broken.json").write_text('{"vocab_size": 256}')
    line = refusal(f"--workdir={tmp_path / 'w'}", where, f"--model={tmp_path / 'broken.json'}")
    assert "model_config has no 'sample_softmax'" in line


def test_images_of_other_channels_than_the_model(refusal, images, tmp_path):
    line = refusal(f"--workdir={tmp_path / 'w'}", f"--official={GOLDEN}", *images(2))
    assert "the checkpoint is for images of 3 channel(s), but arrays:images.npz has 2" in line


def test_a_run_s_model_on_images_of_another_shape(refusal, images, runs, tmp_path):
    line = refusal(f"--workdir={runs / 'a'}", *images(3))
    assert "outside [0, 17)" in line  # its levels are those of the run
    few = {part: np.zeros((4, 8, 8, 3), np.uint8) for part in ("train", "test")}
    np.savez(tmp_path / "few.npz", **few)
    where = ("--data=arrays", f"--path={tmp_path / 'few.npz'}", f"--data_dir={tmp_path / 'd'}")
    assert "but the configuration calls for" in refusal(f"--workdir={runs / 'a'}", *where)


def test_a_run_with_classes_on_images_without(refusal, runs, tmp_path):
    config = json.loads((runs / "a" / "config.json").read_text())
    config["data"]["classes"] = 10
    (tmp_path / "config.json").write_text(json.dumps(config))
    line = refusal(f"--workdir={tmp_path}", "--data=digits")
    assert "is of images with 10 classes, but digits has 0" in line


def test_batches_that_do_not_split_over_the_devices(refusal, runs):
    line = refusal(f"--workdir={runs / 'a'}", "--batch_size=12")
    assert "--batch_size" in line and "12" in line and "8" in line


def test_a_mean_over_dequantisations_with_a_stochastic_trace(refusal, runs):
    line = refusal(
        f"--workdir={runs / 'a'}", "--ode_samples=4", "--trace=hutchinson", "--ode_images=2",
        "--repeats=1", "--images=8",
    )  # fmt: skip
    assert "--ode_samples above 1 needs --trace=exact" in line
    assert "bound" not in refusal.out  # before anything long


def test_changed_images_under_the_same_name(refusal, images, tmp_path):
    """The fingerprint of config.json is of the images that the run was trained with."""
    _, path, cache = images(3, seed=0)
    config = tiny.config(name="arrays")
    config.data.update(path=path.split("=")[1], dir=cache.split("=")[1])
    saved = {"config": config.to_dict(), "data": setup.describe(setup.load(config))}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert "no folder" in refusal(f"--workdir={tmp_path}")  # the images are right
    images(3, seed=1)
    line = refusal(f"--workdir={tmp_path}")
    assert f"arrays:images.npz holds other images than the run in {tmp_path}" in line
    # Named expressly, they are taken.
    assert "no folder" in refusal(f"--workdir={tmp_path}", "--data=arrays", path, cache)
