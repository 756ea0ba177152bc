"""A 3x3 convolution whose gradients are fast within a loop on a CPU.

In the body of a loop XLA's CPU compiler leaves both gradients of a convolution in the layouts that
differentiation gave them, for which it has slow code only: a scan over blocks took 14 times as long
as the blocks written out. Here the gradients are convolutions of the layout it has fast code for.
"""

from typing import Any

import jax
import jax.numpy as jnp

from vdm_jax.types import Tensor

__all__ = ["for_loops"]


def for_loops(
    x: Tensor, kernel: Tensor, window_strides: Any, padding: Any, **options: Any
) -> Tensor:
    """`lax.conv_general_dilated`, of the one kind `nn.blocks` has, without forward derivatives.

    [batch, height, width, in], [3, 3, in, out] -> [batch, height, width, out]; to be handed to
    `nn.Conv`. Raises ValueError for another kernel or stride.
    """
    del padding, options  # of a 3x3 kernel there is one padding that keeps the size
    if kernel.shape[:2] != (3, 3) or tuple(window_strides) != (1, 1):
        raise ValueError(f"wanted a 3x3 kernel and stride 1, got {kernel.shape}, {window_strides}.")
    return _convolution(x, kernel)


def _convolve(x: Tensor, kernel: Tensor) -> Tensor:
    """With a margin of one zero pixel on each side, whatever the kernel's size."""
    layout = ("NHWC", "HWIO", "NHWC")
    margin = ((1, 1), (1, 1))
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), margin, dimension_numbers=layout)


@jax.custom_vjp
def _convolution(x: Tensor, kernel: Tensor) -> Tensor:
    return _convolve(x, kernel)


def _forward(x: Tensor, kernel: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    return _convolve(x, kernel), (x, kernel)


def _backward(kept: tuple[Tensor, Tensor], cotangent: Tensor) -> tuple[Tensor, Tensor]:
    x, kernel = kept
    of_x = _convolve(cotangent, jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
    # A sum over images and pixels: here images take the place of channels, channels that of images.
    of_kernel = _convolve(x.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3))
    return of_x, of_kernel.transpose(1, 2, 0, 3)


_convolution.defvjp(_forward, _backward)
