"""Wiener filters: the best linear denoisers of images whose spectrum falls as a power of frequency.

In the basis of cosines (height, width and channels alike) the coefficients of natural images are
nearly uncorrelated. Of variance lambda_f each, and Gaussian, the noise of z_t = alpha x + sigma eps
is best predicted by eps_hat_f = sigma z_f / (alpha^2 lambda_f + sigma^2): VDM eq. 10's minimum for
a Gaussian. A network that starts from such predictions has only to learn what isn't Gaussian.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vdm_jax.process import expand
from vdm_jax.schedule import alpha, sigma
from vdm_jax.timestep import mean_gamma
from vdm_jax.transforms import cosines
from vdm_jax.types import PerExample, Tensor


class WienerFilters(nn.Module):
    """Predictions of eps by Wiener filters for several contrasts of the same spectrum.

    The spectrum is lambda_f = a_c / (f^2 + f0_c^2)^p_c + n_c for each cosine c across the channels,
    where f is the frequency in cycles per pixel times two. Its parameters are learned; they begin
    as those of photographs in [-1, 1].

    Attributes:
      contrasts: what the spectrum is multiplied by for each of the filters: below 1 for smooth
        regions, above 1 for rough ones.
    """

    contrasts: tuple[float, ...]

    @nn.compact
    def __call__(self, z_t: Tensor, gamma_t: PerExample) -> tuple[Tensor, Tensor]:
        """Returns predictions of eps, [*z_t's shape, filters], and z_t whitened.

        The latter has z_t's shape, [batch, height, width, channels], and of images with just this
        spectrum uncorrelated values of variance 1.
        """
        gamma_t, (height, width, channels) = mean_gamma(gamma_t), z_t.shape[1:]
        across = jnp.arange(channels) > 0

        def parameter(name: str, first: float, others: float) -> Tensor:
            start = jnp.where(across, math.log(others), math.log(first)).astype(z_t.dtype)
            return jnp.exp(self.param(name, lambda _: start))

        frequency = np.hypot.outer(np.arange(height) / height, np.arange(width) / width)[..., None]
        falling = frequency**2 + parameter("cutoff", 0.01, 0.01) ** 2
        spectrum = parameter("scale", 0.0135, 0.0008) * falling ** -parameter("power", 1.1, 1.25)
        spectrum += parameter("floor", 5e-5, 5e-5)
        signal, noise = expand(alpha(gamma_t), z_t) ** 2 * spectrum, expand(sigma(gamma_t), z_t)
        basis = [jnp.asarray(cosines(n), z_t.dtype) for n in z_t.shape[1:]]
        inverse = [matrix.T for matrix in basis]
        z_f = _transformed(z_t, basis)
        predictions = [
            _transformed(noise * z_f / (contrast * signal + noise**2), inverse)
            for contrast in self.contrasts
        ]
        white = _transformed(z_f / jnp.sqrt(signal + noise**2), inverse)
        return jnp.stack(predictions, axis=-1), white


def _transformed(x: Tensor, basis: list[Tensor]) -> Tensor:
    """Returns [batch, height, width, channels] in another basis of each of the last three axes."""
    precise = jax.lax.Precision.HIGHEST
    return jnp.einsum("nhwc,ih,jw,kc->nijk", x, *basis, optimize=True, precision=precise)
