"""Reads pictures and depth from image messages by the names of their fields, which rclpy and bags share.

Plain numpy; imports no ROS. OpenCV is used for Bayer and YUV only. compressed.py reads CompressedImage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FrameError
from ..files import quoted
from ..types import F32, U8
from . import compressed
from .levels import FULL, Levels


def _gray(a: NDArray[Any]) -> U8:
    return np.repeat(a[:, :, None], 3, axis=2)


def _rgb(a: NDArray[Any]) -> U8:
    return a[:, :, :3]


def _bgr(a: NDArray[Any]) -> U8:
    return a[:, :, 2::-1]


def _by_opencv(code: str) -> Callable[[NDArray[Any]], U8]:
    def convert(a: NDArray[Any]) -> U8:
        import cv2

        return np.asarray(cv2.cvtColor(np.ascontiguousarray(a), getattr(cv2, code)), np.uint8)

    return convert


# encoding -> channels, type of one, conversion of 8 bits each to RGB. Types without a colour meaning (8UC3) are read in OpenCV's order.
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
# Some drivers send depth as mono16 and thermal images as 16UC1: accepted where a topic is chosen explicitly.
_EITHER = {"mono16": "16UC1", "16UC1": "mono16"}


def is_compressed(message: Any) -> bool:
    """Whether it is a CompressedImage, not an Image."""
    return hasattr(message, "format")


def is_depth(message: Any) -> bool:
    """Whether its pixels are distances, not colours."""
    if is_compressed(message):
        form = compressed.parse_format(str(message.format))
        return form.codec == compressed.DEPTH_CODEC or form.encoding in _DEPTH
    return message.encoding in _DEPTH


def why_unreadable(message: Any) -> str:
    """Why images of this kind cannot be read; "" if they can, even if this one is damaged."""
    if not is_compressed(message):
        known = message.encoding in _ENCODINGS or message.encoding in _DEPTH
        return "" if known else f"image encoding {quoted(message.encoding)} is unknown: it must be one of {SUPPORTED}"
    kind = compressed.unreadable_kind(str(message.format))
    return f"format {quoted(str(message.format))} is {kind}" if kind else ""


def encoding_of(message: Any) -> str:
    """The encoding that the message states, for diagnostics."""
    return str(message.format if is_compressed(message) else message.encoding)


def decode_image(message: Any, levels: Levels | None = None) -> U8:
    """(H, W, 3) uint8 RGB of an Image or CompressedImage; it may share the message's memory. Raises FrameError.

    levels: of the image's stream, for images of more than 8 bits; None uses the full 16-bit range.
    """
    if is_compressed(message):
        if is_depth(message):
            raise FrameError(
                f"{compressed.described(message)} is depth, not colour: it must be jpeg or png; subscribe to the colour camera"
            )
        pixels = compressed.decode(message)
        eight = pixels if pixels.dtype == np.uint8 else (levels or FULL).to_8_bits(pixels)
        source = compressed.parse_format(str(message.format)).encoding
        if eight.ndim == 3:
            return np.ascontiguousarray(eight)
        # image_transport compresses the mosaic of a Bayer image
        pattern = source.removesuffix("16").removesuffix("8") + "8"
        mosaic = pattern.startswith("bayer") and pattern in _ENCODINGS and min(eight.shape) >= _BAYER_SIDE
        return np.ascontiguousarray(_ENCODINGS[pattern][2](eight) if mosaic else _gray(eight))
    return convert(message, pixels_of(message), levels)


def convert(message: Any, pixels: NDArray[Any], levels: Levels | None = None) -> U8:
    """As decode_image, from the pixels that `pixels_of` returned for the message."""
    if pixels.dtype.itemsize > 1:
        pixels = (levels or FULL).to_8_bits(pixels)
    return np.ascontiguousarray(_ENCODINGS[message.encoding][2](pixels))


def as_image(message: Any) -> Any:
    """The message as mono16 if it is 16UC1: a thermal image with the encoding of depth."""
    return _relabelled(message) if not is_compressed(message) and message.encoding == "16UC1" else message


def as_depth(message: Any) -> Any:
    """The message as 16UC1 if it is mono16."""
    return _relabelled(message) if not is_compressed(message) and message.encoding == "mono16" else message


def _relabelled(message: Any) -> Any:
    from types import SimpleNamespace

    names = ("header", "height", "width", "step", "is_bigendian", "data")
    return SimpleNamespace(
        encoding=_EITHER[message.encoding], **{n: getattr(message, n) for n in names if hasattr(message, n)}
    )


def pixels_of(message: Any) -> NDArray[Any]:
    """The pixels of a colour Image as they are: a view (H, W) or (H, W, channels), of one and a half times as many rows with
    the chroma of nv12 and nv21. Raises FrameError if the image cannot be decoded."""
    encoding = message.encoding
    if encoding not in _ENCODINGS:
        depth = "is a depth image, not a colour one" if encoding in _DEPTH else "cannot be read"
        raise FrameError(
            f"image encoding {quoted(encoding)} {depth}: it must be one of {SUPPORTED}; set it in the driver"
        )
    channels, kind, _ = _ENCODINGS[encoding]
    height, width = _size(message)
    if (encoding in _EVEN_WIDTH and width % 2) or (encoding in _PLANAR and height % 2):
        sides = "sides" if encoding in _PLANAR else "width"
        raise FrameError(
            f"a {encoding} image of {width}x{height} px is not possible: its {sides} must be even; set the driver's size"
        )
    if encoding.startswith("bayer") and min(width, height) < _BAYER_SIDE:
        raise FrameError(
            f"a {encoding} image of {width}x{height} px is too small: its sides must be {_BAYER_SIDE} px or more; "
            f"set the driver's size"
        )
    return _pixels(message, height + height // 2 if encoding in _PLANAR else height, channels, kind)


def decode_depth(message: Any) -> F32:
    """The (H, W) z-depth in a 16UC1 or 32FC1 Image, or in a compressed one of them, metres, NaN where nothing was measured.
    Raises FrameError."""
    if is_compressed(message) and is_depth(message):
        raw, unit = compressed.decode_depth(message)
    elif is_compressed(message) or message.encoding not in _DEPTH:
        raise FrameError(
            f"encoding {quoted(encoding_of(message))} is not a depth image: it must be one of {', '.join(_DEPTH)}; set it in the driver"
        )
    else:
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
