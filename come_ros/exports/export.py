"""One pass over the frames of some results, for all formats that are asked for."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__, progress
from ..errors import ComeRosError
from ..files import shown, write_pcd, write_ply, write_text, write_tum
from ..results import ResultFrame, Results
from . import arrays, colmap, gltf, mesh, transforms
from .formats import ABOUT, CLOUD, CLOUD_PCD, FORMATS, SCENE, SPARSE, TUM, with_needed
from .trajectories import write_kitti


class ExportError(ComeRosError):
    """The results do not hold what a format needs, or a package is missing."""


def available(results: Results) -> list[str]:
    """All formats that these results and this machine are enough for."""
    missing = {name for name in FORMATS if _lacks(results, name)}
    return [name for name in FORMATS if name not in missing and not missing & set(FORMATS[name].needs)]


def write_exports(
    results: Results, formats: Iterable[str], folder: Path, every: int = 1, voxel: float = 0.0
) -> dict[str, Any]:
    """Writes those of FORMATS into `folder`, which exists. every: only each n-th frame. voxel: edge, in the unit of the results, of the
    cloud's voxels (0: the cloud as it was saved) and the mesh's (0: 1 % of the median depth). Returns the content of export.json without
    its frames. Raises ExportError before anything is written, DatasetError, OutputError."""
    wanted = with_needed(formats)
    for name in wanted:
        if why := _lacks(results, name):
            raise ExportError(why)
    ranges = _ranges(results) if {"depth", "mesh"} & set(wanted) else None
    unit_per_value = arrays.unit_per_value(*ranges) if ranges else None
    points = functools.cache(functools.partial(results.points, voxel))
    cameras: list[arrays.Camera] = []
    surface = mesh.Fusion(voxel or mesh.VOXEL_SHARE * ranges[0]) if "mesh" in wanted and ranges else None
    for name in wanted:
        if name in ("images", "depth", "confidence"):
            (folder / FORMATS[name].names[0]).mkdir()
    for frame in _shown(results, every):
        camera = arrays.camera_of(len(cameras), frame)
        cameras.append(camera)
        if "images" in wanted:
            arrays.write_image(folder, camera, frame)
        if "depth" in wanted and unit_per_value is not None:
            arrays.write_depth(folder, camera, frame, unit_per_value)
        if "confidence" in wanted:
            arrays.write_confidence(folder, camera, frame)
        if surface is not None:
            surface.add(frame)
    if not cameras:
        raise ExportError(f"{shown(results.path)} holds no frame that can be read: run `come_ros bag` again")
    about = {
        "come_ros": __version__,
        "kind": results.kind,
        "world": results.world,
        "unit": results.unit_text,
        "metres": results.in_metres,
        "cameras": "world_from_camera, optical axes (x right, y down, z forward); pixel centres lie at whole numbers",
        **({"depth_png": {"unit_per_value": unit_per_value, "unknown": 0}} if "depth" in wanted else {}),
    }
    if "transforms" in wanted and unit_per_value is not None:
        transforms.write(folder, cameras, unit_per_value, CLOUD)
    if "colmap" in wanted:
        colmap.write(folder / SPARSE / "0", cameras, points())
    if "tum" in wanted:
        write_tum(folder / TUM, results.trajectory, results.unit)
    if "kitti" in wanted:
        write_kitti(folder, results.trajectory)
    if "ply" in wanted:
        write_ply(folder / CLOUD, points(), results.unit, results.world)
    if "pcd" in wanted:
        write_pcd(folder / CLOUD_PCD, points(), results.unit)
    if "glb" in wanted:
        gltf.write_scene(folder / SCENE, points(), cameras, results.trajectory, results.unit_text)
    if surface is not None:
        about["mesh"] = surface.write(folder, results.unit_text)
    frames = [camera.as_json() for camera in cameras]
    write_text(folder / ABOUT, json.dumps({**about, "frames": frames}, indent=1) + "\n")
    cloud = {"points": len(points())} if {"ply", "pcd", "glb", "colmap"} & set(wanted) else {}
    return {**about, "frames": len(cameras), **cloud, "poses": len(results.trajectory)}


def _lacks(results: Results, name: str) -> str:
    """Why a format cannot be written, "" if it can."""
    if name == "images" and not results.has_images:
        return (
            f"{shown(results.path)} holds no images as the model saw them, which images, transforms and colmap need: "
            f"record the topic rgb/image_rect of the node, or run `come_ros bag`"
        )
    if name == "confidence" and not results.has_confidence:
        how = results.remark if "confidence" in results.remark else "record the topic confidence of the node"
        return f"{shown(results.path)} holds no confidence: {how}"
    return mesh.why_not() if name == "mesh" else ""


def _shown(results: Results, every: int) -> Iterable[ResultFrame]:
    """Each n-th frame, with a progress bar."""
    with progress.bar(total=len(results), desc="exporting", unit="frame") as bar:
        for i, frame in enumerate(results.frames()):
            bar.update()
            if i % every == 0:
                yield frame


def _ranges(results: Results) -> tuple[float, float]:
    """Median of the frames' median depth, and the largest depth."""
    medians, largest = [], 0.0
    for frame in progress.bar(results.frames(), total=len(results), desc="reading depth", unit="frame"):
        known: NDArray[np.float32] = frame.depth[np.isfinite(frame.depth)]
        if len(known):
            medians.append(float(np.median(known)))
            largest = max(largest, float(known.max()))
    if not medians:
        raise ExportError(
            f"{shown(results.path)} holds no depth that is trusted: lower cloud.min_confidence and run again"
        )
    return float(np.median(medians)), largest
