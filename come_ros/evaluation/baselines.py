"""Trivial baselines of camera paths: predictions of a path made without its images, which may still win.

Any alignment puts a camera that never moves into the middle of the truth, which is the worst possible path: beating it proves
nothing. A straight line and a random walk can win. Constant motions are fitted to the truth, so no other constant does better: a
model's motion is useful only where it beats them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .. import geometry
from ..types import F64
from .poses import ate_rmse

WALKS = 100
LINES = {
    f"line {sign}{axis} deg": value * np.eye(3)[i]
    for i, axis in enumerate("xyz")
    for sign, value in (("", 1), ("-", -1))
}
"""name of the angle to a straight line along an axis of the first camera, in either direction -> that direction (3,)"""


class Motion(NamedTuple):
    """direction: (3,) unit vector in the first camera of each path. length: of a step, in the truth's unit. step: (4, 4), the motion from
    each camera to the next one."""

    direction: F64
    length: float
    step: F64


def straight_line(count: int, direction: Sequence[float] = (1.0, 0.0, 0.0), length: float = 1.0) -> F64:
    """world_from_camera (count, 4, 4): steps of one length, no rotation."""
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, 3] = length * np.arange(count)[:, None] * np.asarray(direction)
    return poses


def constant_motion(count: int, step: F64) -> F64:
    """world_from_camera (count, 4, 4): the same motion at every step, in the camera's own axes."""
    poses = [np.eye(4)]
    for _ in range(count - 1):
        poses.append(poses[-1] @ step)
    return np.stack(poses)


def random_walks(count: int, length: float = 1.0, walks: int = WALKS, seed: int = 0) -> F64:
    """world_from_camera (walks, count, 4, 4): steps in random directions, normally distributed, of that root mean square; no rotation."""
    steps = np.random.default_rng(seed).normal(0, length / np.sqrt(3), (walks, count - 1, 3))
    poses = np.tile(np.eye(4), (walks, count, 1, 1))
    poses[:, 1:, :3, 3] = steps.cumsum(axis=1)
    return poses


def best_motion(paths: Sequence[F64]) -> Motion:
    """The constant motion that fits true paths (N, 4, 4) best: the mean direction from the first camera, the mean length of a step, and
    the mean step with its mean rotation. Raises ValueError if no path has two poses."""
    steps = [geometry.inverse(p[:-1]) @ p[1:] for p in paths if len(p) > 1]
    if not steps:
        raise ValueError("no path has two poses: there is no motion to fit")
    all_steps = np.concatenate(steps)
    ways = np.concatenate([(geometry.inverse(p[0]) @ p[1:])[:, :3, 3] for p in paths if len(p) > 1])
    units = ways / np.maximum(np.linalg.norm(ways, axis=1, keepdims=True), 1e-12)
    mean = units.mean(axis=0)
    step = np.eye(4)
    step[:3, :3] = geometry.average_rotation(all_steps[:, :3, :3])
    step[:3, 3] = all_steps[:, :3, 3].mean(axis=0)
    length = float(np.linalg.norm(all_steps[:, :3, 3], axis=1).mean())
    return Motion(mean / max(float(np.linalg.norm(mean)), 1e-12), length, step)


def ate_baselines(truth: F64, seed: int = 0) -> dict[str, float]:
    """ATE after Sim(3), with the best scale for each, of a path (N, 4, 4), N >= 3: not moving, a straight line at constant
    speed, random walks (mean, and the best 5 %)."""
    positions = truth[:, :3, 3]
    walks = [ate_rmse(walk, truth) for walk in random_walks(len(truth), seed=seed)]
    return {
        "not moving": float(np.sqrt(((positions - positions.mean(axis=0)) ** 2).sum(axis=1).mean())),
        "straight line": ate_rmse(straight_line(len(truth)), truth),
        "random walk": float(np.mean(walks)),
        "best 5 % of random walks": float(np.percentile(walks, 5)),
    }
