"""Pictures and depth out of image messages, by the names of their fields: rclpy's and those of bags alike.

Plain numpy; imports no ROS. OpenCV is used for Bayer and YUV only, Pillow for JPEG and PNG.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import FrameError
from .types import F32, U8


def _to_8_bits(a: NDArray[Any]) -> U8:
    if a.dtype.itemsize == 1:
        return a
    return ((a.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 257 = 65535 / 255; rounded


def _gray(a: NDArray[Any]) -> U8:
    return np.repeat(_to_8_bits(a)[:, :, None], 3, axis=2)


def _rgb(a: NDArray[Any]) -> U8:
    return _to_8_bits(a[:, :, :3])


def _bgr(a: NDArray[Any]) -> U8:
    return _to_8_bits(a[:, :, 2::-1])


def _by_opencv(code: str) -> Callable[[NDArray[Any]], U8]:
    def convert(a: NDArray[Any]) -> U8:
        import cv2

        native = np.ascontiguousarray(a, a.dtype.newbyteorder("="))
        return _to_8_bits(cv2.cvtColor(native, getattr(cv2, code)))

    return convert


# encoding -> channels, type of one, conversion to RGB. Types without a meaning (8UC3) are taken as OpenCV's order.
_ENCODINGS: dict[str, tuple[int, str, Callable[[NDArray[Any]], U8]]] = {
    "rgb8": (3, "u1", _rgb),
    "bgr8": (3, "u1", _bgr),
    "rgba8": (4, "u1", _rgb),
    "bgra8": (4, "u1", _bgr),
    "mono8": (1, "u1", _gray),
    "mono16": (1, "u2", _gray),
    "8UC1": (1, "u1", _gray),
    "8UC3": (3, "u1", _bgr),
    "8UC4": (4, "u1", _bgr),
    "rgb16": (3, "u2", _rgb),
    "bgr16": (3, "u2", _bgr),
    "rgba16": (4, "u2", _rgb),
    "bgra16": (4, "u2", _bgr),
    "yuv422": (2, "u1", _by_opencv("COLOR_YUV2RGB_UYVY")),
    "uyvy": (2, "u1", _by_opencv("COLOR_YUV2RGB_UYVY")),
    "yuv422_yuy2": (2, "u1", _by_opencv("COLOR_YUV2RGB_YUY2")),
    "yuyv": (2, "u1", _by_opencv("COLOR_YUV2RGB_YUY2")),
    "nv12": (1, "u1", _by_opencv("COLOR_YUV2RGB_NV12")),
    "nv21": (1, "u1", _by_opencv("COLOR_YUV2RGB_NV21")),
}
# OpenCV names a pattern by its second row and column: rggb is its BG
for _pattern, _name in {"rggb": "BG", "bggr": "RG", "gbrg": "GR", "grbg": "GB"}.items():
    for _bits in (8, 16):
        _ENCODINGS[f"bayer_{_pattern}{_bits}"] = (1, f"u{_bits // 8}", _by_opencv(f"COLOR_Bayer{_name}2RGB"))
SUPPORTED = ", ".join(_ENCODINGS)
_EVEN_WIDTH = ("yuv422", "uyvy", "yuv422_yuy2", "yuyv", "nv12", "nv21")
_PLANAR = ("nv12", "nv21")  # a plane of luma, then one of chroma with half as many rows
_BAYER_SIDE = 3  # below it OpenCV gives black
# encoding -> type, metres per unit. 16UC1 is millimetres with 0 for invalid (REP 118)
_DEPTH: dict[str, tuple[str, float]] = {"16UC1": ("u2", 1e-3), "32FC1": ("f4", 1.0)}


def is_compressed(message: Any) -> bool:
    """Whether it is a CompressedImage, not an Image."""
    return hasattr(message, "format")


def is_depth(message: Any) -> bool:
    """Whether its pixels are distances, not colours."""
    return "compressedDepth" in str(message.format) if is_compressed(message) else message.encoding in _DEPTH


def encoding_of(message: Any) -> str:
    """What the message says it is, for diagnostics."""
    return str(message.format if is_compressed(message) else message.encoding)


def decode_image(message: Any) -> U8:
    """(H, W, 3) uint8 RGB of an Image or CompressedImage; it may share the message's memory. Raises FrameError."""
    if is_compressed(message):
        return _decompress(message)
    pixels = pixels_of(message)
    return np.ascontiguousarray(_ENCODINGS[message.encoding][2](pixels))


def pixels_of(message: Any) -> NDArray[Any]:
    """The pixels of a colour Image as they are: a view (H, W) or (H, W, channels), of one and a half times as many rows with
    the chroma of nv12 and nv21. Raises FrameError if the image cannot be decoded."""
    encoding = message.encoding
    if encoding not in _ENCODINGS:
        depth = "is a depth image, not a colour one" if encoding in _DEPTH else "cannot be read"
        raise FrameError(f"image encoding {encoding!r} {depth}: it must be one of {SUPPORTED}; set it in the driver")
    channels, kind, _ = _ENCODINGS[encoding]
    height, width = _size(message)
    if (encoding in _EVEN_WIDTH and width % 2) or (encoding in _PLANAR and height % 2):
        sides = "sides" if encoding in _PLANAR else "width"
        raise FrameError(
            f"a {encoding} image of {width}x{height} px cannot be: its {sides} must be even; set the driver's size"
        )
    if encoding.startswith("bayer") and min(width, height) < _BAYER_SIDE:
        raise FrameError(
            f"a {encoding} image of {width}x{height} px is too small: its sides must be {_BAYER_SIDE} px or more; "
            f"set the driver's size"
        )
    return _pixels(message, height + height // 2 if encoding in _PLANAR else height, channels, kind)


def decode_depth(message: Any) -> F32:
    """The (H, W) z-depth in a 16UC1 or 32FC1 Image, metres, NaN where nothing was measured. Raises FrameError."""
    if is_compressed(message) or message.encoding not in _DEPTH:
        raise FrameError(
            f"encoding {encoding_of(message)!r} is no depth image: it must be one of {', '.join(_DEPTH)}; set it in the driver"
        )
    kind, unit = _DEPTH[message.encoding]
    raw = _pixels(message, _size(message)[0], 1, kind).astype(np.float32)
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(raw) & (raw > 0), raw * np.float32(unit), np.float32(np.nan))


def _size(message: Any) -> tuple[int, int]:
    height, width = int(message.height), int(message.width)
    if height < 1 or width < 1:
        raise FrameError(
            f"a {message.encoding} image of {width}x{height} px is empty: its sides must be 1 px or more; set the driver's size"
        )
    return height, width


def _pixels(message: Any, rows: int, channels: int, kind: str) -> NDArray[Any]:
    """View of the message's memory, (rows, W) or (rows, W, channels); padded rows are honoured."""
    width, step = int(message.width), int(message.step)
    dtype = np.dtype(kind).newbyteorder(">" if message.is_bigendian else "<")
    row_bytes = width * channels * dtype.itemsize
    data = np.frombuffer(message.data, np.uint8)
    if step < row_bytes or data.size < step * (rows - 1) + row_bytes:
        raise FrameError(
            f"a {message.encoding} image of {width}x{message.height} px has {data.size} bytes in rows of {step}, but needs rows of "
            f"{row_bytes} or more, {rows} of them: the message is cut off, or its encoding or size is wrong; check the driver"
        )
    shape: tuple[int, ...] = (rows, width)
    strides: tuple[int, ...] = (step, channels * dtype.itemsize)
    if channels > 1:
        shape, strides = (*shape, channels), (*strides, dtype.itemsize)
    return np.ndarray(shape, dtype, data, strides=strides)


def _decompress(message: Any) -> U8:
    from PIL import Image as Pillow  # it refuses cut-off JPEGs, which OpenCV fills up with grey

    what = f"a compressed image of format {message.format!r} ({len(message.data)} bytes)"
    if is_depth(message):
        raise FrameError(f"{what} is depth, not colour: it must be jpeg or png; subscribe to the colour camera")
    try:
        with Pillow.open(io.BytesIO(message.data), formats=("JPEG", "PNG")) as picture:
            if picture.format == "PNG":
                picture.verify()  # the checksums of pixels, which decoding leaves out; the picture is used up then
        with Pillow.open(io.BytesIO(message.data), formats=("JPEG", "PNG")) as picture:
            if picture.mode.startswith("I"):  # 16-bit gray, which `convert` would clip
                return np.ascontiguousarray(_gray(np.asarray(picture).astype(np.uint16)))
            return np.asarray(picture.convert("RGB"))
    except Exception as error:  # the decoders let all kinds through for damaged bytes: SyntaxError for a PNG, for one
        raise FrameError(
            f"{what} cannot be read ({type(error).__name__}: {error}): it must be a whole jpeg or png; check the driver and the network"
        ) from error
