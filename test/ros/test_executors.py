"""The parameter `executor`: what it stands for with each rclpy, and a node that it runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from ros.live_node import START_NS, NodeProcess, Peer, picture, wait_until

from come_ros.errors import ConfigError
from come_ros.ros import executors

KILTED = executors._major() >= executors.FIRST_MAJOR


@pytest.mark.parametrize("major", [0, 3, 7, 9, 10])
def test_auto_and_the_default_are_the_single_threaded_one(monkeypatch: pytest.MonkeyPatch, major: int) -> None:
    monkeypatch.setattr(executors, "_version", lambda: f"{major}.1.6" if major else "")
    assert executors.chosen("auto") == executors.chosen("single_threaded") == "single_threaded"
    if major >= 9:
        assert executors.chosen("events") == "events"
    else:
        with pytest.raises(ConfigError, match=r"needs ROS 2 Kilted or newer.*set executor to auto or single_threaded"):
            executors.chosen("events")


@pytest.mark.slow
def test_a_node_with_the_events_executor_publishes_and_ends_or_says_what_it_needs(
    start_node: Callable[..., NodeProcess], peer: Peer
) -> None:
    node = start_node("-p", "backbone:=fake", "-p", "keyframe.mode:=every", "-p", "executor:=events")
    if not KILTED:
        assert node.process.wait(60) == 1 and "set executor to auto or single_threaded" in node.log
        return
    peer.listen_to_outputs()
    wait_until(peer.matched, what="the node")
    peer.send(picture(0), START_NS)
    wait_until(lambda: peer.received["/come/odometry"], what="odometry")
    assert "executor is events, an experiment" in node.log
    assert node.stop()[0] == 0
