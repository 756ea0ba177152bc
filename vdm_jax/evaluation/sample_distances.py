"""Distances between two samples: the maximum mean discrepancy, and sliced Wasserstein.

Both are distances of distributions, estimated from x [n, *event] and y [m, *event], flattened; both
vanish where the distributions are one. To judge a value: what the very same points give when it is
left to chance which of them are x (`permuted`).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from vdm_jax.types import Key, Tensor

DISTANCES = ("mmd", "sliced_wasserstein")
DIRECTIONS = 256


def median_distance(x: ArrayLike) -> Tensor:
    """Returns the median of the distances between the points of x [n, *event], n >= 2.

    Where most of these pairs are equal points, it is that between points that differ; 0 if none do.
    """
    x, _ = _pair(x, x)
    rows, columns = np.triu_indices(len(x), 1)
    # By equality: the distance of equal points is 0 but for rounding.
    _, which = np.unique(np.asarray(x), axis=0, return_inverse=True)
    apart = which[rows] != which[columns]
    chosen = apart if 2 * apart.sum() <= apart.size else slice(None)
    distances = jnp.sqrt(_squares(x, x)[rows[chosen], columns[chosen]])
    return jnp.median(distances) if distances.size else jnp.zeros(())


def mmd(x: ArrayLike, y: ArrayLike, scales: ArrayLike) -> Tensor:
    """Returns the squared maximum mean discrepancy, unbiased, of a sum of Gaussian kernels.

    With k(a, b) = sum_i exp(-|a - b|^2 / (2 scales_i^2)) the mean of k over pairs of two points of
    x, plus that over pairs of y, less twice that between x and y (Gretton et al. 2012, eq. 3): 0 on
    average, and negative as often as not, where x and y are of one distribution. Both need two
    points. Usual scales are `median_distance` of held-out data, its half and its double.
    """
    x, y = _pair(x, y)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squares, each = _squares(a, b), jnp.ravel(jnp.asarray(scales))
        return jnp.sum(jnp.stack([jnp.exp(-0.5 * squares / s**2) for s in each]), 0)

    def within(points: Tensor) -> Tensor:
        n, k = len(points), kernel(points, points)
        return (jnp.sum(k) - jnp.trace(k)) / (n * (n - 1))

    return within(x) + within(y) - 2.0 * jnp.mean(kernel(x, y))


def sliced_wasserstein(x: ArrayLike, y: ArrayLike, along: Tensor) -> Tensor:
    """Returns the squared sliced Wasserstein-2 distance of the points themselves.

    The mean over the directions `along` [num, d] (`directions`) of the squared W2 of the points'
    projections, which in one dimension is the integral over u in (0, 1) of the square of the
    difference of their quantiles (Bonneel et al. 2015). Exact for any n and m; of samples it is
    biased upwards, the more so the fewer there are: compare values of equally many points.
    """
    x, y = _pair(x, y)
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
    """Returns `num` independent unit vectors, uniform on the sphere: [num, size]."""
    normal = jax.random.normal(key, (num, size))
    return normal / jnp.linalg.norm(normal, axis=1, keepdims=True)


def compiled(held_out: ArrayLike) -> dict[str, Callable[[ArrayLike, ArrayLike], Tensor]]:
    """Returns the distances by name, with scales and directions that suit held-out points."""
    scales = float(median_distance(held_out)) * np.array([0.5, 1.0, 2.0], np.float32)
    along = directions(jax.random.key(0), DIRECTIONS, np.size(held_out) // np.shape(held_out)[0])
    of = partial(mmd, scales=scales), partial(sliced_wasserstein, along=along)
    return dict(zip(DISTANCES, map(jax.jit, of), strict=True))


def permuted(
    key: Key, x: ArrayLike, y: ArrayLike, distance: Callable[[Tensor, Tensor], Tensor], num: int
) -> Tensor:
    """Returns `distance` of `num` random ways to part the points of x and y into n and m: [num]."""
    x, y = _pair(x, y)
    points, n = jnp.concatenate([x, y]), len(x)

    def of_one(key: Key) -> Tensor:
        mixed = jax.random.permutation(key, points)
        return distance(mixed[:n], mixed[n:])

    return jax.lax.map(of_one, jax.random.split(key, num))


def _pair(x: ArrayLike, y: ArrayLike) -> tuple[Tensor, Tensor]:
    """Returns points of floats, [n, d] and [m, d]."""
    shapes = jnp.shape(x), jnp.shape(y)
    if shapes[0][1:] != shapes[1][1:] or len(shapes[0]) < 2:
        raise ValueError(f"x and y must be points [n, *event], got {shapes[0]} and {shapes[1]}.")
    x, y = jnp.asarray(x, float), jnp.asarray(y, float)
    return x.reshape(len(x), -1), y.reshape(len(y), -1)


def _squares(x: Tensor, y: Tensor) -> Tensor:
    """Returns squared distances [n, m], about the mean of y: far from 0 they would cancel."""
    centre = jnp.mean(y, axis=0)
    x, y = x - centre, y - centre
    norms = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)
    return jnp.maximum(norms - 2.0 * jnp.matmul(x, y.T, precision="highest"), 0.0)
