"""LatchedTopics: publishes path, map and scale when they change, at a limited rate and cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions

from ..config import Config
from ..outputs.topics import LATCHED
from ..outputs.world import World
from .messages import message_type

MOST_TIME = 0.1  # share of the worker's time for one topic: a map of two million points takes a quarter of a second


class LatchedTopics:
    """Publishers of LATCHED, created and destroyed with the node's other publishers."""

    def __init__(
        self,
        node: LifecycleNode,
        overridable: QoSOverridingOptions,
        events: Callable[[str], Any] = lambda topic: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """events: event callbacks of the publisher of a topic."""
        self._clock = clock
        self._publishers = {
            topic: node.create_lifecycle_publisher(
                message_type(latched.kind),
                f"~/{topic}",
                QoSProfile(
                    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
                ),
                qos_overriding_options=overridable,
                event_callbacks=events(topic),
            )
            for topic, latched in LATCHED.items()
        }
        self._told: dict[str, Any] = {}
        self._next: dict[str, float] = {}

    def publish(self, world: World, config: Config) -> None:
        """Publishes the topics that have changed and are due."""
        for topic, latched in LATCHED.items():
            state, begun = latched.state(world), self._clock()
            if state is None or state == self._told.get(topic) or begun < self._next.get(topic, 0.0):
                continue
            self._publishers[topic].publish(latched.build(world))
            self._told[topic] = state
            took = self._clock() - begun
            self._next[topic] = begun + max(1 / latched.rate(config), took / MOST_TIME)

    def destroy(self, node: LifecycleNode) -> None:
        for publisher in self._publishers.values():
            node.destroy_lifecycle_publisher(publisher)
