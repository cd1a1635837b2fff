"""Errors of point clouds against the truth: accuracy, completeness, Chamfer distance, normal consistency.

Accuracy and completeness are mean distances, as in Jensen et al., CVPR 2014 (DTU); normal consistency as in Mescheder et al., CVPR 2019.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .. import geometry


@dataclass(frozen=True)
class PointErrors:
    """accuracy: mean distance from a point of ours to the nearest true one. completeness: the other way round. chamfer: mean of the
    two. normal_consistency: mean |n . n*| over nearest neighbours, both ways; 1 is perfect, 0.5 is chance in 3D."""

    accuracy: float
    completeness: float
    chamfer: float
    normal_consistency: float


def point_errors(
    points: np.ndarray, truth: np.ndarray, normals: np.ndarray | None = None, true_normals: np.ndarray | None = None
) -> PointErrors:
    """Of points (N, 3) against (M, 3), in one frame and unit; normals alike, of any sign, NaN where unknown. NaN if either is empty."""
    from scipy.spatial import cKDTree

    if not len(points) or not len(truth):
        return PointErrors(*(float("nan"),) * 4)
    forth, to_truth = cKDTree(truth).query(points)
    back, to_ours = cKDTree(points).query(truth)
    consistency = float("nan")
    if normals is not None and true_normals is not None:
        agree = [
            np.abs(np.einsum("ni,ni->n", a, b))
            for a, b in ((normals, true_normals[to_truth]), (true_normals, normals[to_ours]))
        ]
        means = [float(a[np.isfinite(a)].mean()) if np.isfinite(a).any() else float("nan") for a in agree]
        consistency = float(np.mean(means))
    return PointErrors(float(forth.mean()), float(back.mean()), float((forth.mean() + back.mean()) / 2), consistency)


def world_points(depth: np.ndarray, intrinsics: np.ndarray, world_from_camera: np.ndarray) -> np.ndarray:
    """(S, H, W, 3) of z-depth (S, H, W), intrinsics (S, 3, 3), poses (S, 4, 4); NaN where there is no finite positive depth."""
    with np.errstate(invalid="ignore"):
        good = np.isfinite(depth) & (depth > 0)
    local = geometry.unproject(np.where(good, depth, np.nan).astype(np.float64), intrinsics)
    rotation, translation = world_from_camera[:, :3, :3], world_from_camera[:, None, :3, 3]
    flat = local.reshape(len(local), -1, 3) @ np.swapaxes(rotation, 1, 2) + translation
    return flat.reshape(local.shape)


def map_normals(points: np.ndarray) -> np.ndarray:
    """(..., H, W, 3) unit normals of organised points, from the cross product of differences to the pixels right and below (left and
    above at the border); NaN where one of them is unknown."""
    right = np.diff(points, axis=-2, append=np.nan)
    right[..., -1, :] = right[..., -2, :]
    below = np.diff(points, axis=-3, append=np.nan)
    below[..., -1, :, :] = below[..., -2, :, :]
    normal = np.cross(right, below)
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(length > 0, normal / length, np.nan)


def window_point_errors(
    points: np.ndarray,
    truth: np.ndarray,
    most: int = 4000,
    rng: np.random.Generator | None = None,
    normals: bool = True,
) -> PointErrors:
    """Of the point maps (S, H, W, 3) of one window after the Sim(3) that fits pixel to pixel (Umeyama, PAMI 1991), on at most `most`
    pixels where both are known. Fewer than three such pixels: NaN. normals: whether they are compared; they take longest."""
    both = np.flatnonzero(np.isfinite(points).all(axis=-1) & np.isfinite(truth).all(axis=-1))
    if len(both) < 3:
        return PointErrors(*(float("nan"),) * 4)
    ours, real = points.reshape(-1, 3)[both], truth.reshape(-1, 3)[both]
    scale, rotation, translation = geometry.umeyama(ours, real)
    some = np.arange(len(both))
    if len(both) > most:
        some = np.sort((rng or np.random.default_rng(0)).permutation(len(both))[:most])
    moved = scale * ours[some] @ rotation.T + translation
    if not normals:
        return point_errors(moved, real[some])
    ours_normal = map_normals(points).reshape(-1, 3)[both][some] @ rotation.T
    return point_errors(moved, real[some], ours_normal, map_normals(truth).reshape(-1, 3)[both][some])
