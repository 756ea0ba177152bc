"""Noise schedules gamma(t) = -log SNR(t), and what follows from a value of gamma.

Three things are called alpha in the literature. Here

* `alpha_bar(gamma)` is alpha_t^2 of the VDM paper (its section 3.1) and the cumulative product
  of DDPM and of Luo 2022 (section "Variational Diffusion Models"),
* `alpha(gamma)` is alpha_t of the VDM paper, the square root of the former,
* `step_alpha(gamma_s, gamma_t)` is Luo's (and DDPM's) alpha of a single step.

Each factory returns a callable t -> gamma(t) for t in [0, 1], increasing, that keeps the dtype of
t and can be differentiated. Latents exist at t = 0 already: a table of N values sits at
t = 0, 1/(N-1), ..., 1 and stands for N latents with N - 1 steps between them.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from vdm_jax import checks
from vdm_jax.types import Gamma, Tensor


def alpha_bar(gamma: Tensor) -> Tensor:
    """Returns alpha_t^2 = sigmoid(-gamma), the signal's share of the variance (VDM eq. 4)."""
    # Never 1 - sigmoid(gamma): near gamma = -13 that loses several bits in float32.
    return jax.nn.sigmoid(-gamma)


def variance(gamma: Tensor) -> Tensor:
    """Returns sigma_t^2 = sigmoid(gamma), the variance of q(z_t|x) (VDM eq. 3)."""
    return jax.nn.sigmoid(gamma)


def alpha(gamma: Tensor) -> Tensor:
    """Returns alpha_t = sqrt(sigmoid(-gamma)), the factor of x in z_t: the VDM paper's alpha."""
    return jnp.sqrt(alpha_bar(gamma))


def sigma(gamma: Tensor) -> Tensor:
    """Returns sigma_t = sqrt(sigmoid(gamma)), the factor of the noise in z_t."""
    return jnp.sqrt(variance(gamma))


def snr(gamma: Tensor) -> Tensor:
    """Returns the signal-to-noise ratio alpha_t^2 / sigma_t^2 = exp(-gamma) (VDM eq. 2 and 5)."""
    return jnp.exp(-gamma)


def gamma_from_alpha_bar(alpha_bar: Tensor) -> Tensor:
    """Returns gamma, the inverse of `alpha_bar`, for values in (0, 1)."""
    return jnp.log1p(-alpha_bar) - jnp.log(alpha_bar)


def step_alpha(gamma_s: Tensor, gamma_t: Tensor) -> Tensor:
    """Returns Luo's (and DDPM's) alpha of the step s -> t: alpha_bar_t / alpha_bar_s."""
    return jnp.exp(jax.nn.log_sigmoid(-gamma_t) - jax.nn.log_sigmoid(-gamma_s))


def step_beta(gamma_s: Tensor, gamma_t: Tensor) -> Tensor:
    """Returns DDPM's beta, 1 - step_alpha: the variance of q(z_t|z_s) (VDM eq. 22)."""
    # 1 - alpha_bar_t/alpha_bar_s = sigmoid(gamma_t) (1 - exp(gamma_s - gamma_t)), no cancellation.
    return -variance(gamma_t) * jnp.expm1(gamma_s - gamma_t)


def linear(gamma_min: ArrayLike, gamma_max: ArrayLike) -> Gamma:
    """Returns gamma(t) = gamma_min + (gamma_max - gamma_min) t: log-SNR linear in time.

    The end points may be traced, as in a learned schedule; then the caller keeps them in order.
    """
    _check_end_points(gamma_min, gamma_max)
    for name, value in (("gamma_min", gamma_min), ("gamma_max", gamma_max)):
        at = checks.known(value)
        if at is not None and not np.isfinite(at).all():
            raise ValueError(f"{name} must be finite, got {value}.")
    return lambda t: gamma_min + (gamma_max - gamma_min) * jnp.asarray(t)  # type: ignore[operator, return-value]


def cosine(gamma_min: float = -13.3, gamma_max: float = 5.0, s: float = 0.008) -> Gamma:
    """Returns the cosine schedule of Nichol & Dhariwal 2021 between two values of gamma.

    alpha_bar(u) = f(u) / f(0), f(u) = cos^2((u + s) / (1 + s) pi / 2). Time is mapped linearly on
    the part of u in [0, 1] between `gamma_min` and `gamma_max`; -inf and inf give the whole curve.
    """
    _check_end_points(gamma_min, gamma_max)
    _check_offset(s)
    c = 0.5 * math.pi / (1.0 + s)
    phi_0 = s * c

    def u_of(gamma: float) -> tuple[float, float]:
        # u and 1 - u. cos(phi) = cos(phi_0) alpha with phi = c (u + s); by atan2, exact at the end.
        var = 1.0 / (1.0 + math.exp(-gamma)) if gamma > -700.0 else 0.0
        sin_phi = math.hypot(math.sin(phi_0), math.cos(phi_0) * math.sqrt(var))
        cos_phi = math.cos(phi_0) * (math.exp(-0.5 * np.logaddexp(0.0, gamma)))
        complement = math.atan2(cos_phi, sin_phi) / c
        if gamma > 0.0 or var == 0.0:
            return (1.0 - complement if var else 0.0), complement
        # At the beginning phi - phi_0 would cancel; its sine is known, see `curve`.
        sine = var * math.cos(phi_0) ** 2 / math.sin(math.atan2(sin_phi, cos_phi) + phi_0)
        return math.asin(sine) / c, complement

    def curve(u: Tensor, complement: Tensor) -> Tensor:
        # 1 - alpha_bar = sin(phi - phi_0) sin(phi + phi_0) / cos^2(phi_0), and cos(phi) as the sine
        # of its complement: neither cancels, at either end.
        noise = jnp.log(jnp.sin(c * u)) + jnp.log(jnp.sin(c * u + 2.0 * phi_0))
        return noise - 2.0 * jnp.log(jnp.sin(c * complement))

    return _between(curve, u_of(gamma_min)[0], *u_of(gamma_max))


def beta_linear(
    gamma_min: float = -13.3, gamma_max: float = 5.0, beta_min: float = 0.1, beta_max: float = 20.0
) -> Gamma:
    """Returns DDPM's linear betas in continuous time, between two values of gamma.

    beta(u) = beta_min + (beta_max - beta_min) u (Song et al. 2021), gamma(u) = log(expm1(int_0^u
    beta)); time is mapped as in `cosine`. The table of the paper is `from_betas(ddpm_betas())`.
    """
    _check_end_points(gamma_min, gamma_max)
    if not 0.0 <= beta_min < beta_max < math.inf:
        raise ValueError(f"need 0 <= beta_min < beta_max < inf, got {beta_min} and {beta_max}.")

    def integral(u):
        return u * (beta_min + 0.5 * (beta_max - beta_min) * u)

    def u_of(gamma: float) -> float:
        # log(expm1(B)) = gamma  <=>  B = log(1 + exp(gamma)); then the quadratic's positive root.
        b = float(np.logaddexp(0.0, gamma))
        slope = beta_max - beta_min
        if b == 0.0:
            return 0.0
        return 2.0 * b / (beta_min + math.sqrt(beta_min**2 + 2.0 * slope * b))

    u_min, u_max = u_of(gamma_min), u_of(gamma_max)
    if not u_max <= 1.0:
        end = f"gamma(1) = {math.log(math.expm1(integral(1.0))):.4f}; raise beta_max or lower it"
        raise ValueError(f"gamma_max = {gamma_max} is beyond the end of this schedule, {end}.")
    # log(expm1(B)) = B + log(1 - exp(-B)), which does not overflow.
    return _between(
        lambda u, _: integral(u) + jnp.log(-jnp.expm1(-integral(u))), u_min, u_max, 1.0 - u_max
    )


def ddpm_betas(
    num_latents: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
) -> np.ndarray:
    """Returns the betas of Ho et al. 2020, "Experiments": float64 [num_latents], equally spaced."""
    checks.count(num_latents, "num_latents")
    return np.linspace(beta_start, beta_end, num_latents, dtype=np.float64)


def cosine_betas(num_latents: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> np.ndarray:
    """Returns the betas of Nichol & Dhariwal 2021: float64 [num_latents].

    min(1 - alpha_bar(i / N) / alpha_bar((i - 1) / N), max_beta) for i = 1, ..., N, with the
    alpha_bar of `cosine`. The clip touches the last beta, which would be 1.
    """
    checks.count(num_latents, "num_latents")
    _check_offset(s)
    phi = 0.5 * math.pi * (np.arange(num_latents + 1) / num_latents + s) / (1.0 + s)
    # cos^2 a - cos^2 b = sin(b - a) sin(a + b), where 1 - cos^2 b / cos^2 a would cancel.
    step = np.sin(np.diff(phi)) * np.sin(phi[1:] + phi[:-1]) / np.square(np.cos(phi[:-1]))
    return np.minimum(step, max_beta)


def from_betas(betas: ArrayLike) -> Gamma:
    """Returns the schedule of a table of DDPM's betas [N], N >= 2, each in (0, 1).

    Exact at the table's points t = i/(N-1), where alpha_bar_i = prod_{j <= i} (1 - beta_j), and
    linear in gamma between them.
    """
    table = _table(betas, "betas")
    log_alpha_bar = np.cumsum(np.log1p(-table))
    return _interpolate(np.log(-np.expm1(log_alpha_bar)) - log_alpha_bar)


def from_alpha_bar(alpha_bar: ArrayLike) -> Gamma:
    """Returns `from_betas` of a decreasing table of alpha_bars [N], N >= 2, each in (0, 1)."""
    table = _table(alpha_bar, "alpha_bar")
    if not np.all(np.diff(table) < 0.0):
        at = int(np.argmax(np.diff(table) >= 0.0))
        two = f"alpha_bar[{at}] = {table[at]:.6g} and alpha_bar[{at + 1}] = {table[at + 1]:.6g}"
        raise ValueError(f"alpha_bar must decrease, but {two}; is the table reversed?")
    return _interpolate(np.log1p(-table) - np.log(table))


def _between(
    curve: Callable[[Tensor, Tensor], Tensor], u_min: float, u_max: float, rest: float
) -> Gamma:
    """Returns `curve(u, 1 - u)` with t in [0, 1] for u in [u_min, u_max]; `rest` is 1 - u_max."""

    def gamma(t: Tensor) -> Tensor:
        t = checks.as_float(t)
        width = u_max - u_min
        return curve(u_min + width * t, rest + width * (1.0 - t))

    return gamma


def _interpolate(gammas: np.ndarray) -> Gamma:
    points = np.linspace(0.0, 1.0, len(gammas))

    def gamma(t: Tensor) -> Tensor:
        t = checks.as_float(t)
        return jnp.interp(t, jnp.asarray(points, t.dtype), jnp.asarray(gammas, t.dtype))

    return gamma


def _table(values: ArrayLike, name: str) -> np.ndarray:
    table = np.asarray(values, np.float64)
    if table.ndim != 1 or len(table) < 2:
        raise ValueError(f"{name} must be a table [N] with N >= 2, got shape {table.shape}.")
    bad = ~((table > 0.0) & (table < 1.0))
    if bad.any():
        at = int(np.argmax(bad))
        got = f"{name}[{at}] = {table[at]}"
        raise ValueError(f"{name} must lie strictly between 0 and 1, got {got}.")
    return table


def _check_offset(s: float) -> None:
    if not s >= 0.0:
        raise ValueError(f"s must be at least 0, got {s}.")


def _check_end_points(gamma_min: ArrayLike, gamma_max: ArrayLike) -> None:
    low, high = checks.known(gamma_min), checks.known(gamma_max)
    if low is not None and high is not None and not np.all(low < high):
        got = f"gamma_min = {gamma_min} and gamma_max = {gamma_max}"
        raise ValueError(f"gamma_min must be below gamma_max (gamma grows with t), got {got}.")
