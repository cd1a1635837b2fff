"""Shared by the helper processes of the demo and by commands that use ROS: events as lines of JSON, and a graceful stop."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import rclpy
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from ...interrupts import Interrupts
from ..environment import use_large_message_profile

POLL_S = 0.05


def tell(event: str, **values: Any) -> None:
    """Prints one line on stdout: {"event": ..., ...}."""
    print(json.dumps({"event": event, **values}), flush=True)


@contextmanager
def ros_process() -> Iterator[threading.Event]:
    """rclpy, and an event that SIGINT and SIGTERM set: unlike rclpy's handlers this interrupts nothing, so writes are completed."""
    stop = threading.Event()
    use_large_message_profile()
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        yield stop
    finally:
        rclpy.try_shutdown()


class Stop(Protocol):
    """Whether to stop, polled. threading.Event is one."""

    def is_set(self) -> bool: ...

    def wait(self, timeout: float) -> bool:
        """Waits so many seconds, or less if it is to stop. Returns whether it is."""


class Polled:
    """Interrupts as a Stop."""

    def __init__(self, stopped: Interrupts) -> None:
        self._stopped = stopped

    def is_set(self) -> bool:
        return self._stopped()

    def wait(self, timeout: float) -> bool:
        """Waits so many seconds, or less if a signal came. Returns whether one did."""
        end = time.monotonic() + timeout
        while not self._stopped() and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, POLL_S))
        return self._stopped()


@contextmanager
def command_node(name: str) -> Iterator[Node]:
    """A node of a command of the command line, whose signals are polled (Polled)."""
    use_large_message_profile()
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = Node(name, enable_rosout=False, start_parameter_services=False)
        try:
            yield node
        finally:
            node.destroy_node()
    finally:
        rclpy.try_shutdown()


def full_names(node: Node) -> list[str]:
    """Full names of all nodes that are found, this one included."""
    return [f"{space.rstrip('/')}/{name}" for name, space in node.get_node_names_and_namespaces()]
