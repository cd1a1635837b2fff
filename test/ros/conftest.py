"""Fixtures for tests that talk over DDS; without rclpy these tests are skipped."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install '.[ros]', or source a ROS installation")

import rclpy
from marks import gives
from ros.live_node import ROOT, NodeProcess, Peer

NETWORK_ALONE = ("-p", "odometry.rate:=keyframe", "-p", "refine.mode:=none")


@pytest.fixture
@gives("ros")
def start_node() -> Iterator[Callable[..., NodeProcess]]:
    """start_node(*ros_arguments, script=..., env=...) -> NodeProcess, ended after the test.

    Poses are those of the model, at keyframes, unless an argument says otherwise: all topics then have the same stamps, and the
    stand-in's exact geometry comes out as it is. Odometry at the camera's rate and the bundle have tests of their own
    (test_locator.py, test_demo.py).
    """
    started: list[NodeProcess] = []

    def start(*arguments: str, **options: Any) -> NodeProcess:
        started.append(NodeProcess(*NETWORK_ALONE, *arguments, **options))
        return started[-1]

    yield start
    for node in started:
        node.close()


@pytest.fixture
@gives("ros")
def peer() -> Iterator[Peer]:
    context = rclpy.Context()
    rclpy.init(context=context)
    made = Peer(context)
    yield made
    made.close()
    context.try_shutdown()


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
    executable.write_text(f"#!/bin/sh\nexec '{sys.executable}' -m come_ros.ros.main \"$@\"\n")
    executable.chmod(0o755)
    return tmp_path
