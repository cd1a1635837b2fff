"""`come_ros bag` end to end: what it writes, the same again, what is kept when it is stopped, what it says of bad input."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import hashlib
import importlib.util
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fakes import Truth, trajectory, truth_of
from marks import gives

from come_ros.tools import bag as tools_bag
from come_ros.tools.bag import add_arguments

pytest.importorskip("rosbags", reason="rosbags is not installed: pip install '.[tools]'")
pytest.importorskip("mcap", reason="mcap is not installed: pip install '.[tools]'")

from come_ros import geometry
from come_ros.datasets.bag_writer import TRUE_DEPTH_TOPIC, BagWriter
from come_ros.datasets.rosbag import Bag
from come_ros.errors import ConfigError
from come_ros.files import write_tum
from come_ros.fleet.segments import Task, outline, predict
from come_ros.outputs.topics import OUTPUTS
from come_ros.tools import cli
from come_ros.tools.arguments import configuration
from come_ros.tools.report.results import GuardedStream, Reserve
from come_ros.tools.report.verdict import of_metrics
from come_ros.types import Frame
from come_ros.verdict.judge import DOUBTFUL, LEVELS

ROOT = Path(__file__).resolve().parents[2]
COUNT = 21
# the stand-in's geometry has nothing to do with what its images show: it comes out as it is
FAKE = (
    "--set",
    "backbone=fake",
    "--set",
    "keyframe.mode=every",
    "--set",
    "refine.mode=none",
    "--set",
    "odometry.rate=keyframe",
)
TYPES = {
    "/camera/image_raw": "sensor_msgs/msg/Image",
    "/camera/camera_info": "sensor_msgs/msg/CameraInfo",
    TRUE_DEPTH_TOPIC: "sensor_msgs/msg/Image",
    **{f"/come/{name}": output.kind for name, output in OUTPUTS.items()},
    "/come/path": "nav_msgs/msg/Path",
    "/come/map_points": "sensor_msgs/msg/PointCloud2",
    "/come/scale": "std_msgs/msg/Float64",
    "/tf": "tf2_msgs/msg/TFMessage",
}
AT_THE_END = {"/come/path", "/come/map_points", "/come/scale"}


@pytest.fixture(scope="module")
def world() -> Truth:
    return truth_of(trajectory("curve", COUNT), height=60, width=80)


def write_bag(path: Path, world: Truth, truth: bool = True, storage: str = "mcap") -> Path:
    with BagWriter(path, storage) as bag:
        for i, frame in enumerate(world.frames(intrinsics=True)):
            bag.write(frame, world.depth[i] if truth else None, world.world_from_camera[i] if truth else None)
    return path


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory, world: Truth) -> Path:
    return write_bag(tmp_path_factory.mktemp("input") / "bag", world)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, world: Truth) -> Path:
    """The same without truth."""
    return write_bag(tmp_path_factory.mktemp("input") / "bag", world, truth=False)


@pytest.fixture(scope="module")
@gives("slow")
def out(tmp_path_factory: pytest.TempPathFactory, bag: Path) -> Path:
    """The results of one run."""
    folder = tmp_path_factory.mktemp("bag") / "out"
    assert cli.main(["bag", str(bag), "-o", str(folder), *FAKE]) == 0
    return folder


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all the rest; `out` and the processes of their own draw."""
    monkeypatch.setattr("come_ros.tools.bag.job.draw", lambda path, overview, title: path.write_bytes(b"picture"))
    monkeypatch.setattr("come_ros.tools.report.view.write_view", lambda results: "")


def run(source: Path | str, out: Path, *arguments: str) -> int:
    return cli.main(["bag", str(source), "-o", str(out), *FAKE, *arguments])


def metrics_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "metrics.json").read_text())


def decoded(path: Path) -> Iterator[tuple[str, str, int, Any]]:
    """(topic, type, time of recording, message) by a reader that is none of ours nor of the writer's."""
    from mcap.reader import make_reader
    from mcap_ros2.decoder import DecoderFactory

    with open(path, "rb") as stream:
        reader = make_reader(stream, decoder_factories=[DecoderFactory()])
        assert reader.get_header().profile == "ros2" and reader.get_summary() is not None
        for schema, channel, message, content in reader.iter_decoded_messages(log_time_order=False):
            yield channel.topic, schema.name, message.log_time, content


@pytest.mark.slow
def test_all_results_are_there_and_nothing_else(out: Path) -> None:
    assert {p.name for p in out.iterdir()} == {
        *(
            "output",
            "map.ply",
            "trajectory.tum",
            "trajectory_map.tum",
            "frames.json",
            "map",
            "metrics.json",
            "overview.png",
            "run.yaml",
            *(["view"] if importlib.util.find_spec("viser") else []),
        )
    }
    assert {p.name for p in (out / "output").iterdir()} == {"output.mcap", "metadata.yaml"}


def test_recording_is_read_by_an_independent_reader(out: Path, world: Truth) -> None:
    types: dict[str, str] = {}
    stamps: dict[str, list[int]] = {}
    times, order = [], []
    for topic, kind, when, message in decoded(out / "output" / "output.mcap"):
        types[topic] = kind
        times.append(when)
        order.append(topic)
        if topic == "/come/scale":
            assert np.isnan(message.data)
            continue
        head = message.transforms[0].header if topic == "/tf" else message.header
        stamps.setdefault(topic, []).append(head.stamp.sec * 10**9 + head.stamp.nanosec)
        assert stamps[topic][-1] == when, topic  # recorded at the time of the image, to the nanosecond
        if topic == "/tf":
            assert head.frame_id == "visual_odom"
            assert message.transforms[0].child_frame_id == "camera_optical_frame"
            assert message.transforms[1].header.frame_id == "visual_map"
            assert message.transforms[1].child_frame_id == "visual_odom"
        elif topic in ("/come/odometry", "/come/landmarks"):
            assert head.frame_id == "visual_odom"
        elif topic in ("/come/path", "/come/map_points"):
            assert head.frame_id == "visual_map"
        else:
            assert head.frame_id == "camera_optical_frame"
        if topic == "/come/path":
            assert len(message.poses) == COUNT
    assert types == TYPES
    assert times == sorted(times)
    for topic in TYPES.keys() - AT_THE_END:
        assert stamps[topic] == world.stamps_ns.tolist(), topic
    assert all(order.count(topic) == 1 for topic in AT_THE_END)
    assert order.index("/tf") < order.index("/come/odometry")
    assert metrics_of(out)["messages"] == {topic: order.count(topic) for topic in sorted(TYPES)}


def test_points_are_the_depth_unprojected(out: Path) -> None:
    infos, depths, clouds, pictures = {}, {}, {}, {}
    into = {"depth/camera_info": infos, "depth/image": depths, "points": clouds, "rgb/image_rect": pictures}
    for topic, _, when, message in decoded(out / "output" / "output.mcap"):
        if (name := topic.removeprefix("/come/")) in into:
            into[name][when] = message
    assert len(clouds) == COUNT
    for when, cloud in clouds.items():
        depth = np.frombuffer(depths[when].data, "<f4").reshape(depths[when].height, depths[when].width)
        k = np.reshape(infos[when].k, (3, 3))
        v, u = np.nonzero(np.isfinite(depth))
        z = depth[v, u].astype(np.float64)
        expected = np.stack([(u - k[0, 2]) / k[0, 0] * z, (v - k[1, 2]) / k[1, 1] * z, z], axis=-1)
        points = np.frombuffer(cloud.data, "<f4").reshape(-1, cloud.point_step // 4)
        assert [f.name for f in cloud.fields] == ["x", "y", "z", "rgb", "conf"] and cloud.is_dense
        np.testing.assert_allclose(points[:, :3], expected, rtol=1e-4, atol=1e-6)
        image = np.frombuffer(pictures[when].data, np.uint8).reshape(*depth.shape, 3)
        bits = np.ascontiguousarray(points[:, 3]).view(np.uint32)
        np.testing.assert_array_equal(np.stack([(bits >> s) & 255 for s in (16, 8, 0)], axis=-1), image[v, u])


def test_a_bag_goes_through_byte_for_byte_and_plays_again(out: Path, bag: Path) -> None:
    topics = ("/camera/image_raw", "/camera/camera_info")
    with Bag(bag) as before, Bag(out / "output", "/camera/image_raw") as after:
        assert list(before.iter_raw(*topics)) == list(after.iter_raw(*topics))
        assert after.topics == TYPES


def test_players_keep_what_is_latched_for_late_subscribers(out: Path) -> None:
    import yaml

    info = yaml.safe_load((out / "output" / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert info["storage_identifier"] == "mcap" and info["relative_file_paths"] == ["output.mcap"]
    profiles = {
        t["topic_metadata"]["name"]: t["topic_metadata"]["offered_qos_profiles"]
        for t in info["topics_with_message_count"]
    }
    for topic in TYPES:
        durability = [p["durability"] for p in profiles[topic]]
        assert durability == (["transient_local"] if topic in AT_THE_END else []), topic


def test_files_agree_with_one_another(out: Path, world: Truth) -> None:
    metrics = metrics_of(out)
    assert metrics["frames"]["read"] == metrics["frames"]["used"] == metrics["frames"]["source"] == COUNT
    assert sum(metrics["frames"]["dropped"].values()) == metrics["frames"]["pending"] == 0
    assert metrics["stopped"] is None
    rows = [line.split() for line in (out / "trajectory.tum").read_text().splitlines()]
    assert [row[0] for row in rows] == [f"{t // 10**9}.{t % 10**9:09d}" for t in world.stamps_ns]
    header = (out / "map.ply").read_bytes().split(b"end_header")[0].decode()
    assert f"element vertex {metrics['map']['points']}\n" in header and metrics["map"]["points"] > 100
    for name in ("map.ply", "trajectory.tum", "run.yaml"):
        assert metrics["bytes"][name] == (out / name).stat().st_size
    import yaml

    about = yaml.safe_load((out / "run.yaml").read_text())
    assert about["parameters"]["backbone"] == "fake" and about["versions"]["numpy"] == np.__version__


def test_scores_stand_next_to_trivial_baselines(out: Path, world: Truth) -> None:
    metrics = metrics_of(out)
    for scaled in ("per_frame", "per_sequence"):
        assert set(metrics["depth"][scaled]) == {"come_ros", "constant depth", "mean depth map"}
    path = metrics["trajectory"]
    assert path["poses"] == COUNT
    assert metrics["rotation"]["rmse_deg"]["come_ros"] == pytest.approx(path["rpe_rotation_rmse_deg"], rel=1e-3)
    steps = np.linalg.inv(world.world_from_camera[:-1]) @ world.world_from_camera[1:]
    still = float(np.sqrt((steps[:, :3, 3] ** 2).sum(axis=1).mean()))
    assert path["rpe_translation_rmse_m"]["not moving"] == pytest.approx(still, abs=1e-5)
    assert 0 < path["ate_rmse_m"]["come_ros"] < path["ate_rmse_m"]["not moving"]
    assert path["ate_rmse_m"]["not moving"] > 0


def test_the_verdict_is_a_line_and_in_the_metrics(
    tmp_path: Path, plain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(plain, tmp_path / "out", "--no-bag") == 0
    metrics, said = metrics_of(tmp_path / "out"), capsys.readouterr().out
    verdict = metrics["verdict"]
    (line,) = [line for line in said.splitlines() if line.startswith("verdict: ")]
    assert line == f"verdict: {of_metrics(metrics).line}" and verdict["level"] in LEVELS and verdict["reasons"]
    facts = verdict["facts"]
    assert facts["keyframes"] == metrics["frames"]["used"] and facts["refused"] == facts["left_out"] == 0


@pytest.mark.slow
def test_photographs_of_nothing_are_unusable_though_all_are_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(8):
        coarse = np.random.default_rng(i).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{i}.png"), cv2.resize(coarse, (160, 120)))
    assert cli.main(["bag", str(folder), "-o", str(tmp_path / "out"), "--no-bag", "--set", "device=cpu"]) == 0
    assert metrics_of(tmp_path / "out")["frames"]["used"] > 3
    assert "verdict: unusable: images do not look as the result predicts" in capsys.readouterr().out


def test_trajectories_are_scored_with_the_scale_mended_or_not(world: Truth) -> None:
    from come_ros.evaluation.recordings import trajectory_scores

    truth = dict(zip(world.stamps_ns.tolist(), world.world_from_camera, strict=True))
    moved = geometry.transform(geometry.rotation_from_vector([0.1, -0.4, 1.0]), [3.0, -2.0, 1.0])
    shrunk = {stamp: moved @ pose for stamp, pose in truth.items()}
    for pose in shrunk.values():
        pose[:3, 3] /= 2
    scores = trajectory_scores(shrunk, truth)
    assert scores is not None
    for name in ("ate_rmse_m", "rpe_translation_rmse_m"):
        assert scores[name]["come_ros"] == pytest.approx(0, abs=1e-6)  # Sim(3) mends the scale, SE(3) does not
    assert scores["ate_se3_rmse_m"]["come_ros"] == pytest.approx(scores["ate_se3_rmse_m"]["not moving"] / 2, rel=1e-3)
    steps = scores["rpe_translation_se3_rmse_m"]
    assert steps["come_ros"] == pytest.approx(steps["not moving"] / 2, rel=1e-6)
    assert steps["constant velocity"] < steps["not moving"]
    assert scores["rpe_rotation_rmse_deg"] == pytest.approx(0, abs=1e-5)


def test_overview_is_a_picture(out: Path) -> None:
    picture = cv2.imread(str(out / "overview.png"))
    assert min(picture.shape[:2]) > 500 and picture.std() > 20


@pytest.mark.slow
def test_truth_may_come_out_of_a_file(tmp_path: Path, plain: Path, world: Truth) -> None:
    two = dict(zip(world.stamps_ns.tolist()[3:5], world.world_from_camera[3:5], strict=True))  # too few for a path
    write_tum(tmp_path / "gt.tum", two)
    assert run(plain, tmp_path / "out", "--gt", str(tmp_path / "gt.tum"), "--no-bag") == 0
    metrics = metrics_of(tmp_path / "out")
    assert (metrics["truth"]["poses"], metrics["truth"]["matched"]) == (2, 2)
    assert metrics["depth"] is None and metrics["trajectory"] is None
    turn = geometry.rotation_angle(two[world.stamps_ns[3]][:3, :3].T @ two[world.stamps_ns[4]][:3, :3])
    # the stand-in's camera does not turn, so it errs as the trivial baseline does; the best rotation of one step is that step
    expected = pytest.approx(np.degrees(turn), abs=1e-4)
    none = pytest.approx(0, abs=1e-4)
    assert metrics["rotation"]["median_deg"] == {
        "come_ros": expected,
        "no rotation": expected,
        "constant rotation": none,
    }
    assert not (tmp_path / "out" / "output").exists() and metrics["messages"] == {}


@pytest.mark.slow
def test_truth_at_other_times_is_said(tmp_path: Path, plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tum(tmp_path / "gt.tum", {1: np.eye(4), 2: np.eye(4)})
    assert run(plain, tmp_path / "out", "--gt", str(tmp_path / "gt.tum"), "--no-bag") == 1
    said = capsys.readouterr()
    assert (
        "none of its 2 poses lies within 20 ms of a used image: they are from 0.000 to 0.000 s, the images from"
        in said.err
    )
    assert "--gt-offset SECONDS or auto moves them" in said.err and (tmp_path / "out" / "map.ply").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("offset", ["1000000.5", "auto"])
def test_truth_of_another_clock_is_moved(
    tmp_path: Path, plain: Path, world: Truth, offset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = {
        t - 1_000_000_500_000_000: pose
        for t, pose in zip(world.stamps_ns.tolist(), world.world_from_camera, strict=True)
    }
    write_tum(tmp_path / "gt.tum", moved)
    code = run(plain, tmp_path / "out", "--gt", str(tmp_path / "gt.tum"), "--gt-offset", offset, "--no-bag")
    said, truth = capsys.readouterr(), metrics_of(tmp_path / "out")["truth"]
    if offset == "auto":  # the stand-in's camera neither turns nor changes its speed: nothing tells the offset
        assert code == 1 and truth["matched"] == 0
        assert "--gt-offset auto found no offset that stands out" in said.err
        return
    assert code == 0 and truth["matched"] == COUNT and truth["offset_s"] == 1000000.5
    assert "its stamps are moved by 1000000.500 s" in said.out


@pytest.mark.slow
def test_a_part_of_a_recording(tmp_path: Path, plain: Path, bag: Path, world: Truth) -> None:
    part = ("--start", "0.35", "--duration", "1.25", "--every", "2", "--max-images", "6")
    assert run(bag, tmp_path / "a", *part) == 0
    wanted = [t for t in world.stamps_ns.tolist() if 350_000_000 <= t - world.stamps_ns[0] < 1_600_000_000][::2][:6]
    metrics = metrics_of(tmp_path / "a")
    assert metrics["frames"]["read"] == metrics["frames"]["used"] == len(wanted) == 6
    assert metrics["messages"]["/camera/image_raw"] == 6
    folder = images(tmp_path / "images", world)
    assert run(folder, tmp_path / "b", "--every", "5", "--no-bag") == 0
    assert metrics_of(tmp_path / "b")["frames"]["read"] == -(-COUNT // 5)
    for wrong, text in (
        (("--every", "0"), "--every is 0"),
        (("--duration", "0"), "--duration is 0.0"),
        (("--start", "-1"), "--start"),
    ):
        with pytest.raises(ConfigError, match=text):
            tools_bag.run(bag_options(plain, tmp_path / "c", *wrong))


def bag_options(source: Path, out: Path, *arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(source), "-o", str(out), *FAKE, *arguments])


@pytest.mark.slow
def test_predictions_that_are_made_already_change_nothing(plain: Path, tmp_path: Path) -> None:
    """Those of `come_ros fleet`, whose segments stand in test/fleet/test_segments.py."""
    assert run(plain, tmp_path / "alone") == 0
    options = bag_options(plain, tmp_path / "unused")
    how = tools_bag.reading(str(plain), options, configuration(options))
    assert how.images == COUNT
    task = Task(str(plain), how.options, how.part, how.config.to_flat(), str(tmp_path / "made"), None, 2)
    outline(task)
    for segment in range(2):
        predict(dataclasses.replace(task, segment=segment))
    assert list((tmp_path / "made").glob("*.safetensors"))
    assert run(plain, tmp_path / "joined", "--predictions", str(tmp_path / "made")) == 0
    for name in ("map.ply", "trajectory.tum", "frames.json", "output/output.mcap"):
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "joined" / name).read_bytes(), name


def test_photographs_all_count(tmp_path: Path, world: Truth) -> None:
    folder = images(tmp_path / "images", None)
    for i in range(6):
        cv2.imwrite(str(folder / f"{i}.png"), world.images[0])  # the camera does not move
    arguments = ["bag", str(folder), "--set", "backbone=fake", "--no-bag"]
    assert cli.main([*arguments, "-o", str(tmp_path / "photos")]) == 0
    assert metrics_of(tmp_path / "photos")["frames"]["used"] == 6
    verdict = metrics_of(tmp_path / "photos")["verdict"]
    assert verdict["level"] == DOUBTFUL and "the camera hardly moves" in "; ".join(verdict["reasons"])
    assert cli.main([*arguments, "-o", str(tmp_path / "video"), "--fps", "20"]) == 0
    assert metrics_of(tmp_path / "video")["frames"]["used"] < 6


def test_results_never_become_input(tmp_path: Path, world: Truth, capsys: pytest.CaptureFixture[str]) -> None:
    folder = images(tmp_path / "images", world)
    assert run(folder, folder) == 1 and "is the source itself" in capsys.readouterr().err
    write_bag(tmp_path / "out" / "output", world)
    assert run(tmp_path / "out" / "output", tmp_path / "out", "--overwrite") == 1
    assert "would replace the source" in capsys.readouterr().err
    assert (tmp_path / "out" / "output" / "metadata.yaml").is_file()


def test_what_a_jump_of_time_took_away_is_not_called_used(
    tmp_path: Path, world: Truth, capsys: pytest.CaptureFixture[str]
) -> None:
    with BagWriter(tmp_path / "in") as bag:
        for frame in world.frames() + world.frames()[:15]:
            bag.put("/camera/image_raw", bag.messages.image(frame.image, bag.messages.header(frame.stamp_ns, "c")), 1)
    assert run(tmp_path / "in", tmp_path / "out", "--no-bag") == 0
    frames = metrics_of(tmp_path / "out")["frames"]
    assert frames["used"] == 15 and frames["dropped"]["superseded"] in (
        COUNT,
        COUNT - 1,
    )  # one may have waited for its window
    assert frames["read"] == frames["used"] + frames["pending"] + sum(frames["dropped"].values())
    assert "stamps jumped back 1 times" in capsys.readouterr().out


def test_images_that_have_nothing_in_common_are_no_result(
    tmp_path: Path, world: Truth, capsys: pytest.CaptureFixture[str]
) -> None:
    with BagWriter(tmp_path / "in") as bag:
        for i, frame in enumerate(world.frames()[:6]):
            image = frame.image if i % 2 else np.ascontiguousarray(frame.image[:, :40])
            head = bag.messages.header(frame.stamp_ns, "c")
            bag.put("/camera/image_raw", bag.messages.image(image, head), frame.stamp_ns)
    assert run(tmp_path / "in", tmp_path / "out", "--no-bag") == 1
    assert "no two of the 6 images used could be reconstructed together" in capsys.readouterr().err


def hashes(out: Path) -> dict[str, str]:
    """Of all results; of the metrics without their timings."""
    found = {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
    metrics = json.loads(found["metrics.json"])
    del metrics["timings"]
    found["metrics.json"] = json.dumps(metrics).encode()
    return {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}


@pytest.mark.slow
def test_the_bundled_model_gives_the_same_bytes_in_two_processes(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")
    small = write_bag(tmp_path / "in", truth_of(trajectory("curve", 10), height=60, width=80), truth=False)
    command = [sys.executable, "-m", "come_ros.tools.cli", "bag", str(small), "--set", "keyframe.mode=every"]
    command += ["--set", "device=cpu"]
    for name in ("a", "b"):
        done = subprocess.run([*command, "-o", str(tmp_path / name)], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    first, second = hashes(tmp_path / "a"), hashes(tmp_path / "b")
    assert first == second and sum(not name.startswith("view/") for name in first) == 11


@pytest.mark.slow
def test_metres_from_the_depth_of_the_recording(tmp_path: Path, bag: Path) -> None:
    assert run(bag, tmp_path, "--no-bag", "--set", "scale.mode=depth", "--set", "scale.max_sigma=1.0") == 0
    metrics = metrics_of(tmp_path)
    scale = metrics["scale"]
    assert scale["source"] == "depth" and scale["unit"] == {"odometry": "metre", "map": "metre"}
    assert 0 < scale["sigma"] < 1 and scale["age_s"] >= 0 and scale["sources"]["depth"]["readings"] > 0
    assert scale["conflict"] is None and abs(scale["error_by_depth"]) < 0.3 and "error_by_path" in scale
    assert (tmp_path / "trajectory_map.tum").read_text().startswith("# lengths in metres, from depth, sigma")
    assert b"lengths in metres" in (tmp_path / "map.ply").read_bytes()[:300]


@pytest.mark.slow
def test_metres_from_another_odometry(
    tmp_path: Path, bag: Path, world: Truth, capsys: pytest.CaptureFixture[str]
) -> None:
    wheels = dict(zip(world.stamps_ns.tolist(), world.world_from_camera, strict=True))
    write_tum(tmp_path / "wheels.tum", wheels)
    found = []
    for name, given in (("file", str(tmp_path / "wheels.tum")), ("topic", "/ground_truth/odometry")):
        flags = ("--set", "scale.max_sigma=1.0", "--set", "scale.min_motion=0.1")
        assert run(bag, tmp_path / name, "--no-bag", "--odometry", given, *flags) == 0
        found.append(metrics_of(tmp_path / name)["scale"])
    assert found[0] == found[1] and found[0]["source"] == "odometry" and found[0]["unit"]["map"] == "metre"
    assert "from odometry" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--set", "scale.mode=odometry"), "give them with --odometry"),
        (("--odometry", "/nothing"), "nothing"),
        (("--odometry", "missing.tum"), "--odometry: "),
        (("--odometry", ""), "--odometry is empty"),
        (("--odometry", "/ground_truth/odometry", "--set", "scale.mode=depth"), "has no effect with scale.mode depth"),
        (("--depth-topic", "none", "--set", "scale.mode=depth"), "needs depth"),
        (("--set", "scale.mode=height"), "scale.height is 0"),
        (("--set", "scale.mode=height", "--set", "scale.height=-1"), "scale.height is -1"),
    ],
)
def test_a_source_of_metres_that_is_missing_is_an_error(
    tmp_path: Path, bag: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], text: str
) -> None:
    assert run(bag, tmp_path / "out", "--no-bag", *arguments) != 0
    assert text in capsys.readouterr().err and not (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.slow
def test_a_height_without_a_floor_leaves_the_unit_unknown(
    tmp_path: Path, bag: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(bag, tmp_path, "--no-bag", "--set", "scale.mode=height", "--set", "scale.height=1.2") == 0
    scale = metrics_of(tmp_path)["scale"]
    assert scale["source"] == "none" and scale["unit"]["map"] == "model" and scale["metres"] is None
    assert scale["left_out"]["height: no floor in sight"] > 0
    assert "no floor in sight" in capsys.readouterr().out


@pytest.mark.slow
def test_ros_is_not_imported(tmp_path: Path, plain: Path) -> None:
    code = (
        "import sys; from come_ros.tools import cli; "
        f"code = cli.main(['bag', {str(plain)!r}, '-o', {str(tmp_path / 'out')!r}, *{FAKE!r}]); "
        "assert not {'rclpy', 'torch', 'rosbag2_py'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_folders_and_videos(tmp_path: Path, world: Truth) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for i, image in enumerate(world.images):
        cv2.imwrite(str(images / f"{i}.png"), image[..., ::-1])
    (images / "4.png").write_bytes(b"damaged")
    assert run(images, tmp_path / "a", "--fps", "20") == 0
    frames = metrics_of(tmp_path / "a")["frames"]
    assert frames["used"] == COUNT - 1 and frames["dropped"]["decode"] == 1
    kinds = {topic: kind for topic, kind, _, _ in decoded(tmp_path / "a" / "output" / "output.mcap")}
    assert kinds == {t: k for t, k in TYPES.items() if t not in ("/camera/camera_info", TRUE_DEPTH_TOPIC)}
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, world.images.shape[2:0:-1])
    for image in world.images:
        writer.write(np.ascontiguousarray(image[..., ::-1]))
    writer.release()
    assert run(tmp_path / "v.avi", tmp_path / "b", "--no-bag") == 0
    assert metrics_of(tmp_path / "b")["frames"]["used"] == COUNT


@pytest.mark.slow
def test_tf_mode_and_odometry_frame_are_followed(tmp_path: Path, plain: Path) -> None:
    arguments = (
        "--set",
        "tf.mode=inverse",
        "--set",
        "odom_frame=map",
        "--set",
        "cloud.frame=odom",
        "--set",
        "map_frame=map",
    )
    assert run(plain, tmp_path / "out", *arguments) == 0
    for topic, _, _, message in decoded(tmp_path / "out" / "output" / "output.mcap"):
        if topic == "/tf":
            edge = message.transforms[0]
            assert (edge.header.frame_id, edge.child_frame_id) == ("camera_optical_frame", "map")
            assert len(message.transforms) == 1, "there is no frame for the map where odometry has its name"
        elif topic in ("/come/points", "/come/odometry"):
            assert message.header.frame_id == "map"
    assert run(plain, tmp_path / "leaf", "--set", "tf.mode=inverse") == 0
    for topic, _, _, message in decoded(tmp_path / "leaf" / "output" / "output.mcap"):
        if topic == "/tf":
            edges = [(t.header.frame_id, t.child_frame_id) for t in message.transforms]
            assert edges == [("camera_optical_frame", "visual_odom"), ("visual_odom", "visual_map")]
    assert run(plain, tmp_path / "off", "--set", "tf.mode=off") == 0
    assert "/tf" not in metrics_of(tmp_path / "off")["messages"]


@pytest.mark.slow
def test_a_bag_in_a_loop_leaves_the_world_after_the_jump(tmp_path: Path, world: Truth) -> None:
    with BagWriter(tmp_path / "in") as bag:
        for frame in world.frames() + world.frames()[:15]:
            bag.put("/camera/image_raw", bag.messages.image(frame.image, bag.messages.header(frame.stamp_ns, "c")), 1)
    # all were recorded at one time, so that the reader keeps their order, and the stamps jump back
    assert run(tmp_path / "in", tmp_path / "out") == 0
    metrics = metrics_of(tmp_path / "out")
    assert metrics["stream"]["jumps"] == 1 and metrics["frames"]["read"] == COUNT + 15
    rows = (tmp_path / "out" / "trajectory.tum").read_text().splitlines()
    assert len(rows) == 15 and rows[0].startswith(str(world.stamps_ns[0])[:10])
    assert metrics["messages"]["/camera/image_raw"] == COUNT + 15


@pytest.mark.slow
def test_ros_1_bags(tmp_path: Path, world: Truth) -> None:
    from rosbags.rosbag1 import Writer
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS1_NOETIC)
    kind = "sensor_msgs/msg/Image"
    with Writer(tmp_path / "a.bag") as bag:
        connection = bag.add_connection("/cam/image_raw", kind, typestore=store)
        for i, frame in enumerate(world.frames()):
            stamp = store.types["builtin_interfaces/msg/Time"](*divmod(frame.stamp_ns, 10**9))
            head = store.types["std_msgs/msg/Header"](seq=i, stamp=stamp, frame_id="cam")
            height, width = frame.image.shape[:2]
            image = store.types[kind](head, height, width, "rgb8", 0, 3 * width, frame.image.reshape(-1))
            bag.write(connection, frame.stamp_ns + 5_000_000, store.serialize_ros1(image, kind))
    assert run(tmp_path / "a.bag", tmp_path / "out") == 0
    pictures = {
        when: message
        for topic, _, when, message in decoded(tmp_path / "out" / "output" / "output.mcap")
        if topic == "/cam/image_raw"
    }
    assert list(pictures) == world.stamps_ns.tolist()  # as stamped, not as recorded
    first = np.frombuffer(next(iter(pictures.values())).data, np.uint8)
    np.testing.assert_array_equal(first, world.images[0].reshape(-1))
    assert metrics_of(tmp_path / "out")["kind"] == "ROS 1 bag"


@pytest.mark.slow
def test_results_are_not_overwritten_unasked(tmp_path: Path, plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(plain, out, "--no-bag") == 0
    (out / "notes.txt").write_text("mine")
    before = (out / "metrics.json").stat().st_mtime_ns
    assert run(plain, out) == 1
    assert "already holds results" in capsys.readouterr().err
    assert (out / "metrics.json").stat().st_mtime_ns == before
    assert run(plain, out, "--overwrite") == 0
    assert (out / "notes.txt").read_text() == "mine" and (out / "output" / "output.mcap").is_file()


@pytest.mark.slow
def test_images_between_keyframes_have_truth_too(tmp_path: Path, bag: Path) -> None:
    assert (
        run(bag, tmp_path / "out", "--set", "keyframe.mode=time", "--set", "keyframe.min_interval=0.25", "--no-bag")
        == 0
    )
    metrics = metrics_of(tmp_path / "out")
    assert 3 < metrics["frames"]["used"] < COUNT and metrics["truth"]["matched"] >= metrics["frames"]["used"]
    assert metrics["depth"] is not None and metrics["rotation"] is not None


def test_depth_is_taken_from_the_nearest_reading(world: Truth) -> None:
    from come_ros.datasets.stamps import NearestDepth

    ms = 1_000_000
    read: list[int] = []

    def readings() -> Iterator[tuple[int, Any]]:
        for when in (0, 33 * ms, 66 * ms, 100 * ms, 400 * ms):
            read.append(when)
            yield when, np.full((2, 2), when, np.float32)

    depth = NearestDepth(readings())
    for stamp, expected in ((5, 0), (40, 33), (52, 66), (90, 100), (200, None), (410, 400), (900, None)):
        found = depth.at(stamp * ms)
        assert (found is None) == (expected is None), stamp
        assert found is None or found[0, 0] == np.float32(expected * ms)
        assert len(depth._near) <= 3  # no more in memory than is near


def test_some_of_many_are_spread_evenly() -> None:
    from come_ros.tools.report.picture import Evenly

    for count in (1, 5, 12, 100, 1000):
        some = Evenly()
        for i in range(count):
            some.offer(i)
        assert min(6, count) <= len(some.kept) < 12
        assert len(set(np.diff(some.kept))) <= 1 and some.kept[0] == 0


# --- what stops a run midway


def assert_finished(out: Path, reason: str, of: int) -> dict[str, Any]:
    """The results of a part of `of` images: all files whole, and the reason given."""
    metrics = metrics_of(out)
    used = metrics["frames"]["used"]
    assert 0 < used < of
    assert reason in metrics["stopped"]
    assert len((out / "trajectory.tum").read_text().splitlines()) == used
    topics = [topic for topic, *_ in decoded(out / "output" / "output.mcap")]  # with an index and a footer
    assert topics.count("/come/odometry") in (used, used - 1)  # a full disk may cut into the last frame's messages
    with Bag(out / "output", "/camera/image_raw") as recorded:
        assert len(recorded) >= used
    assert (out / "map.ply").is_file() and (out / "overview.png").is_file() != reason.startswith("stopped by")
    assert not list(out.glob(".*"))
    return metrics


def large_bag(path: Path, count: int = 40, side: int = 200) -> Path:
    """One whose chunks hold a few images each."""
    rng = np.random.default_rng(0)
    with BagWriter(path) as bag:
        for frame in truth_of(trajectory("curve", count)).frames():
            bag.write(Frame(rng.integers(0, 255, (side, side, 3), np.uint8), frame.stamp_ns))
    return path


def test_a_bag_without_an_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = large_bag(tmp_path / "in") / "in.mcap"
    file.write_bytes(file.read_bytes()[:-2_000_000])
    assert run(tmp_path / "in", tmp_path / "out") == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "has no end" in error and "is in" in error
    assert_finished(tmp_path / "out", "has no end", of=40)


def test_damage_in_the_middle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mcap.reader import make_reader

    file = large_bag(tmp_path / "in") / "in.mcap"
    content = bytearray(file.read_bytes())
    chunk = make_reader(io.BytesIO(bytes(content))).get_summary().chunk_indexes[2]  # type: ignore[union-attr]
    content[chunk.chunk_start_offset + 40 : chunk.chunk_start_offset + 4000] = b"\xff" * 3960
    file.write_bytes(content)
    assert run(tmp_path / "in", tmp_path / "out") == 1
    assert "is damaged" in capsys.readouterr().err.strip().splitlines()[-1]
    assert_finished(tmp_path / "out", "is damaged", of=40)


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_in_order(tmp_path: Path, sent: signal.Signals, code: int) -> None:
    source = large_bag(tmp_path / "in", 400)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "come_ros.tools.cli", "bag", str(source), "-o", str(out), *FAKE]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not any(p.stat().st_size > 5_000_000 for p in out.glob(".part-*/output/output.mcap")):
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "stopped by" in errors.strip().splitlines()[-1] and "Traceback" not in errors
    metrics = assert_finished(out, "stopped by", of=400)
    assert metrics["frames"]["read"] < 400


def test_a_full_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    try:
        source = large_bag(tmp_path / "in", 100)
        assert run(source, disk / "out") == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert "No space left on device: free some space" in error and "Traceback" not in error
        assert_finished(disk / "out", "No space left", of=100)
        (disk / "fill").write_bytes(bytes(5_000_000))
        assert run(source, disk / "second") == 1  # not even room for the reserve
        assert "No space left on device: choose a folder" in capsys.readouterr().err
        assert not list((disk / "second").iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_writing_goes_on_in_the_reserve(tmp_path: Path) -> None:
    class Disk(io.RawIOBase):
        """Full after 10 bytes, as long as the reserve is there."""

        content = b""

        def write(self, data: Any) -> int:
            if (tmp_path / ".reserve").exists():
                data = data[: max(0, 10 - len(self.content))]
                if not data:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.content += bytes(data)
            return len(data)

    disk, reserve = Disk(), Reserve(tmp_path, 1000)
    stream = GuardedStream(disk, reserve)
    assert stream.write(b"12345678") == 8 and not reserve.full
    assert stream.write(b"abcdefgh") == 8 and reserve.full
    assert disk.content == b"12345678abcdefgh"


# --- bad input: one line that says what, where, what is allowed or how to mend it; no traceback; exit code 1


def empty_bag(path: Path) -> Path:
    with BagWriter(path):
        pass
    return path


def poses_only(path: Path, world: Truth) -> Path:
    with BagWriter(path) as bag:
        head = bag.messages.header(1, "map")
        bag.put("/pose", bag.messages.pose_stamped(np.eye(4), head), 1)
    return path


def two_cameras(path: Path, world: Truth) -> Path:
    with BagWriter(path) as bag:
        for frame in world.frames():
            head = bag.messages.header(frame.stamp_ns, frame.camera)
            for side in ("left", "right"):
                bag.put(f"/{side}/image_raw", bag.messages.image(frame.image, head), frame.stamp_ns)
    return path


def text_file(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def damaged_database(path: Path, world: Truth) -> Path:
    file = next(write_bag(path, world, storage="sqlite3").glob("*.db3"))
    file.write_bytes(file.read_bytes()[:20_000])
    return path


BAD = {
    "no source": (lambda d, b, w: [d / "none"], "none does not exist: give a ROS 2 bag"),
    "empty folder": (lambda d, b, w: [d], "is not a recording that can be read: give a ROS 2 bag"),
    "empty bag": (lambda d, b, w: [empty_bag(d / "e")], "is empty: record it again"),
    "no images": (lambda d, b, w: [poses_only(d / "p", w)], "holds no colour images; it has /pose"),
    "two cameras": (lambda d, b, w: [two_cameras(d / "t", w)], "choose one of /left/image_raw, /right/image_raw"),
    "no such topic": (lambda d, b, w: [b, "--topic", "/x"], "has no colour images on '/x'; it has /camera/image_raw"),
    "mcap of zeros": (lambda d, b, w: [text_file(d / "z.mcap", "\0" * 500)], "z.mcap cannot be read as a bag"),
    "damaged database": (lambda d, b, w: [damaged_database(d / "s", w)], "s.db3 cannot be read as a bag"),
    "no video": (lambda d, b, w: [text_file(d / "v.mp4", "x")], "OpenCV cannot open the video"),
    "no weights": (lambda d, b, w: [b, "--set", "backbone=vggt", "--weights", "w.pt"], "w.pt does not exist"),
    "damaged weights": (
        lambda d, b, w: [b, "--set", "backbone=vggt", "--weights", text_file(d / "w.safetensors", "x")],
        "cannot read the weights file",
    ),
    "wrong weights": (lambda d, b, w: [b, "--set", "backbone=vggt", "--weights", str(other_model(d))], "does not fit"),
    "no params file": (lambda d, b, w: [b, "--params", str(d / "no.yaml")], "cannot read the parameters file"),
    "unknown key": (
        lambda d, b, w: [b, "--params", text_file(d / "p.yaml", "/**:\n  ros__parameters:\n    windw: {size: 4}\n")],
        "unknown parameter 'windw.size'; did you mean 'window.size'",
    ),
    "no YAML": (lambda d, b, w: [b, "--params", text_file(d / "p.yaml", "a: [")], "cannot read the parameters file"),
    "unknown --set": (lambda d, b, w: [b, "--set", "windw.size=4"], "unknown parameter 'windw.size'; did you mean"),
    "wrong type": (lambda d, b, w: [b, "--set", "window.size=many"], "window.size is 'many' (str), but must be an integer"),
    "out of range": (lambda d, b, w: [b, "--set", "window.size=1"], "window.size is 1, but must lie in 2 .. 64"),
    "no value": (lambda d, b, w: [b, "--set", "window.size"], "must be NAME=VALUE"),
    "no truth": (lambda d, b, w: [b, "--gt", str(d / "no.tum")], "no ground truth"),
    "truth is no TUM file": (lambda d, b, w: [b, "--gt", text_file(d / "g.tum", "1 2 3")], "g.tum, line 1 has 3 columns"),
    "truth of words": (lambda d, b, w: [b, "--gt", text_file(d / "g.tum", "1 a b c d e f g")], "g.tum: could not conv"),
    "no truth topic": (lambda d, b, w: [b, "--gt", "/x"], "no ground truth on '/x': choose one of /ground_truth"),
    "empty truth option": (lambda d, b, w: [b, "--gt", ""], "--gt is empty"),
    "truth is a folder": (lambda d, b, w: [b, "--gt", str(d)], "is a folder: give the file in it"),
    "part beyond the end": (lambda d, b, w: [b, "--start", "100"], "has no image in the part that --start and --duration ask for"),
    "empty truth": (lambda d, b, w: [b, "--gt", text_file(d / "g.tum", "\ufeff# no rows\n")], "g.tum holds no poses"),
    "offset without truth": (lambda d, b, w: [b, "--gt-offset", "1"], "--gt-offset 1 has no effect without --gt"),
    "odd offset": (lambda d, b, w: [b, "--gt", "/ground_truth/odometry", "--gt-offset", "x"], "--gt-offset is 'x', but must be"),
    "rate of a bag": (lambda d, b, w: [b, "--fps", "5"], "so that --fps 5.0 has no effect"),
    "no such depth": (lambda d, b, w: [b, "--depth-topic", "/x"], "has no depth on '/x'; it has /camera/depth/image_raw, or none"),
    "single image": (lambda d, b, w: [images(d / "i", w) / "0.png"], "is a single image: give its folder"),
    "images below": (lambda d, b, w: [images(d / "i", w).parent], "but holds some: give one of"),
    "recordings below": (lambda d, b, w: [in_layouts(d / "many")], "many/a, "),
    "wrong fps": (lambda d, b, w: [images(d / "i", w), "--fps", "0"], "fps is 0.0, but must lie in 0 .. 10000"),
    "only damaged images": (
        lambda d, b, w: [Path(text_file(images(d / "i", None) / "0.png", "x")).parent],
        "gave no result: 0 images were read, none could be used (1 (the image could not be decoded",
    ),
}  # fmt: skip


def images(path: Path, world: Truth | None) -> Path:
    path.mkdir()
    for i, image in enumerate(world.images if world else ()):
        cv2.imwrite(str(path / f"{i}.png"), image)
    return path


def in_layouts(path: Path) -> Path:
    """A folder of recordings that are neither bags nor images directly in their folder."""
    for name in ("a", "b"):
        (path / name).mkdir(parents=True)
        (path / name / "rgb.txt").write_text("")
    return path


def other_model(folder: Path) -> Path:
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.zeros(2)}, folder / "other.pt")
    return folder / "other.pt"


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(
    tmp_path: Path, bag: Path, world: Truth, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make, text = BAD[name]
    source, *arguments = make(tmp_path, bag, world)
    assert run(source, tmp_path / "out", *arguments) == 1
    error = capsys.readouterr().err.strip().splitlines()
    told = [line for line in error if not line.startswith("an image is left out: ")]
    assert len(told) == 1 and told[0].startswith("come_ros bag: "), error
    assert any(part in told[0] for part in text.split("|")), error
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())  # nothing half written


@pytest.mark.parametrize("where", ["file", "below a file", "/proc/come_ros", "/dev/null/x"])
def test_an_output_folder_that_cannot_be_written(
    tmp_path: Path, plain: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    places = {"file": tmp_path / "file", "below a file": tmp_path / "file" / "x"}
    assert run(plain, places.get(where, Path(where))) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and "cannot write" in error[0]
    assert "choose a folder with enough space and write permission" in error[0] or "name a folder" in error[0]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("count", [1, 2])
def test_few_frames_give_a_small_result(tmp_path: Path, world: Truth, count: int) -> None:
    folder = images(tmp_path / "images", None)
    for i in range(count):
        cv2.imwrite(str(folder / f"{i}.png"), world.images[i])
    assert run(folder, tmp_path / "out") == 0
    metrics = metrics_of(tmp_path / "out")
    assert metrics["frames"]["used"] == count and metrics["trajectory"] is None


def test_a_killed_run_leaves_no_results_and_the_next_one_cleans_up(tmp_path: Path, plain: Path) -> None:
    out = tmp_path / "out"
    (out / ".part-999999999" / "output").mkdir(parents=True)
    assert run(plain, out, "--no-bag") == 0
    assert not list(out.glob(".part-*"))


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        cli.main(["bag", "--help"])
    text = capsys.readouterr().out
    assert "examples:" in text and "come_ros bag run.mcap -o out --gt" in text and "--overwrite" in text


MERGED = ("backbone=vggt", "device=cpu", "threads=1", "accelerator.name=come", "accelerator.group=2x2")


@pytest.mark.slow
def test_comparing_says_what_merging_gains_and_costs_and_changes_nothing_else(
    plain: Path, tmp_path: Path, capsys
) -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")
    from models import bundled_size, kept_by_come

    merged = [word for value in MERGED for word in ("--set", value)]
    assert run(plain, tmp_path / "alone", *merged) == 0
    told_alone = capsys.readouterr().out
    assert run(plain, tmp_path / "both", *merged, "--compare") == 0
    told = capsys.readouterr().out
    for name in ("map.ply", "trajectory.tum", "run.yaml", "output/output.mcap"):
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "both" / name).read_bytes(), name
    alone, both = (metrics_of(tmp_path / name) for name in ("alone", "both"))
    found, took, size = both.pop("compare"), both["timings"].pop("compare"), both["bytes"].pop("compare.png")
    assert size == len((tmp_path / "both" / "compare.png").read_bytes()) > 10_000
    assert not (tmp_path / "alone" / "compare.png").exists() and "against dense" not in told_alone
    assert both["timings"].keys() == alone["timings"].keys()
    assert {**alone, "timings": 0} == {**both, "timings": 0}

    assert found["windows"] == took["windows"] == both["stream"]["windows"] > 1
    kept = round(kept_by_come(*bundled_size(80, 60), 2, 0.5), 5)
    assert found["kept_ratio"] == {"p50": kept, "p90": kept}
    assert 0 < found["depth_abs_rel"]["p50"] <= found["depth_abs_rel"]["p90"] < 1
    assert found["rot_deg"]["p50"] > 0.02 and found["trans_rel"]["p50"] > 0 and 0.1 < took["speedup"]["p50"] < 10
    text = f"{found['windows']} windows, accelerated against dense, medians: speed-up {took['speedup']['p50']:.2f}x"
    assert ("NOT STEADY" in told) != took["speedup"]["steady"] and took["speedup"]["passes"] >= 3
    assert text in told and f"depth AbsRel {found['depth_abs_rel']['p50']:.3f} (p90 " in told


def test_comparing_needs_something_to_compare(plain: Path, tmp_path: Path, capsys) -> None:
    assert run(plain, tmp_path / "out", "--compare") == 1
    assert "accelerator.name is 'none'" in capsys.readouterr().err
    assert not list(tmp_path.joinpath("out").glob("*"))


def test_a_stop_leaves_the_comparison_out(plain: Path) -> None:
    from come_ros.config import Config
    from come_ros.pipeline import ReconstructionPipeline
    from come_ros.tools.report.comparison import Comparisons, comparison_text

    pipeline = ReconstructionPipeline(Config.from_flat({"backbone": "fake", "keyframe.mode": "every"}))
    comparisons = Comparisons(pipeline)
    comparisons.add()
    assert comparisons.result() == {}  # no window yet
    for i in range(8):
        pipeline.add_frame(Frame(np.full((60, 80, 3), 30 * i, np.uint8), i + 1))
    assert pipeline.reconstruct(pipeline.take_window()).alignment.accepted
    comparisons.add(lambda: True)
    assert comparisons.result() == comparisons.timings() == {}
    comparisons.add()
    assert comparisons.result()["windows"] == 1 and comparisons.result()["depth_abs_rel"]["p50"] == 0
    comparisons.settle(lambda: True)
    assert not comparisons.timings()["speedup"]["steady"] and comparisons.timings()["speedup"]["passes"] == 1
    metrics = {"compare": comparisons.result(), "timings": {"compare": comparisons.timings()}}
    assert "NOT STEADY: 1 passes differ by nobody knows how much" in comparison_text(metrics)
    comparisons.settle()
    assert 3 <= comparisons.timings()["speedup"]["passes"] <= 12


@pytest.mark.slow
def test_the_picture_shows_what_was_merged_where_something_was(tmp_path: Path) -> None:
    from PIL import Image

    from come_ros.tools.report.picture import Overview, Shown, draw

    depth = np.linspace(1, 2, 12, dtype=np.float32).reshape(3, 4)
    magenta = np.tile(np.array([200, 0, 210], np.uint8), (3, 4, 1))

    def pixels(*overlays: Any) -> int:
        frames = [Shown(i, np.zeros((3, 4, 3), np.uint8), depth, depth, None, o) for i, o in enumerate(overlays)]
        cloud = np.random.default_rng(0).random((50, 3))
        draw(tmp_path / "p.png", Overview(frames, 0, cloud, cloud.astype(np.float32), {0: np.eye(4)}), "title")
        return int((np.asarray(Image.open(tmp_path / "p.png").convert("RGB")) == magenta[0, 0]).all(-1).sum())

    one, both = pixels(None, magenta), pixels(magenta, magenta)
    assert pixels(None, None) == 0 and one > 5000 and both == pytest.approx(2 * one, rel=0.05)


def test_the_model_is_not_told_what_results_are_held_against(plain: Path, tmp_path: Path, caplog) -> None:
    assert run(plain, tmp_path / "out", "--set", "known.depth=true", "--set", "known.odometry=true") == 0
    assert "known.depth and known.odometry are for the node" in caplog.text


@pytest.mark.slow
def test_a_path_much_shorter_than_its_depth_says_is_said_to_be(world: Truth) -> None:
    """Sim(3) hides it: the path is scaled by one number and depth by another."""
    from come_ros.evaluation.recordings import rotation_scores, trajectory_scores
    from come_ros.tools.report.tables import accuracy_lines, path_text

    real = dict(zip(world.stamps_ns.tolist(), world.world_from_camera, strict=True))
    ours = {stamp: pose.copy() for stamp, pose in real.items()}
    for pose in ours.values():
        pose[:3, 3] *= 0.02
    path = trajectory_scores(ours, real, depth_scale=2.0)
    assert path["scale"] == pytest.approx(50) and path["short"] == pytest.approx(25)
    assert path["length_ratio"] == pytest.approx(0.04) and path["ate_rmse_m"]["come_ros"] < 1e-3
    assert path["ate_depth_scale_rmse_m"] == pytest.approx(0.96 * path["ate_rmse_m"]["not moving"], rel=0.05)
    lines = "\n".join(accuracy_lines({"depth": None, "trajectory": path, "rotation": rotation_scores(ours, real)}))
    assert "depth is scaled x2 to the truth, the path x50: path 25 times too short for the depth" in lines
    assert "straight line" in lines and "random walk" in lines and "constant rotation" in lines
    assert "consistent with the depth" in path_text({**path, "short": 1.1})
    assert "short" not in trajectory_scores(ours, real)


def test_a_picture_that_cannot_be_drawn_costs_no_other_result(
    tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no font was found")

    monkeypatch.setattr("come_ros.tools.bag.job.draw", fails)
    assert run(plain, tmp_path / "out", "--no-bag") == 1
    there = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert there == [
        "frames.json", "map", "map.ply", "metrics.json", "run.yaml", "trajectory.tum", "trajectory_map.tum",
    ]  # fmt: skip
    assert "overview.png could not be drawn: RuntimeError: no font was found" in capsys.readouterr().err


@pytest.mark.slow
def test_the_view_is_written_with_the_results(out: Path) -> None:
    pytest.importorskip("viser", reason="viser is not installed: pip install '.[view]'")
    page = (out / "view" / "index.html").read_text()
    assert '"title": "bag"' in page and f"come_ros bag, {COUNT} frames with depth" in page
    assert len(list((out / "view" / "pictures").iterdir())) == COUNT


@pytest.mark.parametrize(
    ("view", "code", "stream", "text"),
    [
        (lambda results: "no viser: get it", 0, "out", "view/ is missing: no viser: get it"),
        (lambda results: (_ for _ in ()).throw(RuntimeError("of ours")), 1, "err", "view/ could not be made: RuntimeError: of ours"),
    ],
)  # fmt: skip
def test_without_a_view_all_other_results_are_there(
    tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    view: Any, code: int, stream: str, text: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("come_ros.tools.report.view.write_view", view)
    assert run(plain, tmp_path / "out", "--no-bag") == code
    assert text in getattr(capsys.readouterr(), stream)
    assert (tmp_path / "out" / "map.ply").exists() and (tmp_path / "out" / "metrics.json").exists()
    assert run(plain, tmp_path / "out", "--no-bag", "--no-view", "--overwrite") == 0
    assert "view/" not in capsys.readouterr().out


def test_a_signal_leaves_out_the_view_at_once_and_keeps_all_other_results(
    tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def view(results: Path) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        return [time.sleep(0.01) for _ in range(1000)] and "it went on"

    monkeypatch.setattr("come_ros.tools.report.view.write_view", view)
    assert run(plain, tmp_path / "out", "--no-bag") == 128 + signal.SIGTERM
    told = capsys.readouterr()
    assert "stopped by SIGTERM" in told.err and "it went on" not in told.out
    assert (tmp_path / "out" / "map.ply").exists() and (tmp_path / "out" / "overview.png").exists()


def test_a_clock_that_stands_still_is_said(world: Truth, tmp_path: Path, capsys) -> None:
    """Only the first image is new by its stamp: that is no success."""
    with BagWriter(tmp_path / "bag", "mcap") as bag:
        for frame in itertools.islice(world.frames(intrinsics=True), 6):
            bag.write(dataclasses.replace(frame, stamp_ns=10**18), None, None)
    assert run(tmp_path / "bag", tmp_path / "out", "--no-bag") == 1
    assert "5 of 6 images were left out, because their stamps are not newer" in capsys.readouterr().err
    assert metrics_of(tmp_path / "out")["frames"]["used"] == 1
