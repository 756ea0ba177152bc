"""Sets of points in the plane whose p(set | theta) is known, for a theta in [-1, 1].

Both have a random number of points, and both are drawn anew from (name, theta, seed).

- `mixture`: N is Poisson of mean 4 exp(theta / 2), given that it is at most 10; the points are
  independent, with probability 1 / (1 + exp(-2 theta)) of N(m, 0.3^2 I), otherwise of
  N(-m, 0.6^2 I), m = (cos(theta), sin(theta)).
- `repulsion`: a soft Strauss process. N is Poisson of mean 3, the points are of N(0, I), and such a
  set is kept with the probability prod_{i<j} (1 - 0.9 exp(-|x_i - x_j|^2 / (2 r^2))), where
  r = 0.5 exp(theta), and otherwise drawn again; sets of more than 5 points are never kept.

The product over pairs is a sum over all graphs on the points, of a product of Gaussians each, whose
integral is a determinant: the normalising constant is exact (Mayer's expansion).
"""

import functools
import itertools
import math

import numpy as np
from numpy.typing import ArrayLike

from vdm_jax import checks

NAMES = ("mixture", "repulsion")
MOST = {"mixture": 10, "repulsion": 5}
"""The largest number of points, n_max."""

_STRENGTH = 0.9


def draw(name: str, count: int, theta: ArrayLike, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns `count` independent sets: points [count, n_max, 2] and mask [count, n_max, 1].

    Both are float32, the mask 1 where there is a point and the points 0 elsewhere; theta is a
    number in [-1, 1] or one for each set.
    """
    theta = _checked(name, theta, count)
    checks.count(seed, "seed", least=0)
    rng = np.random.default_rng((int(seed), NAMES.index(name)))
    points, mask = np.zeros((count, MOST[name], 2)), np.zeros((count, MOST[name]), bool)
    left = np.arange(count)
    while len(left):
        mean = _mean(name, theta[left])
        number = rng.poisson(mean)
        x = rng.normal(size=(len(left), MOST[name], 2))
        if name == "mixture":
            share, centre = _mixture(theta[left])
            first = rng.random(x.shape[:2]) < share
            centre = np.where(first[..., None], centre, -centre)
            x = centre + np.where(first, 0.3, 0.6)[..., None] * x
        there = np.arange(MOST[name]) < number[:, None]
        kept = np.exp(_interaction(name, x, there, theta[left]))
        good = (number <= MOST[name]) & (rng.random(len(left)) < kept)
        points[left[good]], mask[left[good]] = np.where(there[..., None], x, 0.0)[good], there[good]
        left = left[~good]
    return points.astype(np.float32), mask[..., None].astype(np.float32)


def log_prob(name: str, points: ArrayLike, mask: ArrayLike, theta: ArrayLike) -> np.ndarray:
    """Returns log p(N | theta) + log p(x_1, ..., x_N | N, theta), in nats and float64: [count].

    The density is of the points as a list; that of the set without an order is N! times as large.
    Arguments are as `draw` returns and takes them; what `points` holds without a mask is ignored.
    """
    there = np.asarray(mask, bool)[..., 0]
    theta = _checked(name, theta, len(there))
    x = np.where(there[..., None], np.asarray(points, np.float64), 0.0)
    if name == "mixture":
        share, centre = _mixture(theta)
        first = np.log(share) + _normal(x - centre, 0.3)
        each = np.logaddexp(first, np.log1p(-share) + _normal(x + centre, 0.6))
    else:
        each = _normal(x, 1.0)
    of_points = np.sum(each, axis=1, where=there) + _interaction(name, x, there, theta)
    n = there.sum(axis=1)
    number, integral = number_log_prob(name, theta), np.log(_integrals(name, theta))
    return (number - integral)[np.arange(len(n)), n] + of_points


def number_log_prob(name: str, theta: ArrayLike) -> np.ndarray:
    """Returns log p(N | theta) of N = 0, ..., n_max, in nats: [count, n_max + 1], theta [count]."""
    theta = _checked(name, theta, np.size(theta))
    n, mean = np.arange(MOST[name] + 1), _mean(name, theta)[:, None]
    factorials = np.array([math.lgamma(k + 1.0) for k in n])
    logits = n * np.log(mean) - factorials + np.log(_integrals(name, theta))
    return logits - np.log(np.sum(np.exp(logits), axis=1, keepdims=True))


def _checked(name: str, theta: ArrayLike, count: int) -> np.ndarray:
    """Returns theta as an array [count]. Raises ValueError for what isn't meant."""
    checks.choice(name, "the point sets", NAMES)
    checks.count(count, "count", least=0)
    theta = np.asarray(theta, np.float64)
    if theta.shape not in ((), (count,)) or not np.all(np.abs(theta) <= 1.0):
        got = f"shape {theta.shape}, {theta.min()} to {theta.max()}" if theta.size else "none"
        raise ValueError(f"theta must be in [-1, 1], a number or [{count}], got {got}.")
    return np.broadcast_to(theta, (count,))


def _mean(name: str, theta: np.ndarray) -> np.ndarray:
    return 4.0 * np.exp(0.5 * theta) if name == "mixture" else np.full_like(theta, 3.0)


def _mixture(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the probability of the first Gaussian [count, 1], and its mean [count, 1, 2]."""
    centre = np.stack([np.cos(theta), np.sin(theta)], axis=-1)
    return 1.0 / (1.0 + np.exp(-2.0 * theta[:, None])), centre[:, None]


def _normal(x: np.ndarray, deviation: float) -> np.ndarray:
    """Returns log N(x; 0, deviation^2 I) of x [..., 2]."""
    square = np.sum((x / deviation) ** 2, axis=-1)
    return -0.5 * square - math.log(2.0 * math.pi * deviation**2)


def _range(theta: np.ndarray) -> np.ndarray:
    return 0.5 * np.exp(theta)


def _interaction(name: str, x: np.ndarray, there: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Returns the log of the probability with which points x [count, n_max, 2] are kept."""
    total = np.zeros(len(x))
    if name == "repulsion":
        for i, j in itertools.combinations(range(x.shape[1]), 2):
            square = np.sum((x[:, i] - x[:, j]) ** 2, axis=-1) / _range(theta) ** 2
            pair = np.log1p(-_STRENGTH * np.exp(-0.5 * square))
            total += np.where(there[:, i] & there[:, j], pair, 0.0)
    return total


def _integrals(name: str, theta: np.ndarray) -> np.ndarray:
    """Returns the means of exp(`_interaction`) over N independent points, N = 0, ..., n_max.

    The shape is [count, n_max + 1]. A graph of edges E with the Laplacian L contributes
    (-0.9)^|E| E exp(-x^T L x / (2 r^2)) = (-0.9)^|E| / det(I + L / r^2) in two dimensions.
    """
    theta, of_each = np.unique(theta, return_inverse=True)
    found = np.ones((len(theta), MOST[name] + 1))
    if name == "repulsion":
        for n in range(2, MOST[name] + 1):
            eigenvalues, signed = _graphs(n)
            factors = 1.0 + eigenvalues / _range(theta)[:, None, None] ** 2
            found[:, n] = np.sum(signed / np.prod(factors, axis=2), axis=1)
    return found[of_each]


@functools.cache
def _graphs(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns all graphs on n points: eigenvalues of Laplacians [graphs, n], and (-0.9)^edges."""
    pairs = list(itertools.combinations(range(n), 2))
    chosen = np.array(list(itertools.product([0.0, 1.0], repeat=len(pairs))))
    ends = np.eye(n)
    of_pairs = np.array([np.outer(ends[i] - ends[j], ends[i] - ends[j]) for i, j in pairs])
    laplacians = np.tensordot(chosen, of_pairs, axes=1)
    return np.linalg.eigvalsh(laplacians), (-_STRENGTH) ** chosen.sum(axis=1)
