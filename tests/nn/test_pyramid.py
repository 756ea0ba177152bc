"""The U-Net of several resolutions. (What all denoisers have in common: test_networks.)"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_networks import ENDS, drawn, inputs, run

from vdm_jax.nn import pyramid
from vdm_jax.nn.pyramid import Pyramid


def small(**changes):
    given = {"channels": 8, "multipliers": (1, 2), "blocks": (1, 1), "fourier_features": False}
    return Pyramid(**ENDS, dropout=0.0, **given | changes)


def gradients(network, params, z_t, gamma_t):
    """Of sum(weights * prediction), for parameters and latents, as a function of the weights."""

    def of(params, z_t):
        return network.apply({"params": params}, z_t, gamma_t)

    return jax.jit(lambda weights: jax.vjp(of, params, z_t)[1](weights))


def test_from_space_to_depth_and_back_nothing_moves():
    h = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    deep = pyramid._space_to_depth(h)
    assert deep.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(deep[1, 1, 2].reshape(2, 2, 3), h[1, 2:4, 4:6])
    np.testing.assert_array_equal(pyramid._depth_to_space(deep), h)


def test_every_parameter_is_in_use_and_every_pixel_sees_the_whole_image():
    """The latter by attention at the lowest of three resolutions, from corner to corner."""
    network = small(multipliers=(1, 2, 2), blocks=(1, 1, 1))
    z_t, gamma_t = inputs((2, 8, 8, 1))
    of = gradients(network, drawn(network, z_t, gamma_t), z_t, gamma_t)
    corner = np.zeros_like(z_t)
    corner[0, 0, 0, 0] = 1.0
    _, slope = of(corner)
    assert np.all(np.abs(slope[0]) > 0.0) and np.all(slope[1] == 0.0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(of(np.ones_like(z_t))[0]):
        assert np.any(leaf != 0.0), jax.tree_util.keystr(path)


def test_rematerialisation_changes_no_gradient():
    sizes = {"multipliers": (1,), "blocks": (1,), "contrasts": (), "on_levels": False}
    z_t, gamma_t = inputs((2, 4, 4, 1))
    params = drawn(small(**sizes), z_t, gamma_t)
    wanted, *found = (
        jax.tree.leaves(gradients(small(**sizes, remat=remat), params, z_t, gamma_t)(z_t))
        for remat in ("none", "matmuls", "blocks")
    )
    for each in found:
        for one, other in zip(each, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_forward_derivatives_are_those_of_finite_differences():
    """As the probability-flow ODE takes them."""
    network = small()
    z_t, gamma_t = inputs((1, 4, 4, 1))
    params = drawn(network, z_t, gamma_t)
    direction, h = np.random.default_rng(3).normal(size=z_t.shape), 1e-6
    with jax.enable_x64(True):
        params, z_t, gamma_t = jax.tree.map(lambda x: jnp.asarray(x, float), (params, z_t, gamma_t))

        @jax.jit
        def both(z_t):
            call = lambda z: network.apply({"params": params}, z, gamma_t)  # noqa: E731
            return jax.jvp(call, (z_t,), (direction,))

        after, before = (both(z_t + by * direction)[0] for by in (h, -h))
        numeric = (after - before) / (2 * h)
        np.testing.assert_allclose(both(z_t)[1], numeric, rtol=1e-5, atol=1e-7)


def test_bfloat16_is_near_float32():
    z_t, gamma_t = inputs((2, 8, 8, 3))
    params = drawn(small(), z_t, gamma_t)
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
