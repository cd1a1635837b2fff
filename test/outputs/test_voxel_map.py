"""The voxel map: one point a voxel, bounded, the same whatever the batches."""

import numpy as np
import pytest

from come_ros.outputs.cloud import POINT_DTYPE
from come_ros.outputs.voxel_map import VoxelMap


def points(xyz, rgb=(10, 20, 30), conf=1.0):
    out = np.zeros(len(xyz), POINT_DTYPE)
    for i, name in enumerate("xyz"):
        out[name] = np.asarray(xyz, np.float32)[:, i]
    out["rgb"] = np.full(len(xyz), rgb[0] << 16 | rgb[1] << 8 | rgb[2], np.uint32).view(np.float32)
    out["conf"] = conf
    return out


def xyz_of(cloud):
    return np.stack([cloud[n] for n in "xyz"], axis=-1)


def test_points_of_one_voxel_become_their_mean_weighted_by_confidence():
    m = VoxelMap(0.1, 100)
    m.add(points([[0.01, 0.02, 0.03]], (0, 0, 0), conf=1.0))
    m.add(points([[0.05, 0.06, 0.07]], (200, 100, 40), conf=3.0))
    m.add(points([[-0.05, 0, 0]]))
    got = m.points()
    assert len(m) == len(got) == 2
    near = xyz_of(got)[got["x"] > 0][0]
    np.testing.assert_allclose(near, [0.04, 0.05, 0.06], atol=1e-6)
    bits = got["rgb"][got["x"] > 0].view(np.uint32)[0]
    assert [bits >> 16, bits >> 8 & 255, bits & 255] == [150, 75, 30]
    assert got["conf"].max() == 3.0


def test_the_oldest_are_given_up_first():
    m = VoxelMap(1.0, 10)
    for i in range(30):
        m.add(points([[i + 0.5, 0, 0]]))
        m.add(points([[100.5, 0, 0]]))  # seen again and again
    assert len(m) == 10
    assert sorted(m.points()["x"]) == [*(i + 0.5 for i in range(21, 30)), 100.5]


@pytest.mark.parametrize("seed", range(2))
def test_against_a_dictionary(seed):
    rng = np.random.default_rng(seed)
    m = VoxelMap(0.25, 10**6)
    means = {}
    for _ in range(4):
        cloud = points(rng.normal(0, 3, (300, 3)), conf=rng.uniform(1, 4, 300))
        m.add(cloud)
        for p in cloud:
            key = tuple(int(v) for v in np.floor(np.array([p["x"], p["y"], p["z"]], np.float64) / 0.25))
            total, weight = means.get(key, (np.zeros(3), 0.0))
            means[key] = (total + p["conf"] * np.array([p["x"], p["y"], p["z"]], np.float64), weight + p["conf"])
    got = m.points()
    assert len(got) == len(means)
    for p in got[:: len(got) // 50]:
        xyz = np.array([p["x"], p["y"], p["z"]], np.float64)
        near = min(means.values(), key=lambda v: np.abs(v[0] / v[1] - xyz).max())
        np.testing.assert_allclose(near[0] / near[1], xyz, atol=1e-5)


def test_what_is_not_finite_or_out_of_reach_is_left_out():
    m = VoxelMap(0.05, 100)
    m.add(points([[np.nan, 0, 0], [np.inf, 0, 0], [1e9, 0, 0], [1, 2, 3]]))
    m.add(points(np.empty((0, 3))))
    assert len(m) == 1
    m.clear()
    assert len(m) == 0 and len(m.points()) == 0


def test_organised_clouds_and_repeatable_bytes():
    rng = np.random.default_rng(0)
    clouds = [points(rng.normal(0, 3, (60, 3))).reshape(6, 10) for _ in range(4)]
    maps = [VoxelMap(0.2, 50) for _ in range(2)]
    for m in maps:
        for cloud in clouds:
            m.add(cloud)
    assert maps[0].points().tobytes() == maps[1].points().tobytes()
