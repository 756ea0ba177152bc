"""The paper's U-Net, which never leaves full resolution (VDM appendix B).

The blocks of each half are one scanned layer, its parameters stacked: it compiles several times
faster than blocks written out, as which it can run too. Layers are those of the published code (its
score_model), and `to_published` and `from_published` turn one tree of parameters into the other,
exactly.
"""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax import checks
from vdm_jax.nn.blocks import REMATS, Compute, GroupNorm, Layer, Remat, rematerialised
from vdm_jax.nn.features import Denoiser
from vdm_jax.types import PerExample, Tensor


class UNet(Denoiser):
    """A stack of residual blocks with skip connections from its first half to its second.

    Attributes, beside those of `Denoiser`:
      channels: of every block; a multiple of 32, the number of groups of the normalisation. Use at
        least 64: with one channel a group, the normalisation takes out what a block adds to a
        channel for gamma and the conditioning, so that the network can't see them.
      num_blocks: blocks in the first half; the second has one more.
      attention: "middle" (one attention block, between the halves) or "all" (after each block too).
      dtype: "float32" (that of the input, if it is wider) or "bfloat16", see `nn.blocks`; the first
        and the last layer and the embedding of gamma are float32 in any case.
      remat: what the backward pass finds and what it computes anew, see `nn.blocks.Remat`.
      reverse_only: give up forward derivatives for gradients that are fast on a CPU.
      written_out: write the blocks out in the program instead of scanning them, which on a TPU is
        faster, and slower to compile; skips are convolved apart. Numbers are the same by rounding.
      fused_attention: cuDNN's attention, on a GPU in bfloat16.
      redraw: draw dropout's bits for the backward pass once more, which takes less memory.
      packed: draw dropout's bits a quarter as often; the numbers are others.
    """

    fourier_features: bool = True
    channels: int = 128
    num_blocks: int = 32
    attention: Literal["middle", "all"] = "middle"
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Remat = "matmuls"
    reverse_only: bool = False
    written_out: bool = False
    fused_attention: bool = False
    redraw: bool = False
    packed: bool = False

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
        cond = self.embed(gamma_t, conditioning, self.channels)
        for name in ("dense0", "dense1"):
            cond = nn.swish(nn.Dense(4 * self.channels, name=name)(cond))

        wide = Compute(reverse_only=self.reverse_only)
        h = wide.conv(self.channels, "conv_in")(self.waves(z_t, z_t))
        h = self._blocks(h, cond, deterministic)
        h = nn.swish(GroupNorm(name="GroupNorm_0")(h))
        last = wide.conv(self.outputs(z_t.shape[-1]), "conv_out", zero=True)(h)
        return self.predict(last, h, z_t, gamma_t)

    def _blocks(self, h: Tensor, cond: Tensor, deterministic: bool) -> Tensor:
        """Returns `h` after the way down, the middle, and up with the results of the way down."""
        narrow = None if self.dtype == "float32" else self.dtype
        compute = Compute(
            narrow, self.reverse_only, self.fused_attention, self.redraw, self.packed,
            apart=self.written_out,
        )  # fmt: skip
        layer = rematerialised(Layer, self.remat, scanned=False)
        in_scan = rematerialised(Layer, self.remat, scanned=not self.written_out)
        every = self.attention == "all"
        settings: dict[str, Any] = {"deterministic": deterministic, "compute": compute}

        def single(name: str, attend: bool) -> nn.Module:
            return layer(self.channels, self.dropout, attend, **settings, name=name)

        def scanned(name: str, reverse: bool) -> nn.Module:
            stack = nn.scan(
                in_scan,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(0, nn.broadcast),
                length=self.num_blocks,
                reverse=reverse,
                unroll=self.num_blocks if self.written_out else 1,
            )
            return stack(self.channels, self.dropout, every, **settings, name=name)

        h = compute.cast(h)
        if self.num_blocks:
            h, skips = scanned("down", False)(h, None, cond)
        last = h
        h, _ = single("mid_1", True)(h, None, cond)
        h, _ = single("mid_2", False)(h, None, cond)
        h, _ = single("mid_3", every)(h, last, cond)
        if self.num_blocks:
            h, _ = scanned("up", True)(h, skips, cond)
        return h

    def _check(self, z_t: Tensor) -> None:
        if z_t.ndim != 4:
            raise ValueError(f"UNet wants [batch, height, width, channels], got {z_t.shape}.")
        if self.channels % 32:
            raise ValueError(f"UNet channels must be a multiple of 32, got {self.channels}.")
        checks.choice(self.attention, "UNet attention", ("middle", "all"))
        checks.choice(self.dtype, "UNet dtype", ("float32", "bfloat16"))
        checks.choice(self.remat, "UNet remat", REMATS)


# ---- the published tree of parameters ----
#
# There each block has an entry of its own, like down.block_3; here those of a half are stacked:
# down[i] is down.block_i, and up[i], which takes down[i]'s input once more, is up.block_{n - i}.
# mid_1, mid_2, mid_3 are the layers in between, the last of them up.block_0.


def to_published(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns this network's parameters as the published code's score_model, bit for bit."""
    found: dict[str, Any] = {}
    for name, tree in params.items():
        if name == "mid_3":
            found |= {f"up.{kind}_0": leaves for kind, leaves in tree.items()}
        elif name in ("mid_1", "mid_2"):
            found |= {f"mid.{kind}_{name[-1]}": leaves for kind, leaves in tree.items()}
        elif name in ("down", "up"):
            for kind, stacked in tree.items():
                count = len(jax.tree.leaves(stacked)[0])
                for i in range(count):
                    row = jax.tree.map(lambda leaf, i=i: leaf[i], stacked)
                    found[f"{name}.{kind}_{i if name == 'down' else count - i}"] = row
        else:
            found[name] = tree
    return found


def from_published(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns this network's parameters of the published code's: the inverse of `to_published`."""
    found: dict[str, Any] = {}
    rows: dict[tuple[str, str], dict[int, Any]] = {}
    for name, tree in params.items():
        part, _, rest = name.partition(".")
        kind, _, number = rest.rpartition("_")
        if part == "mid" or (part == "up" and number == "0"):
            found.setdefault(f"mid_{number if part == 'mid' else 3}", {})[kind] = tree
        elif part in ("down", "up"):
            rows.setdefault((part, kind), {})[int(number)] = tree
        else:
            found[name] = tree
    for (part, kind), trees in rows.items():
        in_order = [trees[i] for i in sorted(trees, reverse=part == "up")]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *in_order)
        found.setdefault(part, {})[kind] = stacked
    return found
