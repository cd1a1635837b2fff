"""Pictures, depth and intrinsics out of image messages, by the names of their fields: rclpy's and those of bags alike.

Plain numpy; imports no ROS. OpenCV is used for Bayer and YUV only, Pillow for JPEG and PNG.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import FrameError
from .types import F32, F64, U8


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
# encoding -> type, metres per unit. 16UC1 is millimetres with 0 for invalid (REP 118)
_DEPTH: dict[str, tuple[str, float]] = {"16UC1": ("u2", 1e-3), "32FC1": ("f4", 1.0)}


def is_compressed(message: Any) -> bool:
    """Whether it is a CompressedImage, not an Image."""
    return hasattr(message, "format")


def is_depth(message: Any) -> bool:
    """Whether its pixels are distances, not colours."""
    return "compressedDepth" in message.format if is_compressed(message) else message.encoding in _DEPTH


def encoding_of(message: Any) -> str:
    """What the message says it is, for diagnostics."""
    return message.format if is_compressed(message) else message.encoding


def decode_image(message: Any) -> U8:
    """(H, W, 3) uint8 RGB of an Image or CompressedImage; it may share the message's memory. Raises FrameError."""
    if is_compressed(message):
        return _decompress(message)
    if message.encoding not in _ENCODINGS:
        depth = " is a depth image, not a colour one" if message.encoding in _DEPTH else " cannot be read"
        raise FrameError(f"image encoding {message.encoding!r}{depth}: publish one of {SUPPORTED}")
    channels, kind, convert = _ENCODINGS[message.encoding]
    height, width = message.height, message.width
    planar = message.encoding == "nv12"  # a plane of luma, then one of chroma with half as many rows
    if height < 1 or width < 1 or (message.encoding in _EVEN_WIDTH and width % 2) or (planar and height % 2):
        size = f"{width}x{height}"
        raise FrameError(f"a {message.encoding} image of {size} px cannot be: check the driver's size settings")
    rows = height + height // 2 if planar else height
    return np.ascontiguousarray(convert(_pixels(message, rows, channels, kind)))


def decode_depth(message: Any) -> F32:
    """The (H, W) z-depth in a 16UC1 or 32FC1 Image, metres, NaN where nothing was measured. Raises FrameError."""
    if is_compressed(message) or message.encoding not in _DEPTH:
        raise FrameError(f"encoding {encoding_of(message)!r} is no depth image: it must be one of {', '.join(_DEPTH)}")
    kind, unit = _DEPTH[message.encoding]
    raw = _pixels(message, message.height, 1, kind).astype(np.float32)
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(raw) & (raw > 0), raw * np.float32(unit), np.float32(np.nan))


def _pixels(message: Any, rows: int, channels: int, kind: str) -> NDArray[Any]:
    """View of the message's memory, (rows, W) or (rows, W, channels); padded rows are honoured."""
    width = message.width
    dtype = np.dtype(kind).newbyteorder(">" if message.is_bigendian else "<")
    row_bytes = width * channels * dtype.itemsize
    data = np.frombuffer(message.data, np.uint8)
    if message.step < row_bytes or data.size < message.step * (rows - 1) + row_bytes:
        raise FrameError(
            f"a {message.encoding} image of {width}x{message.height} px has {data.size} bytes in rows of "
            f"{message.step}, but needs rows of {row_bytes} or more, {rows} of them: the message is cut off, or its "
            f"encoding is wrong (known: {SUPPORTED})"
        )
    shape: tuple[int, ...] = (rows, width)
    strides: tuple[int, ...] = (message.step, channels * dtype.itemsize)
    if channels > 1:
        shape, strides = (*shape, channels), (*strides, dtype.itemsize)
    return np.ndarray(shape, dtype, data, strides=strides)


def _decompress(message: Any) -> U8:
    from PIL import Image as Pillow  # it refuses cut-off JPEGs, which OpenCV fills up with grey

    if is_depth(message):
        raise FrameError(f"compressed image of format {message.format!r} is depth, not colour: publish jpeg or png")
    try:
        with Pillow.open(io.BytesIO(message.data), formats=("JPEG", "PNG")) as picture:
            if picture.mode.startswith("I"):  # 16-bit gray, which `convert` would clip
                return np.ascontiguousarray(_gray16(np.asarray(picture).astype(np.uint16)))
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Pillow.DecompressionBombError) as error:
        # SyntaxError is Pillow's for a broken PNG
        raise FrameError(
            f"compressed image of format {message.format!r} ({len(message.data)} bytes) cannot be read ({error}): "
            f"publish whole jpeg or png images"
        ) from error


def intrinsics_from_camera_info(
    message: Any, width: int, height: int, rectified: bool = False
) -> tuple[F64 | None, str]:
    """K (3, 3) in pixels of a (height, width) image, and a remark ("" if there is none); (None, why) if unusable.

    rectified: the image is, so that P holds its intrinsics; else K does, and distortion is left in the image.
    """
    if (message.width, message.height) != (width, height):
        return None, f"camera_info is for {message.width}x{message.height} px, the image has {width}x{height}"
    k, p, d = (_field(message, name) for name in "kpd")
    k = p.reshape(3, 4)[:, :3] if rectified else k.reshape(3, 3)
    if not np.all(np.isfinite(k)):
        return None, "camera_info holds NaN or infinite intrinsics: calibrate the camera"
    if not (k[0, 0] > 0 and k[1, 1] > 0):
        return None, f"camera_info has a focal length of {k[0, 0]:g} x {k[1, 1]:g} px: calibrate the camera"
    intrinsics = np.array([[k[0, 0], 0, k[0, 2]], [0, k[1, 1], k[1, 2]], [0, 0, 1]])
    if not rectified and np.any(d != 0):
        return intrinsics, "the lens distortion in camera_info is not rectified: feed the rectified topic"
    return intrinsics, ""


def _field(message: Any, name: str) -> F64:
    """An array of a CameraInfo, which ROS 1 writes in capitals."""
    return np.array(getattr(message, name) if hasattr(message, name) else getattr(message, name.upper()), np.float64)
