"""The published code's checkpoints under the name that users know; see `vdm_jax.nn.published`."""

from vdm_jax.nn.published import OfficialModel, load, modules
from vdm_jax.nn.unet import from_published, to_published

__all__ = ["OfficialModel", "from_published", "load", "modules", "to_published"]
