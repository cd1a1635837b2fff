"""Walks that come back, and a corridor of equal doors."""

from __future__ import annotations

import numpy as np

from come_ros.datasets.rooms.raycast import render
from come_ros.datasets.rooms.returning import DOOR_SPACING_M, corridor, corridor_walk, returning_room


def test_a_walk_comes_back_and_is_seen_again() -> None:
    s = returning_room(10_000_100, 12, 32, 24)
    first, last = s.world_from_camera[0], s.world_from_camera[-1]
    assert np.linalg.norm(first[:3, 3] - last[:3, 3]) < 0.15
    assert not np.array_equal(s.images[0], s.images[-1]) and len(s.images) == len(s.depth) == 12
    again = returning_room(10_000_100, 12, 32, 24)
    assert np.array_equal(s.images, again.images) and np.array_equal(s.world_from_camera, again.world_from_camera)


def test_doors_cannot_be_told_from_each_other() -> None:
    scene = corridor(5, doors=6)
    walk = corridor_walk(5, 4, 6, 32, 24)
    pose = walk.world_from_camera[1].copy()
    pose[0, 3] = -DOOR_SPACING_M / 2
    poses = np.stack([pose, pose])
    poses[1, 0, 3] += DOOR_SPACING_M
    images, depth = render(scene, poses, scene.intrinsics(64, 48), 64, 48)
    np.testing.assert_allclose(depth[0], depth[1], rtol=1e-5)
    apart = np.abs(images[0].astype(int) - images[1]).max(axis=2)
    assert np.mean(apart <= 2) > 0.2 and images[0].std() > 10, "doors and signs; walls are lighter here than there"
