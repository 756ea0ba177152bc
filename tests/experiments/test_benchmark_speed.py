"""The benchmark: its operation count, its tables, and the copy of the published code."""

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import contenders, speed
from experiments.benchmarks.published_code import PublishedCode
from experiments.configs import cifar10
from vdm_jax.run.cli import UserError
from vdm_jax.run.models import make_model


def test_the_operations_are_those_the_compiler_counts():
    """On the network as it is, of one block down and one up: a loop's body is counted once."""
    config = cifar10.get_config()
    config.model.update(channels=64, num_blocks=1, attention="all")
    model = make_model(config, contenders.SHAPE, 256)

    def forward(params, z_t):
        return model.bind(params).denoise(z_t, jnp.zeros(1))

    shapes = jax.eval_shape(model.init, jax.random.key(0))
    z_t = jax.ShapeDtypeStruct((1, *contenders.SHAPE), jnp.float32)
    counted = jax.jit(forward).lower(shapes, z_t).compile().cost_analysis()["flops"]
    # The compiler also counts norms and the like, and leaves out what falls on the images' margins.
    assert contenders.forward_flops(config) == pytest.approx(counted, rel=0.1)
    # 20 TFLOP a step of 128 images (configs/cifar10.py).
    published = contenders.forward_flops(cifar10.get_config())
    assert 3 * 128 * published == pytest.approx(20e12, rel=0.05)


def step_row(name, seconds, sample):
    return {
        "name": name, "compile": 10.0, "compile_step": 8.0, "step": seconds, "sample": sample,
        "temporaries": 2**30, "need": 2**31, "tflops": 0.1, "share": 0.5,
    }  # fmt: skip


def test_each_number_stands_in_its_row_with_its_ratio_to_the_first():
    found = {
        "options": {"official-code": "P", "rounds": 3, "channels": 128, "num_blocks": 32,
                    "batch_size": 4},
        "machine": "some machine",
        "steps": [step_row("published", 4.0, 2.0), step_row("ours", 3.0, 0.5)],
        "loader": 12345.0,
        "quality": [
            {"sampler": "training images", "calls": 0, "mmd": -1e-4, "mmd_error": 2e-4,
             "spacing": "-", "seconds": 0.0,
             "sliced_wasserstein": 1e-3, "sliced_wasserstein_error": 1e-4},
        ],
        "evaluation": [{"method": "m", "variance": 0.5, "calls": 500000, "times_fewer": 2.0}],
    }  # fmt: skip
    text = "\n".join(make(found) for make in speed.TABLES.values())
    for line in (
        "| published | 10.0 | 8.0 | 4 | 1,024 | 2,048 | 0.10 | 50% | 2 |",
        "| ours | 10.0 (1.00) | 8.0 (1.00) | 3 (0.75) | 1,024 (1.00) | 2,048 (1.00) "
        "| 0.10 | 50% | 0.5 (0.25) |",
        "| training images | - | -0.100 ± 0.200 | 1.000 ± 0.100 |",
        "| m | 0.500 | 500,000 | 2.0 |",
    ):
        assert line in text.splitlines(), line
    assert "| some machine | `python -m experiments.benchmarks.speed --workdir=DIR " in text
    assert "--batch_size=4 --channels=128 --num_blocks=32 --rounds=3` | 12,345 |" in text


def test_what_is_missing_is_told_before_anything_is_measured(tmp_path):
    where = f"--workdir={tmp_path}"
    for arguments, message in (
        ([], "--workdir=DIR is missing"),
        ([where, f"--out={tmp_path}"], r"there is no page .*benchmarks\.md"),
    ):
        with pytest.raises(UserError, match=message):
            speed.bench(["bench", *arguments])
    with pytest.raises(UserError, match="there is no"):
        PublishedCode(tmp_path, 64, 1)
    (tmp_path / "model_vdm.py").write_text("import nothing_of_that_name")
    with pytest.raises(UserError, match="can't be imported: No module"):
        PublishedCode(tmp_path, 64, 1)
