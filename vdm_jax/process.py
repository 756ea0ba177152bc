"""The four Gaussians of the diffusion process, each a function of gamma, and chains of them.

Shapes: data and latents are [batch, *event]; a gamma is a scalar, [batch], or anything that
broadcasts against [batch, *event] once trailing axes of size one are appended. Section 3 and
appendix A of the VDM paper; section "Variational Diffusion Models" of Luo 2022.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from vdm_jax import checks
from vdm_jax.distributions import Gaussian
from vdm_jax.schedule import alpha, alpha_bar, step_alpha, step_beta, variance
from vdm_jax.types import Key, Tensor


def expand(gamma: ArrayLike, like: Tensor, name: str = "gamma") -> Tensor:
    """Returns `gamma` with trailing axes of size one, which line it up with the first of `like`.

    Raises ValueError, by `name`, for a gamma that doesn't broadcast to `like` then.
    """
    gamma, like = jnp.asarray(gamma), jnp.asarray(like)
    shape = gamma.shape + (1,) * (like.ndim - gamma.ndim)
    fits = len(shape) == like.ndim and all(np.isin(shape, 1) | np.equal(shape, like.shape))
    if not fits:
        raise ValueError(
            f"{name} of shape {gamma.shape} does not go with an array of shape {like.shape}: "
            f"wanted a scalar or one {name} per example, {list(like.shape[:1])}."
        )
    return gamma.reshape(shape)


def marginal(x: Tensor, gamma_t: ArrayLike) -> Gaussian:
    """Returns q(z_t|x) = N(alpha_t x, sigma_t^2 I) (VDM eq. 1)."""
    x, gamma_t = jnp.asarray(x), expand(gamma_t, x)
    return Gaussian(alpha(gamma_t) * x, variance(gamma_t))


def marginal_of_gaussian(data: Gaussian, gamma_t: ArrayLike) -> Gaussian:
    """Returns q(z_t) of data x ~ N(m, s^2 I): N(alpha_t m, (alpha_t^2 s^2 + sigma_t^2) I).

    `marginal` averaged over x; the mean has the shape [batch, *event].
    """
    gamma_t = expand(gamma_t, data.mean)
    var = alpha_bar(gamma_t) * data.var + variance(gamma_t)
    return Gaussian(alpha(gamma_t) * data.mean, var)


def transition(z_s: Tensor, gamma_s: ArrayLike, gamma_t: ArrayLike) -> Gaussian:
    """Returns q(z_t|z_s) = N(alpha_{t|s} z_s, sigma_{t|s}^2 I), s < t (VDM eq. 20 to 22)."""
    checks.order(gamma_s, gamma_t)
    z_s, gamma_s, gamma_t = jnp.asarray(z_s), expand(gamma_s, z_s), expand(gamma_t, z_s)
    return Gaussian(jnp.sqrt(step_alpha(gamma_s, gamma_t)) * z_s, step_beta(gamma_s, gamma_t))


def simulate(key: Key, x: Tensor, gammas: ArrayLike) -> Tensor:
    """Returns the forward chain: z_0 ~ q(z_0|x), then one `transition` after another.

    x is [batch, *event], gammas [num] never decrease (else NaN); z is [num, batch, *event].
    """
    gammas = checks.as_float(gammas)
    if gammas.ndim != 1 or not gammas.size:
        raise ValueError(f"gammas must be [num], at least one, got shape {gammas.shape}.")
    key_0, key_steps = jax.random.split(key)

    def step(z_s: Tensor, at: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        i, gamma_s, gamma_t = at
        z_t = transition(z_s, gamma_s, gamma_t).sample(jax.random.fold_in(key_steps, i))
        return z_t, z_t

    z_0 = marginal(x, gammas[0]).sample(key_0)
    _, later = jax.lax.scan(step, z_0, (jnp.arange(gammas.size - 1), gammas[:-1], gammas[1:]))
    return jnp.concatenate([z_0[None], later])


def posterior(z_t: Tensor, x: Tensor, gamma_s: ArrayLike, gamma_t: ArrayLike) -> Gaussian:
    """Returns q(z_s|z_t, x), s < t (VDM eq. 23 to 25; Luo eq. 84).

    With c = sigma_{t|s}^2 / sigma_t^2 = 1 - exp(gamma_s - gamma_t) the variance is sigma_s^2 c and
    the mean (alpha_s / alpha_t) (1 - c) z_t + alpha_s c x.
    """
    checks.order(gamma_s, gamma_t)
    z_t, x = jnp.asarray(z_t), jnp.asarray(x)
    gamma_s, gamma_t = expand(gamma_s, z_t), expand(gamma_t, z_t)
    c = -jnp.expm1(gamma_s - gamma_t)
    # alpha_s/alpha_t grows and 1 - c shrinks with gamma_t: multiplied as logarithms, no overflow.
    log_ratio = 0.5 * (jax.nn.log_sigmoid(-gamma_s) - jax.nn.log_sigmoid(-gamma_t))
    mean = jnp.exp(log_ratio + gamma_s - gamma_t) * z_t + jnp.sqrt(alpha_bar(gamma_s)) * c * x
    return Gaussian(mean, variance(gamma_s) * c)


def reverse(
    z_t: Tensor, x_hat: Tensor, gamma_s: ArrayLike, gamma_t: ArrayLike, share: ArrayLike = 0.0
) -> Gaussian:
    """Returns p(z_s|z_t), the generative step: q(z_s|z_t, x = x_hat) (VDM eq. 9), or wider.

    `share`, a scalar or of the shape of z_t, is how far the logarithm of the variance has gone from
    that of the posterior's variance (0) to that of the transition's, sigma_{t|s}^2 (1): the first
    is best for data that is one point, the second for data ~ N(0, I) (Ho et al. 2020, section 3.2);
    between them it can be learned (Nichol & Dhariwal 2021, eq. 15).
    """
    narrow = posterior(z_t, x_hat, gamma_s, gamma_t)
    if isinstance(share, float) and share == 0.0:
        return narrow  # its variance may be nothing, and the ratio below infinite
    widest = variance_log_ratio(expand(gamma_s, z_t), expand(gamma_t, z_t))
    return Gaussian(narrow.mean, narrow.var * jnp.exp(share * widest))


def variance_log_ratio(gamma_s: Tensor, gamma_t: Tensor) -> Tensor:
    """Returns log(sigma_t^2 / sigma_s^2) >= 0: the transition's variance over the posterior's."""
    # sigma_s^2 / sigma_t^2 - 1: for a small step the difference of the logarithms would cancel.
    fall = alpha_bar(gamma_s) * jnp.expm1(gamma_s - gamma_t)
    near = fall > -0.5
    far = jax.nn.log_sigmoid(gamma_t) - jax.nn.log_sigmoid(gamma_s)
    return jnp.where(near, -jnp.log1p(jnp.where(near, fall, 0.0)), far)


def scan(body: Callable[[Any, Any], tuple[Any, None]], carry: Any, steps: Any) -> Any:
    """Returns the last carry of `jax.lax.scan`, also inside `jax.shard_map`.

    There what is carried may be the same on all devices before the first step, of a replicated key,
    but not after it, of a sharded condition; scan wants it to vary throughout.
    """
    if jax.sharding.get_abstract_mesh().manual_axes:
        after, _ = jax.eval_shape(body, carry, jax.tree.map(lambda each: each[0], steps))

        def vary(before: Tensor, after: jax.ShapeDtypeStruct) -> Tensor:
            kinds = (each.manual_axis_type for each in (jax.typeof(before), after))
            now, later = (kind.varying if kind else frozenset() for kind in kinds)  # check_vma
            return jax.lax.pcast(before, tuple(later - now), to="varying")

        carry = jax.tree.map(vary, carry, after)
    return jax.lax.scan(body, carry, steps)[0]
