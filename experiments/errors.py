"""What the user can mend."""

__all__ = ["UserError"]


class UserError(ValueError):
    """Something the user can mend; the message is one line."""
