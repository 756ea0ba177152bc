"""`experiments.evaluate` and `experiments.sample` on a run of seconds, and what they refuse."""

import errno
import json
import math
import os
import re

import numpy as np
import pytest
import tiny
from PIL import Image

from experiments.evaluate import evaluate, steps_of
from experiments.sample import sample
from vdm_jax import files
from vdm_jax.errors import UserError
from vdm_jax.evaluation import likelihood, sample_quality


@pytest.fixture(scope="module", autouse=True)
def _one_device(compiled_once):
    pass


def newest(folder):
    return max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)


def test_an_evaluation_agrees_with_the_run_s_own_result_and_its_file(digits_run):
    found = tiny.evaluate(digits_run, "--num_steps=10,inf", "--repeats=2")
    folder = tiny.newest(digits_run)
    result = json.loads((digits_run / "result.json").read_text())
    coarse, row = found["rows"]
    assert found["model"]["step"] == result["step"] == 60 and folder.name.startswith("step-60")
    assert found["data"]["fingerprint"] == result["data"]["fingerprint"]
    assert (row["num_images"], row["draws"], row["num_steps"]) == (360, 2, None)
    # Other draws of the same bound; the prior has none, and fewer steps cost more.
    assert abs(row["bpd"] - result["bpd"]) < 5 * math.sqrt(3) * row["monte_carlo_error"] < 0.5
    assert row["terms"]["prior"]["mean"] == pytest.approx(result["prior"], rel=1e-5)
    assert coarse["bpd"] > row["bpd"] and coarse["terms"]["prior"] == row["terms"]["prior"]
    assert tiny.strict_json(folder / "result.json") == json.loads(json.dumps(found))
    assert found["command"].endswith("--num_steps=10,inf --repeats=2")
    assert (folder / "result.md").read_text().count("\n| bound") == 2
    assert (folder / "diffusion_loss.png").is_file()


def test_checkpoint_images_and_seed_choose_the_numbers(digits_run):
    few = ("--repeats=1", "--images=40", "--batch_size=40")

    def bpd(*arguments):
        (row,) = tiny.evaluate(digits_run, *few, *arguments)["rows"]
        assert row["num_images"] == 40
        return row["bpd"]

    rows = {step: bpd(f"--checkpoint={step}") for step in (20, 60)}
    assert rows[20] > rows[60]  # it learns
    assert bpd(f"--checkpoint={digits_run / 'checkpoints' / '20'}") == rows[20]
    assert bpd() == rows[60]  # the newest
    assert bpd("--seed=1") != rows[60]


def test_samples_and_what_made_them_lie_in_files_that_are_never_overwritten(digits_run):
    flags = ("--sampler=heun", "--num_steps=3", "--n=5", "--seed=7", "--distances")
    command = ["experiments.sample", f"--workdir={digits_run}", *flags]
    found = sample(command)
    folder = newest(digits_run / "sampling")
    with np.load(folder / "samples.npz") as file:
        images = file["images"]
        made = {name: file[name].item() for name in file if name != "images"}
    assert made == {
        "sampler": "heun", "num_steps": 3, "spacing": "karras", "eta": 0.0, "network_calls": 6,
        "n": 5, "seed": 7, "step": 60, "levels": 17,
    }  # fmt: skip
    assert images.shape == (5, 8, 8, 1) and images.max() <= 16
    picture = np.asarray(Image.open(folder / "samples.png"))
    factor = picture.shape[1] // (3 * 9 - 1)  # three columns, with a line between them
    first = np.rint(images[0, ..., 0] * (255 / 16))
    np.testing.assert_array_equal(picture[::factor, ::factor][:8, :8], first)
    assert json.loads((folder / "samples.json").read_text()) == json.loads(json.dumps(found))
    assert [row["images"] for row in found["distances"]] == ["samples", "training images"]
    sample(command[:-1])
    other = newest(digits_run / "sampling")
    assert other != folder
    np.testing.assert_array_equal(np.load(other / "samples.npz")["images"], images)


def test_what_was_drawn_is_kept_and_blank_images_are_told_before(digits_run, tmp_path, monkeypatch):
    def fails(*_):
        raise UserError("no distances")

    draw = [
        "experiments.sample",
        f"--workdir={digits_run}",
        "--num_steps=2",
        "--n=5",
        "--distances",
    ]
    with monkeypatch.context() as patch:
        patch.setattr(sample_quality, "distances", fails)
        with pytest.raises(UserError, match="no distances"):
            sample(draw)
    folder = newest(digits_run / "sampling")
    assert np.load(folder / "samples.npz")["images"].shape == (5, 8, 8, 1)
    assert (folder / "samples.png").is_file()
    np.savez(tmp_path / "a.npz", train=np.zeros((9, 8, 8), int), test=np.ones((9, 8, 8), int))
    monkeypatch.setattr(sample_quality, "Drawer", lambda *_: pytest.fail("it draws"))
    with pytest.raises(UserError, match="need test images that differ; 5 are the same"):
        sample([*draw, "--data=arrays", f"--path={tmp_path / 'a.npz'}", f"--data_dir={tmp_path}"])


def test_results_and_samples_go_to_another_folder_than_the_run(digits_run, tmp_path):
    before = sorted(digits_run.rglob("*"))
    tiny.evaluate(digits_run, "--repeats=1", "--images=20", f"--out={tmp_path / 'a'}")
    sample(["sample", f"--workdir={digits_run}", "--n=2", "--num_steps=2", f"--out={tmp_path}"])
    assert (tmp_path / "a" / "step-60" / "result.json").is_file()
    with Image.open(tmp_path / "step-60" / "samples.png") as picture:
        assert picture.size[0] >= 512
    assert sorted(digits_run.rglob("*")) == before


def test_a_run_that_cannot_be_written_to_is_told_before_anything_is_computed(
    digits_run, monkeypatch
):
    def read_only(folder):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(folder))

    monkeypatch.setattr(files, "try_writing", read_only)
    monkeypatch.setattr(sample_quality.Drawer, "draw", None)
    monkeypatch.setattr(likelihood, "Evaluator", None)
    for command, name in ((evaluate, "evaluation"), (sample, "sampling")):
        where = f"--out={digits_run / name} can't be made or written: Read-only file system; name"
        with pytest.raises(UserError, match=re.escape(where)):
            command(["x", f"--workdir={digits_run}"])


# ---- what can't be done, in one line ----

EVALUATE = [
    (["--workdir="], "--workdir=DIR is missing"),
    (["extra"], "unexpected argument 'extra'"),
    (["--tolerance=1e-08"], "to 0.1, got 1e-08"),
    (["--tolerance=nan"], "--tolerance=nan: wanted a number"),
    (["--monte_carlo_error=0"], "must be positive and finite, got 0"),
    (["--monte_carlo_error=0.01", "--repeats=4"], "--monte_carlo_error and --repeats exclude"),
    (["--chain_steps=9"], "--chain_steps goes with --chains, which isn't given"),
    (["--trace=exact", "--chains=2"], "--trace goes with --ode_images, which isn't given"),
    (["--checkpoint=5"], "no checkpoint of step 5 in"),
    (["--num_steps=10,abc"], "--num_steps=10,abc: wanted numbers from 1 to"),
    (["--num_steps=10,9000000"], "--num_steps=10,9000000: wanted numbers from 1 to 8388608"),
    (["--ode_images=2", "--num_probes=3"], "--num_probes goes with --trace=hutchinson; here the"),
    (["--ode_samples=4", "--trace=hutchinson", "--ode_images=2"], "needs --trace=exact"),
]
SAMPLE = [
    (["--workdir="], "--workdir=DIR is missing"),
    (["--eta=0.5"], "--eta=0.5: wanted a number from 0 to 1, of --sampler=ddim alone"),
    (["--sampler=ddim", "--eta=2"], "--eta=2.0: wanted a number from 0 to 1"),
    (["--class=0"], "--class=0: the model has none"),
    (["--n=2", "--distances"], "3 samples (--n), 3 test, 3 training images, not (2, 360"),
    (["--quality", "--n=5"], "--n goes not with --quality, which compares many; leave it out"),
]


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [(evaluate, *case) for case in EVALUATE] + [(sample, *case) for case in SAMPLE],
)
def test_what_cannot_be_done_is_refused_in_one_line(command, arguments, message, digits_run):
    folders = sorted((digits_run / "evaluation").glob("*"))
    with pytest.raises(UserError) as error:
        command(["", f"--workdir={digits_run}", *arguments])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert sorted((digits_run / "evaluation").glob("*")) == folders  # nothing was begun


def test_steps_of_reads_a_list_once_each():
    assert steps_of("10, 100,inf,10", None) == (10, 100, None)
