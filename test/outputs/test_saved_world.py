"""A world that begins in a saved map: nothing of the session is in it until it is found there, then all of it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mapping.scenes import Scene, along, submap_of, wall

from come_ros import geometry
from come_ros.config import Config
from come_ros.datasets.bag_writer import rosbags_messages
from come_ros.errors import ConfigError, OutputError
from come_ros.mapping import mapper as mapper_module
from come_ros.mapping.saved_map import read_map
from come_ros.outputs.cloud import POINT_DTYPE
from come_ros.outputs.world import World
from come_ros.scale.decide import MAP_SIGMA
from come_ros.types import F64, Scale

MODEL = "some model"
MADE = {"map.enabled": True, "loop.enabled": True, "map.voxel": 0.05}
STEP_NS = 100_000_000
TURNED = geometry.transform(geometry.rotation_from_vector([0, 0, 1.0]), [3.0, -1.0, 0.5])


@pytest.fixture(scope="module")
def messages() -> Any:
    typesys = pytest.importorskip("rosbags.typesys")
    return rosbags_messages(typesys.get_typestore(typesys.Stores.ROS2_JAZZY))


@pytest.fixture(scope="module")
def scene() -> Scene:
    return wall(12.0)


def walk(
    world: World, scene: Scene, real: F64, odometry: F64, unit: float = 1.0, start: int = 1, settle: bool = True
) -> None:
    """Keyframes of a camera that sees `scene` from `real`, as the reporter adds them."""
    patch = pytest.MonkeyPatch()
    for i, (true, told) in enumerate(zip(real, odometry, strict=True), start):
        patch.setattr(mapper_module, "view_of", lambda *_, true=true, i=i: scene.view(true, unit, seed=i))
        submap = submap_of(i * STEP_NS, told, 2.0 * unit)
        points = np.ones(4, POINT_DTYPE)
        for axis, name in enumerate("xyz"):
            points[name] = told[axis, 3] + 0.1 * unit * np.arange(4) * (axis == 0)
        world.add_pose(i * STEP_NS, told)
        world.add_points(lambda points=points: points, submap.depth[0], i * STEP_NS)
        world.add_keyframe(submap, 0)
        world.work()
        if settle:
            world.settle()
    patch.undo()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, messages: Any, scene: Scene) -> Path:
    world = World(Config().replace(**MADE), messages, places=MODEL)
    real = along(np.linspace(2, 10, 20))
    walk(world, scene, real, real)
    out = tmp_path_factory.mktemp("maps") / "one"
    world.snapshot().save(out)
    return out


def world_in(folder: Path, messages: Any, **given: Any) -> World:
    config = Config().replace(**{"map.enabled": True, "map.load": str(folder), **given})
    return World(config, messages, saved=read_map(folder, MODEL), places=MODEL)


def places_of(world: World) -> F64:
    points = world.snapshot().points
    return np.stack([points[n] for n in "xyz"], axis=1)


def places_of_map(world: World) -> F64:
    world.settle()
    points = world._points()
    return np.stack([points[n] for n in "xyz"], axis=1)


def test_a_folder_holds_clouds_paths_and_keyframes(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == [
        "keyframes.safetensors", "map.json", "map.pcd", "map.ply", "trajectory.tum", "trajectory_map.tum",
    ]  # fmt: skip
    saved = read_map(folder, MODEL)
    assert len(saved.keyframes) == 20 and np.isnan(saved.metres) and saved.voxel == pytest.approx(0.1)


@pytest.mark.parametrize("mode", ["localize", "build"])
def test_until_it_is_found_nothing_of_the_session_is_in_the_map_and_then_all_is(
    mode: str, folder: Path, scene: Scene, messages: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "come_ros")
    world = world_in(folder, messages, **{"map.mode": mode})
    assert world.map_from_odom() is None and world.searches and world.map_points().header.frame_id == "visual_map"
    unit, real = 0.5, along(np.concatenate([np.linspace(20, 20.5, 3), np.linspace(5, 6, 6)]))
    odometry = geometry.transform_poses(unit, TURNED[:3, :3], TURNED[:3, 3], real)
    walk(world, scene, real[:3], odometry[:3], unit)  # past the end of the wall
    place = world.whereabouts
    assert place is not None and not place.located and place.keyframes == 20 and np.isnan(place.unit)
    assert world.map_from_odom() is None and not world.path().poses and world.scale() is not None
    before = len(places_of(world))
    assert before > 1000, "the saved points are there"
    shot = world.snapshot()
    assert len(shot.trajectory) == 3 and not shot.map_trajectory and shot.keyframes is None
    if mode == "build":
        with pytest.raises(OutputError, match=r"has not found itself in the map .*one yet.*move the camera"):
            shot.save(folder.parent / "none")
        assert not (folder.parent / "none").exists()

    walk(world, scene, real[3:], odometry[3:], unit, start=4)
    place = world.whereabouts
    assert place is not None and place.located and 0.3 <= place.after_s < 0.7
    assert place.unit * unit == pytest.approx(1.0, abs=0.03)
    assert sum("found in the map" in r.getMessage() for r in caplog.records) == 1
    now = world.map_from_odom()
    assert now is not None and geometry.is_finite_pose(now, 1e-9)
    path = np.array([[getattr(p.pose.position, n) for n in "xyz"] for p in world.path().poses])
    assert len(path) == 9, "those before it was found are in the map too"
    np.testing.assert_allclose(path[3:], real[3:, :3, 3], atol=0.1, err_msg="coordinates are those of the saved map")
    last = world.map_from_odom(odometry[-1])
    assert last is not None
    np.testing.assert_allclose((last @ odometry[-1])[:3, 3], path[-1], atol=1e-6)
    shot = world.snapshot()
    assert len(shot.map_trajectory) == 9
    assert world.voxel * place.unit == pytest.approx(0.1, rel=1e-6), "as fine as before, in another unit"
    after = len(places_of(world))
    if mode == "localize":
        assert shot.keyframes is None and after == pytest.approx(before, rel=0.1)
    else:
        assert shot.keyframes is not None and shot.keyframes.sessions == 2
        # and those of the frames before it was found
        assert np.linalg.norm(places_of(world) - path[0], axis=1).min() < 0.5

    world.clear()  # ~/reset, or time that jumps back
    assert world.map_from_odom() is None and world.searches and not world.path().poses
    world.add_pose(1, np.eye(4))
    assert len(places_of(world)) == before, "it begins in the saved map again"
    walk(world, scene, real[3:], odometry[3:], unit)
    assert not world.searches


@pytest.mark.slow
def test_a_map_that_grew_can_be_loaded_again(folder: Path, scene: Scene, messages: Any, tmp_path: Path) -> None:
    world = world_in(folder, messages)
    real = along(np.linspace(8, 11, 12))
    walk(world, scene, real, real @ TURNED)
    world.snapshot().save(tmp_path / "two")
    grown = read_map(tmp_path / "two", MODEL)
    assert grown.sessions == 2 and len(grown.keyframes) > 24
    third = world_in(tmp_path / "two", messages, **{"map.mode": "localize"})
    walk(third, scene, real[-4:], real[-4:])
    assert not third.searches
    assert len(read_map(folder, MODEL).keyframes) == 20, "the old one is as it was"


def test_the_loaded_map_keeps_its_own_metres_until_the_session_is_found_in_it(
    folder: Path, scene: Scene, messages: Any
) -> None:
    raw = read_map(folder, MODEL)
    real, learnt = along(np.linspace(20, 20.5, 3)), Scale(3.0, 0.02, "odometry", 5)  # past the end of the wall
    for metres, factor, text in ((2.0, 2.0, "lengths in metres, from the saved map"), (np.nan, 1.0, "")):
        config = Config().replace(**{"map.enabled": True, "map.load": str(folder), "known.odometry": True})
        world = World(config, messages, saved=dataclasses.replace(raw, metres=metres), places=MODEL)
        before, voxel = places_of_map(world), world.map_voxel
        assert before[:, 0].max() > 8 * factor
        world.learn_scale(learnt)
        walk(world, scene, real, real)
        assert world.searches and np.array_equal(places_of_map(world), before) and world.map_voxel == voxel
        assert world.unit_text == text == world.snapshot().unit and world.in_metres == bool(text)
    found = along(np.linspace(5, 6, 6))
    walk(world, scene, found, found, start=4)
    assert not world.searches and world.in_metres and "from odometry" in world.unit_text
    assert world.map_voxel == pytest.approx(3.0 * voxel, rel=0.1), "the session's metres, once all is in its unit"


def test_keyframes_that_cannot_be_saved_keep_no_thumbnails(scene: Scene, messages: Any) -> None:
    for loops in (True, False):
        world = World(
            Config().replace(**{**MADE, "loop.enabled": loops, "known.odometry": True}), messages, places=MODEL
        )
        real = along(np.linspace(5, 6, 3))
        walk(world, scene, real, real)
        assert world._mapper is not None and len(world._mapper.keyframes) > 1
        assert all((k.thumbnail is not None) is loops for k in world._mapper.keyframes)


def test_a_unit_in_metres_is_handed_on(folder: Path, scene: Scene, messages: Any) -> None:
    saved = dataclasses.replace(read_map(folder, MODEL), metres=1.0, sigma=0.02)
    config = Config().replace(**{"map.enabled": True, "map.load": str(folder)})
    world = World(config, messages, saved=saved, places=MODEL)
    real = along(np.linspace(5, 6, 6))
    walk(world, scene, real, geometry.transform_poses(0.5, np.eye(3), np.zeros(3), real), 0.5)
    shot = world.snapshot()
    assert shot.keyframes is not None and shot.keyframes.metres == pytest.approx(2.0, rel=0.03)
    assert shot.keyframes.sigma == pytest.approx(np.hypot(0.02, MAP_SIGMA)) and "from map" in shot.unit
    path = np.array([[getattr(p.pose.position, n) for n in "xyz"] for p in world.path().poses])
    np.testing.assert_allclose(path, real[:, :3, 3], atol=0.1)


def test_a_map_in_metres_says_how_long_the_unit_of_a_session_is_until_something_is_measured(
    folder: Path, scene: Scene, messages: Any
) -> None:
    saved = dataclasses.replace(read_map(folder, MODEL), metres=3.0, sigma=0.12)
    config = Config().replace(**{"map.load": str(folder), "map.mode": "localize"})
    world = World(config, messages, saved=saved, places=MODEL)
    real = along(np.linspace(5, 6, 6))
    odometry = geometry.transform_poses(0.5, np.eye(3), np.zeros(3), real)
    assert not world.known_scale.known and not world.in_metres
    walk(world, scene, real, odometry, 0.5)
    scale = world.known_scale
    assert (scale.source, scale.in_metres, world.in_metres) == ("map", False, True)
    assert world.scale().data == scale.metres == pytest.approx(6.0, rel=0.03)
    assert scale.sigma == pytest.approx(np.hypot(0.12, MAP_SIGMA)) and scale.sources[-1].name == "map"
    last = world.map_from_odom(odometry[-1])
    assert last is not None
    np.testing.assert_allclose((last @ odometry[-1])[:3, 3], 3.0 * real[-1, :3, 3], atol=0.3)
    changes = world.path_changes
    world.learn_scale(Scale(6.6, 0.02, "odometry", 5))
    assert world.known_scale.source == "odometry" and world.path_changes == changes + 1


def test_stamps_that_go_back_while_the_pose_is_kept(scene: Scene, messages: Any) -> None:
    world = World(Config().replace(**MADE), messages, places=MODEL)
    real = along(np.concatenate([np.linspace(3, 6, 10), np.linspace(6, 3, 10)]))
    walk(world, scene, real[:10], real[:10])
    walk(world, scene, real[10:], real[10:])
    path = np.array([p.pose.position.x for p in world.path().poses])
    np.testing.assert_allclose(path, real[:, 0, 3], atol=0.05)
    assert world.snapshot().keyframes is not None and world.snapshot().keyframes.sessions == 2


def test_a_map_needs_a_frame() -> None:
    for how in ({"map_frame": "visual_odom"}, {"tf.mode": "off"}):
        with pytest.raises(ConfigError, match=r"map\.load is 'x', but there is no frame for the map.*another name"):
            Config().replace(**{"map.load": "x", **how})
    without = Config().replace(**{"loop.enabled": False})
    assert without.replace(**{"map.load": "x"}).closes_loops and Config().closes_loops and not without.closes_loops
