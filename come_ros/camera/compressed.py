"""Decodes a CompressedImage to the stored pixels, with Pillow. Imports no ROS.

image_transport's plug-ins write formats such as "rgb8; jpeg compressed bgr8": encoding of the source, codec, encoding of the pixels.
"""

from __future__ import annotations

import io
import re
import struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import FrameError
from ..files import quoted
from ..types import F32
from .quiet import quiet

DEPTH_CODEC = "compresseddepth"
FILES = ("JPEG", "PNG", "TIFF", "WEBP", "BMP")  # that are decoded, whatever the format says
_ALLOWED = "it must be a whole jpeg or png; check the driver and the network"
# Other contents of compressed images: codec -> what helps.
_UNREADABLE = {
    "h264": "video", "h265": "video", "hevc": "video", "vp8": "video", "vp9": "video", "av1": "video", "theora": "video",
    "zstd": "raw pixels packed by zstd",
}  # fmt: skip
_RVL = struct.Struct("<II")


class Format(NamedTuple):
    """encoding: of the image before it was compressed, "" if unknown. codec: in lower case, "" if unknown. rest: what follows."""

    encoding: str
    codec: str
    rest: str


def parse_format(text: str) -> Format:
    """Of CompressedImage.format."""
    before, semicolon, after = text.partition(";")
    words = (after if semicolon else before).split()
    codec = words[0].lower() if words else ""
    return Format(before.strip() if semicolon else "", codec, " ".join(words[1:]).lower())


def unreadable_kind(text: str) -> str:
    """The codec of a format that cannot be decoded here, "" if it can."""
    return _UNREADABLE.get(parse_format(text).codec, "")


def described(message: Any) -> str:
    """For error messages."""
    return f"a compressed image of format {quoted(str(message.format))} ({len(message.data)} bytes)"


def decode(message: Any) -> NDArray[Any]:
    """(H, W) or (H, W, 3), uint8, or uint16 or float32 where more bits are stored; colours are RGB. Raises FrameError."""
    what = described(message)
    kind = unreadable_kind(str(message.format))
    if kind:
        raise FrameError(f"{what} is {kind}, which cannot be decoded here: record or publish the topic as raw or jpeg")
    data = bytes(message.data)
    try:
        with quiet():
            return _decoded(data)
    except (
        Exception
    ) as error:  # decoders raise all kinds of exceptions for damaged bytes, such as SyntaxError for a PNG
        raise FrameError(f"{what} cannot be read ({reason_of(error)}): {_ALLOWED}") from error


def _decoded(data: bytes) -> NDArray[Any]:
    from PIL import Image as Pillow  # which refuses truncated JPEGs; OpenCV fills them with grey

    with Pillow.open(io.BytesIO(data), formats=FILES) as picture:
        if picture.format == "PNG":
            picture.verify()  # checks the checksums, which decoding ignores; the picture cannot be used afterwards
    if data[24:26] in (b"\x10\x02", b"\x10\x06") and data.startswith(
        b"\x89PNG"
    ):  # 16-bit colours: Pillow would cut them to 8 bits
        import cv2

        colours = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if colours is None:
            raise ValueError("its pixels cannot be decoded")
        return np.ascontiguousarray(colours[..., 2::-1])
    with Pillow.open(io.BytesIO(data), formats=FILES) as picture:
        return pixels_of_picture(picture)


def reason_of(error: BaseException) -> str:
    """One line for an exception of a decoder, without memory addresses."""
    text = re.sub(r"<[^<>]*\bat 0x[0-9a-f]+>", "the data", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text}"


def pixels_of_picture(picture: Any) -> NDArray[Any]:
    """Of an open Pillow image: (H, W) grey or (H, W, 3) RGB, uint8, or uint16 or float32 where it has more bits."""
    if picture.mode.startswith("I"):  # 16-bit grey, which `convert` would clip
        return np.asarray(picture).astype(np.uint16)
    if picture.mode == "F":
        return np.asarray(picture, np.float32)
    return np.asarray(picture.convert("L" if picture.mode in ("L", "1") else "RGB"))


def decode_depth(message: Any) -> tuple[F32, float]:
    """(H, W) float32 and the metres of its unit, from a message that holds depth; 0 or NaN where nothing was measured. Raises
    FrameError."""
    form = parse_format(str(message.format))
    if form.codec != DEPTH_CODEC:
        raw = decode(message)
        if raw.ndim != 2:
            raise FrameError(
                f"{described(message)} has {raw.shape[2]} channels, but depth has one: set the driver's format to png"
            )
        if form.encoding == "16UC1" and raw.dtype != np.uint16:
            raise FrameError(
                f"{described(message)} has 8 bits, but depth needs 16: set the driver's format to png, not jpeg"
            )
        return raw.astype(np.float32), 1.0 if form.encoding == "32FC1" else 1e-3
    data = bytes(message.data)
    if len(data) < 12:
        raise FrameError(f"{described(message)} cannot be read (it has no header): {_ALLOWED}")
    _, a, b = struct.unpack_from("<iff", data)  # of inverse depth, for floats
    if "rvl" in form.rest:
        raw = _rvl(data[12:], message)
    else:
        inner = _Inner(f"{message.format}, png", data[12:])
        raw = decode(inner)
        if raw.ndim != 2:
            raise FrameError(f"{described(message)} holds colours: check the publisher")
    if form.encoding != "32FC1":
        return raw.astype(np.float32), 1e-3
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = np.float32(a) / (raw.astype(np.float32) - np.float32(b))
    return np.where(raw > 0, depth, np.float32(np.nan)).astype(np.float32), 1.0


class _Inner(NamedTuple):
    format: str
    data: bytes


def _rvl(data: bytes, message: Any) -> NDArray[np.uint16]:
    """RVL (Wilson, "Fast lossless depth image compression", 2017): runs of zeros, then of differences, in groups of 3 bits.
    Raises FrameError."""
    wrong = FrameError(f"{described(message)} cannot be read (its RVL data is damaged): {_ALLOWED}")
    if len(data) < _RVL.size:
        raise wrong
    width, height = _RVL.unpack_from(data)
    pixels = width * height
    if not 0 < pixels <= 1 << 26:
        raise wrong
    words = np.frombuffer(data, "<u4", (len(data) - _RVL.size) // 4, _RVL.size)
    nibbles = ((words[:, None] >> np.arange(28, -4, -4, dtype=np.uint32)) & 15).reshape(-1).astype(np.int64)
    ends = np.flatnonzero(nibbles < 8)  # the highest bit marks that the number continues
    starts = np.concatenate([[0], ends[:-1] + 1])
    if not len(ends) or (ends - starts).max() > 10:
        raise wrong
    places = np.arange(ends[-1] + 1) - np.repeat(starts, ends - starts + 1)
    numbers = np.add.reduceat((nibbles[: ends[-1] + 1] & 7) << (3 * places), starts)
    out, at, row, last = np.zeros(pixels, np.int64), 0, 0, 0
    while at < pixels:
        if row + 1 >= len(numbers):
            raise wrong
        zeros, count = int(numbers[row]), int(numbers[row + 1])
        at, row = at + zeros, row + 2
        if at + count > pixels or row + count > len(numbers) or zeros + count == 0:
            raise wrong
        if count:
            steps = numbers[row : row + count]
            run = last + np.cumsum((steps >> 1) ^ -(steps & 1))
            out[at : at + count], last = run, int(run[-1])
        at, row = at + count, row + count
    return (out & 0xFFFF).astype(np.uint16).reshape(height, width)
