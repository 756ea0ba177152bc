"""Orthonormal transforms of an event, whose coefficients a model may noise one by one.

With y = W x, W orthonormal, the process z_t = alpha_t y + sigma_t eps may have a schedule of each
coefficient. As |det W| = 1 the density of y is that of x. All steps of W are matrices along single
axes, and no entry of W is a sum of several of their products: its squared entries are the products
of the squared ones, so that `Transform.spread` costs what `Transform.inverse` does.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from vdm_jax import checks
from vdm_jax.process import expand
from vdm_jax.timestep import mean_gamma
from vdm_jax.types import Denoise, Tensor

Step = tuple[np.ndarray, ...]
"""Matrices along the first axes of an event, [n, n] each, of the corner that is as large."""


@dataclasses.dataclass(frozen=True)
class Transform:
    """An orthonormal W on events, [batch, *event] -> [batch, *event]; one of `haar`, `dct`, ..."""

    name: str
    """All that it does in a word: transforms of one name are equal."""
    steps: Callable[[Sequence[int]], Sequence[Step]] = dataclasses.field(compare=False)
    """Steps of an event's shape, the first one first; raises ValueError for one it can't be of."""
    flat: bool = False
    """Whether the steps are those of the flattened event."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns the coefficients W x."""
        return self._through(x, lambda steps: steps)

    def inverse(self, y: Tensor) -> Tensor:
        """Returns W^T y, the x of coefficients y."""
        return self._through(y, lambda steps: _transposed(steps, 1))

    def spread(self, v: Tensor) -> Tensor:
        """Returns sum_i W_ij^2 v_i, the variance of each element of W^T (sqrt(v) eps)."""
        return self._through(v, lambda steps: _transposed(steps, 2))

    def _through(self, x: Tensor, of: Callable[[Sequence[Step]], Iterable[Step]]) -> Tensor:
        shape = jnp.shape(x)
        y = checks.as_float(x)
        y = y.reshape(len(y), -1) if self.flat else y
        for matrices in of(self.steps(y.shape[1:])):
            corner = (slice(None), *(slice(len(matrix)) for matrix in matrices))
            part = y[corner]
            for axis, matrix in enumerate(matrices, start=1):
                along = jnp.asarray(matrix, y.dtype)
                part = jnp.tensordot(along, part, (1, axis), precision="highest")
                part = jnp.moveaxis(part, 0, axis)
            y = y.at[corner].set(part)
        return y.reshape(shape)


def _transposed(steps: Sequence[Step], power: int) -> Iterable[Step]:
    return [tuple(matrix.T**power for matrix in step) for step in reversed(steps)]


def haar(levels: int) -> Transform:
    """Returns the cascade of `levels` Haar steps along the first two axes, or a vector's only one.

    Each halves the block at the start of these axes, at the top left, into means (times 2, along
    one axis sqrt 2) there and differences beside and below it. Further axes, channels, stay.
    """
    checks.count(levels, "levels of the Haar transform")

    def steps(event: Sequence[int]) -> list[Step]:
        sizes = event[:2]
        if not sizes or any(size % 2**levels for size in sizes):
            wanted = f"sizes that 2^{levels} divides, along the first two axes"
            raise ValueError(f"{levels} levels of Haar need {wanted}, got {tuple(event)}.")
        return [tuple(_halves(size >> level) for size in sizes) for level in range(levels)]

    return Transform(f"haar-{levels}", steps)


def _halves(size: int) -> np.ndarray:
    """Returns the Haar step along one axis: sums of neighbours, then their differences."""
    pairs = np.eye(size // 2) * 0.5**0.5
    return np.concatenate([np.kron(pairs, [1.0, 1.0]), np.kron(pairs, [1.0, -1.0])])


def dct() -> Transform:
    """Returns the orthonormal discrete cosine transform (DCT-II) along the first two axes."""
    return Transform("dct", lambda event: [tuple(cosines(size) for size in event[:2])])


def cosines(n: int) -> np.ndarray:
    """Returns the orthogonal matrix of the discrete cosine transform (DCT-II) of n values."""
    k = np.arange(n)
    matrix = np.cos(np.pi * (k + 0.5) * k[:, None] / n) * math.sqrt(2.0 / n)
    matrix[0] /= math.sqrt(2.0)
    return matrix


def of_matrix(matrix: ArrayLike) -> Transform:
    """Returns the transform by an orthonormal matrix [dims, dims] of the flattened event.

    Raises ValueError for one that isn't, to the rounding of its dtype.
    """
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or len(matrix) != matrix.shape[1] or matrix.dtype.kind not in "fiu":
        got = f"{matrix.dtype} of shape {matrix.shape}"
        raise ValueError(f"matrix must be square, [dims, dims], and real, got {got}.")
    wide, size = matrix.astype(np.float64), len(matrix)
    most = 100.0 * np.finfo(np.result_type(matrix, np.float32)).eps
    off = np.max(np.abs(wide @ wide.T - np.eye(size)))
    if not off <= most:
        said = f"its W W^T differs from the identity by {off:.2g}, at most {most:.2g} is rounding"
        raise ValueError(f"matrix must be orthonormal; {said}: take numpy.linalg.qr(matrix)[0].")

    def steps(event: Sequence[int]) -> list[Step]:
        if tuple(event) != (size,):
            raise ValueError(f"the matrix is of {size} dimensions, the event has {event[0]}.")
        return [(wide,)]

    return Transform(f"matrix-{hashlib.sha256(wide.tobytes()).hexdigest()}", steps, flat=True)


@dataclasses.dataclass(frozen=True)
class Coefficients:
    """Data that a model knows by their coefficients W x: for `VDM.levels`, in place of a number.

    The decoder comes back to pixels. With a number of levels it is a product over the pixels, each
    normalised over its levels, of Gaussians around W^T z_0 / alpha_0, of the variance that the
    noise of all coefficients has there: it is a distribution whatever gamma_0 is, and the VDM's
    own if gamma_0 is one for all. Else that noise is correlated between pixels, and the bound pays
    for what the product leaves out. Without levels it is the density of the coefficients, exact.
    """

    levels: int | None
    """Number of values that a pixel can take; None for continuous data."""
    transform: Transform

    def __post_init__(self) -> None:
        if self.levels is not None:
            checks.count(self.levels, "levels of Coefficients")
        if not isinstance(self.transform, Transform):
            wanted = "a Transform, as transforms.haar(2)"
            raise ValueError(f"transform must be {wanted}, got {self.transform!r}.")

    def gamma_of_pixels(self, gamma_0: ArrayLike, like: Tensor) -> Tensor:
        """Returns the logarithm of the variance of the noise W^T (exp(gamma_0 / 2) eps).

        `gamma_0` is a scalar, [batch] or [1, *event], `like` [batch, *event]. If it is one for the
        event it comes back as it is.
        """
        gamma_0 = jnp.asarray(gamma_0)
        if gamma_0.ndim < 2 or gamma_0.size == len(gamma_0):
            return gamma_0
        var = jnp.exp(expand(gamma_0, like))
        every = jnp.broadcast_to(var, (len(var), *like.shape[1:]))
        spread = jnp.log(self.transform.spread(every))
        flat = gamma_0.reshape(len(gamma_0), -1)
        # Of equal ones it is the same again, but for its rounding, which is taken back; the
        # derivatives stay those of the sum.
        rounding = jnp.where(jnp.all(flat == flat[:, :1]), gamma_0 - spread, 0.0)
        return spread + jax.lax.stop_gradient(rounding)

    def decoder(self, error: Tensor, gamma_0: ArrayLike) -> tuple[int | None, Tensor, ArrayLike]:
        """Returns the levels of p(x|z_0), its error, and the logarithm of its variance.

        Of coefficients `error` [batch, *event], of variances exp(gamma_0): with levels it is that
        of the pixels, else as it is.
        """
        if self.levels is None:
            return None, error, gamma_0
        return self.levels, self.transform.inverse(error), self.gamma_of_pixels(gamma_0, error)

    def unmasked(self, mask: ArrayLike | None) -> None:
        """Raises ValueError for a mask, as coefficients are of what is there and of padding."""
        if mask is not None:
            said = f"a model of coefficients ({self.transform.name}) can't have a mask"
            raise ValueError(f"{said}: leave out the mask or the transform.")


def denoiser(of_pixels: Denoise, transform: Transform) -> Denoise:
    """Returns a network of pixels as one of the coefficients: it sees W^T z_t and `mean_gamma`.

    What it predicts, eps, x, v or score of pixels, comes back as W times it.
    """

    def denoise(z_t: Tensor, gamma_t: Tensor) -> Tensor:
        found = of_pixels(transform.inverse(z_t), mean_gamma(gamma_t))
        if isinstance(found, tuple):
            said = "a network of pixels with a learned variance can't be one of coefficients"
            raise ValueError(f"{said}: take reverse_var='posterior' or 'transition'.")
        return transform.forward(found)

    return denoise
