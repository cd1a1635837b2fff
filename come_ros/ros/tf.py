"""Tf: the node's part in the TF tree: where the camera is on the robot, and the edges that it publishes itself."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from ..camera.rig import parse_extrinsics
from ..config import Config
from ..geometry import inverse
from ..types import F64
from . import messages
from .frame_tree import FrameTree
from .tf_edge import LISTEN_S, TfEdge

log = logging.getLogger("come_ros")

MISSING = "tf2_msgs is not installed: no TF is published; install it (ros-<distro>-tf2-msgs), or set tf.mode to off"


class Tf:
    """Listens between `open` and `close`. Without tf2_msgs (the pip wheels) there is no TF, only `extrinsics`.

    edge: the published edge, or why there is none.
    """

    def __init__(self, node: LifecycleNode, config: Config) -> None:
        """Raises ConfigError."""
        self.extrinsics = parse_extrinsics(config.extrinsics)
        self.edge = TfEdge(config.tf.mode, config.odom_frame)
        self.map_edge = TfEdge(config.tf.mode if config.has_map_frame else "off", config.map_frame, "map_frame")
        self._base, self._patience_s = config.base_frame.lstrip("/"), config.tf.lookup_timeout
        self._tree = FrameTree()
        self._node = node
        self._subscriptions: list[Any] = []
        self._publisher: Any = None

    def open(self) -> str:
        """Starts to publish on /tf and to listen to others. Returns why it cannot, or ""."""
        try:
            from tf2_msgs.msg import TFMessage
        except ImportError:
            told = "" if self.edge.choice == "off" else MISSING
            self.edge.choice = self.map_edge.choice = "off"
            return told

        def listener(static: bool) -> Callable[[TFMessage], None]:
            def listen(message: TFMessage) -> None:
                for t in message.transforms:
                    parent, child = t.header.frame_id, t.child_frame_id
                    self.edge.observe([(parent, child)])
                    self.map_edge.observe([(parent, child)])
                    try:
                        where = messages.matrix_of(t.transform)
                    except ValueError:  # a quaternion of zero length
                        continue
                    self._tree.observe(parent, child, messages.stamp_ns(t.header.stamp), where, static)

            return listen

        latched = QoSProfile(
            depth=100, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
        )
        self._subscriptions = [
            self._node.create_subscription(TFMessage, "/tf", listener(static=False), 100),
            self._node.create_subscription(TFMessage, "/tf_static", listener(static=True), latched),
        ]
        if self.edge.choice != "off":
            self._publisher = self._node.create_publisher(TFMessage, "/tf", 100)
        return ""

    def close(self) -> None:
        """Stops listening and publishing."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []
        if self._publisher is not None:
            self._node.destroy_publisher(self._publisher)
            self._publisher = None

    def place(self, camera: str, base: str, stamp_ns: int, waited_s: float) -> F64 | None:
        """base_from_camera (4, 4) of an optical frame, by `extrinsics` or TF, None if it is in neither.

        base: base_frame, or another camera's. waited_s: since the first image; a transform is waited for until tf.lookup_timeout.
        """
        given = self.extrinsics
        if camera in given and (base == self._base or base in given):
            return given[camera] if base == self._base else inverse(given[base]) @ given[camera]
        return self._tree.lookup(base, camera, stamp_ns, max(0.0, self._patience_s - waited_s))

    def base_from_camera(self, camera: str, stamp_ns: int, waited_s: float) -> tuple[F64 | None, str]:
        """(4, 4) of the optical frame in base_frame, and why it is None ("" if there is no base_frame); see `place`."""
        if not self._base or self._base == camera:
            return None, ""
        found = self.place(camera, self._base, stamp_ns, waited_s)
        if found is not None:
            return found, ""
        return None, (
            f"no transform from {self._base} to {camera}: odometry is of {camera}, and no TF is published; start "
            f"robot_state_publisher or the driver's TF, correct base_frame, or give extrinsics"
        )

    def send(
        self, stamp_ns: int, moving: str, odom_from_moving: F64, waited_s: float, map_from_odom: F64 | None = None
    ) -> None:
        """The edge between odom_frame and the frame that moves, and the one between map_frame and odom_frame, if there are to be any."""
        if self._base and moving != self._base:
            return
        before = self.edge.choice
        direction = self.edge.decide(moving, waited_s)
        if direction != before:
            if self.edge.conflict:
                log.error("%s", self.edge.conflict)
            else:
                log.info("TF: %s, between %s and %s", direction, self.edge.frame, moving)
        publisher = self._publisher
        if publisher is None or direction not in ("forward", "inverse"):
            return
        ends = (self.edge.frame, moving)
        transforms = [_transform(direction, odom_from_moving, stamp_ns, *ends)]
        if map_from_odom is not None and self._map_follows(direction, ends):
            transforms.append(_transform(direction, map_from_odom, stamp_ns, self.map_edge.frame, ends[0]))
        publisher.publish(publisher.msg_type(transforms=transforms))

    def _map_follows(self, direction: str, ends: tuple[str, str]) -> bool:
        """Whether the map's edge is published: map_frame is above odom_frame, or, where that has a parent, a leaf below it."""
        edge = self.map_edge
        if edge.choice == "off":
            return False
        if not edge.choice:
            edge.choice = direction
            edge.observe([ends if direction == "forward" else ends[::-1]])
        if edge.decide(ends[0], LISTEN_S) == direction:
            return True
        log.error("%s; ~/path and ~/map_points stay in %s", edge.conflict, edge.frame)
        return False


def _transform(direction: str, parent_from_child: F64, stamp_ns: int, parent: str, child: str) -> Any:
    if direction == "forward":
        return messages.transform_message(parent_from_child, stamp_ns, parent, child)
    return messages.transform_message(inverse(parent_from_child), stamp_ns, child, parent)
