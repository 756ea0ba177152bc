"""Whole tiny runs of the kinds of models besides the paper's VDM, and their evaluation."""

import json
import math

import numpy as np
import pytest
import tiny
from PIL import Image

from experiments.configs import binomial, digits, vae
from vdm_jax.errors import UserError
from vdm_jax.run import training
from vdm_jax.train.logging import read_metrics


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with tiny.one_device():
        yield


def trained(workdir, module=digits, **model):
    """Trains for 60 steps on the schedule of `tiny.config`; returns the result."""
    config, like = module.get_config(), tiny.config()
    for part in ("train", "eval", "sample"):
        config[part].update(like[part])
    config.optimizer.update(warmup_steps=5, ema_rate=0.9, learning_rate=1e-2)
    config.model.update(channels=16, num_blocks=1, **model)
    training.train(config, workdir)
    return tiny.strict_json(workdir / "result.json")


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


def test_a_vae(tmp_path):
    result = trained(tmp_path, vae)
    assert result["diffusion"] == 0.0  # nothing lies between one latent and the prior
    assert result["bpd"] == pytest.approx(result["reconstruction"] + result["prior"])
    assert result["bpd"] < math.log2(17)  # better than no model
    flags = ("--num_steps=10", "--importance", "--chains=2", "--ode_images=2")
    refusals(tmp_path, flags, "is for a VDM; this run is another model: VAE")
    (row,) = tiny.evaluate(tmp_path)["rows"]
    assert row["quantity"] == "bound, VAE" and row["kind"] == "variational bound"
    agrees(row, result)
    assert not (tiny.newest(tmp_path) / "diffusion_loss.png").exists()  # there are no times


def test_a_density_is_reported_in_nats_and_never_in_bits(tmp_path):
    result = trained(tmp_path, decoder="density")
    assert "bpd" not in json.dumps(result)
    # The data's resolution: gamma_0 = -8, (log 2 pi + 1 - 8) / 2 nats of it are the noise.
    assert result["reconstruction"] == pytest.approx(0.5 * (np.log(2 * np.pi) - 7), abs=0.01)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert lines and all("nats_per_dim" in line and "bpd" not in line for line in lines)
    message = r"--chains and --ode_images are of discrete images, in bits; .* can't be compared"
    refusals(tmp_path, ("--chains=2", "--ode_images=2"), message)
    found = tiny.evaluate(tmp_path, "--num_steps=10,inf")
    coarse, row = found["rows"]
    assert row["unit"] == found["profile"]["unit"] == "nats per dim of a density"
    agrees(row, result, "nats_per_dim")
    assert coarse["nats_per_dim"] > row["nats_per_dim"] and "bpd" not in json.dumps(found)


def test_a_learned_variance_goes_through_every_kind_of_evaluation(tmp_path):
    result = trained(tmp_path, reverse_var="learned", num_steps=10)
    found = tiny.evaluate(
        tmp_path, "--num_steps=5,10,inf", "--chains=2", "--chain_steps=5", "--chain_images=8",
        "--ode_images=4", "--tolerance=1e-2", "--trace=hutchinson", "--dequantization=uniform",
    )  # fmt: skip
    five, ten, inf, own, chains, beside, ode = found["rows"]
    assert [row["num_steps"] for row in (five, ten, inf, own, beside)] == [5, 10, None, 5, None]
    assert five["bpd"] > ten["bpd"] > inf["bpd"]
    agrees(ten, result)
    error = math.hypot(own["standard_error"], chains["standard_error"])
    assert chains["bpd"] < own["bpd"] + 5 * error
    assert 0 < ode["bpd"] < math.log2(17) + 2


def test_binomial_diffusion(tmp_path):
    result = trained(tmp_path, binomial, num_steps=20)
    assert result["reconstruction"] == 0.0 and result["prior"] == pytest.approx(0.0, abs=1e-5)
    assert result["bpd"] < 1.0  # a fair coin's
    refusals(tmp_path, ("--num_steps=10", "--chains=2"), "another model: binomial diffusion")
    (row,) = tiny.evaluate(tmp_path)["rows"]
    assert row["quantity"] == "bound, binomial diffusion, T = 20" and row["num_steps"] == 20
    agrees(row, result)
    with Image.open(tmp_path / "samples" / "00000060.png") as picture:
        assert len(np.unique(np.asarray(picture))) == 2  # black and white
