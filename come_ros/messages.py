"""Builds ROS messages from arrays, in any message classes: rclpy's in the node, rosbags' in the tools. Plain numpy.

The content of each message is defined once; `Messages` is given the classes. camera/images.py reads images from messages.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .geometry import quat_xyzw_from_matrix
from .types import F32, F64, U8

NANO = 1_000_000_000
FLOAT32 = 7  # sensor_msgs/PointField


def stamp_ns(stamp: Any) -> int:
    """Nanoseconds of a builtin_interfaces/Time, exactly."""
    return int(stamp.sec) * NANO + int(stamp.nanosec)


def serialized_stamp_ns(data: bytes) -> int:
    """Stamp, ns, of a serialized message that begins with a Header: CDR puts it behind 4 bytes of encapsulation."""
    sec, nanosec = struct.unpack_from(_stamp_format(data), data, 4)
    return int(sec) * NANO + int(nanosec)


def with_stamp_ns(data: bytes, stamp_ns: int) -> bytes:
    """The same serialized message with another stamp."""
    out = bytearray(data)
    struct.pack_into(_stamp_format(data), out, 4, *divmod(stamp_ns, NANO))
    return bytes(out)


def _stamp_format(data: bytes) -> str:
    return "<iI" if data[1] & 1 else ">iI"


class Messages:
    """Builds messages of the types that `make` knows.

    make: (name such as "sensor_msgs/msg/Image", every field by name) -> message. octets, doubles: convert an array to the form that
    those classes take for uint8[] and float64[].
    """

    def __init__(
        self,
        make: Callable[..., Any],
        octets: Callable[[NDArray[Any]], Any],
        doubles: Callable[[NDArray[np.float64]], Any] = lambda a: a,
    ) -> None:
        self.make, self.octets, self.doubles = make, octets, doubles

    def header(self, stamp_ns: int, frame: str) -> Any:
        """Header from integer nanoseconds; a stamp is never a float."""
        sec, nanosec = divmod(int(stamp_ns), NANO)
        time = self.make("builtin_interfaces/msg/Time", sec=sec, nanosec=nanosec)
        return self.make("std_msgs/msg/Header", stamp=time, frame_id=frame)

    def image(self, picture: U8, head: Any, encoding: str = "rgb8") -> Any:
        """Image of (H, W) or (H, W, C) uint8 in that encoding."""
        return self._image(picture, head, encoding)

    def depth(self, depth: F32, head: Any) -> Any:
        """32FC1 Image of z-depth (H, W) float32: NaN invalid, +inf beyond range (REP 117, 118). Also for confidence."""
        return self._image(np.asarray(depth, "<f4"), head, "32FC1")

    def _image(self, a: NDArray[Any], head: Any, encoding: str) -> Any:
        height, width = a.shape[:2]
        return self.make(
            "sensor_msgs/msg/Image", header=head, height=height, width=width, encoding=encoding, is_bigendian=0,
            step=a.nbytes // height, data=self.octets(a),
        )  # fmt: skip

    def camera_info(
        self, intrinsics: F64, width: int, height: int, head: Any, distortion: tuple[float, ...] = ()
    ) -> Any:
        """CameraInfo of an unrotated (height, width) image with those intrinsics (3, 3). distortion: plumb_bob's, if any."""
        k = np.asarray(intrinsics, np.float64)
        nothing = self.make(
            "sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
        )
        return self.make(
            "sensor_msgs/msg/CameraInfo", header=head, height=height, width=width, distortion_model="plumb_bob",
            d=self.doubles(np.array(distortion or (0.0,) * 5)), k=k.reshape(-1), r=np.eye(3).reshape(-1),
            p=np.hstack([k, np.zeros((3, 1))]).reshape(-1), binning_x=0, binning_y=0, roi=nothing,
        )  # fmt: skip

    def point_cloud(self, points: NDArray[Any], head: Any) -> Any:
        """PointCloud2 of a structured array of little-endian float32 fields (x y z rgb conf): (N,) unorganised, (H, W) organised.

        Organised clouds are not dense (NaN where invalid), unorganised ones are. An empty one has width 0.
        """
        height, width = points.shape if points.ndim == 2 else (1, len(points))
        return self.make(
            "sensor_msgs/msg/PointCloud2", header=head, height=height, width=width, fields=self.fields(points.dtype),
            is_bigendian=False, point_step=points.dtype.itemsize, row_step=points.dtype.itemsize * width, data=self.octets(points),
            is_dense=points.ndim == 1,
        )  # fmt: skip

    def fields(self, point: np.dtype[Any]) -> list[Any]:
        """PointFields of a structured type of little-endian float32 fields. Raises ValueError for any other."""
        fields: Mapping[str, Any] = point.fields or {}
        if any(kind != np.dtype("<f4") for kind, *_ in fields.values()):
            raise ValueError(f"a cloud's fields must be little-endian float32, not {point}")
        return [
            self.make("sensor_msgs/msg/PointField", name=name, offset=fields[name][1], datatype=FLOAT32, count=1)
            for name in point.names or ()
        ]

    def pose(self, target_from_source: F64) -> Any:
        """Pose of the source frame in the target frame."""
        return self.make(
            "geometry_msgs/msg/Pose",
            position=self._three("Point", target_from_source[:3, 3]),
            orientation=self._quaternion(target_from_source),
        )

    def transform(self, parent_from_child: F64, stamp_ns: int, parent: str, child: str) -> Any:
        """TransformStamped that gives the child's pose in its parent."""
        edge = self.make(
            "geometry_msgs/msg/Transform",
            translation=self._three("Vector3", parent_from_child[:3, 3]),
            rotation=self._quaternion(parent_from_child),
        )
        return self.make(
            "geometry_msgs/msg/TransformStamped",
            header=self.header(stamp_ns, parent), child_frame_id=child, transform=edge,
        )  # fmt: skip

    def odometry(
        self, odom_from_child: F64, twist: F64, pose_covariance: F64, twist_covariance: F64, head: Any, child: str
    ) -> Any:
        """Odometry. twist: (6,) x y z rotX rotY rotZ, in the child frame. Covariances: (6, 6) in that order, or their diagonals (6,).

        Raises ValueError if anything is not finite: a pose never carries a NaN.
        """
        if not all(np.all(np.isfinite(a)) for a in (odom_from_child, twist, pose_covariance, twist_covariance)):
            raise ValueError("an odometry message must be finite")
        pose = self.make(
            "geometry_msgs/msg/PoseWithCovariance",
            pose=self.pose(odom_from_child), covariance=_matrix(pose_covariance),
        )  # fmt: skip
        motion = self.make(
            "geometry_msgs/msg/Twist",
            linear=self._three("Vector3", twist[:3]),
            angular=self._three("Vector3", twist[3:]),
        )
        motion = self.make(
            "geometry_msgs/msg/TwistWithCovariance",
            twist=motion, covariance=_matrix(twist_covariance),
        )  # fmt: skip
        return self.make("nav_msgs/msg/Odometry", header=head, child_frame_id=child, pose=pose, twist=motion)

    def pose_stamped(self, target_from_source: F64, head: Any) -> Any:
        """PoseStamped of the source frame; the header names the target frame."""
        return self.make("geometry_msgs/msg/PoseStamped", header=head, pose=self.pose(target_from_source))

    def path(self, poses: Sequence[Any], head: Any) -> Any:
        """Path through messages of `pose_stamped`, all in the header's frame."""
        return self.make("nav_msgs/msg/Path", header=head, poses=poses)

    def number(self, value: float) -> Any:
        """Float64."""
        return self.make("std_msgs/msg/Float64", data=value)

    def _three(self, kind: str, xyz: F64) -> Any:
        x, y, z = (float(v) for v in xyz)
        return self.make(f"geometry_msgs/msg/{kind}", x=x, y=y, z=z)

    def _quaternion(self, matrix: F64) -> Any:
        x, y, z, w = (float(v) for v in quat_xyzw_from_matrix(matrix))
        if not math.isfinite(x + y + z + w):
            raise ValueError("a rotation must be finite")
        return self.make("geometry_msgs/msg/Quaternion", x=x, y=y, z=z, w=w)


def _matrix(covariance: F64) -> F64:
    """(36,) row by row of (6, 6), or of the diagonal (6,)."""
    values = np.asarray(covariance, np.float64)
    return (np.diag(values) if values.ndim == 1 else values).reshape(-1)
