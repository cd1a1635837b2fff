"""frames.json of `come_ros bag`: where the frames whose depth is in output/ lie in the map."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DatasetError
from ..files import shown, write_text
from ..geometry import matrix_from_quat_xyzw, quat_xyzw_from_matrix, transform
from ..types import F64

FRAMES = "frames.json"
FORMAT, VERSION = "come_ros frames", 1
COLUMNS = ("stamp_ns", "tx", "ty", "tz", "qx", "qy", "qz", "qw", "length")


@dataclass(frozen=True, eq=False)
class PlacedFrames:
    """placed: stamp in ns -> map_from_camera (4, 4) of each used frame, by its window, and the length of the unit of its depth in the
    map: depth times length has the unit of the poses. frame: what the poses are in, in words. unit: of the poses, in words, "" for the
    model's own. truth: stamp -> world_from_camera (4, 4), in metres, in a world of its own; empty if it is not known."""

    placed: Mapping[int, tuple[F64, float]]
    frame: str
    unit: str = ""
    truth: Mapping[int, F64] = field(default_factory=dict)


def write_frames(path: Path, frames: PlacedFrames) -> None:
    """Writes frames.json. Raises OutputError."""
    rows = [[*_row(stamp, pose), float(length)] for stamp, (pose, length) in sorted(frames.placed.items())]
    head = {
        "format": FORMAT,
        "version": VERSION,
        "frame": frames.frame,
        "unit": frames.unit,
        "axes": "map_from_camera, the camera's optical axes: x right, y down, z forward",
        "columns": COLUMNS,
    }
    lists = {"frames": rows, "truth": [_row(stamp, pose) for stamp, pose in sorted(frames.truth.items())]}
    lines = [f' "{name}": {json.dumps(value)}' for name, value in head.items()]
    for name, found in lists.items():  # a row on each line
        lines.append(f' "{name}": [' + ",".join(f"\n  {json.dumps(row)}" for row in found) + "\n ]")
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def read_frames(path: Path) -> PlacedFrames:
    """Raises DatasetError if the file is damaged or of a newer version."""
    try:
        about: Any = json.loads(path.read_text(encoding="utf-8"))
        if about["format"] != FORMAT or int(about["version"]) > VERSION:
            raise ValueError(
                f"it is {about['format']!r} of version {about['version']}, this come_ros reads up to {VERSION}"
            )
        rows, truth = (np.array(about[name], object).reshape(-1, n) for name, n in (("frames", 9), ("truth", 8)))
        poses, lengths = _poses(rows), rows[:, 8].astype(np.float64)
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            raise ValueError("a length is not positive")
        placed = {stamp: (pose, float(n)) for (stamp, pose), n in zip(poses.items(), lengths, strict=True)}
        return PlacedFrames(placed, str(about["frame"]), str(about["unit"]), _poses(truth))
    except (OSError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise DatasetError(f"cannot read {shown(path)} ({error}): run `come_ros bag` again") from error


def _row(stamp: int, pose: F64) -> list[Any]:
    return [int(stamp), *(round(float(v), 9) for v in (*pose[:3, 3], *quat_xyzw_from_matrix(pose)))]


def _poses(rows: Any) -> dict[int, F64]:
    """Raises ValueError if a quaternion is not a rotation."""
    values = rows[:, 1:8].astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("a pose is not finite")
    matrices = transform(matrix_from_quat_xyzw(values[:, 3:]), values[:, :3])
    return {int(stamp): pose for stamp, pose in zip(rows[:, 0], matrices, strict=True)}
