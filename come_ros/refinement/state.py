"""Input and output of the refinement of a window, and the state kept from one window to the next."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..camera.preprocess import CropResize
from ..tracking.resection import Rays
from ..types import F32, F64, I64, Alignment, Frame, Observations, Prediction, Refinement
from .agreement import Agreement

Mask = NDArray[np.bool_]
Key = tuple[int, str]
"""Stamp in ns and camera of a frame."""


@dataclass(frozen=True, eq=False)
class Proposal:
    """The network's result for a window of S frames, of which the last `new` are not published yet.

    plans: how each image was cropped. alignment: how the window was aligned to what was published. odom_from_camera: (S, 4, 4) after that
    alignment; if it was refused, the last published pose for all. depth, confidence: (N, H, W) of the N new frames, depth in odometry
    units, NaN where invalid. cameras: their number. metric_odometry: whether the
    frames' world_from_camera are measurements for the bundle, in metres.
    """

    frames: tuple[Frame, ...]
    new: int
    plans: list[CropResize]
    prediction: Prediction
    alignment: Alignment
    odom_from_camera: F64
    depth: F32
    confidence: F32
    cameras: int = 1
    metric_odometry: bool = True


@dataclass(frozen=True, eq=False)
class Outcome:
    """What is published for the N new frames.

    accepted: whether tracks support the window. odom_from_camera: (N, 4, 4). depth, confidence: (N, H, W). scale: odometry units per
    window unit. covariance: (N, 6, 6) of each pose, with the published poses fixed: position, then rotation (a vector from the left), in
    the odometry frame. state: for the next window, None to keep the old one. agreements: updated values by camera.
    """

    accepted: bool
    odom_from_camera: F64
    depth: F32
    confidence: F32
    scale: float
    covariance: F64
    report: Refinement
    state: State | None = None
    agreements: dict[str, Agreement] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Published:
    """A published keyframe and its observations."""

    camera: str
    pose: F64
    intrinsics: F64 | None  # (4,) fx, fy, cx, cy as given; None: as estimated
    seen: Observations
    log_depth: F64  # (n,) logarithm of the published depth at the observations
    log_grid: F64  # the same at the pixels of DepthImage.grid
    evidence: float  # of landmarks for that depth: 0 (none) to 1 (many)


@dataclass(frozen=True, eq=False)
class Focal:
    """Estimated intrinsics (4,) of an uncalibrated camera. sigma: of the logarithm of the focal length."""

    intrinsics: F64
    sigma: float


def _no_rays() -> Rays:
    return Rays(np.empty((0, 3)), np.empty((0, 3)), np.empty(0), np.empty(0))


@dataclass(frozen=True, eq=False)
class State:
    """State kept from one window to the next: keyframes, landmarks by ascending id, focal lengths, the odometry units per metre with the
    sigma of its logarithm, None if it was never measured, and the ids of points that move by themselves."""

    published: OrderedDict[Key, Published] = field(default_factory=OrderedDict)
    ids: I64 = field(default_factory=lambda: np.empty(0, np.int64))
    rays: Rays = field(default_factory=_no_rays)
    focals: dict[str, Focal] = field(default_factory=dict)
    unit: tuple[float, float] | None = None
    moving: I64 = field(default_factory=lambda: np.empty(0, np.int64))


def four(intrinsics: F64) -> F64:
    """(4,) fx, fy, cx, cy of a matrix (3, 3)."""
    return np.array([intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]])


def intrinsics_matrix(intrinsics: F64) -> F64:
    """Matrix (3, 3) of (4,) fx, fy, cx, cy."""
    fx, fy, cx, cy = intrinsics
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
