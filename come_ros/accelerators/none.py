"""`none`: every token through every block. The baseline that all others are measured against."""

from .base import Accelerator


class NoAccelerator(Accelerator):
    """The identity: changes no bit of the dense model."""
