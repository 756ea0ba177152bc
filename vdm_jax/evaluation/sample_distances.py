"""How far two samples are apart: the maximum mean discrepancy, and sliced Wasserstein.

Both are distances of distributions, estimated from x [n, *event] and y [m, *event], flattened; both
vanish where the distributions are one. To judge a value: what the very same points give when it is
left to chance which of them are x (`permuted`).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from vdm_jax import checks
from vdm_jax.types import Key, Tensor

__all__ = [
    "DISTANCES",
    "Distance",
    "directions",
    "median_distance",
    "mmd",
    "permuted",
    "sliced_wasserstein",
]

DISTANCES = ("mmd", "sliced_wasserstein")


class Distance(NamedTuple):
    """What `mmd` returns, scalars."""

    square: Tensor
    """The estimate of the squared distance."""
    standard_error: Tensor
    """Its standard error, by leaving out one point after the other."""


def median_distance(x: ArrayLike) -> Tensor:
    """The median of the distances between the points of x [n, *event], n >= 2: a scalar."""
    x = _flat(x, "x")
    rows, columns = np.triu_indices(len(x), 1)
    return jnp.median(jnp.sqrt(_squares(x, x)[rows, columns]))


def mmd(x: ArrayLike, y: ArrayLike, scales: ArrayLike) -> Distance:
    """The squared maximum mean discrepancy, unbiased, of a sum of Gaussian kernels.

    With k(a, b) = sum_i exp(-|a - b|^2 / (2 scales_i^2)) the mean of k over pairs of two points of
    x, plus that over pairs of y, less twice that between x and y (Gretton et al. 2012, eq. 3): 0 on
    average, and negative as often as not, where x and y are of one distribution.

    Args:
      x, y: points [n, *event] and [m, *event], n and m at least 3.
      scales: positive, a scalar or any number of them; `median_distance` of held-out data, its half
        and its double are usual.

    Returns:
      `Distance`. Its standard error is the jackknife's; where the distributions are one it is too
      large, by up to a root of two. Raises ValueError for points of different shapes, or too few.
    """
    x, y = _pair(x, y, least=3)
    values = checks.known(scales)
    if values is not None and not (values.size and np.all(values > 0.0)):
        raise ValueError(f"scales must be positive, at least one of them, got {scales}.")
    of_x, of_y, across = (_kernel(a, b, scales) for a, b in ((x, x), (y, y), (x, y)))
    within = [_within(of_x), _within(of_y)]
    between = jnp.mean(across)
    less_x = _without_one(of_x) + within[1] - 2.0 * _mean_without_one(across, 1)
    less_y = _without_one(of_y) + within[0] - 2.0 * _mean_without_one(across, 0)
    variance = sum((len(less) - 1) * jnp.var(less) for less in (less_x, less_y))
    return Distance(within[0] + within[1] - 2.0 * between, jnp.sqrt(variance))


def sliced_wasserstein(x: ArrayLike, y: ArrayLike, along: Tensor) -> Tensor:
    """The squared sliced Wasserstein-2 distance of the points themselves, a scalar.

    The mean over directions of the squared W2 of the points' projections, which in one dimension is
    the integral over u in (0, 1) of the square of the difference of their quantiles (Bonneel et al.
    2015). Exact for any n and m; of samples it is biased upwards, the more so the fewer there are:
    compare values of equally many points.

    Args:
      x, y: points [n, *event] and [m, *event].
      along: unit vectors [num, d] with d the size of an event, as `directions` makes them.

    Raises:
      ValueError: for points or directions whose shapes don't agree.
    """
    x, y = _pair(x, y, least=1)
    if along.ndim != 2 or along.shape[1] != x.shape[1] or not len(along):
        raise ValueError(
            f"along must be [num, {x.shape[1]}], num at least 1, got shape {along.shape}."
        )
    n, m = len(x), len(y)
    # Both quantiles are constant between the multiples of 1 / n and 1 / m: exact, in integers.
    edges = np.union1d(np.arange(n + 1) * m, np.arange(m + 1) * n)
    weights = jnp.asarray(np.diff(edges) / (n * m), x.dtype)
    of_x, of_y = edges[:-1] // m, edges[:-1] // n

    def of_one(direction: Tensor) -> Tensor:
        a, b = jnp.sort(x @ direction), jnp.sort(y @ direction)
        return jnp.sum(weights * jnp.square(a[of_x] - b[of_y]))

    return jnp.mean(jax.lax.map(of_one, along))


def directions(key: Key, num: int, size: int) -> Tensor:
    """`num` independent unit vectors, uniform on the sphere: [num, size]."""
    checks.count(num, "num")
    checks.count(size, "size")
    normal = jax.random.normal(key, (num, size))
    return normal / jnp.linalg.norm(normal, axis=1, keepdims=True)


def permuted(
    key: Key, x: ArrayLike, y: ArrayLike, distance: Callable[[Tensor, Tensor], Tensor], num: int
) -> Tensor:
    """`distance` of `num` random ways to part the points of x and y into n and m of them: [num].

    What chance alone does where x and y are of one distribution. With b of them at or above the
    distance of x and y themselves, (b + 1) / (num + 1) is the p-value of a permutation test.
    """
    checks.count(num, "num")
    x, y = _pair(x, y, least=1)
    points, n = jnp.concatenate([x, y]), len(x)

    def of_one(key: Key) -> Tensor:
        mixed = jax.random.permutation(key, points)
        return distance(mixed[:n], mixed[n:])

    return jax.lax.map(of_one, jax.random.split(key, num))


# ---- helpers ----


def _flat(x: ArrayLike, name: str, least: int = 2) -> Tensor:
    x = jnp.asarray(x)
    if x.ndim < 2 or len(x) < least:
        raise ValueError(
            f"{name} must be points [n, *event], at least {least} of them, got shape {x.shape}."
        )
    return x.astype(jnp.result_type(x, float)).reshape(len(x), math.prod(x.shape[1:]))


def _pair(x: ArrayLike, y: ArrayLike, least: int) -> tuple[Tensor, Tensor]:
    shapes = jnp.shape(x), jnp.shape(y)
    if shapes[0][1:] != shapes[1][1:]:
        raise ValueError(f"x and y must be points of one shape, got {shapes[0]} and {shapes[1]}.")
    return _flat(x, "x", least), _flat(y, "y", least)


def _squares(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances [n, m]. Points are few numbers apart and many: about their mean first."""
    centre = jnp.mean(y, axis=0)
    x, y = x - centre, y - centre
    norms = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)
    return jnp.maximum(norms - 2.0 * jnp.matmul(x, y.T, precision="highest"), 0.0)


def _kernel(x: Tensor, y: Tensor, scales: ArrayLike) -> Tensor:
    squares = _squares(x, y)
    of = [jnp.exp(-0.5 * squares / scale**2) for scale in jnp.ravel(jnp.asarray(scales))]
    return sum(of[1:], of[0])


def _within(kernel: Tensor) -> Tensor:
    """Its mean over pairs of two points."""
    n = len(kernel)
    return (jnp.sum(kernel) - jnp.trace(kernel)) / (n * (n - 1))


def _without_one(kernel: Tensor) -> Tensor:
    """`_within` of all points but one, for each of them: [n]."""
    n = len(kernel)
    pairs = jnp.sum(kernel) - jnp.trace(kernel)
    own = jnp.sum(kernel, axis=1) - jnp.diagonal(kernel)
    return (pairs - 2.0 * own) / ((n - 1) * (n - 2))


def _mean_without_one(across: Tensor, axis: int) -> Tensor:
    """The mean of `across` without one point, for each of them; `axis` is that of the others."""
    n = across.shape[1 - axis]
    sums = jnp.sum(across, axis=axis)
    return (jnp.sum(sums) - sums) / ((n - 1) * across.shape[axis])
