"""Input and output of a bundle adjustment; bundle.py describes its unknowns and terms."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..types import F64

Ints = NDArray[np.intp]


def _none(*shape: int) -> F64:
    return np.zeros(shape)


def _no_index() -> Ints:
    return np.zeros(0, np.intp)


@dataclass(frozen=True, eq=False)
class Reprojections:
    """N observations of landmarks in frames other than their anchors. frame, landmark: (N,). pixels: (N, 2). sigma: (N,) px. kernel:
    sigmas at which an observation counts half."""

    frame: Ints = field(default_factory=_no_index)
    landmark: Ints = field(default_factory=_no_index)
    pixels: F64 = field(default_factory=lambda: _none(0, 2))
    sigma: F64 = field(default_factory=lambda: _none(0))
    kernel: float = np.inf


@dataclass(frozen=True, eq=False)
class Depths:
    """N depths of landmarks in a frame from the network. log_depth: (N,) along z. basis: (N, B), change of log_depth per unit of each
    correction term. sigma: (N,) of the logarithm."""

    frame: Ints = field(default_factory=_no_index)
    landmark: Ints = field(default_factory=_no_index)
    log_depth: F64 = field(default_factory=lambda: _none(0))
    basis: F64 = field(default_factory=lambda: _none(0, 0))
    sigma: F64 = field(default_factory=lambda: _none(0))
    kernel: float = np.inf


@dataclass(frozen=True, eq=False)
class Relatives:
    """N measured poses of one frame in another. first_from_second: (N, 4, 4). sigma: (N, 2), of rotation (rad, each axis) and of
    translation (units of the measurement). metric: (N,) bool, whether the translation is in metres instead of odometry units."""

    first: Ints = field(default_factory=_no_index)
    second: Ints = field(default_factory=_no_index)
    first_from_second: F64 = field(default_factory=lambda: _none(0, 4, 4))
    sigma: F64 = field(default_factory=lambda: _none(0, 2))
    metric: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    kernel: float = np.inf


@dataclass(eq=False)
class Steps:
    """Measured poses of frames in others, collected for Relatives."""

    first: list[int] = field(default_factory=list)
    second: list[int] = field(default_factory=list)
    pose: list[F64] = field(default_factory=list)
    sigma: list[tuple[float, float]] = field(default_factory=list)
    metric: list[bool] = field(default_factory=list)

    def add(self, first: int, second: int, pose: F64, turn: float, shift: float, metric: bool = False) -> None:
        self.first.append(first)
        self.second.append(second)
        self.pose.append(pose)
        self.sigma.append((turn, shift))
        self.metric.append(metric)

    def relatives(self, kernel: float) -> Relatives:
        return Relatives(
            np.array(self.first), np.array(self.second), np.array(self.pose), np.array(self.sigma), np.array(self.metric), kernel
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Problem:
    """F frames, L landmarks, C cameras, B terms of the depth correction.

    world_from_camera: (F, 4, 4), start values for free frames, constants for others. free: (F,) bool. camera: (F,) index of the camera.
    intrinsics: (C, 4) fx, fy, cx, cy. anchor: (L,) frame in which a landmark lies exactly at anchor_pixels (L, 2). log_inverse_depth:
    (L,) start values. corrected: (F,) bool, frames whose network depth has a correction, which starts at `corrections` (F, B).
    Corrections are Gaussian with zero mean; `common_sigma` (B,) is the sigma of the part that all frames share, `own_sigma` (B,) that of
    each frame's own part. log_focal_sigma: (C,) sigma of the logarithm of the focal length, 0 if it is known. unit: odometry units per
    metre. unit_sigma: sigma of its logarithm, 0 if it is known.
    """

    world_from_camera: F64
    free: NDArray[np.bool_]
    camera: Ints
    intrinsics: F64
    anchor: Ints
    anchor_pixels: F64
    log_inverse_depth: F64
    reprojections: Reprojections
    depths: Depths = field(default_factory=Depths)
    relatives: tuple[Relatives, ...] = ()
    corrected: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    corrections: F64 = field(default_factory=lambda: _none(0, 0))
    common_sigma: F64 = field(default_factory=lambda: _none(0))
    own_sigma: F64 = field(default_factory=lambda: _none(0))
    log_focal_sigma: F64 = field(default_factory=lambda: _none(0))
    unit: float = 1.0
    unit_sigma: float = 0.0


@dataclass(frozen=True, eq=False)
class Solution:
    """The solution; fields as in Problem.

    intrinsics: (C, 4) with the estimated focal lengths. cost: half the sum of all robust squares; start_cost: the same at the start.
    covariance: (6 n, 6 n) of the n free frames in order, each rotation (rad, in the camera's axes), then position (in the world); the
    sigmas of the residuals are assumed to be right. log_focal_sigma: (C,), unit_sigma: of the estimates. landmark_information: (L,) of
    the logarithm of the inverse depth from the reprojections alone, with all poses fixed. residuals: (N, 2) px of the reprojections.
    depth_residuals: (D,) logarithm of the landmark's depth divided by the corrected depth. iterations: number of linear systems solved.
    """

    world_from_camera: F64
    log_inverse_depth: F64
    corrections: F64
    intrinsics: F64
    unit: float
    cost: float
    start_cost: float
    covariance: F64
    log_focal_sigma: F64
    unit_sigma: float
    landmark_information: F64
    residuals: F64
    depth_residuals: F64
    iterations: int
