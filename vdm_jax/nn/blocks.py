"""The parts of the U-Net: residual blocks, attention, and ways to compute them.

Parameters are float32 whatever `dtype` says: bfloat16 is the type of convolutions, matrix products
and what is handed from block to block. Statistics of normalisations and softmaxes stay in float32.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from vdm_jax.nn.convolution import Apart, convolution_for_loops
from vdm_jax.types import Key, Tensor

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
      packed: draw a quarter of dropout's bits, see `_stays`; the numbers are others.
      apart: compute a block as is fastest on a TPU: its input and its skip are convolved apart
        instead of put together, and bias and conditioning go into the normalisation after its first
        convolution.
    """

    dtype: str | None = None
    reverse_only: bool = False
    fused_attention: bool = False
    redraw: bool = False
    packed: bool = False
    apart: bool = False

    def cast(self, x: Tensor) -> Tensor:
        """Returns x in the type of the computation."""
        return x if self.dtype is None else x.astype(self.dtype)

    def conv(self, features: int, name: str, zero: bool = False) -> Callable[[Tensor], Tensor]:
        """Returns a 3x3 convolution that keeps the size; with `zero` its kernel starts at 0."""
        kernel_init = nn.initializers.zeros if zero else nn.initializers.lecun_normal()
        layer = nn.Conv(
            features, (3, 3), dtype=self.dtype, kernel_init=kernel_init, name=name,
            conv_general_dilated=convolution_for_loops if self.reverse_only else None,
        )  # fmt: skip
        return lambda x: checkpoint_name(layer(x), _KEPT)

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
        x, apart = h, skip if self.compute.apart else None
        if skip is not None and apart is None:
            x = jnp.concatenate([h, skip], axis=-1)
        block = ResidualBlock(self.features, self.dropout, self.compute, name="block")
        h = block(x, cond, self.deterministic, apart)
        if self.attend:
            h = AttentionBlock(self.compute, name="attn")(h)
        return h, x if skip is None else None


class ResidualBlock(nn.Module):
    """Norm, swish, conv, + conditioning, norm, swish, dropout, conv, + input."""

    features: int
    dropout: float
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self, x: Tensor, cond: Tensor, deterministic: bool, skip: Tensor | None = None
    ) -> Tensor:
        """Returns [batch, height, width, features] of [batch, height, width, any], [batch, any].

        A `skip` belongs to x, as if it were appended to its channels.
        """
        c, parts = self.compute, (x,) if skip is None else (x, skip)
        normalised = GroupNorm(by_product=c.apart, name="GroupNorm_0").of_parts(parts)
        inputs = [c.cast(nn.swish(part)) for part in normalised]
        given = c.dense(
            self.features, "cond_proj", use_bias=False, kernel_init=nn.initializers.zeros
        )(cond)
        second = GroupNorm(by_product=c.apart, name="GroupNorm_1")
        if c.apart:
            h, bias = Apart(self.features, (3, 3), c.dtype, name="conv1")(*inputs)
            (h,) = second.of_parts([checkpoint_name(h, _KEPT)], given + bias)
        else:
            h = second(c.conv(self.features, "conv1")(*inputs) + given[:, None, None, :])
        h = c.cast(nn.swish(h))
        h = h if deterministic else self._drop(h)
        h = c.conv(self.features, "conv2", zero=True)(h)
        if skip is not None:
            x, bias = Apart(self.features, (), c.dtype, name="nin_shortcut")(x, skip)
            h = h + bias
        elif x.shape[-1] != self.features:
            x = c.dense(self.features, "nin_shortcut")(x)
        return x + h

    def _drop(self, h: Tensor) -> Tensor:
        """Returns h after dropout by 16 random bits an element, not 32: its rate is k / 2^16."""
        whole = 2**16
        dropped = min(round(self.dropout * whole), whole - 1)
        if not dropped:
            return h
        key = self.make_rng("dropout")
        if self.compute.packed:
            there = _stays(key, h.shape, dropped)
        else:
            there = jax.random.bits(key, h.shape, jnp.uint16) >= dropped
        # Where it is used once and kept once a compiler would draw it twice, within convolutions.
        there = jax.lax.optimization_barrier(there)
        there = there if self.compute.redraw else checkpoint_name(there, _KEPT)
        return jnp.where(there, h * (whole / (whole - dropped)), jnp.zeros_like(h))


def _stays(key: Key, shape: tuple[int, ...], dropped: int) -> Tensor:
    """Returns whether each element of [batch, height, width, channels] stays: not dropped / 2^16.

    JAX spends 64 random bits on each number, whatever it is asked for. Here an element has 8 of its
    own, a quarter of 32; the other 8, which one in 256 needs, all pixels of a channel share.
    """
    batch, height, width, channels = shape
    own, shared = jax.random.split(key)
    words = jax.random.bits(own, (batch, -(-height // 4), width, channels))
    words = jax.lax.optimization_barrier(words)  # else a compiler would draw them four times
    lower = jax.random.bits(shared, (batch, 1, 1, channels), jnp.uint8)
    least = dropped // 256 + (lower < dropped % 256).astype(jnp.uint32)
    quarters = [(words >> i & 255) >= least for i in (0, 8, 16, 24)]
    return jnp.concatenate(quarters, axis=1)[:, :height]


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

    Sums over the image come before those over a group: several times as fast on a CPU. With
    `by_product` those over a group are a matrix product: on a TPU, which takes long to move
    channels to groups.
    """

    groups: int = 32
    by_product: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """Returns float32 or float64 of the same shape [batch, *image, channels]."""
        return self.of_parts([x])[0]

    @nn.compact
    def of_parts(self, parts: Sequence[Tensor], added: Tensor | None = None) -> list[Tensor]:
        """Returns the same of arrays whose channels are side by side, one for each.

        `added`, [batch, channels], is to be added to all pixels first. Its gradient needs no sum of
        its own over pixels: what it does to the statistics and to the result is known.
        """
        groups, channels = self.groups, sum(x.shape[-1] for x in parts)
        size = channels // groups
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        images = [x.astype(_at_least_float32(x.dtype)) for x in parts]
        axes = tuple(range(1, parts[0].ndim - 1))

        def channels_of(of: Callable[[Tensor], Tensor]) -> Tensor:
            return jnp.concatenate([of(pixels).mean(axis=axes) for pixels in images], axis=-1)

        def average(channel: Tensor) -> Tensor:
            if self.by_product:
                alike = np.kron(np.eye(groups), np.full((size, size), 1.0 / size))
                found = jnp.matmul(channel, alike.astype(channel.dtype), precision="highest")
            else:
                found = jnp.repeat(channel.reshape(-1, groups, size).mean(axis=-1), size, axis=-1)
            return checkpoint_name(found, _KEPT)

        mean, square = channels_of(lambda pixels: pixels), channels_of(jnp.square)
        if added is not None:
            mean, square = mean + added, square + added * (2.0 * mean + added)
        mean, square = average(mean), average(square)
        factor = scale * jax.lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0.0) + 1e-6)
        shift = bias - mean * factor
        if added is not None:
            shift = shift + added * factor
        found, at = [], 0
        for pixels in images:
            f, s = (
                jnp.expand_dims(each[:, at : at + pixels.shape[-1]], axes)
                for each in (factor, shift)
            )
            found.append(pixels * f + s)
            at += pixels.shape[-1]
        return found


def _at_least_float32(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)
