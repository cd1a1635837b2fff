"""Errors of depth and poses against ground truth, and the null models that every figure stands beside.

Depth: AbsRel and delta < 1.25 as in Eigen et al., NeurIPS 2014. The model knows no scale, so depth is first scaled by the median ratio.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .types import Prediction


@dataclass(frozen=True)
class DepthErrors:
    """abs_rel: mean |d - d*| / d*. delta: share of pixels with max(d/d*, d*/d) < 1.25. pixels: how many were compared."""

    abs_rel: float
    delta: float
    pixels: int


def depth_errors(depth: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None) -> DepthErrors:
    """Errors of `depth` after scaling it by median(truth / depth); arrays of one shape, any unit.

    Pixels count where the truth is finite and > 0 (and `mask`, if given). A pixel without a finite positive estimate counts as wrong:
    delta 0, AbsRel 1, so that leaving pixels out cannot win. No comparable pixel: NaN errors.
    """
    depth, truth, good = _comparable(depth, truth, mask)
    if not good.any():
        return DepthErrors(float("nan"), float("nan"), int(truth.size))
    ratio = np.full(truth.shape, np.inf)
    ratio[good] = depth[good] * np.median(truth[good] / depth[good]) / truth[good]
    error = np.where(good, np.abs(ratio - 1), 1.0)
    return DepthErrors(float(error.mean()), float((np.maximum(ratio, 1 / ratio) < 1.25).mean()), int(truth.size))


class RatioHistogram:
    """Depth errors of a whole sequence under one scale, in memory that does not grow with it.

    AbsRel and delta depend on nothing but depth / truth, so its logarithm is counted in bins of `WIDTH`; each bin stands for the mean
    of what fell into it, so that the scale is known to WIDTH / 2 (relative) and the errors to less.
    """

    WIDTH = 1e-4
    REACH = 12.0  # depths 160 000 times too large or small count as just that

    def __init__(self) -> None:
        bins = 2 * round(self.REACH / self.WIDTH) + 1
        self._counts = np.zeros(bins, np.int64)
        self._sums = np.zeros(bins)
        self._missing = 0

    def add(self, depth: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Pixels of one frame; which of them count is told in `depth_errors`."""
        depth, truth, good = _comparable(depth, truth, mask)
        logs = np.clip(np.log(depth[good] / truth[good]), -self.REACH, self.REACH)
        index = np.rint((logs + self.REACH) / self.WIDTH).astype(np.int64)
        self._counts += np.bincount(index, minlength=len(self._counts))
        self._sums += np.bincount(index, logs, minlength=len(self._counts))
        self._missing += int(len(truth) - good.sum())

    def errors(self) -> DepthErrors:
        """Of all frames so far, scaled once by the median ratio."""
        counted = self._counts > 0
        n = self._counts[counted]
        total = int(n.sum())
        if not total:
            return DepthErrors(float("nan"), float("nan"), self._missing)
        logs = self._sums[counted] / n
        ratio = np.exp(logs - logs[np.searchsorted(np.cumsum(n), total / 2)])
        right = n[np.maximum(ratio, 1 / ratio) < 1.25].sum()
        pixels = total + self._missing
        off = float(n @ np.abs(ratio - 1)) + self._missing
        return DepthErrors(off / pixels, float(right / pixels), pixels)


def _comparable(
    depth: np.ndarray, truth: np.ndarray, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(depth, truth) float64 where the truth is known, (n,) each, and where the depth is finite and positive, (n,) bool."""
    truth = np.asarray(truth, dtype=np.float64)
    depth = np.asarray(depth, dtype=np.float64)
    known = np.isfinite(truth) & (truth > 0)
    if mask is not None:
        known &= mask
    truth, depth = truth[known], depth[known]
    return depth, truth, np.isfinite(depth) & (depth > 0)


def rotation_error_deg(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angle between rotations (..., 3, 3), degrees."""
    trace = np.einsum("...ij,...ij->...", a, b)
    return np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1)))


def relative_pose_errors(world_from_camera: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Errors of each camera relative to the first: (rotation deg, translation direction deg, true rotation deg), each (S - 1,).

    The direction is NaN where the true baseline is below 2 cm: it has no direction worth the name. The true rotation is what the null
    model `identity` would get wrong.
    """
    est = np.linalg.inv(world_from_camera[0]) @ world_from_camera[1:]
    ref = np.linalg.inv(truth[0]) @ truth[1:]
    t, t_ref = est[:, :3, 3], ref[:, :3, 3]
    length = np.linalg.norm(t_ref, axis=1)
    cosine = np.einsum("si,si->s", t, t_ref) / np.maximum(np.linalg.norm(t, axis=1) * length, 1e-12)
    direction = np.where(length > 0.02, np.degrees(np.arccos(np.clip(cosine, -1, 1))), np.nan)
    eye = np.broadcast_to(np.eye(3), ref[:, :3, :3].shape)
    return rotation_error_deg(est[:, :3, :3], ref[:, :3, :3]), direction, rotation_error_deg(eye, ref[:, :3, :3])


def prediction_difference(ours: Prediction, base: Prediction) -> dict[str, float]:
    """How far one prediction of a window is from another of the same: depth_abs_rel (after the median ratio of depths), rot_deg and
    trans_rel (largest over cameras about the first; translation after the same ratio, in median depths of `base`)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = float(np.nanmedian(base.depth / ours.depth))
    a, b = (np.linalg.inv(p.window_from_camera[0]) @ p.window_from_camera for p in (ours, base))
    apart = np.linalg.norm(scale * a[:, :3, 3] - b[:, :3, 3], axis=1).max()
    return {
        "depth_abs_rel": depth_errors(ours.depth, base.depth).abs_rel,
        "rot_deg": float(rotation_error_deg(a[:, :3, :3], b[:, :3, :3]).max()),
        "trans_rel": float(apart / np.nanmedian(base.depth)),
    }
