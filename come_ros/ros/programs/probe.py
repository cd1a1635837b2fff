"""Examines a camera and the rest of a running ROS system: python -m come_ros.ros.programs.probe [--topic T] [--seconds S].

Listens for some seconds without publishing, and prints one line of JSON on stdout (see `look`).
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from typing import Any

from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo

from ...camera.rectify import Rectification
from ...errors import FrameError
from .. import messages
from .process import full_names, ros_process, tell

KINDS = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
SETTLE_S = 1.0  # discovery of publishers
PATIENCE_S = 5.0  # longer for a requested topic and its first image: discovery may take a while


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m come_ros.ros.programs.probe", description=__doc__)
    parser.add_argument("--topic", default="", help="image topic; empty: the only one")
    parser.add_argument(
        "--camera-info", default="", help="its camera_info topic (default: in the namespace of the images)"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="listen for this long, s")
    options = parser.parse_args(argv)
    with ros_process() as stop:
        node = Node("come_ros_probe", enable_rosout=False, start_parameter_services=False)
        try:
            tell("seen", **look(node, options.topic, options.camera_info, options.seconds, stop))
        finally:
            node.destroy_node()
    return 0


def look(node: Node, topic: str, info_topic: str, seconds: float, stop: threading.Event) -> dict[str, Any]:
    """Facts, as plain values.

    images: image topics with publishers -> type. topic, kind, camera_info_topic: the examined ones, "" if none. publishers: of that
    topic, [node, reliability, durability]. received, encoding, size, frame_id, stamps_ns ([stamp, arrival by the system's clock]),
    unreadable (why an image cannot be read): of its images. camera_info: received, remark (as the node would log it, "" if it is
    valid). tf: None without tf2_msgs, else child -> parents. clock: publishers of /clock, and its ticks. nodes: full names.
    """
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    topic = node.resolve_topic_name(topic) if topic else ""

    def spin(until: float) -> None:
        while time.monotonic() < until and not stop.is_set():
            executor.spin_once(timeout_sec=0.05)

    try:
        ticks = [0]
        parents: dict[str, set[str]] | None = _listen_to_tf(node)
        if node.count_publishers("/clock"):
            _listen_to_clock(node, ticks)
        begun = time.monotonic()
        spin(begun + SETTLE_S)
        while (
            topic and not node.count_publishers(topic) and time.monotonic() < begun + PATIENCE_S and not stop.is_set()
        ):
            spin(time.monotonic() + 0.2)
        images = {name: kinds[0] for name, kinds in node.get_topic_names_and_types() if set(kinds) & set(KINDS)}
        images = {name: kind for name, kind in images.items() if node.count_publishers(name)}
        if not topic and len(images) == 1:
            topic = next(iter(images))
        kind = images.get(topic, "")
        base = topic.removesuffix("/compressed") if kind == KINDS[1] else topic
        info_topic = node.resolve_topic_name(info_topic) if info_topic else f"{base.rpartition('/')[0]}/camera_info"
        camera = _Camera()
        if kind:
            qos = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
            node.create_subscription(CameraInfo, info_topic, camera.take_info, qos)
            node.create_subscription(messages.message_type(kind), topic, camera.take, qos)
        if node.count_publishers("/clock") and not ticks[0]:
            _listen_to_clock(node, ticks)
        begun = time.monotonic()
        spin(begun + seconds)
        while kind and not camera.stamps and time.monotonic() < begun + seconds + PATIENCE_S and not stop.is_set():
            spin(time.monotonic() + 0.2)
        return {
            "images": images,
            "topic": topic,
            "kind": kind,
            "camera_info_topic": info_topic if topic else "",
            "publishers": [
                [p.node_name, p.qos_profile.reliability.name.lower(), p.qos_profile.durability.name.lower()]
                for p in (node.get_publishers_info_by_topic(topic) if topic else ())
            ],
            **camera.facts(topic),
            "tf": None if parents is None else {child: sorted(found) for child, found in parents.items()},
            "clock": {"publishers": node.count_publishers("/clock"), "ticks": ticks[0]},
            "nodes": full_names(node),
        }
    finally:
        executor.shutdown()


class _Camera:
    """Messages received from one camera."""

    def __init__(self) -> None:
        self.last: Any = None
        self.info: CameraInfo | None = None
        self.infos = 0
        self.stamps: list[tuple[int, int]] = []

    def take(self, message: Any) -> None:
        self.last = message
        self.stamps.append((messages.stamp_ns(message.header.stamp), time.time_ns()))

    def take_info(self, message: CameraInfo) -> None:
        self.info = message
        self.infos += 1

    def facts(self, topic: str) -> dict[str, Any]:
        remark = unreadable = encoding = size = frame_id = ""
        if self.last is not None:
            encoding, frame_id = messages.encoding_of(self.last), self.last.header.frame_id
            try:
                picture = messages.decode_image(self.last)
            except FrameError as error:
                unreadable = str(error)
            else:
                size = f"{picture.shape[1]}x{picture.shape[0]}"
                if self.info is not None:
                    remark = Rectification("auto", topic).image(picture, self.info)[2]
        return {
            "received": len(self.stamps),
            "encoding": encoding,
            "size": size,
            "frame_id": frame_id,
            "stamps_ns": self.stamps[-1000:],
            "unreadable": unreadable,
            "camera_info": {"received": self.infos, "remark": remark},
        }


def _listen_to_tf(node: Node) -> dict[str, set[str]] | None:
    try:
        from tf2_msgs.msg import TFMessage
    except ImportError:
        return None
    parents: dict[str, set[str]] = {}

    def take(message: Any) -> None:
        for t in message.transforms:
            parents.setdefault(t.child_frame_id.lstrip("/"), set()).add(t.header.frame_id.lstrip("/"))

    static = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    node.create_subscription(TFMessage, "/tf", take, 100)
    node.create_subscription(TFMessage, "/tf_static", take, static)
    return parents


def _listen_to_clock(node: Node, ticks: list[int]) -> None:
    from rosgraph_msgs.msg import Clock

    def take(message: Clock) -> None:
        ticks[0] += 1

    node.create_subscription(Clock, "/clock", take, QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))


if __name__ == "__main__":
    sys.exit(main())
