"""What is kept of a world: bounded, asked for only where it is wanted, and gone with its world."""

import numpy as np
import pytest

from come_ros import files
from come_ros.config import Config
from come_ros.datasets.bag_writer import rosbags_messages
from come_ros.errors import OutputError
from come_ros.geometry import transform
from come_ros.messages import stamp_ns
from come_ros.outputs import world
from come_ros.outputs.cloud import POINT_DTYPE
from come_ros.outputs.world import Snapshot, World


@pytest.fixture(scope="module")
def messages():
    typesys = pytest.importorskip("rosbags.typesys")
    return rosbags_messages(typesys.get_typestore(typesys.Stores.ROS2_JAZZY))


DEPTH = np.full((3, 4), 2.0, np.float32)


def config(**flat):
    return Config.from_flat({k.replace("__", "."): v for k, v in flat.items()})


def pose(x):
    return transform(np.eye(3), [x, 0, 0])


def one_point(x):
    out = np.ones(1, POINT_DTYPE)
    out["x"] = x
    return out


def never():
    raise AssertionError("points are made that nobody needs")


def test_without_a_map_no_points_are_made(messages):
    w = World(config(path_max_size=3), messages)
    for i in range(5):
        w.add_pose(10 + i, pose(i))
    path = w.path()
    assert [stamp_ns(p.header.stamp) for p in path.poses] == [12, 13, 14] and stamp_ns(path.header.stamp) == 14
    assert [p.pose.position.x for p in path.poses] == [2, 3, 4]
    assert (w.path_changes, w.map_changes) == (5, 0)
    with pytest.raises(OutputError, match=r"set map\.enabled to true"):
        w.snapshot()


def test_parameters_may_change_on_the_way(messages):
    w = World(config(path_max_size=10), messages)
    w.add_pose(1, pose(0))
    w.add_points(never, DEPTH)
    w.set_config(config(path_max_size=2, map__enabled=True, map__voxel=0.1))
    with pytest.raises(OutputError) as nothing:
        World(config(map__enabled=True), messages).snapshot()
    assert "yet" in str(nothing.value)
    for i in range(4):
        w.add_pose(2 + i, pose(i))
        w.add_points(lambda i=i: one_point(i), DEPTH)
    assert len(w.path().poses) == 2 and w.map_points().width == 4
    w.set_config(config(map__enabled=True, map__voxel=0.2))
    assert w.map_points().width == 0, "another voxel is another map"
    w.add_pose(9, pose(0))
    w.add_points(lambda: one_point(0), DEPTH)
    changes = w.map_changes
    w.set_config(config())
    assert w.map_points().width == 0 and w.map_changes == changes + 1, "its listeners are told that it is gone"


def test_the_cloud_names_its_frame(messages, tmp_path):
    for frame, flags in (("map", {"known__odometry": True}), ("map", {}), ("odometry", {"loop__enabled": False})):
        w = World(config(map__enabled=True, **flags), messages)
        w.add_pose(1, pose(0))
        w.add_points(lambda: one_point(0), DEPTH, 1)
        saved = tmp_path / f"{frame} {len(flags)}"
        w.snapshot().save(saved)
        assert f"comment come_ros, {frame} frame\n".encode() in (saved / "map.ply").read_bytes()


def test_a_new_world_has_nothing_of_the_old_one(messages):
    w = World(config(map__enabled=True), messages)
    w.clear()
    assert w.path_changes == 0, "nothing changed"
    w.add_pose(1, pose(0))
    w.add_points(lambda: one_point(0), DEPTH)
    before = (w.path_changes, w.map_changes)
    w.clear()
    assert (w.path_changes, w.map_changes) == (before[0] + 1, before[1] + 1)
    assert not w.path().poses and not w.map_points().width and stamp_ns(w.path().header.stamp) == 0
    w.add_pose(2, pose(0))
    w.add_points(lambda: one_point(3), DEPTH)
    assert list(w.snapshot().trajectory) == [2] and w.snapshot().points["x"] == [3]


def test_the_trajectory_is_longer_than_the_path_and_bounded(messages, monkeypatch):
    monkeypatch.setattr(world, "MAX_POSES", 7)
    w = World(config(path_max_size=2, map__enabled=True), messages)
    for i in range(9):
        w.add_pose(i, pose(i))
        w.add_points(lambda: one_point(0), DEPTH)
    assert list(w.snapshot().trajectory) == list(range(2, 9))


def test_the_scale_is_known_or_not_a_number(messages):
    assert np.isnan(World(config(), messages).scale().data)
    assert World(config(scale__mode="fixed", scale__fixed=2.5), messages).scale().data == 2.5


def test_a_folder_is_whole_or_not_there(tmp_path, monkeypatch):
    what = Snapshot(one_point(1), {5: np.eye(4)}, {5: np.eye(4)})
    what.save(tmp_path / "maps" / "a")
    assert sorted(p.name for p in (tmp_path / "maps" / "a").iterdir()) == [
        *("map.pcd", "map.ply", "trajectory.tum", "trajectory_map.tum")
    ]
    with pytest.raises(OutputError, match="maps/a"):
        what.save(tmp_path / "maps" / "a")

    def write_tum(path, poses):
        raise OutputError("no room")

    monkeypatch.setattr(world, "write_tum", write_tum)
    with pytest.raises(OutputError, match="no room"):
        what.save(tmp_path / "maps" / "b")
    assert [p.name for p in (tmp_path / "maps").iterdir()] == ["a"]
    with pytest.raises(OutputError, match="x/y"), files.whole_folder("/dev/null/x/y"):
        pass


@pytest.mark.parametrize(
    ("given", "metric", "edge"),
    [
        ({}, False, 0.01 * 2.0),  # of the median depth: the unit may be anything
        ({"map__voxel": 0.1}, False, 0.1 * 2.0),
        ({}, True, 0.05),
        ({"map__voxel": 0.1}, True, 0.1),
        ({"scale__mode": "fixed", "scale__fixed": 3.0}, False, 0.05),
    ],
)
def test_voxels_are_in_metres_where_there_are_metres_and_relative_to_the_depth_elsewhere(messages, given, metric, edge):
    w = World(config(map__enabled=True, **given), messages)
    w.metric = metric
    nothing = np.full((3, 4), np.nan, np.float32)
    w.add_points(lambda: one_point(0), nothing)
    assert np.isfinite(w.voxel) == np.isfinite(w.metres()), "a frame without depth tells no unit"
    depth = DEPTH.copy()
    depth[0, 0] = np.nan
    w.add_points(lambda: one_point(0), depth)
    assert w.voxel == pytest.approx(edge)
    w.add_points(lambda: one_point(0.9 * edge), 100 * DEPTH)  # one edge for the whole world
    w.add_points(lambda: one_point(1.5 * edge), DEPTH)
    assert w.map_points().width == 2
    w.clear()
    assert np.isnan(w.voxel)
    w.add_points(lambda: one_point(0), 10 * DEPTH)
    assert w.voxel == pytest.approx(edge if np.isfinite(w.metres()) else 10 * edge), "the next world has its own"
