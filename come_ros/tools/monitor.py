"""Shows in the terminal how a running node does: rates, latency, drops, the verdict, and its faults with their fixes.

It reads /diagnostics only, so it costs the node nothing. On a terminal the lines are drawn again with each message (once a second, see
the parameter diagnostics.period), elsewhere they follow each other. --json prints one object a line, with every value of /diagnostics.
Ctrl-C ends it. With --once the exit code is 1 if a status is ERROR.

examples:
  come_ros monitor
  come_ros monitor --node /robot/come
  come_ros monitor --once || systemctl restart come_ros
  come_ros monitor --json | jq .output.verdict
"""

from __future__ import annotations

import argparse

from ..errors import ConfigError
from ..interrupts import Interrupts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--node", default="/come", metavar="NAME", help="full name of the node (default: %(default)s)")
    parser.add_argument("--once", action="store_true", help="print the first message, and end")
    parser.add_argument(
        "--timeout",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="wait so long for the node (default: %(default)s)",
    )


def run(options: argparse.Namespace) -> int:
    """Returns 0 after a signal, 1 if it is asked once and a status is ERROR. Raises NodeError, ConfigError."""
    if not options.timeout > 0:
        raise ConfigError(f"--timeout is {options.timeout:g}, but must be more than 0 seconds")
    from ..ros.arguments import check_environment

    check_environment()  # before rclpy is imported
    from ..ros.programs.monitor import monitor
    from ..ros.programs.process import Polled

    with Interrupts() as stopped:
        return monitor(f"/{options.node.strip('/')}", options.timeout, options.once, options.json, Polled(stopped))
