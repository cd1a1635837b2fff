"""config/nav2_costmap.yaml agrees with what the node publishes, and a cloud of a known room falls where its costmap wants it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from come_ros import geometry
from come_ros.config import Config
from come_ros.outputs import cloud
from come_ros.outputs.topics import OUTPUTS

yaml = pytest.importorskip("yaml")
FILE = Path(__file__).resolve().parents[2] / "config" / "nav2_costmap.yaml"
COSTMAPS = yaml.safe_load(FILE.read_text(encoding="utf-8"))
LAYERS = {"local_costmap": "voxel_layer", "global_costmap": "obstacle_layer"}


def parameters(name: str) -> dict[str, Any]:
    return COSTMAPS[name][name]["ros__parameters"]


@pytest.mark.parametrize("name", LAYERS)
def test_topics_frames_and_plugins_are_those_that_there_are(name: str) -> None:
    p = parameters(name)
    source = p[LAYERS[name]]["come"]
    node, topic = source["topic"].strip("/").split("/", 1)
    assert (
        node == "come" and OUTPUTS[topic].kind == "sensor_msgs/msg/PointCloud2" and source["data_type"] == "PointCloud2"
    )
    assert p["global_frame"] == {"local_costmap": Config().odom_frame, "global_costmap": "map"}[name]
    assert set(p["plugins"]) == {key for key, value in p.items() if isinstance(value, dict)}
    assert all(p[layer]["plugin"].startswith("nav2_costmap_2d::") for layer in p["plugins"])
    assert source["min_obstacle_height"] < source["max_obstacle_height"] and p["rolling_window"]
    assert source["obstacle_max_range"] <= source["raytrace_max_range"] < min(p["width"], p["height"])


def test_the_grid_is_as_high_as_the_band() -> None:
    layer = parameters("local_costmap")["voxel_layer"]
    assert 0 < layer["z_voxels"] <= 16, "Nav2 keeps a column in 16 bits"
    top = layer["origin_z"] + layer["z_resolution"] * layer["z_voxels"]
    assert top == pytest.approx(layer["come"]["max_obstacle_height"])


def test_the_floor_is_free_and_walls_are_obstacles() -> None:
    """A level camera 0.5 m above the floor of a room 3 m wide, its frame `base` on the floor below it."""
    k = np.array([[80.0, 0, 79.5], [0, 80.0, 59.5], [0, 0, 1]])
    rays = geometry.unproject(np.ones((120, 160), np.float32), k)
    with np.errstate(divide="ignore"):
        floor = np.where(rays[..., 1] > 0, 0.5 / rays[..., 1], np.inf)
    wall = np.full((120, 160), 1.5)
    depth = np.minimum(floor, wall).astype(np.float32)
    base_from_camera = geometry.BODY_FROM_OPTICAL.copy()
    base_from_camera[:3, 3] = [0, 0, 0.5]
    config = Config().replace(**{"cloud.conf_percentile": 0.0})
    confidence = np.ones_like(depth)
    image = np.zeros((120, 160, 3), np.uint8)
    mask = cloud.valid_mask(depth, confidence, config)
    points = cloud.points(depth, k, image, confidence, mask, config)
    assert [points.dtype.fields[n][1] for n in "xyz"] == [0, 4, 8] and points.dtype["x"] == np.dtype("<f4")
    in_base = geometry.apply(base_from_camera, np.stack([points[n] for n in "xyz"], axis=1))
    band = parameters("local_costmap")["voxel_layer"]["come"]
    high = (in_base[:, 2] >= band["min_obstacle_height"]) & (in_base[:, 2] <= band["max_obstacle_height"])
    assert high.any() and np.allclose(in_base[high, 0], 1.5, atol=1e-3), "only the wall stands in the way"
    assert np.count_nonzero(in_base[:, 2] < 0.01) > 1000, "the floor is seen, and below the band"
