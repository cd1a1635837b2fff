"""Subscribes to topics as RViz would, and counts: python -m come_ros.ros.programs.listener TOPIC TYPE [TOPIC TYPE ...].

Prints lines of JSON on stdout: `ready`, and `heard` with the number of messages of each topic at the end.
"""

from __future__ import annotations

import sys

from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy

from ..messages import message_type
from .process import ros_process, tell


def main(argv: list[str] | None = None) -> int:
    """Listens until SIGINT or SIGTERM."""
    words = sys.argv[1:] if argv is None else argv
    topics = dict(zip(words[::2], words[1::2], strict=True))
    counts = dict.fromkeys(topics, 0)
    with ros_process() as stop:
        node = Node("listener", enable_rosout=False, start_parameter_services=False)

        def listen(topic: str, kind: str) -> None:
            def count(data: bytes) -> None:
                counts[topic] += 1

            qos = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
            node.create_subscription(message_type(kind), topic, count, qos, raw=True)

        for topic, kind in topics.items():
            listen(topic, kind)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        tell("ready")
        try:
            while not stop.is_set():
                executor.spin_once(timeout_sec=0.05)
        finally:
            executor.shutdown()
            node.destroy_node()
    tell("heard", counts=counts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
