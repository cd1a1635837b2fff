"""Errors against ground truth, each with its source; the trivial baselines for every figure are in `window`."""

from .baselines import Motion, ate_baselines, best_motion, constant_motion, random_walks, straight_line
from .bootstrap import Interval, best_share, block_length, interval, paired_difference
from .calibration import Calibration, calibration, spearman
from .depth import DepthErrors, RatioHistogram, depth_errors, depth_scale, depth_ssim, edges, ssim
from .points import PointErrors, point_errors, window_point_errors, world_points
from .poses import (
    ate_rmse,
    pair_pose_errors,
    pose_auc,
    prediction_difference,
    relative_pose_errors,
    rotation_error_deg,
    rpe_rmse,
)
from .thin import ThinErrors, thin_errors

__all__ = [
    "Calibration",
    "DepthErrors",
    "Interval",
    "Motion",
    "PointErrors",
    "RatioHistogram",
    "ThinErrors",
    "ate_baselines",
    "ate_rmse",
    "best_motion",
    "best_share",
    "block_length",
    "calibration",
    "constant_motion",
    "depth_errors",
    "depth_scale",
    "depth_ssim",
    "edges",
    "interval",
    "pair_pose_errors",
    "paired_difference",
    "point_errors",
    "pose_auc",
    "prediction_difference",
    "random_walks",
    "relative_pose_errors",
    "rotation_error_deg",
    "rpe_rmse",
    "spearman",
    "ssim",
    "straight_line",
    "thin_errors",
    "window_point_errors",
    "world_points",
]
