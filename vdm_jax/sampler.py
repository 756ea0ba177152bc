"""Drawing from a trained model."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from vdm_jax import checks, pixels
from vdm_jax.parameterization import split, to_x
from vdm_jax.process import expand, reverse
from vdm_jax.schedule import alpha
from vdm_jax.timestep import check_num_steps
from vdm_jax.types import Denoise, Gamma, Images, Key, Kind, ReverseVar, Tensor

__all__ = ["ancestral", "ancestral_step", "predict", "to_images"]


def predict(
    denoise: Denoise, z_t: Tensor, gamma_t: ArrayLike, reverse_var: ReverseVar
) -> tuple[Tensor, Tensor | float]:
    """`parameterization.split` of the prediction for z_t [batch, *event] at a scalar gamma_t."""
    per_example = jnp.broadcast_to(jnp.asarray(gamma_t, z_t.dtype), z_t.shape[:1])
    return split(denoise(z_t, per_example), reverse_var)


def ancestral_step(
    z_t: Tensor,
    eps: Tensor,
    denoise: Denoise,
    gamma_s: ArrayLike,
    gamma_t: ArrayLike,
    kind: Kind = "eps",
    reverse_var: ReverseVar = "posterior",
) -> Tensor:
    """z_s ~ p(z_s|z_t) made of standard-normal noise `eps` (VDM eq. 33, appendix A.4).

    z_t, eps and the result are [batch, *event]; gamma_s < gamma_t are scalars.
    """
    z_t, eps = jnp.asarray(z_t), jnp.asarray(eps)
    if z_t.shape != eps.shape:
        raise ValueError(f"z_t {z_t.shape} and eps {eps.shape} differ in shape.")
    prediction, share = predict(denoise, z_t, gamma_t, reverse_var)
    x_hat = to_x(prediction, z_t, gamma_t, kind)
    return reverse(z_t, x_hat, gamma_s, gamma_t, share).at(eps)


def ancestral(
    key: Key,
    denoise: Denoise,
    gamma: Gamma,
    shape: Sequence[int],
    num_steps: int,
    kind: Kind = "eps",
    reverse_var: ReverseVar = "posterior",
) -> Tensor:
    """z_0 of the generative model: z_1 ~ N(0, I), then `num_steps` ancestral steps to t = 0.

    Args:
      key: gives all the noise.
      denoise, gamma, kind, reverse_var: as for `vdm_jax.loss.diffusion`.
      shape: [batch, *event] of the latents.
      num_steps: T; times are equally spaced.

    Returns:
      z_0, of the given shape; `to_images` makes pixels of it.
    """
    check_num_steps(num_steps)
    shape = checks.shape(shape)
    gammas = gamma(jnp.linspace(1.0, 0.0, num_steps + 1))
    key_init, key_steps = jax.random.split(key)

    def body(z_t: Tensor, step: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, None]:
        i, gamma_t, gamma_s = step
        eps = jax.random.normal(jax.random.fold_in(key_steps, i), z_t.shape, z_t.dtype)
        return ancestral_step(z_t, eps, denoise, gamma_s, gamma_t, kind, reverse_var), None

    z_1 = jax.random.normal(key_init, shape, gammas.dtype)
    steps = (jnp.arange(num_steps), gammas[:-1], gammas[1:])
    z_0, _ = jax.lax.scan(body, z_1, steps)
    return z_0


def to_images(z_0: Tensor, gamma_0: ArrayLike, levels: int, key: Key | None = None) -> Images:
    """Pixels in [0, levels) of a latent z_0: the most likely, or a draw of p(x|z_0) by `key`."""
    z_0 = jnp.asarray(z_0)
    return pixels.decode(z_0 / alpha(expand(gamma_0, z_0)), gamma_0, levels, key)
