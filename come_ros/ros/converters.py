"""Conversion between messages and arrays: by cv_bridge and sensor_msgs_py where they are installed and work, else by numpy.

The choice is made once, at the first use, by a small conversion with a known result: on Humble the C module of cv_bridge breaks
under NumPy 2, and ROS from pip has neither package. Both ways give the same bytes and the same errors.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import Image, PointCloud2, PointField

from ..camera import images
from ..camera.levels import Levels
from ..errors import FrameError
from ..types import U8

# Encodings that every distribution's cv_bridge converts to the same bytes as images.py. rgb8 needs no conversion, and
# cv_bridge would copy it.
_BRIDGED = {
    *("bgr8", "rgba8", "bgra8", "mono8", "rgb16", "bgr16", "rgba16", "bgra16", "mono16", "yuv422", "yuv422_yuy2"),
    *(f"bayer_{pattern}{bits}" for pattern in ("rggb", "bggr", "gbrg", "grbg") for bits in (8, 16)),
}
_TEST_S = 30.0


@dataclass(frozen=True)
class Converters:
    """bridge: a CvBridge, or None. clouds: the module sensor_msgs_py.point_cloud2, or None. remarks: why one is missing."""

    bridge: Any = None
    clouds: Any = None
    remarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        """For diagnostics."""
        pictures = "numpy" if self.bridge is None else "cv_bridge"
        return f"images by {pictures}, clouds by {'numpy' if self.clouds is None else 'sensor_msgs_py'}"

    def decode_image(self, message: Any, levels: Levels | None = None) -> U8:
        """(H, W, 3) uint8 RGB of an Image or CompressedImage; it may share the message's memory. Raises FrameError.

        Compressed images never use cv_bridge, which fills truncated ones with grey.
        """
        by_us = self.bridge is None or images.is_compressed(message) or message.encoding not in _BRIDGED
        if by_us or (levels is not None and message.encoding.endswith("16")):  # cv_bridge does not know its range
            return images.decode_image(message, levels)
        pixels = images.pixels_of(message)  # raises an exception for truncated data, which cv_bridge may not notice
        # cv_bridge assumes unpadded rows, requires the padding of the last row, and swaps bytes by a method that NumPy 2 lacks
        whole = message.step % pixels.strides[1] == 0 and len(message.data) >= message.step * message.height
        if message.is_bigendian or not whole:
            return images.decode_image(message)
        try:
            return np.asarray(self.bridge.imgmsg_to_cv2(message, "rgb8"))
        except Exception as error:  # it raises all kinds of exceptions
            raise FrameError(
                f"cv_bridge cannot read a {message.encoding} image of {message.width}x{message.height} px "
                f"({type(error).__name__}: {error}), though it must know one of {', '.join(sorted(_BRIDGED))}: repair cv_bridge"
            ) from error

    def cloud(self, points: NDArray[Any], fields: list[PointField], head: Any) -> PointCloud2:
        """PointCloud2 of a structured array (N,) or (H, W), by sensor_msgs_py. It must be there."""
        # it swaps rows and columns of organised clouds, and never sets is_dense
        message = self.clouds.create_cloud(head, fields, np.ascontiguousarray(points).reshape(-1))
        message.height, message.width = points.shape if points.ndim == 2 else (1, len(points))
        message.row_step = message.width * message.point_step
        message.is_dense = points.ndim == 1
        return message

    def points_of(self, message: PointCloud2) -> NDArray[Any]:
        """Structured array (N,) or (H, W) of a cloud of float32 fields; padding is honoured. Raises FrameError."""
        dtype = _dtype_of(message)
        # it swaps bytes in place, and assumes unpadded rows
        packed = message.row_step == message.width * message.point_step and not message.is_bigendian
        if self.clouds is not None and packed and message.data:
            points = self.clouds.read_points(message)
            return points.reshape(message.height, message.width) if message.height > 1 else points
        shape, strides = (message.height, message.width), (message.row_step, message.point_step)
        if not message.data:
            return np.empty(shape if message.height > 1 else shape[1:], dtype)
        points = np.ndarray(shape, dtype, np.frombuffer(message.data, np.uint8), strides=strides)
        return points[0] if message.height == 1 else points


@functools.cache
def converters() -> Converters:
    """The converters of this process."""
    return choose()


def choose() -> Converters:
    """The packages that are installed and convert correctly."""
    found: dict[str, Any] = {}
    remarks: list[str] = []
    for name, test in (("cv_bridge", _tested_bridge), ("sensor_msgs_py", _tested_clouds)):
        found[name] = None
        try:
            if importlib.util.find_spec(name) is None:
                remarks.append(f"{name} is not installed")
                continue
            found[name] = test()
        except Exception as error:  # whatever a broken binary raises
            remarks.append(f"{name} does not work here ({type(error).__name__}: {error}): numpy is used instead")
    return Converters(found["cv_bridge"], found["sensor_msgs_py"], tuple(remarks))


def _tested_bridge() -> Any:
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        # a module built on NumPy 1 may take the process with it
        code = "from come_ros.ros.converters import bridge; bridge()"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=_TEST_S
        )
        if done.returncode:
            raise ImportError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return bridge()


def bridge() -> Any:
    """A CvBridge that has decoded a small image correctly. Passes on its exceptions."""
    made = importlib.import_module("cv_bridge").CvBridge()
    want = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    message = Image(height=2, width=2, encoding="bgr8", step=6, data=want[..., ::-1].tobytes())
    if not np.array_equal(made.imgmsg_to_cv2(message, "rgb8"), want):
        raise ImportError("it decodes a bgr8 image of 2x2 px incorrectly")
    return made


def _tested_clouds() -> Any:
    made = importlib.import_module("sensor_msgs_py.point_cloud2")
    want = np.array([(1, 2), (3, 4)], [("x", "<f4"), ("conf", "<f4")])
    fields = [PointField(name=n, offset=o, datatype=PointField.FLOAT32, count=1) for n, o in (("x", 0), ("conf", 4))]
    message = made.create_cloud(PointCloud2().header, fields, want)
    if bytes(message.data) != want.tobytes() or not np.array_equal(made.read_points(message), want):
        raise ImportError("it cannot read its own output")
    return made


def _dtype_of(message: PointCloud2) -> np.dtype[Any]:
    """The dtype of one point. Raises FrameError if the cloud is truncated or has other fields than float32."""
    if any(f.datatype != PointField.FLOAT32 or f.count != 1 for f in message.fields):
        raise FrameError("the cloud has fields that are not single float32 numbers: publish FLOAT32 fields of count 1")
    ends = [f.offset + 4 for f in message.fields]
    names = [f.name for f in message.fields]
    needed = message.row_step * (message.height - 1) + message.point_step * message.width if message.height else 0
    if max(ends, default=0) > message.point_step or len(set(names)) < len(names) or len(message.data) < needed:
        raise FrameError(
            f"a cloud of {message.width}x{message.height} points of {message.point_step} bytes has {len(message.data)} bytes and "
            f"the fields {', '.join(names)}: it must have {needed} bytes or more, and fields that fit into a point; it is cut off"
        )
    kind = ">f4" if message.is_bigendian else "<f4"
    offsets = [f.offset for f in message.fields]
    return np.dtype(
        {"names": names, "formats": [kind] * len(names), "offsets": offsets, "itemsize": message.point_step}
    )
