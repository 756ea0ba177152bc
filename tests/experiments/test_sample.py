"""`experiments.sample` on tiny runs: what it writes, what samples depend on, what it refuses."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from experiments.configs import vae
from experiments.sample import sample
from vdm_jax import sampler, solvers
from vdm_jax.evaluation import sample_quality as sampling
from vdm_jax.run import build as setup
from vdm_jax.run import restore as trained
from vdm_jax.run import training as run
from vdm_jax.run.cli import UserError
from vdm_jax.train import sharding


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with tiny.one_device():
        yield


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    """A tiny run, given the class."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny.config(class_labels=True)
    config.model.network = "mlp"
    run.train(config, folder)
    return folder


@pytest.fixture(scope="module")
def model(workdir):
    return trained.from_workdir(workdir, None, {}, setup.make_mesh())


def command(workdir: Path, *arguments: object):
    """What the command returns, and the folder it wrote."""
    found = sample(["experiments.sample", f"--workdir={workdir}", *map(str, arguments)])
    folders = (workdir / "sampling").iterdir()
    return found, max(folders, key=lambda folder: folder.stat().st_mtime_ns)


def test_files_hold_the_samples_and_what_made_them_and_are_never_overwritten(workdir):
    options = "--sampler=heun", "--num_steps=3", "--n=5", "--seed=7", "--distances"
    found, folder = command(workdir, *options)
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
    first = picture[::factor, ::factor][:8, :8]
    np.testing.assert_array_equal(first, np.rint(images[0, ..., 0] * (255 / 16)))
    assert json.loads((folder / "samples.json").read_text()) == json.loads(json.dumps(found))
    again, other = command(workdir, *options)
    assert other != folder and (folder / "samples.npz").exists()
    np.testing.assert_array_equal(np.load(other / "samples.npz")["images"], images)
    # An untrained model's samples are farther from the test images than training images are.
    of_samples, of_training = again["distances"]
    assert of_samples["sliced_wasserstein"] > 2 * of_training["sliced_wasserstein"]


@pytest.mark.parametrize("name", ["ancestral", "dpm_solver"])
def test_samples_are_those_of_the_core_whatever_the_batch_size(model, name):
    rule = sampling.Rule(name, 4, "gamma")
    mesh = setup.make_mesh()
    whole = sampling.draw(model, rule, 7, 7, 3, mesh)
    calls: list[int] = []
    parts = sampling.draw(model, rule, 7, 3, 3, mesh, advance=calls.append)
    np.testing.assert_array_equal(whole, parts)
    assert sum(calls) == 3 * 4  # three batches
    over_two = sampling.draw(model, rule, 7, 4, 3, sharding.make_mesh(jax.devices()[:2]))
    np.testing.assert_array_equal(whole, over_two)
    conditioning = np.stack([np.zeros(7), np.arange(7) % 10], 1).astype(np.float32)
    denoise, _ = model.vdm.bind(model.params, conditioning, None)
    gammas = sampling._gammas(model, rule)
    z_0 = solvers.sample(jax.random.key(3), denoise, gammas, (7, 8, 8, 1), name, model.vdm.kind)
    expected = np.asarray(sampler.to_images(z_0, gammas[-1], 17))
    # Rounding may tip a pixel that lies between two levels.
    assert np.mean(whole != expected) < 0.01 and np.abs(whole - expected).max() <= 1
    assert np.mean(whole != sampling.draw(model, rule, 7, 7, 4, mesh)) > 0.5


def test_quality_has_a_row_of_the_data_and_one_a_rule(model):
    rules = [sampling.Rule("ddim", 2, "karras"), sampling.Rule("heun", 2, "karras")]
    rows = sampling.quality(model, rules, setup.make_mesh(), sets=2)
    assert [(r["sampler"], r["calls"]) for r in rows] == [
        ("training images", 0), ("ddim", 2), ("heun", 4),
    ]  # fmt: skip
    for row in rows[1:]:  # 60 steps of training are no model
        assert row["mmd"] > rows[0]["mmd"] + 5 * rows[0]["mmd_error"]
        assert row["sliced_wasserstein"] > 2 * rows[0]["sliced_wasserstein"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sampler=euler"], "--sampler=euler: .*ancestral"),
        (["--num_steps=0"], "--num_steps=0"),
        (["--eta=0.5"], "--eta=0.5: eta is of the sampler 'ddim' alone"),
        (["--sampler=ddim", "--eta=2"], r"--eta=2.0: eta must be a number in \[0, 1\]"),
        (["--class=10", "--num_steps=1"], "--class=10: the classes are 0 to 9"),
        (["--checkpoint=7"], "no checkpoint of step 7"),
        (["--model=cifar10"], "--model goes with --official"),
        (["--n=2", "--num_steps=1", "--distances"], r"at least 3 samples \(--n\), .* got 2, 360"),
        (["--quality", "--n=5"], "--n goes not with --quality, which compares many; leave it out"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(workdir, arguments, message):
    with pytest.raises(UserError, match=message) as error:
        command(workdir, *arguments)
    assert "\n" not in str(error.value)


def test_a_model_of_another_kind_is_refused(tmp_path):
    config, like = vae.get_config(), tiny.config()
    for part in ("train", "eval", "sample"):
        config[part].update(like[part])
    config.train.update(steps=10)
    config.optimizer.update(warmup_steps=5)
    config.model.update(channels=8, num_blocks=1)
    run.train(config, tmp_path)
    with pytest.raises(UserError, match="is no VDM: VAE"):
        command(tmp_path)
    assert not (tmp_path / "sampling").exists()
