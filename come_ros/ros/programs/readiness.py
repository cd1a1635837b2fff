"""Waits until a lifecycle node is active: python -m come_ros.ros.programs.readiness [--node /come]. For use in launch files.

Exit code 0: it is active. 1: it is not, with the reason on stderr. 3: stopped.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from .process import ros_process

ASK_S = 0.2
PATIENCE_S = 2.0  # an answer may get lost during discovery


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m come_ros.ros.programs.readiness", description=__doc__)
    parser.add_argument("--node", default="/come", help="full name of the node")
    parser.add_argument("--timeout", type=float, default=600.0, help="give up after this long, s")
    options = parser.parse_args(argv)
    with ros_process() as stop:
        node = Node("come_readiness", enable_rosout=False, start_parameter_services=False)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        try:
            why = wait_until_active(node, executor, options.node, options.timeout, stop)
        finally:
            executor.shutdown()
            node.destroy_node()
    if why:
        print(f"{options.node}: {why}", file=sys.stderr)
    return 3 if stop.is_set() else int(bool(why))


def wait_until_active(
    node: Node, executor: SingleThreadedExecutor, name: str, timeout_s: float, stop: threading.Event
) -> str:
    """Why the node `name` is not active, or "". It calls the get_state service, since a transition may be over before anybody
    listens."""
    failures: list[str] = []

    def on_diagnostics(message: DiagnosticArray) -> None:
        failures.extend(s.message for s in message.status if "cannot configure" in s.message)

    node.create_subscription(DiagnosticArray, "/diagnostics", on_diagnostics, 10)
    client: Any = node.create_client(GetState, f"{name}/get_state")
    end, answer, asked = time.monotonic() + timeout_s, None, 0.0
    while not stop.is_set():
        executor.spin_once(timeout_sec=ASK_S)
        if failures:
            return failures[0]
        now = time.monotonic()
        if now > end:
            return f"not active after {timeout_s:.0f} s: see its log"
        if answer is not None and answer.done():
            if answer.result().current_state.id == State.PRIMARY_STATE_ACTIVE:
                return ""
            answer = None
        if (answer is None or now - asked > PATIENCE_S) and now - asked > ASK_S and client.service_is_ready():
            answer, asked = client.call_async(GetState.Request()), now
    return ""


if __name__ == "__main__":
    sys.exit(main())
