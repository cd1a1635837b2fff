"""How a parameter is declared: a dataclass field with its default, meaning, range and choices."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import ConfigError
from .plugins import Registry

OWN = {"own": True}
"""metadata of the field that holds the `Parameters` of the chosen plug-in, None if it has none"""


def parameter(
    default: Any,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    dynamic: bool = False,
    joined: bool = False,
    plugins: Registry | None = None,
    node_only: bool = False,
    only: tuple[str, tuple[Any, ...]] | None = None,
) -> Any:
    """A dataclass field that declares a parameter. Plug-ins declare the fields of their `Parameters` with it, too.

    low, high: bounds, both included. dynamic: may be set while the node runs; takes effect with the next window. joined: several
    choices may be given, joined by + or as a list. plugins: the choices are the plug-ins registered there. node_only: only the live
    node reads it. only: another parameter and the values of it with which this one has an effect.
    """
    choices = tuple(plugins.own) if plugins is not None else choices
    return field(
        default=default,
        metadata={
            "doc": doc, "low": low, "high": high, "choices": choices, "dynamic": dynamic, "joined": joined, "plugins": plugins,
            "node_only": node_only, "only": only,
        },
    )  # fmt: skip


_KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "text"}


@dataclass(frozen=True)
class Parameter:
    """One parameter as declared: dotted name, python type (bool, int, float or str), default, range and meaning."""

    name: str
    type: type
    default: Any
    doc: str
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    dynamic: bool
    joined: bool = False
    plugins: Registry | None = None
    node_only: bool = False
    only: tuple[str, tuple[Any, ...]] | None = None

    def coerce(self, value: Any) -> Any:
        """`value` as it was meant: whole numbers pass for float ones (YAML `1` for `1.0`), and YAML reads the bare words off and on
        as truth values; ~/ is the home folder, which no shell has put into a file. Nothing else is guessed."""
        if self.joined and isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
            return "+".join(value)
        if isinstance(value, bool) and (word := "on" if value else "off") in self.choices:
            return word
        if self.type is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, str) and value.startswith("~/") and value != self.default:
            return os.path.expanduser(value)
        return value

    def check(self, value: Any) -> None:
        """Raises ConfigError if `value` has the wrong type, is out of range, or is not one of the choices."""
        if type(value) is not self.type:
            raise ConfigError(
                f"{self.name} is {value!r} ({type(value).__name__}), but must be {_KINDS[self.type]}: {self.doc}"
            )
        each: list[Any] = str(value).split("+") if self.joined else [value]
        if self.plugins is not None and not all(self.plugins.allows(v) for v in each):
            raise ConfigError(f"{self.name} is {value!r}, but must be one of {self.plugins.allowed()}: {self.doc}")
        if self.plugins is None and self.choices and any(v not in self.choices for v in each):
            raise ConfigError(f"{self.name} is {value!r}, but must be one of {', '.join(self.choices)}: {self.doc}")
        number: Any = value
        # written so that NaN fails as well
        if (self.low is not None and not number >= self.low) or (self.high is not None and not number <= self.high):
            raise ConfigError(f"{self.name} is {value!r}, but must lie in {self.range_text()}: {self.doc}")

    def range_text(self) -> str:
        """The allowed values, for messages and tables."""
        if self.choices:
            return " | ".join(self.choices) + (" | module:Class" if self.plugins is not None else "")
        if self.low is None and self.high is None:
            return ""
        return f"{self.low:g} .. {self.high:g}"


def declared(group: type, prefix: str = "") -> Iterator[Parameter]:
    """The parameters of the dataclass `group` and of the groups in it, in declaration order; their names begin with `prefix`."""
    for f in dataclasses.fields(group):
        if f.metadata.get("own"):
            continue
        if f.metadata:
            yield Parameter(prefix + f.name, type(f.default), f.default, **f.metadata)
        else:
            yield from declared(f.default_factory, prefix + f.name + ".")  # type: ignore[arg-type]


def did_you_mean(name: str, known: Mapping[str, Any]) -> str:
    import difflib

    inside = [full for full in known if full.startswith(f"{name}.")]  # a group in place of a parameter
    near = inside[:1] or difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
