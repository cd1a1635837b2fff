"""What ~/odometry says beyond the pose: twist from pose differences, and honest variances."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .config import Config
from .geometry import inverse, quat_xyzw_from_matrix
from .types import F64, Submap

UNKNOWN = 9999.0  # variance that consumers read as "do not use"


@dataclass(frozen=True, eq=False)
class Motion:
    """twist: (6,) linear (odom units/s) and angular (rad/s), in the moving frame (see moving_frame). Variances: (6,), same order and
    units squared."""

    twist: F64
    pose_variance: F64
    twist_variance: F64


class MotionEstimator:
    """Remembers the last published pose; one call for each published frame, in stamp order."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """The next frame has nothing before it."""
        self._last: tuple[int, str, F64] | None = None

    def step(self, submap: Submap, row: int, config: Config) -> Motion:
        """Motion at frame `row` of `submap`.

        The first frame, and one after a jump back of time or of another moving frame, has twist 0 of unknown variance. Position is unknown
        (9999) while the scale is: a distance without a unit must not be fused. After a window that shares no frame with those
        before, the pose was only carried over, so all of it is unknown.
        """
        stamp_ns, (moving, pose) = submap.frames[row].stamp_ns, moving_frame(submap, row)
        pose_variance = _pose_variance(
            submap, row, config, carried_over=self._last is not None and submap.alignment.shared == 0
        )
        last, self._last = self._last, (stamp_ns, moving, pose)
        if last is None or last[1] != moving or last[0] >= stamp_ns:
            return Motion(np.zeros(6), pose_variance, np.full(6, UNKNOWN))
        dt = (stamp_ns - last[0]) * 1e-9
        now_from_last = inverse(pose) @ last[2]
        last_from_now = inverse(now_from_last)
        # seen from the moving frame as it is now: the displacement turned into its axes; the rotation vector is the same in both
        linear = last_from_now[:3, :3].T @ last_from_now[:3, 3] / dt
        angular = rotation_vector(last_from_now) / dt
        twist_variance = np.minimum(UNKNOWN, 2.0 * pose_variance / dt**2)  # difference of two poses
        twist_variance[pose_variance >= UNKNOWN] = UNKNOWN
        return Motion(np.concatenate([linear, angular]), pose_variance, twist_variance)


def moving_frame(submap: Submap, row: int) -> tuple[str, F64]:
    """What odometry is about at frame `row`: the robot's frame where the camera's place on it is known, else the camera's optical one;
    its name and odom_from_it (4, 4)."""
    frame, pose = submap.frames[row], submap.odom_from_camera[row]
    if not frame.base or frame.base_from_camera is None:
        return frame.camera, pose
    return frame.base, pose @ inverse(frame.base_from_camera)


def rotation_vector(transform: F64) -> F64:
    """(3,) axis times angle (rad, at most pi) of the rotation in (4, 4) or (3, 3)."""
    x, y, z, w = quat_xyzw_from_matrix(transform)
    sine = float(np.linalg.norm([x, y, z]))
    angle = 2.0 * np.arctan2(sine, w)
    return np.array([x, y, z]) * (angle / sine if sine > 1e-12 else 2.0)


def _pose_variance(submap: Submap, row: int, config: Config, carried_over: bool) -> F64:
    if carried_over:
        return np.full(6, UNKNOWN)
    alignment = submap.alignment
    rotation = config.cov.rotation_floor + alignment.rotation_residual**2
    if config.scale.mode == "none" and not submap.metric:
        position = UNKNOWN
    else:
        depth = submap.depth[row]
        usual = float(np.median(depth[np.isfinite(depth)])) if np.isfinite(depth).any() else 0.0
        # residuals are relative to the depth of the scene
        position = (
            config.cov.position_floor + (usual * (alignment.translation_residual + alignment.depth_residual)) ** 2
        )
    variance = np.repeat([position, rotation], 3)
    return np.where(np.isfinite(variance), np.minimum(variance, UNKNOWN), UNKNOWN)
