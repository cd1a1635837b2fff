"""Publishers in this process: the counterpart of listener.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions

from ..messages import message_type

MATCH_S = 15.0
FOUND_S = 0.5  # the subscribers may discover us a moment later


@contextmanager
def talker(topics: Mapping[str, tuple[str, int]]) -> Iterator[Callable[[str, Any], None]]:
    """`publish(topic, message)`, reliable, once each topic has a subscriber. topics: name -> (type, depth).

    Raises TimeoutError if a topic has no subscriber in time.
    """
    # Without rclpy's handlers: a signal ends the wait below as in any Python program, and nothing spins that it would have to wake.
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("talker")
    try:
        publishers = {
            topic: node.create_publisher(
                message_type(kind), topic, QoSProfile(depth=depth, reliability=ReliabilityPolicy.RELIABLE)
            )
            for topic, (kind, depth) in topics.items()
        }
        end = time.monotonic() + MATCH_S
        while min(p.get_subscription_count() for p in publishers.values()) == 0:
            if time.monotonic() > end:
                raise TimeoutError(f"after {MATCH_S:.0f} s not every topic has a subscriber")
            time.sleep(0.05)
        time.sleep(FOUND_S)
        yield lambda topic, message: publishers[topic].publish(message)
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
