"""Masks, a schedule of each feature, features of several kinds: against closed forms.

The data are sets of up to four points in the plane, N(0, s^2) in each coordinate, for which the
exact network is linear; it ignores the mask.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import VDM, bounds, loss, masks, schedule
from vdm_jax.process import expand
from vdm_jax.rule import Rule
from vdm_jax.sampling import sample, to_images

KEY = jax.random.key(0)
VAR = 0.25
COUNTS = jnp.array([4, 2, 0, 1])
MASK = (jnp.arange(4) < COUNTS[:, None])[..., None]
X = jnp.sqrt(VAR) * jax.random.normal(KEY, (4, 4, 2))
LINEAR = schedule.linear(-7.0, 7.0)


def exact(z, gamma):
    gamma = expand(gamma, z)
    return schedule.sigma(gamma) * z / (schedule.alpha_bar(gamma) * VAR + schedule.variance(gamma))


def per_feature(t):
    """Two schedules: one linear, one bent, [n, 1, 2]."""
    return jnp.stack([-7.0 + 14.0 * t, -6.0 + 4.0 * t + 9.0 * t**2], axis=-1)[:, None]


def model(**fields):
    return VDM(exact, LINEAR, (4, 2), None, mask=MASK)._replace(**fields)


def log_density(x, mask, var=VAR):
    each = -0.5 * (x**2 / var + jnp.log(2 * jnp.pi * var))
    return jnp.sum(jnp.where(mask, each, 0.0), axis=(1, 2))


def learned(z, gamma):
    return exact(z, gamma), jnp.full(z.shape, 0.3)


VALUES = {
    "elbo": lambda m, x: m.elbo(KEY, x).total,
    "discrete": lambda m, x: m._replace(num_steps=7).elbo(KEY, x).total,
    "transition": lambda m, x: m._replace(num_steps=7, reverse_var="transition").elbo(KEY, x).total,
    "learned": lambda m, x: (
        m._replace(num_steps=7, reverse_var="learned", denoise=learned).elbo(KEY, x).total
    ),
    "elbo_by_keys": lambda m, x: (
        m.elbo_by_keys(x, jnp.linspace(0.0, 1.0, 4), jax.random.split(KEY, 4)).total
    ),
    "chain": lambda m, x: bounds.chain(m._replace(num_steps=5), KEY, x),
    "consistency": lambda m, x: bounds.consistency(m._replace(num_steps=5), KEY, x).total,
    "log_prob": lambda m, x: m.log_prob(KEY, x),
    "hutchinson": lambda m, x: m.log_prob(KEY, x, trace="hutchinson"),
}


@functools.cache
def compiled(name, gamma):
    """The value as a function of x and mask."""
    return jax.jit(lambda x, mask: VALUES[name](model(gamma=gamma, mask=mask), x))


@pytest.mark.parametrize("name", VALUES)
def test_padding_changes_nothing_whatever_it_holds(name):
    of = compiled(name, LINEAR)
    found = [of(jnp.where(MASK, X, fill), MASK) for fill in (0.0, 1e9, jnp.nan)]
    assert np.all(np.isfinite(found[0])) and found[0][2] == 0.0  # the third set has no points
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)
    np.testing.assert_allclose(of(X, jnp.ones_like(MASK)), of(X, None), rtol=1e-6)


@pytest.mark.parametrize("kind", ["eps", "x", "v", "score"])
def test_what_a_network_says_of_padding_counts_nothing(kind):
    """NaN there: neither the loss nor its gradient sees it."""

    def total(scale):
        m = model(denoise=lambda z, _: jnp.where(MASK, scale * z, jnp.nan), kind=kind)
        return m.elbo(KEY, X).total.sum()

    assert np.all(np.isfinite(jax.value_and_grad(total)(1.0)))


@pytest.mark.parametrize("gamma", [LINEAR, per_feature], ids=["one", "each"])
def test_the_density_is_that_of_the_points_that_are_there(gamma):
    log_prob = jax.jit(lambda x: model(gamma=gamma).log_prob(KEY, x, rtol=1e-5, atol=1e-5))
    found = log_prob(jnp.where(MASK, X, jnp.nan))
    # It is that of z_0 / alpha_0, of variance exp(gamma_0) more.
    noise = jnp.exp(jnp.broadcast_to(gamma(jnp.zeros(1)), (1, 1, 2)))
    np.testing.assert_allclose(found, log_density(X, MASK, VAR + noise), atol=5e-3)


@pytest.mark.parametrize("gamma", [LINEAR, per_feature], ids=["one", "each"])
def test_the_bound_of_the_exact_network_is_the_density(gamma):
    m = model(gamma=gamma)
    draw = jax.jit(jax.vmap(lambda key: m.elbo(key, X).total))
    draws = np.asarray(draw(jax.random.split(KEY, 20_000)), np.float64)
    error = draws.std(axis=0) / np.sqrt(len(draws))
    assert np.all(np.abs(draws.mean(axis=0) + log_density(X, MASK)) <= 4 * error + 0.02)


def test_weights_of_chains_average_to_the_density():
    m = model(num_steps=300)
    log_weights = jax.jit(lambda key: bounds.chains(m, key, X, 16))(KEY)
    found = bounds.importance_weighted(log_weights)
    np.testing.assert_allclose(found, -log_density(X, MASK), atol=0.25)


@pytest.mark.parametrize(
    ("sampler", "gamma"),
    [
        ("ancestral", LINEAR),
        ("ancestral", per_feature),
        ("ddim", per_feature),
        ("dpm_solver", LINEAR),
        ("heun", per_feature),
    ],
)
def test_samples_are_zero_in_padding_and_right_elsewhere(sampler, gamma):
    there = jnp.arange(4)[:, None] < 3
    m = model(gamma=gamma, mask=jnp.broadcast_to(there, (2000, 4, 1)))
    rule = Rule(sampler, 250 if sampler in ("ancestral", "ddim") else 40)
    drawn = jax.jit(lambda key: sample(key, m, 2000, rule))(KEY)
    assert np.all(drawn[:, 3] == 0.0)
    spread = np.asarray(drawn[:, :3]).var(axis=(0, 1))
    np.testing.assert_allclose(spread, VAR, rtol=0.05)


def test_equal_schedules_of_all_features_are_one_schedule():
    def same(t):
        return jnp.broadcast_to(LINEAR(t)[:, None, None], (*t.shape, 1, 2))

    for name in VALUES:
        one, each = (compiled(name, gamma)(X, MASK) for gamma in (LINEAR, same))
        np.testing.assert_allclose(one, each, rtol=2e-3, atol=2e-3, err_msg=name)
    for sampler in ("ancestral", "heun"):
        one, each = (
            jax.jit(model(gamma=gamma).sample, static_argnums=(1, 2, 3))(KEY, 4, 7, sampler)
            for gamma in (LINEAR, same)
        )
        np.testing.assert_allclose(one, each, rtol=1e-4, atol=1e-5)


def test_dimensions_that_are_there():
    nats = jnp.array([8.0, 8.0, 0.0, 8.0])
    found = loss.nats_per_dim(nats, (4, 2), MASK)
    np.testing.assert_allclose(found, [1.0, 2.0, 0.0, 4.0])
    np.testing.assert_allclose(loss.bits_per_dim(nats, (4, 2), MASK), found / np.log(2.0))
    np.testing.assert_array_equal(masks.dims((4, 2), MASK), 2 * COUNTS)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (jnp.ones((4, 4)), r"mask has shape \(4, 4\) for data of \(4, 4, 2\)"),
        (jnp.ones((4, 3, 1)), r"mask has shape \(4, 3, 1\)"),
        (jnp.full((4, 4, 1), 0.5), "mask must hold 1 .there. and 0 .padding."),
    ],
)
def test_wrong_masks_are_named(mask, message):
    with pytest.raises(ValueError, match=message):
        model(mask=mask).elbo(KEY, X)
    with pytest.raises(ValueError, match=message):
        loss.nats_per_dim(jnp.ones(4), (4, 2), mask)


@pytest.mark.parametrize(
    "wrong", [lambda t: per_feature(t)[:, 0], lambda t: per_feature(t)[..., :1].repeat(3, 2)]
)
def test_a_schedule_of_another_event_is_named(wrong):
    m = model(gamma=wrong, event_shape=(4, 2))
    for use in (
        lambda: m.elbo(KEY, X),
        lambda: m.sample(KEY, 2, 3),
        lambda: m.sample(KEY, 2, 3, "ddim"),
        lambda: m.log_prob(KEY, X),
    ):
        with pytest.raises(
            ValueError, match=r"gamma must map times \[n\] to \[n\] or \[n, \*event\]"
        ):
            use()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_vector_over_the_features_is_no_schedule(count):
    """Of two times it would pass for the values at them, and those for gamma's ends."""

    def vector(t):
        return jnp.array([-7.0, -6.0]) + jnp.array([14.0, 13.0]) * t

    m, x = VDM(exact, vector, (2,), None), X[0, :1].repeat(count, axis=0)
    for use in (
        lambda: m.elbo(KEY, x),
        lambda: m.log_prob(KEY, x),
        lambda: m.sample(KEY, count, 8, "ddim"),
        lambda: loss.diffusion(x, x, jnp.full(count, 0.5), exact, vector),
    ):
        with pytest.raises(ValueError, match=r"gamma must map \(1,\) to \(1,\), .* \(2,\)"):
            use()


# ---- features of several kinds ----

CHARGES = jnp.stack([X[..., 0], jnp.clip(jnp.rint(4.0 + 4.0 * X[..., 1]), 0, 7)], axis=-1)


def test_equal_kinds_are_one_kind():
    @functools.partial(jax.jit, static_argnums=0)
    def values(levels, x):
        names = "elbo", "elbo_by_keys", "chain"
        return [VALUES[name](model(levels=levels), x) for name in names]

    integers = jnp.clip(jnp.rint(4.0 + 4.0 * X), 0, 7)
    for levels, data, plain in ((None, X, X), (8, integers, integers.astype(int))):
        found, expected = values((levels, levels), data), values(levels, plain)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("gamma", [LINEAR, per_feature], ids=["one", "each"])
def test_terms_of_several_kinds_add_up(gamma):
    """Features that the network treats by themselves: a set of each kind by itself."""
    times, keys = jnp.linspace(0.05, 0.95, 4), jax.random.split(KEY, 4)
    eps = loss.noise(keys, (4, 2))

    def alone(i, levels, x):
        of = LINEAR if gamma is LINEAR else lambda t: per_feature(t)[..., i : i + 1]
        one = model(gamma=of, levels=levels, event_shape=(4, 1))
        return one.elbo_given(x, eps[..., i : i + 1], times)

    @jax.jit
    def terms(x):
        whole = model(gamma=gamma, levels=(None, 8)).elbo_given(x, eps, times)
        return whole, [alone(0, None, x[..., :1]), alone(1, 8, x[..., 1:].astype(int))]

    whole, parts = terms(CHARGES)
    for name in whole._fields:
        summed = sum(getattr(part, name) for part in parts)
        np.testing.assert_allclose(getattr(whole, name), summed, rtol=1e-4, atol=1e-4)


def test_log_prob_of_several_kinds():
    """A continuous feature has its density, an integer one the dequantised bound."""
    both = model(levels=(None, 8))
    charges, keys = CHARGES[..., 1:].astype(int), jax.random.split(KEY, 50)
    number, level = model(event_shape=(4, 1)), model(levels=8, event_shape=(4, 1))
    found = jax.jit(jax.vmap(lambda key: both.log_prob(key, CHARGES)))(keys)
    continuous = jax.jit(lambda key: number.log_prob(key, CHARGES[..., :1]))(KEY)
    dequantised = jax.jit(jax.vmap(lambda key: level.log_prob(key, charges)))(keys)
    difference = found.mean(axis=0) - continuous - dequantised.mean(axis=0)
    error = np.sqrt(found.var(axis=0) + dequantised.var(axis=0)) / np.sqrt(50)
    assert np.all(np.abs(difference) <= 4 * error + 0.02)


def test_kinds_are_decoded_by_noise_of_their_own():
    z_0, levels = jnp.zeros((4000, 1, 2)), (2, 4)
    drawn = to_images(z_0, 8.0, levels, KEY)  # without knowledge of them: all levels equally likely
    joint = np.histogram2d(*np.asarray(drawn).reshape(-1, 2).T, bins=(2, 4))[0] / 4000
    np.testing.assert_allclose(joint, 1 / 8, atol=0.025)


def test_what_is_no_level_is_nan_where_it_cannot_be_refused():
    m = model(levels=(None, 8))
    assert np.isnan(jax.jit(lambda x: m.elbo(KEY, x).reconstruction)(X)[0])


def test_samples_of_several_kinds():
    drawn = model(levels=(None, 8)).sample(KEY, 4, 20)
    np.testing.assert_array_equal(drawn[..., 1], np.rint(drawn[..., 1]))
    assert drawn[..., 1].min() >= 0 and drawn[..., 1].max() <= 7
    assert np.any(drawn[..., 0] != np.rint(drawn[..., 0]))


@pytest.mark.parametrize(
    ("levels", "data", "message"),
    [
        ((None, 8, 8), X, r"levels has 3 numbers for data of shape \(4, 4, 2\)"),
        ((None, 8), X, "a feature of 8 levels holds numbers that are no integers"),
    ],
)
def test_wrong_kinds_are_named(levels, data, message):
    with pytest.raises(ValueError, match=message):
        model(levels=levels).elbo(KEY, data)
