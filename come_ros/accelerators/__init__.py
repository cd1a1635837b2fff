"""Token reduction plug-ins: one file each, one registered name."""

from __future__ import annotations

from ..config import Config
from .base import Accelerator, Layer, Tokens
from .none import NoAccelerator

ACCELERATORS: dict[str, type[Accelerator]] = {"none": NoAccelerator}

__all__ = ["ACCELERATORS", "Accelerator", "Layer", "Tokens", "make_accelerator"]


def make_accelerator(config: Config) -> Accelerator:
    """The accelerator that `accelerator.name` asks for (the config has checked the name)."""
    return ACCELERATORS[config.accelerator.name]()
