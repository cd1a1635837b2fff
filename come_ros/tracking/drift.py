"""Drift: how the error of the newest pose grows along the chain of windows.

The bundle takes published keyframes for true and errors for independent from point to point. Neither is so: the network's depth errs alike
over whole surfaces. So a window errs by several times what its solver says, in the same directions. Besides, the unit of length wanders
a little. The constants are fitted to the truth of rooms and recordings by test/benchmark/accuracy/covariance.py. Tried and left out, since
they tell nothing beyond the solver's covariance: the angle turned, the depth, the numbers of landmarks and inliers, the reprojection
error, and a correlation of the errors of neighbouring windows.
"""

from __future__ import annotations

import numpy as np

from ..geometry import skew
from ..types import F64, Alignment

UNDERSTATED = 3.1  # how many times larger errors are than the solver's sigmas
UNIT_SHARE = 0.1  # of the way in a window, along it
# What a window adds where nothing but the network tells its poses, besides how badly it fits the last one: rad; of the depth.
NETWORK_TURN, NETWORK_MOVE = float(np.deg2rad(14.0)), 0.18


def by_network(alignment: Alignment, depth: float) -> F64:
    """(6, 6) what a window adds without a bundle. depth: median, of the scene."""
    rotation = NETWORK_TURN**2 + alignment.rotation_residual**2
    position = depth**2 * (NETWORK_MOVE**2 + (alignment.translation_residual + alignment.depth_residual) ** 2)
    return np.diag(np.repeat([position, rotation], 3))


def by_bundle(covariance: F64) -> F64:
    """(6, 6) what a window adds whose bundle ended with that `covariance` (6, 6) of the newest pose, those before taken for true."""
    return UNDERSTATED**2 * covariance


class Drift:
    """covariance: (6, 6) of the newest pose since the world began: position, then rotation (a vector from the left), in the odometry
    frame."""

    def __init__(self, unit_share: float = UNIT_SHARE) -> None:
        self.covariance = np.zeros((6, 6))
        self._unit_share = unit_share
        self._newest: F64 | None = None

    @property
    def started(self) -> bool:
        """Whether there was a window yet."""
        return self._newest is not None

    def add(self, poses: F64, covariance: F64) -> F64:
        """The covariance since the world began, after a window with the new `poses` (k, 4, 4).

        covariance: (6, 6) of the last one, with those before as they are.
        """
        way = poses[-1, :3, 3] - (poses[0] if self._newest is None else self._newest)[:3, 3]
        self.covariance = carried(self.covariance, way) + covariance
        self.covariance[:3, :3] += self._unit_share**2 * np.outer(way, way)
        self._newest = poses[-1].copy()
        return self.covariance


def carried(covariance: F64, lever: F64) -> F64:
    """(6, 6) of a pose that is rigidly tied to one of `covariance`, `lever` (3,) from it: a wrong rotation moves it."""
    jacobian = np.eye(6)
    jacobian[:3, 3:] = -skew(lever)
    return np.asarray(jacobian @ covariance @ jacobian.T, np.float64)
