"""Which executor of rclpy runs the node's callbacks: the parameter `executor`."""

from __future__ import annotations

import logging
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor

from ..errors import ConfigError

log = logging.getLogger("come_ros")

SINGLE, EVENTS = "single_threaded", "events"
FIRST_MAJOR = 9  # Kilted. Jazzy's rclpy 7.1.6 has an EventsExecutor too, but it never awaits a coroutine, and our services are coroutines
LONGEST_WAIT_S = 1.0  # a signal that only Python handles waits for the end of spin_once


def chosen(name: str) -> str:
    """SINGLE or EVENTS for a value of the parameter. "auto" is SINGLE: where EVENTS can run the node it was measured to be no faster, see
    test/benchmark/speed/results/executor.md.

    Raises ConfigError if this rclpy has no EventsExecutor that can run the node.
    """
    if name == "auto":
        return SINGLE
    if name == EVENTS and _major() < FIRST_MAJOR:
        raise ConfigError(
            f"executor is events, but that needs ROS 2 Kilted or newer: the EventsExecutor of rclpy {_version() or '(version unknown)'} "
            f"runs no coroutines, which the node's services are: set executor to auto or single_threaded"
        )
    return name


def create(name: str) -> Any:
    """An executor in the default context. name: SINGLE or EVENTS."""
    if name == EVENTS:
        from rclpy.experimental import EventsExecutor

        log.warning(
            "executor is events, an experiment: it was measured to be no faster, and after a service that waits the process leaves "
            "shared memory behind; the default is single_threaded"
        )
        return EventsExecutor()
    return SingleThreadedExecutor()


def spin(executor: Any) -> None:
    """Runs callbacks until the context is shut down. Raises ExternalShutdownException or KeyboardInterrupt after a signal."""
    if isinstance(executor, SingleThreadedExecutor):
        executor.spin()
        return
    while rclpy.ok():  # EventsExecutor.spin() of rclpy 9.1.2 keeps a core busy and runs no callback
        executor.spin_once(timeout_sec=LONGEST_WAIT_S)


def _version() -> str:
    try:
        return version("rclpy")
    except PackageNotFoundError:
        return ""


def _major() -> int:
    """Of rclpy's version: 7 is Jazzy, 9 Kilted. 0 if it is unknown."""
    head = _version().split(".")[0]
    return int(head) if head.isdigit() else 0
