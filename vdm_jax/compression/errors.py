"""What can go wrong with a compressed file, each in one line."""

__all__ = ["VdmzError"]


class VdmzError(ValueError):
    """Bytes that are no whole, undamaged VDMZ file for this model and machine; says which."""
