"""The one exception that users see."""

__all__ = ["VidlatentError"]


class VidlatentError(Exception):
    """A mistake the user can mend: one sentence with the key, file or size and the remedy."""
