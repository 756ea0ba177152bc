"""Array aliases and the two protocols by which the core knows a model."""

from typing import Any, Literal, Protocol

import jax
from jaxtyping import Array, Float, Int, PRNGKeyArray

Key = PRNGKeyArray | jax.Array
"""A JAX random key, new style (`jax.random.key`) or raw uint32 (`jax.random.PRNGKey`)."""

Tensor = Float[Array, "..."]
"""Floating-point array of any shape; the leading axis, where there is one, is the batch."""

PerExample = Float[Array, " batch"]
"""One floating-point number per example."""

Images = Int[Array, "batch ..."]
"""Integers in [0, levels); the axes behind the batch are the event shape (any number of them)."""

Kind = Literal["eps", "x", "v", "score"]
"""The quantity that a network predicts; see `vdm_jax.parameterization`."""

ReverseVar = Literal["posterior", "transition", "learned"]
"""The variance of p(z_s|z_t); see `vdm_jax.process.reverse`."""


class Gamma(Protocol):
    """A noise schedule gamma(t) = -log SNR(t), increasing on [0, 1].

    It is called with a one-dimensional array of times and differentiated by `jax.jvp`.
    """

    def __call__(self, t: Tensor, /) -> Tensor:
        """Returns gamma(t) of times in [0, 1], of the same shape."""
        ...


class Denoise(Protocol):
    """A network with its parameters (and conditioning, dropout key, ...) closed over."""

    def __call__(self, z_t: Tensor, gamma_t: PerExample, /) -> Any:
        """Returns the prediction [batch, *event] of latents of that shape and their gamma [batch].

        With a learned reverse variance: a pair of that and its share, of the same shape.
        """
        ...
