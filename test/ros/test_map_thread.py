"""The thread that works on the map: it goes on after a failure, follows the present world, and ends when it is asked to."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from come_ros.mapping.mapper import LoopCounts
from come_ros.ros.map_thread import MOST_WORK, MapThread

PATIENCE_S = 10.0


class World:
    keyframes = 3
    searches = False

    def __init__(self, fails: int = 0) -> None:
        self.fails, self.worked, self.settled = fails, 0, 0
        self.loops = LoopCounts()
        self.twice = threading.Event()

    def work(self, most: int) -> None:
        assert most == 1, "between two keyframes it may rest"
        self.worked += 1
        self.loops.accepted += 1
        if self.worked <= self.fails:
            raise ValueError("a keyframe that no graph can take")

    def settle(self) -> None:
        self.settled += 1
        if self.settled > 1:
            self.twice.set()


def test_it_goes_on_after_a_failure_and_follows_the_present_world(caplog: Any) -> None:
    worlds = [World(fails=2), World()]
    thread = MapThread(lambda: worlds[0])
    thread.start()
    assert worlds[0].twice.wait(PATIENCE_S)
    first, second = worlds
    worlds[0] = second
    assert second.twice.wait(PATIENCE_S)
    thread.stop(PATIENCE_S)
    assert not thread.is_alive() and first.worked > 2
    told = [r.getMessage() for r in caplog.records if "keyframe that no graph" in r.getMessage()]
    assert len(told) <= 1, "the same failure is logged once"


def test_one_that_was_never_started_can_be_stopped() -> None:
    begun = time.monotonic()
    MapThread(World).stop(PATIENCE_S)
    assert time.monotonic() - begun < PATIENCE_S


@pytest.mark.slow
def test_it_takes_no_more_than_its_share_of_a_core() -> None:
    class Slow(World):
        def work(self, most: int) -> None:
            super().work(most)
            time.sleep(0.2)

    world = Slow()
    thread = MapThread(lambda: world)
    begun = time.monotonic()
    thread.start()
    time.sleep(4.5)
    thread.stop(PATIENCE_S)
    assert 1 <= world.worked <= 1 + (time.monotonic() - begun) / (0.2 / MOST_WORK)
