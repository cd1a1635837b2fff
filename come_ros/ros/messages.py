"""Arrays <-> ROS messages: Image, CompressedImage, CameraInfo, PointCloud2, Odometry, TransformStamped. Plain numpy.

Payloads are array.array('B'): every other type is copied element by element, or checked element by element, by some distro's
generated setter (seconds per message). Pictures come out of messages in images.py, which needs no ROS. Where cv_bridge and
sensor_msgs_py are to be preferred on a ROS installation, the choice belongs here, behind `decode_image` and `point_cloud`.
"""

from __future__ import annotations

import array
import math
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, Pose, Quaternion, Transform, TransformStamped, Twist, Vector3
from nav_msgs.msg import Odometry
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField
from std_msgs.msg import Header

from ..errors import FrameError
from ..geometry import quat_xyzw_from_matrix
from ..images import SUPPORTED, decode_image, encoding_of, intrinsics_from_camera_info
from ..types import F32, F64, U8

__all__ = [
    "SUPPORTED",
    "camera_info_message",
    "decode_image",
    "depth_message",
    "encoding_of",
    "header",
    "image_message",
    "intrinsics_from_camera_info",
    "odometry_message",
    "payload",
    "point_cloud",
    "points_of",
    "pose_message",
    "pose_of",
    "stamp_ns",
    "transform_message",
]

NANO = 1_000_000_000


def payload(a: NDArray[Any]) -> array.array[int]:
    """The bytes of any array in the one form that every distro's message setter takes fast."""
    out = array.array("B")
    out.frombytes(np.ascontiguousarray(a).reshape(-1).view(np.uint8))  # type: ignore[arg-type]
    return out


def stamp_ns(stamp: Time) -> int:
    """Nanoseconds, exactly."""
    return stamp.sec * NANO + stamp.nanosec


def header(stamp_ns: int, frame: str) -> Header:
    """Header of whole nanoseconds: no float ever holds a stamp."""
    sec, nanosec = divmod(int(stamp_ns), NANO)
    return Header(stamp=Time(sec=sec, nanosec=nanosec), frame_id=frame)


def image_message(picture: U8, head: Header, encoding: str = "rgb8") -> Image:
    """Image of (H, W) or (H, W, C) uint8 in that encoding."""
    return _image(picture, head, encoding)


def depth_message(depth: F32, head: Header) -> Image:
    """32FC1 Image of z-depth (H, W) float32: NaN invalid, +inf beyond range (REP 117, 118)."""
    return _image(np.asarray(depth, "<f4"), head, "32FC1")


def _image(a: NDArray[Any], head: Header, encoding: str) -> Image:
    height, width = a.shape[:2]
    message = Image(header=head, height=height, width=width, encoding=encoding, is_bigendian=0, step=a.nbytes // height)
    message.data = payload(a)
    return message


def camera_info_message(intrinsics: F64, width: int, height: int, head: Header) -> CameraInfo:
    """CameraInfo of an undistorted, unrotated (height, width) image with those intrinsics (3, 3)."""
    k = np.asarray(intrinsics, np.float64)
    message = CameraInfo(header=head, width=width, height=height, distortion_model="plumb_bob", d=[0.0] * 5)
    message.k = k.reshape(-1)
    message.r = np.eye(3).reshape(-1)
    message.p = np.hstack([k, np.zeros((3, 1))]).reshape(-1)
    return message


def point_cloud(points: NDArray[Any], head: Header) -> PointCloud2:
    """PointCloud2 of a structured array of little-endian float32 fields (x y z rgb conf): (N,) unorganised, (H, W) organised.

    Organised clouds are not dense (NaN where invalid), unorganised ones are. An empty one has width 0.
    """
    height, width = points.shape if points.ndim == 2 else (1, len(points))
    fields = points.dtype.fields or {}
    if any(kind != np.dtype("<f4") for kind, *_ in fields.values()):
        raise ValueError(f"a cloud's fields must be little-endian float32, not {points.dtype}")
    message = PointCloud2(header=head, height=height, width=width, is_bigendian=False, is_dense=points.ndim == 1)
    message.fields = [
        PointField(name=name, offset=fields[name][1], datatype=PointField.FLOAT32, count=1)
        for name in points.dtype.names or ()
    ]
    message.point_step = points.dtype.itemsize
    message.row_step = message.point_step * width
    message.data = payload(points)
    return message


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


def pose_message(target_from_source: F64) -> Pose:
    """Pose of the source frame in the target frame."""
    x, y, z = (float(v) for v in target_from_source[:3, 3])
    return Pose(position=Point(x=x, y=y, z=z), orientation=_quaternion(target_from_source))


def transform_message(parent_from_child: F64, stamp_ns: int, parent: str, child: str) -> TransformStamped:
    """TransformStamped that gives the child's pose in its parent."""
    x, y, z = (float(v) for v in parent_from_child[:3, 3])
    transform = Transform(translation=Vector3(x=x, y=y, z=z), rotation=_quaternion(parent_from_child))
    return TransformStamped(header=header(stamp_ns, parent), child_frame_id=child, transform=transform)


def odometry_message(
    odom_from_child: F64,
    twist: NDArray[np.float64],
    pose_variance: NDArray[np.float64],
    twist_variance: NDArray[np.float64],
    head: Header,
    child: str,
) -> Odometry:
    """Odometry with diagonal covariances. twist, variances: (6,) x y z rotX rotY rotZ; the twist in the child frame.

    Raises ValueError if anything is not finite: a pose never carries a NaN.
    """
    if not all(np.all(np.isfinite(a)) for a in (odom_from_child, twist, pose_variance, twist_variance)):
        raise ValueError("an odometry message must be finite")
    message = Odometry(header=head, child_frame_id=child)
    message.pose.pose = pose_message(odom_from_child)
    vx, vy, vz, wx, wy, wz = (float(v) for v in twist)
    message.twist.twist = Twist(linear=Vector3(x=vx, y=vy, z=vz), angular=Vector3(x=wx, y=wy, z=wz))
    message.pose.covariance = np.diag(pose_variance).reshape(-1)
    message.twist.covariance = np.diag(twist_variance).reshape(-1)
    return message


def pose_of(pose: Pose) -> F64:
    """(4, 4) target_from_source of a Pose."""
    from ..geometry import matrix_from_quat_xyzw, transform

    p, q = pose.position, pose.orientation
    return transform(matrix_from_quat_xyzw([q.x, q.y, q.z, q.w]), [p.x, p.y, p.z])


def _quaternion(matrix: F64) -> Quaternion:
    x, y, z, w = (float(v) for v in quat_xyzw_from_matrix(matrix))
    if not math.isfinite(x + y + z + w):
        raise ValueError("a rotation must be finite")
    return Quaternion(x=x, y=y, z=z, w=w)
