"""Convolutions of 3x3 kernels that are faster than `nn.Conv`: in a loop on a CPU, or on a TPU."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.dtypes import promote_dtype

from vdm_jax.types import Tensor


class Apart(nn.Module):
    """A 3x3 convolution, or a dense layer, whose bias and whose parts of the input stay apart.

    `window` is (3, 3), or () of a dense layer; parameters are those of `nn.Conv` and `nn.Dense`.
    """

    features: int
    window: tuple[int, ...]
    dtype: str | None

    @nn.compact
    def __call__(self, *parts: Tensor) -> tuple[Tensor, Tensor]:
        """Returns [..., features] of parts [..., any] side by side, and the bias to be added."""
        sizes = [x.shape[-1] for x in parts]
        shape = (*self.window, sum(sizes), self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        kernel, bias, *inputs = promote_dtype(kernel, bias, *parts, dtype=self.dtype)
        kernels = jnp.split(kernel, np.cumsum(sizes)[:-1], axis=-2)
        of = _convolve if self.window else jnp.matmul
        return functools.reduce(jnp.add, map(of, inputs, kernels)), bias


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
