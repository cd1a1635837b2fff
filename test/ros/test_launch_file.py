"""The launch files run for real: the node comes up with the arguments it was given, and goes with the launch.

launch and launch_ros are not on PyPI, so this runs on a ROS installation (or with their sources on PYTHONPATH).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ros.live_node import PATIENCE_S

REASON = "launch and launch_ros are not installed (they come with a ROS installation)"
pytest.importorskip("launch_ros", reason=REASON)
pytest.importorskip("launch.launch_service", reason=REASON)  # this repository has a folder of that name

ROOT = Path(__file__).resolve().parents[2]
RUN = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
service = LaunchService()
arguments = [a.split(":=", 1) for a in sys.argv[2:]]
source = PythonLaunchDescriptionSource(sys.argv[1])
service.include_launch_description(LaunchDescription([IncludeLaunchDescription(source, launch_arguments=arguments)]))
sys.exit(service.run())
"""


def launch(prefix: Path, file: str, *arguments: str) -> subprocess.Popen[str]:
    """`ros2 launch come_ros FILE ARGUMENTS...`, with `prefix`/bin first on PATH."""
    environment = {
        **os.environ,
        "AMENT_PREFIX_PATH": os.pathsep.join([str(prefix), os.environ.get("AMENT_PREFIX_PATH", "")]).rstrip(os.pathsep),
        "PYTHONPATH": os.pathsep.join(
            [*(p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p), str(ROOT)]
        ),
        "PATH": os.pathsep.join([str(prefix / "bin"), os.environ["PATH"]]),
        "PYTHONUNBUFFERED": "1",
    }
    (prefix / "run.py").write_text(RUN)
    command = [sys.executable, str(prefix / "run.py"), str(ROOT / "launch" / file), *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a shell ignores in what runs in the background
    )  # fmt: skip


def interrupt(launched: subprocess.Popen[str]) -> str:
    """Ctrl-C, which reaches all processes of a terminal; the whole log."""
    os.killpg(launched.pid, signal.SIGINT)
    try:
        return launched.communicate(timeout=PATIENCE_S)[0]
    except subprocess.TimeoutExpired:
        os.killpg(launched.pid, signal.SIGKILL)
        pytest.fail(f"it did not end after SIGINT:\n{launched.communicate()[0]}", pytrace=False)


def log_at_the_end(launched: subprocess.Popen[str], timeout_s: float = 3 * PATIENCE_S) -> str:
    """Of what ends by itself."""
    try:
        return launched.communicate(timeout=timeout_s)[0]
    except subprocess.TimeoutExpired:
        pytest.fail(f"it did not end within {timeout_s:g} s:\n{interrupt(launched)}", pytrace=False)


def test_arguments_win_over_the_file_and_the_file_over_the_defaults(prefix: Path, peer) -> None:
    from rcl_interfaces.srv import GetParameters
    from ros.live_node import wait_until

    own = prefix / "own.yaml"
    own.write_text("/**:\n  ros__parameters:\n    backbone: vggt\n    odom_frame: from_file\n    window: {size: 5}\n")
    launched = launch(prefix, "come.launch.py", f"params_file:={own}", "namespace:=robot", "backbone:=fake",
                      "image_topic:=/cam/image_raw")  # fmt: skip
    try:
        client = peer.node.create_client(GetParameters, "/robot/come/get_parameters")
        wait_until(client.service_is_ready, what="the node")
        names = ["backbone", "odom_frame", "window.size", "device", "use_sim_time"]
        future = client.call_async(GetParameters.Request(names=names))
        wait_until(future.done)
        values = future.result().values
        assert [values[0].string_value, values[1].string_value] == ["fake", "from_file"]
        assert (values[2].integer_value, values[3].string_value, values[4].bool_value) == (5, "auto", False)
        wait_until(lambda: peer.node.count_subscribers("/cam/image_raw"), what="the remapped image topic")
        wait_until(lambda: peer.node.count_subscribers("/cam/camera_info"), what="camera_info next to it")
    finally:
        log = interrupt(launched)
    assert launched.returncode == 0, log
    assert "process has finished cleanly" in log and "Traceback" not in log


ROS2 = """
import json, os, subprocess, sys, time
with open(os.path.join(os.path.dirname(__file__), "calls"), "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
if sys.argv[1:3] == ["bag", "play"]:
    options = dict(zip(sys.argv[4:], sys.argv[5:]))
    command = [sys.executable, "-m", "come_ros.ros.programs.player", sys.argv[3], "--rate", options["--rate"], "--reliability", "reliable"]
    while True:
        code = subprocess.call(command)
        if code or "--loop" not in sys.argv:
            sys.exit(code)
else:
    try:
        time.sleep(100)
    except KeyboardInterrupt:
        pass
"""
"""Stands in for the command `ros2`, which is not on PyPI: plays bags over DDS by our own player."""


@pytest.fixture
def ros2(prefix: Path) -> Path:
    """The file that tells how `ros2` was called, one line each."""
    command = prefix / "bin/ros2"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\n{ROS2}")
    command.chmod(0o755)
    return command.with_name("calls")


@pytest.fixture
def bag(prefix: Path) -> Path:
    """Twelve images of 320x240 at 10 Hz, with camera_info."""
    from ros.live_node import START_NS, STEP_NS, K, picture

    from come_ros.datasets.bag_writer import BagWriter
    from come_ros.types import Frame

    with BagWriter(prefix / "recorded") as writer:
        for i in range(12):
            writer.write(Frame(picture(i), START_NS + i * STEP_NS, "cam", K))
    return prefix / "recorded"


@pytest.fixture
def own(prefix: Path) -> str:
    path = prefix / "own.yaml"
    path.write_text(
        "/**:\n  ros__parameters:\n    keyframe: {mode: every}\n    diagnostics: {period: 0.2}\n    max_data_age: 0.0\n"
        "    input: {reliability: reliable, depth: 50}\n"
    )
    return f"params_file:={path}"


def test_a_bag_is_played_once_the_node_is_active_and_all_ends_with_it(prefix, ros2, bag, own, peer) -> None:
    from diagnostic_msgs.msg import DiagnosticArray
    from nav_msgs.msg import Odometry

    peer.listen("/diagnostics", DiagnosticArray)
    peer.listen("/robot/come/odometry", Odometry)
    record = prefix / "out"
    launched = launch(prefix, "bag.launch.py", f"bag:={bag}", own, "namespace:=robot", "backbone:=fake", "rviz:=false",
                      "rate:=2.0", "start_offset:=0.0", f"record:={record}")  # fmt: skip
    log = log_at_the_end(launched)
    assert launched.returncode == 0, log
    assert "Traceback" not in log and "the bag is over" in log
    calls = [json.loads(line) for line in ros2.read_text().splitlines()]
    assert [c[:2] for c in calls] == [["bag", "record"], ["bag", "play"]]
    assert {"--clock", "--rate", "2.0", "--start-offset", "0.0", "--delay"} <= set(calls[1]) and "--loop" not in calls[
        1
    ]
    import re

    assert calls[0][2:5] == ["-o", str(record), "--regex"]
    for topic in ("/robot/come/points", "/robot/come/map_points", "/robot/come/left/points", "/tf", "/diagnostics"):
        assert re.fullmatch(calls[0][5], topic), topic
    assert not re.search(calls[0][5], "/robot/come/points/more") and not re.search(calls[0][5], "/camera/image_raw")
    status = peer.status("come: input")
    assert (status["topic"], status["received"]) == ("/camera/image_raw", "12"), "the node was ready for the first one"
    assert int(status["used"]) == len(peer.received["/robot/come/odometry"]) > 5
    assert status["clock"].startswith("sim")
    assert log.index("active: waiting") < log.index("bag_play-")


def test_a_bag_in_a_loop_goes_on_until_it_is_stopped(prefix, ros2, bag, own, peer) -> None:
    from diagnostic_msgs.msg import DiagnosticArray
    from ros.live_node import wait_until

    peer.listen("/diagnostics", DiagnosticArray)
    launched = launch(
        prefix, "bag.launch.py", f"bag:={bag}", own, "backbone:=fake", "rviz:=false", "loop:=true", "rate:=4.0"
    )
    try:
        wait_until(lambda: int(peer.status("come: input").get("received", 0)) > 12, what="the second round")
        wait_until(lambda: int(peer.status("come: output")["resets"]) > 0, what="time that jumps back")
        assert launched.poll() is None
    finally:
        log = interrupt(launched)
    assert launched.returncode == 0, log


def test_a_node_that_cannot_start_ends_the_launch(prefix, ros2, bag, own) -> None:
    launched = launch(
        prefix, "bag.launch.py", f"bag:={bag}", own, "weights:=/no/such.safetensors", "device:=cpu", "rviz:=false"
    )
    log = log_at_the_end(launched)
    assert "the node cannot be activated" in log and "/no/such.safetensors" in log
    assert not ros2.exists(), "nothing was played"


def test_a_bag_that_is_not_there_is_said_at_once(prefix, ros2) -> None:
    launched = launch(prefix, "bag.launch.py", "bag:=/no/such/bag", "rviz:=false")
    log = log_at_the_end(launched)
    assert launched.returncode != 0 and "/no/such/bag does not exist" in log
