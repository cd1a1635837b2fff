"""The demo's walk: once round a room and back, clear of everything, and chosen by a rule that looks at the geometry only."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from come_ros.datasets.rooms import tour
from come_ros.datasets.rooms.camera import CLEARANCE_M
from come_ros.datasets.rooms.scene import make_scene
from come_ros.datasets.rooms.splits import SPLIT_SEEDS
from come_ros.tools import demo


@pytest.fixture(scope="module")
def walk() -> np.ndarray:
    return tour.tour_path(make_scene(demo.SEED), demo.SEED, demo.FRAMES, demo.HZ)


def test_the_walk_goes_round_and_comes_back(walk: np.ndarray) -> None:
    places, steps = walk[:, :3, 3], np.linalg.norm(np.diff(walk[:, :3, 3], axis=0), axis=1)
    assert tour.LENGTH_M[0] <= steps.sum() / tour.ROUNDS <= tour.LENGTH_M[1] + 1
    assert np.linalg.norm(places - places[0], axis=1).max() > 1.5  # it leads away
    again = round(len(walk) / tour.ROUNDS)  # and is back here
    assert np.linalg.norm(places[again] - places[0]) < 0.2
    facing = np.degrees(np.arccos(np.clip(walk[again, :3, 2] @ walk[0, :3, 2], -1, 1)))
    assert facing < 25, "it sees what it saw at first, or no loop can be closed"
    assert steps.max() < 3 * np.median(steps), "a hand, no jumps"
    turns = walk[:, :3, :3]
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), np.tile(np.eye(3), (len(walk), 1, 1)), atol=1e-12)
    assert np.linalg.det(turns) == pytest.approx(1)
    assert make_scene(demo.SEED).clearance(places).min() >= CLEARANCE_M


def test_it_is_the_same_each_time_and_refused_where_there_is_no_space(walk: np.ndarray) -> None:
    scene = make_scene(demo.SEED)
    np.testing.assert_array_equal(tour.tour_path(scene, demo.SEED, demo.FRAMES, demo.HZ), walk)
    small = dataclasses.replace(scene, room=np.array([1.2, 1.2, 2.5]))
    with pytest.raises(ValueError, match="no space for a walk of 5 to 9 m"):
        tour.tour_path(small, demo.SEED, demo.FRAMES, demo.HZ)
    with pytest.raises(ValueError, match="frames"):
        tour.tour_path(scene, demo.SEED, 3, demo.HZ)


def test_an_empty_room_is_not_furnished(walk: np.ndarray) -> None:
    scene = make_scene(demo.SEED)
    assert tour.is_furnished(scene, walk)
    bare = dataclasses.replace(scene, shapes=scene.shapes[:0], records=scene.records[:0])
    assert not tour.is_furnished(bare, walk)
    up = walk.copy()
    up[:, :3, :3] = np.array([[1.0, 0, 0], [0, -1.0, 0], [0, 0, 1.0]])  # at the ceiling
    assert not tour.is_furnished(scene, up)


def test_the_demo_shows_the_first_room_that_fulfils_the_rule() -> None:
    assert tour.first_toured(SPLIT_SEEDS["validation"], demo.FRAMES, demo.HZ) == demo.SEED
    with pytest.raises(ValueError, match="no room"):
        tour.first_toured([], demo.FRAMES, demo.HZ)


def test_the_ellipse_is_walked_at_a_constant_speed() -> None:
    places, heading, length = tour._round(np.array([1.0, 2.0]), np.linspace(0, 1, 200), 1, 0.3)
    steps = np.linalg.norm(np.diff(places, axis=0), axis=1)
    assert steps.std() < 0.01 * steps.mean() and length == pytest.approx(9.69, abs=0.01)
    along = np.diff(places, axis=0)
    off = np.angle(np.exp(1j * (np.arctan2(along[:, 1], along[:, 0]) - heading[:-1])))
    assert np.abs(off).max() < math.radians(3)
