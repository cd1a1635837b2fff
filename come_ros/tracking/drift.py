"""Drift: how the error of the newest pose grows along the chain of windows.

The bundle assumes that published keyframes are exact and that errors are independent from point to point. Neither is true: errors of the
network's depth are the same over whole surfaces. So a window's error is several times what its solver reports, in the same directions. In
addition, the unit of length drifts a little. test/benchmark/accuracy/covariance.py fits the constants to the ground truth of rooms and
recordings. The following were tried and left out, since they add nothing to the solver's covariance: the angle turned, the depth, the
numbers of landmarks and inliers, the reprojection error, and a correlation of the errors of neighbouring windows.
"""

from __future__ import annotations

import numpy as np

from ..geometry import skew
from ..types import F64, Alignment

UNDERSTATED = 3.1  # real errors are this many times the solver's sigmas
UNIT_SHARE = 0.1  # error along the distance moved in a window, as a share of it
# Error of a window whose poses come from the network alone, besides its misfit to the last window: rad; share of the depth.
NETWORK_TURN, NETWORK_MOVE = float(np.deg2rad(14.0)), 0.18


def by_network(alignment: Alignment, depth: float) -> F64:
    """(6, 6) covariance that a window without a bundle adds. depth: median depth of the scene."""
    rotation = NETWORK_TURN**2 + alignment.rotation_residual**2
    position = depth**2 * (NETWORK_MOVE**2 + (alignment.translation_residual + alignment.depth_residual) ** 2)
    return np.diag(np.repeat([position, rotation], 3))


def by_bundle(covariance: F64) -> F64:
    """(6, 6) covariance that a window with a bundle adds. covariance: (6, 6) of the newest pose as the solver reports it, with earlier
    poses assumed exact."""
    return UNDERSTATED**2 * covariance


class Drift:
    """Accumulates the covariance of the newest pose.

    covariance: (6, 6) since the world began: position, then rotation (a vector from the left), in the odometry frame."""

    def __init__(self, unit_share: float = UNIT_SHARE) -> None:
        self.covariance = np.zeros((6, 6))
        self._unit_share = unit_share
        self._newest: F64 | None = None

    @property
    def started(self) -> bool:
        """Whether any window was added."""
        return self._newest is not None

    def add(self, poses: F64, covariance: F64) -> F64:
        """Adds a window with the new `poses` (k, 4, 4) and returns the covariance since the world began.

        covariance: (6, 6) of the last pose, with earlier poses assumed exact.
        """
        way = poses[-1, :3, 3] - (poses[0] if self._newest is None else self._newest)[:3, 3]
        self.covariance = carried(self.covariance, way) + covariance
        self.covariance[:3, :3] += self._unit_share**2 * np.outer(way, way)
        self._newest = poses[-1].copy()
        return self.covariance


def carried(covariance: F64, lever: F64) -> F64:
    """(6, 6) covariance of a pose that is rigidly attached to a pose with `covariance`, at the offset `lever` (3,): an error of
    rotation also moves it."""
    jacobian = np.eye(6)
    jacobian[:3, 3:] = -skew(lever)
    return np.asarray(jacobian @ covariance @ jacobian.T, np.float64)
