"""The parts of the U-Net: residual blocks, attention, and ways to compute them.

Parameters are float32 whatever `dtype` says: bfloat16 is the type of convolutions, matrix products
and what is handed from block to block. Statistics of normalisations and softmaxes stay in float32.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from vdm_jax.types import Tensor

Remat = Literal["none", "matmuls", "blocks"]
"""The values that the forward pass keeps for the backward pass: all; the inputs of blocks, the
results of convolutions and matrix products, the statistics of normalisations and what dropout
drops; the inputs of blocks. The rest is computed again."""

REMATS: tuple[Remat, ...] = get_args(Remat)

_KEPT = "kept"


@dataclasses.dataclass(frozen=True)
class Compute:
    """The way in which blocks are computed; none of it changes what they are.

    Attributes:
      dtype: "bfloat16", or None for that of the input.
      reverse_only: take convolutions that are fast in a loop on a CPU, of which there are gradients
        but no forward derivatives (`jax.jvp`).
      fused_attention: cuDNN's attention, which never stores the weights; on a GPU, in bfloat16.
      redraw: draw what dropout drops once more for the backward pass; `Remat` "matmuls" keeps it
        else.
    """

    dtype: str | None = None
    reverse_only: bool = False
    fused_attention: bool = False
    redraw: bool = False

    def cast(self, x: Tensor) -> Tensor:
        """Returns x in the type of the computation."""
        return x if self.dtype is None else x.astype(self.dtype)

    def conv(self, features: int, name: str, zero: bool = False) -> Callable[[Tensor], Tensor]:
        """Returns a 3x3 convolution that keeps the size; with `zero` its kernel starts at 0."""
        kernel_init = nn.initializers.zeros if zero else nn.initializers.lecun_normal()
        conv = nn.Conv(
            features, (3, 3), dtype=self.dtype, kernel_init=kernel_init, name=name,
            conv_general_dilated=convolution_for_loops if self.reverse_only else None,
        )  # fmt: skip
        return lambda x: checkpoint_name(conv(x), _KEPT)

    def dense(self, features: int, name: str, **kwargs: Any) -> nn.Dense:
        """Returns a dense layer over the last axis."""
        return nn.Dense(features, dtype=self.dtype, name=name, **kwargs)


def rematerialised(module: type[nn.Module], remat: Remat, scanned: bool) -> type[nn.Module]:
    """Returns the module's class with a backward pass that keeps what `remat` says."""
    if remat == "none":
        return module
    policies = jax.checkpoint_policies
    keep = policies.nothing_saveable
    if remat == "matmuls":
        named = policies.save_only_these_names(_KEPT)
        keep = policies.save_from_both_policies(policies.dots_saveable, named)
    # In a scan nothing can be merged with the forward pass, against which there are barriers else.
    return nn.remat(module, policy=keep, prevent_cse=not scanned)


class Layer(nn.Module):
    """One step of a scan: a residual block, and perhaps attention after it.

    `deterministic` is an attribute, as a scan and a rematerialisation trace all their arguments.
    """

    features: int
    dropout: float
    attend: bool
    deterministic: bool
    compute: Compute

    @nn.compact
    def __call__(
        self, h: Tensor, skip: Tensor | None, cond: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the result for h with `skip` appended, and h unless there was a skip."""
        x = h if skip is None else jnp.concatenate([h, skip], axis=-1)
        block = ResidualBlock(self.features, self.dropout, self.compute, name="block")
        h = block(x, cond, self.deterministic)
        if self.attend:
            h = AttentionBlock(self.compute, name="attn")(h)
        return h, x if skip is None else None


class ResidualBlock(nn.Module):
    """Norm, swish, conv, + conditioning, norm, swish, dropout, conv, + input."""

    features: int
    dropout: float
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Tensor, cond: Tensor, deterministic: bool) -> Tensor:
        """Returns [batch, height, width, features] of [batch, height, width, any], [batch, any]."""
        c = self.compute
        h = c.cast(nn.swish(GroupNorm(name="GroupNorm_0")(x)))
        h = c.conv(self.features, "conv1")(h)
        project = c.dense(
            self.features, "cond_proj", use_bias=False, kernel_init=nn.initializers.zeros
        )
        h = h + project(cond)[:, None, None, :]
        h = c.cast(nn.swish(GroupNorm(name="GroupNorm_1")(h)))
        h = h if deterministic else self._drop(h)
        h = c.conv(self.features, "conv2", zero=True)(h)
        if x.shape[-1] != self.features:
            x = c.dense(self.features, "nin_shortcut")(x)
        return x + h

    def _drop(self, h: Tensor) -> Tensor:
        """Returns h after dropout by 16 random bits an element, not 32: its rate is k / 2^16."""
        whole = 2**16
        dropped = min(round(self.dropout * whole), whole - 1)
        if not dropped:
            return h
        bits = jax.random.bits(self.make_rng("dropout"), h.shape, jnp.uint16)
        # Where it is used once and kept once a compiler would draw it twice, within convolutions.
        there = jax.lax.optimization_barrier(bits >= dropped)
        there = there if self.compute.redraw else checkpoint_name(there, _KEPT)
        return jnp.where(there, h * (whole / (whole - dropped)), jnp.zeros_like(h))


class AttentionBlock(nn.Module):
    """Residual self-attention over all pixels, with one head."""

    compute: Compute = Compute()
    groups: int = 32

    @nn.compact
    def __call__(self, x: Tensor) -> Tensor:
        """Returns the same shape of [batch, height, width, channels]."""
        c, channels = self.compute, x.shape[-1]
        h = c.cast(GroupNorm(self.groups, name="GroupNorm_0")(x)).reshape(x.shape[0], -1, channels)
        q, k, v = (c.dense(channels, name)(h) for name in "qkv")
        h = _attend(q, k, v, c.fused_attention)
        h = c.dense(channels, "proj_out", kernel_init=nn.initializers.zeros)(h)
        return x + h.reshape(x.shape)


def _attend(q: Tensor, k: Tensor, v: Tensor, fused: bool) -> Tensor:
    """Returns softmax(q k' / sqrt(channels)) v, all [batch, pixels, channels]."""
    if fused:
        one_head = (x[:, :, None, :] for x in (q, k, v))
        return jax.nn.dot_product_attention(*one_head, implementation="cudnn")[:, :, 0, :]
    # The same function's "xla" takes twice as long on a CPU, and float32 for float64.
    wide = _at_least_float32(q.dtype)
    logits = jnp.einsum("bqc,bkc->bqk", q / math.sqrt(q.shape[-1]), k, preferred_element_type=wide)
    weights = jax.nn.softmax(logits, axis=-1).astype(q.dtype)
    return jnp.einsum("bqk,bkc->bqc", weights, v)


class GroupNorm(nn.Module):
    """Normalisation over groups of channels, as `nn.GroupNorm`, in float32 at least.

    Sums over the image come before those over a group: several times as fast on a CPU.
    """

    groups: int = 32

    @nn.compact
    def __call__(self, x: Tensor) -> Tensor:
        """Returns float32 or float64 of the same shape [batch, *image, channels]."""
        channels, groups = x.shape[-1], self.groups
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        pixels = x.reshape(x.shape[0], -1, channels).astype(_at_least_float32(x.dtype))

        def average(channel: Tensor) -> Tensor:
            group = channel.reshape(-1, groups, channels // groups).mean(axis=-1)
            return jnp.repeat(group, channels // groups, axis=-1)

        mean = checkpoint_name(average(pixels.mean(axis=1)), _KEPT)
        square = checkpoint_name(average(jnp.square(pixels).mean(axis=1)), _KEPT)
        factor = scale * jax.lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0.0) + 1e-6)
        shift = bias - mean * factor
        return (pixels * factor[:, None] + shift[:, None]).reshape(x.shape)


def _at_least_float32(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)


# ---- the convolution ----


def convolution_for_loops(
    x: Tensor, kernel: Tensor, window_strides: Any, padding: Any, **options: Any
) -> Tensor:
    """Returns `lax.conv_general_dilated` of a 3x3 kernel, its gradients fast in a loop on a CPU.

    In a loop XLA's CPU compiler leaves both gradients in the layouts that differentiation gave
    them, for which its code is 14 times as slow. There are no forward derivatives. x is [batch,
    height, width, in], the kernel [3, 3, in, out]. Raises ValueError for another kernel or stride.
    """
    del padding, options  # of a 3x3 kernel there is one padding that keeps the size
    if kernel.shape[:2] != (3, 3) or tuple(window_strides) != (1, 1):
        raise ValueError(f"wanted a 3x3 kernel and stride 1, got {kernel.shape}, {window_strides}.")
    return _convolution(x, kernel)


def _convolve(x: Tensor, kernel: Tensor) -> Tensor:
    """Returns the convolution with a margin of one zero pixel, whatever the kernel's size."""
    layout, margin = ("NHWC", "HWIO", "NHWC"), ((1, 1), (1, 1))
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), margin, dimension_numbers=layout)


def _forward(x: Tensor, kernel: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    return _convolve(x, kernel), (x, kernel)


def _backward(kept: tuple[Tensor, Tensor], cotangent: Tensor) -> tuple[Tensor, Tensor]:
    x, kernel = kept
    of_x = _convolve(cotangent, jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
    # A sum over images and pixels: here images take the place of channels, channels that of images.
    of_kernel = _convolve(x.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3))
    return of_x, of_kernel.transpose(1, 2, 0, 3)


_convolution = jax.custom_vjp(_convolve)
_convolution.defvjp(_forward, _backward)
