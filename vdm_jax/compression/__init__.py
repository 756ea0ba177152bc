"""Lossless compression with a VDM by bits-back coding (section 7.3 of the VDM paper).

`compress` and `decompress` turn arrays of images into VDMZ files and back, with any network.
Beneath them: `ans`, stacks of bits; `tables` and `ladder`, the chain's Gaussians as whole numbers;
`bits_back`, one image in and out of a stack; `fallback`, a simple model for the first images;
`file`, the format (docs/vdmz.md).
"""

from vdm_jax.compression.codec import Progress, Summary, compress, decompress, read_header
from vdm_jax.compression.errors import VdmzError
from vdm_jax.compression.vdm import Vdm, digest

__all__ = [
    "Progress",
    "Summary",
    "Vdm",
    "VdmzError",
    "compress",
    "decompress",
    "digest",
    "read_header",
]
