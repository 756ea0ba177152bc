"""The tables of `experiments.benchmarks.compression` on a tiny run are those of the codec."""

import numpy as np
import pytest
import tiny
import vdmz

from experiments.benchmarks import compression as benchmark
from vdm_jax import compression
from vdm_jax.errors import UserError


def test_tables_are_those_of_the_files(digits_run, digits_vdm, tmp_path, capsys):
    images = vdmz.digits(9)
    np.save(tmp_path / "in.npy", images)
    arguments = [f"--workdir={digits_run}", "--num_steps=12,20", str(tmp_path / "in.npy")]
    with tiny.one_device():
        benchmark.measure(["benchmark", *arguments])
    said = capsys.readouterr().out
    sizes = []
    for num_steps in (12, 20):
        content, s = compression.compress(
            images[..., None], *digits_vdm, compression.Options(num_steps), b"\1\0"
        )
        sizes.append(len(content))
        assert f"| {num_steps} | {len(content)} | {s.gross:.4f} | {s.net:.4f} | " in said
    assert f"| {8 * min(sizes) / (9 * 64):.4f} |" in said and "| xz | " in said


@pytest.mark.parametrize("given", ["10,x", "0", "²", "5000"])
def test_refusals(given):
    with pytest.raises(UserError, match=f"--num_steps={given}: wanted whole numbers from 1 to 4096"):
        benchmark.measure(["benchmark", f"--num_steps={given}"])
