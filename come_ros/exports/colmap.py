"""A COLMAP model as text (colmap.github.io/format.html): cameras, images, points without tracks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..files import write_text
from ..geometry import inverse, quat_xyzw_from_matrix
from ..outputs.cloud import colours_of
from .arrays import Camera

MOST_POINTS = 100_000  # what splats start from; all of them are in the PLY file


def write(folder: Path, cameras: Sequence[Camera], points: NDArray[np.void]) -> None:
    """Writes cameras.txt, images.txt and points3D.txt into the new folder. Poses are camera_from_world, optical axes; pixel (0, 0) has its
    corner at the origin. points: of cloud.POINT_DTYPE; at most MOST_POINTS of them, chosen at random, always the same. Raises
    OutputError."""
    folder.mkdir(parents=True)
    lenses: dict[tuple[float, ...], int] = {}
    images = []
    for number, camera in enumerate(cameras, 1):
        k = camera.intrinsics
        lens = (camera.width, camera.height, *map(float, (k[0, 0], k[1, 1], k[0, 2] + 0.5, k[1, 2] + 0.5)))
        pose = inverse(camera.world_from_camera)
        x, y, z, w = quat_xyzw_from_matrix(pose)
        values = _numbers(w, x, y, z, *pose[:3, 3])
        name = camera.image.rpartition("/")[2]
        images.append(f"{number} {values} {lenses.setdefault(lens, len(lenses) + 1)} {name}\n\n")
    rows = [f"{n} PINHOLE {w} {h} {_numbers(*rest)}\n" for (w, h, *rest), n in lenses.items()]
    head = "# CAMERA_ID MODEL WIDTH HEIGHT FX FY CX CY\n"
    write_text(folder / "cameras.txt", head + "".join(rows))
    head = "# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME\n# POINTS2D[] (none)\n"
    write_text(folder / "images.txt", head + "".join(images))
    if len(points) > MOST_POINTS:
        points = points[np.sort(np.random.default_rng(0).choice(len(points), MOST_POINTS, replace=False))]
    rows = [
        f"{n} {x:.6g} {y:.6g} {z:.6g} {r} {g} {b} 0\n"
        for n, (x, y, z, (r, g, b)) in enumerate(
            zip(*(points[a].tolist() for a in "xyz"), colours_of(points).tolist(), strict=True), 1
        )
    ]
    write_text(folder / "points3D.txt", "# POINT3D_ID X Y Z R G B ERROR TRACK[] (none)\n" + "".join(rows))


def _numbers(*values: float) -> str:
    return " ".join(f"{float(v):.12g}" for v in values)
