"""A program asks the devices of its mesh, not the process that compiles it, what is fast there."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from experiments.configs import cifar10
from vdm_jax.run.experiment import make_optimizer
from vdm_jax.run.models import make_model
from vdm_jax.train import step

SHAPE, BATCH, PARTS = (8, 8, 3), 6, 3


def traced_step(platform):
    """The training step of CIFAR-10's network, smaller, for devices that aren't here."""
    device = AbstractDevice("any", 1, platform)
    mesh = AbstractMesh((1, 1), ("data", "fsdp"), abstract_device=device)
    config = cifar10.get_config()
    config.model.update(num_blocks=1, channels=64)
    model = make_model(config, SHAPE, 256, mesh=mesh)
    training = step.Training(model, make_optimizer(config), 0.999, jax.random.key(0), PARTS)
    chunk = {
        "images": jax.ShapeDtypeStruct((1, BATCH, *SHAPE), jnp.uint8),
        "conditioning": jax.ShapeDtypeStruct((1, BATCH), jnp.float32),
    }
    state = step.abstract_state(model, training.optimizer, mesh)
    return step.make_step(training, mesh).trace(state, chunk, 0, 1)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_a_step_is_written_for_the_platform_of_its_mesh(platform):
    """On a CPU gradients of convolutions have their layout, and the loop over parts is unrolled."""
    traced = traced_step(platform)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    layouts = set(re.findall(r"stablehlo\.convolution.* dim_numbers = (.*?), window", text))
    plain = "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"
    assert plain in layouts and (layouts == {plain}) == (platform == "cpu")
    (scan,) = (of for of in traced.jaxpr.eqns if of.primitive.name == "scan")
    assert scan.params["length"] == PARTS
    assert scan.params["unroll"] == (PARTS if platform == "cpu" else 1)
