"""All errors of one window against its ground truth, and trivial baselines, which do not use the images, scored in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..types import F32, F64, U8, Prediction
from .baselines import Motion, best_motion, constant_motion, random_walks, straight_line
from .calibration import Calibration, calibration
from .depth import depth_errors, depth_scale, depth_ssim, edges
from .points import window_point_errors, world_points
from .poses import (
    AUC_DEG,
    LEAST_BASELINE,
    LEAST_PARALLAX,
    ate_rmse,
    pair_pose_errors,
    pose_auc,
    relative_pose_errors,
    rpe_rmse,
    translation_lengths,
)
from .thin import thin_errors

MEAN_DEPTH = Path(__file__).resolve().parents[1] / "models" / "mean_depth.npy"
"""(h, w) mean depth of the training rooms, each frame scaled to median 1."""
NULL_FOCAL = 0.75  # widths of the image: the middle of the training rooms' fields of view
WALKS = 40  # of each window
LEAST_KNOWN = 0.01  # share of a window's pixels; with fewer its depth is taken for unknown


@dataclass(frozen=True, eq=False)
class WindowTruth:
    """S images at the model's size, and what is known of them; None where nothing is.

    source: name of the recording. index: of the window in it. images: (S, H, W, 3) uint8. depth: (S, H, W) float32 along z, NaN where
    unknown. world_from_camera: (S, 4, 4). intrinsics: (3, 3) in pixels of these images. background: (S, H, W) depth without the thin
    structures that `depth` has.
    """

    source: str
    index: int
    images: U8
    depth: F32 | None = None
    world_from_camera: F64 | None = None
    intrinsics: F64 | None = None
    background: F32 | None = None

    @cached_property
    def least_baseline(self) -> float:
        """Shorter translations have no reliable direction; in the truth's unit, which need not be metres."""
        middle = np.nan if self.depth is None else float(np.nanmedian(np.where(self.depth > 0, self.depth, np.nan)))
        return LEAST_PARALLAX * middle if np.isfinite(middle) else LEAST_BASELINE

    @cached_property
    def edges(self) -> np.ndarray:
        """(S, H, W) bool, of the depth."""
        assert self.depth is not None
        return edges(self.depth)


def mean_depth(shape: tuple[int, ...]) -> F32:
    """(h, w) trivial baseline: the mean depth of the training rooms."""
    import cv2

    return cv2.resize(np.load(MEAN_DEPTH).astype(np.float32), shape[::-1], interpolation=cv2.INTER_LINEAR)


def null_predictions(images: U8) -> dict[str, Prediction]:
    """Trivial predictions for (S, H, W, 3) images: one depth or the mean depth map, a camera that never moves, a typical lens.
    Their confidence is constant."""
    s, height, width = images.shape[:3]
    k = np.array([[NULL_FOCAL * width, 0, width / 2 - 0.5], [0, NULL_FOCAL * width, height / 2 - 0.5], [0, 0, 1]])
    maps = {"constant depth": np.ones((height, width), np.float32), "mean depth map": mean_depth((height, width))}
    still, lens = np.tile(np.eye(4), (s, 1, 1)), np.tile(k, (s, 1, 1))
    return {
        name: Prediction(images, np.tile(depth, (s, 1, 1)), np.ones((s, height, width), np.float32), still, lens)
        for name, depth in maps.items()
    }


def window_calibration(prediction: Prediction, truth: WindowTruth) -> Calibration | None:
    """Calibration of the confidence against |d - d*| / d* after the median ratio; None without true depth."""
    if truth.depth is None:
        return None
    error = _relative_error(prediction.depth, truth.depth)
    return calibration(prediction.confidence, error)


def score_window(
    prediction: Prediction, truth: WindowTruth, dense: Prediction | None = None, quick: bool = False
) -> dict[str, float]:
    """Name -> error, for everything the truth contains; NaN where a figure is undefined. Depth is scaled by the window's median
    ratio, and parts of the pixels (kept, merged, edge, plain, thin) by that same scale.

    dense: the unaccelerated prediction, scored on the pixels that this one kept and compared with it. quick: skips what takes
    longest: confidence, normals, and half the rows and columns of the point maps.
    """
    row = {"kept_tokens": prediction.kept_ratio, "read_keys": prediction.read_ratio}
    if truth.depth is not None:
        row |= _depth_scores(prediction, truth.depth, truth.edges, dense)
        row |= {} if quick else _confidence_scores(prediction, truth.depth)
    if truth.background is not None and truth.depth is not None:
        thin = thin_errors(prediction.depth, truth.depth, truth.background, row["scale"])
        row |= {"thin_precision": thin.precision, "thin_recall": thin.recall, "thin_f1": thin.f1}
        row |= {"thin_abs_rel": thin.abs_rel, "thin_pixels": thin.pixels}
    if truth.world_from_camera is not None:
        scale = row.get("scale", float("nan"))
        row |= pose_scores(prediction.window_from_camera, truth.world_from_camera, scale, truth.least_baseline)
    if truth.intrinsics is not None:
        focal = (prediction.intrinsics[:, 0, 0], prediction.intrinsics[:, 1, 1])
        off = [np.abs(f / truth.intrinsics[i, i] - 1) for i, f in enumerate(focal)]
        row["focal_error"] = float(np.median(off))
    if not (truth.depth is None or truth.world_from_camera is None or truth.intrinsics is None):
        row |= _point_scores(prediction, truth, quick)
    if dense is not None:
        row["to_dense"] = depth_errors(prediction.depth, dense.depth).abs_rel
    return row


def _depth_scores(prediction: Prediction, truth: F32, edge: np.ndarray, dense: Prediction | None) -> dict[str, float]:
    depth = prediction.depth
    scale = depth_scale(depth, truth)
    whole = depth_errors(depth, truth, scale=scale)
    row = {
        "abs_rel": whole.abs_rel, "delta": whole.delta, "rmse": whole.rmse, "log_rmse": whole.log_rmse, "scale": scale,
        "ssim": depth_ssim(depth, truth, scale),
        "frame_abs_rel": float(np.nanmean([depth_errors(d, t).abs_rel for d, t in zip(depth, truth, strict=True)])),
    }  # fmt: skip
    kept = np.ones(truth.shape, bool) if prediction.merged is None else ~prediction.merged
    base_scale = None if dense is None else depth_scale(dense.depth, truth)
    for name, mask in {"kept": kept, "merged": ~kept, "edge": edge, "plain": ~edge}.items():
        part = depth_errors(depth, truth, mask, scale)
        row |= {f"{name}_abs_rel": part.abs_rel, f"{name}_delta": part.delta}
        if dense is not None:
            base = depth_errors(dense.depth, truth, mask, base_scale)
            row[f"{name}_dense_abs_rel"] = base.abs_rel
    return row


def _confidence_scores(prediction: Prediction, truth: F32) -> dict[str, float]:
    error = _relative_error(prediction.depth, truth)
    trust = calibration(prediction.confidence, error)
    far = calibration(-prediction.depth, error)
    return {"ause": trust.ause, "ause_chance": trust.chance, "ause_far": far.ause, "spearman": trust.spearman}


def pose_scores(window_from_camera: F64, truth: F64, scale: float, least: float) -> dict[str, float]:
    """Errors of poses (S, 4, 4). scale: the truth's units in one of the model's, as its depth has it; NaN if that is not known. least: see
    WindowTruth.least_baseline."""
    if len(truth) < 2:
        return {}
    rotation, direction, _ = relative_pose_errors(window_from_camera, truth, least)
    pairs = pair_pose_errors(window_from_camera, truth, least)
    translation, turn = rpe_rmse(window_from_camera, truth)
    length, step = translation_lengths(window_from_camera, truth, scale)
    row = {
        "rotation_deg": float(np.median(rotation)),
        "direction_deg": float(np.median(direction[np.isfinite(direction)])) if np.isfinite(direction).any() else np.nan,
        **{f"auc{t}": pose_auc(*pairs, t) for t in AUC_DEG},
        "rpe_rotation_deg": turn,
        "rpe_translation": translation,
        "length_ratio": length,
        "step_error": step,
    }  # fmt: skip
    if len(truth) > 2:
        row["ate"] = ate_rmse(window_from_camera, truth)
    return row


class TruePath(NamedTuple):
    """Of one window. world_from_camera: (S, 4, 4), None where unknown. least: see WindowTruth.least_baseline."""

    world_from_camera: F64 | None
    least: float


MOTIONS = ("not moving", "straight line", "constant motion", "random walk", "best 5 % of random walks")


def motion_baselines(paths: Sequence[TruePath], seed: int = 0) -> dict[str, list[dict[str, float]]]:
    """Trivial baselines of motion, MOTIONS, for all windows of one source: name -> pose_scores of each window, {} where no poses are known.
    They are in the truth's own unit, and the constant ones are fitted to these same windows (see baselines). Empty without poses."""
    known = [p.world_from_camera for p in paths if p.world_from_camera is not None and len(p.world_from_camera) > 1]
    if not known:
        return {}
    motion = best_motion(known)
    rows = [_motion_rows(path, motion, seed + i) for i, path in enumerate(paths)]
    return {name: [row.get(name, {}) for row in rows] for name in MOTIONS}


def _motion_rows(path: TruePath, motion: Motion, seed: int) -> dict[str, dict[str, float]]:
    truth = path.world_from_camera
    if truth is None or len(truth) < 2:
        return {}
    said = {
        "not moving": np.tile(np.eye(4), (len(truth), 1, 1)),
        "straight line": straight_line(len(truth), motion.direction.tolist(), motion.length),
        "constant motion": constant_motion(len(truth), motion.step),
    }
    rows = {name: pose_scores(poses, truth, 1.0, path.least) for name, poses in said.items()}
    walks = random_walks(len(truth), motion.length, WALKS, seed)
    errors = {"step_error": [translation_lengths(walk, truth, 1.0)[1] for walk in walks]}
    if len(truth) > 2:
        errors["ate"] = [ate_rmse(walk, truth) for walk in walks]
    rows["random walk"] = {name: float(np.mean(values)) for name, values in errors.items()}
    rows["best 5 % of random walks"] = {name: float(np.percentile(values, 5)) for name, values in errors.items()}
    return rows


def _point_scores(prediction: Prediction, truth: WindowTruth, quick: bool) -> dict[str, float]:
    assert truth.depth is not None and truth.world_from_camera is not None and truth.intrinsics is not None
    every = 2 if quick else 1
    shrink = np.diag([1 / every, 1 / every, 1.0])  # pixel 2 u becomes pixel u
    lens = np.broadcast_to(shrink @ truth.intrinsics, (len(truth.depth), 3, 3))
    ours = world_points(
        prediction.depth[:, ::every, ::every], shrink @ prediction.intrinsics, prediction.window_from_camera
    )
    real = world_points(truth.depth[:, ::every, ::every], lens, truth.world_from_camera)
    error = window_point_errors(ours, real, normals=not quick)
    row = {"accuracy": error.accuracy, "completeness": error.completeness, "chamfer": error.chamfer}
    return row if quick else row | {"normal_consistency": error.normal_consistency}


def _relative_error(depth: F32, truth: F32) -> np.ndarray:
    """|scaled depth / truth - 1| float64, NaN where the truth is unknown, 1 where the estimate is missing."""
    good = np.isfinite(depth) & (depth > 0)
    known = np.isfinite(truth) & (truth > 0)
    scale = depth_scale(depth, truth)
    off = np.abs(np.where(good, depth, 0.0) * np.float64(scale) / np.where(known, truth, 1.0) - 1)
    return np.where(known, np.where(good, off, 1.0), np.nan)
