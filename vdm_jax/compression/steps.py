"""Where the steps of a chain lie, and how wide they are, by the error of the network's noise.

Let m(gamma) be the mean squared error of eps_hat, of a pixel. A step from gamma_s to gamma_t costs
d / 2 nats, d = (exp(gamma_t - gamma_s) - 1) m(gamma_t), if p(z_s|z_t) has the posterior's variance
(VDM eq. 13 and 14); log(1 + d) / 2 if its variance is 1 + d times as large, and none other costs
less. With a = gamma_t - gamma_s that is m a / 2 + (m + m' - m^2) a^2 / 4 and terms of third order:
the bound of T steps is least if they are as dense as the root of m + m' - m^2.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from vdm_jax import process
from vdm_jax.types import Gamma, ReverseVar

KNOTS = 17  # of a profile, equally far apart in gamma
_FINE = 8192  # parts, of the integral of the density
_LEAST = 0.03  # of the highest density


class Steps(NamedTuple):
    """The levels of a chain, and the variances of its steps."""

    gammas: np.ndarray  # float64 [T + 1], or [T + 1, *event] of a schedule of each element
    shares: np.ndarray | None  # [T], as for `process.reverse`; None: the network tells each pixel's


def equal(gamma: Gamma, num_steps: int, reverse_var: ReverseVar = "posterior") -> Steps:
    """Returns the steps of t = 0, 1/T, ..., 1."""
    gammas = np.asarray(gamma(jnp.arange(num_steps + 1) / num_steps), np.float64)
    shares = np.full(num_steps, float(reverse_var == "transition"))
    return Steps(gammas, None if reverse_var == "learned" else shares)


def placed(gamma: Gamma, num_steps: int, reverse_var: ReverseVar, profile: bytes) -> Steps:
    """Returns the steps between gamma(0) and gamma(1) that cost the least by a `profile`."""
    at, errors = knots(gamma), (np.frombuffer(profile, np.uint8) / 255.0) ** 2
    fine = np.linspace(at[0], at[-1], _FINE + 1)
    error = np.interp(fine, at, errors)
    density = np.sqrt(np.maximum(error + np.gradient(error, fine) - error**2, 0.0))
    density += _LEAST * density.max() + 1e-6
    before = np.append(0.0, np.cumsum(density[1:] + density[:-1]))
    gammas = np.interp(np.linspace(0.0, before[-1], num_steps + 1), before, fine)
    if reverse_var == "learned":
        return Steps(gammas, None)
    s, t = gammas[:-1], gammas[1:]
    wider = np.log1p(np.expm1(t - s) * np.interp(t, at, errors))
    widest = np.asarray(process.variance_log_ratio(jnp.asarray(s), jnp.asarray(t)))
    return Steps(gammas, np.clip(wider / widest, 0.0, 1.0))


def knots(gamma: Gamma) -> np.ndarray:
    """Returns the values of gamma that a profile is of, float64 [KNOTS]."""
    first, last = np.asarray(gamma(jnp.array([0.0, 1.0])), np.float64)
    return np.linspace(first, last, KNOTS)


def profile(errors: np.ndarray) -> bytes:
    """Returns the roots of m at the knots, in 255ths, a byte each: 1 for more, and for NaN."""
    return np.rint(255.0 * np.sqrt(np.fmin(errors, 1.0))).astype(np.uint8).tobytes()
