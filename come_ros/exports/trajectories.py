"""A path in the layout of KITTI's odometry benchmark (Geiger et al., CVPR 2012)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..files import write_text
from ..geometry import inverse
from ..types import F64
from .formats import KITTI, KITTI_TIMES


def write_kitti(folder: Path, poses: Mapping[int, F64]) -> None:
    """One row of 12 numbers for each pose, first_from_camera with optical axes, and its time in seconds since the first. poses: stamp ->
    world_from_camera (4, 4). Raises OutputError."""
    stamps = sorted(poses)
    rows, times = [], []
    for stamp in stamps:
        pose = inverse(poses[stamps[0]]) @ poses[stamp]
        rows.append(" ".join(f"{v:.9e}" for v in pose[:3].ravel()) + "\n")
        times.append(f"{(stamp - stamps[0]) * 1e-9:.9f}\n")
    write_text(folder / KITTI, "".join(rows))
    write_text(folder / KITTI_TIMES, "".join(times))
