"""How the map follows the scale: path, points, TF and what is saved, in metres where the odometry is not."""

from __future__ import annotations

import numpy as np
import pytest
from mapping.scenes import submap_of

from come_ros import geometry
from come_ros.config import Config
from come_ros.datasets.bag_writer import rosbags_messages
from come_ros.datasets.tum import read_trajectory
from come_ros.mapping.lengths import smoothed
from come_ros.mapping.mapper import Mapper
from come_ros.outputs.cloud import POINT_DTYPE
from come_ros.outputs.world import World
from come_ros.types import NO_SCALE, Scale

TWICE = Scale(2.0, 0.02, "odometry", 5)


@pytest.fixture
def messages():
    typesys = pytest.importorskip("rosbags.typesys")
    return rosbags_messages(typesys.get_typestore(typesys.Stores.ROS2_JAZZY))


def world_of(messages, **flat) -> World:
    return World(Config.from_flat({"scale.mode": "odometry", "map.enabled": True, "map.voxel": 0.01, **flat}), messages)


def drive(world: World, scale: Scale, stamps: range) -> None:
    point = np.ones(1, POINT_DTYPE)
    for i in stamps:
        world.learn_scale(scale)
        pose = geometry.transform(geometry.rotation_from_vector([0, 0, 0.1 * i]), [float(i), 0.0, 0.0])
        world.add_pose(i, pose)
        point["x"] = i
        world.add_points(point.copy, np.full((2, 2), 3.0, np.float32), i)


def places(path) -> list[float]:
    return [p.pose.position.x for p in path.poses]


def test_path_and_map_are_in_metres_once_these_are_known_and_odometry_stays(messages, tmp_path) -> None:
    world = world_of(messages)
    drive(world, NO_SCALE, range(3))
    assert places(world.path()) == [0, 1, 2] and not world.in_metres and np.isnan(world.metres())
    np.testing.assert_array_equal(world.map_from_odom(), np.eye(4))
    changes = world.path_changes, world.map_changes
    world.learn_scale(TWICE)
    assert world.path_changes > changes[0] and world.map_changes > changes[1] and world.in_metres
    assert places(world.path()) == [0, 2, 4] and world.metres() == 2.0 and world.map_voxel == 2 * world.voxel
    drive(world, TWICE, range(3, 5))
    assert places(world.path()) == [0, 2, 4, 6, 8] and world.path().header.frame_id == "visual_map"
    shot = world.snapshot()
    assert sorted(shot.points["x"]) == [0, 2, 4, 6, 8]
    assert [shot.trajectory[i][0, 3] for i in range(5)] == [0, 1, 2, 3, 4]
    assert [shot.map_trajectory[i][0, 3] for i in range(5)] == [0, 2, 4, 6, 8]
    shot.save(tmp_path / "map")
    text = (tmp_path / "map" / "trajectory_map.tum").read_text()
    assert text.startswith("# lengths in metres, from odometry, sigma 2.0 %")
    assert b"lengths in metres" in (tmp_path / "map" / "map.ply").read_bytes()[:200]
    assert b"lengths in metres" in (tmp_path / "map" / "map.pcd").read_bytes()[:200]
    assert "metres" not in (tmp_path / "map" / "trajectory.tum").read_text()
    back = read_trajectory(tmp_path / "map" / "trajectory_map.tum")
    assert len(back) == 5


def test_the_edge_of_the_map_puts_the_robot_where_the_map_has_it(messages) -> None:
    world = world_of(messages)
    drive(world, TWICE, range(4))
    for i in range(4):
        pose = world.snapshot().trajectory[i]
        edge = world.map_from_odom(pose)
        np.testing.assert_allclose(edge @ pose, world.snapshot().map_trajectory[i], atol=1e-12)
        assert geometry.is_finite_pose(edge)


def test_a_world_in_metres_has_no_factor_and_small_changes_wait(messages) -> None:
    world = world_of(messages)
    metric = Scale(2.0, 0.02, "depth", 5, unit=2.0, in_metres=True)
    drive(world, metric, range(3))
    changes = world.path_changes, world.map_changes
    world.learn_scale(Scale(2.002, 0.02, "depth", 6, unit=2.0, in_metres=True))
    assert (world.path_changes, world.map_changes) == changes and places(world.path()) == [0, 1, 2]
    world.learn_scale(Scale(2.2, 0.02, "depth", 7, unit=2.0, in_metres=True))
    assert places(world.path()) == pytest.approx([0, 1.1, 2.2])
    world.clear()
    assert np.isnan(world.metres()) and not world.in_metres and world.map_from_odom() is not None


def test_without_a_frame_for_the_map_nothing_is_scaled(messages) -> None:
    world = world_of(messages, **{"tf.mode": "off"})
    drive(world, TWICE, range(3))
    assert places(world.path()) == [0, 1, 2] and world.map_from_odom() is None and not world.in_metres
    assert world.snapshot().unit == ""


# drift of the scale


def test_the_smoother_knows_the_future() -> None:
    nan = float("nan")
    assert smoothed(np.array([nan, nan]), np.array([nan, nan])).tolist() == [0, 0]
    found = smoothed(np.array([nan, 1.0, 1.0, nan, nan]), np.array([nan, 0.1, 0.1, nan, nan]))
    np.testing.assert_allclose(found, 1.0)
    errors = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        level = np.cumsum(0.02 * rng.standard_normal(60))
        filtered, sigma, out, sigmas = 0.0, 1.0, [], []
        for value in level + 0.05 * rng.standard_normal(60):
            sigma = np.hypot(sigma, 0.02)
            gain = sigma**2 / (sigma**2 + 0.05**2)
            filtered, sigma = filtered + gain * (value - filtered), sigma * np.sqrt(1 - gain)
            out.append(filtered)
            sigmas.append(sigma)
        smooth = smoothed(np.array(out), np.array(sigmas))
        errors.append([np.std(smooth[5:-5] - level[5:-5]), np.std(np.array(out)[5:-5] - level[5:-5])])
    assert np.mean(errors, axis=0)[0] < 0.8 * np.mean(errors, axis=0)[1]


@pytest.mark.slow
@pytest.mark.parametrize(("loops", "follows"), [(False, True), (True, True), (False, False)])
def test_drift_of_the_scale_is_taken_out_of_the_map(loops, follows) -> None:
    """The unit of odometry shrinks by 2 % from keyframe to keyframe, and a source says so; one that is a mean says nothing of drift."""
    mapper = Mapper(False, 1000, loops)
    metres = np.exp(0.02 * np.arange(30))
    place, poses = 0.0, []
    for i, length in enumerate(metres):
        poses.append(geometry.transform(np.eye(3), [place, 0.0, 0.0]))
        submap = submap_of(10 * i, poses[-1])
        mapper.add(
            type(submap)(**{**vars(submap), "scale": Scale(float(length), 0.005, "depth", 10 * i, follows=follows)}), 0
        )
        place += 0.5 / length  # half a metre each
    if not follows:
        assert mapper.corrections.version == 0
        return
    assert mapper.corrections.version > 0 and mapper.keyframes[-1].scale.metres == metres[-1]
    moved = mapper.corrections.map_from_odom.after(type(mapper.nodes).of(np.stack(poses)))
    in_metres = moved.translation[:, 0] * metres[-1]
    np.testing.assert_allclose(np.diff(in_metres), 0.5, rtol=0.05)
    assert np.ptp(np.diff([p[0, 3] for p in poses])) > 0.15


def test_a_known_constant_scale_leaves_the_map_where_odometry_has_it() -> None:
    mapper = Mapper(False, 1000, False)
    for i in range(10):
        submap = submap_of(10 * i, geometry.transform(np.eye(3), [0.5 * i, 0.0, 0.0]))
        mapper.add(type(submap)(**{**vars(submap), "scale": TWICE}), 0)
    assert mapper.corrections.version == 0
