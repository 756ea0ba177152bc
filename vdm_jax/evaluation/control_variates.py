"""Control variates of the diffusion loss: what its noise does in Gaussian data, taken out.

With data N(m, C) the optimal denoiser is linear in z_t. Its squared error ||eps - eps_lin||^2
resembles the network's, is known without a call of the network, and so is its expectation over eps
given x and t. A loss minus (squared error - expectation) has the loss's expectation, whatever m and
C are, and varies less the more the two have in common. Expanded, the square is three terms, each of
which may be subtracted with a coefficient of its own:

    ||eps||^2 - 2 eps . eps_lin + ||eps_lin||^2.

The coefficients are fitted by least squares (`fit`), in bins of t, on draws that are not the
estimate's: then they are constants to it, and it stays unbiased.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from vdm_jax.errors import UserError
from vdm_jax.types import PerExample, Tensor

MOST_DIMS = 4096  # elements of an x whose full covariance is taken
FLOOR = 1e-3  # added to variances: directions in which the data don't vary keep some
RIDGE = 1e-4  # added to the diagonal of the correlations of control variates


class Linear(NamedTuple):
    """The denoiser that is optimal for N(mean, basis diag(var) basis^T)."""

    mean: np.ndarray  # [d]
    basis: np.ndarray  # orthonormal, [d, d], one eigenvector a column
    var: np.ndarray  # variances [d] along them, positive

    @classmethod
    def of(cls, x: ArrayLike) -> "Linear":
        """Returns that of the mean and covariance of data [n, *event].

        Raises UserError for more than `MOST_DIMS` elements.
        """
        x = np.asarray(x, np.float64)
        x = x.reshape(len(x), -1)
        if x.shape[1] > MOST_DIMS:
            raise UserError(
                f"control variates take the full covariance, of at most {MOST_DIMS} elements; an "
                f"image has {x.shape[1]}: leave --control_variates out"
            )
        mean = x.mean(axis=0)
        centred = x - mean
        var, basis = np.linalg.eigh(centred.T @ centred / len(x))
        return cls(mean, basis, np.maximum(var, 0.0) + FLOOR)

    def controls(self, x: Tensor, eps: Tensor, gamma_t: PerExample) -> Tensor:
        """Returns the three terms of ||eps - eps_lin||^2 less their means over eps: [batch, 3].

        It predicts E[eps|z_t] = sigma (alpha^2 C + sigma^2)^-1 (z_t - alpha m). In its basis, with
        e = basis^T eps, y = basis^T (x - m) and w = 1 / (1 + SNR var), that is
        w (e + sqrt(SNR) y) elementwise; so the terms' expectations given x and t are
        d, -2 sum w and sum w^2 (1 + SNR y^2).

        x are data [batch, *event] of any scale and distribution, eps standard-normal noise.
        """
        if gamma_t.ndim > 1:
            said = "control variates need one schedule; this model has one of each feature"
            raise UserError(f"{said}: leave --control_variates out")
        # A rotation that was rounded, as an accelerator does by default, would keep no expectation.
        x, eps = x.reshape(len(x), -1), eps.reshape(len(eps), -1)
        e = jnp.matmul(eps, self.basis, precision="highest")
        y = jnp.matmul(x - self.mean, self.basis, precision="highest")
        snr = jnp.exp(-gamma_t)[:, None]
        w = 1.0 / (1.0 + snr * self.var)
        eps_lin = w * (e + jnp.sqrt(snr) * y)
        terms = (
            jnp.square(e) - 1.0,
            -2.0 * (e * eps_lin - w),
            jnp.square(eps_lin) - jnp.square(w) * (1.0 + snr * jnp.square(y)),
        )
        return jnp.stack([jnp.sum(term, axis=1) for term in terms], axis=1)


def fit(t: np.ndarray, losses: np.ndarray, controls: np.ndarray, num_bins: int) -> np.ndarray:
    """Returns coefficients [num_bins, k] of control variates in bins of t, by least squares.

    `losses` [n] have mean zero at each time t [n]: differences of two draws of one image at one t,
    so that what images differ in is not taken for an effect of the noise; `controls` [n, k] are the
    same of the control variates. A bin without draws gets coefficients 0.
    """
    bins = _bins(t, num_bins)
    found = np.zeros((num_bins, controls.shape[-1]))
    for k in np.unique(bins):
        scale = np.sqrt(np.mean(controls[bins == k] ** 2, axis=0))
        scale[scale == 0.0] = 1.0  # a control that is zero throughout gets coefficient 0
        unit = controls[bins == k] / scale
        square = unit.T @ unit / len(unit) + RIDGE * np.eye(unit.shape[1])
        found[k] = np.linalg.solve(square, unit.T @ losses[bins == k] / len(unit)) / scale
    return found


def subtracted(
    t: ArrayLike, losses: ArrayLike, controls: ArrayLike, coefficients: np.ndarray
) -> np.ndarray:
    """Returns losses - sum over k of coefficients(t)_k controls_k, of t's shape.

    Controls [*shape, k] of mean zero at each t leave the expectation as it is.
    """
    rows = coefficients[_bins(np.asarray(t, np.float64), len(coefficients))]
    return np.asarray(losses, np.float64) - np.sum(rows * np.asarray(controls), axis=-1)


def _bins(t: np.ndarray, num_bins: int) -> np.ndarray:
    return np.minimum((t * num_bins).astype(int), num_bins - 1)
