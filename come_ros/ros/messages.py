"""Arrays <-> rclpy's messages: what come_ros/messages.py builds, in rclpy's classes; poses and clouds back into arrays.

Payloads are array.array('B'): every other type is copied element by element, or checked element by element, by some distro's
generated setter (seconds per message). Pictures come out of messages in images.py, which needs no ROS. Where cv_bridge and
sensor_msgs_py are to be preferred on a ROS installation, the choice belongs here, behind `decode_image` and `point_cloud`.
"""

from __future__ import annotations

import array
import functools
import importlib
from typing import Any

import numpy as np
from geometry_msgs.msg import Pose
from numpy.typing import NDArray
from sensor_msgs.msg import PointCloud2, PointField

from ..errors import FrameError
from ..images import SUPPORTED, decode_image, encoding_of, intrinsics_from_camera_info
from ..messages import NANO, Messages, stamp_ns
from ..types import F64

__all__ = [
    "NANO",
    "ROS",
    "SUPPORTED",
    "camera_info_message",
    "decode_image",
    "depth_message",
    "encoding_of",
    "header",
    "image_message",
    "intrinsics_from_camera_info",
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
    """The bytes of any array in the one form that every distro's message setter takes fast."""
    out = array.array("B")
    out.frombytes(np.ascontiguousarray(a).reshape(-1).view(np.uint8))  # type: ignore[arg-type]
    return out


def _make(kind: str, /, **fields: Any) -> Any:
    return message_type(kind)(**fields)


ROS = Messages(_make, payload, list)
"""Builds rclpy's messages."""

header = ROS.header
image_message = ROS.image
depth_message = ROS.depth
camera_info_message = ROS.camera_info
point_cloud = ROS.point_cloud
pose_message = ROS.pose
transform_message = ROS.transform
odometry_message = ROS.odometry


def points_of(message: PointCloud2) -> NDArray[Any]:
    """Structured array (N,) or (H, W) of a cloud of float32 fields: the inverse of `point_cloud`; padding is honoured."""
    dtype = np.dtype(
        {
            "names": [f.name for f in message.fields],
            "formats": [">f4" if message.is_bigendian else "<f4"] * len(message.fields),
            "offsets": [f.offset for f in message.fields],
            "itemsize": message.point_step,
        }
    )
    if any(f.datatype != PointField.FLOAT32 or f.count != 1 for f in message.fields):
        raise FrameError("the cloud has fields that are not single float32 numbers")
    shape, strides = (message.height, message.width), (message.row_step, message.point_step)
    points = (
        np.ndarray(shape, dtype, np.frombuffer(message.data, np.uint8), strides=strides)
        if message.data
        else np.empty(shape, dtype)
    )
    return points[0] if message.height == 1 else points


def pose_of(pose: Pose) -> F64:
    """(4, 4) target_from_source of a Pose."""
    from ..geometry import matrix_from_quat_xyzw, transform

    p, q = pose.position, pose.orientation
    return transform(matrix_from_quat_xyzw([q.x, q.y, q.z, q.w]), [p.x, p.y, p.z])
