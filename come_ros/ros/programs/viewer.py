"""`come_ros view --live`: subscribes to a running node and shows what it publishes in the browser."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Odometry
from nav_msgs.msg import Path as PathMessage
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image

from ...results import ResultFrame
from ...types import F64
from ...view import LIVE_POINTS
from ...view.live import LiveScene
from ...view.scene import import_viser, viser_server
from ...view.server import Viewer
from .. import messages
from ..diagnostics.reading import read
from .process import ros_process

IMAGES = ("depth/image", "rgb/image_rect", "confidence", "merge_overlay")
MOST_PENDING = 16  # frames some of whose messages have not come: they are left out
DRAW_S, SPIN_S, REMIND_S = 0.5, 0.05, 5.0


class Listener:
    """Feeds a LiveScene with the messages of one node. remark: why frames cannot be placed, "" if they can."""

    def __init__(self, node: Node, come: str, scene: LiveScene) -> None:
        """come: full name of the node to show."""
        self._scene, self.remark, self.window = scene, "", 0
        self._pending: dict[int, dict[str, Any]] = {}
        self._poses: dict[int, F64] = {}
        self._child = ""
        reliable = QoSProfile(depth=20, reliability=ReliabilityPolicy.RELIABLE)
        latched = QoSProfile(
            depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
        )
        wanted: list[tuple[Any, str, Callable[[Any], None], QoSProfile]] = [
            (Odometry, f"{come}/odometry", self._on_odometry, reliable),
            (CameraInfo, f"{come}/depth/camera_info", lambda m: self._put("info", m), reliable),
            (PathMessage, f"{come}/path", self._on_path, latched),
            (DiagnosticArray, "/diagnostics", self._on_diagnostics, reliable),
            *((Image, f"{come}/{name}", lambda m, name=name: self._put(name, m), reliable) for name in IMAGES),
        ]
        for kind, topic, callback, qos in wanted:
            node.create_subscription(kind, topic, callback, qos)

    def _on_odometry(self, message: Odometry) -> None:
        try:
            pose = messages.pose_of(message.pose.pose)
        except ValueError:
            return
        stamp = messages.stamp_ns(message.header.stamp)
        self._child = message.child_frame_id
        self._poses[stamp] = pose
        while len(self._poses) > 1000:
            del self._poses[next(iter(self._poses))]
        self._scene.add_pose(stamp, pose)
        self._take_complete()

    def _on_path(self, message: PathMessage) -> None:
        poses = {}
        for each in message.poses:
            try:
                poses[messages.stamp_ns(each.header.stamp)] = messages.pose_of(each.pose)
            except ValueError:
                continue
        self._scene.add_path(poses)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        values = {key: value for status in read(message).values() for key, value in status.values.items()}
        if values:
            self._scene.facts = values
            self.window = int(values.get("window", "0")) if values.get("window", "").isdigit() else 0

    def _put(self, name: str, message: Any) -> None:
        self._pending.setdefault(messages.stamp_ns(message.header.stamp), {})[name] = message
        while len(self._pending) > MOST_PENDING:
            del self._pending[next(iter(self._pending))]
        self._take_complete()

    def _take_complete(self) -> None:
        for stamp in list(self._pending):
            found = self._pending[stamp]
            if stamp in self._poses and found.keys() >= {"info", *IMAGES}:
                self._take(stamp, self._pending.pop(stamp))

    def _take(self, stamp: int, found: dict[str, Any]) -> None:
        camera = found["depth/image"].header.frame_id.lstrip("/")
        if self._child.lstrip("/") != camera:
            self.remark = f"odometry moves {self._child}, not the camera {camera}: start the node with base_frame empty to see its cloud"
            return
        depth, confidence = (
            np.frombuffer(bytes(found[n].data), "<f4").reshape(found[n].height, found[n].width) for n in ("depth/image", "confidence")
        )  # fmt: skip
        image, overlay = (messages.decode_image(found[n]) for n in ("rgb/image_rect", "merge_overlay"))
        depth = np.where(np.isfinite(depth), depth, np.float32(np.nan))
        intrinsics = np.asarray(found["info"].k, np.float64).reshape(3, 3)
        self._scene.add_frame(ResultFrame(stamp, image, depth, confidence, intrinsics, self._poses[stamp], overlay))


def view_live(options: argparse.Namespace, announce: Callable[[str, int, str, bool], None]) -> int:
    """Shows the node options.node until SIGINT or SIGTERM. options: of `come_ros view`. announce: called with host, port, title and
    whether to open a browser once there is something to see. Raises ComeRosError."""
    import_viser()
    come = "/" + options.node.strip("/")
    scene = LiveScene(come, LIVE_POINTS if options.max_points is None else options.max_points)
    with ros_process() as stop, ExitStack() as stack:
        node = Node("come_ros_view", enable_rosout=False, start_parameter_services=False)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        stack.callback(node.destroy_node)
        stack.callback(executor.shutdown)
        listener = Listener(node, come, scene)
        viewer: Viewer | None = None
        drawn = reminded = time.monotonic()
        while not stop.is_set():
            try:
                executor.spin_once(timeout_sec=SPIN_S)
            except ExternalShutdownException:
                break
            now = time.monotonic()
            if viewer is None and not scene.frames and now > reminded + REMIND_S:
                reminded = now
                why = listener.remark or f"waiting for {come} to publish depth, image and odometry"
                print(f"{why} (Ctrl-C ends it)", file=sys.stderr, flush=True)
            if now < drawn + DRAW_S or not (scene.frames or viewer):
                continue
            drawn = now
            content = scene.content()
            if viewer is None:
                server = stack.enter_context(viser_server(options.host, options.port))
                viewer = Viewer(server, content, live=True)
                stack.callback(viewer.close)
                announce(options.host, server.get_port(), come, options.open)
            batches, gone = scene.batches()
            if batches or gone:
                viewer.add_batches(batches, gone)
            viewer.show(content)
            viewer.mark_window(listener.window)
    return 0
