"""The four quantities that a network may predict, each in terms of the others.

z_t = alpha x + sigma eps ties four unknowns together; given z_t and gamma_t, knowing one is
knowing all:

* eps:   the noise (VDM eq. 10 and 29; Luo eq. 115),
* x:     the data (VDM eq. 9 and 10; Luo eq. 99),
* v:     alpha eps - sigma x (Salimans & Ho 2022, appendix D),
* score: the gradient of log q(z_t), which is -eps / sigma at the optimum, so that Tweedie's formula
         reads x = (z_t + sigma^2 score) / alpha (VDM eq. 30; Luo, section "Three Equivalent
         Interpretations").

Shapes: prediction and z_t [batch, *event]; gamma_t a scalar or [batch]. Each target is written
from each source on its own, by the form that divides by neither alpha nor sigma where it can.
Other kinds and shapes raise ValueError.
"""

from typing import Any, get_args

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from vdm_jax import checks
from vdm_jax.process import expand
from vdm_jax.schedule import alpha as alpha_of
from vdm_jax.schedule import sigma as sigma_of
from vdm_jax.types import Kind, ReverseVar, Tensor

KINDS: tuple[Kind, ...] = get_args(Kind)
REVERSE_VARS: tuple[ReverseVar, ...] = get_args(ReverseVar)


def split(output: Any, reverse_var: ReverseVar) -> tuple[Tensor, Tensor | float]:
    """Returns a denoiser's prediction and the `share` of `vdm_jax.process.reverse`.

    The share is 0 for "posterior" and 1 for "transition"; for "learned" the denoiser must return a
    pair (prediction, share), both of the shape of z_t. Raises ValueError otherwise.
    """
    checks.choice(reverse_var, "reverse_var", REVERSE_VARS)
    pair = isinstance(output, tuple) and len(output) == 2
    if pair != (reverse_var == "learned"):
        wanted = "its prediction alone" if pair else "a pair (prediction, share)"
        said = f"with reverse_var={reverse_var!r} a denoiser returns {wanted}"
        raise ValueError(f"{said}, got {type(output).__name__}.")
    if not pair:
        return output, float(reverse_var == "transition")
    prediction, share = output
    if jnp.shape(share) != jnp.shape(prediction):
        got = f"{jnp.shape(share)} for a prediction of {jnp.shape(prediction)}"
        raise ValueError(f"the share of the variance must have the prediction's shape, got {got}.")
    return output


def to_x(prediction: Tensor, z_t: Tensor, gamma_t: ArrayLike, kind: Kind) -> Tensor:
    """Returns the data that `prediction`, of the given kind, stands for."""
    alpha, sigma = _coefficients(prediction, z_t, gamma_t, kind)
    match kind:
        case "x":
            return prediction
        case "eps":
            return (z_t - sigma * prediction) / alpha
        case "v":
            return alpha * z_t - sigma * prediction
        case "score":
            return (z_t + sigma**2 * prediction) / alpha


def to_eps(prediction: Tensor, z_t: Tensor, gamma_t: ArrayLike, kind: Kind) -> Tensor:
    """Returns the noise that `prediction`, of the given kind, stands for."""
    alpha, sigma = _coefficients(prediction, z_t, gamma_t, kind)
    match kind:
        case "x":
            return (z_t - alpha * prediction) / sigma
        case "eps":
            return prediction
        case "v":
            return sigma * z_t + alpha * prediction
        case "score":
            return -sigma * prediction


def to_v(prediction: Tensor, z_t: Tensor, gamma_t: ArrayLike, kind: Kind) -> Tensor:
    """Returns v = alpha eps - sigma x, from a prediction of any kind."""
    alpha, sigma = _coefficients(prediction, z_t, gamma_t, kind)
    match kind:
        case "x":
            return (alpha * z_t - prediction) / sigma
        case "eps":
            return (prediction - sigma * z_t) / alpha
        case "v":
            return prediction
        case "score":
            return -sigma * (prediction + z_t) / alpha


def to_score(prediction: Tensor, z_t: Tensor, gamma_t: ArrayLike, kind: Kind) -> Tensor:
    """Returns the score of q(z_t), from a prediction of any kind."""
    alpha, sigma = _coefficients(prediction, z_t, gamma_t, kind)
    match kind:
        case "x":
            return (alpha * prediction - z_t) / sigma**2
        case "eps":
            return -prediction / sigma
        case "v":
            return -z_t - alpha * prediction / sigma
        case "score":
            return prediction


def _coefficients(
    prediction: Tensor, z_t: Tensor, gamma_t: ArrayLike, kind: Kind
) -> tuple[Tensor, Tensor]:
    checks.choice(kind, "kind", KINDS)
    got = getattr(prediction, "shape", type(prediction).__name__)
    if got != np.shape(z_t):
        said = f"the prediction has shape {got}, but z_t has {np.shape(z_t)}"
        raise ValueError(f"{said}: a denoiser must return an array of its first argument's shape.")
    gamma_t = expand(gamma_t, z_t)
    return alpha_of(gamma_t), sigma_of(gamma_t)
