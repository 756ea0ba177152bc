"""The conditionals of a hierarchical VAE: what is fixed is known, what is learned is bounded."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.gaussian import Gaussian
from vdm_jax.nn.vae import HierarchicalVAE

SHAPE, DEPTH, SIZE = (2, 3, 1), 3, 4
DIMS = 6
SWITCHES = ("data_size", "fixed_encoder", "ends_at_normal")
X = np.random.default_rng(0).uniform(-1, 1, (5, *SHAPE)).astype(np.float32)


def make(depth=DEPTH, **switches):
    """A network, its parameters away from their start, and its conditionals."""
    network = HierarchicalVAE(SHAPE, depth, SIZE, width=16, **switches)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *SHAPE)))
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda of: rng.normal(size=of.shape).astype(np.float32), shapes.get("params", {})
    )

    def call(method, *args):
        return applied(network, method, *args[:-1])(params, args[-1])

    return network, params, call


@functools.cache
def applied(network, method, *level):
    """One conditional, compiled, as a function of the parameters and a latent."""
    call = functools.partial(network.apply, method=method)
    return jax.jit(lambda params, z: call({"params": params}, *level, z, True))


def alpha_bar(gamma):
    return 1 / (1 + np.exp(np.float64(gamma)))


def gammas(network):
    end = 5.0 if network.ends_at_normal else 0.0
    return np.linspace(-8.0, end, network.depth) if network.depth > 1 else np.array([end])


def through(call, depth, x):
    """Mean and variance of q(z_i|x), i = 1, ..., depth, where all encoders are linear."""
    mean, var = x, 0.0
    for i in range(depth):
        q = call("encode", i, mean)
        zero = call("encode", i, jnp.zeros_like(mean))
        gain = float(np.linalg.norm(q.mean - zero.mean) / np.linalg.norm(mean)) if i else None
        mean, var = q.mean, q.var + (0.0 if i == 0 else gain**2 * var)
        yield np.asarray(mean), np.asarray(var)


@pytest.mark.parametrize(("data_size", "ends"), [(False, True), (True, False)])
def test_fixed_encoders_are_a_diffusion_of_the_projected_data(data_size, ends):
    """From level to level they make q(z_i|x) = N(alpha_i P x, sigma_i^2), the marginals."""
    network, params, call = make(data_size=data_size, fixed_encoder=True, ends_at_normal=ends)
    assert not [name for name in params if "encode" in name]
    # What the first encoder does to the basis, without its factor: columns of length 1.
    basis = np.eye(DIMS, dtype=np.float32).reshape(DIMS, *SHAPE)
    first = gammas(network)[0]
    matrix = np.asarray(call("encode", 0, basis).mean) / np.sqrt(alpha_bar(first))
    if data_size:
        np.testing.assert_allclose(matrix, np.eye(DIMS), atol=1e-6)
    else:
        assert matrix.shape == (DIMS, SIZE)
        np.testing.assert_allclose(matrix.T @ matrix, np.eye(SIZE), atol=1e-5)
        # One and the same for every model.
        again = HierarchicalVAE(SHAPE, 1, SIZE, fixed_encoder=True, width=8)
        variables = again.init(jax.random.key(9), jnp.zeros((1, *SHAPE)))
        other = again.apply(variables, basis, 0, True, method=lambda m, z, i, d: m.encode(i, z, d))
        np.testing.assert_allclose(other.mean * np.sqrt(2.0), matrix, atol=1e-6)
    projected = X.reshape(len(X), -1) @ matrix
    for (mean, var), gamma in zip(through(call, DEPTH, X), gammas(network), strict=True):
        np.testing.assert_allclose(mean, np.sqrt(alpha_bar(gamma)) * projected, atol=2e-6)
        np.testing.assert_allclose(var, 1 - alpha_bar(gamma), rtol=1e-5)


@pytest.mark.parametrize(("depth", "data_size"), [(1, False), (3, True)])
def test_learned_encoders_that_end_at_the_normal_can_not_keep_much_whatever_their_weights(
    depth, data_size
):
    """A mean m within [-1, 1] at alpha^2 = a costs (a m^2 - a - log(1-a)) / 2 <= -log(1-a) / 2.

    a = alpha_bar(gamma_max), however deep the chain.
    """
    network, params, call = make(depth, data_size=data_size, ends_at_normal=True)
    share = alpha_bar(gammas(network))[-1]
    most = -0.5 * np.log1p(-share) * network.size
    for scale in (1.0, 100.0):  # the second in the flat part of the bound on the mean
        wild = jax.tree.map(lambda w, s=scale: s * w, params)
        z = 30.0 * jax.random.normal(jax.random.key(2), (50, network.size if depth > 1 else DIMS))
        z = z if depth > 1 else z.reshape(-1, *SHAPE)
        q = applied(network, "encode", depth - 1)(wild, z)
        kl = q.kl(Gaussian(0.0, 1.0)).sum(-1)
        assert np.all(kl <= most * (1 + 1e-4)) and np.all(kl > 0)
        np.testing.assert_allclose(q.var, 1 - share, rtol=1e-5)
    assert kl.max() > 0.3 * most  # the bound is not out of reach
    # Without the restriction nothing keeps the last latent near the normal.
    network, params, call = make(depth, data_size=data_size)
    assert call("encode", depth - 1, z).kl(Gaussian(0.0, 1.0)).sum(-1).max() > 10 * most


@pytest.mark.parametrize(
    "switches",
    [(False, False, False), (True, False, True), (False, True, True), (True, True, False)],
)
def test_every_parameter_is_in_use_and_every_conditional_learns(switches):
    """The gradient of all conditionals' means and variances reaches each parameter."""
    network, params, _ = make(**dict(zip(SWITCHES, switches, strict=True)))

    def out(params):
        def call(method, *args):
            return network.apply({"params": params}, *args, True, method=method)

        z = jnp.ones((2, network.size))
        found = [call("encode", i, X[:2] if i == 0 else z) for i in range(DEPTH)]
        found += [call("decode", i, z) for i in range(DEPTH - 1)] + [call("pixels", z)]
        return sum(jnp.sum(jnp.sin(q.mean)) + jnp.sum(jnp.log(q.var)) for q in found)

    for path, slope in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(out))(params)):
        assert np.any(slope != 0), jax.tree_util.keystr(path)


def test_variances_stay_within_their_limits_however_large_the_weights():
    network, params, _ = make()
    wild = jax.tree.map(lambda w: 1e6 * w, params)
    for method, args in (("encode", (0, X)), ("pixels", (jnp.ones((2, SIZE)),))):
        q = applied(network, method, *args[:-1])(wild, args[-1])
        assert np.all(np.isfinite(q.mean))
        assert np.all((q.var >= np.exp(-8.001)) & (q.var <= np.exp(8.001)))


def test_dropout_is_on_only_when_asked_for():
    network, params, call = make()

    @jax.jit
    def noisy(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return network.apply({"params": params}, 0, X, False, method="encode", rngs=rngs).mean

    quiet = call("encode", 0, X).mean
    assert np.any(noisy(0) != quiet) and np.any(noisy(0) != noisy(1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latent_size": 7, "fixed_encoder": True}, "latent_size is 7, but x has 6 elements"),
        ({"gamma_min": 6.0, "ends_at_normal": True}, r"from gamma_min \(6.0\) up to 5.0"),
        ({"gamma_min": 0.0, "fixed_encoder": True}, r"from gamma_min \(0.0\) up to 0.0"),
    ],
)
def test_what_can_not_be_is_refused(settings, message):
    network = HierarchicalVAE(SHAPE, 2, **{"latent_size": SIZE, **settings})
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *SHAPE)))
