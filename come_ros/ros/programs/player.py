"""Plays a bag's camera over DDS in real time, as a camera driver would: python -m come_ros.ros.programs.player BAG [options].

Publishes the recorded bytes at the recorded rate and prints lines of JSON on stdout: `matched`, `sent` (regularly) and `played`,
with [stamp, time of publication] in ns of every image.
"""

from __future__ import annotations

import argparse
import struct
import sys
import threading
import time
from collections.abc import Container, Iterator
from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message

from ...datasets.rosbag import Bag
from .. import messages
from ..messages import message_type
from .process import ros_process, tell

TELL_S = 0.2
APART_NS = 3_000_000  # delay between the cameras of a pattern
LINGER_S = 0.5  # a best-effort message takes some milliseconds to arrive

Message = tuple[int, str, bytes]
"""(when, ns; topic; bytes)"""


def main(argv: list[str] | None = None) -> int:
    """Returns 0 if everything was played, 2 without subscribers, 3 if stopped."""
    options = _parser().parse_args(argv)
    with ros_process() as stop:
        node = Node("camera", enable_rosout=False, start_parameter_services=False)
        try:
            if options.pattern:
                return _play(node, options, *_pattern(options), stop)
            with Bag(options.bag, options.topic) as bag:
                topics = [t for t in (bag.topic, bag.camera_info_topic) if t]
                types = {t: bag.topics[t] for t in topics}
                return _play(node, options, {bag.topic}, types, bag.iter_raw(*topics), stop)
        finally:
            node.destroy_node()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m come_ros.ros.programs.player")
    parser.add_argument("bag", nargs="?", help="bag to play; not needed with --pattern")
    parser.add_argument("--topic", default=None, help="image topic of the bag")
    parser.add_argument("--pattern", metavar="WxH", help="play moving rgb8 noise of this size on /camera/image_raw")
    parser.add_argument(
        "--cameras", nargs="+", default=["camera"], metavar="NAME", help="of --pattern: on /NAME/image_raw of each"
    )
    parser.add_argument("--count", type=int, default=100, help="images of --pattern, of each camera")
    parser.add_argument("--hz", type=float, default=15.0, help="images per second of --pattern")
    parser.add_argument("--rate", type=float, default=1.0, help="speed relative to the recording")
    parser.add_argument("--listeners", type=int, default=1, help="wait for this many subscriptions of each topic")
    parser.add_argument("--reliability", choices=("best_effort", "reliable"), default="best_effort")
    return parser


def _play(
    node: Node,
    options: Any,
    images: Container[str],
    types: dict[str, str],
    source: Iterator[Message],
    stop: threading.Event,
) -> int:
    """images: the topics whose messages are reported."""
    qos = QoSProfile(depth=10, reliability=getattr(ReliabilityPolicy, options.reliability.upper()))
    publishers = {name: node.create_publisher(message_type(kind), name, qos) for name, kind in types.items()}
    while min(p.get_subscription_count() for p in publishers.values()) < options.listeners:
        if stop.wait(0.05):
            return 3
    tell("matched")
    stop.wait(0.2)  # the subscriber may discover us a moment later

    sent: list[tuple[int, int]] = []
    begun = told = time.monotonic()
    first_ns: int | None = None
    late_s = 0.0
    for when_ns, name, data in source:
        first_ns = when_ns if first_ns is None else first_ns
        due = begun + (when_ns - first_ns) * 1e-9 / options.rate
        if stop.wait(max(0.0, due - time.monotonic())):
            return 3
        late_s = max(late_s, time.monotonic() - due)
        if name in images:
            sent.append((_stamp_ns(data), time.time_ns()))
        publishers[name].publish(data)
        if time.monotonic() - told > TELL_S:
            told = time.monotonic()
            tell("sent", images=len(sent))
    stop.wait(LINGER_S)
    tell("played", images=sent, seconds=time.monotonic() - begun, late_ms=1e3 * late_s)
    return 0


def _stamp_ns(data: bytes) -> int:
    """Of a serialized message that begins with a Header: CDR puts the stamp behind 4 bytes of encapsulation."""
    sec, nanosec = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, 4)
    return sec * messages.NANO + nanosec


def _pattern(options: Any) -> tuple[list[str], dict[str, str], Iterator[Message]]:
    topics = {name: (f"/{name}/camera_info", f"/{name}/image_raw") for name in options.cameras}
    types = {
        topic: f"sensor_msgs/msg/{kind}"
        for both in topics.values()
        for topic, kind in zip(both, ("CameraInfo", "Image"), strict=True)
    }
    width, height = (int(v) for v in options.pattern.split("x"))
    noise = np.random.default_rng(0).integers(0, 256, (2 * height, width, 3), np.uint8)
    k = np.array([[width, 0, width / 2 - 0.5], [0, width, height / 2 - 0.5], [0, 0, 1.0]])

    def source() -> Iterator[Message]:
        start_ns = time.time_ns()
        for i in range(options.count):
            for late, (name, (info_topic, image_topic)) in enumerate(topics.items()):
                when_ns = start_ns + round(i * 1e9 / options.hz) + late * APART_NS
                head = messages.header(when_ns, f"{name}_optical_frame")
                picture = messages.image_message(noise[i % height : i % height + height], head)
                yield when_ns, info_topic, serialize_message(messages.camera_info_message(k, width, height, head))
                yield when_ns, image_topic, serialize_message(picture)

    return [image for _, image in topics.values()], types, source()


if __name__ == "__main__":
    sys.exit(main())
