"""How far the end of a path is off, as seen from its beginning: the error that closing loops is for."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import geometry
from ..types import F64
from .poses import ate_rmse


def end_point_error(ours: F64, real: F64) -> dict[str, Any]:
    """Of a path world_from_camera (N, 4, 4) against the true one. The last camera's place in the first one's frame, ours in the scale that
    suits the whole path best: error_m, how far it lies from the true place; share: of the way that the camera went.

    A camera that stays where it is, `still_m`, wins where the path is closed: the error is of interest next to the ATE.
    """
    scale, _, _ = geometry.umeyama(ours[:, :3, 3], real[:, :3, 3])
    mine, theirs = ((geometry.inverse(path[0]) @ path[-1])[:3, 3] for path in (ours, real))
    length = float(np.linalg.norm(np.diff(real[:, :3, 3], axis=0), axis=1).sum())
    error = float(np.linalg.norm(scale * mine - theirs))
    return {"error_m": error, "share": error / length if length > 0 else None, "still_m": float(np.linalg.norm(theirs))}


def moved_by_loops(odometry: F64, in_map: F64) -> float:
    """How far loops moved a path (N, 4, 4): RMS distance between both after the Sim(3) that fits them best, as a share of the way. NaN for
    a path without length."""
    length = float(np.linalg.norm(np.diff(in_map[:, :3, 3], axis=0), axis=1).sum())
    return ate_rmse(odometry, in_map) / length if length > 0 else float("nan")
