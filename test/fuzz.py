"""Messages of all kinds, most of them nearly right, and what slow, independent decoders say of them.

The tests draw them by hypothesis, benchmark/robustness/fuzz_decoders.py by numpy: both as `Choices`.
"""

from __future__ import annotations

import array
import functools
import io
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
from PIL import Image as Pillow

from come_ros.camera.rectify import Rectification
from come_ros.errors import FrameError

SIMPLE = {
    # encoding -> bytes of one channel, channels, where red, green and blue are
    **{e: (1, c, at) for e, c, at in (
        ("rgb8", 3, (0, 1, 2)), ("bgr8", 3, (2, 1, 0)), ("rgba8", 4, (0, 1, 2)), ("bgra8", 4, (2, 1, 0)), ("mono8", 1, (0, 0, 0)),
        ("8UC1", 1, (0, 0, 0)), ("8UC3", 3, (2, 1, 0)), ("8UC4", 4, (2, 1, 0)),
    )},
    **{e: (2, c, at) for e, c, at in (
        ("rgb16", 3, (0, 1, 2)), ("bgr16", 3, (2, 1, 0)), ("rgba16", 4, (0, 1, 2)), ("bgra16", 4, (2, 1, 0)), ("mono16", 1, (0, 0, 0)),
    )},
}  # fmt: skip
PACKED = {"yuv422": "uyvy", "uyvy": "uyvy", "yuv422_yuy2": "yuyv", "yuyv": "yuyv"}
PLANAR = {"nv12": "uv", "nv21": "vu"}
BAYER = {f"bayer_{p}{b}": (p, b // 8) for p in ("rggb", "bggr", "gbrg", "grbg") for b in (8, 16)}
DEPTH = {"16UC1": 2, "32FC1": 4}
ENCODINGS = (*SIMPLE, *PACKED, *PLANAR, *BAYER)
JUNK = ("", "RGB8", "rgb8 ", "jpeg", "8UC2", "64FC1", "bayer_rggb12", "nv24", "Ünï", *DEPTH)
YUV_TOLERANCE = 2.5  # OpenCV rounds in fixed point


class Choices(Protocol):
    def integer(self, low: int, high: int) -> int:
        """low .. high, both included."""

    def one_of(self, things: Sequence[Any]) -> Any: ...

    def octets(self, count: int) -> bytes: ...


class RandomChoices:
    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def integer(self, low: int, high: int) -> int:
        return int(self._rng.integers(low, high + 1))

    def one_of(self, things: Sequence[Any]) -> Any:
        return things[self.integer(0, len(things) - 1)]

    def octets(self, count: int) -> bytes:
        return self._rng.bytes(count)


class DrawnChoices:
    """Out of hypothesis' st.data(), which shrinks what fails."""

    def __init__(self, data: Any) -> None:
        from hypothesis import strategies

        self._draw, self._strategies = data.draw, strategies

    def integer(self, low: int, high: int) -> int:
        return self._draw(self._strategies.integers(low, high))

    def one_of(self, things: Sequence[Any]) -> Any:
        return self._draw(self._strategies.sampled_from(list(things)))

    def octets(self, count: int) -> bytes:
        return self._draw(self._strategies.binary(min_size=count, max_size=count))


def layout(encoding: str, width: int, height: int) -> tuple[int, int]:
    """Bytes of a row without padding, and rows."""
    if encoding in SIMPLE:
        size, channels, _ = SIMPLE[encoding]
        return width * size * channels, height
    if encoding in PACKED:
        return 2 * width, height
    if encoding in PLANAR:
        return width, height + height // 2
    if encoding in BAYER:
        return width * BAYER[encoding][1], height
    return width * DEPTH.get(encoding, 1), height


def image(choices: Choices, encodings: Sequence[str] = (*ENCODINGS, *ENCODINGS, *JUNK)) -> SimpleNamespace:
    """Fields of an Image: about half of them right."""
    odd = choices.integer(0, 9)  # what is wrong with it
    encoding = choices.one_of(encodings)
    width, height = choices.integer(1, 9), choices.integer(1, 9)
    if odd >= 3 and encoding in (*PACKED, *PLANAR):
        width, height = 2 * width, 2 * height
    if odd == 0:
        width = choices.one_of((0, 1, 2**31, 2**32 - 1, width))
        height = choices.one_of((0, 1, 2**31, 2**32 - 1, height))
    row, rows = layout(encoding, width, height)
    step = row + choices.one_of((0, 0, 1, 2, 3, 5, 8))
    if odd == 1:
        step = choices.one_of((0, row - 1, row // 2, 2**32 - 1, choices.integer(0, 40)))
    step = min(max(step, 0), 2**32 - 1)
    needed = step * rows if step * rows < 10_000 else choices.integer(0, 100)
    if odd == 2:
        needed = max(0, needed - choices.one_of((1, row, step, needed)))
    elif odd == 3:
        needed = max(0, needed - (step - row))  # the last row without its padding
    elif odd == 4:
        needed += choices.integer(0, 20)
    return SimpleNamespace(
        height=height, width=width, encoding=encoding, step=step, is_bigendian=choices.one_of((0, 0, 1, 255)),
        data=choices.octets(needed),
    )  # fmt: skip


def as_message(fields: SimpleNamespace, choices: Choices, kind: type | None) -> Any:
    """In rclpy's class, or in one like rosbags'."""
    if kind is not None and choices.integer(0, 1):
        return kind(**{**vars(fields), "data": array.array("B", fields.data)})
    wrap = choices.one_of((bytes, bytearray, memoryview, lambda b: np.frombuffer(b, np.uint8)))
    return SimpleNamespace(**{**vars(fields), "data": wrap(fields.data)})


def slow_decode(m: Any) -> np.ndarray | None:
    """(H, W, 3) float, NaN where the encoding leaves the value to the decoder; None if the message must be refused."""
    data, (row, rows) = bytes(m.data), layout(m.encoding, m.width, m.height)
    if (
        m.encoding not in ENCODINGS
        or m.width < 1
        or m.height < 1
        or m.step < row
        or len(data) < m.step * (rows - 1) + row
    ):
        return None
    if m.encoding in (*PACKED, *PLANAR) and (m.width % 2 or (m.encoding in PLANAR and m.height % 2)):
        return None
    if m.encoding in BAYER and min(m.width, m.height) < 3:
        return None

    def number(at: int, size: int) -> float:
        value = int.from_bytes(data[at : at + size], "big" if m.is_bigendian else "little")
        return value if size == 1 else round(value * 255 / 65535)

    out = np.full((m.height, m.width, 3), np.nan)
    for v in range(m.height):
        for u in range(m.width):
            start = v * m.step
            if m.encoding in SIMPLE:
                size, channels, at = SIMPLE[m.encoding]
                out[v, u] = [number(start + (u * channels + c) * size, size) for c in at]
            elif m.encoding in PACKED:
                quad, order = data[start + u // 2 * 4 :][:4], PACKED[m.encoding]
                y = quad[[i for i, c in enumerate(order) if c == "y"][u % 2]]
                out[v, u] = _rgb_of(y, quad[order.index("u")], quad[order.index("v")])
            elif m.encoding in PLANAR:
                pair, order = data[(m.height + v // 2) * m.step + u // 2 * 2 :][:2], PLANAR[m.encoding]
                out[v, u] = _rgb_of(data[start + u], pair[order.index("u")], pair[order.index("v")])
            elif 0 < u < m.width - 1 and 0 < v < m.height - 1:  # the border is copied from inside
                pattern, size = BAYER[m.encoding]
                out[v, u, "rgb".index(pattern[v % 2 * 2 + u % 2])] = number(start + u * size, size)
    return out


def _rgb_of(y: int, u: int, v: int) -> tuple[float, ...]:
    """BT.601, video range."""
    luma = 255 / 219 * (max(y, 16) - 16)
    rgb = luma + 1.596 * (v - 128), luma - 0.813 * (v - 128) - 0.391 * (u - 128), luma + 2.018 * (u - 128)
    return tuple(min(max(c, 0.0), 255.0) for c in rgb)


def agrees(got: np.ndarray, want: np.ndarray, encoding: str) -> bool:
    if got.dtype != np.uint8 or got.shape != want.shape:
        return False
    off = np.abs(got - want)
    return not np.nanmax(off, initial=0) > (YUV_TOLERANCE if encoding in (*PACKED, *PLANAR) else 0)


def slow_depth(m: Any) -> np.ndarray | None:
    """(H, W) metres, as decode_depth has them; None if the message must be refused."""
    data, (row, _) = bytes(m.data), layout(m.encoding, m.width, m.height)
    if (
        m.encoding not in DEPTH
        or m.width < 1
        or m.height < 1
        or m.step < row
        or len(data) < m.step * (m.height - 1) + row
    ):
        return None
    kind = (">" if m.is_bigendian else "<") + ("u2" if m.encoding == "16UC1" else "f4")
    out = np.empty((m.height, m.width), np.float32)
    for v in range(m.height):
        line = np.frombuffer(data[v * m.step :][:row], kind).astype(np.float32)
        for u, value in enumerate(line):
            known = np.isfinite(value) and value > 0
            out[v, u] = value * np.float32(1e-3 if m.encoding == "16UC1" else 1) if known else np.nan
    return out


@functools.cache
def pictures() -> list[tuple[str, bytes, np.ndarray]]:
    """(png or jpeg, file, (H, W, 3) uint8 as it must be decoded)."""
    rng, out = np.random.default_rng(3), []
    smooth = (np.add.outer(np.arange(24), np.arange(32))[..., None] * np.array([4, 3, 2])).astype(np.uint8)
    noise = rng.integers(0, 256, (9, 13, 3), np.uint8)
    for rgb in (smooth, noise):
        gray = rgb[..., 0]
        for mode in ("RGB", "RGBA", "L", "P", "1", "I;16"):
            if mode == "I;16":
                picture = Pillow.fromarray(gray.astype(np.uint16) * 257)
                want = np.repeat(gray[..., None], 3, axis=2)
            else:
                picture = Pillow.fromarray(rgb).convert(mode)
                want = np.asarray(picture.convert("RGB"))
            out.append(("png", _file(picture, "PNG"), want))
        for mode, options in (("RGB", {}), ("RGB", {"progressive": True}), ("L", {}), ("CMYK", {})):
            file = _file(Pillow.fromarray(rgb).convert(mode), "JPEG", **options)
            with Pillow.open(io.BytesIO(file)) as picture:
                out.append(("jpeg", file, np.asarray(picture.convert("RGB"))))
    return out


def _file(picture: Any, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def compressed(choices: Choices) -> tuple[SimpleNamespace, np.ndarray | None, bool]:
    """Fields of a CompressedImage, the picture that was in it, and whether its bytes are those of the file."""
    kind, file, want = choices.one_of(pictures())
    data = bytearray(file)
    how = choices.integer(0, 7)
    if how == 1:
        del data[choices.integer(0, len(data)) :]
    elif how == 2:
        data = bytearray(choices.octets(choices.integer(0, 60)))
    elif how == 3:
        at = choices.integer(0, len(data))
        data[at:at] = choices.octets(choices.integer(1, 8))
    elif how == 4:
        at = choices.integer(0, len(data) - 1)
        del data[at : at + choices.integer(1, 8)]
    elif how > 4:
        for _ in range(choices.integer(1, 4)):
            data[choices.integer(0, len(data) - 1)] = choices.octets(1)[0]
    name = choices.one_of((kind, kind, "rgb8; jpeg compressed bgr8", "", "jpg", "png; x", "16UC1; compressedDepth png"))
    message = SimpleNamespace(format=name, data=bytes(data))
    return message, None if "compressedDepth" in name else want, bytes(data) == file


_NUMBERS = (
    0.0,
    -0.0,
    1.0,
    0.5,
    20.0,
    50.0,
    -50.0,
    1e-300,
    1e300,
    -1e9,
    0.1,
    -0.3,
    float("nan"),
    float("inf"),
    float("-inf"),
)


def camera_info(choices: Choices) -> SimpleNamespace:
    """Fields of a CameraInfo, many of them nonsense."""

    def numbers(count: int, right: Sequence[float]) -> list[float]:
        values = [*right, *(0.0,) * count][:count]
        for _ in range(choices.one_of((0, 0, 1, 2, count))):
            if count:
                values[choices.integer(0, count - 1)] = choices.one_of(_NUMBERS)
        return values

    def size() -> int:
        return choices.one_of((24, 32, 48, 64, 0, 1, 2**32 - 1, choices.integer(0, 70)))

    roi = SimpleNamespace(
        x_offset=choices.one_of((0, 0, 8, 2**32 - 1)), y_offset=choices.one_of((0, 0, 3)),
        width=choices.one_of((0, 0, 32)), height=choices.one_of((0, 0, 24)), do_rectify=False,
    )  # fmt: skip
    return SimpleNamespace(
        width=choices.one_of((32, size())), height=choices.one_of((24, size())),
        distortion_model=choices.one_of(("plumb_bob", "rational_polynomial", "equidistant", "", "omni")),
        d=numbers(choices.one_of((0, 4, 5, 8, 12, 14, choices.integer(0, 20))), (-0.2, 0.05, 0.001, -0.001, 0.01)),
        k=numbers(9, (30.0, 0, 15.5, 0, 31.0, 11.5, 0, 0, 1)),
        p=numbers(12, (30.0, 0, 15.5, 0, 0, 31.0, 11.5, 0, 0, 0, 1, 0)),
        binning_x=choices.one_of((0, 0, 1, 2, 2**32 - 1)), binning_y=choices.one_of((0, 0, 1, 2)), roi=roi,
    )  # fmt: skip


def check_image(
    choices: Choices, decode: Any, kind: type | None = None, encodings: Sequence[str] | None = None
) -> bool:
    """Whether an Image was decoded, not refused. Raises AssertionError if wrongly, and whatever escapes but FrameError."""
    fields = image(choices) if encodings is None else image(choices, encodings)
    try:
        got = decode(as_message(fields, choices, kind))
    except FrameError as error:
        assert slow_decode(fields) is None, f"refused: {error}: {fields}"
        return False
    want = slow_decode(fields)
    assert want is not None, f"not refused: {fields}"
    assert agrees(got, want, fields.encoding), f"wrong: {fields}"
    return True


def check_depth(choices: Choices, decode: Any, kind: type | None = None) -> bool:
    """The same for a depth image."""
    fields = image(choices, (*DEPTH, *DEPTH, *DEPTH, "rgb8", ""))
    try:
        got = decode(as_message(fields, choices, kind))
    except FrameError as error:
        assert slow_depth(fields) is None, f"refused: {error}: {fields}"
        return False
    want = slow_depth(fields)
    assert want is not None and np.array_equal(got, want, equal_nan=True) and got.dtype == np.float32, (
        f"wrong: {fields}"
    )
    return True


def check_compressed(choices: Choices, decode: Any, kind: type | None = None) -> bool:
    """The same for a CompressedImage. A PNG carries checksums, so that a damaged one is refused or as it was."""
    fields, want, whole = compressed(choices)
    try:
        got = decode(as_message(fields, choices, kind))
    except FrameError as error:
        assert not whole or want is None, f"refused: {error}"
        return False
    assert want is not None and got.dtype == np.uint8 and got.ndim == 3 and got.shape[2] == 3, f"wrong: {fields}"
    if whole or fields.data.startswith(b"\x89PNG"):
        assert np.array_equal(got, want), f"wrong: {fields}"
    return True


def check_camera_info(choices: Choices) -> bool:
    """Whether a CameraInfo gave intrinsics. What it gives is finite, and the image keeps its size."""
    info = camera_info(choices)
    width, height = choices.one_of(((32, 24), (16, 12), (info.width, info.height), (choices.integer(1, 70), 20)))
    width, height = (min(max(side, 1), 70) for side in (width, height))
    mode, topic = choices.one_of(("auto", "on", "off")), choices.one_of(("image_raw", "image_rect/compressed"))
    rectification = Rectification(mode, topic)
    picture = np.full((height, width, 3), 255, np.uint8)
    got, intrinsics, remark = rectification.image(picture, info)
    assert got.shape == picture.shape and got.dtype == np.uint8 and got.min() == 255, f"wrong: {info}"
    depth, _ = rectification.depth(np.ones((height, width), np.float32), info, choices.one_of(("depth", "depth_rect")))
    assert depth.shape == (height, width) and depth.dtype == np.float32, f"wrong: {info}"
    assert set(np.unique(depth[~np.isnan(depth)])) <= {1.0}, f"wrong: {info}"
    if intrinsics is None:
        assert remark
        return False
    assert np.isfinite(intrinsics).all() and intrinsics[0, 0] > 0 and intrinsics[1, 1] > 0, f"wrong: {info}"
    return True
