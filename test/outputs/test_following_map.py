"""A map that moves with its keyframes, and a world that follows loops while it goes on."""

from __future__ import annotations

import numpy as np
import pytest
from mapping.scenes import submap_of

from come_ros import geometry
from come_ros.config import Config
from come_ros.datasets.bag_writer import rosbags_messages
from come_ros.mapping.graph import Similarities
from come_ros.mapping.mapper import Corrections, Mapper
from come_ros.outputs import world as module
from come_ros.outputs.cloud import POINT_DTYPE, moved
from come_ros.outputs.following_map import FollowingMap, rebuilt, thinned
from come_ros.outputs.world import World

SHIFT = geometry.transform(geometry.rotation_from_vector([0, 0, 0.3]), [1.0, -2.0, 0.5])


def cloud(n: int, seed: int = 0, x: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    out = np.zeros(n, POINT_DTYPE)
    for name in "xyz":
        out[name] = rng.uniform(-1, 1, n)
    out["x"] += x
    out["conf"] = rng.uniform(1, 2, n)
    return out


def corrections(*poses: np.ndarray, version: int = 1) -> Corrections:
    return Corrections(10 * np.arange(len(poses), dtype=np.int64), Similarities.of(np.stack(poses)), version)


def places(points: np.ndarray) -> np.ndarray:
    return np.stack([points[n] for n in "xyz"], axis=1)


def test_points_go_where_their_keyframe_goes() -> None:
    m = FollowingMap(0.05, 10**6, True)
    a, b, c = cloud(200, 1), cloud(200, 2, 5.0), cloud(200, 3, 10.0)
    m.add(a, (0, 0), Corrections.none())
    m.add(b, (0, 12), Corrections.none())
    now = corrections(np.eye(4), SHIFT)
    chunks = m.chunks()
    new = rebuilt(chunks, now, m.voxel, m.max_points)
    m.add(c, (0, 25), now)  # while it was being built
    m.swap(new, chunks, now)
    expected = np.concatenate([places(a), places(moved(b, SHIFT)), places(moved(c, SHIFT))])
    got = places(m.points())
    off = np.linalg.norm(got[:, None] - expected[None], axis=2)
    assert off.min(axis=1).max() < 0.05 and off.min(axis=0).max() < 0.05, "each in its voxel, none lost"
    assert np.array_equal(FollowingMap(0.05, 10, False).chunks(), [])


def test_chunks_are_bounded_and_the_surest_stay() -> None:
    chunk_map = FollowingMap(0.5, 10**6, True)
    for i in range(20):
        chunk_map.add(cloud(3000, i), (0, i), Corrections.none())
    whole = chunk_map.chunks()
    kept = thinned(whole, 0.5, 10**6, Corrections.none())
    keys = np.concatenate([c.voxels(0.5) for _, c in kept])
    assert len(keys) == len(np.unique(keys)) == len(np.unique(np.concatenate([c.voxels(0.5) for _, c in whole])))
    best = max(float(c.weight.max()) for _, c in whole)
    assert max(float(c.weight.max()) for _, c in kept) == best
    assert sum(len(c.weight) for _, c in thinned(whole, 0.5, 30, Corrections.none())) == 30


@pytest.fixture
def messages():
    typesys = pytest.importorskip("rosbags.typesys")
    return rosbags_messages(typesys.get_typestore(typesys.Stores.ROS2_JAZZY))


class OneLoop(Mapper):
    """Closes a loop at the third keyframe."""

    def add(self, submap, row, trusted=None) -> bool:
        stamp = submap.frames[row].stamp_ns
        if stamp < 30:
            self.corrections = corrections(*[np.eye(4)] * 3, version=0)
            return False
        self.counts.accepted = 1
        self.corrections = corrections(np.eye(4), np.eye(4), np.eye(4), SHIFT)
        return True


def test_a_world_goes_on_while_it_follows_a_loop(messages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Mapper", OneLoop)
    w = World(Config().replace(**{"map.enabled": True, "loop.enabled": True}), messages)
    assert w.loops is None and np.array_equal(w.map_from_odom(), np.eye(4))

    def keyframe(stamp: int) -> None:
        pose = geometry.transform(np.eye(3), [0.1 * stamp, 0, 0])
        w.add_pose(stamp, pose)
        w.add_points(lambda: cloud(100, stamp, 0.1 * stamp), np.ones((2, 2), np.float32), stamp)
        w.add_keyframe(submap_of(stamp, pose), 0)

    for stamp in (0, 10, 20):
        keyframe(stamp)
    w.work()
    w.settle()
    keyframe(30)
    w.work()
    assert np.array_equal(w.map_from_odom(), SHIFT)
    keyframe(40)  # the map has not followed yet
    changes = w.map_changes, w.path_changes
    w.settle()
    assert w.map_changes > changes[0] and w.path_changes > changes[1]
    path = [[p.pose.position.x, p.pose.position.y, p.pose.position.z] for p in w.path().poses]
    assert len(path) == 5 and w.path().header.frame_id == "visual_map"
    np.testing.assert_allclose(path[-1], (SHIFT @ [4, 0, 0, 1])[:3], atol=1e-9)
    np.testing.assert_allclose(path[3], (SHIFT @ [3, 0, 0, 1])[:3], atol=1e-9)
    np.testing.assert_allclose(path[1], [1, 0, 0], atol=1e-9)
    shot = w.snapshot()
    np.testing.assert_allclose(shot.trajectory[40][:3, 3], [4, 0, 0])
    np.testing.assert_allclose(shot.map_trajectory[40], SHIFT @ shot.trajectory[40], atol=1e-9)
    w.clear()
    w.work()
    assert w.loops is None and np.array_equal(w.map_from_odom(), np.eye(4)) and not w.path().poses


def test_without_loops_there_is_no_map_frame(messages) -> None:
    for how in ({"loop.enabled": False}, {"loop.enabled": True, "map_frame": "visual_odom"}):
        w = World(Config().replace(**how), messages)
        w.add_pose(1, np.eye(4))
        w.add_keyframe(submap_of(1, np.eye(4)), 0)
        w.work()
        assert w.map_from_odom() is None and w.loops is None and w.path().header.frame_id == "visual_odom"
