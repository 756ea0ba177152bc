"""Bounds on likelihoods made of several draws."""

import math

import jax

from vdm_jax.types import Tensor

__all__ = ["importance_weighted"]


def importance_weighted(log_weights: Tensor, axis: int = 0) -> Tensor:
    """-(logsumexp over the K weights - log K), nats (Burda et al. 2016, eq. 8).

    `log_weights` are log p(x, z_k) - log q(z_k|x) of K independent draws along `axis`, which goes.
    In expectation an upper bound on -log p(x), no looser with more draws; K = 1 is the plain bound.
    Raises ValueError where there is no draw.
    """
    num_samples = log_weights.shape[axis]
    if num_samples < 1:
        raise ValueError(f"log_weights must hold at least one draw, got {log_weights.shape}.")
    return math.log(num_samples) - jax.nn.logsumexp(log_weights, axis=axis)
