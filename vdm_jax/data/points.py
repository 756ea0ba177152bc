"""Points in the plane with a known density: a swirl, two moons, a checkerboard.

Each lies in about [-1, 1]^2 and is drawn anew from (name, seed), so that there are as many points
to train and to test on as one likes. Because the density is known, so is the entropy: the least
cross-entropy, in nats, that any model of these points can have.

- `swirl`: a Swiss roll in the plane, radius growing with the angle over one and a half turns, the
  angle uniform, with Gaussian noise of standard deviation 0.03.
- `moons`: two interleaved half circles, equally likely, the angle uniform, noise 0.06.
- `checkerboard`: uniform on the eight dark squares of a 4 x 4 board on [-1, 1]^2.
"""

import math
from collections.abc import Callable

import numpy as np

from vdm_jax import checks

NAMES = ("swirl", "moons", "checkerboard")

_NOISE = {"swirl": 0.03, "moons": 0.06}
_SQUARES = 4  # to a side of the checkerboard
# With u they are run through at a speed of at most 8.5: a node for each tenth of the noise.
_NODES = 3000


def draw(name: str, count: int, seed: int) -> np.ndarray:
    """Returns `count` independent points [count, 2], float32: a function of its arguments."""
    checks.choice(name, "the points", NAMES)
    checks.count(count, "count", least=0)
    checks.count(seed, "seed", least=0)
    rng = np.random.default_rng((int(seed), NAMES.index(name)))
    if name == "checkerboard":
        column, pair = rng.integers(0, _SQUARES, count), rng.integers(0, _SQUARES // 2, count)
        row = 2 * pair + column % 2
        corner = np.stack([column, row], axis=1)
        # Midpoints of a grid that float32 resolves: rounding puts no point on or over an edge.
        within = (rng.integers(0, 2**20, (count, 2)) + 0.5) / 2**20
        points = 2.0 * (corner + within) / _SQUARES - 1.0
    else:
        points = _CURVES[name](rng.random(count)) + _NOISE[name] * rng.normal(size=(count, 2))
    return points.astype(np.float32)


def log_prob(name: str, x: np.ndarray) -> np.ndarray:
    """Returns log p(x) of points [n, 2], in nats and float64: [n].

    For the curves it is the integral of the noise's density along the curve, by the midpoint rule
    (to 1e-4 nats where there are points); for the checkerboard -log 2 on its squares, else -inf.
    """
    checks.choice(name, "the points", NAMES)
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or x.shape[1] != 2:
        raise ValueError(f"points must be [n, 2], got shape {x.shape}.")
    if name == "checkerboard":
        cell = np.floor((x + 1.0) * (_SQUARES / 2)).astype(int)
        inside = np.all((cell >= 0) & (cell < _SQUARES), axis=1)
        dark = inside & ((cell[:, 0] - cell[:, 1]) % 2 == 0)
        return np.where(dark, -math.log(2.0), -np.inf)
    nodes = _CURVES[name]((np.arange(_NODES) + 0.5) / _NODES)
    blocks = np.array_split(x, max(1, math.ceil(len(x) / 1000)))  # bounds the memory
    return np.concatenate([_mixture(block, nodes, _NOISE[name]) for block in blocks])


def entropy(name: str) -> float:
    """Returns the entropy E[-log p(x)], in nats: exact, or by quadrature over the plane."""
    checks.choice(name, "the points", NAMES)
    if name == "checkerboard":
        return math.log(2.0)  # the squares have an area of 2
    # Sums over a grid of a smooth density converge faster than any power of its spacing.
    spacing = _NOISE[name] / 2.0
    axis = np.arange(-1.3, 1.3, spacing)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    values = log_prob(name, grid)
    return float(-np.sum(np.exp(values) * values) * spacing**2)


def _swirl(u: np.ndarray) -> np.ndarray:
    angle = 1.5 * np.pi * (1.0 + 2.0 * u)
    radius = 0.9 * angle / (4.5 * np.pi)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)


def _moons(u: np.ndarray) -> np.ndarray:
    upper = u < 0.5  # else the lower moon
    angle = 2.0 * np.pi * (u % 0.5)
    x = np.where(upper, np.cos(angle), 1.0 - np.cos(angle))
    y = np.where(upper, np.sin(angle), 0.5 - np.sin(angle))
    return 0.6 * np.stack([x - 0.5, y - 0.25], axis=-1)


_CURVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"swirl": _swirl, "moons": _moons}


def _mixture(x: np.ndarray, means: np.ndarray, noise: float) -> np.ndarray:
    """Returns the log density at x [n, 2] of the equal mixture of N(means[k], noise^2 I)."""
    inner = np.sum(x**2, axis=1)[:, None] + np.sum(means**2, axis=1) - 2.0 * x @ means.T
    square = inner / noise**2
    nearest = square.min(axis=1)
    total = np.mean(np.exp(0.5 * (nearest[:, None] - square)), axis=1)
    return np.log(total) - 0.5 * nearest - math.log(2.0 * math.pi * noise**2)
