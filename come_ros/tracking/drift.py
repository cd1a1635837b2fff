"""Drift: how the error of the newest pose grows along the chain of windows.

The bundle takes published keyframes for true, and errors for independent from point to point; neither is so. What a window really adds was
measured against the truth of rooms and recordings: shares of how far the camera turned and moved in it, and of the scene's depth.
"""

from __future__ import annotations

import numpy as np

from ..geometry import inverse, rotation_angle
from ..types import F64, Alignment
from .odometry import carried

TURN_SHARE, LEAST_TURN = 0.02, 0.001  # of the angle turned; rad
MOVE_SHARE, DEPTH_SHARE = 0.15, 0.006  # of the way moved; of the depth
# What a window adds where nothing but the network tells its poses, besides how badly it fits the last one: rad; of the depth.
NETWORK_TURN, NETWORK_MOVE = float(np.deg2rad(8.0)), 0.1


def by_network(alignment: Alignment, depth: float) -> F64:
    """(6, 6) what a window adds without a bundle."""
    rotation = NETWORK_TURN**2 + alignment.rotation_residual**2
    position = depth**2 * (NETWORK_MOVE**2 + (alignment.translation_residual + alignment.depth_residual) ** 2)
    return np.diag(np.repeat([position, rotation], 3))


class Drift:
    """covariance: (6, 6) of the newest pose since the world began: position, then rotation (a vector from the left), in the odometry
    frame."""

    def __init__(self) -> None:
        self.covariance = np.zeros((6, 6))
        self._newest: F64 | None = None

    @property
    def started(self) -> bool:
        """Whether there was a window yet."""
        return self._newest is not None

    def add(self, poses: F64, covariance: F64, depth: float) -> F64:
        """The covariance since the world began, after a window with the new `poses` (k, 4, 4).

        covariance: (6, 6) of the last one, with those before as they are. depth: median, of the scene.
        """
        chain = poses if self._newest is None else np.concatenate([self._newest[None], poses])
        steps = inverse(chain[:-1]) @ chain[1:]
        moved = float(np.linalg.norm(steps[:, :3, 3], axis=1).sum())
        turned = float(rotation_angle(steps[:, :3, :3]).sum())
        rotation = (TURN_SHARE * turned) ** 2 + LEAST_TURN**2
        # a wrong rotation looks like a sideways way, by the depth
        position = (MOVE_SHARE * moved) ** 2 + depth**2 * (DEPTH_SHARE**2 + (TURN_SHARE * turned) ** 2)
        lever = chain[-1, :3, 3] - chain[0, :3, 3]
        self.covariance = carried(self.covariance, lever) + covariance + np.diag(np.repeat([position, rotation], 3))
        self._newest = poses[-1].copy()
        return self.covariance
