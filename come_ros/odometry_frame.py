"""The odometry frame: where it lies, the unit of its lengths, and how far what is published in it has drifted."""

from __future__ import annotations

import logging

import numpy as np

from .config import Config
from .geometry import BODY_FROM_OPTICAL, finite_median, inverse
from .scale.metric import MetricScale
from .scale.reading import Seen
from .tracking.drift import Drift, by_bundle, by_network
from .tracking.odometry import UNKNOWN
from .types import F64, Frame, Scale, Submap

log = logging.getLogger("come_ros")


class OdometryFrame:
    """Windows are chained in the aligner's frame, in the model's own unit; what is published has the origin and the unit of the odometry
    frame. One thread. drift: of the first camera since the world began.

    Of a camera whose pose on the robot is known, the world begins at the robot's frame; of others, at a camera that is taken for level.
    """

    def __init__(self, config: Config, metric: bool) -> None:
        """metric: whether the model's unit is the metre."""
        self._scale = MetricScale(config, metric)
        self._origin: F64 | None = None  # None: the aligner's frame is the odometry frame
        self._level = False  # whether the robot's frame says what is level, see Seen.level
        self.drift = Drift()

    @property
    def scale(self) -> Scale:
        """How long the model's unit is, as far as it is known; `scale.unit` is its length in the odometry frame."""
        return self._scale.now

    @property
    def origin(self) -> F64:
        """(4, 4) transform from the aligner's frame, in the odometry's unit, to the odometry frame."""
        return np.eye(4) if self._origin is None else self._origin

    @property
    def level(self) -> bool:
        """Whether it is known which way is up; otherwise the first camera is taken for level."""
        return self._level

    @property
    def up(self) -> F64:
        """(3,) against gravity, in the aligner's frame."""
        return self.origin[2, :3].copy()

    def configure(self, config: Config) -> None:
        """Other dynamic parameters, from the next window on."""
        self._scale.config = config

    def reset(self) -> None:
        """A new world; it lies where the first frame of its first window says, see `begin`."""
        self._scale.reset()
        self.drift = Drift()

    def begin(self, first: Frame) -> None:
        """The first window of a world, which begins with the frame `first`, is accepted."""
        self._origin = origin_of(first)
        self._level = self._origin is not None

    def measure(self, seen: Seen, lost: bool) -> bool:
        """The frames of an accepted window, for the scale. lost: whether the window shares no frame with earlier ones. Where the scale
        becomes known, the published world may begin again, at the robot's place now and with its heading, while windows and tracks go
        on: returns whether it does."""
        self._scale.observe(seen, lost)
        if not self._scale.may_restart:
            return False
        scale = self._scale.renew()
        log.info("a new world begins, in metres: %.4g m per unit of the model (scale.restart is true)", scale.metres)
        first, base = seen.poses[0].copy(), seen.frames[0].base_from_camera
        first[:3, 3] *= scale.unit
        origin = self.origin.copy()
        origin[:3, 3] = 0.0
        robot = origin @ first if base is None else origin @ first @ inverse(base)
        origin[:3, 3] = -robot[:3, 3]
        self._origin = origin
        self.drift = Drift()
        return True

    def published(self, poses: F64) -> F64:
        """(N, 4, 4) odom_from_camera of poses (N, 4, 4) in the aligner's frame and unit."""
        poses = poses.copy()
        poses[:, :3, 3] *= self.scale.unit
        return poses if self._origin is None else self._origin @ poses

    def drifted(self, submap: Submap, covariance: F64, cameras: int) -> F64:
        """(6, 6) covariance of the first camera's newest pose in `submap` since the world began. covariance: (6, 6) added by this window,
        in the aligner's frame and unit. cameras: number of them."""
        usual = finite_median(submap.depth[-cameras], 0.0)
        turn = np.kron(np.diag([self.scale.unit, 1.0]), self.origin[:3, :3])
        if submap.refinement.refined > 0:
            added = by_bundle(turn @ covariance @ turn.T)
        elif submap.alignment.shared or not self.drift.started:
            added = by_network(submap.alignment, usual)
        else:  # the pose was only carried over
            added = UNKNOWN * np.eye(6)
        return self.drift.add(submap.odom_from_camera[::cameras], added)


def origin_of(first: Frame) -> F64 | None:
    """(4, 4) transform from the aligner's frame, which starts at a level camera, to the odometry frame, which starts at the robot's
    frame. None if the camera's pose on the robot is unknown."""
    if not first.base or first.base_from_camera is None:
        return None
    return first.base_from_camera @ inverse(BODY_FROM_OPTICAL)
