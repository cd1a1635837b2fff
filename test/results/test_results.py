"""Results are read the same whatever made them, and what they lack is named together with the option that keeps it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import made_results as made
import numpy as np
import pytest

pytest.importorskip("rosbags", reason="rosbags is not installed: pip install '.[tools]'")
pytest.importorskip("mcap", reason="mcap is not installed: pip install '.[tools]'")

from come_ros import geometry
from come_ros.datasets.bag_writer import BagWriter
from come_ros.errors import DatasetError, MapError
from come_ros.outputs.cloud import colours_of
from come_ros.outputs.frames_file import FRAMES, PlacedFrames, read_frames, write_frames
from come_ros.results import Results, open_results
from come_ros.results.results import BAG, DEMO, MAP
from come_ros.tools import cli
from come_ros.types import Frame

FAKE = ("backbone=fake", "keyframe.mode=every", "refine.mode=none", "odometry.rate=keyframe")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return open_results(made.bag_results(tmp_path_factory.mktemp("results") / "out"))


def test_results_of_a_bag_are_in_the_map_and_its_unit(results: Results) -> None:
    assert (results.kind, results.world, results.unit) == (BAG, "map frame", made.METRES) and results.in_metres
    assert results.stamps_ns == tuple(made.stamps(4)) and len(results) == 4
    assert results.has_images and results.has_confidence and not results.remark
    for i, frame in enumerate(results.frames()):
        assert frame.stamp_ns == made.stamps(4)[i]
        np.testing.assert_allclose(frame.depth, made.depth(i), rtol=1e-6)  # published in another unit
        np.testing.assert_allclose(frame.world_from_camera, made.pose(i), atol=1e-8)
        np.testing.assert_array_equal(frame.image, made.picture(i))
        np.testing.assert_array_equal(frame.confidence, made.confidence(i))
        np.testing.assert_array_equal(frame.intrinsics, made.K)
        if i == 1:
            assert frame.true_depth is None
        else:
            np.testing.assert_array_equal(frame.true_depth, made.true_depth(i))
        places, known = frame.points()
        np.testing.assert_allclose(places[:, 2], made.WALL_Z, rtol=1e-5)
        assert len(places) == known.sum() == made.HEIGHT * made.WIDTH - 12
    assert list(results.trajectory) == list(results.odometry) == list(results.truth()) == made.stamps(4)
    assert results.odometry_unit == ""


def test_the_cloud_is_that_of_the_map_or_is_made_of_the_frames(results: Results) -> None:
    points = results.points()
    assert points.tobytes() == made.cloud(4).tobytes()
    assert colours_of(points)[0].tolist() == made.picture(0)[0, 4].tolist()
    coarse = results.points(0.2)
    assert 0 < len(coarse) < len(points) / 4
    np.testing.assert_allclose(coarse["z"], made.WALL_Z, rtol=1e-4)


def test_results_of_the_demo_are_in_the_odometry_frame(tmp_path: Path) -> None:
    results = open_results(made.demo_results(tmp_path / "demo"))
    assert (results.kind, results.world, results.unit) == (DEMO, "odometry frame", "")
    assert "`come_ros bag`" in results.remark and "not known in metres" in results.unit_text
    for i, frame in enumerate(results.frames()):
        np.testing.assert_allclose(frame.world_from_camera[:3, 3], made.pose(i)[:3, 3] + [0.001, 0, 0], atol=1e-9)
        np.testing.assert_array_equal(frame.depth, made.depth(i))
    assert len(results.points()) > 100 and not results.truth() and not results.loops


def test_true_depth_of_the_demo_is_that_of_the_bag_it_played(tmp_path: Path) -> None:
    folder = made.demo_results(tmp_path / "demo", 3)
    with BagWriter(tmp_path / "played") as bag:
        for i, stamp in enumerate(made.stamps(3)):
            bag.write(Frame(made.picture(i), stamp, "camera_optical_frame", made.K), made.true_depth(i))
    (folder / "metrics.json").write_text(json.dumps({"bag": str(tmp_path / "played"), "topic": "/camera/image_raw"}))
    for i, frame in enumerate(open_results(folder).frames()):
        np.testing.assert_allclose(frame.true_depth, made.true_depth(i))
    shutil.rmtree(tmp_path / "played")
    assert [frame.true_depth for frame in open_results(folder).frames()] == [None] * 3


def test_without_image_and_confidence_depth_is_still_read(tmp_path: Path) -> None:
    results = open_results(made.demo_results(tmp_path / "demo", 2, names=()))
    assert not results.has_images and not results.has_confidence
    assert [(f.image, f.confidence) for f in results.frames()] == [(None, None)] * 2
    assert set(map(tuple, colours_of(results.points()).tolist())) == {(128, 128, 128)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`come_ros bag` itself, with the stand-in for a model: two sessions of the same recording in one map."""
    folder = tmp_path_factory.mktemp("run")
    blocks = np.random.default_rng(1).integers(0, 255, (15, 20, 3))
    image = np.kron(blocks, np.ones((16, 16, 1))).astype(np.uint8)
    k = np.array([[280.0, 0, 159.5], [0, 282.0, 119.5], [0, 0, 1]])
    with BagWriter(folder / "source") as bag:
        for stamp in made.stamps(3):
            bag.write(Frame(image, stamp, "camera", k), None, None)
    words = [word for text in FAKE for word in ("--set", text)]
    picture = pytest.MonkeyPatch()
    picture.setattr("come_ros.tools.bag.job.draw", lambda path, overview, title: path.write_bytes(b"picture"))
    picture.setattr("come_ros.tools.report.view.write_view", lambda results: "")
    assert cli.main(["bag", str(folder / "source"), "-o", str(folder / "out"), *words]) == 0
    picture.undo()
    return folder / "out"


@pytest.mark.slow
def test_a_run_is_read_from_its_recording_and_from_its_map_alike(run: Path) -> None:
    whole, kept = open_results(run), open_results(run / "map")
    assert (whole.kind, kept.kind) == (BAG, MAP) and len(whole) == 3 and not kept.has_confidence
    assert "confidence" in kept.remark and "come_ros bag" in kept.remark
    frames = {frame.stamp_ns: frame for frame in whole.frames()}
    for frame in kept.frames():
        np.testing.assert_allclose(frame.world_from_camera, frames[frame.stamp_ns].world_from_camera, atol=1e-6)
        step = frames[frame.stamp_ns].depth.shape[0] / frame.depth.shape[0]
        again = frames[frame.stamp_ns].depth[:: round(step), :: round(step)]
        np.testing.assert_allclose(frame.depth, again, rtol=2e-3)  # float16
    assert set(whole.trajectory) == set(frames)


@pytest.mark.slow
def test_without_a_recording_the_map_is_read_and_the_option_is_named(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "no_bag"
    folder.mkdir()
    for path in run.iterdir():
        if path.name != "output":
            (folder / path.name).symlink_to(path)
    results = open_results(folder)
    assert results.kind == BAG and "without --no-bag" in results.remark and len(results.points()) > 0


def test_frames_are_written_as_they_are_read(tmp_path: Path) -> None:
    turned = geometry.transform(geometry.rotation_from_vector([1.0, -2.0, 0.5]), [1e-7, 1e5, -3.0])
    frames = PlacedFrames({5: (turned, 0.5), 3: (np.eye(4), 2.0)}, "map frame", "", {5: turned})
    write_frames(tmp_path / FRAMES, frames)
    back = read_frames(tmp_path / FRAMES)
    assert list(back.placed) == [3, 5] and back.placed[3][1] == 2.0 and (back.frame, back.unit) == ("map frame", "")
    np.testing.assert_allclose(back.placed[5][0], turned, atol=1e-8)
    np.testing.assert_allclose(back.truth[5], turned, atol=1e-8)
    assert not read_frames(_edited(tmp_path / FRAMES, truth=[])).truth


def _edited(path: Path, **values: object) -> Path:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return path


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"version": 9}, "version 9"),
        ({"format": "other"}, "'other'"),
        ({"frames": [[1, 0, 0, 0, 0, 0, 0, 1, -1]]}, "not positive"),
        ({"frames": [[1, 0, 0, 0, 0, 0, 0, 0, 1]]}, "not a rotation"),
        ({"frames": [[1, 0, 0, "nan", 0, 0, 0, 1, 1]]}, "not finite"),
        ({"frames": [[1, 2]]}, "frames.json"),
        ({"frames": None}, "frames.json"),
    ],
)
def test_a_damaged_list_of_frames_ends_with_one_line(values: dict[str, object], why: str, tmp_path: Path) -> None:
    folder = made.bag_results(tmp_path / "out", 1)
    _edited(folder / FRAMES, **values)
    with pytest.raises(DatasetError, match=r"frames\.json") as caught:
        open_results(folder)
    assert why in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_result_is_refused_with_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="does not exist"):
        open_results(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="come_ros bag"):
        open_results(tmp_path)
    made.write_recording(tmp_path / "bag", 1)
    with pytest.raises(DatasetError, match="give one of these as --node"):
        open_results(tmp_path / "bag", "/other")
    (tmp_path / "map").mkdir()
    (tmp_path / "map" / "map.json").write_text("{")
    with pytest.raises(MapError, match=r"map\.json.* is damaged") as caught:
        open_results(tmp_path / "map")
    assert not str(caught.value).startswith("map.load")


def test_a_cut_cloud_is_refused(tmp_path: Path) -> None:
    folder = made.bag_results(tmp_path / "out", 1)
    (folder / "map.ply").write_bytes((folder / "map.ply").read_bytes()[:-5])
    with pytest.raises(DatasetError, match="not whole"):
        open_results(folder).points()


def test_damaged_and_lost_messages_cost_their_frame_only(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    folder.mkdir()
    with BagWriter(folder / "output") as bag:
        for i, stamp in enumerate(made.stamps(4)):
            head = bag.messages.header(stamp, "camera_optical_frame")
            bag.put("/come/depth/camera_info", bag.messages.camera_info(made.K, made.WIDTH, made.HEIGHT, head), stamp)
            image = bag.serialized(bag.messages.depth(made.depth(i), head))
            if i != 1:  # lost
                bag.put_raw("/come/depth/image", "sensor_msgs/msg/Image", image[: 40 if i == 2 else None], stamp)
            still = np.zeros(6)
            odom = bag.messages.header(stamp, "visual_odom")
            moved = bag.messages.odometry(made.pose(i), still, still, still, odom, "camera_optical_frame")
            bag.put("/come/odometry", moved, stamp)
    found = [frame.stamp_ns for frame in open_results(folder).frames()]
    assert found == [made.stamps(4)[0], made.stamps(4)[3]]


def test_odometry_of_a_robot_frame_is_no_pose_of_the_camera(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as bag:
        (stamp,) = made.stamps(1)
        head = bag.messages.header(stamp, "camera_optical_frame")
        bag.put("/come/depth/camera_info", bag.messages.camera_info(made.K, made.WIDTH, made.HEIGHT, head), stamp)
        bag.put("/come/depth/image", bag.messages.depth(made.depth(0), head), stamp)
        still = np.zeros(6)
        odom = bag.messages.header(stamp, "visual_odom")
        bag.put("/come/odometry", bag.messages.odometry(made.pose(0), still, still, still, odom, "base_link"), stamp)
    with pytest.raises(DatasetError, match="base_link"):
        open_results(tmp_path / "bag")
