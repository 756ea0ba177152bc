"""Learned noise schedules gamma(t): a line, a monotone network (VDM appendix H), and a path.

Each module maps times of any shape to gammas of the same shape, a `PathGamma` times [n] to
[n, *event], or with a condition of each example [batch] or [1] to [batch, *event], and increases
with t whatever its parameters are. But for the path's, parameter names and shapes are those of the
published code.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax import checks, schedule
from vdm_jax.types import Tensor

END_POINTS = "l1"  # the parameters of a pinned `MonotoneGamma` that set its end points


class FixedGamma(nn.Module):
    """gamma(t) linear in t between constant end points; has no parameters."""

    gamma_min: float
    gamma_max: float

    @nn.compact
    def __call__(self, t: Tensor) -> Tensor:
        """Returns gamma(t), of the shape of t."""
        return schedule.linear(self.gamma_min, self.gamma_max)(t)


class ScalarGamma(nn.Module):
    """gamma(t) = b + |w| t with learned b and w: the end points are learned."""

    gamma_min: float
    gamma_max: float

    @nn.compact
    def __call__(self, t: Tensor) -> Tensor:
        """Returns gamma(t), of the shape of t."""
        w = self.param("w", nn.initializers.constant(self.gamma_max - self.gamma_min), (1,))
        b = self.param("b", nn.initializers.constant(self.gamma_min), (1,))
        return schedule.linear(b[0], b[0] + jnp.abs(w[0]))(t)


class MonotoneGamma(nn.Module):
    """A network with positive weights: a line plus l3(sigmoid(l2(t))), increasing in t.

    With `pinned` (the paper's normalised form) l2 and l3 only shape the curve: with
    h(t) = t + l3(sigmoid(l2(t))), gamma(t) = gamma_0 + (gamma_1 - gamma_0) (h(t) - h(0)) /
    (h(1) - h(0)) starts at gamma_0 and ends at gamma_1 whatever their weights. The end points are
    l1's bias and bias + |kernel|, learned with `learn_end_points`, else kept at the configured
    values. Without it (the published code's form) l1(t) + l3(sigmoid(l2(t))) itself is the schedule
    and drifts from its end points.
    """

    gamma_min: float
    gamma_max: float
    features: int = 1024
    pinned: bool = True
    learn_end_points: bool = True

    @nn.compact
    def __call__(self, t: Tensor) -> Tensor:
        """Returns gamma(t), of the shape of t."""
        if not self.learn_end_points and not self.pinned:
            raise ValueError("learn_end_points=False needs pinned=True: only then do they hold.")
        scale = nn.initializers.constant(self.gamma_max - self.gamma_min)
        offset = nn.initializers.constant(self.gamma_min)
        l1 = _MonotoneDense(1, scale, offset, name="l1")
        if self.pinned:
            steepness, centres = _steps(self.features)
            kernel = lambda _, shape: steepness.reshape(shape)  # noqa: E731
            bias = lambda _, shape: -(steepness * centres).reshape(shape)  # noqa: E731
            l2 = _MonotoneDense(self.features, kernel, bias, name="l2")
        else:
            l2 = _MonotoneDense(self.features, nn.initializers.normal(), name="l2")
        small = nn.initializers.normal(1e-4 if self.pinned else 1e-2)
        l3 = _MonotoneDense(1, small, bias_init=None, name="l3")

        def raw(t: Tensor) -> Tensor:
            column = t.reshape(-1, 1)
            # 2 sigmoid(y) - 1 = tanh(y / 2), the form of the published code.
            hidden = 2.0 * (jax.nn.sigmoid(l2(2.0 * (column - 0.5))) - 0.5)
            if self.pinned:  # a mean over features would take a thousand times as long to grow
                return (column + l3(hidden) / math.sqrt(self.features)).reshape(t.shape)
            return (l1(column) + l3(hidden) / self.features).reshape(t.shape)

        t = jnp.asarray(t, jnp.result_type(t, float))
        if not self.pinned:
            return raw(t)
        h_0, h_1 = raw(jnp.array([0.0, 1.0], t.dtype))
        gamma_0, gamma_1 = self.gamma_min, self.gamma_max
        if self.learn_end_points:
            gamma_0, gamma_1 = l1(jnp.array([[0.0], [1.0]], t.dtype))[:, 0]
        return schedule.linear(gamma_0, gamma_1)((raw(t) - h_0) / (h_1 - h_0))


class PathGamma(nn.Module):
    """A schedule of each coefficient between common end points: a mixture of a few learned curves.

    gamma_i(t) = gamma_0 + (gamma_1 - gamma_0) sum_r pi_ir h_r(t), with weights pi_i of the softmax
    and `rank` curves h_r, polynomials that rise from 0 to 1: their Bernstein coefficients rise. To
    begin with all coefficients have the same schedule, about a line. The end points are learned
    with `learn_end_points`, and else the configured ones.

    With `conditions` above 0 the logits of the weights are moved by a linear map, of rank `rank`
    and zero to begin with, of so many numbers of each example. The end points don't depend on them.
    """

    gamma_min: float
    gamma_max: float
    event_shape: tuple[int, ...]
    rank: int = 4
    learn_end_points: bool = True
    degree: int = 12
    conditions: int = 0

    @nn.compact
    def __call__(self, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Returns gamma(t) [n, *event] of times t [n].

        Of a `condition` [batch, conditions] it is each example's own, [batch, *event], at its time
        or at one for all: t is [batch] or [1]. None is the same as zeros.
        """
        if condition is not None:
            fits = condition.shape[1:] == (self.conditions,)
            if not fits or len({jnp.size(t), len(condition)} - {1}) > 1:  # each its own, or one
                wanted = f"[batch, {self.conditions}] for the times {jnp.shape(t)}"
                raise ValueError(f"the condition must be {wanted}, got {condition.shape}.")
        across = jnp.linspace(-1.0, 1.0, self.degree)
        # Curves that rise early, or late: were they alike, no gradient would tell them apart.
        tilted = lambda _, shape: jnp.linspace(-1.0, 1.0, shape[0])[:, None] * across  # noqa: E731
        curves = self.param("curves", tilted, (self.rank, self.degree))
        mixture = self.param("mixture", nn.initializers.zeros, (*self.event_shape, self.rank))
        if self.conditions:
            told = jnp.zeros((1, self.conditions)) if condition is None else condition
            start, shape = nn.initializers.lecun_normal(), (self.conditions, self.rank)
            told = jnp.matmul(told, self.param("of_condition", start, shape), precision="highest")
            moves = self.param("moves", nn.initializers.zeros, (self.rank, *mixture.shape))
            mixture += jnp.tensordot(told, moves, 1, precision="highest")
        # Of the Bernstein coefficients. An accelerator's default precision is too low for a
        # schedule: its steps would not all rise.
        rises = jnp.matmul(jax.nn.softmax(mixture), jax.nn.softmax(curves), precision="highest")
        heights = jnp.cumsum(rises, axis=-1)
        # Summed they are 1 up to rounding; the last is 1 to the bit, so that all end as one.
        heights = (heights / heights[..., -1:]).astype(jnp.result_type(t, float))
        basis = bernstein(jnp.asarray(t), self.degree)[..., 1:]
        basis = basis.reshape(-1, *(1 for _ in self.event_shape), self.degree)
        # Term by term, so that it rounds alike with a condition and without.
        parts = (basis[..., k] * heights[..., k] for k in range(self.degree))
        h = functools.reduce(jnp.add, parts)
        line = ScalarGamma if self.learn_end_points else FixedGamma
        return line(self.gamma_min, self.gamma_max, name=END_POINTS)(h)


def bernstein(t: Tensor, degree: int) -> Tensor:
    """Returns the Bernstein polynomials binom(n, k) t^k (1 - t)^(n - k), [..., degree + 1].

    They are nonnegative on [0, 1] and their sum is 1.
    """
    parts = (math.comb(degree, k) * t**k * (1.0 - t) ** (degree - k) for k in range(degree + 1))
    return jnp.stack(list(parts), axis=-1)


class _MonotoneDense(nn.Module):
    """A dense layer with the absolute value of its weights."""

    features: int
    kernel_init: Callable
    bias_init: Callable | None = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Tensor) -> Tensor:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        y = x @ jnp.abs(kernel).astype(x.dtype)
        if self.bias_init is None:
            return y
        return y + self.param("bias", self.bias_init, (self.features,)).astype(x.dtype)


def _steps(features: int) -> tuple[jax.Array, jax.Array]:
    """Returns steepness and centre, in [-1, 1], of steps that soon make any shape, [features].

    The centres are evenly spaced, and among neighbours all degrees of steepness are found.
    """
    i = jnp.arange(features)
    golden = 0.5 * (math.sqrt(5.0) - 1.0)
    return 2.0 * 100.0 ** jnp.mod(golden * i, 1.0), jnp.linspace(-1.0, 1.0, features)


def make(
    kind: str,
    gamma_min: float,
    gamma_max: float,
    pinned: bool = True,
    learn_end_points: bool = True,
    event_shape: tuple[int, ...] = (),
    conditions: int = 0,
) -> nn.Module:
    """Returns the schedule module of a kind; a path is of an event, and of numbers of each."""
    schedule.linear(gamma_min, gamma_max)  # checks the end points
    kinds = ("fixed", "scalar", "monotone", "path", "conditional_path")
    checks.choice(kind, "the schedule", kinds)
    if (kind == "conditional_path") != (conditions > 0):
        raise ValueError(f"a conditional_path is of conditions, got {kind} of {conditions}.")
    if kind.endswith("path"):
        ends = gamma_min, gamma_max
        return PathGamma(*ends, event_shape, 4, learn_end_points, conditions=conditions)
    if kind == "monotone":
        return MonotoneGamma(gamma_min, gamma_max, 1024, pinned, learn_end_points)
    return (FixedGamma if kind == "fixed" else ScalarGamma)(gamma_min, gamma_max)
