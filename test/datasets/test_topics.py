"""Which topics of a bag are read: copies under other transports, depth that belongs to the images, and what is damaged in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="rosbags is not installed: pip install '.[tools]'")

import recordings
from recordings import (
    DEPTHS,
    HEIGHT,
    IMAGES,
    INFOS,
    TRUTH,
    WIDTH,
    camera_info,
    compressed,
    image,
    packed,
    picture,
    write,
)

from come_ros.camera.rectify import Lens
from come_ros.camera.transports import base_topic, transport_of
from come_ros.datasets.registered_depth import View, choose_depth, why_not
from come_ros.datasets.rosbag import Bag
from come_ros.errors import DatasetError

COLOUR, ALIGNED = "/camera/color", "/camera/aligned_depth_to_color"
COUNT = 6


def depth_mm(i: int) -> np.ndarray:
    return np.full((HEIGHT, WIDTH), 2000 + 10 * i, np.uint16)


def parts(i: int) -> dict[str, tuple[str, Any]]:
    """What `ros2 bag record -a` takes from an RGB-D camera with the plug-ins of image_transport."""
    depth = depth_mm(i)
    return {
        "raw": (f"{COLOUR}/image_raw", image(picture(i), i)),
        "jpeg": (f"{COLOUR}/image_raw/compressed", compressed(packed(picture(i), "JPEG"), i, "rgb8; jpeg compressed bgr8")),
        "zstd": (f"{COLOUR}/image_raw/zstd", compressed(b"\x28\xb5\x2f\xfd1234", i, "zstd")),
        "depth": (f"{ALIGNED}/image_raw", image(depth, i, "16UC1")),
        "depth png": (f"{ALIGNED}/image_raw/compressed", compressed(packed(depth), i, "16UC1; png compressed ")),
        "depth cd": (
            f"{ALIGNED}/image_raw/compressedDepth", compressed(recordings.compressed_depth(depth), i, "16UC1; compressedDepth png"),
        ),
        "own depth": ("/camera/depth/image_rect_raw", image(depth, i, "16UC1", "camera_depth_optical_frame")),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("names", "topic", "depth"),
    [
        (("raw", "depth"), "raw", "depth"),
        (("jpeg", "depth png"), "jpeg", "depth png"),
        (("jpeg", "depth cd"), "jpeg", "depth cd"),
        (("raw", "depth", "depth cd", "depth png"), "raw", "depth"),
        (("raw", "depth", "own depth"), "raw", "depth"),
        (("raw", "own depth"), "raw", None),
        (("raw", "jpeg", "zstd"), "raw", None),
        (("raw", "jpeg", "zstd", "depth", "depth png", "depth cd", "own depth"), "raw", "depth"),
    ],
)
def test_copies_are_one_camera_and_depth_is_depth(
    tmp_path: Path, names: tuple[str, ...], topic: str, depth: str | None
) -> None:
    def messages(i: int) -> list[tuple[str, Any]]:
        return [(f"{COLOUR}/camera_info", camera_info(i)), *(parts(i)[name] for name in names)]

    with Bag(write(tmp_path / "bag", COUNT, messages=messages)) as bag:
        assert bag.topic == parts(0)[topic][0] and bag.camera_info_topic == f"{COLOUR}/camera_info"
        assert bag.depth_topic == ("" if depth is None else parts(0)[depth][0])
        frames = list(bag.iter_frames())
        assert len(frames) == COUNT and np.abs(frames[2].image.astype(int) - picture(2)).mean() < 3
        for i, (_, metres) in enumerate(bag.iter_depth()):
            np.testing.assert_allclose(metres, depth_mm(i) / 1000, rtol=1e-6)
    with Bag(tmp_path / "bag", depth="none") as bag:
        assert bag.depth_topic == "" and not list(bag.iter_depth())


def test_the_fuller_copy_is_read_and_another_can_be_chosen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def messages(i: int) -> list[tuple[str, Any]]:
        return [parts(i)["jpeg"], *([parts(i)["raw"]] if i % 10 == 0 else [])]

    path = write(tmp_path / "bag", 30, messages=messages)
    with Bag(path) as bag:
        assert bag.topic == f"{COLOUR}/image_raw/compressed" and len(list(bag.iter_frames())) == 30
    assert "is read instead of a raw copy with fewer messages: /camera/color/image_raw (3)" in caplog.text
    with Bag(path, f"{COLOUR}/image_raw") as bag:
        assert len(list(bag.iter_frames())) == 3


def test_a_raw_name_stands_for_its_copies(tmp_path: Path) -> None:
    path = write(tmp_path / "bag", 3, messages=lambda i: [parts(i)["jpeg"]])
    with Bag(path, f"{COLOUR}/image_raw") as bag:
        assert bag.topic.endswith("/compressed")


def test_what_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    path = write(tmp_path / "bag", 3, messages=lambda i: [parts(i)["zstd"]])
    with pytest.raises(
        DatasetError, match=r"no colour images that can be read \(the images on .*/zstd cannot be read: its pixels"
    ):
        Bag(path)
    video = write(tmp_path / "video", 3, messages=lambda i: [(IMAGES, compressed(b"\0\0\0\1\x67", i, "h264"))])
    with pytest.raises(DatasetError, match=r"format 'h264' is video"):
        Bag(video)


@pytest.mark.parametrize(
    ("topic", "kind", "base", "transport"),
    [
        ("/a/image_raw", recordings.IMAGE, "/a/image_raw", "raw"),
        ("/a/image_raw/compressed", "sensor_msgs/msg/CompressedImage", "/a/image_raw", "compressed"),
        ("/a/rgb", "sensor_msgs/msg/CompressedImage", "/a/rgb", "compressed"),
        ("/a/image/theora", "theora_image_transport/msg/Packet", "/a/image", "theora"),
        ("/a/image/ffmpeg", "ffmpeg_image_transport_msgs/msg/FFMPEGPacket", "/a/image", "ffmpeg"),
        ("/a/video", "foxglove_msgs/msg/CompressedVideo", "/a/video", "foxglove"),
        ("/compressed", recordings.IMAGE, "/compressed", "raw"),
        ("/a/points", "sensor_msgs/msg/PointCloud2", "/a/points", None),
    ],
)
def test_transports(topic: str, kind: str, base: str, transport: str | None) -> None:
    found = transport_of(topic, kind)
    assert base_topic(topic) == base and (found and found.suffix) == transport


# Depth


LENS = Lens(640, 480, 535, 535, 320, 240)
OTHER_LENS = Lens(848, 480, 332, 332, 424, 240)
COLOUR_VIEW = View(f"{COLOUR}/image_raw", "color_frame", 640, 480, 30, LENS)
WALL = np.full((480, 640), 2.35, np.float32)
MADE_UP = np.arange(480 * 640, dtype=np.float32).reshape(480, 640)


def seen(
    topic: str,
    frame: str = "color_frame",
    size: tuple[int, int] = (640, 480),
    lens: Lens | None = None,
    sample: Any = WALL,
) -> View:
    return View(topic, frame, *size, 30, lens, sample)


@pytest.mark.parametrize(
    ("view", "why"),
    [
        (seen("/camera/aligned_depth_to_color/image_raw"), ""),
        (seen("/camera/depth_registered/image_rect", lens=LENS), ""),
        (seen("/camera/depth/image", size=(320, 240), lens=Lens(320, 240, 267, 267, 160, 120)), ""),
        (seen("/oak/stereo/image_raw", lens=LENS), ""),  # no word of depth, but the same lens
        (seen("/camera/depth_registered/image", "depth_frame", lens=LENS), ""),
        (
            seen("/camera/depth/image_rect_raw", "depth_frame"),
            "it is seen from depth_frame, the images from color_frame",
        ),
        (seen("/camera/depth/image_rect_raw", size=(848, 480), lens=OTHER_LENS), "it has 848x480 px"),
        (seen("/camera/depth/image", lens=Lens(640, 480, 332, 332, 320, 240)), "describes another lens"),
        (seen("/camera/confidence/confidence_map"), "its name says confidence"),
        (seen("/camera/depth/confidence"), "its name says confidence"),
        (seen("/thermal/image_raw"), "its name says thermal"),
        (seen("/lwir/depth_like"), "its name says lwir"),
        (seen("/camera/infra1/image", sample=WALL), "its name says infra"),
        (seen("/stereo/disparity"), "its name says disparity"),
        (seen("/camera/something"), "neither its name nor a camera_info shows that it is depth"),
        (seen("/camera/depth", sample=WALL * 1000), "not plausible distances: their median would be 2.35e+03 m"),
        (seen("/camera/depth", sample=WALL / 100), "their median would be 0.0235 m"),
        (seen("/camera/depth", sample=MADE_UP % 100 + 1), "whole numbers of metres"),
        (seen("/camera/depth", sample=np.full((480, 640), np.nan, np.float32)), ""),
    ],
)
def test_depth_must_belong_to_the_images(view: View, why: str) -> None:
    found = why_not(COLOUR_VIEW, view)
    assert why in found if why else found == ""


def test_the_closest_depth_wins_and_two_that_are_as_close_are_asked_about() -> None:
    registered = seen("/camera/aligned_depth_to_color/image_raw")
    small = seen("/camera/depth/small", size=(320, 240))
    full = seen("/camera/depth/full")
    assert choose_depth(COLOUR_VIEW, [small, registered, full]).topic == registered.topic
    assert choose_depth(COLOUR_VIEW, [small, full]).topic == full.topic
    choice = choose_depth(COLOUR_VIEW, [full, seen("/camera/depth/other")])
    assert choice.topic == "" and "choose one with --depth-topic" in choice.remarks[-1]
    assert choose_depth(COLOUR_VIEW, []).topic == ""


def test_another_depth_can_be_chosen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def messages(i: int) -> list[tuple[str, Any]]:
        return [parts(i)["raw"], parts(i)["depth"], parts(i)["own depth"]]

    path = write(tmp_path / "bag", 3, messages=messages)
    with Bag(path, depth="/camera/depth/image_rect_raw") as bag:
        assert len(list(bag.iter_depth())) == 3
    assert "was chosen as depth, but it is seen from camera_depth_optical_frame" in caplog.text
    for wrong in ("/camera/nothing", f"{COLOUR}/image_raw"):
        with pytest.raises(DatasetError, match=r"has no depth on .*; it has .*aligned_depth_to_color/image_raw"):
            Bag(path, depth=wrong)


def test_a_thermal_camera_can_be_chosen_as_the_image(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def messages(i: int) -> list[tuple[str, Any]]:
        warm = 7200 + 4 * picture(i)[..., 0].astype(np.uint16)
        return [("/thermal/image_raw", image(warm, i, "16UC1")), parts(i)["raw"]]

    with Bag(write(tmp_path / "bag", 3, messages=messages), "/thermal/image_raw") as bag:
        (first, *_) = bag.iter_frames()
    assert "used as an image, because it was chosen" in caplog.text
    assert first.image.min() < 60 and first.image.max() > 200, "its narrow range is stretched"


# Damaged messages


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


DAMAGE = {
    "cut": cut,
    "empty": lambda data: b"",
    "head": lambda data: data[:4],
    "latin-1": lambda data: data.replace(b"camera_optical_frame", b"kamera_f\xfcr_alles_hie"),
    "long string": lambda data: data[:12] + b"\xff\xff\xff\x7f" + data[16:],
    "other encapsulation": lambda data: b"\x00\x09" + data[2:],
    "noise": lambda data: bytes(np.random.default_rng(0).integers(0, 256, len(data), np.uint8)),
}


@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize("topic", [IMAGES, INFOS, DEPTHS, TRUTH])
@pytest.mark.parametrize("how", DAMAGE)
def test_one_damaged_message_costs_itself_only(
    tmp_path: Path, how: str, topic: str, at: int, caplog: pytest.LogCaptureFixture
) -> None:
    if how == "latin-1" and topic == TRUTH:
        how = "cut"  # its frame has another name
    with Bag(write(tmp_path / "bag", COUNT, damage=(topic, at, DAMAGE[how]))) as bag:
        frames, depth, truth = list(bag.iter_frames()), list(bag.iter_depth()), bag.truth()
        raw = list(bag.iter_raw(IMAGES, INFOS))
        assert (bag.topic, bag.depth_topic, bag.truth_topic) == (IMAGES, DEPTHS, TRUTH)
        assert len(frames) == COUNT - (topic == IMAGES) and bag.unreadable == (topic == IMAGES)
        assert len(depth) == COUNT - (topic == DEPTHS) and len(truth) == COUNT - (topic == TRUTH)
        assert len(raw) == 2 * COUNT - (topic in (IMAGES, INFOS))
        assert all(f.intrinsics is not None for f in frames)
    assert "left out" in caplog.text and topic in caplog.text


def changed(**values: Any) -> Any:
    """Damage of an Image that is read, but is no image."""

    def change(data: bytes) -> bytes:
        store = recordings.store()
        message = store.deserialize_cdr(data, recordings.IMAGE)
        for name, value in values.items():
            setattr(message, name, value)
        return bytes(store.serialize_cdr(message, recordings.IMAGE))

    return change


NO_IMAGE = {
    "no pixels": changed(height=0, width=0, step=0, data=np.zeros(0, np.uint8)),
    "unknown encoding": changed(encoding="rgb9"),
    "step too small": changed(step=3),
    "too large": changed(width=2**31, height=2**31),
}


@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize("topic", [IMAGES, DEPTHS])
@pytest.mark.parametrize("how", NO_IMAGE)
def test_a_message_that_is_no_image_costs_itself_only(tmp_path: Path, how: str, topic: str, at: int) -> None:
    with Bag(write(tmp_path / "bag", COUNT, damage=(topic, at, NO_IMAGE[how]))) as bag:
        frames, depth = list(bag.iter_frames()), list(bag.iter_depth())
        assert (bag.topic, bag.depth_topic) == (IMAGES, DEPTHS)
        assert len(frames) == COUNT - (topic == IMAGES) and len(depth) == COUNT - (topic == DEPTHS)


def test_nothing_but_messages_that_are_no_image(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=f"no image of {IMAGES} can be decoded: a rgb8 image of"):
        Bag(write(tmp_path / "bag", 1, damage=(IMAGES, 0, NO_IMAGE["step too small"])))


def test_a_frame_id_that_is_no_unicode_in_all_messages_is_read(tmp_path: Path) -> None:
    from rosbags.rosbag2 import Writer

    store, kind = recordings.store(), recordings.IMAGE
    with Writer(tmp_path / "bag", version=9) as writer:
        connection = writer.add_connection(IMAGES, kind, typestore=store)
        for i in range(COUNT):
            data = bytes(store.serialize_cdr(image(picture(i), i, frame="kamera_fuer"), kind)).replace(
                b"fuer", b"f\xfc\xe4r"
            )
            writer.write(connection, recordings.START_NS + i, data)
    with Bag(tmp_path / "bag") as bag:
        frames = list(bag.iter_frames())
    assert [f.camera for f in frames] == ["kamera_f__r"] * COUNT


def test_nothing_but_damaged_messages(tmp_path: Path) -> None:
    import recordings as made

    path = made.write(tmp_path / "bag", 1, damage=(IMAGES, 0, cut))
    with pytest.raises(DatasetError, match=r"no colour images that can be read .*no message of it can be read"):
        Bag(path)
