"""A published checkpoint through `experiments.evaluate`, against the values of its own code."""

import math

import golden
import numpy as np
import pytest
import tiny

from vdm_jax import loss

NAME = "no_fourier_odd_batch"


def bits(model, nats):
    return np.asarray(loss.bits_per_dim(np.asarray(nats, np.float64), model.x.shape[1:]))


@pytest.mark.usefixtures("compiled_once")
def test_the_command_agrees_with_the_published_code(tmp_path):
    model = golden.load(NAME)
    found = tiny.evaluate(
        tmp_path, f"--official={model.folder / 'checkpoints-0'}",
        *golden.as_dataset(NAME, tmp_path), "--repeats=30", "--num_steps=10,inf", "--batch_size=4",
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
