"""The error of this package."""

from vdm_jax.errors import UserError


class DataError(UserError):
    """A mistake in how data were named, or a dataset that can't be had."""
