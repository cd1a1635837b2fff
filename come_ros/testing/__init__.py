"""Contract tests for plug-ins in your own packages. They require pytest.

Inherit a contract in a test class of yours and give it the fixture `make`, or for readers `source`; see come_ros/accelerators/README.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .accelerators import AcceleratorContract
    from .backbones import BackboneContract
    from .models import tiny
    from .readers import ReaderContract

__all__ = ["AcceleratorContract", "BackboneContract", "ReaderContract", "tiny"]
PLACES = {
    "AcceleratorContract": "accelerators",
    "BackboneContract": "backbones",
    "ReaderContract": "readers",
    "tiny": "models",
}

pytest.register_assert_rewrite(*(f"{__name__}.{place}" for place in PLACES.values()))


def __getattr__(name: str) -> Any:
    """Imports a contract when it is requested, since only some of them need torch."""
    if name not in PLACES:
        raise AttributeError(f"module {__name__} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{PLACES[name]}"), name)
