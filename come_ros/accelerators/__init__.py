"""Token reduction plug-ins: one file each, one registered name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config import Config
from ..tokens import Layer, Tokens
from .base import Accelerator, NoAccelerator
from .combined import combine
from .come import CoMe
from .fast import Fast
from .good_token_hunting import GoodTokenHunting
from .pace import Pace
from .random import Random
from .temporal import Temporal
from .tome import ToMe

if TYPE_CHECKING:
    from ..backbones.model import GeometryModel

ACCELERATORS: dict[str, type[Accelerator]] = {
    "none": NoAccelerator,
    "come": CoMe,
    "tome": ToMe,
    "good_token_hunting": GoodTokenHunting,
    "pace": Pace,
    "fast": Fast,
    "temporal": Temporal,
    "random": Random,
}
COMBINATIONS: dict[str, tuple[str, ...]] = {
    f"{name}+good_token_hunting": tuple(f"ratio={ratio}" for ratio in (0.25, 0.5, 0.75)) for name in ("come", "pace")
}
"""accelerators that work together, as names for `accelerator.name`, and what `come_ros eval --frontier` tries of them"""

__all__ = [
    "ACCELERATORS",
    "COMBINATIONS",
    "Accelerator",
    "CoMe",
    "Fast",
    "GoodTokenHunting",
    "Layer",
    "NoAccelerator",
    "Pace",
    "Random",
    "Temporal",
    "ToMe",
    "Tokens",
    "make_accelerator",
]


def make_accelerator(config: Config, model: GeometryModel, weights: str) -> Accelerator:
    """The accelerator that `accelerator.name` asks for ("a+b": both), for a model read from the file `weights`.

    Raises CheckpointError if a file that it needs is missing or fits another model, ConfigError if two cannot work together.
    """
    names = config.accelerator.name.split("+")
    return combine([ACCELERATORS[name].create(config, model, weights) for name in names])
