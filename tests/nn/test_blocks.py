"""How the U-Net is computed changes its speed and its memory, and its values by rounding only."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vdm_jax.nn import convolution
from vdm_jax.nn.blocks import Compute, GroupNorm, ResidualBlock
from vdm_jax.nn.features import finish, fourier
from vdm_jax.nn.unet import UNet, to_published

ENDS = {"gamma_min": -13.3, "gamma_max": 5.0}
Z = jax.random.normal(jax.random.key(1), (3, 6, 4, 2))
GAMMA = jnp.linspace(-10.0, 4.0, 3)


def network(**changes):
    settings = {"channels": 64, "num_blocks": 2, "dropout": 0.2, "attention": "all"} | changes
    return UNet(**ENDS, **settings)


@pytest.fixture(scope="module")
def params():
    found = jax.jit(network().init)(jax.random.key(0), Z, GAMMA)["params"]
    rng = np.random.default_rng(7)
    return jax.tree.map(lambda x: x + 0.05 * rng.normal(size=x.shape).astype(np.float32), found)


@pytest.fixture(scope="module")
def plain(params):
    """Gradient and output of the network that keeps all and gives nothing up."""
    return with_gradient(params, remat="none")


def with_gradient(params, **changes):
    """The network's output with dropout, and the gradient of a function of it."""
    net = network(**changes)

    def value(params):
        rngs = {"dropout": jax.random.key(3)}
        found = net.apply({"params": params}, Z, GAMMA, None, False, rngs=rngs)
        return jnp.sum(jnp.sin(found)), found

    return jax.jit(jax.grad(value, has_aux=True))(params)


def difference(a, b):
    """Norm of a - b over that of b, over all leaves."""
    flat = [jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(t)]) for t in (a, b)]
    return float(jnp.linalg.norm(flat[0] - flat[1]) / jnp.linalg.norm(flat[1]))


def written_out(params, z_t, gamma_t):
    """The paper's U-Net block by block, with the published tree of parameters; no dropout."""
    p = to_published(params)

    def dense(tree, x):
        return nn.Dense(tree["kernel"].shape[-1], "bias" in tree).apply({"params": tree}, x)

    def conv(tree, x):
        return nn.Conv(tree["kernel"].shape[-1], (3, 3)).apply({"params": tree}, x)

    def norm(tree, x):
        return nn.GroupNorm(32, epsilon=1e-6).apply({"params": tree}, x)

    def block(tree, x):
        h = conv(tree["conv1"], nn.swish(norm(tree["GroupNorm_0"], x)))
        h = h + dense(tree["cond_proj"], given)[:, None, None, :]
        h = conv(tree["conv2"], nn.swish(norm(tree["GroupNorm_1"], h)))
        return h + (dense(tree["nin_shortcut"], x) if "nin_shortcut" in tree else x)

    def attend(tree, x):
        h = norm(tree["GroupNorm_0"], x)
        q, k, v = (dense(tree[name], h)[:, :, :, None] for name in "qkv")
        flat = [y.reshape(len(y), -1, 1, y.shape[-1]) for y in (q, k, v)]
        h = jax.nn.dot_product_attention(*flat).reshape(x.shape)
        return x + dense(tree["proj_out"], h)

    given = network().embed(gamma_t, None, 64)
    for name in ("dense0", "dense1"):
        given = nn.swish(dense(p[name], given))
    h = conv(p["conv_in"], jnp.concatenate([z_t, fourier(z_t)], axis=-1))
    skips = [h]
    for i in range(2):
        h = attend(p[f"down.attn_{i}"], block(p[f"down.block_{i}"], h))
        skips.append(h)
    h = block(p["mid.block_2"], attend(p["mid.attn_1"], block(p["mid.block_1"], h)))
    for i in range(3):
        h = block(p[f"up.block_{i}"], jnp.concatenate([h, skips.pop()], axis=-1))
        h = attend(p[f"up.attn_{i}"], h)
    h = conv(p["conv_out"], nn.swish(norm(p["GroupNorm_0"], h)))
    return finish(h, z_t, "eps")


def test_the_scanned_network_is_the_blocks_written_out(params):
    found = jax.jit(network().apply)({"params": params}, Z, GAMMA)
    expected = jax.jit(written_out)(params, Z, GAMMA)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert float(jnp.std(expected - Z)) > 0.1  # the blocks matter


@pytest.mark.parametrize("way", [{"remat": "blocks", "reverse_only": True}, {"written_out": True}])
def test_no_way_to_compute_changes_a_value_or_a_gradient(params, plain, way):
    gradient, value = with_gradient(params, **way)
    exact, expected = plain
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
    assert difference(gradient, exact) < 1e-5  # the same dropout included


@pytest.mark.parametrize(
    ("way", "times"),
    [({"remat": "none"}, 1), ({}, 1), ({"remat": "blocks"}, 2), ({"redraw": True}, 2)],
)
def test_dropout_is_drawn_once_unless_it_is_computed_anew(params, way, times):
    net = network(**way)

    def value(params):
        rngs = {"dropout": jax.random.key(3)}
        return net.apply({"params": params}, Z, GAMMA, None, False, rngs=rngs).sum()

    text = str(jax.make_jaxpr(jax.grad(value))(params))
    assert text.count("random_bits[") == times * 5  # a scanned layer each way, three in between


def test_forward_derivatives_are_there_unless_given_up(params):
    tangent = jax.random.normal(jax.random.key(5), Z.shape)

    def forward(f):
        return jax.jit(lambda z: jax.jvp(f, (z,), (tangent,))[1])(Z)

    def along(**changes):
        net = network(**changes)
        return forward(lambda z: net.apply({"params": params}, z, GAMMA))

    expected = forward(lambda z: written_out(params, z, GAMMA))
    assert difference(along(), expected) < 1e-4
    with pytest.raises(TypeError, match="forward-mode"):
        along(reverse_only=True)


def test_the_convolution_for_loops_has_the_gradients_of_the_plain_one(x64):
    batch, height, width, before, after = 2, 5, 7, 3, 4
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (batch, height, width, before))
    kernel = jax.random.normal(keys[1], (3, 3, before, after))
    given = jax.random.normal(keys[2], (batch, height, width, after))

    def plain(x, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)

    expected, pull = jax.vjp(plain, x, kernel)
    found, own_pull = jax.vjp(
        lambda x, k: convolution.convolution_for_loops(x, k, (1, 1), "SAME"), x, kernel
    )
    rtol = 1e-12
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=10 * rtol)
    for a, b in zip(own_pull(given), pull(given), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=10 * rtol)


def test_group_norm_is_flaxs(dtype):
    x = 3.0 + 2.0 * jax.random.normal(jax.random.key(0), (2, 5, 3, 64))
    params = {"scale": jnp.linspace(0.5, 2.0, 64), "bias": jnp.linspace(-1.0, 1.0, 64)}
    expected = nn.GroupNorm(32, epsilon=1e-6).apply({"params": params}, x)
    found = GroupNorm().apply({"params": params}, x)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    wide = GroupNorm().apply({"params": params}, x.astype(jnp.bfloat16))
    assert wide.dtype == dtype  # that of the parameters
    np.testing.assert_allclose(wide, expected, atol=0.05)


@pytest.mark.parametrize("packed", [False, True])
def test_dropout_leaves_the_mean_and_the_second_moment_that_it_should(packed):
    """Through a block whose second convolution hands its input on."""
    rate, width = 0.3, 64
    block = ResidualBlock(width, rate, Compute(packed=packed))
    x = jnp.zeros((8, 16, 16, width))
    params = block.init(jax.random.key(0), x, jnp.zeros((8, 4)), True)["params"]
    hand_on = params["conv2"]["kernel"].at[1, 1].set(jnp.eye(width))
    params = {**params, "conv2": {**params["conv2"], "kernel": hand_on}}
    params["GroupNorm_1"] = {**params["GroupNorm_1"], "bias": jnp.ones(width)}

    def run(deterministic, key):
        rngs = {"dropout": jax.random.key(key)}
        return block.apply({"params": params}, x, jnp.zeros((8, 4)), deterministic, rngs=rngs)

    whole = run(True, 0)
    value = float(whole[0, 0, 0, 0])
    np.testing.assert_allclose(whole, value, rtol=1e-6)
    assert value == pytest.approx(float(nn.swish(1.0)), rel=1e-5)
    dropped = np.asarray(run(False, 1), np.float64)
    share = np.mean(dropped == 0.0)
    error = np.sqrt(rate * (1 - rate) / dropped.size)
    assert abs(share - rate) < 5 * error
    np.testing.assert_allclose(dropped[dropped != 0.0], value / (1 - rate), rtol=1e-4)
    assert abs(dropped.mean() - value) < 5 * value * np.sqrt(rate / (1 - rate) / dropped.size)
    assert not np.array_equal(dropped, run(False, 2))
    # Of independent draws both of a pair are dropped at the rate's square; a quarter shares words.
    rows = (dropped == 0.0).reshape(8, 4, 4, 16, width)
    for i, j in itertools.combinations(range(4), 2):
        both = np.mean(rows[:, i] & rows[:, j])
        assert abs(both - rate**2) < 5 * np.sqrt(rate**2 * (1 - rate**2) / rows[:, i].size)


# ---- bfloat16 ----


def test_bfloat16_is_near_and_its_parameters_and_result_are_float32(params, plain):
    gradient, value = with_gradient(params, dtype="bfloat16", reverse_only=True)
    exact, expected = plain
    assert value.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
    init = network(dtype="bfloat16").init
    fresh = jax.eval_shape(lambda: init(jax.random.key(0), Z, GAMMA)["params"])
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}
    # A bfloat16 has 8 bits: 2^-9 relative for each rounding, some dozens of them in a row.
    off = difference(value, expected)
    assert 2**-14 < off < 0.02
    assert difference(gradient, exact) < 0.1


def test_bfloat16_blocks_are_computed_in_bfloat16_their_statistics_are_not():
    net = network(dtype="bfloat16")
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), Z, GAMMA)["params"])
    text = str(jax.make_jaxpr(lambda p: net.apply({"params": p}, Z, GAMMA))(shapes))
    convolutions = [line for line in text.splitlines() if "conv_general_dilated[" in line]
    assert len(convolutions) == 2 + 2 * 5  # the first and last; down, up and three in between
    narrow = [line for line in convolutions if ":bf16[" in line.split("=")[0]]
    assert len(narrow) == len(convolutions) - 2
    for operation in ("rsqrt", "exp ", "reduce_max"):
        lines = [line for line in text.splitlines() if f"= {operation}" in line]
        assert lines
        assert not any(":bf16[" in line.split("=")[0] for line in lines), operation


def test_what_no_one_computes_by_is_refused():
    for size, stride in ((5, 1), (3, 2)):
        kernel = jnp.zeros((size, size, 2, 2))
        with pytest.raises(ValueError, match="wanted a 3x3 kernel and stride 1"):
            convolution.convolution_for_loops(Z, kernel, (stride, stride), "SAME")
    assert Compute(dtype="bfloat16").cast(Z).dtype == jnp.bfloat16
    assert Compute().cast(Z) is Z
