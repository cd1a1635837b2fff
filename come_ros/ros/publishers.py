"""The node's outputs: publishers of all topics about a frame, and TF. Messages without subscribers are not built."""

from __future__ import annotations

import time
from typing import Any

from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions

from ..config import Config
from ..outputs.motion import Motion
from ..outputs.topics import OUTPUTS, FrameMessages, odometry_message, topic_of
from . import messages
from .diagnostics.telemetry import Telemetry
from .inputs import OVERRIDABLE, OutputConflicts
from .reader import Reader

QOS_OVERRIDES = QoSOverridingOptions(OVERRIDABLE)


class Publishers:
    """A Sink, see outputs.reporter."""

    def __init__(self, node: LifecycleNode, reader: Reader, telemetry: Telemetry) -> None:
        self._node, self._reader, self._telemetry = node, reader, telemetry
        self._of: dict[tuple[str, str], Any] = {}  # (camera's name, topic)

    def open(self, conflicts: OutputConflicts) -> None:
        """Creates the publishers; TF is opened separately."""
        cameras = self._reader.cameras
        self._of = {
            (camera.name, topic): self._node.create_lifecycle_publisher(
                messages.message_type(output.kind),
                f"~/{topic_of(camera.name, topic)}",
                QoSProfile(depth=output.depth, reliability=ReliabilityPolicy.RELIABLE),
                qos_overriding_options=QOS_OVERRIDES,
                event_callbacks=conflicts.callbacks(topic_of(camera.name, topic)),
            )
            for camera in cameras
            for topic, output in OUTPUTS.items()
            if camera is cameras[0] or not output.robot
        }

    def close(self) -> None:
        """Destroys the publishers."""
        for publisher in self._of.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._of = {}

    def frame(self, topic: str, made: FrameMessages) -> None:
        """Publishes a topic about a frame if it has subscribers."""
        publisher = self._wanted(made.row, topic)
        if publisher is not None:
            publisher.publish(OUTPUTS[topic].build(made))
            if topic == "points":
                self._telemetry.points = made.cloud_points.size

    def moved(self, motion: Motion, config: Config) -> None:
        """Publishes TF, then odometry."""
        self._reader.tf.send(
            motion.stamp_ns, motion.child, motion.odom_from_child, self._reader.waited_s(time.monotonic()),
            motion.map_from_odom,
        )  # fmt: skip
        publisher = self._wanted(0, "odometry")
        if publisher is not None:
            publisher.publish(odometry_message(messages.ROS, motion, config))

    def new_world(self) -> None:
        """Does nothing: no state is kept here."""

    def _wanted(self, row: int, topic: str) -> Any:
        """The publisher of a topic of that row's camera, None without subscribers."""
        cameras = self._reader.cameras
        publisher = self._of.get((cameras[row % len(cameras)].name, topic))
        return publisher if publisher is not None and publisher.get_subscription_count() > 0 else None
