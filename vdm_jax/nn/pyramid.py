"""A U-Net of several resolutions: for photographs, at a small part of the paper's network's cost.

The paper's U-Net never leaves full resolution (VDM appendix B), where a block costs the most and
sees the least. Here most blocks work on images of half and a quarter of the size.
"""

from typing import Literal

import jax.numpy as jnp
from flax import linen as nn

from vdm_jax import checks
from vdm_jax.nn.blocks import REMATS, AttentionBlock, Compute, GroupNorm, Remat, rematerialised
from vdm_jax.nn.features import Denoiser
from vdm_jax.nn.on_levels import moved_to_levels
from vdm_jax.nn.wiener import WienerFilters
from vdm_jax.types import PerExample, Tensor


class Pyramid(Denoiser):
    """Residual blocks at each resolution, down and up again, with skip connections across.

    From a resolution to the next, 2x2 pixels become channels of one (space to depth). Attributes,
    beside those of `Denoiser`:
      channels: of the blocks at full resolution; a multiple of 8.
      multipliers: channels of each resolution, as multiples of that; height and width must be
        divisible by 2^(their number - 1).
      blocks: number of blocks of each resolution on the way down, and on the way up.
      contrasts: of the Wiener filters (`nn.wiener`) whose predictions of eps the network sees,
        weighs against each other at each pixel, and corrects; with none it begins at eps = z_t.
      on_levels: move the prediction towards the pixel levels (`nn.on_levels`): the network tells
        how sure it is. For data that lie on them. This, and any contrasts, need the head "eps".
      attention: "middle" (after the blocks of the lowest resolution) or "all".
      dtype, remat, reverse_only, fused_attention: as for `nn.unet.UNet`.
    """

    fourier_features: bool = True
    channels: int = 32
    multipliers: tuple[int, ...] = (1, 2, 3)
    blocks: tuple[int, ...] = (1, 1, 2)
    contrasts: tuple[float, ...] = (0.1, 1.0, 10.0)
    on_levels: bool = True
    attention: Literal["middle", "all"] = "middle"
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Remat = "none"
    reverse_only: bool = False
    fused_attention: bool = False

    @nn.compact
    def __call__(
        self,
        z_t: Tensor,
        gamma_t: PerExample,
        conditioning: Tensor | None = None,
        deterministic: bool = True,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Returns the prediction for z_t [batch, height, width, channels]; see `Denoiser`."""
        self._check(z_t)
        cond = self.embed(gamma_t, conditioning, 64)
        for name in ("dense0", "dense1"):
            cond = nn.swish(nn.Dense(4 * self.channels, name=name)(cond))
        narrow = None if self.dtype == "float32" else self.dtype
        compute = Compute(narrow, self.reverse_only, self.fused_attention)
        block = rematerialised(_Block, self.remat, scanned=False)
        widths = [self.channels * multiplier for multiplier in self.multipliers]
        lowest = len(widths) - 1

        def run(h: Tensor, level: int, name: str) -> Tensor:
            attend = level == lowest or self.attention == "all"
            kind = (widths[level], self.dropout, attend, deterministic, compute)
            return block(*kind, name=name)(h, cond)

        wide = Compute(reverse_only=self.reverse_only)
        inputs, filtered = self._inputs(z_t, gamma_t)
        h = compute.cast(wide.conv(widths[0], "conv_in")(inputs))
        skips = []
        for level, count in enumerate(self.blocks):
            if level:
                h = compute.dense(widths[level], f"down_{level}")(_space_to_depth(h))
            for i in range(count):
                skips.append(h := run(h, level, f"down_{level}_{i}"))
        h = run(h, lowest, "middle")
        for level, count in reversed(list(enumerate(self.blocks))):
            for i in range(count):
                h = run(jnp.concatenate([h, skips.pop()], axis=-1), level, f"up_{level}_{i}")
            if level:
                h = _depth_to_space(compute.dense(4 * widths[level - 1], f"up_{level}")(h))
        h = nn.swish(GroupNorm(widths[0] // 8, name="norm_out")(h))
        return self._outputs(h, z_t, gamma_t, filtered)

    def _outputs(
        self, h: Tensor, z_t: Tensor, gamma_t: PerExample, filtered: Tensor | None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Returns the prediction of the last hidden features `h`."""
        size, sure = self.outputs(z_t.shape[-1]), int(self.on_levels)
        wide = Compute(reverse_only=self.reverse_only)
        parts = 1 + sure + len(self.contrasts)
        last = wide.conv(size * parts, "conv_out", zero=True)(h)
        last, doubt, logits = jnp.split(last, [size, (1 + sure) * size], axis=-1)
        start = None
        if filtered is not None:  # their mean at each pixel, by the softmax of as many logits
            start = jnp.sum(nn.softmax(logits.reshape(filtered.shape)) * filtered, axis=-1)
        found = self.predict(last, h, z_t, gamma_t, start)
        if not self.on_levels:
            return found
        eps = found[0] if isinstance(found, tuple) else found
        moved = moved_to_levels(eps, z_t, gamma_t, nn.sigmoid(2.0 - doubt), self.levels)
        return (moved, found[1]) if isinstance(found, tuple) else moved

    def _inputs(self, z_t: Tensor, gamma_t: PerExample) -> tuple[Tensor, Tensor | None]:
        """Returns what the network sees, and the predictions of its filters if it has any."""
        inputs = self.waves(z_t, z_t)
        if not self.contrasts:
            return inputs, None
        filtered, white = WienerFilters(self.contrasts, name="filters")(z_t, gamma_t)
        return jnp.concatenate([inputs, white, *jnp.moveaxis(filtered, -1, 0)], axis=-1), filtered

    def _check(self, z_t: Tensor) -> None:
        if z_t.ndim != 4:
            raise ValueError(f"Pyramid wants [batch, height, width, channels], got {z_t.shape}.")
        parts = 2 ** (len(self.multipliers) - 1)
        if z_t.shape[1] % parts or z_t.shape[2] % parts:
            raise ValueError(
                f"height and width must be multiples of {parts} for a Pyramid of "
                f"{len(self.multipliers)} resolutions, got {z_t.shape[1]}x{z_t.shape[2]}."
            )
        if self.channels % 8:
            raise ValueError(f"Pyramid channels must be a multiple of 8, got {self.channels}.")
        if len(self.blocks) != len(self.multipliers):
            raise ValueError(
                "Pyramid wants a number of blocks for each resolution, got "
                f"{len(self.blocks)} for {len(self.multipliers)}."
            )
        if (self.contrasts or self.on_levels) and self.head != "eps":
            said = f"Pyramid contrasts and on_levels are for the head 'eps', got {self.head!r}"
            raise ValueError(f"{said}; it goes without both.")
        checks.choice(self.attention, "Pyramid attention", ("middle", "all"))
        checks.choice(self.dtype, "Pyramid dtype", ("float32", "bfloat16"))
        checks.choice(self.remat, "Pyramid remat", REMATS)


class _Block(nn.Module):
    """Norm, swish, conv, norm scaled and shifted by the conditioning, swish, dropout, conv."""

    features: int
    dropout: float
    attend: bool
    deterministic: bool
    compute: Compute

    @nn.compact
    def __call__(self, x: Tensor, cond: Tensor) -> Tensor:
        """Returns [batch, height, width, features] of [batch, height, width, any], [batch, any]."""
        c = self.compute
        h = c.cast(nn.swish(GroupNorm(x.shape[-1] // 8, name="norm_0")(x)))
        h = c.conv(self.features, "conv1")(h)
        zeros = nn.initializers.zeros
        modulation = nn.Dense(2 * self.features, kernel_init=zeros, name="modulate")(cond)
        scale, shift = jnp.split(modulation[:, None, None, :], 2, axis=-1)
        h = GroupNorm(self.features // 8, name="norm_1")(h) * (1.0 + scale) + shift
        h = c.cast(nn.swish(h))
        h = nn.Dropout(self.dropout)(h, deterministic=self.deterministic)
        h = c.conv(self.features, "conv2", zero=True)(h)
        if x.shape[-1] != self.features:
            x = c.dense(self.features, "shortcut")(x)
        h = x + h
        return AttentionBlock(c, self.features // 8, name="attention")(h) if self.attend else h


def _space_to_depth(h: Tensor) -> Tensor:
    """Returns [batch, height / 2, width / 2, 4 channels]."""
    n, height, width, channels = h.shape
    h = h.reshape(n, height // 2, 2, width // 2, 2, channels).swapaxes(2, 3)
    return h.reshape(n, height // 2, width // 2, 4 * channels)


def _depth_to_space(h: Tensor) -> Tensor:
    """Undoes `_space_to_depth`."""
    n, height, width, channels = h.shape
    h = h.reshape(n, height, width, 2, 2, channels // 4).swapaxes(2, 3)
    return h.reshape(n, 2 * height, 2 * width, channels // 4)
