"""The formats that `come_ros export` writes, and the names of their files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ABOUT = "export.json"
IMAGES, DEPTH, CONFIDENCE = "images", "depth", "confidence"
TRANSFORMS, SPARSE = "transforms.json", "sparse"
TUM, KITTI, KITTI_TIMES = "trajectory.tum", "trajectory_kitti.txt", "times_kitti.txt"
CLOUD, CLOUD_PCD, SCENE = "cloud.ply", "cloud.pcd", "scene.glb"
MESH, MESH_GLB = "mesh.ply", "mesh.glb"
ALL = "all"


@dataclass(frozen=True)
class Format:
    """names: of its files and folders. needs: other formats that come with it."""

    doc: str
    names: tuple[str, ...]
    needs: tuple[str, ...] = ()


FORMATS = {
    "images": Format("images as the model saw them, PNG", (IMAGES,)),
    "depth": Format("depth along z: 16-bit PNG, and float32 as NPZ with camera and pose", (DEPTH,)),
    "confidence": Format("confidence: float32 as NPZ", (CONFIDENCE,)),
    "transforms": Format(
        "transforms.json of nerfstudio and gsplat, OpenGL axes", (TRANSFORMS,), ("images", "depth", "ply")
    ),
    "colmap": Format("COLMAP model as text, world to camera", (SPARSE,), ("images",)),
    "tum": Format("path as a TUM trajectory, for evo", (TUM,)),
    "kitti": Format("path as KITTI poses, relative to the first camera, and their times", (KITTI, KITTI_TIMES)),
    "ply": Format("cloud with colours and confidence, PLY", (CLOUD,)),
    "pcd": Format("the same as PCD", (CLOUD_PCD,)),
    "glb": Format("cloud, path and cameras as binary glTF, y up", (SCENE,)),
    "mesh": Format("surface by TSDF fusion of all depths, PLY and GLB; needs Open3D", (MESH, MESH_GLB)),
}


def with_needed(formats: Iterable[str]) -> list[str]:
    """Those formats and what comes with them, in the order of FORMATS."""
    wanted = set(formats)
    wanted |= {other for name in wanted for other in FORMATS[name].needs}
    return [name for name in FORMATS if name in wanted]


def names_of(formats: Iterable[str]) -> list[str]:
    """Files and folders that these formats make."""
    return [ABOUT, *(name for one in with_needed(formats) for name in FORMATS[one].names)]
