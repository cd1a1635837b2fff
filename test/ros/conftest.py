"""Fixtures for tests that talk over DDS; without rclpy these tests are skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install '.[ros]', or source a ROS installation")

import rclpy
from ros.live_node import NodeProcess, Peer


@pytest.fixture
def start_node() -> Iterator[Callable[..., NodeProcess]]:
    """start_node(*ros_arguments, script=..., env=...) -> NodeProcess, ended after the test."""
    started: list[NodeProcess] = []

    def start(*arguments: str, **options: Any) -> NodeProcess:
        started.append(NodeProcess(*arguments, **options))
        return started[-1]

    yield start
    for node in started:
        node.close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    context = rclpy.Context()
    rclpy.init(context=context)
    made = Peer(context)
    yield made
    made.close()
    context.try_shutdown()
