"""Token reduction plug-ins: one file each, one registered name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config import Config
from .base import Accelerator, Layer, Tokens
from .come import CoMe
from .none import NoAccelerator
from .random import Random
from .tome import ToMe

if TYPE_CHECKING:
    from ..backbones.base import GeometryModel

ACCELERATORS: dict[str, type[Accelerator]] = {"none": NoAccelerator, "come": CoMe, "tome": ToMe, "random": Random}

__all__ = [
    "ACCELERATORS",
    "Accelerator",
    "CoMe",
    "Layer",
    "NoAccelerator",
    "Random",
    "ToMe",
    "Tokens",
    "make_accelerator",
]


def make_accelerator(config: Config, model: GeometryModel, weights: str) -> Accelerator:
    """The accelerator that `accelerator.name` asks for, for a model read from the file `weights`.

    Raises CheckpointError if a file that it needs is missing or fits another model.
    """
    return ACCELERATORS[config.accelerator.name].create(config, model, weights)
