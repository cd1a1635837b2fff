"""Reads ROS parameters files and values as rcl does, so the node and the tools get the same values from the same text.

ROS does not read YAML 1.1 or 1.2: `1e-3` is a number, `010` is eight, `null` is a string, and there are no aliases
(rcl_yaml_param_parser). This module needs no ROS; test/ros compares it with rcl itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .errors import ConfigError

NODE = "/come"  # the node's full name; the tools read its entries
# Parameters that rclpy declares by itself: a dump of a running node holds them.
FOREIGN = ("use_sim_time", "start_type_description_service", "qos_overrides.")

_TRUE = frozenset(["Y", "y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"])
_FALSE = frozenset(["N", "n", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"])
_INTEGER = re.compile(r"[+-]?(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)")
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_HEXADECIMAL = re.compile(r"[+-]?0[xX]([0-9a-fA-F]+\.?[0-9a-fA-F]*|\.[0-9a-fA-F]+)([pP][+-]?[0-9]+)?")
_INFINITE = re.compile(r"([+-]?)(\.inf|\.Inf|\.INF|(?i:inf|infinity))")
_NAN = re.compile(r"\.nan|\.NaN|\.NAN|[+-]?(?i:nan)(\(\w*\))?")
_LARGEST, _SMALLEST = 2**63 - 1, 2.2250738585072014e-308  # int64; the smallest float that strtod does not refuse

MOST_DEPTH = 64  # of a file: a node's namespaces and groups


@dataclass(frozen=True)
class Entry:
    """The parameters below one key of a file. node: the full node name of the key, such as /robot1/come or /**."""

    node: str
    values: dict[str, Any]

    def applies_to(self, node: str) -> bool:
        """Whether they apply to a node of that full name: /* matches one name, /** any number of names."""
        pattern = re.escape(self.node).replace(r"/\*\*", r"(/\w+)*").replace(r"/\*", r"(/\w+)")
        return re.fullmatch(pattern, node) is not None


def read_parameters(path: str | Path, node: str = NODE) -> dict[str, Any]:
    """Dotted name -> value of all entries of the file that apply to `node`; where several set one parameter, the last wins.

    Parameters that rclpy declares itself are left out. Raises ConfigError if the file cannot be read, is not a parameters file, or
    holds no entry for `node`.
    """
    entries = read_entries(path)
    mine = [entry for entry in entries if entry.applies_to(node)]
    if entries and not mine:
        names = ", ".join(dict.fromkeys(entry.node for entry in entries))
        raise ConfigError(
            f"{path} gives parameters to {names}, but nothing to {node}: write '/**:' or '{node}:' as its key "
            f"(come_ros node ignores the file, too, unless that is its full name)"
        )
    values: dict[str, Any] = {}
    for entry in mine:
        values.update(entry.values)
    return {name: value for name, value in values.items() if not name.startswith(FOREIGN)}


def read_entries(path: str | Path) -> list[Entry]:
    """All entries of a parameters file, in order. Raises ConfigError if it cannot be read or is not a parameters file."""
    try:
        # bytes: YAML detects UTF-8, UTF-16 and byte order marks itself
        data = Path(path).read_bytes()
        depth = 0
        for event in yaml.parse(data, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MOST_DEPTH:
                raise ConfigError(f"{path}, line {_line(event)}: nested more than {MOST_DEPTH} deep: not parameters")
            if isinstance(event, yaml.AliasEvent):
                raise ConfigError(
                    f"{path}, line {_line(event)}: ROS reads no aliases (*{event.anchor}): write the value out"
                )
        documents = list(yaml.compose_all(data, yaml.SafeLoader))
    except ConfigError:
        raise
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ConfigError(
            f"cannot read the parameters file {path}: {reason}: check its path, and that it is YAML in UTF-8"
        ) from error
    try:
        return [entry for document in documents if document is not None for entry in _entries(document, "")]
    except _Fault as fault:
        raise ConfigError(f"{path}, line {fault.line}: {fault}") from None


def read_value(text: str) -> Any:
    """A value as `ros2 run ... -p name:=text` takes it: bool, int, float, str, or a list of one of them. Raises ConfigError."""
    try:
        tree = yaml.compose(text, yaml.SafeLoader)
    except (RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{text!r} is not a value that YAML can read: put it in quotes if it is a text") from error
    if tree is None:
        return text
    try:
        return _value(tree)
    except _Fault as fault:
        raise ConfigError(f"{text!r}: {fault}") from None


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark is not None else 0


class _Fault(Exception):
    """Something that rcl refuses, with its line number."""

    def __init__(self, tree: yaml.Node, text: str) -> None:
        super().__init__(text)
        self.line = tree.start_mark.line + 1


def _entries(tree: yaml.Node, path: str) -> Iterator[Entry]:
    if not isinstance(tree, yaml.MappingNode):
        raise _Fault(
            tree,
            "not a ROS parameters file: it needs a root key such as '/**:' with 'ros__parameters:' below it, and all parameters below that",
        )
    for key, value in tree.value:
        name = _name(key)
        if name == "ros__parameters":
            if not isinstance(value, yaml.MappingNode):
                raise _Fault(value, "'ros__parameters' holds no parameters: write them below it, or remove it")
            yield Entry(path or "/", dict(_flat(value, "")))
        else:
            yield from _entries(value, f"{path}/{name.strip('/')}")


def _flat(tree: yaml.MappingNode, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.value:
        name = f"{prefix}{_name(key)}"
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _flat(value, f"{name}.")
        else:
            yield name, _value(value)


def _name(key: yaml.Node) -> str:
    if not isinstance(key, yaml.ScalarNode):
        raise _Fault(key, "a name must be a text, not a list or map")
    return str(key.value)


def _value(tree: yaml.Node) -> Any:
    if isinstance(tree, yaml.ScalarNode):
        return _scalar(tree)
    if not tree.value:
        return None  # an empty list or map has no type, so ROS sets no value
    if isinstance(tree, yaml.SequenceNode) and all(isinstance(each, yaml.ScalarNode) for each in tree.value):
        values = [_scalar(each) for each in tree.value]
        if len({type(value) for value in values}) > 1:
            raise _Fault(tree, f"{values} is a list of several types: ROS takes lists of one type")
        return values
    raise _Fault(tree, "a list may hold numbers, texts or truth values only")


def _scalar(tree: yaml.ScalarNode) -> Any:
    text = str(tree.value)
    if tree.style in ("'", '"'):
        return text
    if text == "":
        raise _Fault(tree, "a parameter has no value: give one, or remove it ('' is the empty text)")
    if tree.tag == "tag:yaml.org,2002:str" and _tagged(tree):
        return text
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if _INTEGER.fullmatch(text):
        digits = text.lstrip("+-")
        base = 16 if digits[:2] in ("0x", "0X") else 8 if digits[0] == "0" else 10
        whole = int(digits, base) * (-1 if text[0] == "-" else 1)
        if -_LARGEST - 1 <= whole <= _LARGEST:
            return whole
    number = _number(text)
    return text if number is None else number


def _number(text: str) -> float | None:
    """As strtod reads it; None for a text, and for numbers that are too large or too small for it."""
    if _NAN.fullmatch(text):
        return math.nan
    if infinite := _INFINITE.fullmatch(text):
        return -math.inf if infinite[1] == "-" else math.inf
    if _DECIMAL.fullmatch(text):
        number, zero = float(text), not re.search("[1-9]", re.split("[eE]", text)[0])
    elif _HEXADECIMAL.fullmatch(text):
        try:
            number = float.fromhex(text)
        except OverflowError:
            return None
        zero = number == 0.0
    else:
        return None
    return number if zero or _SMALLEST <= abs(number) < math.inf else None


def _tagged(tree: yaml.ScalarNode) -> bool:
    """Whether the file states the type of a scalar (!!str 3)."""
    return yaml.SafeLoader("").resolve(yaml.ScalarNode, tree.value, (True, False)) != tree.tag  # type: ignore[no-untyped-call]
