"""The live demo end to end, with a small room and a stand-in for the model: what it writes and counts, how it ends."""

from __future__ import annotations

import importlib.util
import json
import mmap
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install '.[ros]', or source a ROS installation")
pytest.importorskip("mcap", reason="mcap is not installed: pip install '.[tools]'")

from come_ros.datasets.bag_writer import BagWriter
from come_ros.datasets.rooms.rooms import render_sequence
from come_ros.errors import Stopped
from come_ros.ros.programs.live import LiveError, PlayedCamera, Processes, _clear, run_live
from come_ros.tools import cli
from come_ros.tools import demo as demo_tool
from come_ros.tools.report.live_scores import read_recording, read_truth, score
from come_ros.tools.report.tables import table
from come_ros.tools.report.verdict import of_metrics
from come_ros.types import Frame
from come_ros.verdict.judge import LEVELS

pytestmark = pytest.mark.ros
ROOT = Path(__file__).resolve().parents[2]
FRAMES = 30
TYPES = {
    "/camera/image_raw": "sensor_msgs/msg/Image",
    "/camera/camera_info": "sensor_msgs/msg/CameraInfo",
    "/come/points": "sensor_msgs/msg/PointCloud2",
    "/come/odometry": "nav_msgs/msg/Odometry",
    "/come/depth/image": "sensor_msgs/msg/Image",
    "/come/depth/camera_info": "sensor_msgs/msg/CameraInfo",
    "/come/rgb/image_rect": "sensor_msgs/msg/Image",
    "/come/confidence": "sensor_msgs/msg/Image",
    "/come/merge_overlay": "sensor_msgs/msg/Image",
    "/tf": "tf2_msgs/msg/TFMessage",
    "/diagnostics": "diagnostic_msgs/msg/DiagnosticArray",
}
FAKE = "/**:\n  ros__parameters:\n    backbone: fake\n    keyframe: {mode: every}\n    input: {depth: 30}\n"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """Output folder of one demo, and its exit code."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "fake.yaml").write_text(FAKE)
    arguments = ["--frames", str(FRAMES), "--size", "160x120", "--params", str(folder / "fake.yaml")]
    return folder / "out", cli.main(["demo", "-o", str(folder / "out"), *arguments])


def test_demo_ends_well_and_every_frame_is_accounted_for(demo: tuple[Path, int]) -> None:
    out, code = demo
    metrics = json.loads((out / "metrics.json").read_text())
    frames = metrics["frames"]
    assert code == 0 and metrics["run"]["exit_code"] == 0 and metrics["run"]["stop_s"] < 3
    assert frames["bag"] == frames["sent"] == FRAMES
    assert frames["received"] >= FRAMES - 1 and frames["heard_by_recorder"] >= FRAMES - 1
    assert frames["balanced"] and frames["pending"] == 0 and frames["used"] > 0
    assert metrics["messages"]["~/points"] == metrics["messages"]["~/depth/image"] == frames["used"]
    # a pose for each image, also for those that a busy model leaves out
    assert frames["used"] <= metrics["messages"]["~/odometry"] <= frames["received"]
    for topic in ("~/odometry", "~/points"):
        assert 0 < metrics["latency_ms"][topic]["p50"] <= metrics["latency_ms"][topic]["p95"]
    for scaled in ("per_frame", "per_sequence"):
        assert set(metrics["depth"][scaled]) == {"come_ros", "constant depth", "mean depth map"}
    assert set(metrics["rotation"]["median_deg"]) == {"come_ros", "no rotation", "constant rotation"}
    assert metrics["trajectory"]["ate_rmse_m"]["not moving"] > 0
    if importlib.util.find_spec("viser"):
        assert '"title": "out"' in (out / "view" / "index.html").read_text()
    assert "trivial baselines" in table(metrics)
    assert of_metrics(metrics).level in LEVELS and metrics["verdict"]["reasons"]


def test_recording_is_read_by_an_independent_reader(demo: tuple[Path, int]) -> None:
    from mcap.reader import make_reader
    from mcap_ros2.decoder import DecoderFactory

    out, _ = demo
    types: dict[str, str] = {}
    stamps: dict[str, list[int]] = {}
    frames: dict[str, set[str]] = {}
    with open(out / "output.mcap", "rb") as stream:
        reader = make_reader(stream, decoder_factories=[DecoderFactory()])
        assert reader.get_header().profile == "ros2"
        for schema, channel, _, message in reader.iter_decoded_messages():
            types[channel.topic] = schema.name
            head = message.transforms[0].header if channel.topic == "/tf" else message.header
            stamps.setdefault(channel.topic, []).append(head.stamp.sec * 10**9 + head.stamp.nanosec)
            frames.setdefault(channel.topic, set()).add(head.frame_id)
    assert types == TYPES
    sent = set(stamps["/camera/image_raw"])
    for topic in TYPES.keys() - {"/diagnostics", "/camera/image_raw", "/camera/camera_info"}:
        at_each_image = topic in ("/come/odometry", "/tf")
        assert stamps[topic] == stamps["/come/odometry" if at_each_image else "/come/points"], topic
        assert stamps[topic] == sorted(set(stamps[topic])) and set(stamps[topic]) <= sent, topic
    assert set(stamps["/come/points"]) <= set(stamps["/come/odometry"])
    assert frames["/tf"] == frames["/come/odometry"] == {"visual_odom"}
    assert frames["/come/points"] == frames["/come/depth/image"] == {"camera_optical_frame"}


def test_overview_is_a_picture(demo: tuple[Path, int]) -> None:
    from PIL import Image

    with Image.open(demo[0] / "overview.png") as picture:
        assert min(picture.size) > 500
        assert np.asarray(picture.convert("L")).std() > 20


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--size", "3x3"], "width is 3"),
        (["--size", "small"], "cannot render"),
        (["--frames", "0"], "cannot render"),
        (["--rate", "0"], "--rate is 0"),
        (["nowhere"], "nowhere does not exist"),
    ],
)
def test_wrong_options_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    assert cli.main(["demo", "-o", str(tmp_path), *arguments]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and text in error[0]


@pytest.fixture(scope="module")
def small_bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bag") / "bag"
    room = render_sequence(20_000_512, frames=60, width=64, height=48, rate_hz=10.0)
    with BagWriter(path) as bag:
        for i, stamp in enumerate(room.stamps_ns):
            frame = Frame(room.images[i], int(stamp), intrinsics=room.intrinsics)
            bag.write(frame, room.depth[i], room.world_from_camera[i])
    return path


def test_a_node_that_cannot_start_says_why_and_nothing_is_left(tmp_path: Path, small_bag: Path) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"nothing")
    with pytest.raises(LiveError, match=r"cannot read the weights file|cannot configure"):
        run_live(PlayedCamera.of_bag(small_bag), tmp_path, ["-p", f"weights:={bad}"])
    with pytest.raises(LiveError, match=r"(?s)the node has ended by itself.*windows\.size"):
        run_live(PlayedCamera.of_bag(small_bag), tmp_path, ["-p", "windows.size:=4"])
    assert not left_running(tmp_path)


@pytest.mark.parametrize(
    ("failure", "code", "text"),
    [
        (RuntimeError("of viser"), 1, "view/ could not be made: RuntimeError: of viser; all other results are in"),
        (Stopped(signal.SIGTERM), 143, "stopped by SIGTERM; all results but view/ are in"),
    ],
)
def test_a_view_that_fails_or_is_stopped_loses_nothing_else(
    failure: BaseException,
    code: int,
    text: str,
    tmp_path: Path,
    small_bag: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    def view(results: Path) -> str:
        raise failure

    verdict = {"level": "usable", "reasons": ["it is"], "advice": ""}
    monkeypatch.setattr(demo_tool, "play_and_score", lambda *_, **__: {"verdict": verdict, "run": {"seconds": 1.0}})
    monkeypatch.setattr(demo_tool, "sound", lambda metrics: True)
    monkeypatch.setattr("come_ros.tools.report.tables.table", lambda metrics: "the table")
    monkeypatch.setattr("come_ros.tools.report.view.write_view", view)
    assert cli.main(["demo", str(small_bag), "-o", str(tmp_path / "out")]) == code
    told = capsys.readouterr()
    assert "the table" in told.out and text in told.err and "Traceback" not in told.err


def test_a_node_that_dies_ends_the_run(tmp_path: Path, small_bag: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, memory = [], set()
    start = Processes.start

    def remember(self: Processes, name: str, *arguments: str) -> object:
        nodes.append((name, start(self, name, *arguments)))
        return nodes[-1][1]

    def kill_at(text: str, sent: int) -> None:
        if sent >= 10:
            node = dict(nodes)["node"]._process
            maps = Path(f"/proc/{node.pid}/maps").read_text()
            memory.update(re.findall(r"/dev/shm/((?:fastdds|fastrtps)_[0-9a-f]{8,})$", maps, re.MULTILINE))
            node.kill()

    monkeypatch.setattr(Processes, "start", remember)
    with pytest.raises(LiveError, match=r"the node has ended by itself \(exit code -9\)"):
        run_live(PlayedCamera.of_bag(small_bag), tmp_path, ["-p", "backbone:=fake"], progress=kill_at)
    assert not left_running(tmp_path)
    assert memory and not [name for name in memory if Path("/dev/shm", name).exists()]


def test_ctrl_c_leaves_nothing_running(tmp_path: Path, small_bag: Path) -> None:
    (tmp_path / "fake.yaml").write_text(FAKE)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "come_ros.tools.cli", "demo", str(small_bag), "-o", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [*command, "--params", str(tmp_path / "fake.yaml")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # a shell lets what it starts in the background ignore SIGINT, and so would all below it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    end = time.monotonic() + 60
    while not (out / "player.log").exists():
        assert time.monotonic() < end and process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.05)
    time.sleep(1.0)
    assert len([c for c in running(out) if "mapping.aside" not in c]) == 3  # node, player, recorder
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    process.stdout.close()  # type: ignore[union-attr]
    assert not left_running(out)


def test_only_shared_memory_that_nobody_has_goes_and_locks_go_with_it(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("fastdds_1", "fastdds_1_el", "fastdds_2", "fastdds_2_el")}
    for file in files.values():
        file.write_bytes(bytes(100))
    with open(files["fastdds_1"], "r+b") as alive, mmap.mmap(alive.fileno(), 100):
        _clear(set(files.values()))
        assert sorted(p.name for p in tmp_path.iterdir()) == ["fastdds_1", "fastdds_1_el"]


def test_delivery_over_dds(tmp_path: Path) -> None:
    """60 images of 640x480 at 15 Hz, best effort, as test/benchmark/robustness/delivery.py does with 1000."""
    run = run_live(
        PlayedCamera.of_pattern(640, 480, 60, 15.0),
        tmp_path,
        ["-p", "backbone:=fake", "-p", "input.depth:=60"],
        record_inputs=False,
    )
    recording = read_recording(run.recording)
    assert len(run.sent) == 60 and run.settled
    assert int(recording.input["received"]) >= 59


def test_delivery_of_two_cameras_that_share_a_window(tmp_path: Path) -> None:
    camera = PlayedCamera.of_pattern(320, 240, 20, 10.0, ("left", "right"))
    arguments = ["-p", "backbone:=fake", "-p", "keyframe.mode:=every", "-p", "tf.mode:=off", "-p", "input.depth:=30"]
    run = run_live(camera, tmp_path, arguments, record_inputs=False)
    recording = read_recording(run.recording)
    counts = {k: int(v) for k, v in recording.input.items() if k.startswith(("received", "used", "pending", "dropped"))}
    assert len(run.sent) == 40 and run.settled and counts["received"] >= 36
    assert 2 * counts["received"] == sum(counts.values()) and counts["used"] >= 2
    assert counts["used"] / 2 <= recording.counts["/come/odometry"] <= 20  # a pose of every image that both sent
    for name in ("left", "right"):
        assert recording.counts[f"/come/{name}/depth/image"] == counts["used"] / 2


def test_perfect_answers_score_perfectly(small_bag: Path) -> None:
    from come_ros.camera.preprocess import in_model_pixels
    from come_ros.datasets.rosbag import Bag
    from come_ros.geometry import BODY_FROM_OPTICAL
    from come_ros.ros.programs.live import LiveRun
    from come_ros.tools.report.live_scores import Published

    recording = Published(points_frame="c", camera="c")
    with Bag(small_bag) as bag:
        for (stamp, pose), (_, depth) in zip(bag.truth().items(), bag.iter_depth(), strict=True):
            recording.odom_from_camera[stamp] = BODY_FROM_OPTICAL @ pose
            recording.odom_from_camera[stamp][:3, 3] /= 3
            recording.depth[stamp] = in_model_pixels(depth, (42, 56)) / 3
    recording.input = {"received": "60", "used": "60", "pending": "0", "dropped_busy": "0"}
    truth = read_truth(small_bag, recording)
    run = LiveRun([(s, s) for s in recording.depth], Path("x"), True, True, 1, 1, 0, 0, 1)
    metrics = score(run, recording, truth, "/camera/image_raw")
    for scaled in ("per_frame", "per_sequence"):
        assert metrics["depth"][scaled]["come_ros"] == {"abs_rel": pytest.approx(0, abs=1e-5), "delta": 1.0}
        assert metrics["depth"][scaled]["constant depth"]["delta"] < 0.95
    assert metrics["trajectory"]["ate_rmse_m"]["come_ros"] == pytest.approx(0, abs=1e-4)
    assert metrics["rotation"]["median_deg"]["come_ros"] == pytest.approx(0, abs=1e-3)
    assert of_metrics(metrics).line == "doubtful: the node has published too few keyframes to judge by"
    recording.output = {"verdict": "usable", "verdict_reason": "a; b", "verdict_advice": "none", "path_extent": "0.3"}
    assert of_metrics(score(run, recording, truth, "/camera/image_raw")).line.startswith("usable: a; b; ATE ")
    recording.depth = {stamp: np.ones_like(depth) for stamp, depth in recording.depth.items()}
    bad = of_metrics(score(run, recording, truth, "/camera/image_raw"))
    assert bad.level == "doubtful" and "depth is no better than a" in bad.line


def left_running(folder: Path) -> list[str]:
    """The same after a while in which a process can notice that the one which started it is gone."""
    end = time.monotonic() + 20
    while (found := running(folder)) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def running(folder: Path) -> list[str]:
    """Living processes whose command line or log folder lies in `folder`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment, command = (entry / "environ").read_bytes(), (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if int(entry.name) != os.getpid() and f"ROS_LOG_DIR={folder}".encode() in environment and command:
            found.append(command.replace(b"\0", b" ").decode())
    return found
