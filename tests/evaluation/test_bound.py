import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import LEVELS, SHAPE, constant_model, mlp_model

from vdm_jax import data, loss
from vdm_jax.evaluation import bound as evaluation
from vdm_jax.loss import ElboTerms
from vdm_jax.train import sharding

RNG = np.random.default_rng(0)


def images(count):
    return RNG.integers(0, LEVELS, (count, *SHAPE), np.uint8)


step_of = functools.cache(evaluation.make_eval_step)  # compiled once a model and mesh


def evaluate(model, test_images, batch_size, repeats=1, mesh=None, key=0):
    mesh = mesh or sharding.make_mesh(jax.devices()[:1])
    return evaluation.evaluate(
        step_of(model, mesh),
        model.init(jax.random.key(0)),
        lambda: data.eval_batches(test_images, batch_size=batch_size),
        model,
        mesh,
        jax.random.key(key),
        repeats,
    )


def test_means_and_standard_errors_against_numpy():
    nats = ElboTerms(*np.abs(RNG.normal(size=(3, 1, 50))).astype(np.float32))
    t = np.linspace(0.0, 1.0, 50, endpoint=False)[None]
    result = evaluation.summarise(evaluation.Draws(nats, t, np.ones((1, 50))), (2, 2, 1))
    for name in ("reconstruction", "prior"):
        bits = getattr(nats, name)[0] / (4 * np.log(2))
        found = getattr(result, name)
        np.testing.assert_allclose(found.mean, bits.mean(), rtol=1e-6)
        np.testing.assert_allclose(found.standard_error, bits.std(ddof=1) / 50**0.5, rtol=1e-5)
    np.testing.assert_allclose(result.total.mean, (nats.total / (4 * np.log(2))).mean(), rtol=1e-6)
    np.testing.assert_allclose(
        result.total.mean,
        result.reconstruction.mean + result.prior.mean + result.diffusion.mean,
        rtol=1e-6,
    )


def test_what_depends_on_the_time_alone_causes_no_error_between_images():
    """Losses that are a steep function of t, plus 0.1 between images: the error is the latter's."""
    rng = np.random.default_rng(8)
    for repeats in (1, 2, 8):
        t = np.mod(np.arange(300) * 0.618034 + np.arange(repeats)[:, None] / repeats, 1.0)
        draws = np.exp(2.0 * t) + rng.normal(0.0, 0.1, 300)
        found = evaluation.estimate(draws, None, t)
        np.testing.assert_allclose(found.standard_error, 0.1 / 300**0.5, rtol=0.25)
        if repeats > 1:
            np.testing.assert_allclose(found.between, 0.1 / 300**0.5, rtol=0.25)


def test_one_image_has_no_standard_error():
    one = evaluation.Draws(ElboTerms(*np.ones((3, 1, 1))), np.zeros((1, 1)), np.ones((1, 1)))
    result = evaluation.summarise(one, SHAPE)
    assert np.isnan(result.total.standard_error) and np.isnan(result.total.monte_carlo)
    assert set(result.scalars()) == {"bpd", "reconstruction", "prior", "diffusion"}


@pytest.mark.parametrize("repeats", [2, 3, 8])
def test_the_error_is_split_into_what_draws_and_what_images_cause(repeats):
    """Independent draws with a known spread within (0.5) and between images (0.3)."""
    rng = np.random.default_rng(repeats)
    shares = []
    for _ in range(40):
        levels = rng.normal(2.0, 0.3, 200)
        shares.append(evaluation.estimate(levels + rng.normal(0.0, 0.5, (repeats, 200))))
    within, between = 0.5 / np.sqrt(200 * repeats), 0.3 / np.sqrt(200)
    rms = lambda name: np.sqrt(np.mean([getattr(share, name) ** 2 for share in shares]))  # noqa: E731
    np.testing.assert_allclose(rms("monte_carlo"), within, rtol=0.1)
    np.testing.assert_allclose(rms("between"), between, rtol=0.1)
    np.testing.assert_allclose(rms("standard_error"), np.hypot(within, between), rtol=0.05)


def test_images_that_belong_together_count_as_one():
    """30 photos of 20 equal crops each: the error is that of 30 numbers, not of 600."""
    rng = np.random.default_rng(5)
    photos = rng.normal(size=30)
    groups = np.repeat([f"photo {i}" for i in range(30)], 20)
    draws = np.repeat(photos, 20)[None]
    grouped = evaluation.estimate(draws, groups)
    np.testing.assert_allclose(grouped.standard_error, photos.std(ddof=1) / 30**0.5)
    assert evaluation.estimate(draws).standard_error < 0.3 * grouped.standard_error
    apart = evaluation.estimate(draws, np.arange(600))
    np.testing.assert_allclose(apart.standard_error, draws.std(ddof=1) / 600**0.5)


@pytest.mark.parametrize("repeats", [2, 5, 8])
def test_the_monte_carlo_error_is_the_spread_between_keys(repeats):
    """On one set of images, whose times are spread evenly: nothing else changes."""
    model = constant_model()
    model = dataclasses.replace(model, bind=steep(model.bind))
    test_images = images(96)
    results = [evaluate(model, test_images, 96, repeats, key=k).diffusion for k in range(60)]
    spread = np.std([r.mean for r in results], ddof=1)
    claimed = np.sqrt(np.mean([r.monte_carlo**2 for r in results]))
    assert 0.7 < claimed / spread < 1.4


@pytest.mark.parametrize("count", [1, 7, 8, 9, 17])
def test_every_image_counts_once_and_padding_never(count):
    """The prior term has no noise: its mean over the set is known exactly."""
    test_images = images(count)
    model = constant_model()
    result = evaluate(model, test_images, batch_size=8, repeats=2)
    assert result.num_images == count
    x = 2.0 * (test_images + 0.5) / LEVELS - 1.0
    prior = loss.bits_per_dim(loss.prior(jnp.asarray(x), 4.0), SHAPE)
    np.testing.assert_allclose(result.prior.mean, prior.mean(), rtol=1e-5)
    if count > 1:
        expected = np.std(prior, ddof=1) / count**0.5
        np.testing.assert_allclose(result.prior.standard_error, expected, rtol=1e-3, atol=1e-9)


def test_the_figure_is_reproducible_and_the_key_matters():
    test_images, model = images(11), mlp_model()
    first, again = (evaluate(model, test_images, 4, 2) for _ in range(2))
    assert first == again
    assert evaluate(model, test_images, 4, 2, key=1).total != first.total


def test_eight_devices_give_the_figure_of_one():
    test_images, model = images(19), mlp_model()
    one = evaluate(model, test_images, 8, 3)
    eight = evaluate(model, test_images, 8, 3, sharding.make_mesh())
    assert one.num_images == eight.num_images == 19
    np.testing.assert_allclose(one.total.mean, eight.total.mean, rtol=1e-6)
    np.testing.assert_allclose(one.total.standard_error, eight.total.standard_error, rtol=1e-5)


def test_the_known_bound_lies_within_the_error_bars():
    """eps_hat = 0: E||eps||^2 = d, so the diffusion term is d (gamma_1 - gamma_0) / 2 exactly."""
    result = evaluate(constant_model(), images(400), 100, 4)
    exact = 0.5 * 10.0 / np.log(2)
    assert abs(result.diffusion.mean - exact) < 4 * result.diffusion.standard_error
    # Repeats shrink what is Monte-Carlo error: here nearly everything.
    single = evaluate(constant_model(), images(400), 100, 1)
    assert result.diffusion.standard_error < 0.65 * single.diffusion.standard_error


def test_the_figure_does_not_depend_on_batch_size_or_padding():
    test_images, model = images(19), mlp_model()
    one_batch = evaluate(model, test_images, 19, 3)
    for batch_size in (1, 4, 32):
        other = evaluate(model, test_images, batch_size, 3)
        np.testing.assert_allclose(other.total.mean, one_batch.total.mean, rtol=1e-5)
        np.testing.assert_allclose(
            other.total.standard_error, one_batch.total.standard_error, rtol=1e-4
        )


def test_the_standard_error_covers_the_spread_between_keys_also_of_a_padded_batch():
    """A loss that depends on t steeply: times that bunch up would move the mean by far more."""
    model = constant_model()
    model = dataclasses.replace(model, bind=steep(model.bind))
    results = [evaluate(model, images(20), 32, 4, key=key).diffusion for key in range(30)]
    spread = np.std([r.mean for r in results], ddof=1)
    claimed = np.mean([r.standard_error for r in results])
    assert 0.7 < claimed / spread < 1.6  # not what times spread evenly don't cause, and no less


def steep(bind):
    """The same model, which errs more and more as gamma grows."""

    def changed(params, conditioning, dropout_key):
        _, gamma = bind(params, conditioning, dropout_key)
        return lambda z, g: jnp.exp(0.5 * g)[:, None, None, None] * jnp.ones_like(z), gamma

    return changed


def test_dropout_is_off():
    test_images = images(9)
    with_dropout = evaluate(mlp_model(dropout=0.9), test_images, 9)
    without = evaluate(mlp_model(dropout=0.0), test_images, 9)
    assert with_dropout == without


def test_no_images_is_an_error():
    mesh = sharding.make_mesh(jax.devices()[:1])
    model = constant_model()
    with pytest.raises(ValueError, match="no images to evaluate"):
        evaluation.evaluate(
            evaluation.make_eval_step(model, mesh), {}, list, model, mesh, jax.random.key(0)
        )


def test_an_estimate_reads_as_mean_and_error():
    assert str(evaluation.Estimate(1.98767, 0.01234)) == "1.9877 ± 0.0123"
