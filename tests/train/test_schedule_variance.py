"""The schedule trained for a low variance, against plain differentiation and a known optimum."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy import LEVELS, SHAPE, apply, network, one_batch

from vdm_jax import loss, pixels
from vdm_jax.nn.gamma import END_POINTS, MonotoneGamma
from vdm_jax.train import schedule_variance as variance
from vdm_jax.train import step
from vdm_jax.train.model import Model
from vdm_jax.vdm import VDM


def monotone_model(width=16) -> Model:
    """The toy network with a pinned monotone schedule, both learned."""
    schedule = MonotoneGamma(-6.0, 4.0, features=32)

    def init(key):
        gamma = schedule.init(key, jnp.zeros(1))["params"]
        bent = 0.05 + jnp.abs(jax.random.normal(key, gamma["l3"]["kernel"].shape))
        return {"gamma": gamma | {"l3": {"kernel": bent}}, "score_model": network(key, width)}

    def bind(params, conditioning=None, key=None):
        return VDM(
            lambda z_t, gamma_t: apply(params["score_model"], z_t, gamma_t, conditioning, key),
            lambda t: schedule.apply({"params": params["gamma"]}, t),
            SHAPE,
            LEVELS,
        )

    return Model(init, bind, END_POINTS)


def terms_of(model, params, batch, key, dropout=True):
    """The bound's terms with the keys of a step."""
    key_elbo, key_dropout = jax.random.split(key)
    vdm = model.bind(params, batch["conditioning"], key_dropout if dropout else None)
    return vdm.elbo(key_elbo, batch["images"])


def update(model, optimizer, batch):
    training = step.Training(model, optimizer, 0.9, jax.random.key(1))
    return jax.jit(lambda state: step.update(state, batch, training))


def test_it_is_the_gradient_of_the_bound_and_of_the_mean_square(x64, monkeypatch):
    """By plain differentiation through the network, of the mean bound and of E[L^2].

    For the shape they agree only as integrals over t, here by the midpoint rule at one noise.
    """
    model, key, count = monotone_model(), jax.random.key(3), 4000
    params = model.init(jax.random.key(0))
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
    expected = terms_of(quiet, params, batch, key)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14), terms, expected
    )


def assert_close(a, b, rtol):
    """Relative to the largest element of each leaf."""
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=rtol * np.abs(y).max()), a, b
    )


def test_dropout_is_that_of_the_bound():
    model, key = monotone_model(), jax.random.key(5)
    params = model.init(jax.random.key(0))
    got, terms = jax.jit(variance.gradient(model))(params, one_batch(), key)

    def mean(params):
        terms = terms_of(model, params, one_batch(), key)
        return terms.total.mean() / (4 * np.log(2)), terms

    plain, expected = jax.jit(jax.grad(mean, has_aux=True))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-5), terms, expected)
    assert_close(got["score_model"], plain["score_model"], 1e-4)


def test_curvature_is_the_second_derivative(x64):
    model = monotone_model()
    gamma_params = model.init(jax.random.key(1))["gamma"]
    t = jnp.linspace(0.1, 0.9, 9)

    def slope(t):
        return variance.schedule_values(model, gamma_params, t).slope

    numerical = (slope(t + 1e-5) - slope(t - 1e-5)) / 2e-5
    np.testing.assert_allclose(variance.curvature(model, gamma_params, t), numerical, rtol=1e-5)


def test_it_costs_no_second_backward_pass_through_the_network():
    """Floating-point operations, of a network much larger than the schedule."""
    model, batch = monotone_model(width=4096), one_batch(64)

    def flops(model):
        state = jax.eval_shape(lambda key: step.init_state(model, optax.sgd(0.1), key),
                               jax.random.key(0))  # fmt: skip
        return update(model, optax.sgd(0.1), batch).lower(state).cost_analysis()["flops"]

    assert flops(model) < 1.05 * flops(model._replace(end_points=None))


def test_the_shape_finds_the_optimum_and_the_ends_stay_the_bound_s():
    """A loss known in closed form: eps_hat - eps of norm a(gamma), the optimum has constant L.

    The variance of L is zero where gamma'(t) a(gamma(t))^2 is constant.
    """
    schedule = MonotoneGamma(-6.0, 4.0, features=64, learn_end_points=False)

    def error(gamma_t):  # E||eps - eps_hat||^2 / d, a bump around gamma = 0
        return 0.05 + jnp.exp(-0.5 * jnp.square(gamma_t))

    def bind(params, conditioning=None, key=None):
        def denoise(z_t, gamma_t):  # knows eps: z_t = alpha x + sigma eps with x = 0 at level 1
            eps = (z_t - jnp.sqrt(jax.nn.sigmoid(-gamma_t))[:, None] * X) / jnp.sqrt(
                jax.nn.sigmoid(gamma_t)
            )[:, None]
            return eps + jnp.sqrt(error(gamma_t))[:, None]

        gamma = lambda t: schedule.apply({"params": params["gamma"]}, t)  # noqa: E731
        return VDM(denoise, gamma, shape, levels)

    levels, shape = 3, (8,)
    X = pixels.encode(jnp.ones(shape, int), levels)
    model = Model(
        lambda key: {"gamma": schedule.init(key, jnp.zeros(1))["params"], "score_model": {}},
        bind, END_POINTS,
    )  # fmt: skip
    optimizer = optax.adam(1e-2)
    state = step.init_state(model, optimizer, jax.random.key(0))
    batch = {"images": jnp.ones((128, 8), int), "conditioning": jnp.zeros(128)}
    step_fn = update(model, optimizer, batch)

    def std_over_mean(params):
        t = (jnp.arange(400) + 0.5) / 400
        values = variance.schedule_values(model, params["gamma"], t)
        losses = values.slope * error(values.gamma_t)
        np.testing.assert_allclose([values.gamma_0, values.gamma_1], [-6.0, 4.0], rtol=1e-5)
        return float(losses.std() / losses.mean()), float(losses.mean())

    before, mean_before = std_over_mean(state.params)
    for _ in range(600):
        state, _ = step_fn(state)
    after, mean_after = std_over_mean(state.params)
    assert before > 1.0 and after < 0.15 * before
    np.testing.assert_allclose(mean_after, mean_before, rtol=1e-2)  # the bound doesn't move


def test_it_needs_continuous_time():
    model = monotone_model().with_fields(num_steps=10)
    with pytest.raises(ValueError, match="needs continuous time, num_steps=None"):
        variance.gradient(model)(model.init(jax.random.key(0)), one_batch(), jax.random.key(0))
