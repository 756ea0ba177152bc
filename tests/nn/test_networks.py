"""The networks and their heads. (That the U-Net is the paper's: test_published.)"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import pixels
from vdm_jax.nn import features
from vdm_jax.nn.small import MLP, ResNet, SmoothMLP
from vdm_jax.nn.unet import UNet

ENDS = {"gamma_min": -13.3, "gamma_max": 5.0}


SIZES = {
    UNet: {"channels": 32, "num_blocks": 0},
    MLP: {"width": 32, "num_blocks": 1},
    ResNet: {"channels": 4, "num_blocks": 1},
}


def small(network, **changes):
    return network(**(ENDS | SIZES[network] | changes))


def shaken(params, scale=0.05):
    """Zero-initialised layers made to matter."""
    rng = np.random.default_rng(7)
    return jax.tree.map(lambda x: x + scale * rng.normal(size=x.shape).astype(np.float32), params)


def start(network, *args):
    """Initial parameters, compiled as one program: op by op it takes several times as long."""
    return jax.jit(network.init)(jax.random.key(0), *args)["params"]


def drawn(network, *args):
    """Parameters of which none is zero, in kernels of the variance that they begin with."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), *args)["params"]
    rng = np.random.default_rng(7)

    def draw(of):
        spread = math.prod(of.shape[:-1]) ** -0.5
        return (spread * rng.normal(size=of.shape)).astype(np.float32)

    return jax.tree.map(draw, shapes)


@functools.cache
def applied(network):
    return jax.jit(lambda params, *args: network.apply({"params": params}, *args))


def run(network, params, *args):
    return applied(network)(params, *args)


def inputs(shape):
    rng = np.random.default_rng(1)
    return rng.normal(size=shape).astype(np.float32), jnp.linspace(-10.0, 4.0, shape[0])


# ---- features ----


def test_fourier_features_are_sines_and_cosines_of_powers_of_two():
    z = jnp.array([[0.1, -0.3]])
    got = features.fourier(z, (6, 7))
    angles = 2 * np.pi * np.array([64 * 0.1, 128 * 0.1, 64 * -0.3, 128 * -0.3])
    np.testing.assert_allclose(got[0], [*np.sin(angles), *np.cos(angles)], atol=1e-4)


def test_fourier_periods_are_one_bin_and_two_bins_of_a_pixel():
    levels = 17
    exponents = features.fourier_exponents(levels)
    x = pixels.level_values(levels)[:, None]
    waves = np.asarray(features.fourier(x, exponents))
    # The faster wave is the same at every level; the slower changes its sign from each to the next.
    np.testing.assert_allclose(waves[:, 1], waves[0, 1], atol=5e-4)
    np.testing.assert_allclose(waves[:, 3], waves[0, 3], atol=5e-4)
    np.testing.assert_allclose(waves[1:, [0, 2]], -waves[:-1, [0, 2]], atol=5e-4)
    assert features.fourier_exponents(256) == (6.0, 7.0)


def test_the_time_embedding_has_unit_pairs_and_tells_times_apart():
    size = 7
    t = jnp.linspace(0.0, 1.0, 9)
    got = np.asarray(features.sinusoidal(t, size))
    half = size // 2
    np.testing.assert_allclose(got[:, :half] ** 2 + got[:, half : 2 * half] ** 2, 1.0, atol=1e-5)
    np.testing.assert_allclose(got[:, 0], np.sin(1000 * np.asarray(t)), atol=1e-4)
    np.testing.assert_allclose(got[:, half - 1], np.sin(0.1 * np.asarray(t)), atol=1e-5)
    assert np.all(got[:, 2 * half :] == 0) and got.shape == (9, size)


# ---- the head over levels ----

posterior_mean = jax.jit(features.posterior_mean)


def test_the_posterior_mean_is_bayes_rule_over_the_levels():
    levels = 5
    key = jax.random.key(3)
    logits = jax.random.normal(key, (2, 3, levels))
    z_t = jax.random.normal(jax.random.key(4), (2, 3))
    gamma_t = jnp.array([-3.0, 1.0])
    got = posterior_mean(logits, z_t, gamma_t)
    x = (2 * np.arange(levels) + 1) / levels - 1
    alpha = np.sqrt(1 / (1 + np.exp(np.asarray(gamma_t, float))))[:, None, None]
    var = 1 - alpha**2
    density = np.exp(-0.5 * (np.asarray(z_t, float)[..., None] - alpha * x) ** 2 / var)
    weight = np.exp(np.asarray(logits, float)) * density
    np.testing.assert_allclose(got, (weight * x).sum(-1) / weight.sum(-1), rtol=1e-4, atol=1e-5)


def test_the_level_head_stays_within_the_pixel_range_and_starts_at_the_flat_posterior():
    levels = 17
    module = small(MLP, head="levels", levels=levels)
    z_t = 3.0 * jax.random.normal(jax.random.key(1), (2, 5, 6, 1))
    gamma_t = jnp.array([-8.0, 3.0])
    params = start(module, z_t, gamma_t)
    flat = posterior_mean(jnp.zeros((*z_t.shape, levels)), z_t, gamma_t)
    np.testing.assert_allclose(run(module, params, z_t, gamma_t), flat, atol=1e-5)
    x_hat = run(module, shaken(params, 1.0), z_t, gamma_t)
    assert np.abs(x_hat).max() <= 1 - 1 / levels + 1e-6


def test_the_residual_network_starts_at_the_posterior_under_its_learned_prior():
    net = small(ResNet, head="levels", levels=3)
    z_t, gamma_t = jax.random.normal(jax.random.key(1), (2, 3, 3, 1)), jnp.array([-1.0, 2.0])
    prior = jax.random.normal(jax.random.key(2), (3, 3, 1, 3))
    params = {**start(net, z_t, gamma_t), "bias": prior}  # the last layer is zero to begin with
    expected = posterior_mean(jnp.broadcast_to(prior, (2, *prior.shape)), z_t, gamma_t)
    np.testing.assert_allclose(run(net, params, z_t, gamma_t), expected, rtol=1e-5, atol=1e-6)


# ---- the networks ----


def test_the_unet_takes_any_image_size_and_channel_count():
    network, shape = small(UNet), (2, 5, 3, 1)
    z_t, gamma_t = inputs(shape)
    params = drawn(network, z_t, gamma_t)
    # Every input pixel reaches the output through attention, whatever the size.
    first = jax.jit(jax.grad(lambda z: network.apply({"params": params}, z, gamma_t)[0, 0, 0, 0]))
    grad = first(z_t)
    assert grad.shape == shape
    assert np.all(np.abs(grad[0]) > 0) and np.all(grad[1:] == 0)


@pytest.mark.parametrize(
    "network", [small(UNet, channels=64, dropout=0.5), small(MLP, dropout=0.5)]
)
def test_gamma_conditioning_and_dropout_matter(network):
    z_t, gamma_t = inputs((2, 4, 4, 1))
    params, zeros = drawn(network, z_t, gamma_t), jnp.zeros(2)

    @jax.jit
    def of(gamma, flag=zeros, seed=0):
        rngs = {"dropout": jax.random.key(seed)}
        return network.apply({"params": params}, z_t, gamma, flag, False, rngs=rngs)

    out = of(gamma_t)
    assert np.abs(out - of(gamma_t + 1.0)).max() > 1e-4
    changed = of(gamma_t, jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(changed[0], out[0], atol=1e-6)
    assert np.abs(changed[1] - out[1]).max() > 1e-4
    assert np.abs(of(gamma_t, seed=1) - out).max() > 1e-4


def test_without_conditioning_it_is_zero_and_without_asking_nothing_is_dropped():
    plain, dropping = small(MLP), small(MLP, dropout=0.5)
    z_t, gamma_t = inputs((2, 4, 4, 1))
    params = drawn(plain, z_t, gamma_t)
    out = run(plain, params, z_t, gamma_t, jnp.zeros(2))
    np.testing.assert_allclose(run(dropping, params, z_t, gamma_t), out, rtol=1e-4, atol=1e-6)


def test_the_mlp_takes_vectors_and_images():
    shape = (3, 2, 3, 3)
    network = small(MLP)
    z_t, gamma_t = inputs(shape)
    params = drawn(network, z_t, gamma_t)
    out = run(network, params, z_t, gamma_t)
    assert out.shape == shape
    flat = run(network, params, z_t.reshape(3, -1), gamma_t)
    np.testing.assert_allclose(out.reshape(3, -1), flat, atol=1e-5)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="at least 4 features, got 3"):
        features.sinusoidal(jnp.zeros(2), 3)
    z_t, gamma_t, key = jnp.zeros((1, 4, 4, 1)), jnp.zeros(1), jax.random.key(0)
    for network, z, message in (
        (
            small(UNet, dtype="float16"),
            z_t,
            "dtype must be one of float32, .*, got 'float16'",
        ),
        (small(UNet, remat="all"), z_t, "remat must be one of none, matmuls, blocks, got 'all'"),
        (small(UNet, attention="none"), z_t, "attention must be one of middle, all, got 'none'"),
        (small(UNet, channels=48), z_t, "multiple of 32, got 48"),
        (small(UNet), jnp.zeros((1, 16)), r"wants \[batch, height, width, channels\]"),
        (small(MLP, head="odds"), z_t, "MLP head must be one of eps, x, .*, got 'odds'"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(network.init, key, z, gamma_t)


@pytest.mark.parametrize(
    ("network", "head"),
    [(MLP, head) for head in ("eps", "x", "v", "score", "logits")]
    + [(UNet, "score"), (ResNet, "logits")],
)
def test_heads_predict_their_kind(network, head):
    """A head starts at z_t (eps, x), 0 (v, logits) or -z_t (score), whatever the features are."""
    net = small(network, head=head, levels=16, fourier_features=True)
    z_t, gamma_t = inputs((3, 4, 4, 1))
    got, _ = jax.jit(net.init_with_output)(jax.random.key(0), z_t, gamma_t)
    begins = {"v": 0.0, "score": -1.0, "logits": 0.0}
    np.testing.assert_array_equal(got, begins.get(head, 1.0) * z_t)
    if head != "logits":  # those of a bit, which are no prediction of z's
        assert features.head_kind(head) == head and features.head_kind("levels") == "x"
        return
    with pytest.raises(ValueError, match="'logits' is for binomial diffusion only"):
        features.head_kind(head)


# ---- the share of the reverse variance ----


@pytest.mark.parametrize(
    ("network", "head"), [(UNet, "levels"), (MLP, "score"), (ResNet, "levels")]
)
def test_the_learned_variance_leaves_the_prediction_as_it_is_and_starts_half_way(network, head):
    plain, learned = (
        small(network, head=head, levels=4, learn_variance=flag) for flag in (False, True)
    )
    z_t, gamma_t = inputs((2, 4, 4, 3))
    without = jax.eval_shape(plain.init, jax.random.key(0), z_t, gamma_t)["params"]
    params = start(learned, z_t, gamma_t)
    assert params.keys() - without.keys() == {"variance"}
    if network is MLP:
        same = {name: params[name] for name in without}
        jax.tree.map(np.testing.assert_array_equal, same, start(plain, z_t, gamma_t))

    _, share = run(learned, params, z_t, gamma_t)
    np.testing.assert_array_equal(share, np.full(z_t.shape, 0.5))
    params = shaken(params, 0.3)
    same = {name: params[name] for name in without}
    prediction, share = run(learned, params, z_t, gamma_t)
    np.testing.assert_allclose(prediction, run(plain, same, z_t, gamma_t), rtol=1e-5, atol=1e-6)
    assert share.shape == z_t.shape
    assert np.all((share > 0.0) & (share < 1.0))
    assert np.std(share, axis=(1, 2, 3)).min() > 1e-3  # of each element its own


@pytest.mark.parametrize("network", [MLP, ResNet])
def test_fourier_features_let_a_small_network_see_the_last_bit(network):
    """Two latents half a bin apart: without the features their embeddings are nearly the same."""

    def response(fourier_features):
        net = small(network, levels=256, fourier_features=fourier_features)
        z_t = np.stack([np.full((4, 4, 1), x, np.float32) for x in (0.25, 0.25 + 1 / 256)])
        a, b = run(net, drawn(net, z_t, jnp.zeros(2)), z_t, jnp.zeros(2)) - z_t
        return np.abs(a - b).max()

    assert response(True) > 10 * response(False)


def test_conditioning_may_be_several_numbers():
    net, (z_t, _), gamma_t = small(MLP), inputs((1, 4, 4, 1)), jnp.zeros(2)
    z_t = np.repeat(z_t, 2, axis=0)
    classes = jnp.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    params = drawn(net, z_t, gamma_t, classes)
    a, b = run(net, params, z_t, gamma_t, classes)
    assert np.abs(a - b).max() > 1e-3


def test_the_smooth_mlp_starts_at_zero_and_has_no_fast_turns_in_time():
    network = SmoothMLP(width=32, num_blocks=2, frequencies=3)
    z, t = jax.random.normal(jax.random.key(1), (64, 2)), jnp.full(64, 0.3)
    params = start(network, z, t)
    np.testing.assert_array_equal(run(network, params, z, t), 0.0)
    params = shaken(params, 0.3)
    out, alone = run(network, params, z, t), run(network, params, z[5:6], t[5:6])
    np.testing.assert_allclose(out[5:6], alone, rtol=1e-5, atol=1e-5)
    # Between t and t + 1/300 `MLP`'s fastest sine makes half a turn.
    close, far = (run(network, params, z, t + by) - out for by in (1 / 300, 0.5))
    assert np.sqrt(np.mean(far**2)) > 20 * np.sqrt(np.mean(close**2)) > 0.0
