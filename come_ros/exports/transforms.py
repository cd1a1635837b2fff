"""transforms.json as nerfstudio, gsplat and instant-ngp read it (docs.nerf.studio, "data conventions")."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..datasets.transforms import OPTICAL_FROM_OPENGL
from ..files import write_text
from .arrays import Camera
from .formats import DEPTH, TRANSFORMS


def write(folder: Path, cameras: Sequence[Camera], unit_per_value: float, cloud: str) -> None:
    """Poses are world_from_camera with OpenGL's axes (x right, y up, z back), lengths in the unit of the results. Pixel (0, 0) has its
    corner, not its centre, at the origin. unit_per_value: of the depth images. cloud: a PLY file, where Gaussian splats may start. Raises
    OutputError."""
    about = {
        "camera_model": "PINHOLE",
        "depth_unit_scale_factor": unit_per_value,  # nerfstudio: also its option of this name
        "integer_depth_scale": unit_per_value,  # instant-ngp
        "ply_file_path": cloud,
        "frames": [_frame(camera) for camera in cameras],
    }
    write_text(folder / TRANSFORMS, json.dumps(about, indent=1) + "\n")


def _frame(camera: Camera) -> dict[str, Any]:
    k = camera.intrinsics
    return {
        "file_path": camera.image,
        "depth_file_path": f"{DEPTH}/{camera.name}.png",
        "w": camera.width,
        "h": camera.height,
        "fl_x": float(k[0, 0]),
        "fl_y": float(k[1, 1]),
        "cx": float(k[0, 2]) + 0.5,
        "cy": float(k[1, 2]) + 0.5,
        "transform_matrix": (camera.world_from_camera @ OPTICAL_FROM_OPENGL).tolist(),
        "stamp_ns": camera.stamp_ns,
    }
