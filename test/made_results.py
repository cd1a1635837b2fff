"""Small folders of results with known geometry, as `come_ros bag`, `come_ros demo` and ~/save_map leave them, written without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from come_ros import geometry
from come_ros.datasets.bag_writer import TRUE_DEPTH_TOPIC, BagWriter
from come_ros.files import write_ply, write_tum
from come_ros.outputs.cloud import points_of
from come_ros.outputs.frames_file import FRAMES, PlacedFrames, write_frames
from come_ros.types import F32, F64, U8

START_NS, STEP_NS = 1_700_000_000_123_456_789, 100_000_001
HEIGHT, WIDTH = 24, 32
K = np.array([[30.0, 0, 15.0], [0, 31.0, 12.5], [0, 0, 1]])
LENGTH = 1.25
"""of the unit of the published depth in the map: as after a loop"""
METRES = "lengths in metres, from depth, sigma 1.0 %"
WALL_Z = 3.0
"""place of the wall that all frames see, in the map's frame, whose axes are those of the first camera"""


def pose(i: int) -> F64:
    """(4, 4) map_from_camera of frame `i`: it moves to the right and turns about its vertical axis."""
    return geometry.transform(geometry.rotation_from_vector([0.0, 0.06 * i, 0.0]), [0.15 * i, -0.02 * i, 0.1 * i])


def depth(i: int) -> F32:
    """(H, W) along z in the unit of the map: of the wall z = WALL_Z, NaN in one corner."""
    rays = geometry.unproject(np.ones((HEIGHT, WIDTH)), K) @ pose(i)[:3, :3].T
    out = ((WALL_Z - pose(i)[2, 3]) / rays[..., 2]).astype(np.float32)
    out[:3, :4] = np.nan
    return out


def picture(i: int) -> U8:
    """(H, W, 3), different everywhere."""
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([u * 7, v * 9, np.full_like(u, 20 * i)], axis=-1).astype(np.uint8)


def confidence(i: int) -> F32:
    return (1.0 + i + np.arange(HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH) / 1000).astype(np.float32)


def true_depth(i: int) -> F32:
    """(H, W), m: of all frames but the second."""
    return np.full((HEIGHT, WIDTH), 2.0 + 0.1 * i, np.float32)


def stamps(count: int) -> list[int]:
    return [START_NS + i * STEP_NS for i in range(count)]


def cloud(count: int) -> Any:
    """All points of all frames, as map.ply has them."""
    parts = []
    for i in range(count):
        known = np.isfinite(depth(i))
        seen = geometry.apply(pose(i), geometry.unproject(depth(i), K)[known])
        parts.append(points_of(seen.astype(np.float32), picture(i)[known], confidence(i)[known]))
    return np.concatenate(parts)


def write_recording(
    path: Path,
    count: int,
    names: tuple[str, ...] = ("rgb/image_rect", "confidence"),
    length: float = LENGTH,
    truth: bool = False,
) -> None:
    """The node's topics; the odometry's poses are not quite those of the windows. truth: with true depth, as `come_ros bag` writes it."""
    with BagWriter(path) as bag:
        for i, stamp in enumerate(stamps(count)):
            head = bag.messages.header(stamp, "camera_optical_frame")
            if truth and i != 1:
                bag.put(TRUE_DEPTH_TOPIC, bag.messages.depth(true_depth(i), head), stamp)
            bag.put("/come/depth/camera_info", bag.messages.camera_info(K, WIDTH, HEIGHT, head), stamp)
            bag.put("/come/depth/image", bag.messages.depth(depth(i) / np.float32(length), head), stamp)
            if "rgb/image_rect" in names:
                bag.put("/come/rgb/image_rect", bag.messages.image(picture(i), head), stamp)
            if "confidence" in names:
                bag.put("/come/confidence", bag.messages.depth(confidence(i), head), stamp)
            place = geometry.transform(pose(i)[:3, :3], pose(i)[:3, 3] / length + [0.001, 0, 0])
            still = np.zeros(6)
            odom = bag.messages.header(stamp, "visual_odom")
            moved = bag.messages.odometry(place, still, still, still, odom, "camera_optical_frame")
            bag.put("/come/odometry", moved, stamp)


def bag_results(folder: Path, count: int = 4, unit: str = METRES) -> Path:
    """As `come_ros bag -o folder`, in metres unless `unit` is "". Returns the folder."""
    folder.mkdir(parents=True)
    write_recording(folder / "output", count, truth=True)
    placed = {stamp: (pose(i), LENGTH) for i, stamp in enumerate(stamps(count))}
    truth = {stamp: geometry.transform(np.eye(3), [0.1 * i, 0, 0]) for i, stamp in enumerate(stamps(count))}
    write_frames(folder / FRAMES, PlacedFrames(placed, "map frame", unit, truth))
    path = {stamp: pose(i) for i, stamp in enumerate(stamps(count))}
    write_tum(folder / "trajectory_map.tum", path, unit)
    write_tum(folder / "trajectory.tum", {t: geometry.transform(p[:3, :3], p[:3, 3] / LENGTH) for t, p in path.items()})
    write_ply(folder / "map.ply", cloud(count), unit, "map frame")
    scale = {"unit": {"odometry": "model", "map": "metre" if unit else "model"}, "source": "none", "sigma": None}
    (folder / "metrics.json").write_text(json.dumps({"scale": scale}))
    return folder


def demo_results(folder: Path, count: int = 4, names: tuple[str, ...] = ("rgb/image_rect", "confidence")) -> Path:
    """As `come_ros demo -o folder`: a recording alone, in the unit of the odometry. Returns the folder."""
    folder.mkdir(parents=True)
    write_recording(folder / "bag", count, names, 1.0)
    next((folder / "bag").glob("*.mcap")).rename(folder / "output.mcap")
    (folder / "bag" / "metadata.yaml").unlink()
    (folder / "bag").rmdir()
    return folder
