"""Arrays <-> ROS messages: Image, CompressedImage, CameraInfo, PointCloud2, Odometry, TransformStamped. Plain numpy.

Payloads are array.array('B'): every other type is copied element by element, or checked element by element, by some distro's
generated setter (seconds per message). Where cv_bridge and sensor_msgs_py are to be preferred on a ROS installation, the choice
belongs here, once, behind `decode_image` and `point_cloud`.
"""

from __future__ import annotations

import array
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, Pose, Quaternion, Transform, TransformStamped, Twist, Vector3
from nav_msgs.msg import Odometry
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, PointField
from std_msgs.msg import Header

from ..errors import FrameError
from ..geometry import quat_xyzw_from_matrix
from ..types import F32, F64, U8

NANO = 1_000_000_000


def _gray(a: NDArray[Any]) -> U8:
    return np.repeat(a[:, :, None] if a.ndim == 2 else a, 3, axis=2)


def _gray16(a: NDArray[Any]) -> U8:
    return _gray(((a.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _by_opencv(code: str) -> Callable[[NDArray[Any]], U8]:
    def convert(a: NDArray[Any]) -> U8:
        import cv2

        return cv2.cvtColor(np.ascontiguousarray(a), getattr(cv2, code))

    return convert


def _rgb(a: NDArray[Any]) -> U8:
    return a[:, :, :3]


def _bgr(a: NDArray[Any]) -> U8:
    return a[:, :, 2::-1]


# encoding -> channels, type of one, conversion to RGB. Types without a meaning (8UC3) are taken as OpenCV's order.
_ENCODINGS: dict[str, tuple[int, str, Callable[[NDArray[Any]], U8]]] = {
    "rgb8": (3, "u1", _rgb),
    "bgr8": (3, "u1", _bgr),
    "rgba8": (4, "u1", _rgb),
    "bgra8": (4, "u1", _bgr),
    "mono8": (1, "u1", _gray),
    "mono16": (1, "u2", _gray16),
    "8UC1": (1, "u1", _gray),
    "8UC3": (3, "u1", _bgr),
    "8UC4": (4, "u1", _bgr),
    "yuv422": (2, "u1", _by_opencv("COLOR_YUV2RGB_UYVY")),
    "uyvy": (2, "u1", _by_opencv("COLOR_YUV2RGB_UYVY")),
    "yuv422_yuy2": (2, "u1", _by_opencv("COLOR_YUV2RGB_YUY2")),
    "yuyv": (2, "u1", _by_opencv("COLOR_YUV2RGB_YUY2")),
    "nv12": (1, "u1", _by_opencv("COLOR_YUV2RGB_NV12")),
    # OpenCV names a pattern by its second row and column: rggb is its BG
    "bayer_rggb8": (1, "u1", _by_opencv("COLOR_BayerBG2RGB")),
    "bayer_bggr8": (1, "u1", _by_opencv("COLOR_BayerRG2RGB")),
    "bayer_gbrg8": (1, "u1", _by_opencv("COLOR_BayerGR2RGB")),
    "bayer_grbg8": (1, "u1", _by_opencv("COLOR_BayerGB2RGB")),
}
SUPPORTED = ", ".join(_ENCODINGS)
_EVEN_WIDTH = ("yuv422", "uyvy", "yuv422_yuy2", "yuyv", "nv12")
_DEPTH = ("16UC1", "32FC1", "mono16; compressedDepth")


def decode_image(message: Image | CompressedImage) -> U8:
    """The (H, W, 3) uint8 RGB picture in a message; it may share the message's memory. Raises FrameError."""
    if isinstance(message, CompressedImage):
        return _decompress(message)
    if message.encoding not in _ENCODINGS:
        depth = " is a depth image, not a colour one" if message.encoding in _DEPTH else " cannot be read"
        raise FrameError(f"image encoding {message.encoding!r}{depth}: publish one of {SUPPORTED}")
    channels, kind, convert = _ENCODINGS[message.encoding]
    height, width = message.height, message.width
    planar = message.encoding == "nv12"  # a plane of luma, then one of chroma with half as many rows
    if height < 1 or width < 1 or (message.encoding in _EVEN_WIDTH and width % 2) or (planar and height % 2):
        raise FrameError(f"a {message.encoding} image of {width}x{height} px cannot be: check the driver's size settings")
    rows = height + height // 2 if planar else height
    dtype = np.dtype(kind).newbyteorder(">" if message.is_bigendian else "<")
    row_bytes = width * channels * dtype.itemsize
    data = np.frombuffer(message.data, np.uint8)
    if message.step < row_bytes or data.size < message.step * (rows - 1) + row_bytes:
        raise FrameError(
            f"a {message.encoding} image of {width}x{height} px has {data.size} bytes in rows of {message.step}, but needs rows "
            f"of {row_bytes} or more, {rows} of them: the message is cut off, or its encoding is wrong (known: {SUPPORTED})"
        )
    shape, strides = (rows, width), (message.step, channels * dtype.itemsize)
    if channels > 1:
        shape, strides = (*shape, channels), (*strides, dtype.itemsize)
    return np.ascontiguousarray(convert(np.ndarray(shape, dtype, data, strides=strides)))


def _decompress(message: CompressedImage) -> U8:
    from PIL import Image as Pillow  # it refuses cut-off JPEGs, which OpenCV fills up with grey

    if "compressedDepth" in message.format:
        raise FrameError(f"compressed image of format {message.format!r} is depth, not colour: publish jpeg or png")
    try:
        with Pillow.open(io.BytesIO(message.data), formats=("JPEG", "PNG")) as picture:
            if picture.mode.startswith("I"):  # 16-bit gray, which `convert` would clip
                return np.ascontiguousarray(_gray16(np.asarray(picture).astype(np.uint16)))
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Pillow.DecompressionBombError) as error:  # SyntaxError: Pillow's for a broken PNG
        raise FrameError(
            f"compressed image of format {message.format!r} ({len(message.data)} bytes) cannot be read ({error}): "
            f"publish whole jpeg or png images"
        ) from error


def encoding_of(message: Image | CompressedImage) -> str:
    """What the message says it is, for diagnostics."""
    return message.format if isinstance(message, CompressedImage) else message.encoding


def intrinsics_from_camera_info(
    message: CameraInfo, width: int, height: int, rectified: bool = False
) -> tuple[F64 | None, str]:
    """K (3, 3) in pixels of a (height, width) image, and a remark ("" if there is nothing to say); (None, why) if unusable.

    rectified: the image is, so that P holds its intrinsics; else K does, and distortion is left in the image.
    """
    if (message.width, message.height) != (width, height):
        return None, f"camera_info is for {message.width}x{message.height} px, the image has {width}x{height}"
    k = np.array(message.p, np.float64).reshape(3, 4)[:, :3] if rectified else np.array(message.k, np.float64).reshape(3, 3)
    if not np.all(np.isfinite(k)):
        return None, "camera_info holds NaN or infinite intrinsics: calibrate the camera"
    if not (k[0, 0] > 0 and k[1, 1] > 0):
        return None, f"camera_info has a focal length of {k[0, 0]:g} x {k[1, 1]:g} px: calibrate the camera"
    intrinsics = np.array([[k[0, 0], 0, k[0, 2]], [0, k[1, 1], k[1, 2]], [0, 0, 1]])
    distorted = not rectified and any(d != 0 for d in message.d)
    return intrinsics, "the lens distortion in camera_info is not rectified: feed the rectified topic" if distorted else ""


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
        PointField(name=name, offset=fields[name][1], datatype=PointField.FLOAT32, count=1) for name in points.dtype.names or ()
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
    points = np.ndarray(shape, dtype, np.frombuffer(message.data, np.uint8), strides=strides) if message.data else np.empty(shape, dtype)
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
