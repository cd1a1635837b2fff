"""Reads what a running node says of itself on /diagnostics. Imports no ROS."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

HEAD = "come: "
LEVELS = ("OK", "WARN", "ERROR", "STALE")


class Status(NamedTuple):
    """level: index into LEVELS. message: all problems, the worst first, or "ok". values: key -> value, as published."""

    level: int
    message: str
    values: dict[str, str]


def read(message: Any) -> dict[str, Status]:
    """`input`, `inference` and `output` of a diagnostic_msgs/DiagnosticArray of ours; empty for those of other nodes."""
    return {
        status.name.removeprefix(HEAD): Status(
            ord(status.level), status.message, {value.key: value.value for value in status.values}
        )
        for status in message.status
        if status.name.startswith(HEAD)
    }


def number(text: str) -> float | int | str | None:
    """A value as JSON has it: a number where it is one, None for nan."""
    with contextlib.suppress(ValueError):
        return int(text)
    with contextlib.suppress(ValueError):
        value = float(text)
        return value if math.isfinite(value) else None
    return text


def worst(statuses: Mapping[str, Status]) -> int:
    """The level of the worst status."""
    return max(status.level for status in statuses.values())
