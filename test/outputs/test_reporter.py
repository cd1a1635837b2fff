"""What the reporter does where two threads meet, and where cameras have stamps of their own."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from mapping.scenes import submap_of

from come_ros.config import Config
from come_ros.datasets.bag_writer import rosbags_messages
from come_ros.outputs.reporter import Reporter
from come_ros.tracking.odometry import Located


class Sink:
    def __init__(self) -> None:
        self.moves: list[int] = []
        self.worlds = 0

    def frame(self, topic, made) -> None: ...

    def moved(self, motion, config) -> None:
        self.moves.append(motion.stamp_ns)

    def new_world(self) -> None:
        self.worlds += 1


@pytest.fixture
def messages():
    typesys = pytest.importorskip("rosbags.typesys")
    return rosbags_messages(typesys.get_typestore(typesys.Stores.ROS2_JAZZY))


def located(stamp_ns: int, world: int) -> Located:
    frame = submap_of(stamp_ns, np.eye(4)).frames[0]
    return Located(frame, np.eye(4), np.eye(6), np.zeros(6), np.eye(6), 100, 90, 0.3, False, world=world)


def test_a_pose_of_an_older_world_is_not_published_in_a_newer_one(messages) -> None:
    sink, config = Sink(), Config()
    reporter = Reporter(sink, messages, config, False)
    reporter.add_located(located(1, 0), config)
    reporter.follow(1)  # the other thread publishes a window of a new world
    reporter.add_located(located(2, 0), config)
    assert sink.moves == [1] and sink.worlds == 1 and not reporter.world.path().poses
    reporter.add_located(located(3, 1), config)
    reporter.add_located(located(4, 2), config)  # the odometry is the first to see the end of a world
    assert sink.moves == [1, 3, 4] and sink.worlds == 2 and len(reporter.world.path().poses) == 1


def test_cameras_whose_stamps_differ_a_little_are_in_one_session(messages) -> None:
    config = Config().replace(**{"cameras": "left+right", "map.enabled": True, "cloud.edge_filter": False})
    reporter = Reporter(Sink(), messages, config, False, cameras=2)
    added: list[tuple[int, int]] = []
    assert reporter.world._map is not None
    reporter.world._map.add = lambda points, key, corrections: added.append(key)  # type: ignore[method-assign]
    for i in (1, 2):
        one = submap_of(1000 * i, np.eye(4))
        early = dataclasses.replace(one.frames[0], stamp_ns=1000 * i - 5)
        twice = {
            name: np.concatenate([getattr(one, name)] * 2)
            for name in ("images", "depth", "confidence", "intrinsics", "odom_from_camera")
        }
        submap = dataclasses.replace(one, frames=(one.frames[0], early), **twice)
        for row in range(2):
            reporter.add_row(submap, row, config)
    assert added == [(0, 1000), (0, 1000), (0, 2000), (0, 2000)]
