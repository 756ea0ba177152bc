"""`make_model`: what the settings make is what they say, and every kind of model can be trained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import gauss_hermite

from vdm_jax import VDM, loss, pixels, schedule, transforms, weighting
from vdm_jax.data import Condition
from vdm_jax.run import defaults
from vdm_jax.run.models import make_model
from vdm_jax.train import optimizer, sharding, step
from vdm_jax.train.model import Model
from vdm_jax.transforms import Coefficients

SHAPE, LEVELS = (2, 1, 1), 4
ALL = dict.fromkeys(("data_size", "fixed_encoder", "ends_at_normal"), True)


def config(hierarchy=None, **model):
    """A perceptron of a few hundred weights."""
    made = defaults.get_config()
    made.model.update(
        network="mlp", channels=16, num_blocks=1, fourier_features=False, gamma="fixed",
        gamma_min=-4.0, gamma_max=3.0, dropout=0.0,
    )  # fmt: skip
    made.model.update(model)
    made.hierarchy.update(hierarchy or {})
    if made.hierarchy.depth and not made.hierarchy.ends_at_normal:
        made.model.gamma_max = 5.0  # the default: nothing reads it
    return made


def disturbed(model, seed=0, scale=0.3):
    """Parameters away from their start, where last layers are zero."""
    params, rng = jax.jit(model.init)(jax.random.key(seed)), np.random.default_rng(seed)
    return jax.tree.map(lambda w: w + np.float32(scale * rng.normal(size=w.shape)), params)


@functools.partial(jax.jit, static_argnums=0)
def terms_of(model, params, image):
    """The terms of many draws of the bound of one image."""
    images = model.data(jnp.broadcast_to(jnp.asarray(image), (100_000, *SHAPE)))
    return model.bind(params).elbo(jax.random.key(3), images)


def mean_total(model, params, image):
    """Mean of the bound of one image over draws, and its error: nats."""
    total = np.asarray(terms_of(model, params, image).total, np.float64)
    return total.mean(), total.std(ddof=1) / np.sqrt(len(total))


def called(model, params, z_t, gamma_t, given=None, dropout=None):
    """What the network of a bound predicts."""
    call = jax.jit(lambda *args: model.bind(args[0], given, dropout).denoise(*args[1:]))
    return np.asarray(call(params, z_t, gamma_t))


def image_of(*values):
    return np.array(values, np.uint8).reshape(SHAPE)


@pytest.mark.parametrize(
    "settings", [{"head": "v", "gamma": "monotone"}, {"head": "levels", "reverse_var": "learned"}]
)
def test_with_all_restrictions_a_hierarchy_is_the_vdm_of_as_many_steps(settings):
    """The same parameters, and in expectation the same bound: T + 1 latents and T steps."""
    num_steps, image = 3, image_of(1, 3)
    chain = make_model(config({"depth": num_steps + 1, **ALL}, **settings), SHAPE, LEVELS)
    vdm = make_model(config(num_steps=num_steps, **settings), SHAPE, LEVELS)
    params = disturbed(vdm)
    started = [jax.jit(model.init)(jax.random.key(4)) for model in (vdm, chain)]
    jax.tree.map(np.testing.assert_array_equal, *started)
    assert f"hierarchical VAE of 4 latents, a VDM of T = {num_steps}" == chain.facts().words
    (a, error_a), (b, error_b) = (mean_total(model, params, image) for model in (chain, vdm))
    assert abs(a - b) < 5 * np.hypot(error_a, error_b) < 0.4
    assert 5 * error_b < 0.05 * b


def test_without_the_last_restriction_it_is_the_vdm_that_ends_at_gamma_zero():
    restricted = {"depth": 4, "data_size": True, "fixed_encoder": True}
    chain = make_model(config(restricted), SHAPE, LEVELS)
    short, full = (make_model(config(num_steps=3, gamma_max=g), SHAPE, LEVELS) for g in (0.0, 3.0))
    params, models = disturbed(short), (chain, short, full)
    (a, error_a), (b, error_b), (c, _) = (mean_total(m, params, image_of(0, 2)) for m in models)
    assert abs(a - b) < 5 * np.hypot(error_a, error_b) < 0.4
    assert abs(a - c) > 1.0 and chain.facts().words == "hierarchical VAE of 4 latents"


@pytest.mark.parametrize(
    ("hierarchy", "model"),
    [
        ({}, {"process": "binomial", "head": "logits", "num_steps": 5}),
        ({"depth": 2, "ends_at_normal": True}, {}),
        ({"depth": 3, "data_size": True, "fixed_encoder": True}, {}),
        ({}, {"gamma": "path", "transform": "dct"}),
    ],
)
def test_each_kind_has_a_finite_bound_learns_and_samples_levels(hierarchy, model):
    size = {} if hierarchy.get("data_size") or not hierarchy else {"latent_size": 2}
    levels = 2 if "process" in model else LEVELS
    made = make_model(config({**hierarchy, **size}, dropout=0.1, **model), SHAPE, levels)
    # Two kinds of images, of sixteen.
    images = np.array([[0, 3], [3, 0]], np.uint8)[np.arange(64) % 2].reshape(-1, *SHAPE) % levels
    batch = {"images": jnp.asarray(images), "conditioning": jnp.zeros(64)}
    mesh = sharding.make_mesh(jax.devices()[:1])
    training = step.Training(made, optimizer.make(1e-2), 0.9, jax.random.key(1))
    start = jax.jit(lambda key: step.init_state(made, training.optimizer, key))
    state = start(jax.random.key(0))

    @jax.jit
    def trained(state):
        def one(state, _):
            return step.update(state, batch, training, mesh)

        return jax.lax.scan(one, state, length=150)

    params = state.params
    state, metrics = trained(state)
    first, last = np.mean(metrics["bpd"][:5]), np.mean(metrics["bpd"][-20:])
    assert last < 0.85 * first
    parts = metrics["reconstruction"] + metrics["prior"] + metrics["diffusion"]
    np.testing.assert_allclose(metrics["bpd"], parts, rtol=1e-4)
    moved = jax.tree.map(lambda a, b: np.any(a != b), params, state.params)
    assert all(jax.tree.leaves(moved))
    sample = jax.jit(lambda params: made.sample(params, jax.random.key(2), jnp.zeros(200), 5))
    drawn = np.asarray(sample(state.ema_params))
    assert drawn.shape == (200, *SHAPE) and np.issubdtype(drawn.dtype, np.integer)
    assert drawn.min() >= 0 and drawn.max() < levels and drawn.std() > 0.3


def test_the_bound_of_a_vae_is_the_one_by_quadrature_and_above_the_log_probability():
    """A latent of one number: p(x) and the bound are integrals over a line."""
    model = make_model(config({"depth": 1, "latent_size": 1}), SHAPE, LEVELS)
    params = disturbed(model)
    of = model.bind(params)
    nodes, weights = gauss_hermite(60)

    def log_likelihood(image, z):
        p = of.likelihood(z)
        image = jnp.broadcast_to(image, p.mean.shape)
        each = pixels.log_prob(image, p.mean, jnp.log(p.var), LEVELS)
        return np.asarray(each.sum((1, 2, 3)), np.float64)

    image, z = image_of(1, 3), jnp.asarray(nodes[:, None], jnp.float32)
    bound, error = mean_total(model, params, image)
    assert bound - 5 * error > -np.log(weights @ np.exp(log_likelihood(image, z)))
    assert 5 * error < 0.1 * bound
    q = of.encoders[0](pixels.encode(image[None], LEVELS))
    at = (q.mean + jnp.sqrt(q.var) * nodes).reshape(-1, 1)
    m, v = float(q.mean[0, 0]), float(q.var[0, 0])
    exact = -weights @ log_likelihood(image, at) + 0.5 * (v + m**2 - 1 - np.log(v))
    assert abs(bound - exact) < 5 * error


def test_samples_of_a_density_of_coefficients_are_levels_of_pixels():
    images = jnp.asarray(np.random.default_rng(0).integers(0, LEVELS, (1, 4, 4, 1)))
    known = loss.to_data(images, Coefficients(LEVELS, transforms.dct()))
    vdm = VDM(lambda z_t, _: jnp.broadcast_to(known, z_t.shape), schedule.linear(-8.0, 5.0),
              (4, 4, 1), Coefficients(None, transforms.dct()), "x")  # fmt: skip
    model = Model(lambda key: {}, lambda *_: vdm, pixel_levels=LEVELS)
    drawn = jax.jit(lambda: model.sample({}, jax.random.key(0), jnp.zeros(3), 4))()
    np.testing.assert_array_equal(drawn, np.repeat(images, 3, axis=0))


@pytest.mark.parametrize("hierarchy", [{}, {"depth": 2, "latent_size": 1}])
def test_a_density_is_that_of_continuous_data(hierarchy):
    """It takes integers as the x that they encode, and samples levels again."""
    model = make_model(config(hierarchy, decoder="density"), SHAPE, LEVELS)
    assert (model.facts().levels, model.pixel_levels) == (None, LEVELS)
    params = disturbed(model)
    terms = terms_of(model, params, image_of(1, 2))
    drawn = jax.jit(lambda p: model.sample(p, jax.random.key(0), jnp.zeros(20), 3))(params)
    assert jnp.issubdtype(drawn.dtype, jnp.integer) and drawn.max() < LEVELS
    if hierarchy:
        return
    # E -log N(x; x + sigma eps, sigma^2), sigma^2 = exp(gamma_0): the entropy of the noise.
    entropy = 2 * 0.5 * (np.log(2 * np.pi) + 1 - 4.0)
    noise = np.std(terms.reconstruction) / np.sqrt(len(terms.reconstruction))
    assert abs(terms.reconstruction.mean() - entropy) < 5 * noise
    discrete = terms_of(make_model(config(), SHAPE, LEVELS), params, image_of(1, 2))
    assert float(discrete.reconstruction.mean()) > 0 > entropy  # not the same quantity


def test_binomial_conditions_its_network_on_what_is_kept_with_a_range_of_0_to_1():
    c = config(process="binomial", head="logits", num_steps=5)
    model = make_model(c, SHAPE, 2)
    params = disturbed(model)
    signs, keep = jnp.ones((3, *SHAPE)), jnp.array([0.0, 0.5, 1.0])
    first = called(model, params, signs, keep)
    assert first.shape == signs.shape and np.ptp(np.asarray(first)[:, 0, 0, 0]) > 1e-3
    c.model.update(gamma_min=-13.0, gamma_max=1.0)  # what isn't in use plays no part
    again = called(make_model(c, SHAPE, 2), params, signs, keep)
    np.testing.assert_array_equal(again, first)


def test_the_class_conditions_the_network_and_the_flag_is_zero_by_default():
    model = make_model(config(), SHAPE, LEVELS, Condition(classes=3))
    params = disturbed(model)
    z_t, gamma_t = jnp.ones((3, *SHAPE)), jnp.zeros(3)
    given = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    first, second, third = called(model, params, z_t, gamma_t, given)
    assert np.abs(first - second).max() > 1e-3 and np.abs(second - third).max() > 1e-3
    with pytest.raises(ValueError, match="needs the class of each image"):
        model.bind(params).denoise(z_t, gamma_t)
    numbers = make_model(config(), SHAPE, LEVELS, Condition(numbers=3))  # the class is a case
    told = jnp.concatenate([given[:, :1], jnp.eye(3)[given[:, 1].astype(int)]], axis=1)
    classes = called(model, params, z_t, gamma_t, given)
    np.testing.assert_array_equal(called(numbers, params, z_t, gamma_t, told), classes)
    plain = make_model(config(), SHAPE, LEVELS)
    params = disturbed(plain)
    zero = called(plain, params, z_t, gamma_t, jnp.zeros(3))
    np.testing.assert_array_equal(called(plain, params, z_t, gamma_t), zero)


@pytest.mark.parametrize("condition", [Condition(classes=3), Condition(numbers=2)])
def test_a_condition_is_dropped_as_a_whole_at_the_rate_and_in_training_alone(condition):
    model = make_model(config(condition_dropout=0.3), SHAPE, LEVELS, condition)
    params, count = disturbed(model), 2000
    z_t, gamma_t = jnp.ones((count, *SHAPE)), jnp.linspace(-1.0, 1.0, count)
    row = [1.0, 2.0] if condition.classes else [1.0, 0.0, 0.5]
    given = jnp.tile(jnp.array(row), (count, 1))
    conditional, without, dropped = (
        called(model, params, z_t, gamma_t, told, key)
        for told, key in ((given, None), (given[:, 0], None), (given, jax.random.key(5)))
    )
    there = (dropped == conditional).all((1, 2, 3))
    np.testing.assert_array_equal(dropped[~there], without[~there])
    assert np.abs(conditional - without).max((1, 2, 3)).min() > 1e-5
    assert abs(there.mean() - 0.7) < 5 * np.sqrt(0.3 * 0.7 / count)
    if condition.numbers:  # zeros that are given are none that are missing
        zeros = called(model, params, z_t, gamma_t, given * jnp.array([1.0, 0.0, 0.0]))
        assert np.abs(zeros - without).max() > 1e-3


def test_without_weights_for_the_condition_a_network_is_the_unconditional_one():
    plain = make_model(config(), SHAPE, LEVELS)
    told = make_model(config(), SHAPE, LEVELS, Condition(numbers=3))
    shapes = jax.eval_shape(plain.init, jax.random.key(0))
    params = disturbed(told)
    cut = jax.tree.map(lambda w, of: w[: of.shape[0]] if of.ndim else w, params, shapes)
    deaf = jax.tree.map(
        lambda w, of: w if w.shape == of.shape else w.at[of.shape[0] :].set(0.0), params, shapes
    )
    z_t, gamma_t = jnp.ones((5, *SHAPE)), jnp.linspace(-2.0, 2.0, 5)
    given = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32)
    found = called(told, deaf, z_t, gamma_t, given)
    np.testing.assert_allclose(found, called(plain, cut, z_t, gamma_t, given[:, 0]), rtol=1e-5)
    assert np.abs(found - called(told, params, z_t, gamma_t, given)).max() > 1e-3


def test_without_dropped_conditions_the_parameters_are_those_of_all_runs_so_far():
    """A column tells of what is dropped, and only there."""
    shapes = []
    for rate in (0.0, 0.1):
        model = make_model(config(condition_dropout=rate), SHAPE, LEVELS, Condition(classes=3))
        tree = jax.eval_shape(model.init, jax.random.key(0))["score_model"]
        shapes.append([leaf.shape for leaf in jax.tree.leaves(tree)])
    grown = {b[0] - a[0] for a, b in zip(*shapes, strict=True) if a != b}
    assert grown == {1}


def test_dropout_acts_in_training_alone_and_fields_of_the_vdm_are_the_settings():
    c = config(dropout=0.5, num_steps=7, reverse_var="transition", timesteps="uniform", head="x")
    model = make_model(c, SHAPE, LEVELS)
    params = disturbed(model)
    vdm = model.bind(params)
    assert vdm[2:] == (SHAPE, LEVELS, "x", 7, "transition", "uniform", None)
    np.testing.assert_allclose(vdm.gamma(jnp.array([0.0, 0.5, 1.0])), [-4.0, -0.5, 3.0], rtol=1e-6)
    z_t, gamma_t = jnp.ones((2, *SHAPE)), jnp.zeros(2)
    plain, *dropped = (
        called(model, params, z_t, gamma_t, None, key)
        for key in (None, jax.random.key(0), jax.random.key(1))
    )
    assert np.abs(dropped[0] - plain).max() > 1e-3 < np.abs(dropped[1] - dropped[0]).max()
    assert model.end_points is None
    c = config(gamma="monotone", gamma_objective="variance")
    model = make_model(c, SHAPE, LEVELS)
    assert model.end_points in jax.eval_shape(model.init, jax.random.key(0))["gamma"]


def test_a_network_of_pixels_is_the_one_of_its_name():
    for network, channels in (("unet", 64), ("resnet", 8)):
        model = make_model(config(network=network, channels=channels), (4, 4, 1), LEVELS)
        shapes = jax.eval_shape(model.init, jax.random.key(0))["score_model"]
        assert ("down" in str(shapes.keys())) == (network == "unet")


def test_the_network_of_pixels_serves_coefficients():
    """With one schedule for all, a model of coefficients W x is the model of x in other axes."""
    plain, of_cosines = (
        make_model(config(transform=name, gamma="scalar"), (4, 2, 1), LEVELS)
        for name in ("none", "dct")
    )
    params, z_t = disturbed(plain), jax.random.normal(jax.random.key(1), (3, 4, 2, 1))
    w = of_cosines.bind(params).levels.transform.forward
    gamma_t = jnp.array([-3.0, 0.0, 2.0])
    wanted = w(called(plain, params, z_t, gamma_t))
    found = called(of_cosines, params, np.asarray(w(z_t)), gamma_t)
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_weight_and_times_of_the_configuration_are_those_of_the_model():
    plain = make_model(config(), SHAPE, LEVELS)
    assert plain.weight is None and not plain.adaptive
    assert make_model(config(timesteps="adaptive"), SHAPE, LEVELS).adaptive
    gamma = jnp.linspace(-4.0, 3.0, 5)
    for name, weight in weighting.NAMED.items():
        if name != "bound":
            given = make_model(config(weighting=name), SHAPE, LEVELS).weight
            np.testing.assert_array_equal(given(gamma), weight()(gamma))
