"""Token reduction plug-ins: one file each, listed by name in come_ros/plugins.py. README.md explains how to write one."""

from __future__ import annotations

import logging

from .. import plugins
from ..config import Config
from ..errors import ConfigError
from ..tokens import Layer, ModelShape, Reach, Tokens
from .base import Accelerator, NoAccelerator
from .combined import combine
from .come import CoMe
from .fast import Fast
from .good_token_hunting import GoodTokenHunting
from .pace import Pace
from .random import Random
from .regime import Regime
from .subscene import Subscene
from .temporal import Temporal
from .tome import ToMe

COMBINATIONS: dict[str, tuple[str, ...]] = {
    f"{name}+good_token_hunting": tuple(f"ratio={ratio}" for ratio in (0.25, 0.5, 0.75)) for name in ("come", "pace")
}
"""combinations of accelerators, as names for `accelerator.name`, and the settings of each that `come_ros eval --frontier` tries"""

__all__ = [
    "COMBINATIONS",
    "Accelerator",
    "CoMe",
    "Fast",
    "GoodTokenHunting",
    "Layer",
    "NoAccelerator",
    "Pace",
    "Random",
    "Reach",
    "Regime",
    "Subscene",
    "Temporal",
    "ToMe",
    "Tokens",
    "make_accelerator",
    "registered",
]

log = logging.getLogger("come_ros")


def registered() -> dict[str, type[Accelerator]]:
    """Name -> class of all accelerators that can be chosen by name. Plug-ins of other packages that cannot be used are logged and
    left out."""
    found = {}
    for name in plugins.ACCELERATORS.names:
        try:
            found[name] = plugins.ACCELERATORS.load(name)
        except ConfigError as error:
            log.warning("%s", error)
    return found


def make_accelerator(config: Config, shape: ModelShape, weights: str) -> Accelerator:
    """The accelerator that `accelerator.name` selects ("a+b": both together), for a model read from the file `weights`.

    Raises CheckpointError if a file that it needs is missing or belongs to another model; ConfigError if two cannot be combined or
    a plug-in of another package fails.
    """
    return combine(
        [plugins.ACCELERATORS.create(name, config, shape, weights) for name in config.accelerator.name.split("+")]
    )
