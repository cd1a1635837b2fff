"""Parameters as text for people and editors: commented YAML as config/come.yaml has it, and a JSON schema of parameters files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import yaml

from .config import CHOOSING, Config, parameters
from .errors import ConfigError
from .parameter import Parameter
from .parameter_file import FOREIGN, read_value

TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}
"""python type of a parameter -> its type in a JSON schema"""


def yaml_scalar(value: Any) -> str:
    """The value as YAML and ROS read it back."""
    if isinstance(value, str):
        return value if _is_plain(value) else json.dumps(value, ensure_ascii=False)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_plain(text: str) -> bool:
    """Whether YAML and ROS read `text`, without quotes, as the same text."""
    if text == "" or any(c in text for c in ":#'\"\n"):
        return False
    try:
        return read_value(text) == yaml.safe_load(text) == text
    except (ConfigError, yaml.YAMLError):
        return False


def limits(p: Parameter) -> str:
    """What is allowed, and whether it may change while the node runs, to be put behind its meaning; "" if there is nothing to say."""
    allowed = p.range_text()
    brackets = (" ({})" if p.choices else " [{}]").format(allowed) if allowed else ""
    return brackets + (" (live)" if p.dynamic else "")


def commented_yaml(head: str, values: Iterable[tuple[Parameter, Any]]) -> str:
    """A parameters file with those values, group by group, each with its meaning. head: comment lines."""
    lines, group = [], ""
    for p, value in sorted(values, key=lambda row: "." in row[0].name):  # those without a group first, else as declared
        before, _, name = p.name.rpartition(".")
        if before != group:
            parts, known = before.split("."), group.split(".")
            shared = next(
                (i for i, (a, b) in enumerate(zip(parts, known, strict=False)) if a != b), min(len(parts), len(known))
            )
            lines += [f"{'  ' * (2 + i)}{part}:" for i, part in enumerate(parts) if i >= shared]
            group = before
        indent = 4 + 2 * (len(group.split(".")) if group else 0)
        lines.append(f"{' ' * indent}{name}: {yaml_scalar(value)}  # {p.doc}{limits(p)}")
    return f"{head}/**:\n  ros__parameters:\n" + "\n".join(lines) + "\n"


def differences(config: Config) -> list[tuple[Parameter, Any]]:
    """The parameters of `config` that have another value than their default, in the order of declaration."""
    return [(p, value) for p in config.parameters() if (value := config.get(p.name)) != p.default]


def schema() -> dict[str, Any]:
    """JSON schema (draft 7) of a parameters file of the node, for editors: names, types, ranges, choices and meanings. Parameters may be
    nested in groups or have dotted names; parameters that rclpy declares itself, and those of plug-ins of other packages, are let
    through."""
    groups: dict[str, dict[str, Any]] = {}
    flat: dict[str, Any] = {}
    for p in parameters():
        flat[p.name] = _property(p)
        group, _, leaf = p.name.rpartition(".")
        groups.setdefault(group, {})[leaf] = flat[p.name]
    open_groups = sorted(
        {registry.parameters.partition(".")[0] for registry in CHOOSING.values() if registry.parameters}
    )
    nested = {
        name: {"type": "object", "properties": found, "additionalProperties": name in open_groups}
        for name, found in groups.items()
        if name
    }
    foreign: dict[str, Any] = {name.rstrip("."): {} for name in FOREIGN}
    allowed = [rf"^{name}\." for name in (*open_groups, *(n.rstrip(".") for n in FOREIGN if n.endswith(".")))]
    node = {
        "type": "object",
        "properties": {
            "ros__parameters": {
                "type": "object",
                "properties": {**flat, **nested, **foreign},
                "patternProperties": {pattern: {} for pattern in allowed},
                "additionalProperties": False,
            }
        },
        "additionalProperties": {"$ref": "#/definitions/node"},  # a namespace
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Parameters of come_ros",
        "description": "Written by `make docs` from come_ros/config.py and config_groups.py",
        "type": "object",
        "additionalProperties": {"$ref": "#/definitions/node"},
        "definitions": {"node": node},
    }


def _property(p: Parameter) -> dict[str, Any]:
    about = {"description": p.doc + limits(p), "default": p.default}
    if not p.choices:
        kind: Any = [TYPES[p.type], "array"] if p.joined else TYPES[p.type]
        bounds = {name: bound for name, bound in (("minimum", p.low), ("maximum", p.high)) if bound is not None}
        return {"type": kind, **bounds, **about}
    words: list[dict[str, Any]] = [{"enum": list(p.choices)}]
    if {"on", "off"} & set(p.choices):
        words.append({"type": "boolean"})  # as YAML 1.1 reads the bare words
    if p.plugins is not None:
        words.append({"type": "string", "pattern": r"^[\w.]+:[\w.]+$"})
    if p.joined:
        words += [{"type": "string", "pattern": r"\+"}, {"type": "array", "items": {"type": "string"}}]
    return {"anyOf": words, **about} if len(words) > 1 else {"type": "string", **words[0], **about}
