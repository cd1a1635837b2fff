"""Moves poses from the odometry frame to the map, by the corrections of the keyframes next to them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .. import geometry
from ..types import F64
from .graph import Similarities
from .mapper import Corrections


def in_map(stamps_ns: NDArray[np.int64], odom_from_moving: F64, corrections: Corrections) -> F64:
    """map_from_moving (N, 4, 4) of odometry poses. stamps_ns: (N,), ascending. odom_from_moving: (N, 4, 4).

    The corrections of the keyframes before and after a pose move it, mixed by time. Before the first and after the last keyframe, the
    nearest one's correction is used.
    """
    at, keys = corrections.map_from_odom, corrections.stamps_ns
    if not corrections.version or not len(keys) or not len(stamps_ns):
        return np.asarray(odom_from_moving, np.float64)
    low, high, share = _between(stamps_ns, keys)
    # the two moved poses are mixed, not the corrections, since these rotate about a far origin
    both = [_moved(at.at(rows), odom_from_moving) for rows in (low, high)]
    turn = geometry.vector_from_rotation(np.swapaxes(both[0][:, :3, :3], 1, 2) @ both[1][:, :3, :3])
    rotation = both[0][:, :3, :3] @ geometry.rotation_from_vector(share[:, None] * turn)
    place = (1 - share)[:, None] * both[0][:, :3, 3] + share[:, None] * both[1][:, :3, 3]
    return geometry.transform(rotation, place)


def lengths_in_map(stamps_ns: NDArray[np.int64], corrections: Corrections) -> F64:
    """(N,) length in the map of the odometry's unit at those stamps (N,), mixed as in `in_map`: what depth has to be multiplied by."""
    if not corrections.version or not len(corrections.stamps_ns):
        return np.ones(len(stamps_ns))
    low, high, share = _between(stamps_ns, corrections.stamps_ns)
    logs = corrections.map_from_odom.log_scale
    return np.asarray(np.exp((1 - share) * logs[low] + share * logs[high]), np.float64)


def _between(stamps_ns: NDArray[np.int64], keys: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.intp], F64]:
    """Rows of the keyframes before and after each stamp, and the share (0..1) of the way from the one to the other."""
    after = np.searchsorted(keys, stamps_ns, side="left")
    low, high = np.clip(after - 1, 0, len(keys) - 1), np.clip(after, 0, len(keys) - 1)
    span = (keys[high] - keys[low]).astype(np.float64)
    return low, high, np.where(span > 0, (stamps_ns - keys[low]) / np.where(span > 0, span, 1.0), 0.0)


def _moved(s: Similarities, poses: F64) -> F64:
    """Rigid poses (N, 4, 4) moved by the similarities, row by row."""
    place = s.scale[:, None] * np.einsum("nij,nj->ni", s.rotation, poses[:, :3, 3]) + s.translation
    return geometry.transform(s.rotation @ poses[:, :3, :3], place)
