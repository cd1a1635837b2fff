"""Sources of frames: recorded, on disk, or generated."""

from .recording import Recording

__all__ = ["Recording"]
