"""Means and standard errors of draws of known spread."""

import jax.numpy as jnp
import numpy as np
import pytest
import toy_vdm

from vdm_jax import timestep
from vdm_jax.errors import UserError
from vdm_jax.evaluation.estimate import Estimate, estimate


def spread(repeats: int, images: int) -> np.ndarray:
    """Evenly spread times, as an evaluation's."""
    return np.mod(np.arange(images) * 0.618034 + np.arange(repeats)[:, None] / repeats, 1.0)


@pytest.mark.parametrize("repeats", [2, 3])
def test_the_error_is_split_into_what_draws_and_what_images_cause(repeats):
    """Independent draws with a known spread within (0.5) and between images (0.3)."""
    rng = np.random.default_rng(repeats)
    shares = []
    for _ in range(40):
        levels = rng.normal(2.0, 0.3, 200)
        shares.append(estimate(levels + rng.normal(0.0, 0.5, (repeats, 200))))
    within, between = 0.5 / np.sqrt(200 * repeats), 0.3 / np.sqrt(200)
    rms = lambda name: np.sqrt(np.mean([getattr(share, name) ** 2 for share in shares]))  # noqa: E731
    np.testing.assert_allclose(rms("monte_carlo"), within, rtol=0.1)
    np.testing.assert_allclose(rms("between"), between, rtol=0.1)
    np.testing.assert_allclose(rms("standard_error"), np.hypot(within, between), rtol=0.05)


def test_one_draw_of_each_image_has_the_standard_deviation_between_images():
    draws = np.random.default_rng(0).normal(size=(1, 50))
    found = estimate(draws)
    assert found.mean == draws.mean() and np.isnan(found.monte_carlo)
    np.testing.assert_allclose(found.standard_error, draws.std(ddof=1) / 50**0.5, rtol=1e-12)
    assert str(Estimate(1.98767, 0.01234)) == "1.9877 ± 0.0123"
    # Of two images of one mean, the draws alone say that there is an error.
    found = estimate(np.array([[0.0, 0.0], [1.0, 1.0]]))
    assert found.standard_error == found.monte_carlo > 0.0 and found.between == 0.0


def test_what_depends_on_the_time_alone_causes_no_error():
    """Losses that change much with t, plus 0.1 between images: the error is the latter's."""
    rng = np.random.default_rng(8)
    for repeats in (1, 2, 8):
        t = spread(repeats, 300)
        found = estimate(np.cos(2.0 * np.pi * t) + rng.normal(0.0, 0.1, 300), None, t)
        np.testing.assert_allclose(found.standard_error, 0.1 / 300**0.5, rtol=0.25)
        if repeats > 1:
            np.testing.assert_allclose(found.between, 0.1 / 300**0.5, rtol=0.25)


@pytest.mark.parametrize("importance", [False, True])
def test_error_of_a_loss_that_jumps_between_one_and_zero_is_calibrated(importance):
    """200 images x 8 draws of loss t plus noise of 5 %: the claimed variance is that over keys.

    By importance the times come from a density that falls with t, and the loss is weighted.
    """
    images, repeats = 200, 8
    density = timestep.proposal(1.0 / (np.arange(50) + 2.5))
    u = t = toy_vdm.evenly_spread(1000, images, repeats)
    weight = np.ones_like(u)
    if importance:
        t, weight = (np.asarray(a, float) for a in density.at(jnp.array(u)))
    rng, noise = np.random.default_rng(0), 0.05
    variance = np.var(np.mean(weight * t, axis=(1, 2)))
    variance += noise**2 * np.mean(weight**2) / (images * repeats)
    levels, claimed = rng.normal(0.0, 0.3, images), []
    for times, factor, even in zip(t[:20], weight, u, strict=False):
        draws = levels + factor * (times + noise * rng.normal(size=even.shape))
        claimed.append(estimate(draws, None, even).monte_carlo ** 2)
    np.testing.assert_allclose(np.mean(claimed), variance, rtol=0.1)


def test_draws_that_are_not_finite_are_refused():
    draws = np.ones((2, 5))
    draws[1, 3] = np.nan
    with pytest.raises(UserError, match="1 of 10 draws of the bound are not finite"):
        estimate(draws)


def test_taking_out_the_times_of_pure_noise_leaves_its_variance():
    """What the fit to the times takes from noise is given back, on average."""
    rng = np.random.default_rng(1)
    t = spread(4, 32)
    found = [estimate(rng.normal(size=(4, 32)), None, t) for _ in range(400)]
    variance = np.mean([one.monte_carlo**2 for one in found]) * 4 * 32
    np.testing.assert_allclose(variance, 1.0, rtol=0.06)


def test_one_image_or_one_source_tells_the_error_of_the_draws_alone():
    """Of an image, the deviation of its two draws over the root of 2: half their difference."""
    found = estimate(np.array([[1.0], [1.5]]))
    assert np.isnan(found.standard_error) and found.monte_carlo == 0.25
    assert (
        str(found) == "1.2500 (± 0.2500 of the draws)"
        and str(estimate(np.array([[1.5]]))) == "1.5000"
    )
    draws = np.random.default_rng(2).normal(size=(4, 10))
    photo = estimate(draws, np.zeros(10))
    assert np.isnan(photo.standard_error) and photo.monte_carlo == estimate(draws).monte_carlo


def test_images_that_belong_together_count_as_one():
    """30 photos of 20 equal crops each: the error is that of 30 numbers, not of 600."""
    photos = np.random.default_rng(5).normal(size=30)
    groups = np.repeat([f"photo {i}" for i in range(30)], 20)
    draws = np.repeat(photos, 20)[None]
    grouped = estimate(draws, groups)
    np.testing.assert_allclose(grouped.standard_error, photos.std(ddof=1) / 30**0.5)
    assert estimate(draws).standard_error < 0.3 * grouped.standard_error
