"""Shared by the helper processes of the demo: events as lines of JSON, and a graceful stop."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import rclpy
from rclpy.signals import SignalHandlerOptions

from ..environment import use_large_message_profile


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
