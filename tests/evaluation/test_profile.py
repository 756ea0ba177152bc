"""The profile of a likelihood over theta, of a conditional Gaussian whose profile is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import schedule
from vdm_jax.evaluation.likelihood import profile
from vdm_jax.vdm import VDM

VAR, ENDS = 0.25, (-12.0, 16.0)
GRID = {"shift": jnp.array([[-0.5], [0.0], [0.3], [0.6], [1.0]])}
RNG = np.random.default_rng(3)
X = (0.3 + VAR**0.5 * RNG.normal(size=(300, 3))).astype(np.float32)
EXACT = -0.5 * ((X - np.asarray(GRID["shift"])[:, None]) ** 2 / VAR + np.log(2 * np.pi * VAR)).sum(
    2
)


def bind(theta):
    """The best denoiser of x ~ N(shift, VAR I), E[x|z_t]."""
    shift = theta["shift"]
    assert shift.shape == (len(X), 1)

    def x_hat(z_t, gamma_t):
        alpha, sigma = schedule.alpha(gamma_t)[:, None], schedule.sigma(gamma_t)[:, None]
        gain = alpha * VAR / (alpha**2 * VAR + sigma**2)
        return shift + gain * (z_t - alpha * shift)

    return VDM(x_hat, schedule.linear(*ENDS), (3,), levels=None, kind="x")


def test_the_bound_s_differences_are_exact_and_their_errors_calibrated_and_small():
    found = profile(bind, X, GRID, jax.random.key(0), draws=(12, 16))
    best = np.take_along_axis(EXACT, found.reference[None], axis=0)
    miss = found.difference - (EXACT - best)
    here = found.error > 0.0
    assert np.all(here.sum(axis=0) == 4) and np.all(miss[~here] == 0.0)
    # Student's t of 11 degrees of freedom has the variance 11 / 9; the bound is tight to 1e-3.
    for i in range(5):
        of_one = miss[i][here[i]] / found.error[i][here[i]]
        assert abs(np.mean(of_one)) < 0.3 and 0.7 < np.mean(of_one**2) / (11 / 9) < 1.4
    values = found.log_prob - EXACT
    assert abs(values.mean()) < 4.5 * values.mean(axis=0).std() / len(X) ** 0.5
    unpaired = np.sqrt(2.0 * np.mean(values**2))
    assert np.sqrt(np.mean(miss**2)) < 0.25 * unpaired
    np.testing.assert_allclose(np.diff(found.difference, axis=0), np.diff(found.log_prob, axis=0))
    # The sum over all examples, to one theta for all, has the error of independent parts.
    whole = profile(bind, X, GRID, jax.random.key(1), draws=(12, 16), reference=2)
    missed = (whole.difference - (EXACT - EXACT[2])).sum(axis=1)
    error = np.sqrt((whole.error**2).sum(axis=1))
    assert np.all(np.abs(missed) <= 4.0 * error) and error[2] == missed[2] == 0.0


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_the_ode_s_profile_is_exact(trace):
    found = profile(
        bind, X, GRID, jax.random.key(0), "ode", (3, 1), trace=trace, rtol=1e-4, atol=1e-4
    )
    # In float32 over 28 units of gamma, whose roundings the solver adds up.
    np.testing.assert_allclose(found.log_prob, EXACT, rtol=1e-3, atol=5e-3)
    np.testing.assert_array_equal(found.reference, EXACT.argmax(axis=0))
    # The trace is that of a multiple of the identity: any probe of signs gives it.
    np.testing.assert_allclose(found.error, 0.0, atol=1e-4)


def test_what_has_no_profile_is_refused():
    key = jax.random.key(0)

    def broken(theta):
        return bind(theta)._replace(denoise=lambda z_t, gamma_t: jnp.nan * z_t)

    for match, call in (
        ("by must be one of bound, ode, got 'iw'", lambda: profile(bind, X, GRID, key, "iw")),
        ("number of repeats must be an integer of at least 2, got 1",
         lambda: profile(bind, X, GRID, key, draws=(1, 8))),
        ("draw is no argument of profile", lambda: profile(bind, X, GRID, key, draw=(2, 2))),
        ("reference must be at most 4, got 5",
         lambda: profile(None, X, GRID, key, reference=5)),
        ("not finite in 3000 of 3000 draws", lambda: profile(broken, X, GRID, key, draws=(2, 2))),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            call()
