"""Plays a bag's camera over DDS in real time, as a camera driver would: python -m come_ros.ros.programs.player BAG [options].

Publishes the recorded bytes at the recorded rate and prints lines of JSON on stdout: `waiting` (if it does for seconds), `matched`, `sent`
(regularly) and `played`, with [stamp, time of publication] in ns of every image.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message

from ...datasets.rosbag import Bag
from ...messages import serialized_stamp_ns
from .. import messages
from ..messages import message_type
from .camera_messages import Message, PlayedTopics, of_bag
from .process import Stop, ros_process, tell

TELL_S = 0.2
APART_NS = 3_000_000  # delay between the cameras of a pattern
WAIT_S = 3.0  # until it is reported that nobody listens
LINGER_S = 0.5  # a best-effort message takes some milliseconds to arrive


def main(argv: list[str] | None = None) -> int:
    """Returns 0 if everything was played, 2 without subscribers, 3 if stopped."""
    options = _parser().parse_args(argv)
    with ros_process() as stop:
        node = Node("camera", enable_rosout=False, start_parameter_services=False)
        try:
            if options.pattern:
                return publish(
                    node, _pattern(options), options.rate, options.listeners, options.reliability, stop, tell
                )
            with Bag(options.bag, options.topic) as bag:
                played = of_bag(bag, None, whole=True)
                return publish(node, played, options.rate, options.listeners, options.reliability, stop, tell)
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


def publish(
    node: Node,
    played: PlayedTopics,
    rate: float,
    listeners: int,
    reliability: str,
    stop: Stop,
    report: Callable[..., None],
    waited_for: Collection[str] | None = None,
) -> int:
    """Publishes messages at their times, `rate` times as fast, once the topics `waited_for` (None: all) have so many listeners.

    reliability: best_effort or reliable. report: is called with an event and its values, see the module. Returns 0 if everything was
    played, 3 if stopped.
    """
    qos = QoSProfile(depth=10, reliability=getattr(ReliabilityPolicy, reliability.upper()))
    publishers = {name: node.create_publisher(message_type(kind), name, qos) for name, kind in played.types.items()}
    waited = [p for name, p in publishers.items() if waited_for is None or name in waited_for]
    waits_since, waits = time.monotonic(), False
    while any(p.get_subscription_count() < listeners for p in waited):
        if stop.wait(0.05):
            return 3
        if not waits and time.monotonic() > waits_since + WAIT_S:
            waits = True
            report("waiting")
    report("matched")
    stop.wait(0.2)  # the subscriber may discover us a moment later

    sent: list[tuple[int, int]] = []
    begun = told = time.monotonic()
    first_ns: int | None = None
    late_s = 0.0
    for when_ns, name, data in played.source():
        first_ns = when_ns if first_ns is None else first_ns
        due = begun + (when_ns - first_ns) * 1e-9 / rate
        if stop.wait(max(0.0, due - time.monotonic())):
            return 3
        late_s = max(late_s, time.monotonic() - due)
        if name in played.images:
            sent.append((serialized_stamp_ns(data), time.time_ns()))
        publishers[name].publish(data)
        if time.monotonic() - told > TELL_S:
            told = time.monotonic()
            report("sent", images=len(sent))
    stop.wait(LINGER_S)
    report("played", images=sent, seconds=time.monotonic() - begun, late_ms=1e3 * late_s)
    return 0


def _pattern(options: Any) -> PlayedTopics:
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

    return PlayedTopics(tuple(image for _, image in topics.values()), types, None, source)


if __name__ == "__main__":
    sys.exit(main())
