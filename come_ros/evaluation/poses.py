"""Errors of camera poses: relative rotation and direction, their AUC, and whole trajectories after alignment."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .. import geometry
from .depth import depth_errors

if TYPE_CHECKING:
    from ..types import Prediction

LEAST_BASELINE = 0.02  # a shorter translation has no reliable direction; metres, for a truth in metres
LEAST_PARALLAX = 0.01  # the same in median depths, for a truth in any unit
AUC_DEG = (5, 10, 30)


def rotation_error_deg(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angle between rotations (..., 3, 3), degrees; from sine and cosine, since the cosine alone is inaccurate for small angles."""
    between = np.swapaxes(a, -1, -2) @ b
    skew = between - np.swapaxes(between, -1, -2)
    sine = np.sqrt((skew**2).sum(axis=(-1, -2)) / 8)
    return np.degrees(np.arctan2(sine, (np.trace(between, axis1=-2, axis2=-1) - 1) / 2))


def relative_pose_errors(
    world_from_camera: np.ndarray, truth: np.ndarray, least: float = LEAST_BASELINE
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Errors of each camera relative to the first: (rotation deg, translation direction deg, true rotation deg), each (S - 1,).

    The direction is NaN where the true baseline is below `least`, in the truth's unit. The true rotation is also the error of
    predicting no rotation.
    """
    first, others = [0] * (len(truth) - 1), range(1, len(truth))
    rotation, direction = _pair_errors(world_from_camera, truth, first, others, least)
    still, _ = _pair_errors(np.broadcast_to(np.eye(4), np.shape(truth)), truth, first, others, least)
    return rotation, direction, still


def pair_pose_errors(
    world_from_camera: np.ndarray, truth: np.ndarray, least: float = LEAST_BASELINE
) -> tuple[np.ndarray, np.ndarray]:
    """(rotation deg, translation direction deg) of all S (S - 1) / 2 pairs of cameras; the direction is NaN as above."""
    pairs = list(itertools.combinations(range(len(truth)), 2))
    return _pair_errors(world_from_camera, truth, [i for i, _ in pairs], [j for _, j in pairs], least)


def _pair_errors(
    poses: np.ndarray, truth: np.ndarray, a: Sequence[int], b: Sequence[int], least: float
) -> tuple[np.ndarray, np.ndarray]:
    a, b = list(a), list(b)
    est = np.linalg.inv(poses[a]) @ poses[b]
    ref = np.linalg.inv(truth[a]) @ truth[b]
    t, t_ref = est[:, :3, 3], ref[:, :3, 3]
    length = np.linalg.norm(t_ref, axis=1)
    cosine = np.einsum("si,si->s", t, t_ref) / np.maximum(np.linalg.norm(t, axis=1) * length, 1e-12)
    direction = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    return rotation_error_deg(est[:, :3, :3], ref[:, :3, :3]), np.where(length > least, direction, np.nan)


def pose_auc(rotation_deg: np.ndarray, direction_deg: np.ndarray, threshold_deg: float) -> float:
    """Area under the curve of the share of pairs whose rotation and direction are both off by less than t, over 0 <= t <=
    threshold, divided by the threshold.

    Jin et al., IJCV 2021 (mAA), and Wang et al., ICCV 2023 (PoseDiffusion, AUC@30), sum that curve at whole degrees; here it is
    integrated, the mean of max(0, 1 - e / threshold). Directions count with their sign; a NaN one (no baseline) does not.
    """
    worst = np.fmax(rotation_deg, direction_deg)
    return float(np.clip(1 - worst / threshold_deg, 0, None).mean()) if len(worst) else float("nan")


def ate_rmse(world_from_camera: np.ndarray, truth: np.ndarray, with_scale: bool = True) -> float:
    """Absolute trajectory error: RMS distance of the positions of (N, 4, 4) poses after the Sim(3) (or SE(3)) that fits them best.

    Sturm et al., IROS 2012, eq. 5; alignment by Umeyama, PAMI 1991. In the truth's unit.
    """
    ours, real = world_from_camera[:, :3, 3], truth[:, :3, 3]
    scale, rotation, translation = geometry.umeyama(ours, real, with_scale)
    return float(np.sqrt(((scale * ours @ rotation.T + translation - real) ** 2).sum(axis=1).mean()))


def translation_lengths(world_from_camera: np.ndarray, truth: np.ndarray, scale: float) -> tuple[float, float]:
    """(length of the path (N, 4, 4) over that of the truth, RMS error of a step's translation in the truth's unit), N >= 2, with the scale
    that depth has: nothing is fitted to the path, so a path that is too short is detected."""
    ours, real = (
        (geometry.inverse(p[:-1]) @ p[1:])[:, :3, 3] for p in (np.asarray(world_from_camera), np.asarray(truth))
    )
    ours = scale * ours
    length = float(np.linalg.norm(real, axis=1).sum())
    ratio = float(np.linalg.norm(ours, axis=1).sum()) / length if length > 0 else float("nan")
    return ratio, float(np.sqrt(((ours - real) ** 2).sum(axis=1).mean()))


def rpe_rmse(
    world_from_camera: np.ndarray, truth: np.ndarray, delta: int = 1, with_scale: bool = True
) -> tuple[float, float]:
    """Relative pose error over steps of `delta` poses (N, 4, 4): RMS of (translation in the truth's unit, rotation in deg).

    Sturm et al., IROS 2012, eq. 2-4. with_scale: the estimate first gets the scale of the Sim(3) that fits its positions best.
    """
    scale = geometry.umeyama(world_from_camera[:, :3, 3], truth[:, :3, 3])[0] if with_scale else 1.0
    poses = geometry.transform_poses(scale, np.eye(3), np.zeros(3), world_from_camera)
    est, ref = (geometry.inverse(p[:-delta]) @ p[delta:] for p in (poses, np.asarray(truth)))
    error = geometry.inverse(ref) @ est
    angle = np.degrees(geometry.rotation_angle(error[:, :3, :3]))
    return (
        float(np.sqrt((error[:, :3, 3] ** 2).sum(axis=1).mean())),
        float(np.sqrt((angle**2).mean())),
    )


def prediction_difference(ours: Prediction, base: Prediction) -> dict[str, float]:
    """Difference between two predictions of the same window: depth_abs_rel (after the median ratio of depths), rot_deg and
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
