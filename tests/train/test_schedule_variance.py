"""The schedule trained for a low variance, against plain differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy import LEVELS, SHAPE, apply, network, one_batch

from vdm_jax import loss
from vdm_jax.nn.gamma import END_POINTS, MonotoneGamma
from vdm_jax.train import schedule_variance as variance
from vdm_jax.train import step
from vdm_jax.train.model import Model
from vdm_jax.vdm import VDM


def monotone_model() -> Model:
    """The toy network with a pinned monotone schedule, both learned."""
    schedule = MonotoneGamma(-6.0, 4.0, features=32)

    def init(key):
        gamma = schedule.init(key, jnp.zeros(1))["params"]
        bent = 0.05 + jnp.abs(jax.random.normal(key, gamma["l3"]["kernel"].shape))
        return {"gamma": gamma | {"l3": {"kernel": bent}}, "score_model": network(key)}

    def bind(params, conditioning=None, key=None):
        return VDM(
            lambda z_t, gamma_t: apply(params["score_model"], z_t, gamma_t, conditioning, key),
            lambda t: schedule.apply({"params": params["gamma"]}, t),
            SHAPE,
            LEVELS,
        )

    return Model(init, bind, END_POINTS)


def terms_of(model, params, batch, key):
    """The bound's terms with the keys of a step."""
    key_elbo, key_dropout = jax.random.split(key)
    return model.bind(params, batch["conditioning"], key_dropout).elbo(key_elbo, batch["images"])


def test_it_is_the_gradient_of_the_bound_and_of_the_mean_square(x64, monkeypatch):
    """By plain differentiation through the network, of the mean bound and of E[L^2].

    For the shape they agree only as integrals over t, here by the midpoint rule at one noise.
    """
    model, key, count = monotone_model(), jax.random.key(3), 4000
    params = jax.jit(model.init)(jax.random.key(0))
    one = one_batch(1)
    batch = {name: jnp.repeat(jnp.asarray(value), count, axis=0) for name, value in one.items()}
    eps_0, eps, _ = loss.draw(key, (1, *SHAPE))
    t = (jnp.arange(count) + 0.5) / count
    drawn = (jnp.repeat(eps_0, count, axis=0), jnp.repeat(eps, count, axis=0), t)
    monkeypatch.setattr(loss, "draw", lambda *_: drawn)
    # Dropout would be another noise at each t.
    quiet = model._replace(bind=lambda params, given=None, _=None: model.bind(params, given, None))
    got, terms = jax.jit(variance.gradient(quiet))(params, batch, key)

    def bits(params, of):
        return loss.bits_per_dim(of(terms_of(quiet, params, batch, key)), SHAPE)

    of_bound = jax.jit(jax.grad(lambda p: bits(p, lambda terms: terms.total).mean()))(params)
    of_square = jax.grad(lambda p: (bits(p, lambda terms: terms.diffusion) ** 2).mean())
    of_square = jax.jit(of_square)(params)
    assert_close(got["score_model"], of_bound["score_model"], 1e-8)
    assert_close(got["gamma"][END_POINTS], of_bound["gamma"][END_POINTS], 1e-8)
    for name in ("l2", "l3"):
        assert_close(got["gamma"][name], of_square["gamma"][name], 2e-3)
    expected = jax.jit(lambda params: terms_of(quiet, params, batch, key))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-10, 1e-14), terms, expected)


def assert_close(a, b, rtol):
    """Relative to the largest element of each leaf."""
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=rtol * np.abs(y).max()), a, b
    )


def test_a_step_takes_this_gradient_with_the_dropout_of_the_bound():
    model, key, batch = monotone_model(), jax.random.key(5), one_batch()
    training = step.Training(model, optax.sgd(0.1), 0.9, key)
    start = jax.jit(lambda key: step.init_state(model, training.optimizer, key))
    state = start(jax.random.key(0))
    new, metrics = jax.jit(lambda *args: step.update(*args, training))(state, batch)
    key = jax.random.fold_in(key, 0)
    grads, terms = jax.jit(variance.gradient(model))(state.params, batch, key)
    expected = jax.jit(lambda params: terms_of(model, params, batch, key))(state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-5), terms, expected)
    bpd = loss.bits_per_dim(expected.total.mean(), SHAPE)
    np.testing.assert_allclose(metrics["bpd"], bpd, rtol=1e-4)
    assert_close(new.params, jax.tree.map(lambda p, g: p - 0.1 * g, state.params, grads), 1e-5)


def test_padding_plays_no_part():
    """The terms of the bound with a mask, whatever the padding holds, and one gradient."""
    plain, batch = monotone_model(), one_batch()
    params = jax.jit(plain.init)(jax.random.key(0))
    images, key = jnp.asarray(batch["images"]), jax.random.key(1)
    mask = jnp.broadcast_to(jnp.arange(SHAPE[0]).reshape(-1, *(1 for _ in SHAPE[1:])) < 1, SHAPE)
    mask = jnp.broadcast_to(mask, images.shape)
    model = plain._replace(bind=lambda *args, mask=None: plain.bind(*args)._replace(mask=mask))
    gradient, found = jax.jit(variance.gradient(model)), []
    for fill in (0, 1):
        padded = batch | {"images": jnp.where(mask, images, fill), "mask": mask}
        found.append(gradient(params, padded, key))
    jax.tree.map(np.testing.assert_array_equal, *found)
    key_elbo, key_dropout = jax.random.split(key)

    @jax.jit
    def terms(params):
        bound = model.bind(params, batch["conditioning"], key_dropout, mask=mask)
        return bound.elbo(key_elbo, images)

    expected = terms(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), found[0][1], expected)


def test_it_needs_continuous_time():
    model = monotone_model().with_fields(num_steps=10)
    with pytest.raises(ValueError, match="needs continuous time, num_steps=None"):
        variance.gradient(model)({}, one_batch(), jax.random.key(0))
