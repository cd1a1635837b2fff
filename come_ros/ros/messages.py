"""Arrays <-> rclpy's messages: come_ros/messages.py in rclpy's classes; and poses and clouds as arrays.

Payloads are array.array('B'): every other type is copied element by element, or checked element by element, by the generated
setters of some distributions (seconds per message). converters.py chooses how images and clouds are converted.
"""

from __future__ import annotations

import array
import functools
import importlib
from typing import Any

import numpy as np
from geometry_msgs.msg import Pose, Transform
from numpy.typing import NDArray
from sensor_msgs.msg import PointCloud2

from ..camera.images import SUPPORTED, encoding_of
from ..camera.levels import Levels
from ..messages import NANO, Messages, stamp_ns
from ..types import F64, U8
from .converters import converters

__all__ = [
    "NANO",
    "ROS",
    "SUPPORTED",
    "camera_info_message",
    "converters",
    "decode_image",
    "depth_message",
    "encoding_of",
    "header",
    "image_message",
    "matrix_of",
    "message_type",
    "odometry_message",
    "payload",
    "point_cloud",
    "points_of",
    "pose_message",
    "pose_of",
    "stamp_ns",
    "transform_message",
]


@functools.cache
def message_type(name: str) -> Any:
    """The class of "sensor_msgs/msg/Image". Raises ImportError if this ROS does not have it."""
    package, _, kind = name.partition("/msg/")
    return getattr(importlib.import_module(f"{package}.msg"), kind)


def payload(a: NDArray[Any]) -> array.array[int]:
    """The bytes of any array in the only form that the message setters of all distributions accept quickly."""
    out = array.array("B")
    out.frombytes(np.ascontiguousarray(a).reshape(-1).view(np.uint8))  # type: ignore[arg-type]
    return out


def _make(kind: str, /, **fields: Any) -> Any:
    data = fields.pop("data", None)
    made = message_type(kind)(**fields)
    if data is not None:
        made.data = data  # the constructor would copy it twice
    return made


class RosMessages(Messages):
    """Builds rclpy's messages."""

    def __init__(self) -> None:
        super().__init__(_make, payload, list)

    def point_cloud(self, points: NDArray[Any], head: Any) -> PointCloud2:
        """As in Messages, by sensor_msgs_py if available."""
        made = converters()
        if made.clouds is None:
            return super().point_cloud(points, head)
        return made.cloud(points, self.fields(points.dtype), head)


ROS = RosMessages()

header = ROS.header
image_message = ROS.image
depth_message = ROS.depth
camera_info_message = ROS.camera_info
point_cloud = ROS.point_cloud
pose_message = ROS.pose
transform_message = ROS.transform
odometry_message = ROS.odometry


def decode_image(message: Any, levels: Levels | None = None) -> U8:
    """(H, W, 3) uint8 RGB of an Image or CompressedImage; it may share the message's memory. Raises FrameError."""
    return converters().decode_image(message, levels)


def points_of(message: PointCloud2) -> NDArray[Any]:
    """Structured array (N,) or (H, W) of a cloud of float32 fields: the inverse of `point_cloud`. Raises FrameError."""
    return converters().points_of(message)


def pose_of(pose: Pose) -> F64:
    """(4, 4) target_from_source of a Pose. Raises ValueError if its quaternion is not a rotation."""
    return _matrix(pose.position, pose.orientation)


def matrix_of(edge: Transform) -> F64:
    """(4, 4) parent_from_child of the Transform in a TransformStamped. Raises ValueError if its quaternion is not a rotation."""
    return _matrix(edge.translation, edge.rotation)


def _matrix(p: Any, q: Any) -> F64:
    from ..geometry import matrix_from_quat_xyzw, transform

    return transform(matrix_from_quat_xyzw([q.x, q.y, q.z, q.w]), [p.x, p.y, p.z])
