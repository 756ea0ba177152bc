"""A model in one file is the run's, but for the rounding of its parameters to float16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import shared_runs
import tiny
import vdmz

from experiments import compress
from experiments.export import export
from vdm_jax.data import Condition, load
from vdm_jax.errors import UserError
from vdm_jax.evaluation.report import value
from vdm_jax.run import pretrained, training
from vdm_jax.run.cli import Options
from vdm_jax.train import sharding
from vdm_jax.train.load_checkpoint import load_params

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def model_file(digits_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("model") / "digits.npz"
    export(["export", f"--workdir={digits_run}", "-o", str(out)])
    return out


def averaged(run, step):
    """The averaged parameters of a run's checkpoint."""
    config = pretrained.Saved(run, run / "checkpoints", step, None, {})
    of = training.restore.saved(run, str(step))
    shape, levels, _ = pretrained.images_told(of)
    model = training.make_model(of.config, shape, levels)
    expected = jax.eval_shape(model.init, jax.random.key(0))
    return load_params(config.folder, expected, sharding.make_mesh(jax.devices()[:1]), step)[1]


def test_the_file_holds_the_average_as_float16_and_no_folder(digits_run, model_file):
    of = pretrained.read(str(model_file))
    given = jax.tree.leaves(averaged(digits_run, 60))
    assert len(given) == len(of.params) and of.step == 60
    for leaf, found in zip(given, of.params.values(), strict=True):
        np.testing.assert_array_equal(found, np.asarray(leaf, np.float16).astype(np.float32))
        assert found.dtype == np.float32
    assert of.config.data.path is of.config.data.dir is of.config.data.manual_dir is None
    assert of.data["name"] == "digits" and of.config.model.network == "mlp"
    with np.load(model_file) as archive:
        assert str(digits_run) not in archive["settings"].tobytes().decode()


def test_it_evaluates_and_compresses_as_its_run(digits_run, model_file, tmp_path):
    run = tiny.evaluate(digits_run, f"--out={tmp_path / 'a'}", "--images=30")
    of_file = ["--pretrained=" + str(model_file), "--images=30"]
    alone = tiny.command(["evaluate", *of_file, f"--out={tmp_path / 'b'}"])
    found, wanted = (value(of["rows"][0]) for of in (alone, run))
    assert found != wanted and abs(found - wanted) < 2e-3
    np.save(tmp_path / "in.npy", vdmz.digits(6))
    source, coded, out = of_file[0], tmp_path / "x.vdmz", tmp_path / "out.npy"
    few = (f"--num_steps={vdmz.STEPS}", "--nocompare")
    vdmz.plain_compress(source, tmp_path / "in.npy", "-o", coded, *few)
    vdmz.plain_decompress(source, coded, "-o", out)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), vdmz.digits(6))


def test_a_training_starts_from_a_file(digits_run, model_file, tmp_path, capsys):
    """From a run's folder: tests/thorough/test_restarts.py."""
    config = tiny.config()
    config.model.update(network="mlp", head="levels")
    config.optimizer.learning_rate = 1e-12
    config.optimizer.weight_decay = 0.0
    config.train.update(steps=10, checkpoint_every=10)
    config.sample.update(num_steps=1, count=1)
    training.train(config, tmp_path, Options(init_from=str(model_file)))
    assert f"starting from the parameters of {model_file}, step 60" in capsys.readouterr().out
    pairs = zip(
        *(jax.tree.leaves(averaged(*of)) for of in ((tmp_path, 10), (digits_run, 60))), strict=True
    )
    training.train(config, tmp_path, Options(init_from="none"))
    assert "the run has begun: --init_from=none is not looked at" in capsys.readouterr().out
    for found, leaf in pairs:
        rounded = jnp.asarray(leaf, jnp.float16).astype(jnp.float32)
        np.testing.assert_allclose(found, rounded, rtol=0, atol=1e-9)


def test_what_does_not_fit_or_is_damaged_is_refused(model_file, tmp_path, capsys):
    config = tiny.config()
    config.model.update(network="mlp", head="levels", channels=24)
    with pytest.raises(UserError, match=r"the parameter .* is float32.*, but the config"):
        training.train(config, tmp_path / "other", Options(init_from=str(model_file)))
    assert "compiling" not in capsys.readouterr().out
    content = model_file.read_bytes()
    for damaged in (content[:-100], b"no file", content.replace(b'"step"', b'"stop"')):
        (tmp_path / "bad.npz").write_bytes(damaged)
        with pytest.raises(UserError, match=r"bad.npz is damaged, or no model's file that"):
            pretrained.read(str(tmp_path / "bad.npz"))
    of = pretrained.read(str(model_file))
    too_large = {"a": np.full(3, 1e5)}
    with pytest.raises(UserError, match=r"isn't a number, or beyond float16's 65,504"):
        pretrained.write(tmp_path / "x.npz", of, too_large)
    assert not (tmp_path / "x.npz").exists()
    with pytest.raises(UserError, match=r"--workdir=DIR is missing"):
        export(["export", "-o", "x.npz"])


@pytest.mark.parametrize("name", pretrained.NAMES)
def test_a_flipped_bit_of_a_parameter_is_refused(name, tmp_path):
    content = bytearray((pretrained.FOLDER / f"{name}.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "bad.npz").write_bytes(content)
    told = r"bad\.npz is damaged, .*CRC-32 for file '.*kernel\.npy'\)$"  # a dot is no new line
    with pytest.raises(UserError, match=told):
        pretrained.read(str(tmp_path / "bad.npz"))


def test_the_photographs_model_is_of_the_photographs(tmp_path):
    """That it is better than JPEG-XL on them: tests/thorough/test_pretrained.py."""
    of, images = pretrained.read("photos"), load("photos32", data_dir=tmp_path)
    assert pretrained.images_told(of) == ((32, 32, 3), 256, Condition())
    assert of.data["fingerprint"] == images.fingerprint and of.step == 8000


def test_the_digits_model_has_the_figure_of_its_card(tmp_path):
    """1.6972, by 64 draws of each test image with an error of 0.005: of four it is 0.02."""
    of, images = pretrained.read("digits"), load("digits", data_dir=tmp_path)
    assert pretrained.images_told(of) == ((8, 8, 1), 17, Condition())
    assert of.data["fingerprint"] == images.fingerprint and of.step == 5000
    assert abs(shared_runs.bound_of(of, images.test, draws=4) - 1.6972) < 2 * 0.02
    assert set(pretrained.NAMES) == {"digits", "photos"}


def test_a_model_of_the_package_compresses_the_images_that_it_was_tested_on(tmp_path):
    flags = ("workdir", "official", "checkpoint", "model", "tile")
    options = dict.fromkeys(flags) | {"pretrained": "digits", "split": "test"}
    _, name, pictures = compress.images_for(None, options)
    np.testing.assert_array_equal(pictures.images, load("digits", data_dir=tmp_path).test)
    assert name == "digits, step 5000"
