"""Messages, byte for byte: by numpy alone, and by cv_bridge and sensor_msgs_py (doubles of them where they are not installed)."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fuzz
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CompressedImage, Image, PointCloud2

from come_ros.camera import images
from come_ros.errors import FrameError
from come_ros.outputs.cloud import POINT_DTYPE
from come_ros.ros import converters, messages

RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
HEAD = messages.header(1_700_000_000_123_456_789, "cam")


DOUBLES = str(Path(__file__).parent / "doubles")
PACKAGES = ("cv_bridge", "sensor_msgs_py")


@functools.cache
def packages() -> converters.Converters:
    """What is chosen where cv_bridge and sensor_msgs_py are there."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    with pytest.MonkeyPatch.context() as patch:
        if missing:
            patch.syspath_prepend(DOUBLES)
        return converters.choose()


@pytest.fixture(scope="module", params=["numpy", "packages"], autouse=True)
def way(request) -> Iterator[str]:
    made = converters.Converters() if request.param == "numpy" else packages()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(messages, "converters", lambda: made)
        yield request.param


def image(encoding: str, data: np.ndarray, height=6, width=8, pad=0, big=False, step=None) -> Image:
    rows = data.reshape(-1, data.size // (height + height // 2 if encoding == "nv12" else height) * 1)
    raw = rows.view(np.uint8) if rows.dtype != np.uint8 else rows
    raw = np.pad(raw, ((0, 0), (0, pad)), constant_values=173)
    message = Image(height=height, width=width, encoding=encoding, is_bigendian=int(big), step=step or raw.shape[1])
    message.data = messages.payload(raw)
    return message


@pytest.mark.parametrize("pad", [0, 5])
def test_colour_encodings_and_padded_rows(pad):
    alpha = np.full((6, 8, 1), 9, np.uint8)
    for encoding, data, want in (
        ("rgb8", RGB, RGB),
        ("bgr8", RGB[..., ::-1], RGB),
        ("8UC3", RGB[..., ::-1], RGB),
        ("rgba8", np.concatenate([RGB, alpha], 2), RGB),
        ("bgra8", np.concatenate([RGB[..., ::-1], alpha], 2), RGB),
        ("mono8", RGB[..., 0], np.repeat(RGB[..., :1], 3, 2)),
    ):
        got = messages.decode_image(image(encoding, np.ascontiguousarray(data), pad=pad))
        np.testing.assert_array_equal(got, want, err_msg=encoding)


@pytest.mark.parametrize("big", [False, True])
def test_mono16_of_both_byte_orders_is_scaled_to_8_bits(big):
    values = np.arange(48, dtype=np.uint32).reshape(6, 8) * 1394
    message = image("mono16", values.astype(">u2" if big else "<u2"), big=big)
    np.testing.assert_array_equal(messages.decode_image(message)[..., 1], np.rint(values / 257))


def test_bayer_and_yuv_keep_a_plain_colour():
    colour = np.array([200, 100, 40], np.uint8)
    for pattern in ("rggb", "bggr", "gbrg", "grbg"):
        tile = np.array([colour["rgb".index(c)] for c in pattern], np.uint8).reshape(2, 2)
        got = messages.decode_image(image(f"bayer_{pattern}8", np.tile(tile, (3, 4))))
        np.testing.assert_allclose(got[2:4, 2:6], np.broadcast_to(colour, (2, 4, 3)), atol=1)
    # BT.601: r = 1.164 (y - 16) + 1.596 (v - 128), and so on
    y, u, v = 126, 86, 175
    want = np.array([203, 106, 43])
    for encoding, quad in (("yuv422", (u, y, v, y)), ("uyvy", (u, y, v, y)), ("yuyv", (y, u, y, v))):
        got = messages.decode_image(image(encoding, np.tile(np.array(quad, np.uint8), (6, 4))))
        np.testing.assert_allclose(got, np.broadcast_to(want, (6, 8, 3)), atol=2, err_msg=encoding)
    planes = np.concatenate([np.full((6, 8), y, np.uint8), np.tile(np.array([u, v], np.uint8), (3, 4))])
    np.testing.assert_allclose(messages.decode_image(image("nv12", planes)), np.broadcast_to(want, (6, 8, 3)), atol=2)


def test_jpeg_and_png():
    import cv2

    png = CompressedImage(format="png", data=messages.payload(cv2.imencode(".png", RGB[..., ::-1])[1]))
    np.testing.assert_array_equal(messages.decode_image(png), RGB)
    smooth = np.tile(np.arange(64, dtype=np.uint8)[:, None, None] * 3, (1, 64, 3))
    jpeg = CompressedImage(format="rgb8; jpeg compressed bgr8", data=messages.payload(cv2.imencode(".jpg", smooth)[1]))
    assert np.abs(messages.decode_image(jpeg).astype(int) - smooth).mean() < 2
    with pytest.raises(FrameError, match="cannot be read"):
        messages.decode_image(CompressedImage(format="jpeg", data=jpeg.data[: len(jpeg.data) // 2]))


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (image("rgb8", RGB, step=10), "needs rows of 24"),
        (Image(height=6, width=8, encoding="rgb8", step=24, data=bytes(100)), "cut off"),
        (Image(height=0, width=8, encoding="rgb8", step=24), "0 px|8x0"),
        (Image(height=6, width=8, encoding="16UC1", step=16, data=bytes(96)), "depth image"),
        (Image(height=6, width=8, encoding="plaid", step=16, data=bytes(96)), "'plaid' cannot be read.*rgb8, bgr8"),
        (Image(height=6, width=7, encoding="yuyv", step=14, data=bytes(84)), "not possible"),
        (CompressedImage(format="jpeg", data=b""), "cannot be read"),
        (CompressedImage(format="16UC1; compressedDepth", data=b"x"), "depth"),
    ],
)
def test_images_that_cannot_be_used_say_what_was_found(message, told):
    with pytest.raises(FrameError, match=told):
        messages.decode_image(message)


@pytest.mark.slow
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_every_image_is_decoded_rightly_or_refused(data):
    fuzz.check_image(fuzz.DrawnChoices(data), messages.decode_image, Image)


@pytest.mark.slow
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_every_depth_image_is_decoded_rightly_or_refused(data):
    fuzz.check_depth(fuzz.DrawnChoices(data), images.decode_depth, Image)


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
@pytest.mark.slow
def test_every_compressed_image_is_decoded_rightly_or_refused(data):
    fuzz.check_compressed(fuzz.DrawnChoices(data), messages.decode_image, CompressedImage)


@pytest.mark.parametrize("encoding", fuzz.ENCODINGS)
def test_each_encoding_with_padded_rows_and_both_byte_orders_is_that_of_a_slow_decoder(encoding):
    choices = fuzz.RandomChoices(7)
    assert sum(fuzz.check_image(choices, messages.decode_image, Image, [encoding]) for _ in range(60)) > 15


@given(st.integers(0, 2**31 * 10**9 - 1))
def test_stamps_are_exact(stamp):
    assert messages.stamp_ns(messages.header(stamp, "x").stamp) == stamp


def test_cloud_bytes_are_those_of_the_convention():
    points = np.zeros(2, POINT_DTYPE)
    points["x"], points["y"], points["z"], points["conf"] = [1, 4], [2, 5], [3, 6], [7, 8]
    points["rgb"] = np.array([0x00FF8001, 0x00010203], np.uint32).view(np.float32)
    message = deserialize_message(serialize_message(messages.point_cloud(points, HEAD)), PointCloud2)
    assert [(f.name, f.offset, f.datatype, f.count) for f in message.fields] == [
        ("x", 0, 7, 1), ("y", 4, 7, 1), ("z", 8, 7, 1), ("rgb", 12, 7, 1), ("conf", 16, 7, 1),
    ]  # fmt: skip
    assert (message.height, message.width, message.point_step, message.row_step) == (1, 2, 20, 40)
    assert message.is_dense and not message.is_bigendian
    raw = bytes(message.data)
    assert raw[:12] == np.array([1, 2, 3], "<f4").tobytes() and raw[12:16] == bytes([0x01, 0x80, 0xFF, 0])
    np.testing.assert_array_equal(messages.points_of(message), points)

    grid = messages.point_cloud(points.reshape(1, 2).repeat(3, 0), HEAD)
    assert (grid.height, grid.width, grid.row_step, grid.is_dense) == (3, 2, 40, False)
    empty = messages.point_cloud(points[:0], HEAD)
    assert (empty.height, empty.width, empty.row_step, len(empty.data)) == (1, 0, 0, 0)


def test_organised_padded_and_big_endian_clouds_are_read_and_left_as_they_were():
    points = np.arange(24, dtype="<f4").view([("x", "<f4"), ("conf", "<f4")]).reshape(3, 4)
    grid = messages.point_cloud(points, HEAD)
    np.testing.assert_array_equal(messages.points_of(grid), points)
    padded = messages.point_cloud(points, HEAD)
    rows = np.pad(points.view(np.uint8).reshape(3, -1), ((0, 0), (0, 6)))
    padded.data, padded.row_step = messages.payload(rows), rows.shape[1]
    np.testing.assert_array_equal(messages.points_of(padded), points)
    swapped = messages.point_cloud(points, HEAD)
    swapped.data, swapped.is_bigendian = messages.payload(points.view("<f4").astype(">f4")), True
    before = bytes(swapped.data)
    for _ in range(2):
        got = messages.points_of(swapped)
        for name in points.dtype.names:
            np.testing.assert_array_equal(got[name], points[name])
    assert bytes(swapped.data) == before
    grid.data = grid.data[:-1]
    with pytest.raises(FrameError, match=r"3 points of 8 bytes has 95 bytes.*96 bytes or more"):
        messages.points_of(grid)


def test_a_cloud_of_270000_points_is_built_within_15_ms():
    points = np.zeros(270_000, POINT_DTYPE)
    times = []
    for _ in range(10):
        start = time.process_time()
        messages.point_cloud(points, HEAD)
        times.append(time.process_time() - start)
    assert min(times) < 0.015


def test_the_packages_are_used_where_they_work(way):
    made = messages.converters()
    if way == "numpy":
        assert str(made) == "images by numpy, clouds by numpy"
        return
    assert str(made) == "images by cv_bridge, clouds by sensor_msgs_py" and made.remarks == ()
    calls = []

    class Bridge:
        def imgmsg_to_cv2(self, message, encoding):
            calls.append((message.encoding, encoding))
            raise RuntimeError("no memory")

    broken = converters.Converters(Bridge(), None)
    with pytest.raises(FrameError, match=r"cv_bridge cannot read a bgr8 image of 8x6 px \(RuntimeError: no memory\)"):
        broken.decode_image(image("bgr8", RGB))
    assert calls == [("bgr8", "rgb8")]
    np.testing.assert_array_equal(broken.decode_image(image("rgb8", RGB)), RGB)
    # what it would shear, or take for whole, never gets there
    np.testing.assert_array_equal(broken.decode_image(image("bgr8", RGB, pad=5)), RGB[..., ::-1])
    with pytest.raises(FrameError, match="cut off"):
        broken.decode_image(Image(height=6, width=8, encoding="bgr8", step=24, data=bytes(100)))
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("raise AttributeError('_ARRAY_API not found')", "_ARRAY_API not found"),
        ("import os; os.kill(os.getpid(), 11)", "exit code -11"),
        (
            "class CvBridge:\n    def imgmsg_to_cv2(self, m, e): return __import__('numpy').zeros((2, 2, 3), 'u1')",
            "incorrectly",
        ),
    ],
    ids=["raises", "segmentation fault", "wrong pixels"],
)
def test_a_broken_cv_bridge_is_not_used_and_said(code, told, tmp_path, monkeypatch):
    (tmp_path / "cv_bridge.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [n for n in sys.modules if n.partition(".")[0] == "cv_bridge"]:
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    if "kill" in code and np.lib.NumpyVersion(np.__version__) < "2.0.0":
        pytest.skip("only under NumPy 2 a module may have been built for another")
    made = converters.choose()
    assert made.bridge is None and "cv_bridge does not work here" in made.remarks[0] and told in made.remarks[0]
    assert str(made).startswith("images by numpy")
    sys.modules.pop("cv_bridge", None)


def test_depth_keeps_nan_and_infinity():
    depth = np.array([[1.5, np.nan], [np.inf, 0.25]], np.float32)
    message = messages.depth_message(depth, HEAD)
    assert (message.encoding, message.step, message.is_bigendian) == ("32FC1", 8, 0)
    np.testing.assert_array_equal(np.frombuffer(message.data, "<f4").reshape(2, 2), depth)


def test_odometry_is_finite_or_refused():
    one = np.ones(6)
    message = messages.odometry_message(np.eye(4), one, one, one, HEAD, "cam")
    assert message.pose.pose.orientation.w == 1 and message.pose.covariance[7] == 1
    with pytest.raises(ValueError, match="finite"):
        messages.odometry_message(np.eye(4), one * np.nan, one, one, HEAD, "cam")
