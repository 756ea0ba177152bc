"""The data as the settings say, the devices, the folder."""

import hashlib
import json

import jax
import numpy as np
import pytest

from experiments.configs import digits
from vdm_jax.errors import UserError
from vdm_jax.run import build, experiment, training
from vdm_jax.train.record import differences


def of_digits(**settings):
    config = digits.get_config()
    config.data.update(settings)
    return config, build.load(config)


def test_labels_are_there_only_where_they_are_used_and_are_part_of_what_a_run_depends_on():
    config, images = of_digits()
    labelled_config, labelled = of_digits(class_labels=True)
    assert (images.labels, images.num_classes, labelled.num_classes) == (None, 0, 10)
    both = b"".join(labelled.labels[part].tobytes() for part in ("train", "test"))
    plain = {
        "name": "digits", "fingerprint": images.fingerprint, "train": 1437, "test": 360,
        "event_shape": [8, 8, 1], "levels": 17,
    }  # fmt: skip
    assert build.describe(images) == plain
    labels = hashlib.sha256(both).hexdigest()
    assert build.describe(labelled) == plain | {"classes": 10, "labels": labels}
    saved, now = (
        json.loads(json.dumps(training._settings(*pair)))
        for pair in ((config, images), (labelled_config, labelled))
    )
    changed = [name for name, _ in differences(saved, now) if name not in training.MAY_DIFFER]
    assert changed == ["data.classes", "data.labels"]
    pairs = zip(labelled.train, labelled.labels["train"], strict=True)
    of = {image.tobytes(): label for image, label in pairs}
    assert len(of) == len(labelled.train)  # each image tells its label
    batch = experiment._stream(labelled_config, labelled)[3]
    wanted = [of[np.asarray(image).tobytes()] for image in batch["images"]]
    np.testing.assert_array_equal(np.asarray(batch["conditioning"])[:, 1], wanted)


def test_a_validation_set_is_held_out_and_names_the_evaluation():
    config, images = of_digits(validation=240)
    whole = of_digits()[1]
    assert (len(images.train), len(images.test)) == (1437 - 240, 240)
    np.testing.assert_array_equal(images.test, whole.train[-240:])
    assert build.eval_name(config) == "validation"
    assert build.eval_name(digits.get_config()) == "test"


def test_a_mesh_of_all_devices_and_devices_that_can_not_be_one(monkeypatch):
    mesh = build.make_mesh(2)
    assert mesh.size == jax.device_count() and mesh.shape["fsdp"] == 2
    build.check_batch_size(2 * mesh.size, mesh, 2)
    for size, accumulate in ((3, 1), (mesh.size, 2)):
        said = f"^--batch_size: batch size {size} .* a multiple of {accumulate * mesh.size}$"
        with pytest.raises(UserError, match=said):
            build.check_batch_size(size, mesh, accumulate)
    with pytest.raises(UserError, match=r"^--config\.train\.shard_params: shard_params is 3, but"):
        build.make_mesh(3)

    def none():
        raise RuntimeError("Unable to initialize backend 'cuda'")

    monkeypatch.setattr(jax, "devices", none)
    with pytest.raises(UserError, match=r"^JAX finds no device to run on"):
        build.make_mesh()

    class Device:
        def __init__(self, number, process):
            self.id, self.process_index = number, process

    monkeypatch.setattr(jax, "devices", lambda: [Device(0, 0), Device(1, 0), Device(2, 1)])
    with pytest.raises(UserError, match=r"as many devices; they have \{0: 2, 1: 1\}"):
        build.make_mesh()


def test_a_folder_is_made_or_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert build.make_workdir(tmp_path / "a" / "b").is_dir()
    assert build.make_workdir((tmp_path / "c").relative_to(tmp_path)) == tmp_path / "c"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--out=.*/file can't be made .*File exists; name"):
        build.make_workdir(tmp_path / "file", "out")
    with pytest.raises(UserError, match="can't be made or written"):
        build.make_workdir(tmp_path / "file" / "run")
