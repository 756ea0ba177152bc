"""Whole tiny runs of the kinds of models besides the paper's VDM, and their evaluation."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny
from PIL import Image

from experiments.configs import binomial, vae
from vdm_jax.run import cli
from vdm_jax.run import restore as trained
from vdm_jax.run import training as run
from vdm_jax.run.cli import UserError
from vdm_jax.train import record


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with tiny.one_device():
        yield


def short(config, steps=60):
    """The schedule of `tiny.config` for another configuration."""
    like = tiny.config()
    for part in ("train", "eval", "sample"):
        config[part].update(like[part])
    config.train.steps = steps
    config.optimizer.update(warmup_steps=5, ema_rate=0.9, learning_rate=1e-2)
    config.model.update(channels=16, num_blocks=1)
    return config


def result_of(workdir):
    return tiny.strict_json(workdir / "result.json")


def train(config, workdir) -> Path:
    run.train(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def of_vae(tmp_path_factory):
    return train(short(vae.get_config()), tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="module")
def of_density(tmp_path_factory):
    """By the command line, in this process."""
    workdir = tmp_path_factory.mktemp("density")
    argv = ["experiments.digits", f"--workdir={workdir}", "--config.model.decoder=density"]
    config, where, _ = cli._parse(argv, cli.CONFIGS / "digits.py", "")
    assert (config.model.decoder, where) == ("density", workdir)
    return train(short(config), where)


@pytest.fixture(scope="module")
def of_variance(tmp_path_factory):
    """The learned variance of the reverse steps, T = 10."""
    config = tiny.config()
    config.model.update(reverse_var="learned", num_steps=10)
    return train(config, tmp_path_factory.mktemp("variance"))


def agrees(row, result, key="bpd"):
    """The row is the run's own result, by other draws."""
    error = math.hypot(row["monte_carlo_error"], result[f"{key}_monte_carlo_error"])
    assert abs(row[key] - result[key]) < 5 * error
    assert 0 < error < 0.02 * abs(result[key]) + 0.02


def refusals(workdir, flags, message):
    for flag in flags:
        with pytest.raises(UserError, match=message) as error:
            tiny.evaluate(workdir, flag)
        assert "\n" not in str(error.value)


# ---- a VAE ----


def test_a_vae_s_run_and_its_evaluation_are_of_one_bound(of_vae):
    result = result_of(of_vae)
    assert result["diffusion"] == 0.0  # nothing lies between one latent and the prior
    assert result["bpd"] == pytest.approx(result["reconstruction"] + result["prior"])
    assert result["bpd"] < math.log2(17)  # better than no model
    found = tiny.evaluate(of_vae)
    (row,) = found["rows"]
    assert row["quantity"] == "bound, VAE" and row["kind"] == "variational bound"
    assert (row["unit"], row["num_images"], row["draws"]) == ("bits per dim", 360, 4)
    agrees(row, result)
    folder = tiny.newest(of_vae)
    assert tiny.strict_json(folder / "result.json")["rows"][0]["bpd"] == row["bpd"]
    assert (
        f"| bound, VAE | variational bound | {row['bpd']:.4f} |"
        in (folder / "result.md").read_text()
    )
    assert not (folder / "diffusion_loss.png").exists()  # there are no times
    with Image.open(of_vae / "samples" / "00000060.png") as picture:
        assert np.asarray(picture).std() > 10


def test_what_only_a_vdm_has_is_refused_of_a_vae(of_vae):
    message = r"is for a VDM; this run is another model: VAE"
    before = list((of_vae / "evaluation").iterdir()) if (of_vae / "evaluation").exists() else []
    flags = ("--num_steps=10", "--num_steps=inf", "--importance", "--chains=2", "--ode_images=2")
    refusals(of_vae, flags, message)
    assert list((of_vae / "evaluation").iterdir()) == before


# ---- a density ----


def test_a_density_is_reported_in_nats_and_never_in_bits(of_density):
    result = result_of(of_density)
    assert "bpd" not in json.dumps(result)
    assert result["nats_per_dim"] == pytest.approx(
        result["reconstruction"] + result["prior"] + result["diffusion"]
    )
    # The data's resolution: gamma_0 = -8, (log 2 pi + 1 - 8) / 2 nats of it are the noise.
    assert result["reconstruction"] == pytest.approx(0.5 * (np.log(2 * np.pi) - 7), abs=0.01)
    lines = [json.loads(line) for line in (of_density / "metrics.jsonl").read_text().splitlines()]
    assert lines and all("nats_per_dim" in line and "bpd" not in line for line in lines)


def test_its_evaluation_has_the_same_unit_and_number(of_density):
    found = tiny.evaluate(of_density, "--num_steps=10,inf")
    coarse, row = found["rows"]
    assert row["unit"] == found["profile"]["unit"] == "nats per dim of a density"
    agrees(row, result_of(of_density), "nats_per_dim")
    assert coarse["nats_per_dim"] > row["nats_per_dim"]
    assert "bpd" not in json.dumps(found)
    text = (tiny.newest(of_density) / "result.md").read_text()
    assert "nats per dim of a density" in text and "bits per dim" not in text


def test_bounds_of_probabilities_are_refused_of_a_density(of_density):
    refusals(
        of_density, ("--chains=2", "--ode_images=2"),
        r"--chains and --ode_images are of discrete images, in bits; .* can't be compared",
    )  # fmt: skip


# ---- a learned variance ----


def test_a_learned_variance_goes_through_every_kind_of_evaluation(of_variance):
    found = tiny.evaluate(
        of_variance, "--num_steps=5,10,inf", "--chains=2", "--chain_steps=5", "--chain_images=8",
        "--ode_images=4", "--tolerance=1e-2", "--trace=hutchinson", "--dequantization=uniform",
    )  # fmt: skip
    five, ten, inf, own, chains, beside, ode = found["rows"]
    assert [row["num_steps"] for row in (five, ten, inf, own, beside)] == [5, 10, None, 5, None]
    assert five["bpd"] > ten["bpd"] > inf["bpd"]
    agrees(ten, result_of(of_variance))
    error = math.hypot(own["standard_error"], chains["standard_error"])
    assert chains["bpd"] < own["bpd"] + 5 * error
    assert (chains["num_images"], ode["num_images"], beside["num_images"]) == (8, 4, 4)
    assert 0 < ode["bpd"] < math.log2(17) + 2


def test_the_learned_variance_is_in_the_parameters_and_was_trained(of_variance):
    from vdm_jax.run import build as setup

    of = trained.from_workdir(of_variance, None, {}, setup.make_mesh())
    assert of.vdm.reverse_var == "learned"
    kernel = of.params["score_model"]["variance"]["kernel"]
    assert np.any(np.asarray(kernel) != 0)  # where it began


# ---- bits ----


def test_a_binomial_run_and_its_evaluation_are_of_one_bound(tmp_path):
    config = short(binomial.get_config())
    config.model.num_steps = 20
    result = result_of(train(config, tmp_path))
    assert result["reconstruction"] == 0.0
    assert result["prior"] == pytest.approx(0.0, abs=1e-5)
    assert result["bpd"] < 1.0  # a fair coin's
    (row,) = tiny.evaluate(tmp_path)["rows"]
    assert row["quantity"] == "bound, binomial diffusion, T = 20" and row["num_steps"] == 20
    agrees(row, result)
    refusals(tmp_path, ("--num_steps=10", "--chains=2"), "another model: binomial diffusion")
    with Image.open(tmp_path / "samples" / "00000060.png") as picture:
        assert len(np.unique(np.asarray(picture))) == 2  # black and white


# ---- a run that was begun before these settings were there ----

NEW = {"model": ("reverse_var", "decoder", "process"), "hierarchy": None}


def older(meta):
    """The settings as such a run saved them."""
    meta = json.loads(json.dumps(meta))
    for part, names in NEW.items():
        for name in names or ():
            del meta["config"][part][name]
        if names is None:
            del meta["config"][part]
    return meta


@pytest.fixture(scope="module")
def old_run(tmp_path_factory):
    """A run of 20 steps, without the new settings in its files."""
    workdir = tmp_path_factory.mktemp("old")
    config = tiny.config()
    config.train.steps = 20
    config.optimizer.decay_steps = 60
    run.train(config, workdir)
    saved = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps(older(saved)))
    file = workdir / "checkpoints" / "20" / "meta" / "metadata"
    beside = json.loads(file.read_text())
    assert beside.pop("settings") == saved
    file.write_text(json.dumps(record.sealed(older(saved), beside["leaves"])))
    with ocp.CheckpointManager(workdir / "checkpoints", item_names=("state", "meta")) as manager:
        meta = manager.restore(20, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    then = meta["settings"]["config"]
    assert "hierarchy" not in then and "decoder" not in then["model"]
    return workdir


def go_on(**model):
    config = tiny.config()
    config.train.steps = 40
    config.optimizer.decay_steps = 60
    config.model.update(model)
    return config


def test_it_is_evaluated_as_what_it_was(old_run):
    found = tiny.evaluate(old_run)
    agrees(found["rows"][0], result_of(old_run))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder": "density"}, ["  config.model.decoder: discretised -> density"]),
        (
            {"reverse_var": "transition", "num_steps": 5},
            [
                "  config.model.num_steps: None -> 5",
                "  config.model.reverse_var: posterior -> transition",
            ],
        ),
        ({"channels": 32}, ["  config.model.channels: 16 -> 32"]),
    ],
)
def test_other_settings_than_those_meant_then_are_refused(old_run, changes, message, capsys):
    with pytest.raises(UserError, match="was started with other settings"):
        run.train(go_on(**changes), old_run)
    assert capsys.readouterr().err.splitlines() == message


def test_it_goes_on_where_it_was(old_run, tmp_path, capsys):
    shutil.copytree(old_run, tmp_path / "w")
    run.train(go_on(), tmp_path / "w")
    assert "going on from step 20" in capsys.readouterr().out
    assert result_of(tmp_path / "w")["step"] == 40
    saved = json.loads((tmp_path / "w" / "config.json").read_text())
    assert saved["config"]["model"]["decoder"] == "discretised"
