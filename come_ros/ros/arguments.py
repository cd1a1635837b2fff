"""Checks the node's command line and environment before ROS reads them: ROS ignores some errors and explains few."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Mapping, MutableMapping, Sequence
from itertools import pairwise
from pathlib import Path

from ..errors import ConfigError

LARGEST_DOMAIN = 232  # largest domain whose ports lie below 65536
_PLACE = re.compile(r",? at \S+:\d+")  # location in rcl's sources
_HINTS = {
    "parameter override rule": "write -p NAME:=VALUE, as in -p window.size:=6",
    "remap rule": "write -r FROM:=TO, as in -r image:=/camera/image_raw; names hold letters, digits, _ and /",
    "params file": "check its path and its form: a root key such as '/**:', then 'ros__parameters:', then NAME: VALUE (config/README.md)",
    "log level": "write --log-level debug, info, warn, error or fatal",
    "logging directory": "set ROS_LOG_DIR to a folder that can be written",
}


def ros_arguments(words: Sequence[str]) -> list[str]:
    """`words` of the command line, without the program's name, as rclpy takes them.

    --params FILE and --set NAME=VALUE, which all other commands take, become --params-file and -p. Raises ConfigError for words
    that are not ROS arguments: ROS would ignore them.
    """
    ours: list[str] = []
    ros: list[str] = []
    rest = iter(words)
    in_ros = False
    for word in rest:
        if word == "--ros-args":
            in_ros = True
        elif in_ros and word == "--":
            in_ros = False
        elif in_ros:
            ros.append(word)
        elif word in ("--params", "--set") or word.startswith(("--params=", "--set=")):
            name, equals, value = word.partition("=")
            if not equals and (value := next(rest, "")) == "":
                raise ConfigError(f"{name} needs a value: write {_USE[name]}")
            if name == "--set" and "=" not in value:
                raise ConfigError(f"--set {value!r} must be NAME=VALUE, such as window.size=6")
            ours += ["--params-file", value] if name == "--params" else ["-p", value.replace("=", ":=", 1)]
        else:
            raise ConfigError(
                f"{word!r} is not an argument of the node: it takes {_USE['--params']}, {_USE['--set']}, and ROS arguments after "
                f"--ros-args (come_ros node --help)"
            )
    return ["--ros-args", *ours, *ros] if ours or ros else []


_USE = {"--params": "--params FILE", "--set": "--set NAME=VALUE"}


def params_files(arguments: Sequence[str]) -> list[str]:
    """The files that follow --params-file in what ros_arguments returned."""
    return [b for a, b in pairwise(arguments) if a == "--params-file"]


def check_environment(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets a log folder for ROS if there is no home directory. Raises ConfigError if ROS_DOMAIN_ID or RMW_IMPLEMENTATION is invalid: call
    it before rclpy is imported, which ends the process for the latter."""
    domain = environment.get("ROS_DOMAIN_ID", "")
    if domain and not (re.fullmatch("[0-9]+", domain) and int(domain) <= LARGEST_DOMAIN):
        raise ConfigError(
            f"ROS_DOMAIN_ID is {domain!r}, but must be a whole number in 0 .. {LARGEST_DOMAIN}: set it to that of the robot, or unset it"
        )
    rmw = environment.get("RMW_IMPLEMENTATION", "")
    known = middlewares(environment)
    if rmw and known and rmw not in known:
        raise ConfigError(
            f"RMW_IMPLEMENTATION is {rmw!r}, which is not installed: unset it, set it to {' or '.join(sorted(known))}, or install it "
            f"(ros-<distro>-{rmw.replace('_', '-')})"
        )
    if not any(environment.get(name) for name in ("ROS_LOG_DIR", "ROS_HOME", "HOME")):
        environment["ROS_LOG_DIR"] = os.path.join(tempfile.gettempdir(), "come_ros_log")


def middlewares(environment: Mapping[str, str]) -> set[str]:
    """The RMW implementations of this ROS; empty if it does not say."""
    prefixes = [
        *environment.get("AMENT_PREFIX_PATH", "").split(os.pathsep),
        sys.prefix,
    ]  # the latter holds ROS installed by pip
    marks = [Path(p) / "share/ament_index/resource_index/rmw_typesupport" for p in prefixes if p]
    return {file.name for mark in marks if mark.is_dir() for file in mark.iterdir()} - {"rmw_implementation"}


def explained(error: BaseException) -> str:
    """A one-line message for an exception of rclpy at start: without source locations, with the fix if known."""
    text = _PLACE.sub("", " ".join(str(error).split())).strip(" ,")
    hint = next((fix for key, fix in _HINTS.items() if key in text), "")
    return f"{text or type(error).__name__}{': ' if hint else ''}{hint}"
