"""The bound over a dataset: each image once, reproducible, and an honest error."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_vdm
from toy_vdm import DIMS, EXACT, IMAGES, LEVELS

from vdm_jax import loss, pixels, timestep
from vdm_jax.evaluation import bound as evaluation
from vdm_jax.evaluation.bound import Draws, Reduction
from vdm_jax.evaluation.control_variates import Linear
from vdm_jax.loss import ElboTerms

X = np.asarray(pixels.encode(IMAGES.test, LEVELS))
BY = {
    "plain": Reduction(),
    "controls": Reduction(linear=Linear.of(X)),
    "both": Reduction(timestep.proposal([1.0, 4.0, 2.0]), Linear.of(X)),
}
step_of = functools.cache(
    lambda denoise, by, devices=1: evaluation.make_eval_step(
        toy_vdm.model(denoise), toy_vdm.subject(devices=devices).mesh, BY[by]
    )
)


def draws_of(subject, denoise=toy_vdm.curved, by="plain", repeats=1, key=0) -> Draws:
    step = step_of(denoise, by, subject.mesh.size)
    return evaluation.collect(
        step, subject.params, subject.batches(), subject.mesh, jax.random.key(key), repeats
    )


def test_every_image_is_drawn_once_a_repeat_in_order_and_padding_never():
    """The prior and the reconstruction have no noise: they are known for each image."""
    draws = draws_of(toy_vdm.subject(batch_size=32), repeats=3)
    prior = loss.prior(jnp.asarray(X), 4.0)
    terms = draws.terms
    assert terms.prior.shape == draws.t.shape == (3, 60)
    np.testing.assert_allclose(terms.prior, np.broadcast_to(prior, (3, 60)), rtol=1e-5)
    nats = -pixels.expected_log_prob(IMAGES.test, -6.0, LEVELS).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(terms.reconstruction[2], nats, rtol=1e-5, atol=1e-7)
    assert np.ptp(terms.reconstruction, axis=0).max() == 0.0


def test_the_draws_depend_on_the_key_and_the_image_alone():
    """Not on batch size, padding or devices."""
    alone = draws_of(toy_vdm.subject(batch_size=60), repeats=2)
    for subject in (toy_vdm.subject(batch_size=16), toy_vdm.subject(batch_size=16, devices=2)):
        other = draws_of(subject, repeats=2)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), alone, other)
    assert np.all(draws_of(toy_vdm.subject(), key=1).t != alone.t[0])
    assert np.all(np.abs(alone.t[1] - alone.t[0]) > 1e-6)


@pytest.mark.parametrize("name", ["labels", "conditions"])
def test_each_image_is_given_its_condition_and_groups_follow_the_images(name):
    """eps_hat is the class c, or the last number: E ||eps - c||^2 = d (1 + c^2)."""
    told = {part: np.arange(len(getattr(IMAGES, part))) % 2 * 3 for part in ("train", "test")}
    if name == "conditions":
        told = {part: np.stack([7 + c, c], 1).astype(np.float32) for part, c in told.items()}
    subject = toy_vdm.subject(**{name: told}, source={"test": np.arange(60) // 2})
    draws = draws_of(subject, toy_vdm.nothing, repeats=16)
    found = draws.terms.diffusion.mean(axis=0)
    np.testing.assert_allclose(found[::2].mean(), EXACT, rtol=0.1)
    np.testing.assert_allclose(found[1::2].mean(), 10 * EXACT, rtol=0.1)
    few = subject.first(7)
    np.testing.assert_array_equal(few.groups, [0, 0, 1, 1, 2, 2, 3])
    np.testing.assert_array_equal(few.images.given("test"), subject.images.given("test")[:7])
    assert len(few.images.test) == 7
    assert len(few.images.train) == 200 and len(few.first(None).images.test) == 7
    assert len(next(iter(few.first(3, "train").batches("train")()))["present"]) == 60


def test_means_of_the_terms_and_their_unit_against_numpy():
    rng = np.random.default_rng(1)
    nats = ElboTerms(*np.abs(rng.normal(size=(3, 1, 50))))
    t = np.linspace(0.0, 1.0, 50, endpoint=False)[None]
    result = evaluation.summarise(Draws(nats, t, np.ones((1, 50))), toy_vdm.subject().bound)
    assert (result.num_images, result.repeats, result.unit.key) == (50, 1, "bpd")
    for name in ("reconstruction", "prior", "diffusion"):
        mean = getattr(nats, name).mean() / (4 * np.log(2))
        np.testing.assert_allclose(getattr(result, name).mean, mean, rtol=1e-6)
    error = nats.prior.std(ddof=1) / (4 * np.log(2)) / 50**0.5
    np.testing.assert_allclose(result.prior.standard_error, error, rtol=1e-5)
    parts = result.reconstruction.mean + result.prior.mean + result.diffusion.mean
    np.testing.assert_allclose(result.total.mean, parts, rtol=1e-6)
    names = {"reconstruction", "prior", "diffusion"}
    assert set(result.scalars()) == {"bpd", "bpd_standard_error", *names}
    # A single image of continuous data: nats of a density, and no error.
    one = Draws(ElboTerms(*np.ones((3, 1, 1))), np.zeros((1, 1)), np.ones((1, 1)))
    result = evaluation.summarise(one, toy_vdm.subject().vdm._replace(levels=None))
    assert set(result.scalars()) == {"nats_per_dim", *names} and result.total.mean == 3 / DIMS


@pytest.mark.parametrize("by", ["plain", "both"])
@pytest.mark.parametrize("repeats", [2, 5])
def test_the_error_is_the_spread_between_keys_and_the_mean_that_of_many_draws(by, repeats):
    """Also with times by importance, and control variates with any coefficients."""
    coefficients = np.random.default_rng(2).normal(0.0, 0.2, (4, 3))
    subject = toy_vdm.subject(batch_size=96, test=np.concatenate([IMAGES.test, IMAGES.test[:36]]))

    def found(repeats, key):
        draws = draws_of(subject, toy_vdm.steep, by, repeats, key)
        draws = draws if draws.controls is None else draws.controlled(coefficients)
        return evaluation.summarise(draws, subject.bound).diffusion

    results = [found(repeats, key) for key in range(60)]
    means = np.array([one.mean for one in results])
    # The loss is gamma' / 2 (||eps||^2 - 2 f sum(eps) + d f^2) with f = exp(gamma / 2).
    exact = (EXACT + 2.0 * (np.exp(4.0) - np.exp(-6.0))) / (4 * np.log(2))
    assert abs(means.mean() - exact) < 4 * means.std(ddof=1) / 60**0.5 < 0.1 * exact
    claimed = np.sqrt(np.mean([one.monte_carlo**2 for one in results]))
    assert 0.7 < claimed / means.std(ddof=1) < 1.4


def test_a_loss_that_is_a_control_variate_is_known_exactly():
    """eps_hat = 0: the first control is the whole noise of the loss."""
    draws = draws_of(toy_vdm.subject(), toy_vdm.nothing, "controls", 3)
    rest = draws.controlled(np.array([[1.0, 0.0, 0.0]]))
    assert draws.terms.diffusion.std() > 5.0
    np.testing.assert_allclose(rest.terms.diffusion, EXACT, rtol=1e-5)
    result = evaluation.summarise(rest, toy_vdm.subject().bound)
    np.testing.assert_allclose(result.diffusion.mean, EXACT / (4 * np.log(2)), rtol=1e-6)
    assert result.diffusion.monte_carlo < 1e-6
    assert rest.terms.prior is draws.terms.prior and rest.controls is None


def test_nothing_to_draw_is_refused():
    for batches, repeats, message in ((list, 1, "there are no images"), (None, 0, "repeats must")):
        with pytest.raises(ValueError, match=message):
            evaluation.collect(None, {}, batches, None, None, repeats)
