"""Control variates in an evaluation: the same mean, a smaller error, and an honest one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import LEVELS, SHAPE, constant_model

from vdm_jax import control, data, pixels, timestep
from vdm_jax.control import Linear
from vdm_jax.evaluation import bound as evaluation
from vdm_jax.train import sharding

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, LEVELS, (60, *SHAPE), np.uint8)
LINEAR = Linear.of(pixels.encode(IMAGES, LEVELS))
EXACT = 0.5 * 10.0 * 4  # nats of eps_hat = 0 and gamma from -6 to 4: d (gamma_1 - gamma_0) / 2


def of_model(change=None, proposal=None):
    model = dataclasses.replace(constant_model(), control=LINEAR, proposal=proposal)
    if change is None:
        return model
    inner = model.bind
    return dataclasses.replace(model, bind=lambda *args: (change, inner(*args)[1]))


@functools.cache
def step_of(name):
    mesh = sharding.make_mesh(jax.devices()[:1])
    return MODELS[name], evaluation.make_eval_step(MODELS[name], mesh), mesh


def curved(z_t, gamma_t):
    """A denoiser that is neither linear nor right."""
    return jnp.tanh(z_t) * jax.nn.sigmoid(gamma_t)[:, None, None, None]


MODELS = {
    "nothing": of_model(),
    "curved": of_model(curved),
    "by importance": of_model(curved, timestep.proposal([1.0, 4.0, 2.0])),
}


def draws_of(name, key, repeats):
    model, step, mesh = step_of(name)
    batches = lambda: data.eval_batches(IMAGES, batch_size=60)  # noqa: E731
    params = model.init(jax.random.key(0))
    return evaluation.collect(step, params, batches, mesh, jax.random.key(key), repeats)


def test_a_loss_that_is_a_control_variate_is_known_exactly():
    """eps_hat = 0: the loss is gamma' / 2 ||eps||^2, of mean 20 nats at every time."""
    draws = draws_of("nothing", 0, 3)
    rest = draws.controlled(np.array([[1.0, 0.0, 0.0]]))
    assert draws.terms.diffusion.std() > 5.0
    np.testing.assert_allclose(rest.terms.diffusion, EXACT, rtol=1e-5)
    result = evaluation.summarise(rest, SHAPE)
    np.testing.assert_allclose(result.diffusion.mean, EXACT / (4 * np.log(2)), rtol=1e-6)
    assert result.diffusion.monte_carlo < 1e-6
    assert rest.terms.prior is draws.terms.prior and rest.controls is None


@pytest.mark.parametrize("name", ["curved", "by importance"])
def test_any_coefficients_leave_the_mean_and_the_error_stays_honest(name):
    coefficients = RNG.normal(0.0, 0.2, (4, 3))
    long = evaluation.summarise(draws_of(name, 1000, 400), SHAPE).diffusion
    found = [
        evaluation.summarise(draws_of(name, key, 4).controlled(coefficients), SHAPE).diffusion
        for key in range(60)
    ]
    means = np.array([one.mean for one in found])
    error = np.hypot(means.std(ddof=1) / np.sqrt(len(means)), long.monte_carlo)
    assert abs(means.mean() - long.mean) < 4 * error < 0.1 * long.mean
    claimed = np.sqrt(np.mean([one.monte_carlo**2 for one in found]))
    assert 0.7 < claimed / means.std(ddof=1) < 1.4


@pytest.mark.parametrize("name", ["curved", "by importance"])
def test_fitted_coefficients_make_the_error_smaller(name):
    pilot, draws = draws_of(name, 7, 32), draws_of(name, 8, 32)
    losses = np.asarray(pilot.terms.diffusion / pilot.weight)
    centred = losses - losses.mean()  # here no time and no image matters much
    coefficients = control.fit(pilot.t.ravel(), centred.ravel(), pilot.controls.reshape(-1, 3), 10)
    plain, rest = (
        evaluation.summarise(of, SHAPE).diffusion for of in (draws, draws.controlled(coefficients))
    )
    assert rest.monte_carlo < 0.5 * plain.monte_carlo
    assert abs(rest.mean - plain.mean) < 4 * plain.monte_carlo


def test_repeats_of_an_image_share_its_reconstruction():
    """z_0's noise is integrated out: what is left is the image's own."""
    terms = draws_of("curved", 0, 3).terms
    assert np.ptp(terms.reconstruction, axis=0).max() == 0.0
    expected = -pixels.expected_log_prob(IMAGES, -6.0, LEVELS).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(terms.reconstruction[0], expected, rtol=1e-5, atol=1e-7)


def test_draws_without_control_variates_are_refused():
    draws = dataclasses.replace(draws_of("curved", 0, 1), controls=None)
    with pytest.raises(ValueError, match="have no control variates: give the model a `control`"):
        draws.controlled(np.zeros((1, 3)))
