"""A published checkpoint through `experiments.evaluate`, against the values of its own code."""

import math
import shutil

import golden
import numpy as np
import pytest
import tiny

from vdm_jax import loss
from vdm_jax.errors import UserError

NAME = "no_fourier_odd_batch"


@pytest.fixture(scope="module", autouse=True)
def _one_device(compiled_once):
    pass


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """The golden model's images as a dataset."""
    folder = tmp_path_factory.mktemp("images")
    images = golden.load(NAME).expected["images"]
    np.savez(folder / "images.npz", train=images, test=images)
    return "--data=arrays", f"--path={folder / 'images.npz'}", f"--data_dir={folder / 'cache'}"


def bits(model, nats):
    return np.asarray(loss.bits_per_dim(np.asarray(nats, np.float64), model.x.shape[1:]))


def test_the_command_agrees_with_the_published_code(arguments, tmp_path):
    model = golden.load(NAME)
    found = tiny.evaluate(
        tmp_path, f"--official={model.folder / 'checkpoints-0'}", *arguments, "--repeats=30",
        "--num_steps=10,inf", "--batch_size=4",
    )  # fmt: skip
    assert found["model"]["name"] == f"official {NAME}"
    folder = f"step-{found['model']['step']}"
    assert (tmp_path / "evaluation" / folder / "result.json").is_file()
    expected = model.expected
    for row, steps in zip(found["rows"], (10, 0), strict=True):  # 0 is continuous time there
        assert row["num_images"] == len(expected["images"])
        prior = row["terms"]["prior"]
        klz = expected[f"T{steps}/loss_klz"]
        assert prior["mean"] == pytest.approx(bits(model, klz).mean(), rel=1e-3)
        # It is the expectation; the golden value is one draw an image.
        each = bits(model, expected[f"T{steps}/loss_recon"])
        error = each.std(ddof=1) / math.sqrt(len(each))
        assert abs(row["terms"]["reconstruction"]["mean"] - each.mean()) < 5 * error < 0.1
        # Its times are few, so what it doesn't know of the integral over t is in their spread.
        each = bits(model, expected[f"T{steps}/loss_diff"])
        error = math.hypot(row["monte_carlo_error"], each.std(ddof=1) / math.sqrt(len(each)))
        assert abs(row["bpd"] - expected[f"T{steps}/bpd"]) < 5 * error


def test_mistakes_are_named(arguments, tmp_path):
    """Another architecture, no configuration, images of other channels."""
    source = golden.load(NAME).folder / "checkpoints-0"

    def refused(*flags, data=arguments):
        with pytest.raises(UserError) as error:
            tiny.evaluate(tmp_path / "w", *data, *flags)
        assert "\n" not in str(error.value)
        return str(error.value)

    said = refused(f"--official={source}", "--model=cifar10")
    assert "the parameter score_model/" in said and "but the configuration calls for" in said
    said = refused("--official=missing", "--model=cifar10", data=())  # before the images
    assert "no checkpoint file or folder at missing" in said
    assert "--data=NAME is missing" in refused(f"--official={source}", data=())
    said = refused(f"--official={source}", data=("--data=digits",))
    assert "of 3 channel(s), but digits" in said
    shutil.copytree(source, tmp_path / "c" / "c")
    where = f"--official={tmp_path / 'c' / 'c'}"
    assert "--model=NAME is missing, one of cifar10, cifar10_aug" in refused(where)
