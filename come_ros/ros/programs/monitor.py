"""`come_ros monitor`: what a running node says of itself on /diagnostics, in the terminal or as JSON."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile

from ...errors import NodeError
from .. import messages
from ..diagnostics.reading import LEVELS, Status, number, read, worst
from .process import Stop, command_node, full_names

SPIN_S = 0.1
SILENT_S = 5.0  # without a message, until it is reported
WIDTH = 100
ERROR = LEVELS.index("ERROR")

Seen = Mapping[str, Status]


def monitor(come: str, timeout_s: float, once: bool, as_json: bool, stop: Stop) -> int:
    """Prints the state of the node `come` (its full name) with each of its messages until `stop`, or once.

    Returns 0, or 1 if it is asked once and a status is ERROR. Raises NodeError if there is no such node within the time.
    """
    with command_node("come_ros_monitor") as node:
        shown = _Shown(as_json or not sys.stdout.isatty())
        for when, seen in _messages(node, come, timeout_s, stop):
            others = _twins(node, come)
            if as_json:
                print(json.dumps(facts(come, when, seen, others)), flush=True)
            else:
                shown.print(text(come, seen, others))
            if once:
                return int(worst(seen) >= ERROR)
    return 0


def _messages(node: Node, come: str, timeout_s: float, stop: Stop) -> Iterator[tuple[int, Seen]]:
    """(stamp in ns, statuses) as they come. Raises NodeError."""
    got: list[DiagnosticArray] = []
    node.create_subscription(DiagnosticArray, "/diagnostics", got.append, QoSProfile(depth=10))
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    begun = heard = time.monotonic()
    last: tuple[int, Seen] | None = None
    told = False
    try:
        while not stop.is_set():
            executor.spin_once(timeout_sec=SPIN_S)
            now = time.monotonic()
            while got:
                message = got.pop(0)
                if (seen := read(message)) and come in full_names(node):
                    last, heard, told = (messages.stamp_ns(message.header.stamp), seen), now, False
                    yield last
            if last is None and now > begun + timeout_s:
                raise NodeError(_why_nothing(node, come, timeout_s))
            if last is not None and now > heard + SILENT_S and not told and come not in full_names(node):
                told = True
                print(
                    f"{come} has ended, or is out of reach: waiting for it (Ctrl-C ends this)",
                    file=sys.stderr,
                    flush=True,
                )
    finally:
        executor.shutdown()


def _publishers(node: Node) -> list[str]:
    """Full names of the nodes that publish on /diagnostics."""
    found = node.get_publishers_info_by_topic("/diagnostics")
    return [f"{each.node_namespace.rstrip('/')}/{each.node_name}" for each in found]


def _twins(node: Node, come: str) -> list[str]:
    """Other nodes of ours, whose messages on /diagnostics cannot be told from those of `come`."""
    return sorted({name for name in _publishers(node) if name != come and node.count_publishers(f"{name}/scale")})


def _why_nothing(node: Node, come: str, timeout_s: float) -> str:
    ours = sorted({name for name in _publishers(node) if node.count_publishers(f"{name}/scale")})
    if come in full_names(node):
        return f"{come} is there, but sent nothing on /diagnostics for {timeout_s:g} s: raise --timeout above its diagnostics.period"
    others = f"there is {', '.join(ours)}: name it with --node" if ours else (
        "start one (come_ros node), with the same ROS_DOMAIN_ID; `come_ros doctor` examines the rest of the system"
    )  # fmt: skip
    return f"found no node {come} within {timeout_s:g} s: {others}"


def facts(come: str, when_ns: int, seen: Seen, others: list[str]) -> dict[str, Any]:
    """Everything as JSON has it. time: stamp of the message, s. level: of the worst status."""
    return {
        "node": come,
        "time": when_ns * 1e-9,
        "level": LEVELS[worst(seen)],
        "mixed_with": others,
        **{
            name: {
                "level": LEVELS[status.level],
                "message": status.message,
                **{key: number(value) for key, value in status.values.items()},
            }
            for name, status in seen.items()
        },
    }


def text(come: str, seen: Seen, others: list[str]) -> str:
    """The lines for the terminal."""
    values = {key: value for status in seen.values() for key, value in status.values.items()}

    def of(line: str) -> str:
        return line.format_map(_Known(values))

    dropped = {key.removeprefix("dropped_"): value for key, value in values.items() if key.startswith("dropped_")}
    why = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count != "0")
    lines = [
        f"{come}  {of('{state}')}  {of('{backbone}, accelerator {accelerator}, on {device}')}",
        of("images    {fps_in} Hz in, {size} {encoding}; {received} received, {used} used, {pending} pending")
        + (f"; dropped: {why}" if why else ""),
        of("results   {fps_out} Hz, latency {latency_ms_mean} ms, p95 {latency_ms_p95} ms, window {window}, size {resolution}"),
        of("odometry  {pose_hz} Hz, latency {pose_latency_ms} ms, p95 {pose_latency_ms_p95} ms, lost {pose_lost}; in {frame}, "
           "unit {odom_unit}"),
        of("map       {map_keyframes} keyframes, {loops_closed} loops; in {map_frame}, unit {map_unit}"),
        of("verdict   {verdict}: {verdict_reason}") if values.get("verdict", "none") != "none" else "verdict   none yet: too few keyframes",
    ]  # fmt: skip
    for name, status in seen.items():
        if status.message != "ok":
            told = f"{LEVELS[status.level]:9} {name}: {status.message}"
            lines += textwrap.wrap(told, WIDTH, subsequent_indent=" " * 10, break_long_words=False)
    if others:
        lines.append(
            f"MIXED     {', '.join(others)} publishes the same statuses on /diagnostics: values may be of either node"
        )
    return "\n".join(lines)


class _Known(dict[str, str]):
    """Values by key; what an older node does not publish is a question mark."""

    def __missing__(self, key: str) -> str:
        return "?"


class _Shown:
    """Prints each text over the one before on a terminal, and one below the other elsewhere."""

    def __init__(self, plain: bool) -> None:
        self._plain, self._lines = plain, 0

    def print(self, block: str) -> None:
        back = "" if self._plain or not self._lines else f"\x1b[{self._lines}F\x1b[J"
        columns = max(1, shutil.get_terminal_size().columns)
        self._lines = sum(1 + len(line) // columns for line in block.splitlines())
        print(back + block, end="\n\n" if self._plain else "\n", flush=True)
