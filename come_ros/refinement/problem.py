"""What a bundle adjustment is asked and what it answers; bundle.py has its unknowns and its terms."""

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
    """What was seen where: N landmarks in frames other than those that anchor them. pixels: (N, 2). sigma: (N,) px."""

    frame: Ints = field(default_factory=_no_index)
    landmark: Ints = field(default_factory=_no_index)
    pixels: F64 = field(default_factory=lambda: _none(0, 2))
    sigma: F64 = field(default_factory=lambda: _none(0))
    kernel: float = np.inf


@dataclass(frozen=True, eq=False)
class Depths:
    """What a network says of N landmarks' depth in a frame. log_depth: (N,) along z. basis: (N, B), what a unit of each correction adds
    to it there. sigma: (N,) of the logarithm."""

    frame: Ints = field(default_factory=_no_index)
    landmark: Ints = field(default_factory=_no_index)
    log_depth: F64 = field(default_factory=lambda: _none(0))
    basis: F64 = field(default_factory=lambda: _none(0, 0))
    sigma: F64 = field(default_factory=lambda: _none(0))
    kernel: float = np.inf


@dataclass(frozen=True, eq=False)
class Relatives:
    """N measured poses of one frame in another one. first_from_second: (N, 4, 4). sigma: (N, 2), of rotation (rad, each axis) and of
    translation (units of the measurement). metric: (N,) bool, translation in metres instead of odometry units."""

    first: Ints = field(default_factory=_no_index)
    second: Ints = field(default_factory=_no_index)
    first_from_second: F64 = field(default_factory=lambda: _none(0, 4, 4))
    sigma: F64 = field(default_factory=lambda: _none(0, 2))
    metric: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    kernel: float = np.inf


@dataclass(frozen=True, eq=False)
class Problem:
    """F frames, L landmarks, C cameras, B terms of the depth correction.

    world_from_camera: (F, 4, 4), where free the start. free: (F,) bool. camera: (F,) which camera. intrinsics: (C, 4) fx, fy, cx, cy.
    anchor: (L,) frame in which a landmark lies at anchor_pixels (L, 2) exactly. log_inverse_depth: (L,) start.
    corrected: (F,) bool, frames whose network depth has a correction, which starts at `corrections` (F, B). The corrections of one term
    are Gaussian with zero mean; `common_sigma` (B,) is what they share within the problem, `own_sigma` (B,) what each frame has of its own.
    log_focal_sigma: (C,) how far the logarithm of the focal length may be off, 0: it is known. unit_sigma: the same of the odometry's
    units per metre, `unit`.
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
    """The best values found, as in Problem.

    intrinsics: (C, 4) with the focal lengths found. cost: half of the sum of all robust squares; start_cost: before. covariance: (6 n,
    6 n) of the n free frames, in the order of the frames, each rotation (rad, in the camera's axes) then position (in the world); the
    residuals' sigmas are taken at their word. log_focal_sigma: (C,), unit_sigma: what is left of those of the problem.
    landmark_information: (L,) of the logarithm of the inverse depth by the reprojections alone, with all poses as they are. residuals:
    (N, 2) px of the reprojections. depth_residuals: (D,) log of the landmark's
    depth over the corrected one. iterations: linear systems solved.
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
