"""The TF trees of the robots that there are, with the live node in each: what others publish, and the edges that it adds: that of odometry
and, with `loop.enabled`, that of the map.

python test/benchmark/robustness/tf_trees.py [--out FOLDER]     writes tf_trees.md
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "test")]

from benchmark.stamped import write_result  # noqa: E402

from come_ros.ros.environment import isolated_dds_environment  # noqa: E402


class Case(NamedTuple):
    """A robot. static, moving: what others publish on /tf_static, and on /tf with every image."""

    title: str
    arguments: tuple[str, ...] = ()
    static: dict[tuple[str, str], Any] | None = None
    moving: dict[tuple[str, str], Any] | None = None
    until: Callable[..., Any] = lambda transforms, peer: len(transforms) >= 3


def cases() -> tuple[Case, ...]:
    from ros.test_tf import URDF, WHEELS

    base = ("-p", "base_frame:=base_link")
    return (
        Case("A bare camera"),
        Case("A camera that its driver hangs below a base", static={("base_link", "cam_optical_frame"): np.eye(4)}),
        Case("A camera in the URDF of a robot, `base_frame:=base_link`", base, URDF),
        Case("The same next to another odometry", base, URDF, WHEELS),
        Case(
            "A robot whose TF does not lead to the camera, `base_frame:=base_link`", base, {("base_link", "lidar"): np.eye(4)},
            until=lambda _, peer: len(peer.received["/come/odometry"]) > 3
            and "base_link" in peer.status("come: input").get("message", ""),
        ),
        Case(
            "A camera with a parent, `tf.mode:=forward` all the same", ("-p", "tf.mode:=forward"),
            {("base_link", "cam_optical_frame"): np.eye(4)},
            until=lambda _, peer: "TF conflict" in peer.status("come: output").get("message", ""),
        ),
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(isolated_dds_environment(log_dir=Path(folder) / "ros_log"))
        from ros.test_tf import tf_message_class

        message = tf_message_class(Path(folder) / "tf2")
        text = "\n".join(
            [
                "# TF trees",
                "",
                "Made by `python test/benchmark/robustness/tf_trees.py` with the live node and `loop.enabled:=true`.",
                "",
                "",
            ]
        )
        for case in cases():
            text += show(case, message)
    write_result(options.out, "tf_trees", text=text.rstrip("\n") + "\n")
    print(text)
    return 0


def show(case: Case, message: tuple[Any, str]) -> str:
    import rclpy
    from ros.live_node import NodeProcess, Peer
    from ros.test_tf import run

    nodes: list[NodeProcess] = []

    def start(*arguments: str, **options: Any) -> NodeProcess:
        nodes.append(NodeProcess(*arguments, **options))
        return nodes[-1]

    context = rclpy.Context()
    rclpy.init(context=context)
    peer = Peer(context)
    try:
        _, sent = run(start, peer, message, *case.arguments, edge=case.static, odometry=case.moving, until=case.until)
        ours = Counter((parent, child) for _, parent, child, _ in sent)
        told = [(t.header.frame_id, t.child_frame_id) for m in list(peer.received["/tf"]) for t in m.transforms]
        ours.update(edge for edge in told if "visual_map" in edge)
        status, odometry = peer.status("come: output"), peer.received["/come/odometry"][-1]
        tree = {**dict.fromkeys(case.static or {}, "static"), **dict.fromkeys(case.moving or {}, "another's odometry")}
        tree.update({edge: f"come, {count} messages" for edge, count in ours.items()})
        tree = tree or {(odometry.child_frame_id, ""): ""}
        said = f"`tf_mode` {status['tf_mode']}; odometry: `{odometry.header.frame_id}` -> `{odometry.child_frame_id}`"
        conflict = f"\n\n> {status['message'].partition(';')[0]}" if "TF conflict" in status["message"] else ""
        warned = peer.status("come: input")["message"]
        conflict += f"\n\n> {warned}" if not ours and "transform" in warned else ""
        return f"## {case.title}\n\n{said}{conflict}\n\n```\n" + "\n".join(drawn(tree)) + "\n```\n\n"
    finally:
        peer.close()
        context.try_shutdown()
        for node in nodes:
            node.close()


def drawn(tree: dict[tuple[str, str], str]) -> Iterator[str]:
    """Lines of `tree`: (parent, child) -> who publishes it."""
    children = {child for _, child in tree}
    for root in sorted({parent for parent, _ in tree} - children):
        yield root
        yield from _below(root, tree, "")


def _below(frame: str, tree: dict[tuple[str, str], str], indent: str) -> Iterator[str]:
    found = [(child, who) for (parent, child), who in tree.items() if parent == frame and child]
    for i, (child, who) in enumerate(found):
        last = i == len(found) - 1
        yield f"{indent}{'`-- ' if last else '|-- '}{child}    ({who})"
        yield from _below(child, tree, indent + ("    " if last else "|   "))


if __name__ == "__main__":
    sys.exit(main())
