"""A trained model comes back as it was: from its run's folder, or as the published code has it."""

import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from vdm_jax.errors import UserError
from vdm_jax.nn import published_configs
from vdm_jax.run import defaults, pretrained, restore
from vdm_jax.run.models import make_model
from vdm_jax.train import sharding
from vdm_jax.vdm import VDM

GOLDEN = Path(__file__).parents[1] / "data" / "scalar_gamma"
NONE = dict.fromkeys(
    ("workdir", "checkpoint", "official", "model", "data", "path", "manual_dir", "data_dir",
     "batch_size", "out", "pretrained")
)  # fmt: skip
SHAPE = (8, 8, 3)


@pytest.fixture
def mesh():
    return sharding.make_mesh(jax.devices()[:1])


def sealed(run, **data):
    """What a checkpoint of the run says, with other words of its data."""
    of = restore.saved(run, None)
    return of._replace(data={**of.data, **data})


def test_with_and_without_its_dataset_it_is_the_same_model(digits_run, mesh):
    options = NONE | {"workdir": str(digits_run)}
    with_data = restore.from_options(options, mesh)
    alone = restore.load(options, mesh, SHAPE)
    assert alone.bound.event_shape == with_data.images.event_shape == (8, 8, 1)
    assert alone[5:7] == with_data[5:7] == (str(digits_run), 60)
    assert with_data[8:10] == ("test", 1) and alone.images is None
    assert (alone.settings["network"], alone.settings["channels"]) == ("mlp", 16)
    jax.tree.map(np.testing.assert_array_equal, alone.params, with_data.params)
    z_t, gamma_t = np.ones((2, 8, 8, 1), np.float32), np.zeros(2, np.float32)
    a, b = (of.model.bind(of.params).denoise(z_t, gamma_t) for of in (alone, with_data))
    np.testing.assert_array_equal(a, b)
    assert isinstance(with_data.vdm, VDM) and with_data.batch_size == 360
    assert restore.from_options(options | {"batch_size": 7}, mesh).batch_size == 7
    for checkpoint in ("20", str(digits_run / "checkpoints" / "20")):
        older = restore.load(options | {"checkpoint": checkpoint}, mesh, SHAPE)
        assert older.step == 20
    moved = jax.tree.map(lambda a, b: np.any(a != b), older.params, alone.params)
    assert any(jax.tree.leaves(moved))


def test_a_gpu_s_model_compresses_in_what_a_cpu_has(mesh, tmp_path):
    """In bfloat16 and with cuDNN's attention, neither of which computes in float64."""
    config = defaults.get_config()
    config.model.update(network="unet", channels=64, num_blocks=1, dtype="bfloat16")
    data = {"event_shape": [4, 4, 1], "levels": 17}
    params = make_model(config, (4, 4, 1), 17).init(jax.random.key(0))
    config.model.fused_attention = True
    of = pretrained.Saved(tmp_path, tmp_path, 1, config, data)
    pretrained.write(tmp_path / "a.npz", of, params)
    options = NONE | {"pretrained": str(tmp_path / "a.npz")}
    found = restore.load(options, mesh, (4, 4, 1))
    assert (found.settings["dtype"], found.settings["fused_attention"]) == ("float32", False)


def test_another_run_s_checkpoint_is_called_by_its_own_name(digits_run, tmp_path):
    run, other = (shutil.copytree(digits_run, tmp_path / name) for name in "ab")
    path = other / "checkpoints" / "20"
    assert restore.saved(run, str(path)).workdir == path
    assert restore.saved(run, str(run / "checkpoints" / "20")).workdir == run
    (run / "checkpoints" / "60").rename(run / "checkpoints" / "old_60")
    assert restore.saved(run).step == 40


def test_a_folder_called_like_a_model_in_the_box(digits_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()  # of pictures
    assert restore.named("digits").params is not None
    shutil.copytree(digits_run, tmp_path / "digits", dirs_exist_ok=True)
    assert restore.named("digits").params is None


def test_a_published_model(mesh):
    options = NONE | {"official": str(GOLDEN / "checkpoints-0"), "out": "x"}
    alone = restore.load(options, mesh, SHAPE)
    assert alone.name == "official scalar_gamma"
    assert alone.settings == json.loads((GOLDEN / "model_config.json").read_text())
    with pytest.raises(UserError, match=r"for images of 3 channel\(s\), but .* has 1$"):
        restore.load(options, mesh, (8, 8, 1))
    with pytest.raises(UserError, match="--data=NAME is missing"):
        restore.from_options(options, mesh)
    with pytest.raises(UserError, match=r"3 channel\(s\), but digits has 1"):
        restore.from_options(options | {"data": "digits"}, mesh)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "name the model by one of --workdir=RUN, --official and --pretrained"),
        ({"pretrained": "a", "checkpoint": "1"}, "--pretrained and --checkpoint exclude"),
        ({"pretrained": "none"}, "none is neither a model's file nor one of the package"),
        ({"workdir": "a", "official": "b"}, "name the model by one of"),
        ({"official": "a", "checkpoint": "1"}, "--official and --checkpoint exclude each other"),
        ({"workdir": "a", "model": "cifar10"}, "--model goes with --official"),
        ({"workdir": "none"}, "none holds no run: it has no config.json"),
        ({"official": "RUN", "model": "x"}, "--model=x is no file and none of cifar10, cifar10_"),
        ({"official": "RUN"}, "--model=NAME is missing, one of cifar10"),
        ({"official": "none", "model": "cifar10"}, "--official: no checkpoint file or folder at"),
        ({"workdir": "RUN", "checkpoint": "x"}, "--checkpoint=x is neither a step nor the folder"),
        ({"workdir": "RUN", "checkpoint": "30"}, "no checkpoint of step 30"),
    ],
)
def test_flags_that_name_no_model(options, message, mesh, digits_run):
    options = {key: value.replace("RUN", str(digits_run)) for key, value in options.items()}
    with pytest.raises(UserError) as error:
        restore.load(NONE | options, mesh, SHAPE)
    assert message in str(error.value)


def test_a_checkpoint_that_does_not_say_of_which_images(digits_run):
    for data in (
        {"event_shape": [8, 8]}, {"event_shape": [0, 8, 1]}, {"event_shape": "8x8"},
        {"event_shape": [1 << 12, 1 << 12, 2]}, {"levels": 1}, {"levels": 257}, {"levels": "17"},
        {"classes": -1}, {"classes": "ten"},
    ):  # fmt: skip
        with pytest.raises(UserError, match="checkpoints/60 doesn't say of which images it is"):
            pretrained.images_told(sealed(digits_run, **data))


def test_images_that_say_nothing_of_the_run_are_refused(digits_run):
    def images(change, **data):
        return restore.images_of(sealed(digits_run, **change), data)

    with pytest.raises(UserError, match=r"other images than the run in .* name them with --data"):
        images({"fingerprint": "0"})
    assert len(images({"fingerprint": "0"}, name="digits")[1].test) == 360
    with pytest.raises(UserError, match="other images than the run"):
        images({"fingerprint": "0"}, dir="elsewhere")
    with pytest.raises(UserError, match="other conditions than the run"):
        images({"conditions": "0"})
    with pytest.raises(
        UserError, match=r"images with 17 levels, but digits_binary has 2: take images"
    ):
        images({}, name="digits_binary")
    with pytest.raises(UserError, match=r"images with 10 classes, but digits has 0"):
        images({"classes": 10})


def test_what_is_sealed_decides_whatever_config_json_says(digits_run, tmp_path, mesh, capsys):
    """Edited, damaged or missing, it changes no number; that it differs is one line."""
    run = shutil.copytree(digits_run, tmp_path / "run")
    options, file = NONE | {"workdir": str(run)}, run / "config.json"
    before = restore.from_options(options, mesh)
    assert capsys.readouterr().out == ""
    other = json.loads(file.read_text())
    other["config"]["model"]["gamma_max"], other["data"]["fingerprint"] = 4.0, "0"
    for content, said in (
        (json.dumps(other), r"config\.model\.gamma_max: .* -> 4\.0; data\.fingerprint: .* -> 0\)"),
        ("[" * 100_000, "unreadable"), ("[]", "unreadable"), (None, "unreadable"),
    ):  # fmt: skip
        file.unlink() if content is None else file.write_text(content)
        for again in (restore.from_options, lambda *args: restore.load(*args, SHAPE)):
            of = again(options, mesh)
            assert of.settings["gamma_max"] == before.settings["gamma_max"] != 4.0
            np.testing.assert_array_equal(*(m.vdm.gamma(np.ones(1)) for m in (of, before)))
            [line] = capsys.readouterr().out.splitlines()
            assert re.search(f"not what step 60 was made with .*{said}", line), line


def test_a_run_from_before_some_settings_has_their_defaults(digits_run, monkeypatch):
    of = restore.saved(digits_run, None)
    before = {"config": of.config.to_dict(), "data": dict(of.data)}
    del before["config"]["hierarchy"], before["config"]["model"]["decoder"]
    monkeypatch.setattr(restore, "load_settings", lambda *_: (60, before))
    assert restore.saved(digits_run, None).config.to_dict() == of.config.to_dict()
    monkeypatch.setattr(restore, "load_settings", lambda *_: (60, {"seed": 1}))
    with pytest.raises(UserError, match="checkpoints/60 has no settings in it"):
        restore.saved(digits_run, None)


def test_a_checkpoint_removed_by_a_run_that_goes_on_is_the_next_newest(
    digits_run, mesh, monkeypatch
):
    load, removed = pretrained.load_params, iter([True, False])

    def once(*args):
        if next(removed):
            raise restore.RemovedError("gone")
        return load(*args)

    monkeypatch.setattr(pretrained, "load_params", once)
    assert restore.from_options(NONE | {"workdir": str(digits_run)}, mesh).step == 60
    assert next(removed, None) is None


def test_other_data_keep_what_of_the_settings_suits_them():
    def of(levels=None, **data):
        config = defaults.get_config()
        config.data.update(name="folder", path="p", size="8", held_out=0.5, validation=3, levels=9)
        return restore.with_data(config, data, levels).data

    same = of(dir="d")
    given = (same.name, same.path, same.levels, same.validation, same.dir)
    assert given == ("folder", "p", 9, 3, "d")
    arrays = of(16, name="arrays")
    assert (arrays.path, arrays.levels, arrays.validation, arrays.size) == ("p", 16, 0, None)
    cifar = of(16, name="cifar10")
    assert (cifar.path, cifar.levels, cifar.held_out) == (None, 256, None)
    assert (of(name="folder", path="q").size, of(name="folder").levels) == ("8", 256)


def test_a_model_that_is_no_vdm_says_so(digits_run, mesh):
    of = restore.from_workdir(digits_run, mesh)
    other = of._replace(model=of.model._replace(bind=lambda *_: type("M", (), {"words": "VAE"})()))
    with pytest.raises(UserError, match=r"is no VDM: VAE"):
        other.vdm  # noqa: B018


def test_the_published_configurations(tmp_path):
    found, name = published_configs.find(tmp_path, "cifar10")
    assert name == "published cifar10 (its README: 2.637 bits per dim)"
    assert (found["data"], found["model"]["sm_n_embd"]) == ("cifar10", 128)
    assert published_configs.find(tmp_path, "imagenet64")[1] == "published imagenet64"
    (tmp_path / "bad.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"bad\.json is no JSON file"):
        published_configs.find(tmp_path, str(tmp_path / "bad.json"))
    folder = shutil.copytree(GOLDEN / "checkpoints-0", tmp_path / "c" / "checkpoints-0")
    shutil.copy(GOLDEN / "model_config.json", tmp_path / "c")
    assert published_configs.find(folder, None)[1] == "official c"
    assert published_configs.find(next(folder.iterdir()), None)[1] == "official c"
