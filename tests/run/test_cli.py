"""Bad input gets one clear line and exit code 2; the settings do what they say."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import ROOT, run
from PIL import Image

from vdm_jax.run import cli


def main(monkeypatch, capsys, *arguments, name="digits"):
    """In this process, for speed: (exit code, standard error)."""
    monkeypatch.setattr(sys, "argv", [f"experiments.{name}", *map(str, arguments)])
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(cli, "_leave", sys.exit)
    sys.modules.pop("config_config", None)  # a file is loaded into what is left of the last one
    with pytest.raises(SystemExit) as end:
        runpy.run_module(f"experiments.{name}", run_name="__main__")
    return end.value.code, capsys.readouterr().err


CIFAR = "experiments/configs/cifar10.py"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--workdir=DIR is missing"),
        (
            ["--workdir=W", "--config.train.stepz=3"],
            "--config.train.stepz=3: there is no setting stepz",
        ),
        (
            ["--workdir=W", "--config.trane.steps=3"],
            "--config.trane.steps=3: there is no setting trane",
        ),
        (["--workdir=W", "--config.train.stepz=3"], "did you mean steps?"),
        (["--workdir=W", "--config.train.steps=many"], "--config.train.steps=many"),
        (["--workdir=W", "--config.train.steps=1.5"], "--config.train.steps=1.5"),
        (["--workdir=W", "--config.train=3"], "--config.train=3"),
        (["--workdir=W", "--konfig.train.steps=1"], "konfig"),
        (["--workdir=W", "extra"], "unexpected argument 'extra'"),
        (["--workdir=W", "--config=none.py"], "--config=none.py can't be loaded: "),
        (["--workdir=W", "--config=SYNTAX"], "can't be loaded: invalid syntax"),
        (["--workdir=W", "--config=IMPORT"], "can't be loaded: No module named 'nope'"),
        (["--workdir=W", "--config=EMPTY"], "that file has no function get_config"),
        (
            ["--workdir=W", "--config=experiments/configs/digits.py:tiny"],
            "digits.py:tiny can't be loaded: that file has no variants",
        ),
        (["--workdir=W", "--config.train.steps=abc"], "steps=abc: wanted a whole number"),
        (["--workdir=W", "--config.optimizer.b1=abc"], "b1=abc: wanted a number"),
        (["--workdir=W", "--config.model.fourier_features=2"], "wanted True or False"),
        (["--workdir=W", "--config.train.steps=60"], "lower --config.optimizer.warmup_steps"),
        (["--workdir=W", f"--config={CIFAR}:augg"], "unknown variant 'augg'; there are aug,"),
        (["--workdir=W", "--config=BROKEN"], "config.train.steps must be int, got 'ten'"),
        (["--workdir=W", "--config=LACKING"], "config.eval is missing"),
        (
            ["--workdir=W", "--config.train.steps=0"],
            "config.train.steps must be finite and above 0, got 0",
        ),
        (
            ["--workdir=W", "--config.train.batch_size=-1"],
            "config.train.batch_size must be finite and",
        ),
        (["--workdir=W", "--config.optimizer.ema_rate=1.0"], "ema_rate must lie in [0, 1)"),
        (
            ["--workdir=W", "--config.optimizer.learning_rate=nan"],
            "learning_rate must be finite and above 0, got nan",
        ),
        (["--workdir=W", "--config.optimizer.decay=step"], "one of none, linear, cosine"),
        (["--workdir=W", "--config.seed=-1"], "config.seed must lie in"),
        (["--workdir=W", "--config.model.network=cnn"], "config.model.network is 'cnn'"),
        (
            ["--workdir=W", "--config.model.head=odds"],
            "head is 'odds'; known: eps, x, v, score, levels, logits",
        ),
        (["--workdir=W", "--config.model.gamma=cosine"], "one of fixed, scalar, monotone"),
        (["--workdir=W", "--config.model.gamma_max=-9.0"], "must be below gamma_max"),
        (
            ["--workdir=W", "--config.model.num_steps=0"],
            "num_steps must be finite and above 0",
        ),
        (["--workdir=W", "--config.model.timesteps=grid"], "known: uniform, antithetic"),
        (["--workdir=W", "--config.model.dropout=1.0"], "dropout must lie in [0, 1)"),
        (["--workdir=W", "--config.model.network=unet"], "digits"),
        (
            [
                "--workdir=W",
                "--config.model.gamma=monotone",
                "--config.model.gamma_pinned=False",
                "--config.model.learn_end_points=False",
            ],
            "needs pinned=True",
        ),
        (["--workdir=W", "--config.model.channels=2"], "multiple of 4, got 2"),
        (
            ["--workdir=W", "--config.model.gamma_max=inf"],
            "both in [-40, 40]",
        ),
        (
            ["--workdir=W", "--config.optimizer.clip_norm=-1"],
            "clip_norm must be finite and above 0",
        ),
        (["--workdir=W", "--config.data.name=cifar"], "cifar10"),
        (["--workdir=W", "--config.data.name=arrays"], "path"),
        (["--workdir=W", "--config.data.name=folder"], "folder needs path="),
        (["--workdir=W", "--config.data.size=64"], "size='64' is for 'folder', not for 'digits'"),
        (["--workdir=W", "--config.data.fit=stretch"], "choose one of none, crop, resize"),
        (["--workdir=W", "--config.data.channels=2"], "channels=2 must be 3 (RGB) or 1 (grey)"),
        (["--workdir=W", "--config.data.held_out=0.5"], "held_out=0.5 is for 'folder', not for"),
        (["--workdir=W", "--config.data.held_out=half"], "wanted a number"),
        (["--workdir=W", "--config.data.class_labels=2"], "wanted True or False"),
        (["--workdir=W", "--config.data.augment=rotate"], "rotate"),
        (["--workdir=W", "--config.data.validation=5000"], "5000"),
        (["--workdir=W", "--config.train.batch_size=31", "--config.train.accumulate=2"], "31"),
    ],
)
def test_mistakes_get_one_line_that_names_them(arguments, message, monkeypatch, capsys, tmp_path):
    if "--config.model.network=unet" in arguments:  # 8x8 digits with too few channels
        arguments, message = [*arguments, "--config.model.channels=32"], "channels is 32"
    arguments = [a.replace("--workdir=W", f"--workdir={tmp_path / 'run'}") for a in arguments]
    for name, change in (("BROKEN", "c.train.steps = 'ten'"), ("LACKING", "del c.eval")):
        lines = (
            "from experiments.configs import base",
            "def get_config():",
            "  c = base.get_config()",
            "  with c.ignore_type():",
            f"    {change}",
            "  return c",
        )
        (tmp_path / f"{name}.py").write_text("\n".join(lines))
        arguments = [a.replace(name, str(tmp_path / f"{name}.py")) for a in arguments]
    for name, text in (("SYNTAX", "def get_config(:"), ("IMPORT", "import nope"), ("EMPTY", "")):
        (tmp_path / f"{name}.py").write_text(text)
        arguments = [a.replace(name, str(tmp_path / f"{name}.py")) for a in arguments]
    code, err = main(monkeypatch, capsys, *arguments)
    assert code == 2
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert message in err
    assert not list(tmp_path.glob("run/checkpoints/*"))


def test_a_workdir_that_is_a_file(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, err = main(monkeypatch, capsys, f"--workdir={tmp_path / 'file'}")
    assert code == 2
    assert "is a file; name a folder" in err


def test_a_platform_that_is_not_there(tmp_path):
    done = run("digits", f"--workdir={tmp_path}", JAX_PLATFORMS="cuda")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: JAX finds no device")
    assert "Traceback" not in done.stderr


def test_a_workdir_that_cannot_be_made(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, err = main(monkeypatch, capsys, f"--workdir={tmp_path / 'file' / 'run'}")
    assert code == 2 and "can't be made or written" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.npz", None, "none.npz"),
        ("text.npz", b"hello", "text.npz"),
        ("keys.npz", {"images": np.zeros((2, 4, 4), np.uint8)}, "images"),
        ("big.npz", {"train": np.full((2, 4, 4), 200, np.uint8)}, "200"),
    ],
)
def test_bad_arrays(name, content, message, monkeypatch, capsys, tmp_path):
    if isinstance(content, dict):
        both = {"test": content["train"]} if "train" in content else {}
        np.savez(tmp_path / name, **content, **both)
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    code, err = main(
        monkeypatch, capsys, f"--workdir={tmp_path / 'run'}", "--config.data.name=arrays",
        f"--config.data.path={tmp_path / name}", "--config.data.levels=17",
        f"--config.data.dir={tmp_path / 'cache'}",
    )  # fmt: skip
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize("size", ["32x32", "64x64"])
def test_the_old_imagenet_must_be_there(size, monkeypatch, capsys, tmp_path):
    code, err = main(
        monkeypatch, capsys, f"--workdir={tmp_path / 'run'}", f"--config.data.dir={tmp_path}",
        name=f"imagenet{size[:2]}",
    )  # fmt: skip
    assert code == 2
    [line] = err.splitlines()
    assert line.startswith(f"error: downsampled_imagenet/{size} is not on this machine and can't")
    for part in (f"train_{size}.tar (", f"valid_{size}.tar (", " bytes, sha256 ", "manual_dir="):
        assert part in line
    assert f"'imagenet_resized/{size}' can be downloaded, but is another data set" in line


def test_a_broken_picture_is_named(monkeypatch, capsys, tmp_path):
    for name in ("train/1.png", "train/bad.png", "test/1.png"):
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "mine" / name)
    bad = tmp_path / "mine" / "train" / "bad.png"
    bad.write_bytes(bad.read_bytes()[:-30])
    code, err = main(
        monkeypatch, capsys, f"--workdir={tmp_path / 'run'}", f"--config.data.dir={tmp_path}",
        f"--config.data.path={tmp_path / 'mine'}", name="folder",
    )  # fmt: skip
    assert code == 2 and err.startswith(f"error: {bad} is broken") and err.count("\n") == 1


def test_class_labels_that_are_not_there(monkeypatch, capsys, tmp_path):
    np.savez(tmp_path / "a.npz", **{k: np.zeros((2, 4, 4), np.uint8) for k in ("train", "test")})
    code, err = main(
        monkeypatch, capsys, f"--workdir={tmp_path / 'run'}", f"--config.data.dir={tmp_path}",
        f"--config.data.path={tmp_path / 'a.npz'}", "--config.data.class_labels=True",
        name="arrays",
    )  # fmt: skip
    assert code == 2 and err.count("\n") == 1
    assert err.startswith("error: arrays:a.npz has no class labels; leave class_labels out")


def test_help_shows_the_command_and_every_setting(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["experiments.digits", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("experiments.digits", run_name="__main__")
    out = capsys.readouterr().out
    assert end.value.code == 0
    assert "python -m experiments.digits --workdir=DIR" in out
    assert "ema_rate" in out and "weight_decay" in out
    assert "# none, shift, flip, flip_rot90, flip_rot90_channels" in out
    assert "name: digits" in out


def test_no_network_is_said_in_one_line_and_in_time(tmp_path):
    done = run(
        "cifar10", f"--workdir={tmp_path / 'w'}", f"--config.data.dir={tmp_path / 'd'}", timeout=60
    )
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    for part in ("cifar-10-", "sha256", "digits", "Traceback"):
        assert (part in done.stderr) == (part != "Traceback"), line


def test_published_hyperparameters():
    import importlib.util

    def config(variant):
        path = Path(cli.CONFIGS / "cifar10.py")
        spec = importlib.util.spec_from_file_location("cifar10_config", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.get_config(variant)

    plain, aug, paper = config(""), config("aug"), config("aug_paper")
    for c in (plain, aug, paper):
        assert (c.model.num_blocks, c.model.gamma_min, c.model.gamma_max) == (32, -13.3, 5.0)
        assert (c.optimizer.b1, c.optimizer.b2, c.optimizer.eps) == (0.9, 0.99, 1e-8)
        assert (c.optimizer.weight_decay, c.optimizer.ema_rate) == (0.01, 0.9999)
        assert (c.optimizer.warmup_steps, c.optimizer.decay) == (100, "none")
        assert c.model.num_steps is None and c.model.fourier_features
    rows = [
        (c.model.channels, c.model.dropout, c.model.gamma, c.model.attention, c.train.batch_size,
         c.optimizer.learning_rate, c.train.steps, c.data.augment)
        for c in (plain, aug, paper)
    ]  # fmt: skip
    assert rows == [
        (128, 0.1, "scalar", "middle", 128, 2e-4, 10_000_000, "none"),
        (256, 0.05, "monotone", "middle", 768, 1e-4, 100_000_000, "flip_rot90"),
        (256, 0.05, "monotone", "all", 1024, 2e-4, 100_000_000, "flip_rot90"),
    ]
