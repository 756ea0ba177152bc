"""Lossless compression with a VDM by bits-back coding (section 7.3 of the VDM paper).

`compress` and `decompress` turn arrays of images into VDMZ files and back, with any network.
Beneath them: `ans`, stacks of bits; `tables` and `chain`, the chain's Gaussians as whole numbers;
`bits_back`, one image in and out of a stack; `network`, the model in float64; `simple_model`, for
the first images of a stack; `blocks`, many images; `file`, the format (docs/vdmz.md).
`other_codecs` is PNG, WebP and JPEG-XL, to compare with.
"""

from vdm_jax.compression.codec import Options, Summary, compress, decompress, read_header
from vdm_jax.compression.file import VdmzError
from vdm_jax.compression.network import digest

__all__ = ["Options", "Summary", "VdmzError", "compress", "decompress", "digest", "read_header"]
