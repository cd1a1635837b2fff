"""What CompressedImages hold: colours, mosaics, deep images and depth, each as it was before it was compressed."""

from __future__ import annotations

import io
import struct
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image as Pillow

from come_ros.camera import images
from come_ros.camera.compressed import parse_format
from come_ros.camera.levels import Levels
from come_ros.errors import FrameError

RNG = np.random.default_rng(0)
SMOOTH = cv2.GaussianBlur(RNG.integers(0, 256, (48, 64, 3), np.uint8), (0, 0), 3)
DEPTH = (1000 + 200 * np.add.outer(np.arange(24), np.arange(32) % 7)).astype(np.uint16)
DEPTH[3:5, 4:9] = 0


def message(data: bytes, form: str) -> SimpleNamespace:
    return SimpleNamespace(format=form, data=data)


def packed(a: np.ndarray, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    Pillow.fromarray(a).save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("jpeg", ("", "jpeg", "")),
        ("rgb8; jpeg compressed bgr8", ("rgb8", "jpeg", "compressed bgr8")),
        ("16UC1; png compressed ", ("16UC1", "png", "compressed")),
        ("16UC1; compressedDepth png", ("16UC1", "compresseddepth", "png")),
        ("32FC1;compressedDepth", ("32FC1", "compresseddepth", "")),
        ("", ("", "", "")), (";", ("", "", "")), ("H264", ("", "h264", "")),
    ],
)  # fmt: skip
def test_formats(text: str, want: tuple[str, str, str]) -> None:
    assert parse_format(text) == want


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_files_of_all_kinds(kind: str) -> None:
    np.testing.assert_array_equal(images.decode_image(message(packed(SMOOTH, kind), kind.lower())), SMOOTH)


@pytest.mark.parametrize(
    ("pattern", "code"),
    [("rggb", (0, 1, 1, 2)), ("bggr", (2, 1, 1, 0)), ("gbrg", (1, 2, 0, 1)), ("grbg", (1, 0, 2, 1))],
)
@pytest.mark.parametrize("bits", [8, 16])
def test_the_mosaic_of_a_bayer_camera_becomes_colours(pattern: str, code: tuple[int, ...], bits: int) -> None:
    mosaic = np.empty(SMOOTH.shape[:2], np.uint8)
    for k, channel in enumerate(code):
        mosaic[k // 2 :: 2, k % 2 :: 2] = SMOOTH[k // 2 :: 2, k % 2 :: 2, channel]
    file = packed(mosaic, "JPEG", quality=95) if bits == 8 else packed(mosaic.astype(np.uint16) * 257, "PNG")
    got = images.decode_image(message(file, f"bayer_{pattern}{bits}; {'jpeg' if bits == 8 else 'png'} compressed "))
    assert np.abs(got.astype(int) - SMOOTH)[2:-2, 2:-2].mean() < 4
    # a driver that demosaics before it compresses
    whole = images.decode_image(message(packed(SMOOTH, "PNG"), f"bayer_{pattern}8; png compressed bgr8"))
    np.testing.assert_array_equal(whole, SMOOTH)


def test_deep_images_are_mapped_by_the_range_of_their_stream() -> None:
    ten_bits = SMOOTH[..., 0].astype(np.uint16) * 4
    file = message(packed(ten_bits, "PNG"), "mono16; png compressed ")
    assert images.decode_image(file).max() < 5, "by all of 16 bits it is black"
    assert np.abs(images.decode_image(file, Levels()).astype(int) - SMOOTH[..., :1]).max() <= 1
    deep = SMOOTH.astype(np.uint16) * 16
    colours = bytes(cv2.imencode(".png", deep[..., ::-1])[1])
    assert (
        np.abs(images.decode_image(message(colours, "rgb16; png compressed "), Levels()).astype(int) - SMOOTH).max()
        <= 1
    )


def rvl(depth: np.ndarray) -> bytes:
    """An encoder of its own, pixel by pixel, after the paper."""
    nibbles: list[int] = []

    def put(value: int) -> None:
        while True:
            group, value = value & 7, value >> 3
            nibbles.append(group | (8 if value else 0))
            if not value:
                return

    values, at, last = depth.reshape(-1).astype(int).tolist(), 0, 0
    while at < len(values):
        zeros = 0
        while at + zeros < len(values) and values[at + zeros] == 0:
            zeros += 1
        at += zeros
        run = 0
        while at + run < len(values) and values[at + run] != 0:
            run += 1
        put(zeros)
        put(run)
        for value in values[at : at + run]:
            step = value - last
            put((step << 1) ^ (step >> 31))
            last = value
        at += run
    nibbles += [0] * (-len(nibbles) % 8)
    words = [sum(n << (28 - 4 * k) for k, n in enumerate(nibbles[i : i + 8])) for i in range(0, len(nibbles), 8)]
    return struct.pack("<II", depth.shape[1], depth.shape[0]) + struct.pack(f"<{len(words)}I", *words)


@pytest.mark.parametrize("codec", ["png", "rvl", "compressed png"])
def test_depth_comes_back_whole(codec: str) -> None:
    header = struct.pack("<iff", 0, 0.0, 0.0)
    data = {"png": header + packed(DEPTH, "PNG"), "rvl": header + rvl(DEPTH), "compressed png": packed(DEPTH, "PNG")}[
        codec
    ]
    form = "16UC1; png compressed " if codec == "compressed png" else f"16UC1; compressedDepth {codec}"
    whole = message(data, form)
    assert images.is_depth(whole)
    got = images.decode_depth(whole)
    np.testing.assert_allclose(got[DEPTH > 0], DEPTH[DEPTH > 0] / 1000, rtol=1e-6)
    assert np.isnan(got[DEPTH == 0]).all()
    with pytest.raises(FrameError, match="is depth, not colour"):
        images.decode_image(whole)
    for damaged in (data[: len(data) // 2], data[:14], b""):
        with pytest.raises(FrameError, match="cannot be read"):
            images.decode_depth(message(damaged, form))


def test_depth_in_floats_is_inverse_and_quantised() -> None:
    metres = np.linspace(0.5, 8, 24 * 32).reshape(24, 32).astype(np.float32)
    a, b = 100.0 * 101, 1 - 100.0 * 101 / 10  # image_transport's, for 10 m and 100
    quantised = np.rint(a / metres + b).astype(np.uint16)
    quantised[0, :3] = 0
    data = struct.pack("<iff", 0, a, b) + packed(quantised, "PNG")
    got = images.decode_depth(message(data, "32FC1; compressedDepth png"))
    np.testing.assert_allclose(got[1:], metres[1:], rtol=2e-3)
    assert np.isnan(got[0, :3]).all()


def test_an_error_tells_no_addresses_of_objects() -> None:
    with pytest.raises(FrameError) as caught:
        images.decode_image(message(b"nonsense", "jpeg"))
    assert "0x" not in str(caught.value) and "cannot be read" in str(caught.value)


@pytest.mark.parametrize("form", ["h264", "H265", "vp9; x", "zstd", "rgb8; zstd"])
def test_video_and_packed_pixels_are_named(form: str) -> None:
    if form == "vp9; x":
        form = "vp9"
    with pytest.raises(FrameError, match="cannot be decoded here: record or publish the topic as raw or jpeg"):
        images.decode_image(message(b"1234", form))
