"""The U-Net of several resolutions. (What all denoisers have in common: test_networks.)"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_networks import ENDS, initialised, run

from vdm_jax.nn import pyramid
from vdm_jax.nn.pyramid import Pyramid


def small(**changes):
    given = {"channels": 8, "multipliers": (1, 2), "blocks": (1, 1), "fourier_features": False}
    return Pyramid(**ENDS, dropout=0.0, **given | changes)


def test_from_space_to_depth_and_back_nothing_moves():
    h = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    deep = pyramid._space_to_depth(h)
    assert deep.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(deep[1, 1, 2].reshape(2, 2, 3), h[1, 2:4, 4:6])
    np.testing.assert_array_equal(pyramid._depth_to_space(deep), h)


def test_every_pixel_sees_the_whole_image_through_the_lowest_resolution():
    """Attention there: the gradient of one corner's output reaches the opposite corner's input."""
    network = small()
    params, z_t, gamma_t = initialised(network, (1, 16, 16, 1))

    def corner(z_t):
        return network.apply({"params": params}, z_t, gamma_t)[0, 0, 0, 0]

    assert np.all(np.abs(jax.jit(jax.grad(corner))(z_t)) > 0.0)


def test_every_parameter_is_in_use():
    network = small(multipliers=(1, 2, 3), blocks=(1, 2, 1))
    params, z_t, gamma_t = initialised(network, (2, 8, 8, 1))
    of = jax.jit(jax.grad(lambda p: jnp.sum(network.apply({"params": p}, z_t, gamma_t) ** 2)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(of(params)):
        assert np.any(leaf != 0.0), jax.tree_util.keystr(path)


@pytest.mark.parametrize("remat", ["matmuls", "blocks"])
def test_rematerialisation_changes_no_gradient(remat):
    params, z_t, gamma_t = initialised(small(), (2, 8, 8, 1))

    def gradient(network):
        def loss(p):
            return jnp.mean(network.apply({"params": p}, z_t, gamma_t) ** 2)

        return jax.jit(jax.grad(loss))(params)

    found = jax.tree.leaves(gradient(small(remat=remat)))
    for one, other in zip(jax.tree.leaves(gradient(small())), found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_forward_derivatives_are_those_of_finite_differences():
    """As the probability-flow ODE takes them."""
    network = small()
    params, z_t, gamma_t = initialised(network, (1, 4, 4, 1))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, float), (params, z_t, gamma_t))
        params, z_t, gamma_t = wide
        direction = jax.random.normal(jax.random.key(3), z_t.shape, float)
        call = jax.jit(lambda z: network.apply({"params": params}, z, gamma_t))
        _, tangent = jax.jvp(call, (z_t,), (direction,))
        h = 1e-5
        numeric = (call(z_t + h * direction) - call(z_t - h * direction)) / (2 * h)
        np.testing.assert_allclose(tangent, numeric, rtol=1e-5, atol=1e-7)


def test_bfloat16_is_near_float32():
    params, z_t, gamma_t = initialised(small(), (2, 8, 8, 3))
    narrow = run(small(dtype="bfloat16"), params, z_t, gamma_t)
    wide = run(small(), params, z_t, gamma_t)
    assert narrow.dtype == jnp.float32
    assert 0.0 < float(jnp.std(narrow - wide)) < 0.03 * float(jnp.std(wide))


@pytest.mark.parametrize(
    ("changes", "shape", "message"),
    [
        ({}, (1, 8), r"Pyramid wants \[batch, height, width, channels\], got \(1, 8\)"),
        ({}, (1, 8, 7, 1), "must be multiples of 2 for a Pyramid of 2 resolutions, got 8x7"),
        ({"channels": 12}, (1, 8, 8, 1), "channels must be a multiple of 8, got 12"),
        ({"blocks": (1,)}, (1, 8, 8, 1), "a number of blocks for each resolution, got 1 for 2"),
        ({"head": "v"}, (1, 8, 8, 1), "contrasts and on_levels are for the head .eps., got .v."),
        ({"attention": "none"}, (1, 8, 8, 1), "attention must be one of middle, all, got 'none'"),
        ({"dtype": "float16"}, (1, 8, 8, 1), "dtype must be one of float32, bfloat16"),
        ({"remat": "all"}, (1, 8, 8, 1), "remat must be one of none, matmuls, blocks"),
    ],
)
def test_wrong_arguments_are_named(changes, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(small(**changes).init, jax.random.key(0), jnp.zeros(shape), jnp.zeros(1))
