"""Plug-ins that can be chosen by name: built-in ones, entry points of other installed packages, or `module:Class` anywhere on
Python's path.

This is the only list of built-in accelerators and backbones (`backbones.checkpoint.MODELS` has the networks in the order in which files are
recognised). Classes are imported when they are requested, not earlier.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ComeRosError, ConfigError, PluginError

log = logging.getLogger("come_ros")


@dataclass(frozen=True, eq=False)
class Registry:
    """kind: what is registered, for messages. group: of entry points. bases: `module:Class` that a plug-in must inherit, one of them.
    own: name -> `module:Class` of the built-in ones. parameters: prefix of the names of a plug-in's own parameters, "" if it has
    none."""

    kind: str
    group: str
    bases: tuple[str, ...]
    own: Mapping[str, str]
    parameters: str = ""

    @functools.cached_property
    def others(self) -> Mapping[str, importlib.metadata.EntryPoint]:
        """Name -> entry point of other packages. Built-in names cannot be replaced; an attempt is logged."""
        found = {}
        for entry in importlib.metadata.entry_points(group=self.group):
            if entry.name in self.own:
                log.warning("the %s %s of %s is left out: that name is built in", self.kind, entry.name, entry.value)
            else:
                found[entry.name] = entry
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """All names that can be chosen."""
        return (*self.own, *self.others)

    def allows(self, name: str) -> bool:
        """Whether `name` is allowed; a `module:Class` is checked by `load`."""
        return name in self.own or ":" in name or name in self.others

    def allowed(self) -> str:
        """The allowed values, for messages."""
        return f"{', '.join(self.names)}, or module:Class of your own"

    def create(self, name: str, *arguments: Any) -> Any:
        """`create(*arguments)` of the plug-in of that name. Raises ConfigError where one of another package fails."""
        kind = self.load(name)
        try:
            return kind.create(*arguments)
        except ComeRosError:
            raise
        except Exception as error:
            if name in self.own:
                raise
            raise ConfigError(
                f"the {self.kind} {name} cannot be made: {one_line(error)}: fix {kind.__qualname__}.create"
            ) from error

    def load(self, name: str) -> Any:
        """Loads the class of that name. Raises ConfigError with a one-line reason."""
        place = self.own.get(name) or (name if ":" in name else "")
        if not place:
            if name not in self.others:
                raise ConfigError(f"there is no {self.kind} {name!r}: give one of {self.allowed()}")
            place = self.others[name].value
        module, _, path = place.partition(":")
        title = f"the {self.kind} {name}" + (f" ({place})" if place != name else "")
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if name in self.own:
                raise
            missing = error.name or module
            where = (
                "install it into this Python, or check the spelling" if module.startswith(missing) else "install that"
            )
            raise ConfigError(f"cannot import {title}: there is no module {missing!r}: {where}") from error
        except Exception as error:
            if name in self.own:
                raise
            raise ConfigError(f"cannot import {title}: {one_line(error)}: fix that module") from error
        for part in path.split("."):
            found = getattr(found, part, None)
        if not isinstance(found, type):
            raise ConfigError(f"{title} is not a class: module {module} has no class {path!r}: check the spelling")
        if name not in self.own:
            self._check(found, title)
        return found

    def _check(self, found: type, title: str) -> None:
        """Raises ConfigError if a class of another package cannot be used."""
        bases = [getattr(importlib.import_module(m), c) for m, _, c in (b.partition(":") for b in self.bases)]
        if not issubclass(found, tuple(bases)):
            wanted = " or ".join(b.replace(":", ".") for b in self.bases)
            raise ConfigError(f"{title} cannot be used: class {found.__name__} must inherit from {wanted}")
        if missing := sorted(getattr(found, "__abstractmethods__", ())):
            raise ConfigError(f"{title} cannot be used: class {found.__name__} lacks {', '.join(missing)}")
        kind = getattr(found, "Parameters", None)
        if kind is None:
            return
        if not (dataclasses.is_dataclass(kind) and getattr(kind, "__dataclass_params__").frozen):  # noqa: B009
            raise ConfigError(f"{title} cannot be used: its Parameters must be a dataclass with frozen=True")
        if wrong := [f.name for f in dataclasses.fields(kind) if "doc" not in f.metadata]:
            raise ConfigError(
                f"{title} cannot be used: declare {', '.join(wrong)} of its Parameters with come_ros.parameter.parameter(default, meaning)"
            )

    def parameters_of(self, name: str) -> type | None:
        """The dataclass of a plug-in's own parameters, None if it has none. Raises ConfigError if the plug-in cannot be loaded."""
        if name in self.own:
            return None
        found: type | None = getattr(self.load(name), "Parameters", None)
        return found


def check_complete(made: Any, base: type, title: str) -> None:
    """Raises PluginError if an object of another package lacks attributes that its base class declares."""
    if missing := [name for name in base.__annotations__ if not hasattr(made, name)]:
        raise PluginError(
            f"{title} cannot be used: {type(made).__name__} lacks {', '.join(missing)}: set them in the class or in __init__"
        )


def one_line(error: Exception) -> str:
    """Type and message of an exception raised by another package's code."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


ACCELERATORS = Registry(
    "accelerator",
    "come_ros.accelerators",
    ("come_ros.accelerators:Accelerator",),
    {
        "none": "come_ros.accelerators:NoAccelerator",
        "come": "come_ros.accelerators.come:CoMe",
        "tome": "come_ros.accelerators.tome:ToMe",
        "good_token_hunting": "come_ros.accelerators.good_token_hunting:GoodTokenHunting",
        "pace": "come_ros.accelerators.pace:Pace",
        "fast": "come_ros.accelerators.fast:Fast",
        "temporal": "come_ros.accelerators.temporal:Temporal",
        "subscene": "come_ros.accelerators.subscene:Subscene",
        "regime": "come_ros.accelerators.regime:Regime",
        "random": "come_ros.accelerators.random:Random",
    },
    "accelerator.params.",
)
BACKBONES = Registry(
    "backbone",
    "come_ros.backbones",
    ("come_ros.backbones:Backbone", "come_ros.backbones.model:GeometryModel"),
    {
        "vggt": "come_ros.backbones.vggt:VGGT",
        "mapanything": "come_ros.backbones.mapanything:MapAnything",
        "pi3": "come_ros.backbones.pi3:Pi3",
        "da3": "come_ros.backbones.da3:DepthAnything3",
        "lingbot": "come_ros.backbones.lingbot:LingBot",
        "fake": "come_ros.backbones.fake:FakeBackbone",
    },
    "backbone_params.",
)
READERS = Registry("dataset reader", "come_ros.datasets", ("come_ros.datasets:Recording",), {})


def is_network(backbone: str) -> bool:
    """Whether that backbone is a GeometryModel, whose tokens accelerators reduce, and not any other Backbone. Raises ConfigError if a
    plug-in cannot be loaded."""
    return backbone != "fake" if backbone in BACKBONES.own else not hasattr(BACKBONES.load(backbone), "create")
