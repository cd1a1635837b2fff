"""A surface from all depth images: TSDF fusion (Curless and Levoy, SIGGRAPH 1996) by Open3D (Zhou et al., arXiv 1801.09847)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import OutputError
from ..files import whole_file
from ..geometry import inverse
from ..results import ResultFrame
from .formats import MESH, MESH_GLB
from .gltf import TRIANGLES, Glb

VOXEL_SHARE = 0.01  # edge of a voxel, of the median depth
TRUNCATION = (
    4.0  # voxels: distance from a surface that is still fused; depth of neighbouring windows differs by some percent
)
FARTHEST = 1e6
BLOCK, FIRST_BLOCKS = 16, 1000  # voxels along the edge of a block; blocks to begin with, more are added as needed
LEAST_WEIGHT = 0.5  # frames that saw a place: more than that, so one is enough


def why_not() -> str:
    """Why no mesh can be made on this machine, "" if it can."""
    if importlib.util.find_spec("open3d") is not None:
        return ""
    return (
        "mesh needs Open3D: pip install 'come_ros[mesh]' (open3d-cpu has wheels for Linux on x86_64, Python 3.10 to 3.13; elsewhere "
        "install open3d), or leave mesh out of --to"
    )


class Fusion:
    """Fuses frames one after another; its memory grows with the surface, not with the frames."""

    def __init__(self, voxel: float) -> None:
        """voxel: edge, in the unit of the results."""
        import open3d

        self._o3d, self.voxel = open3d, voxel
        core = open3d.core
        real = core.float32
        # the older ScalableTSDFVolume of Open3D 0.20 finds no surface at all
        self._grid = open3d.t.geometry.VoxelBlockGrid(
            ("tsdf", "weight", "color"),
            (real, real, real),
            ((1), (1), (3)),
            voxel,
            BLOCK,
            FIRST_BLOCKS,
            core.Device("CPU:0"),
        )

    def add(self, frame: ResultFrame) -> None:
        """Unknown depth is left out; a frame without an image is grey."""
        height, width = frame.depth.shape
        image = np.full((height, width, 3), 128, np.uint8) if frame.image is None else frame.image
        tensor, picture = self._o3d.core.Tensor, self._o3d.t.geometry.Image
        depth = picture(tensor(np.where(np.isfinite(frame.depth), frame.depth, 0).astype(np.float32)[..., None]))
        lens = tensor(np.ascontiguousarray(frame.intrinsics))
        pose = tensor(inverse(frame.world_from_camera))
        reach = (1.0, FARTHEST, TRUNCATION)  # depth's unit, largest depth, truncation in voxels
        blocks = self._grid.compute_unique_block_coordinates(depth, lens, pose, *reach)
        colours = picture(tensor(np.ascontiguousarray(image).astype(np.float32)))
        self._grid.integrate(blocks, depth, colours, lens, lens, pose, *reach)

    def write(self, folder: Path, unit: str) -> dict[str, Any]:
        """Writes mesh.ply and mesh.glb. Returns the numbers of vertices and triangles, and the voxel. Raises OutputError."""
        surface = self._grid.extract_triangle_mesh(weight_threshold=LEAST_WEIGHT)
        if surface.is_empty() or not len(surface.triangle.indices):
            raise OutputError(f"no surface came of the depths with voxels of {self.voxel:.3g}: give a larger --voxel")
        places = surface.vertex.positions.numpy()
        triangles = surface.triangle.indices.numpy().astype(np.uint32)
        colours = np.clip(np.rint(surface.vertex.colors.numpy()), 0, 255).astype(np.uint8)
        _write_ply(folder / MESH, places, colours, triangles, unit)
        scene = Glb(unit)
        scene.add("mesh", TRIANGLES, places, colours, triangles)
        scene.write(folder / MESH_GLB)
        return {"vertices": len(places), "triangles": len(triangles), "voxel": self.voxel}


def _write_ply(path: Path, places: Any, colours: Any, triangles: Any, unit: str) -> None:
    vertices = np.empty(len(places), [("place", "<f4", 3), ("colour", "u1", 3)])
    vertices["place"], vertices["colour"] = places, colours
    faces = np.empty(len(triangles), [("count", "u1"), ("corners", "<i4", 3)])
    faces["count"], faces["corners"] = 3, triangles
    lines = [
        "ply", "format binary_little_endian 1.0", f"comment come_ros, {unit}", f"element vertex {len(vertices)}",
        *(f"property float {a}" for a in "xyz"), *(f"property uchar {c}" for c in ("red", "green", "blue")),
        f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header",
    ]  # fmt: skip
    with whole_file(path) as stream:
        stream.write(("\n".join(lines) + "\n").encode("ascii", "replace"))
        stream.write(vertices.tobytes())
        stream.write(faces.tobytes())
