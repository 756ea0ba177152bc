"""What can go wrong with a compressed file, each in one line."""

from vdm_jax.errors import UserError

__all__ = ["VdmzError"]


class VdmzError(UserError):
    """Bytes that are no whole, undamaged VDMZ file for this model and machine; says which."""
