"""`experiments.rates` on a tiny run: its tables are those of the codec."""

import json

import numpy as np
import pytest
import tiny
import vdmz

from experiments import compress
from experiments.benchmarks import compression as rates
from vdm_jax import compression
from vdm_jax.compression import file
from vdm_jax.errors import UserError


def test_tables_are_those_of_the_files(digits_run, digits_vdm, tmp_path, capsys):
    images = vdmz.digits(9)
    np.save(tmp_path / "in.npy", images)
    arguments = ["experiments.rates", f"--workdir={digits_run}", "--num_steps=12,20"]
    with tiny.one_device():
        found = rates.rates([*arguments, f"--out={tmp_path / 'out'}", str(tmp_path / "in.npy")])
    said = capsys.readouterr().out
    assert [row["num_steps"] for row in found["rows"]] == [12, 20]
    for row in found["rows"]:
        content, summary = compression.compress(images[..., None], digits_vdm, row["num_steps"])
        header, _ = file.unpack(content)
        assert header.images == 9 and row["size"] == len(content)
        assert row["summary"]["net"] == pytest.approx(summary.net)
        assert f"| {row['num_steps']} | {len(content)} |" in said
    (written,) = (tmp_path / "out").iterdir()
    assert json.loads((written / "rates.json").read_text())["rows"] == found["rows"]
    text = (written / "rates.md").read_text()
    assert text.strip() in said
    best = min(row["size"] for row in found["rows"])
    assert f"| {8 * best / (9 * 64):.4f} |" in text and "| xz | " in text
    assert "ours, µs a symbol" in text


def test_fewer_images_are_evenly_chosen():
    images = np.arange(10)[:, None, None, None]
    assert compress.some(images, 4).reshape(-1).tolist() == [0, 3, 6, 9]
    assert compress.some(images, 10) is images


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--num_steps=10,x"], "--num_steps=10,x: wanted whole numbers from 1 to 4096"),
        (["--num_steps=0"], "--num_steps=0: wanted"),
        (["--num_steps=²"], "--num_steps=²: wanted"),
        (["--grid=1000"], "grid"),
        ([], "--out=DIR is missing"),
    ],
)
def test_refusals(arguments, said):
    with pytest.raises(UserError, match=said):
        rates.rates(["experiments.rates", *arguments])


def test_what_a_row_does_not_say_is_null():
    row = rates._numbers({"size": 3, "summary": {"net": float("nan"), "gross": 1.5}})
    assert row == {"size": 3, "summary": {"net": None, "gross": 1.5}}
