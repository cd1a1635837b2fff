"""come.launch.py run for real: the node comes up with the arguments it was given, and goes with the launch.

launch and launch_ros are not on PyPI, so this runs on a ROS installation (or with their sources on PYTHONPATH).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """An install prefix as colcon makes it, of this checkout."""
    marker = tmp_path / "share/ament_index/resource_index/packages/come_ros"
    marker.parent.mkdir(parents=True)
    marker.touch()
    (tmp_path / "share/come_ros").mkdir()
    (tmp_path / "share/come_ros/config").symlink_to(ROOT / "config")
    executable = tmp_path / "lib/come_ros/come_node"
    executable.parent.mkdir(parents=True)
    executable.write_text(f"#!/bin/sh\nexec '{sys.executable}' -m come_ros.ros.node \"$@\"\n")
    executable.chmod(0o755)
    return tmp_path


def test_arguments_win_over_the_file_and_the_file_over_the_defaults(prefix: Path, peer) -> None:
    import signal

    from rcl_interfaces.srv import GetParameters
    from ros.live_node import wait_until

    own = prefix / "own.yaml"
    own.write_text("/**:\n  ros__parameters:\n    backbone: vggt\n    odom_frame: from_file\n    window: {size: 5}\n")
    environment = {
        **os.environ,
        "AMENT_PREFIX_PATH": os.pathsep.join([str(prefix), os.environ.get("AMENT_PREFIX_PATH", "")]).rstrip(os.pathsep),
        "PYTHONPATH": os.pathsep.join(
            [*(p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p), str(ROOT)]
        ),
        "PYTHONUNBUFFERED": "1",
    }
    (prefix / "run.py").write_text(RUN)
    launched = subprocess.Popen(
        [sys.executable, str(prefix / "run.py"), str(ROOT / "launch/come.launch.py"), f"params_file:={own}",
         "namespace:=robot", "backbone:=fake", "image_topic:=/cam/image_raw"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        client = peer.node.create_client(GetParameters, "/robot/come/get_parameters")
        wait_until(client.service_is_ready, 20.0, "the node")
        names = ["backbone", "odom_frame", "window.size", "device", "use_sim_time"]
        future = client.call_async(GetParameters.Request(names=names))
        wait_until(future.done)
        values = future.result().values
        assert [values[0].string_value, values[1].string_value] == ["fake", "from_file"]
        assert (values[2].integer_value, values[3].string_value, values[4].bool_value) == (5, "auto", False)
        wait_until(lambda: peer.node.count_subscribers("/cam/image_raw"), what="the remapped image topic")
        wait_until(lambda: peer.node.count_subscribers("/cam/camera_info"), what="camera_info beside it")
    finally:
        launched.send_signal(signal.SIGINT)
        log = launched.communicate(timeout=15)[0]
    assert launched.returncode == 0, log
    assert "process has finished cleanly" in log and "Traceback" not in log
