"""The benchmark: its operation count, what it refuses, and the copy of the published code."""

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import contenders, speed
from experiments.benchmarks.published_code import PublishedCode
from experiments.configs import cifar10
from vdm_jax.errors import UserError
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
    assert contenders.forward_operations(config) == pytest.approx(counted, rel=0.1)
    # 20 TFLOP a step of 128 images (configs/cifar10.py).
    published = contenders.forward_operations(cifar10.get_config())
    assert 3 * 128 * published == pytest.approx(20e12, rel=0.05)


def test_what_is_missing_is_told_before_anything_is_measured(tmp_path):
    where = f"--workdir={tmp_path}"
    for arguments, message in (
        ([], "--workdir=DIR is missing"),
        ([where, f"--out={tmp_path}"], r"there is no page .*benchmarks\.md"),
        ([where, "--modes=float8"], "--modes=float8: no mode has that; there are ours, remat"),
        ([where, "--modes=("], r"--modes=\( is no regular expression: missing \)"),
    ):
        with pytest.raises(UserError, match=message):
            speed.bench(["bench", *arguments])
    (tmp_path / "model_vdm.py").write_text("import nothing_of_that_name")
    with pytest.raises(UserError, match="can't be imported: No module"):
        PublishedCode(tmp_path, 64, 1)
