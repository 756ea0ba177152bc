"""Gradients of the published models that tests/nn leaves out, and the memory that they take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import NAMES, gradient, load

from vdm_jax.nn import blocks
from vdm_jax.nn.unet import UNet


@pytest.mark.parametrize(
    ("name", "num_steps", "remat"),
    [(name, steps, "matmuls") for name in NAMES[:2] for steps in (10, 1000)]
    + [(name, None, remat) for name in NAMES[:2] for remat in ("none", "blocks")]
    + [(NAMES[2], None, "none"), (NAMES[2], 10, "blocks"), (NAMES[2], 1000, "matmuls")]
    + [(NAMES[0], None, "matmuls")],
)
def test_gradient_norms(name, num_steps, remat):
    golden = load(name)
    bpd, grads = gradient(name, num_steps, remat)(golden.model.params)
    of_steps = f"T{num_steps or 0}"
    rtol = 1e-4 if num_steps == 1000 else 1e-5
    np.testing.assert_allclose(bpd, golden.expected[f"{of_steps}/bpd"], rtol=rtol)
    expected = golden.expected[f"{of_steps}/grad_norms"]
    atol = 1e-6 * expected.max()
    np.testing.assert_allclose(golden.norms(grads), expected, rtol=1e-3, atol=atol)


Z = jax.random.normal(jax.random.key(1), (3, 6, 4, 2))
GAMMA = jnp.linspace(-10.0, 4.0, 3)


def network(**changes):
    return UNet(gamma_min=-13.3, gamma_max=5.0, channels=64, **changes)


def test_rematerialisation_keeps_less_for_the_backward_pass():
    """Bytes that a gradient lays out beside its arguments, for a deep network."""
    deep = {"num_blocks": 8, "attention": "middle"}
    init = network(**deep).init
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), Z, GAMMA)["params"])
    z = jax.ShapeDtypeStruct((16, 16, 16, 2), jnp.float32)

    def temporaries(remat):
        net = network(**deep, remat=remat, reverse_only=True)

        def value(params, z):
            return jnp.sum(net.apply({"params": params}, z, jnp.zeros(16)) ** 2)

        compiled = jax.jit(jax.grad(value)).lower(shapes, z).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    none, matmuls, least = (temporaries(remat) for remat in blocks.REMATS)
    assert matmuls < 0.5 * none
    assert least < 0.9 * matmuls
