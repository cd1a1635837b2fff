"""Records what the live node publishes into an MCAP file: python -m come_ros.ros.programs.recorder FILE [options].

Records raw bytes at the time of their arrival. /tf is recorded as published; without tf2_msgs, when the node cannot publish it, it
is written from the node's odometry. Prints lines of JSON on stdout: `ready`, `status` (state and counts of the node, from its
diagnostics) and `recorded`.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from mcap.writer import CompressionType, Writer
from nav_msgs.msg import Odometry
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from rosbags.typesys import Stores, get_typestore

from ...outputs import topics
from ..diagnostics.reading import read
from ..messages import message_type
from .process import ros_process, tell

OUTPUTS = {
    topic: topics.OUTPUTS[topic].kind
    for topic in (
        "points",
        "odometry",
        "depth/image",
        "depth/camera_info",
        "rgb/image_rect",
        "confidence",
        "merge_overlay",
    )
}
"""Topic below the node's name -> type."""
DIAGNOSTICS = "/diagnostics"
TF_TYPE = "tf2_msgs/msg/TFMessage"


class Recorder:
    """Subscriptions of a node, written to a file as messages come. Recording times are `time.time_ns()` at arrival."""

    def __init__(
        self, node: Node, path: str, come: str, inputs: dict[str, str], cameras: Sequence[str] = ("",)
    ) -> None:
        """come: full name of the node to record. inputs: topic -> type of its input topics, recorded too. cameras: of the node, by
        name, where there are several."""
        self.counts: dict[str, int] = {}
        self.tf_from_odometry = False
        self._node = node
        self._store = get_typestore(Stores.ROS2_JAZZY)
        # lz4 costs a tenth of zstd, and the CPU is needed by the node
        self._writer = Writer(path, compression=CompressionType.LZ4)
        self._writer.start(profile="ros2", library="come_ros")
        self._channels: dict[str, int] = {}
        self._status: dict[str, Any] = {}
        recorded = {
            f"{come}/{topics.topic_of(camera, name)}": kind for camera in cameras for name, kind in OUTPUTS.items()
        }
        self.outputs = list(recorded)
        reliable = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)
        sensor = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)
        for topic, kind in inputs.items():
            self._subscribe(topic, kind, sensor)
        for topic, kind in recorded.items():
            self._subscribe(topic, kind, reliable)
        self._odometry = f"{come}/odometry"
        self._subscribe(DIAGNOSTICS, "diagnostic_msgs/msg/DiagnosticArray", reliable)
        try:
            static = QoSProfile(
                depth=100, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
            )
            self._subscribe("/tf", TF_TYPE, QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE))
            self._subscribe("/tf_static", TF_TYPE, static)
        except ImportError:
            self.tf_from_odometry = True

    def _subscribe(self, topic: str, kind: str, qos: QoSProfile) -> None:
        self._node.create_subscription(message_type(kind), topic, partial(self._take, topic, kind), qos, raw=True)

    def _take(self, topic: str, kind: str, data: bytes) -> None:
        now_ns = time.time_ns()
        if topic == self._odometry and self.tf_from_odometry:
            self._write("/tf", TF_TYPE, self._tf(data), now_ns)
        self._write(topic, kind, data, now_ns)
        if topic == DIAGNOSTICS:
            self._tell_status(data)

    def _write(self, topic: str, kind: str, data: bytes, now_ns: int) -> None:
        if topic not in self._channels:
            text, _ = self._store.generate_msgdef(kind, ros_version=2)
            schema = self._writer.register_schema(kind, "ros2msg", text.encode())
            self._channels[topic] = self._writer.register_channel(topic, "cdr", schema)
        self._writer.add_message(self._channels[topic], now_ns, data, now_ns, self.counts.get(topic, 0))
        self.counts[topic] = self.counts.get(topic, 0) + 1

    def _tf(self, data: bytes) -> bytes:
        """The edge of an odometry message as a serialized TFMessage, by rosbags: rclpy has no such type here."""
        odometry = deserialize_message(data, Odometry)
        types, p, q = self._store.types, odometry.pose.pose.position, odometry.pose.pose.orientation
        stamp = types["builtin_interfaces/msg/Time"](odometry.header.stamp.sec, odometry.header.stamp.nanosec)
        transform = types["geometry_msgs/msg/Transform"](
            types["geometry_msgs/msg/Vector3"](p.x, p.y, p.z), types["geometry_msgs/msg/Quaternion"](q.x, q.y, q.z, q.w)
        )
        head = types["std_msgs/msg/Header"](stamp, odometry.header.frame_id)
        edge = types["geometry_msgs/msg/TransformStamped"](head, odometry.child_frame_id, transform)
        return bytes(self._store.serialize_cdr(types[TF_TYPE]([edge]), TF_TYPE))

    def _tell_status(self, data: bytes) -> None:
        statuses = read(deserialize_message(data, DiagnosticArray))
        if not statuses:
            return
        values = {**statuses["input"].values, **statuses["inference"].values}
        outputs_found = all(self._node.count_publishers(t) for t in self.outputs)
        self._status = {
            "state": values["state"],
            "outputs_found": outputs_found,
            "trouble": statuses["inference"].message,
            **{key: int(values[key]) for key in ("received", "used", "pending")},
        }
        tell("status", **self._status)

    def close(self) -> None:
        """Completes the file."""
        self._writer.finish()  # type: ignore[no-untyped-call]


def main(argv: list[str] | None = None) -> int:
    """Records until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m come_ros.ros.programs.recorder")
    parser.add_argument("file", help="MCAP file to write")
    parser.add_argument("--node", default="/come", help="full name of the node to record")
    parser.add_argument(
        "--input", nargs=2, action="append", default=[], metavar=("TOPIC", "TYPE"), help="record this too"
    )
    parser.add_argument("--cameras", nargs="+", default=[""], metavar="NAME", help="of the node, if it has several")
    options = parser.parse_args(argv)
    with ros_process() as stop:
        node = Node("recorder", enable_rosout=False, start_parameter_services=False)
        recorder = Recorder(node, options.file, options.node, dict(options.input), options.cameras)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        tell("ready", tf_from_odometry=recorder.tf_from_odometry)
        try:
            _spin(executor, stop)
        finally:
            recorder.close()
            executor.shutdown()
            node.destroy_node()
    tell("recorded", counts=recorder.counts)
    return 0


def _spin(executor: SingleThreadedExecutor, stop: threading.Event) -> None:
    while not stop.is_set() and rclpy.ok():
        executor.spin_once(timeout_sec=0.05)


if __name__ == "__main__":
    sys.exit(main())
