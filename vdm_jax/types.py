"""Array aliases, and the two functions by which the core knows a model."""

from collections.abc import Callable
from typing import Any, Literal

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

Gamma = Callable[[Tensor], Tensor]
"""A noise schedule gamma(t) = -log SNR(t), increasing on [0, 1]: a one-dimensional array of times
to one of the same shape, or with the event's axes behind (`VDM.gamma`). It is differentiated by
`jax.jvp`."""

Denoise = Callable[[Tensor, PerExample], Any]
"""A network with its parameters (and conditioning, dropout key, ...) closed over: latents z_t
[batch, *event] and their gamma [batch] to a prediction of z_t's shape. With a learned reverse
variance: to a pair of that and its share, of the same shape."""
