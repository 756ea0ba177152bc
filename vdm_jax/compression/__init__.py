"""Lossless compression with a VDM by bits-back coding (the VDM paper, "Lossless compression").

`compress` and `decompress` (`codec`) turn images into VDMZ files (`file`, docs/vdmz.md) and back.
Beneath them: `ans`, stacks of bits; `tables` and `chain`, the Gaussians as whole numbers;
`bits_back`, one image; `blocks`, many; `network`, the model; `simple_model`, for the first images.
"""

from vdm_jax.compression.codec import Options, Summary, compress, decompress, read_header
from vdm_jax.compression.file import VdmzError
from vdm_jax.compression.network import digest

__all__ = ["Options", "Summary", "VdmzError", "compress", "decompress", "digest", "read_header"]
