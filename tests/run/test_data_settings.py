"""What the settings of the data do to a run: batches, descriptions, checkpoints."""

import json

import numpy as np
import pytest
from commands import TINY, run
from PIL import Image

from experiments.configs import digits, folder, imagenet32, imagenet64
from vdm_jax import data
from vdm_jax.run import build as setup
from vdm_jax.run import config as check
from vdm_jax.run import defaults as base
from vdm_jax.run import training as experiment
from vdm_jax.train.settings import differences


def _digits(**settings):
    config = digits.get_config()
    config.data.update(settings)
    check.config(config)
    return config, setup.load(config)


def test_class_labels_reach_the_batches():
    config, images = _digits(class_labels=True)
    of = {
        image.tobytes(): label
        for image, label in zip(images.train, images.labels["train"], strict=True)
    }
    assert len(of) == len(images.train)  # each image tells its label
    chunks = experiment._chunks(config, images)(3)
    try:
        batch = next(chunks)
    finally:
        chunks.close()
    conditioning = batch["conditioning"][0]
    assert conditioning.shape == (config.train.batch_size, 2)
    np.testing.assert_array_equal(
        conditioning[:, 1], [of[image.tobytes()] for image in batch["images"][0]]
    )
    np.testing.assert_array_equal(conditioning[:, 0], 0)


def test_without_class_labels_batches_are_as_ever():
    config, images = _digits()
    assert (images.labels, images.num_classes) == (None, 0)
    plain = data.load("digits")
    stream = data.train_batches(plain.train, batch_size=32, seed=config.seed)
    chunks = experiment._chunks(config, images)(3)
    try:
        batch = next(chunks)
    finally:
        chunks.close()
    np.testing.assert_array_equal(batch["images"][0], stream[3]["images"])
    np.testing.assert_array_equal(batch["conditioning"][0], stream[3]["conditioning"])


def _changes(saved, now):
    found = differences(json.loads(json.dumps(saved)), json.loads(json.dumps(now)))
    return [name for name, _ in found if name not in experiment.MAY_DIFFER]


def test_a_run_from_before_these_settings_goes_on():
    config, images = _digits()
    now = experiment._settings(config, images)
    before = json.loads(json.dumps(now))
    for name in ("size", "fit", "channels", "held_out", "class_labels"):
        del before["config"]["data"][name]
    assert set(before["data"]) == {
        "name", "fingerprint", "train", "test", "event_shape", "levels",
    }  # fmt: skip
    assert _changes(before, now) == []


def test_labels_are_part_of_what_a_run_depends_on():
    config, images = _digits()
    labelled_config, labelled = _digits(class_labels=True)
    plain = experiment._settings(config, images)
    now = experiment._settings(labelled_config, labelled)
    assert now["data"]["classes"] == 10
    assert _changes(plain, now) == ["data.classes", "data.labels"]
    labelled.labels["train"].flags.writeable = True
    labelled.labels["train"][0] ^= 1
    try:
        other = experiment._settings(labelled_config, labelled)
    finally:
        labelled.labels["train"][0] ^= 1
        labelled.labels["train"].flags.writeable = False
    assert _changes(now, other) == ["data.labels"]


def test_a_folder_trains_from_the_command_line(tmp_path):
    rng = np.random.default_rng(0)
    for n in range(40):
        part = tmp_path / "mine" / ("train" if n < 30 else "test")
        part.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 12 + n % 3, 3), dtype=np.uint8)).save(
            part / f"{n}.png"
        )
    done = run(
        "folder", f"--workdir={tmp_path / 'w'}", f"--config.data.path={tmp_path / 'mine'}",
        f"--config.data.dir={tmp_path / 'cache'}", "--config.data.size=4x6",
        "--config.data.fit=crop", "--config.data.channels=1", *TINY, "--config.model.network=mlp",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "w" / "result.json").read_text())
    assert (result["num_images"], result["data"]["train"]) == (10, 30)
    assert result["data"]["event_shape"] == [4, 6, 1]
    assert 0 < result["bpd"] < 60


def test_the_published_hyperparameters_of_imagenet():
    for module, size, blocks in ((imagenet32, "32x32", 32), (imagenet64, "64x64", 64)):
        for variant in ("", "resized", "labels"):
            config = module.get_config(variant)
            check.config(config)
            c = config.model
            assert (c.channels, c.num_blocks, c.dropout) == (256, blocks, 0.1)
            assert (c.gamma, c.gamma_min, c.gamma_max) == ("scalar", -13.3, 5.0)
            assert (c.num_steps, c.attention, c.fourier_features) == (None, "middle", True)
            o = config.optimizer
            assert (o.learning_rate, o.b1, o.b2, o.eps) == (2e-4, 0.9, 0.99, 1e-8)
            assert (o.weight_decay, o.ema_rate, o.warmup_steps) == (0.01, 0.9999, 100)
            assert (config.train.steps, config.train.batch_size) == (10_000_000, 128)
            kind = "imagenet_resized" if variant else "downsampled_imagenet"
            assert config.data.name == f"{kind}/{size}"
            assert config.data.class_labels == (variant == "labels")
        with pytest.raises(ValueError, match="unknown variant 'old'"):
            module.get_config("old")
    assert folder.get_config().data.name == "folder"
    assert base.get_config().data.class_labels is False
