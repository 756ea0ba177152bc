"""The benchmark: what it counts and says, and that it compares what it says it does."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from experiments.benchmarks import speed as bench
from experiments.benchmarks import speed_report as bench_report
from experiments.benchmarks.published_code import PublishedCode
from experiments.configs import cifar10
from vdm_jax.run.cli import UserError


@pytest.fixture(autouse=True)
def _kept_programs_are_switched_on_again():
    """The command times compiling: it switches them off for its process."""
    with tiny.jax_settings():
        yield


def small(**changes):
    config = cifar10.get_config()
    config.model.update(channels=64, num_blocks=1, **changes)
    return config


@pytest.mark.parametrize("attention", ["middle", "all"])
def test_the_operations_are_those_the_compiler_counts(attention):
    """On the network as it is, of one block down and one up: a loop's body is counted once."""
    config = small(attention=attention)
    model = bench.make_model(config, bench.SHAPE, 256)

    def forward(params, z_t):
        denoise, _ = model.bind(params, jnp.zeros(1), None)
        return denoise(z_t, jnp.zeros(1))

    shapes = jax.eval_shape(model.init, jax.random.key(0))
    z_t = jax.ShapeDtypeStruct((1, *bench.SHAPE), jnp.float32)
    counted = jax.jit(forward).lower(shapes, z_t).compile().cost_analysis()["flops"]
    # The compiler also counts norms and the like, and leaves out what falls on the images' margins.
    assert bench.forward_flops(config) == pytest.approx(counted, rel=0.1)


def test_the_published_network_has_the_operations_known_of_it():
    # 20 TFLOP a step of 128 images (configs/cifar10.py).
    assert 3 * 128 * bench.forward_flops(cifar10.get_config()) == pytest.approx(20e12, rel=0.05)


def fake(need):
    found = types.SimpleNamespace(
        argument_size_in_bytes=need, temp_size_in_bytes=0, output_size_in_bytes=0,
        alias_size_in_bytes=0,
    )  # fmt: skip
    return types.SimpleNamespace(memory_analysis=lambda: found)


def test_the_largest_batch_is_the_last_power_of_two_that_fits():
    compiled = []

    def compile_step(config):
        compiled.append(config.train.batch_size)
        return fake(100 + 10 * config.train.batch_size)

    config = small()
    assert bench.largest(config, 1000, compile_step) == {"batch": 64, "need": 740}
    assert compiled == [8, 16, 32, 64, 128]
    assert bench.largest(config, 50, compile_step) == {"batch": 0, "need": 0}


def quality(sampler, calls, mmd, sliced=1.0, error=0.1):
    return {
        "sampler": sampler, "calls": calls, "mmd": mmd, "mmd_error": error,
        "sliced_wasserstein": sliced, "sliced_wasserstein_error": error,
    }  # fmt: skip


def test_equal_quality_is_the_fewest_calls_within_the_error_of_both_distances():
    rows = [
        quality("training images", 0, 0.0),
        quality("dpm_solver", 5, 1.5),  # 0.5 above, more than 2 sqrt(0.02) = 0.28
        quality("dpm_solver", 8, 1.1, sliced=1.5),
        quality("dpm_solver", 20, 0.5),
        quality("dpm_solver", 10, 1.2),
        quality("ancestral", 25, 0.1),
        quality("ancestral", 1000, 1.0),
    ]
    assert bench_report.equal_quality(rows)["calls"] == 10
    assert bench_report.equal_quality([rows[1], rows[-1]]) is None


def step_row(name, seconds, sample):
    return {
        "name": name, "compile": 10.0, "compile_step": 8.0, "step": seconds, "sample": sample,
        "temporaries": 2**30, "need": 2**31, "tflops": 0.1, "share": 0.5,
    }  # fmt: skip


def test_ratios_are_to_the_published_code_and_say_so():
    found = {
        "options": {"workdir": "W", "official-code": "P", "rounds": 3, "channels": 128,
                    "num_blocks": 32, "batch_size": 4},
        "machine": "some machine",
        "steps": [step_row("published", 4.0, 2.0), step_row("ours", 3.0, 1.0),
                  step_row("ours, bfloat16", 1.0, 0.1)],
        "loader": 12345.0,
        "largest": [],
        "quality": [quality("dpm_solver", 10, 1.0), quality("ancestral", 1000, 1.0)],
        "evaluation": [{"method": "m", "variance": 0.5, "calls": 500000, "times_fewer": 2.0}],
    }  # fmt: skip
    text = bench_report.page(found)
    assert "some machine" in text
    assert "the ratio to the published code" in text
    assert "| ours | 10.0 (1.00) | 8.0 (1.00) | 3 (0.75) |" in text
    assert "| published | 10.0 | 8.0 | 4 |" in text
    # 1000 steps of 2 s against 10 of 1 s, and not of bfloat16's 0.1 s.
    assert "take 200 times as long" in text
    assert "12,345 images a\nsecond" in text
    alone = bench_report.page({**found, "steps": found["steps"][1:]})
    assert "the ratio to “ours”" in alone
    assert "100 times fewer" in alone


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no"), ("import nothing_of_that_name", "can't be imported: No module")],
)
def test_a_folder_that_is_not_the_published_code_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "model_vdm.py").write_text(content)
    with pytest.raises(UserError, match=message):
        PublishedCode(tmp_path, 64, 1)


def test_a_small_run_writes_the_page(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "MODES", dict(list(bench.MODES.items())[:2]))
    arguments = ["--channels=64", "--num_blocks=1", "--batch_size=1", "--rounds=1", "--noquality"]
    found = bench.bench(["bench", f"--workdir={tmp_path}/w", f"--out={tmp_path}", *arguments])
    text = (tmp_path / "benchmarks.md").read_text()
    assert text in capsys.readouterr().out
    assert [row["name"] for row in found["steps"]] == list(bench.MODES)
    for row in found["steps"]:
        assert row["step"] > 0
        assert row["sample"] > 0
        assert row["need"] > row["temporaries"] > 0
    assert found["loader"] > 100
    assert all(f"| {name} |" in text for name in bench.MODES)
    assert json.loads((tmp_path / "w" / "bench.json").read_text()) == found
    assert np.isfinite([row["tflops"] for row in found["steps"]]).all()


def test_without_a_folder_it_says_which_flag_is_missing():
    with pytest.raises(UserError, match="--workdir=DIR is missing"):
        bench.bench(["bench"])
