"""The published topics: for every used frame, and for the world so far. The node and the bag tool publish from these lists.

Each message is built only when it is requested.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import Config
from ..messages import Messages
from ..types import F32, U8, Submap
from . import cloud
from .motion import Motion
from .world import World

LANDMARK_DTYPE = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("sigma", "<f4")])
"""Of ~/landmarks. sigma: standard deviation of the logarithm of the distance from the camera, see Landmarks.log_sigma."""


class FrameMessages:
    """The messages for frame `row` of `submap`, each built by the method named in OUTPUTS.

    All are stamped with the image's own time. Frames: the camera's optical one, or `config.odom_frame` for odometry and, with
    cloud.frame odom, for points.
    """

    def __init__(self, messages: Messages, submap: Submap, row: int, motion: Motion, config: Config) -> None:
        self.messages, self.submap, self.row, self.motion, self.config = messages, submap, row, motion, config
        self.frame = submap.frames[row]

    @functools.cached_property
    def head(self) -> Any:
        """Header in the camera's optical frame."""
        return self.messages.header(self.frame.stamp_ns, self.frame.camera)

    @functools.cached_property
    def odom_head(self) -> Any:
        """Header in the odometry frame."""
        return self.messages.header(self.frame.stamp_ns, self.config.odom_frame)

    @functools.cached_property
    def mask(self) -> NDArray[np.bool_]:
        """(H, W) bool: the pixels to publish, see cloud.valid_mask."""
        return cloud.within_range(self.trusted, self.submap.depth[self.row], self.config)

    @functools.cached_property
    def trusted(self) -> NDArray[np.bool_]:
        """(H, W) bool: the same at any distance."""
        return cloud.trusted_mask(self.submap.depth[self.row], self.submap.confidence[self.row], self.config)

    @functools.cached_property
    def cloud_points(self) -> NDArray[np.void]:
        """Points of this frame, see cloud.points."""
        s, row = self.submap, self.row
        pose = s.odom_from_camera[row] if self.config.cloud.frame == "odom" else None
        return cloud.points(
            s.depth[row], s.intrinsics[row], s.images[row], s.confidence[row], self.mask, self.config, pose
        )

    @functools.cached_property
    def odom_points(self) -> NDArray[np.void]:
        """The same points in the odometry frame."""
        if self.config.cloud.frame == "odom":
            return self.cloud_points
        return cloud.moved(self.cloud_points, self.submap.odom_from_camera[self.row])

    def points(self) -> Any:
        return self.messages.point_cloud(
            self.cloud_points, self.odom_head if self.config.cloud.frame == "odom" else self.head
        )

    def odometry(self) -> Any:
        return odometry_message(self.messages, self.motion, self.config)

    def depth(self) -> Any:
        return self.messages.depth(self.depth_pixels(), self.head)

    def depth_pixels(self) -> F32:
        """(H, W) float32 as published: NaN invalid, +inf beyond range."""
        return cloud.depth_image(self.submap.depth[self.row], self.trusted, self.config)

    def camera_info(self) -> Any:
        height, width = self.submap.depth[self.row].shape
        return self.messages.camera_info(self.submap.intrinsics[self.row], width, height, self.head)

    def rgb(self) -> Any:
        return self.messages.image(self.submap.images[self.row], self.head)

    def merge_overlay(self) -> Any:
        return self.messages.image(self.overlay_pixels(), self.head)

    def overlay_pixels(self) -> U8:
        """(H, W, 3) uint8: the image, dark where the accelerator merged its tokens."""
        image, merged = self.submap.images[self.row], self.submap.merged
        return image if merged is None else darkened(image, merged[self.row])

    def confidence(self) -> Any:
        return self.messages.depth(self.submap.confidence[self.row], self.head)

    def landmarks(self) -> Any:
        """The landmarks of the window whose distance is known (Landmarks.sure), in the odometry frame. Empty if nothing was tracked."""
        known = None if self.submap.landmarks is None else self.submap.landmarks.sure()
        points = np.zeros(0 if known is None else len(known), LANDMARK_DTYPE)
        if known is not None:
            points["x"], points["y"], points["z"] = known.positions.T
            points["sigma"] = known.log_sigma
        return self.messages.point_cloud(points, self.odom_head)


def odometry_message(messages: Messages, motion: Motion, config: Config) -> Any:
    """Odometry in `config.odom_frame`, stamped as the image."""
    head = messages.header(motion.stamp_ns, config.odom_frame)
    return messages.odometry(
        motion.odom_from_child, motion.twist, motion.pose_covariance, motion.twist_covariance, head, motion.child
    )


def darkened(image: U8, mask: NDArray[np.bool_]) -> U8:
    """(H, W, 3) `image`, dark where (H, W) `mask` is true."""
    return np.where(mask[..., None], image // 3, image)


@dataclass(frozen=True)
class Output:
    """A topic below the node's name. depth: QoS history. build: method of FrameMessages. Reliable and volatile, which is compatible
    with every subscription except transient local. With several cameras, each camera has its own topic in its namespace, unless the
    output is of the `robot`."""

    kind: str
    depth: int
    build: Callable[[FrameMessages], Any]
    robot: bool = False


OUTPUTS: dict[str, Output] = {
    "odometry": Output("nav_msgs/msg/Odometry", 10, FrameMessages.odometry, robot=True),
    "depth/image": Output("sensor_msgs/msg/Image", 5, FrameMessages.depth),
    "depth/camera_info": Output("sensor_msgs/msg/CameraInfo", 5, FrameMessages.camera_info),
    "rgb/image_rect": Output("sensor_msgs/msg/Image", 5, FrameMessages.rgb),
    "rgb/camera_info": Output("sensor_msgs/msg/CameraInfo", 5, FrameMessages.camera_info),
    "confidence": Output("sensor_msgs/msg/Image", 1, FrameMessages.confidence),
    "merge_overlay": Output("sensor_msgs/msg/Image", 1, FrameMessages.merge_overlay),
    "points": Output("sensor_msgs/msg/PointCloud2", 1, FrameMessages.points),
    "landmarks": Output("sensor_msgs/msg/PointCloud2", 1, FrameMessages.landmarks, robot=True),
}
"""Topic -> output that is published once for each used frame, in this order."""


def topic_of(camera: str, topic: str) -> str:
    """Name of one of OUTPUTS below the node's name; camera: one of several cameras, "" for a single one."""
    return f"{camera}/{topic}" if camera and not OUTPUTS[topic].robot else topic


@dataclass(frozen=True)
class Latched:
    """A topic below the node's name about the World so far. Reliable and transient local with depth 1: late subscribers receive the
    last message.

    rate: most messages per second. state: a new message is due if it changed; None: nothing to publish yet. build: the message.
    """

    kind: str
    rate: Callable[[Config], float]
    state: Callable[[World], Any]
    build: Callable[[World], Any]


LATCHED: dict[str, Latched] = {
    "path": Latched("nav_msgs/msg/Path", lambda config: 1.0, lambda world: world.path_changes or None, World.path),
    "map_points": Latched(
        "sensor_msgs/msg/PointCloud2",
        lambda config: config.map.rate,
        lambda world: world.map_changes or None,
        World.map_points,
    ),
    "scale": Latched("std_msgs/msg/Float64", lambda config: 1.0, lambda world: str(world.metres()), World.scale),
}
"""Topic -> what is published there when it changed, now and then."""
