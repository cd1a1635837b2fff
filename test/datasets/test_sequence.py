"""One shape for every recording: what each kind gives, and what is said of things that are none."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from fakes import Truth, trajectory, truth_of

pytest.importorskip("rosbags", reason="rosbags is not installed: pip install '.[tools]'")

from come_ros.datasets.bag_writer import TRUTH_TOPIC, BagWriter
from come_ros.datasets.rosbag import Bag
from come_ros.datasets.sequence import open_sequence
from come_ros.errors import ConfigError, DatasetError

COUNT = 6


@pytest.fixture(scope="module")
def world() -> Truth:
    return truth_of(trajectory("curve", COUNT))


def write_bag(path: Path, world: Truth, storage: str = "mcap", truth: bool = True) -> Path:
    with BagWriter(path, storage) as bag:
        for i, frame in enumerate(world.frames(intrinsics=True)):
            bag.write(frame, world.depth[i], world.world_from_camera[i] if truth else None)
    return path


def write_images(path: Path, world: Truth) -> Path:
    path.mkdir()
    for i, image in enumerate(world.images):
        cv2.imwrite(str(path / f"{i}.png"), image[..., ::-1])
    return path


def write_tum_folder(path: Path, world: Truth) -> Path:
    """As the benchmark has them, with depth in fifths of millimetres."""
    (path / "depth").mkdir(parents=True)
    write_images(path / "rgb", world)
    stamps = [f"{t // 10**9}.{t % 10**9:09d}" for t in world.stamps_ns]
    lines = [f"{stamp} rgb/{i}.png depth/{i}.png" for i, stamp in enumerate(stamps)]
    for i, depth in enumerate(world.depth):
        cv2.imwrite(str(path / "depth" / f"{i}.png"), np.rint(depth * 5000).astype(np.uint16))
    (path / "frames.txt").write_text("\n".join(lines))
    from come_ros.files import write_tum

    write_tum(path / "groundtruth.txt", dict(zip(world.stamps_ns.tolist(), world.world_from_camera, strict=True)))
    camera = dict(zip(("fx", "cx", "fy", "cy"), (*world.intrinsics[0, ::2], *world.intrinsics[1, 1:]), strict=True))
    (path / "sequence.json").write_text(json.dumps({"camera": camera}))
    return path


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_bags(tmp_path: Path, world: Truth, storage: str) -> None:
    folder = write_bag(tmp_path / "bag", world, storage)
    file = next(p for p in folder.iterdir() if p.suffix in (".mcap", ".db3"))
    for path in (folder, file):
        with open_sequence(path) as source:
            assert source.kind == "ROS 2 bag" and source.topic == "/camera/image_raw" and source.count == COUNT
            frames = list(source.iter_frames())
            np.testing.assert_array_equal(np.stack([f.image for f in frames]), world.images)
            assert [f.stamp_ns for f in frames] == list(source.truth()) == world.stamps_ns.tolist()
            np.testing.assert_allclose(np.stack([d for _, d in source.iter_depth()]), world.depth)
            assert not source.damage and source.unreadable == 0


def test_a_bag_without_its_metadata_is_read_by_its_files(tmp_path: Path, world: Truth) -> None:
    for storage in ("mcap", "sqlite3"):
        folder = write_bag(tmp_path / storage, world, storage)
        (folder / "metadata.yaml").unlink()
        with open_sequence(folder) as source:
            assert len(list(source.iter_frames())) == COUNT and not source.damage


def test_tum_folders(tmp_path: Path, world: Truth) -> None:
    with open_sequence(write_tum_folder(tmp_path / "tum", world)) as source:
        assert source.kind == "TUM folder" and source.count == COUNT
        assert [f.stamp_ns for f in source.iter_frames()] == list(source.truth()) == world.stamps_ns.tolist()
        np.testing.assert_allclose(np.stack([d for _, d in source.iter_depth()]), world.depth, atol=2e-4)
        np.testing.assert_allclose(np.stack(list(source.truth().values())), world.world_from_camera, atol=1e-8)


def test_image_folders_leave_out_what_is_damaged(
    tmp_path: Path, world: Truth, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_images(tmp_path / "images", world)
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:50])
    with open_sequence(folder, fps=20.0) as source:
        assert source.kind == "folder of images" and source.count == COUNT
        stamps = [f.stamp_ns for f in source.iter_frames()]
    assert stamps == [i * 50_000_000 for i in (0, 1, 3, 4, 5)] and source.unreadable == 1
    assert "2.png" in caplog.text
    assert not source.truth() and not list(source.iter_depth())


def test_videos(tmp_path: Path, world: Truth) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, world.images.shape[2:0:-1])
    for image in world.images:
        writer.write(np.ascontiguousarray(image[..., ::-1]))
    writer.release()
    with open_sequence(tmp_path / "v.avi") as source:
        assert source.kind == "video" and source.count == len(list(source.iter_frames())) == COUNT


def test_a_topic_with_the_truth_may_be_chosen(tmp_path: Path, world: Truth) -> None:
    path = tmp_path / "bag"
    with BagWriter(path) as bag:
        for i, frame in enumerate(world.frames()):
            bag.write(frame)
            build, pose = bag.messages, world.world_from_camera[i]
            head = build.header(frame.stamp_ns, "map")
            bag.put("/vicon/pose", build.pose_stamped(pose, head), frame.stamp_ns)
            still = np.zeros(6)
            bag.put("/wheels/odom", build.odometry(pose, still, still, still, head, "base_link"), frame.stamp_ns)
    with open_sequence(path, truth="/vicon/pose") as source:
        np.testing.assert_allclose(np.stack(list(source.truth().values())), world.world_from_camera, atol=1e-12)
    with pytest.raises(DatasetError, match=r"moves base_link, but .*optical frame"):
        open_sequence(path, truth="/wheels/odom")
    with pytest.raises(DatasetError, match=r"no ground truth on '/gps'.*/vicon/pose, /wheels/odom"):
        open_sequence(path, truth="/gps")
    assert TRUTH_TOPIC not in Bag(path).topics


@pytest.mark.parametrize("share", [0.0, 0.002, 0.3, 0.6, 0.9, 0.9999])
def test_a_cut_off_mcap_file_is_read_as_far_as_it_is_whole(tmp_path: Path, share: float) -> None:
    images = np.random.default_rng(0).integers(0, 255, (20, 150, 200, 3), np.uint8)
    world = truth_of(trajectory("curve", 20))
    with BagWriter(tmp_path / "bag") as bag:
        for frame, image in zip(world.frames(), images, strict=True):
            bag.write(type(frame)(image, frame.stamp_ns))
    file = tmp_path / "bag" / "bag.mcap"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    for path in (file, tmp_path / "bag"):
        if share < 0.1:  # not one message is whole
            with pytest.raises(DatasetError, match=r"bag\.mcap"):
                open_sequence(path)
            continue
        with open_sequence(path) as source:
            frames = list(source.iter_frames())
            assert source.count == len(frames) >= int(share * 20) - 1
            np.testing.assert_array_equal(np.stack([f.image for f in frames]), images[: len(frames)])
            if share < 0.99:
                assert "has no end" in source.damage and str(len(frames)) in source.damage
            else:  # only the index is missing, and no message
                assert not source.damage and len(frames) == 20


def test_a_damaged_chunk_and_a_missing_index_cost_no_other_chunk(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (30, 150, 200, 3), np.uint8)
    with BagWriter(tmp_path / "bag") as bag:
        for frame, image in zip(truth_of(trajectory("curve", 30)).frames(), images, strict=True):
            bag.write(type(frame)(image, frame.stamp_ns))
    file = tmp_path / "bag" / "bag.mcap"
    content = bytearray(file.read_bytes())
    content[1_500_000:1_500_040] = b"\xff" * 40
    content[-8:] = b"\0" * 8  # and no end: with one, the damage is met while reading
    file.write_bytes(content)
    with open_sequence(file) as source:
        assert 0 < len(list(source.iter_frames())) <= 30


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda p: p / "nowhere", r"nowhere does not exist: give a ROS 2 bag.*folder of images.*video"),
        (lambda p: p, r"is not a recording that can be read: give a ROS 2 bag"),
        (lambda p: touch(p / "notes.txt"), r"notes\.txt is not a recording that can be read: give a ROS 2 bag"),
        (lambda p: touch(p / "x.mcap"), r"x\.mcap cannot be read as a bag"),
        (lambda p: touch(p / "x.db3"), r"x\.db3 cannot be read as a bag"),
        (lambda p: touch(p / "x.bag"), r"x\.bag cannot be read as a bag"),
        (lambda p: touch(p / "x.mp4"), r"OpenCV cannot open the video .*x\.mp4"),
    ],
)
def test_what_is_no_recording_is_told_in_one_line(tmp_path: Path, make: object, text: str) -> None:
    with pytest.raises(DatasetError, match=text) as caught:
        open_sequence(make(tmp_path))  # type: ignore[operator]
    assert "\n" not in str(caught.value)


def test_options_that_do_not_fit_are_refused(tmp_path: Path, world: Truth) -> None:
    folder = write_images(tmp_path / "images", world)
    with pytest.raises(ConfigError, match=r"is not a bag, so that --topic /a has no effect"):
        open_sequence(folder, topic="/a")
    with pytest.raises(ConfigError, match=r"is not a bag, so that --depth-topic /a has no effect"):
        open_sequence(folder, depth="/a")
    with pytest.raises(ConfigError, match=r"a bag, .* so that --fps 5.0 has no effect"):
        open_sequence(write_bag(tmp_path / "bag", world), fps=5.0)
    with pytest.raises(ConfigError, match=r"a TUM folder, .* so that --fps 5.0 has no effect"):
        open_sequence(write_tum_folder(tmp_path / "tum", world), fps=5.0)
    with pytest.raises(DatasetError, match=r"ground truth /x/gt.tum is not a file, and .*images is not a bag"):
        open_sequence(folder, truth="/x/gt.tum")
    with pytest.raises(DatasetError, match=r"must lie in 0"):
        open_sequence(folder, fps=-1)


def test_a_damaged_database_is_one_line(tmp_path: Path, world: Truth) -> None:
    folder = write_bag(tmp_path / "bag", world, "sqlite3")
    file = next(folder.glob("*.db3"))
    content = file.read_bytes()
    for damaged in (content[: len(content) // 2], content[:4096] + b"\xaa" * (len(content) - 4096)):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        (copy / file.name).write_bytes(damaged)
        with pytest.raises(DatasetError) as caught, open_sequence(copy) as source:
            list(source.iter_frames())
        assert "\n" not in str(caught.value) and str(copy) in str(caught.value)


def touch(path: Path) -> Path:
    path.write_bytes(b"something else")
    return path


def test_a_pipe_is_no_recording(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.mcap")
    with pytest.raises(DatasetError, match="is a pipe or device"):
        open_sequence(tmp_path / "run.mcap")
