"""`make_model`: what the settings make is what they say, and every kind of model can be trained."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import gauss_hermite

from vdm_jax import pixels
from vdm_jax.run import defaults as base
from vdm_jax.run.models import make_model
from vdm_jax.train import optimizer, step
from vdm_jax.train.model import NATS

SHAPE, LEVELS = (2, 1, 1), 4
SWITCHES = ("data_size", "fixed_encoder", "ends_at_normal")


def config(hierarchy=None, **model):
    """A perceptron of a few hundred weights."""
    made = base.get_config()
    made.model.update(
        network="mlp", channels=16, num_blocks=1, fourier_features=False, gamma="fixed",
        gamma_min=-4.0, gamma_max=3.0, dropout=0.0,
    )  # fmt: skip
    made.model.update(model)
    made.hierarchy.update(hierarchy or {})
    if made.hierarchy.depth and not made.hierarchy.ends_at_normal:
        made.model.gamma_max = 5.0  # the default: nothing reads it
    return made


def batch(images):
    return {"images": jnp.asarray(images), "conditioning": jnp.zeros(len(images))}


def disturbed(model, seed=0, scale=0.3):
    """Parameters away from their start, where last layers are zero."""
    params = model.init(jax.random.key(seed))
    keys = iter(jax.random.split(jax.random.key(seed + 1), 100))
    return jax.tree.map(lambda w: w + scale * jax.random.normal(next(keys), w.shape), params)


def mean_total(model, params, image, count=100_000):
    """Mean of the bound of one image over draws, and its error: nats."""
    many = batch(np.broadcast_to(image, (count, *SHAPE)))
    total = jax.jit(model.terms)(params, many, jax.random.key(3)).total
    total = np.asarray(total, np.float64)
    return total.mean(), total.std(ddof=1) / np.sqrt(count)


ALL = dict.fromkeys(SWITCHES, True)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"head": "v", "gamma": "monotone"},
        {"head": "levels", "gamma": "scalar", "reverse_var": "transition"},
        {"reverse_var": "learned"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())) or "plain",
)
def test_with_all_restrictions_a_hierarchy_is_the_vdm_of_as_many_steps(settings):
    """The same parameters, and in expectation the same bound: T + 1 latents and T steps."""
    num_steps, image = 3, np.array([1, 3], np.uint8).reshape(SHAPE)
    chain = make_model(config({"depth": num_steps + 1, **ALL}, **settings), SHAPE, LEVELS)
    vdm = make_model(config(num_steps=num_steps, **settings), SHAPE, LEVELS)
    params = disturbed(vdm)
    assert jax.tree.structure(params) == jax.tree.structure(chain.init(jax.random.key(0)))
    jax.tree.map(
        np.testing.assert_array_equal, vdm.init(jax.random.key(4)), chain.init(jax.random.key(4))
    )
    assert chain.unit is vdm.unit and f"T = {num_steps}" in chain.words
    (a, error_a), (b, error_b) = (mean_total(model, params, image) for model in (chain, vdm))
    assert abs(a - b) < 5 * np.hypot(error_a, error_b) < 0.4
    assert 5 * error_b < 0.05 * b


def test_without_the_last_restriction_it_is_the_vdm_that_ends_at_gamma_zero():
    image = np.array([0, 2], np.uint8).reshape(SHAPE)
    restricted = {"depth": 4, "data_size": True, "fixed_encoder": True}
    chain = make_model(config(restricted), SHAPE, LEVELS)
    short, full = (
        make_model(config(num_steps=3, gamma_max=end), SHAPE, LEVELS) for end in (0.0, 3.0)
    )
    params = disturbed(short)
    (a, error_a), (b, error_b), (c, _) = (
        mean_total(model, params, image) for model in (chain, short, full)
    )
    assert abs(a - b) < 5 * np.hypot(error_a, error_b) < 0.4
    assert abs(a - c) > 1.0 and "VDM" not in chain.words


@pytest.mark.parametrize("switches", list(itertools.product((False, True), repeat=3)))
def test_each_combination_has_a_finite_bound_learns_and_samples_levels(switches):
    named = dict(zip(SWITCHES, switches, strict=True))
    # A VDM of one step would cost too much to be seen to learn.
    depth = 3 if named["data_size"] and named["fixed_encoder"] else 2
    size = {} if named["data_size"] else {"latent_size": 2}
    c = config({"depth": depth, **size, **named}, dropout=0.1)
    model = make_model(c, SHAPE, LEVELS)
    assert jax.tree.leaves(model.init(jax.random.key(0)))
    # Two kinds of images, of sixteen.
    images = np.array([[0, 3], [3, 0]], np.uint8)[np.arange(64) % 2].reshape(-1, *SHAPE)
    adamw = optimizer.make(1e-2)
    state = step.init_state(model, adamw, jax.random.key(0))

    @jax.jit
    def trained(state):
        def one(state, _):
            return step.update(state, batch(images), model, adamw, 0.9, jax.random.key(1))

        return jax.lax.scan(one, state, length=150)

    params = state.params
    state, metrics = trained(state)
    assert np.all(np.isfinite(metrics["bpd"]))
    first, last = np.mean(metrics["bpd"][:5]), np.mean(metrics["bpd"][-20:])
    # With nothing fixed a hierarchy at first makes no use of its latents: 2 bits are the uniform's.
    assert last < (0.8 if named["fixed_encoder"] or named["ends_at_normal"] else 0.93) * first
    np.testing.assert_allclose(
        metrics["bpd"], metrics["reconstruction"] + metrics["prior"] + metrics["diffusion"],
        rtol=1e-4,
    )  # fmt: skip
    moved = jax.tree.map(lambda a, b: np.any(a != b), params, state.params)
    assert all(jax.tree.leaves(moved))
    made = np.asarray(jax.jit(model.sample, static_argnums=3)(
        state.ema_params, jax.random.key(2), jnp.zeros(200), 5
    ))  # fmt: skip
    assert made.shape == (200, *SHAPE) and np.issubdtype(made.dtype, np.integer)
    assert made.min() >= 0 and made.max() < LEVELS and made.std() > 0.3


@pytest.mark.parametrize("depth", [1, 2])
def test_the_bound_of_a_vae_is_above_the_log_probability_by_quadrature(depth):
    """Latents of one number: p(x) and, of one latent, the bound too are integrals over a line."""
    model = make_model(config({"depth": depth, "latent_size": 1}), SHAPE, LEVELS)
    params = disturbed(model)
    of = model.bind(params, jnp.zeros(1), None)
    nodes, weights = gauss_hermite(60)

    def log_likelihood(image, z):
        p = of.likelihood(z)
        each = pixels.log_prob(
            jnp.broadcast_to(image, p.mean.shape), p.mean, jnp.log(p.var), LEVELS
        )
        return np.asarray(each.sum((1, 2, 3)), np.float64)

    # Nodes and weights of p(z_1): the prior, or the decoder's Gaussians from each node of z_2.
    z, w = nodes[:, None], weights
    if depth == 2:
        p = of.decoders[0](jnp.asarray(z))
        z = (p.mean + jnp.sqrt(p.var) * nodes).reshape(-1, 1)
        w = np.outer(w, weights).ravel()
    total = 0.0
    every = list(itertools.product(range(LEVELS), repeat=2))
    for values in every:
        image = np.array(values, np.uint8).reshape(SHAPE)
        p_x = w @ np.exp(log_likelihood(image, jnp.asarray(z, jnp.float32)))
        total += p_x
        if values not in ((0, 0), (1, 3)):
            continue
        bound, error = mean_total(model, params, image)
        assert bound - 5 * error > -np.log(p_x)
        assert 5 * error < 0.1 * bound
        if depth == 1:
            q = of.encoders[0](pixels.encode(image[None], LEVELS))
            at = (q.mean + jnp.sqrt(q.var) * nodes).reshape(-1, 1)
            m, v = float(q.mean[0, 0]), float(q.var[0, 0])
            exact = -weights @ log_likelihood(image, at) + 0.5 * (v + m**2 - 1 - np.log(v))
            assert abs(bound - exact) < 5 * error
    np.testing.assert_allclose(total, 1.0, rtol=1e-4)  # a probability


def test_a_density_is_that_of_continuous_data_in_nats():
    """Of integers as of the x they encode; each scaled, the nats differ by no constant."""
    model = make_model(config(decoder="density"), SHAPE, LEVELS)
    assert model.unit is NATS
    params = disturbed(model)
    image = np.array([1, 2], np.uint8).reshape(SHAPE)
    found, error = mean_total(model, params, image)
    _, gamma = model.bind(params, jnp.zeros(1), None)
    gamma_0 = float(gamma(jnp.zeros(1))[0])
    many = batch(np.broadcast_to(image, (30_000, *SHAPE)))
    terms = jax.jit(model.terms)(params, many, jax.random.key(3))
    # E -log N(x; x + sigma eps, sigma^2), sigma^2 = exp(gamma_0): the entropy of the noise.
    entropy = 2 * 0.5 * (np.log(2 * np.pi) + 1 + gamma_0)
    noise = np.std(terms.reconstruction) / np.sqrt(30_000)
    assert abs(terms.reconstruction.mean() - entropy) < 5 * noise
    discrete = make_model(config(), SHAPE, LEVELS)
    other, _ = mean_total(discrete, params, image)
    assert abs(found - other) > 20 * error  # not the same quantity


def test_binomial_conditions_its_network_on_what_is_kept_with_a_range_of_0_to_1():
    c = config(process="binomial", head="logits", num_steps=5)
    model = make_model(c, SHAPE, 2)
    params = disturbed(model)
    denoise = model.bind(params, jnp.zeros(3), None)
    signs = jnp.ones((3, *SHAPE))
    first = denoise(signs, jnp.array([0.0, 0.5, 1.0]))
    assert first.shape == signs.shape and np.ptp(np.asarray(first)[:, 0, 0, 0]) > 1e-3
    c.model.update(gamma_min=-13.0, gamma_max=1.0)  # what isn't in use plays no part
    again = make_model(c, SHAPE, 2).bind(params, jnp.zeros(3), None)
    np.testing.assert_array_equal(again(signs, jnp.array([0.0, 0.5, 1.0])), first)
