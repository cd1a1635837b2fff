"""Bags: what is written comes back bit for bit, both storages and ROS 1; what cannot be used is said in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from come_ros.camera.rectify import Lens, rectifier_of
from come_ros.datasets.bag_writer import BagWriter, write_tum
from come_ros.datasets.part import Part
from come_ros.datasets.rosbag import Bag
from come_ros.datasets.tum import TumSequence
from come_ros.errors import DatasetError
from come_ros.geometry import rotation_from_vector, transform
from come_ros.messages import serialized_stamp_ns
from come_ros.types import Frame

pytest.importorskip("rosbags", reason="rosbags is not installed: pip install '.[tools]'")

START_NS = 1_700_000_000_123_456_789
K = np.array([[60.0, 0, 31.5], [0, 61.0, 23.5], [0, 0, 1]])


def frames(count: int = 4, camera: str = "cam_optical_frame") -> list[Frame]:
    rng = np.random.default_rng(1)
    return [
        Frame(rng.integers(0, 256, (48, 64, 3), np.uint8), START_NS + i * 100_000_001, camera, K) for i in range(count)
    ]


def poses(count: int = 4) -> list[np.ndarray]:
    return [transform(rotation_from_vector([0.1 * i, 0.2, -0.3 * i]), [i, 0.5, -0.25 * i]) for i in range(count)]


def depths(count: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    out = rng.uniform(0.5, 5, (count, 48, 64)).astype(np.float32)
    out[:, :3] = np.nan
    return list(out)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_what_is_written_comes_back(tmp_path: Path, storage: str) -> None:
    with BagWriter(tmp_path / "bag", storage) as writer:
        for frame, depth, pose in zip(frames(), depths(), poses(), strict=True):
            writer.write(frame, depth, pose)
    file = next((tmp_path / "bag").glob("*.mcap" if storage == "mcap" else "*.db3"))
    for path in (tmp_path / "bag", file):
        with Bag(path) as bag:
            assert bag.topic == "/camera/image_raw" and bag.camera_info_topic == "/camera/camera_info"
            assert bag.depth_topic == "/camera/depth/image_raw" and bag.camera == "cam_optical_frame"
            assert len(bag) == 4
            for got, sent in zip(bag.iter_frames(), frames(), strict=True):
                assert got.stamp_ns == sent.stamp_ns and got.camera == sent.camera
                np.testing.assert_array_equal(got.image, sent.image)
                np.testing.assert_array_equal(got.intrinsics, K)
            stamps, read = zip(*bag.iter_depth(), strict=True)
            np.testing.assert_array_equal(np.stack(read), np.stack(depths()))
            truth = bag.truth()
            assert list(truth) == list(stamps) == [f.stamp_ns for f in frames()]
            np.testing.assert_allclose(np.stack(list(truth.values())), np.stack(poses()), atol=1e-12)


def test_rclpy_reads_the_raw_messages(tmp_path: Path) -> None:
    pytest.importorskip("rclpy", reason="rclpy is not installed")
    from rclpy.serialization import deserialize_message
    from sensor_msgs.msg import CameraInfo, Image

    with BagWriter(tmp_path / "bag") as writer:
        for frame in frames():
            writer.write(frame)
    kinds = {"/camera/image_raw": Image, "/camera/camera_info": CameraInfo}
    with Bag(tmp_path / "bag") as bag:
        raw = list(bag.iter_raw(*kinds))
    assert [topic for _, topic, _ in raw] == ["/camera/camera_info", "/camera/image_raw"] * 4
    for (when, topic, data), frame in zip(raw, np.repeat(np.array(frames(), object), 2), strict=True):
        message = deserialize_message(data, kinds[topic])
        assert message.header.stamp.sec * 10**9 + message.header.stamp.nanosec == when == frame.stamp_ns
        assert (message.width, message.height) == (64, 48)
        if topic.endswith("raw"):
            assert bytes(message.data) == frame.image.tobytes()


def test_raw_messages_of_a_part_are_those_of_its_images(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        for frame in frames(6):
            writer.write(frame)
    image, info = "/camera/image_raw", "/camera/camera_info"
    stamps = [frame.stamp_ns for frame in frames(6)]
    for part, taken in ((Part(start_s=0.25, duration_s=0.2), [3, 4]), (Part(every=2, most=2), [0, 2])):
        with Bag(tmp_path / "bag", part=part) as bag:
            raw = list(bag.iter_raw(image, info))
        of_images = [(when, serialized_stamp_ns(data)) for when, topic, data in raw if topic == image]
        assert of_images == [(stamps[i], stamps[i]) for i in taken]
        # each has its camera_info just before it, and what came before the part costs no time
        infos = [serialized_stamp_ns(data) for _, topic, data in raw if topic == info]
        assert set(infos) >= {stamps[i] for i in taken} and raw[0][0] == stamps[taken[0]]


def test_ros1_bags_are_read_and_become_ros2_messages(tmp_path: Path) -> None:
    from rosbags.rosbag1 import Writer
    from rosbags.typesys import Stores, get_typestore

    store, later = get_typestore(Stores.ROS1_NOETIC), get_typestore(Stores.ROS2_JAZZY)
    image, info = "sensor_msgs/msg/Image", "sensor_msgs/msg/CameraInfo"
    types, (frame, *_) = store.types, frames()
    sec, nanosec = divmod(START_NS, 10**9)
    head = types["std_msgs/msg/Header"](7, types["builtin_interfaces/msg/Time"](sec, nanosec), "cam_optical_frame")
    picture = types[image](head, 48, 64, "rgb8", 0, 192, frame.image.reshape(-1))
    roi = types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
    p = np.hstack([K, np.zeros((3, 1))]).reshape(-1)
    about = types[info](head, 48, 64, "plumb_bob", np.zeros(5), K.reshape(-1), np.eye(3).reshape(-1), p, 0, 0, roi)
    with Writer(tmp_path / "old.bag") as writer:
        for topic, message in (("/cam/camera_info", about), ("/cam/image_raw", picture)):
            connection = writer.add_connection(topic, message.__msgtype__, typestore=store)
            writer.write(connection, START_NS, store.serialize_ros1(message, message.__msgtype__))
    with Bag(tmp_path / "old.bag") as bag:
        (got,) = bag.iter_frames()
        np.testing.assert_array_equal(got.image, frame.image)
        np.testing.assert_array_equal(got.intrinsics, K)
        assert got.stamp_ns == START_NS and bag.topic == "/cam/image_raw"
        ((_, _, data),) = bag.iter_raw("/cam/image_raw")
    message = later.deserialize_cdr(data, image)
    assert message.header.stamp.nanosec == nanosec and bytes(message.data) == frame.image.tobytes()


def test_two_cameras_must_be_chosen_from(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        writer.write(frames()[0])
        writer._prefix = "/right"
        writer.write(frames()[0])
    with pytest.raises(DatasetError, match=r"2 image topics: choose one of /camera/image_raw, /right/image_raw"):
        Bag(tmp_path / "bag")
    with pytest.raises(DatasetError, match=r"no colour images on '/left'; it has /camera/image_raw, /right/image_raw"):
        Bag(tmp_path / "bag", "/left")
    with Bag(tmp_path / "bag", "/right/image_raw") as bag:
        assert bag.camera_info_topic == "/right/camera_info" and len(bag) == 1


def odometry(writer: BagWriter, frame: Frame) -> object:
    head = writer.messages.header(frame.stamp_ns, "world")
    return writer.messages.odometry(np.eye(4), np.zeros(6), np.zeros(6), np.zeros(6), head, frame.camera)


def test_what_is_no_bag_of_images_is_said(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="does not exist"):
        Bag(tmp_path / "nothing")
    (tmp_path / "text.mcap").write_bytes(b"no mcap at all")
    with pytest.raises(DatasetError, match="cannot be read as a bag"):
        Bag(tmp_path / "text.mcap")
    BagWriter(tmp_path / "empty").close()
    with pytest.raises(DatasetError, match="empty"):
        Bag(tmp_path / "empty")
    with BagWriter(tmp_path / "blind") as writer:
        writer.put("/ground_truth/odometry", odometry(writer, frames()[0]), START_NS)
    with pytest.raises(DatasetError, match=r"no colour images; it has /ground_truth/odometry"):
        Bag(tmp_path / "blind")
    with pytest.raises(DatasetError, match="exists"):
        BagWriter(tmp_path / "blind")


def test_a_damaged_image_is_left_out_and_counted(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        for i, frame in enumerate(frames()):
            message = writer.messages.image(frame.image, writer.messages.header(frame.stamp_ns, frame.camera))
            if i == 1:
                message.data = message.data[:100]
            writer.put("/camera/image_raw", message, frame.stamp_ns)
    with Bag(tmp_path / "bag") as bag:
        assert len(list(bag.iter_frames())) == 3
        assert bag.unreadable == 1


BENT = (-0.3, 0.1, 0.0, 0.0, 0.0)


def test_distortion_is_taken_out_of_images_and_depth_alike(tmp_path: Path) -> None:
    v, u = np.mgrid[:48, :64]
    stripes = np.repeat((120 + 100 * np.sin(u / 3) * np.cos(v / 4)).astype(np.uint8)[..., None], 3, axis=2)
    depth = (stripes[..., 0] / 50).astype(np.float32)  # tells which pixel it came from, as the image does
    with BagWriter(tmp_path / "bag") as writer:
        writer.write(Frame(stripes, START_NS, "cam", K), depth, distortion=BENT)
    with Bag(tmp_path / "bag", rectify="off") as bag:
        (raw,), ((_, same),) = bag.iter_frames(), bag.iter_depth()
        assert "set rectify to auto" in bag.remark
    np.testing.assert_array_equal(raw.image, stripes)
    np.testing.assert_array_equal(same, depth)
    with Bag(tmp_path / "bag") as bag:
        (frame,), ((_, bent),) = bag.iter_frames(), bag.iter_depth()
        assert bag.remark == ""
    want = rectifier_of(Lens(64, 48, 60, 61, 31.5, 23.5, "plumb_bob", BENT))
    np.testing.assert_array_equal(frame.image, want.image(stripes))
    np.testing.assert_array_equal(frame.intrinsics, want.intrinsics)
    assert not np.array_equal(frame.image, stripes)
    # the nearest pixel of the depth against the blend of four in the image
    assert np.median(np.abs(50 * bent - frame.image[..., 0])) < 6


def test_smaller_depth_of_the_same_shape_is_read_at_the_pixels_of_the_image(tmp_path: Path) -> None:
    depth = np.arange(24 * 32, dtype=np.float32).reshape(24, 32) / 100 + 1
    with BagWriter(tmp_path / "bag") as writer:
        frame = frames()[0]
        writer.write(frame, depth)
    with Bag(tmp_path / "bag") as bag:
        ((_, read),) = bag.iter_depth()
    np.testing.assert_array_equal(read, depth.repeat(2, axis=0).repeat(2, axis=1))


def test_zero_stamps_are_those_of_recording_and_frames_keep_their_names(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        for i, (frame, camera) in enumerate(zip(frames(3), ("cam", "/other", ""), strict=True)):
            message = writer.messages.image(
                frame.image, writer.messages.header(0 if i == 1 else frame.stamp_ns, camera)
            )
            writer.put("/camera/image_raw", message, frame.stamp_ns)
    with Bag(tmp_path / "bag") as bag:
        got = list(bag.iter_frames())
    assert [f.stamp_ns for f in got] == [f.stamp_ns for f in frames(3)]
    assert [f.camera for f in got] == ["cam", "other", "cam"] and {f.encoding for f in got} == {"rgb8"}


def test_a_distorted_sequence_keeps_its_distortion_in_the_bag(tmp_path: Path, shared_data: Path) -> None:
    raw = TumSequence(shared_data / "real" / "tum_fr1_rpy", rectify=False)
    raw.stamps_ns, straight = raw.stamps_ns[:2], TumSequence(shared_data / "real" / "tum_fr1_rpy")
    write_tum(tmp_path / "bag", raw)
    with Bag(tmp_path / "bag") as bag:
        for i, (frame, (_, depth)) in enumerate(zip(bag.iter_frames(), bag.iter_depth(), strict=True)):
            np.testing.assert_array_equal(frame.image, straight.frame(i).image)
            np.testing.assert_array_equal(frame.intrinsics, straight.intrinsics)
            np.testing.assert_array_equal(depth, straight.depth(i))
        (info,) = (m for _, m in list(bag._decoded("/camera/camera_info"))[:1])
        assert tuple(info.d) == raw.distortion
        assert not np.array_equal(raw.frame(0).image, straight.frame(0).image)


def test_truth_of_another_frame_is_no_truth(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        writer.write(frames()[0])
        base = frames(camera="base_link")[0]
        writer.put("/ground_truth/odometry", odometry(writer, base), base.stamp_ns)
    with Bag(tmp_path / "bag") as bag:
        assert bag.truth() == {}
    assert "moves base_link" in caplog.text


def test_real_sequence_becomes_a_bag(tmp_path: Path, shared_data: Path) -> None:
    sequence = TumSequence(shared_data / "real" / "tum_fr3_office")
    write_tum(tmp_path / "bag", sequence)
    with Bag(tmp_path / "bag") as bag:
        assert len(bag) == len(sequence) == 20
        assert bag.depth_topic == "" and len(bag.truth()) == sum(p is not None for p in sequence.poses)
        assert [f.stamp_ns for f in bag.iter_frames()] == sequence.stamps_ns
