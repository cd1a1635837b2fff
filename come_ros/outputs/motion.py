"""Pose, twist and covariances of the moving frame, for ~/odometry and TF, at a located image or a keyframe."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config import Config
from ..geometry import finite_median, inverse, skew, vector_from_rotation
from ..tracking.drift import by_network, carried
from ..tracking.odometry import UNKNOWN, Located
from ..types import F64, Scale, Submap


@dataclass(frozen=True, eq=False)
class Motion:
    """The moving frame `child` (see moving_frame) at one image.

    odom_from_child: (4, 4). twist: (6,) linear (odom units/s) and angular (rad/s), in the moving frame. pose_covariance, twist_covariance:
    (6, 6), same order and units squared, as nav_msgs/Odometry defines them: the pose's in the odometry frame. map_from_odom: (4, 4) where
    the odometry frame lies in the map by then; None if there is no frame for the map.
    """

    stamp_ns: int
    child: str
    odom_from_child: F64
    twist: F64
    pose_covariance: F64
    twist_covariance: F64
    map_from_odom: F64 | None = None

    @property
    def pose_variance(self) -> F64:
        """(6,) the diagonal."""
        return np.diag(self.pose_covariance)

    @property
    def twist_variance(self) -> F64:
        """(6,) the diagonal."""
        return np.diag(self.twist_covariance)


def motion_of(located: Located, config: Config) -> Motion:
    """The motion at a located image. Position and linear velocity are unknown (9999) where the odometry's unit is no metre: a distance
    without a unit must not be fused."""
    frame, pose, twist = located.frame, located.odom_from_camera, located.twist
    pose_covariance, twist_covariance = located.covariance, located.twist_covariance
    child = frame.camera
    if frame.base and frame.base_from_camera is not None:
        child, mount = frame.base, frame.base_from_camera
        base = pose @ inverse(mount)
        pose_covariance = carried(pose_covariance, base[:3, 3] - pose[:3, 3])
        # of another point of the same rigid body, in its own axes: v + w x (base - camera)
        turn = np.kron(np.eye(2), mount[:3, :3])
        turn[:3, 3:] = skew(mount[:3, 3]) @ mount[:3, :3]
        pose, twist, twist_covariance = base, turn @ twist, turn @ twist_covariance @ turn.T
    scale = located.scale
    pose_covariance = pose_covariance + _of_scale(pose[:3, 3], scale)
    twist_covariance = twist_covariance + _of_scale(twist[:3], scale)
    floors = np.repeat([config.cov.position_floor, config.cov.rotation_floor], 3)
    return Motion(
        frame.stamp_ns, child, pose, twist,
        _limited(pose_covariance, floors, scale.in_metres), _limited(twist_covariance, 1e-3 * floors, scale.in_metres),
    )  # fmt: skip


def _of_scale(vector: F64, scale: Scale) -> F64:
    """(6, 6) what the unit's own uncertainty adds to that of a position or velocity (3,): an error along it. The unit stays for a whole
    world, so what was learnt of it since is an error, too."""
    out = np.zeros((6, 6))
    if scale.in_metres and scale.sigma > 0:
        variance = scale.sigma**2 + np.log(scale.correction) ** 2
        out[:3, :3] = variance * np.outer(vector, vector)
    return out


def _limited(covariance: F64, floors: F64, known: bool) -> F64:
    """(6, 6) with variances of at least `floors` (6,), and UNKNOWN, without correlations, where they exceed it or, unless the unit
    is `known`, concern lengths."""
    out = covariance + np.diag(np.maximum(floors - np.diag(covariance), 0.0))
    unknown = ~(np.diag(out) < UNKNOWN)
    unknown[:3] |= not known
    out[unknown] = 0.0
    out[:, unknown] = 0.0
    out[unknown, unknown] = UNKNOWN
    return np.asarray(0.5 * (out + out.T), np.float64)


class MotionEstimator:
    """Keeps the last published pose. Call it once for each published frame, in stamp order."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets the last pose."""
        self._last: tuple[int, str, F64] | None = None

    def step(self, submap: Submap, row: int, config: Config) -> Motion:
        """Motion at frame `row` of `submap`.

        The first frame, and one after a jump back of time or of another moving frame, has twist 0 of unknown variance. Position is
        unknown (9999) where the odometry's unit is no metre: a distance without a unit must not be fused. After a window that shares no
        frame with those before, the pose was only carried over, so all of it is unknown.
        """
        stamp_ns, (moving, pose) = submap.frames[row].stamp_ns, moving_frame(submap, row)
        pose_variance = _pose_variance(
            submap, row, config, carried_over=self._last is not None and submap.alignment.shared == 0
        )
        last, self._last = self._last, (stamp_ns, moving, pose)
        if last is None or last[1] != moving or last[0] >= stamp_ns:
            return _diagonal(stamp_ns, moving, pose, np.zeros(6), pose_variance, np.full(6, UNKNOWN))
        dt = (stamp_ns - last[0]) * 1e-9
        now_from_last = inverse(pose) @ last[2]
        last_from_now = inverse(now_from_last)
        # expressed in the current moving frame: the displacement is rotated into its axes; the rotation vector is the same in both
        linear = last_from_now[:3, :3].T @ last_from_now[:3, 3] / dt
        angular = vector_from_rotation(last_from_now[:3, :3]) / dt
        # the difference of two poses of a window
        twist_variance = np.minimum(UNKNOWN, 2.0 * _window_variance(submap, row) / dt**2)
        twist_variance[pose_variance >= UNKNOWN] = UNKNOWN
        return _diagonal(stamp_ns, moving, pose, np.concatenate([linear, angular]), pose_variance, twist_variance)


def moving_frame(submap: Submap, row: int) -> tuple[str, F64]:
    """The frame described by odometry at frame `row`: the robot's frame if the camera's pose on it is known, else the camera's
    optical frame. Returns its name and odom_from_it (4, 4)."""
    frame, pose = submap.frames[row], submap.odom_from_camera[row]
    if not frame.base or frame.base_from_camera is None:
        return frame.camera, pose
    return frame.base, pose @ inverse(frame.base_from_camera)


def _diagonal(stamp_ns: int, child: str, pose: F64, twist: F64, pose_variance: F64, twist_variance: F64) -> Motion:
    return Motion(stamp_ns, child, pose, twist, np.diag(pose_variance), np.diag(twist_variance))


def _window_variance(submap: Submap, row: int) -> F64:
    """(6,) variance that the window of `row` adds to a pose that only the network predicts."""
    return np.diag(by_network(submap.alignment, finite_median(submap.depth[row], 0.0)))


def _pose_variance(submap: Submap, row: int, config: Config, carried_over: bool) -> F64:
    """(6,) variance of the pose since the world began."""
    if carried_over:
        return np.full(6, UNKNOWN)
    since = np.diag(submap.covariance)
    variance = np.where(since > 0, since, _window_variance(submap, row))
    variance = variance + np.diag(_of_scale(submap.odom_from_camera[row][:3, 3], submap.scale))
    variance = np.maximum(variance, np.repeat([config.cov.position_floor, config.cov.rotation_floor], 3))
    if not submap.scale.in_metres:
        variance[:3] = UNKNOWN
    return np.where(np.isfinite(variance), np.minimum(variance, UNKNOWN), UNKNOWN)
