"""Scores of a whole recording against its truth, next to trivial baselines: depth, rotation, trajectory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import geometry
from ..types import F32, F64
from . import RatioHistogram, ate_baselines, ate_rmse, depth_errors, rotation_error_deg, rpe_rmse
from .poses import translation_lengths
from .window import mean_depth


class DepthScores:
    """Depth errors on the published pixels, frame by frame, of come_ros and, on the same pixels, of trivial baselines. Memory use
    does not depend on the number of frames.

    scales: metres per unit of our depth, one for each frame that could be compared.
    """

    def __init__(self) -> None:
        self.scales: list[float] = []
        self._frames = self._known = self._compared = 0
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._histograms: dict[str, RatioHistogram] = {}
        self._mean: F32 | None = None

    def add(self, ours: F32, real: F32) -> None:
        """One frame: published depth (h, w), NaN where none, and the truth on the same pixels, in metres."""
        known = np.isfinite(real) & (real > 0)
        mask = known & np.isfinite(ours)
        self._frames += 1
        self._known += int(known.sum())
        self._compared += int(mask.sum())
        if not mask.any():
            return
        self.scales.append(float(np.median(real[mask] / ours[mask])))
        if self._mean is None or self._mean.shape != ours.shape:
            self._mean = mean_depth(ours.shape)
        nulls = {"constant depth": np.ones(ours.shape, np.float32), "mean depth map": self._mean}
        for name, depth in {"come_ros": ours, **nulls}.items():
            error = depth_errors(depth, real, mask)
            self._sums[name] = self._sums.get(name, 0) + np.array([error.abs_rel, error.delta])
            self._histograms.setdefault(name, RatioHistogram()).add(depth, real, mask)

    @property
    def scale(self) -> float | None:
        """Metres in one unit of ours, the median over frames; None if nothing could be compared."""
        return float(np.median(self.scales)) if self.scales else None

    def result(self) -> dict[str, Any] | None:
        """None if nothing could be compared."""
        if not self._compared:
            return None
        once = {name: histogram.errors() for name, histogram in self._histograms.items()}
        return {
            "frames": self._frames,
            "coverage": self._compared / self._known,
            "scale": self.scale,
            "mean_depth_map": "training rooms",
            "per_frame": {
                name: dict(zip(("abs_rel", "delta"), (total / len(self.scales)).tolist(), strict=True))
                for name, total in self._sums.items()
            },
            "per_sequence": {name: {"abs_rel": e.abs_rel, "delta": e.delta} for name, e in once.items()},
        }


def rotation_scores(odom_from_camera: Mapping[int, F64], world_from_camera: Mapping[int, F64]) -> dict[str, Any] | None:
    """Angles between consecutive used frames and their errors, compared with no rotation and with the constant rotation that fits
    the truth best."""
    stamps = sorted(world_from_camera)
    if len(stamps) < 2:
        return None
    both = (odom_from_camera, world_from_camera)
    ours, real = (np.stack([poses[t][:3, :3] for t in stamps]) for poses in both)
    steps = [np.swapaxes(r[:-1], 1, 2) @ r[1:] for r in (ours, real)]
    off = rotation_error_deg(*steps)
    null = rotation_error_deg(np.broadcast_to(np.eye(3), steps[1].shape), steps[1])
    constant = rotation_error_deg(np.broadcast_to(geometry.average_rotation(steps[1]), steps[1].shape), steps[1])
    errors = {"come_ros": off, "no rotation": null, "constant rotation": constant}
    return {
        "pairs": len(off),
        "median_deg": {name: float(np.median(e)) for name, e in errors.items()},
        "rmse_deg": {name: float(np.sqrt(np.mean(e**2))) for name, e in errors.items()},
    }


def trajectory_scale(odom_from_camera: Mapping[int, F64], world_from_camera: Mapping[int, F64]) -> float | None:
    """The truth's units in one of ours, as the alignment of the paths has it; None for fewer than three poses."""
    stamps = sorted(world_from_camera)
    if len(stamps) < 3:
        return None
    ours, real = (np.stack([poses[t][:3, 3] for t in stamps]) for poses in (odom_from_camera, world_from_camera))
    return float(geometry.umeyama(ours, real)[0])


def trajectory_scores(
    odom_from_camera: Mapping[int, F64],
    world_from_camera: Mapping[int, F64],
    depth_scale: float | None = None,
) -> dict[str, Any] | None:
    """ATE and RPE (between consecutive used frames), aligned by Sim(3) and, `_se3`, with the scale left as it is; None for fewer than
    three poses. They are the figures of evo (a test compares them), which would take seconds to start for each of the five.

    Trivial baselines: see ate_baselines, each with the scale that suits it best; for RPE not moving, and the constant velocity in the
    camera's own axes that fits the truth best.
    scale: the truth's units in one of ours, as the alignment of the path has it. depth_scale: as depth has it, if that is known; then also
    short: how many times too short the path is for the depth, scale / depth_scale; length_ratio: its length over the true one, and
    ate_depth_scale_rmse_m, both under that scale.
    """
    stamps = sorted(world_from_camera)
    if len(stamps) < 3:
        return None
    ours, real = (np.stack([poses[t] for t in stamps]) for poses in (odom_from_camera, world_from_camera))
    steps = (geometry.inverse(real[:-1]) @ real[1:])[:, :3, 3]
    still = ate_baselines(real)
    nulls = {"not moving": _rms(steps), "constant velocity": _rms(steps - steps.mean(axis=0))}
    by_sim3, turn = rpe_rmse(ours, real)
    by_se3, _ = rpe_rmse(ours, real, with_scale=False)
    out: dict[str, Any] = {
        "poses": len(stamps),
        "length_m": float(np.linalg.norm(np.diff(real[:, :3, 3], axis=0), axis=1).sum()),
        "ate_rmse_m": {"come_ros": ate_rmse(ours, real), **still},
        "ate_se3_rmse_m": {"come_ros": ate_rmse(ours, real, with_scale=False), **still},
        "rpe_translation_rmse_m": {"come_ros": by_sim3, **nulls},
        "rpe_translation_se3_rmse_m": {"come_ros": by_se3, **nulls},
        "rpe_rotation_rmse_deg": turn,  # its trivial baseline is among the rotation scores
        "scale": trajectory_scale(odom_from_camera, world_from_camera),
    }
    if depth_scale is not None and np.isfinite(depth_scale):
        out["depth_scale"] = depth_scale
        out["short"] = out["scale"] / depth_scale
        out["length_ratio"], _ = translation_lengths(ours, real, depth_scale)
        scaled = geometry.transform_poses(depth_scale, np.eye(3), np.zeros(3), ours)
        out["ate_depth_scale_rmse_m"] = ate_rmse(scaled, real, with_scale=False)
    return out


def _rms(vectors: F64) -> float:
    """Root of the mean squared length of (N, 3)."""
    return float(np.sqrt((vectors**2).sum(axis=1).mean()))
