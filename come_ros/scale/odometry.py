"""Metres from another odometry: how far it has moved between two keyframes, against how far the camera has.

All pairs of the last keyframes vote that lie far enough apart, the longer the stronger: over a long way the noise of either is small. A
robot that stands or turns on the spot adds none. Where wheels slip, or the other odometry jumps, the two contradict each other over a few
keyframes: pairs across such a place do not count.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable

import numpy as np

from ..alignment import weighted_median
from ..geometry import SIGMA_OF_MAD, inverse, is_finite_pose, rotation_angle
from ..types import F64
from .reading import Seen

MEMORY = 150  # keyframes
SHORT = 4  # keyframes over which slip shows
MOST_SLIPPING = 8  # keyframes in a row
SLIP = 0.5  # of the longer of both ways, by which they may differ there
NOISE = 0.02  # of the scene's depth, by which they may differ in any case
MOST_TURN = np.deg2rad(15.0)  # by which both may disagree there
STILL_M, STILL_RAD = 0.005, np.deg2rad(1.0)  # per keyframe
LEAST_SHARE = 0.03  # of the scene's depth: a shorter way of the camera is not known well
PLACE_SIGMA = 0.006  # of the scene's depth, of the camera's place
# The votes of pairs hang together: the sigma of their median is this share of their spread, as fitted to rooms
SPREAD_SHARE = 0.45
# Sigmas of the source as such, and by which the model's unit moves from keyframe to keyframe
FLOOR, DRIFT = 0.012, 0.004
LOST = 0.3  # of what is known after windows that share no frame


class OdometrySource:
    """log_metres, sigma: NaN while unknown. readings: windows with news. stamp_ns: of the last of them. left_out: keyframes, by reason."""

    def __init__(self, min_motion: Callable[[], float]) -> None:
        """min_motion: m, that the other odometry has to move; asked each time."""
        self._min_motion = min_motion
        self.log_metres = self.sigma = float("nan")
        self.readings = self.stamp_ns = 0
        self.left_out = Counter[str]()
        self._last: F64 | None = None
        self._clear()

    def _clear(self) -> None:
        self._ours: deque[F64] = deque(maxlen=MEMORY)
        self._theirs: deque[F64] = deque(maxlen=MEMORY)
        self._part: deque[int] = deque(maxlen=MEMORY)  # between two places where the two do not fit each other
        self._usual = 0.0
        self._reference = float("nan")  # the logarithm that slip is seen by
        self._slipping = 0  # keyframes in a row

    def observe(self, seen: Seen, lost: bool = False) -> None:
        """Frames hold the other odometry's pose in `Frame.world_from_camera`. lost: as in MetricScale."""
        if lost:
            self._clear()
            self.sigma = float(np.hypot(self.sigma, LOST))
        self.sigma = float(np.hypot(self.sigma, DRIFT * np.sqrt(len(seen.frames) / seen.cameras)))
        news = False
        for i in range(0, len(seen.frames), seen.cameras):
            there = seen.frames[i].world_from_camera
            if there is None:
                self.left_out["no odometry"] += 1
            elif not is_finite_pose(there).all():
                self.left_out["odometry not finite"] += 1
            else:
                depth = seen.depth[i]
                self._add(seen.poses[i], np.asarray(there, np.float64), depth[np.isfinite(depth)])
                news = True
        if news and self._vote(self._min_motion()):
            self.readings += 1
            self.stamp_ns = seen.frames[-1].stamp_ns

    def _add(self, here: F64, there: F64, depth: F64) -> None:
        if self._last is not None:
            step = inverse(self._last) @ there
            if np.linalg.norm(step[:3, 3]) < STILL_M and rotation_angle(step[:3, :3]) < STILL_RAD:
                self.left_out["standing"] += 1
        self._last = there
        if len(depth):
            self._usual = float(np.median(depth))
        part = self._part[-1] if self._part else 0
        if self._slips(here, there, part):
            self.left_out["slip or jump"] += 1
            part += 1
            self._slipping += 1
            if self._slipping > MOST_SLIPPING:  # then it was the reference that was wrong
                self._clear()
        else:
            self._slipping = 0
        self._ours.append(here.copy())
        self._theirs.append(there)
        self._part.append(part)

    def _slips(self, here: F64, there: F64, part: int) -> bool:
        """Whether the last few keyframes contradict what is known of the scale."""
        back = min(SHORT, len(self._ours))
        while back and self._part[-back] != part:
            back -= 1
        if not back or not np.isfinite(self._reference):
            return False
        ours, theirs = inverse(self._ours[-back]) @ here, inverse(self._theirs[-back]) @ there
        if rotation_angle(ours[:3, :3].T @ theirs[:3, :3]) > MOST_TURN:
            return True
        # both in the axes of the same camera, in metres
        unit = np.exp(self._reference)
        way = unit * ours[:3, 3]
        longer = max(float(np.linalg.norm(way)), float(np.linalg.norm(theirs[:3, 3])))
        slack = SLIP * longer + NOISE * self._usual * unit
        return float(np.linalg.norm(way - theirs[:3, 3])) > slack

    def _vote(self, min_motion: float) -> bool:
        """Whether there are pairs that say something."""
        ours, theirs = np.stack(self._ours)[:, :3, 3], np.stack(self._theirs)[:, :3, 3]
        part = np.array(self._part)
        i, j = np.triu_indices(len(ours), 1)
        i, j = i[part[i] == part[j]], j[part[i] == part[j]]
        way, metres = np.linalg.norm(ours[i] - ours[j], axis=1), np.linalg.norm(theirs[i] - theirs[j], axis=1)
        far = (metres >= min_motion) & (way >= LEAST_SHARE * self._usual)
        if not far.any():
            return False
        votes, weights = np.log(metres[far] / way[far]), metres[far] ** 2
        self.log_metres = self._reference = weighted_median(votes, weights)
        spread = SIGMA_OF_MAD * weighted_median(np.abs(votes - self.log_metres), weights)
        noise = np.sqrt(2) * PLACE_SIGMA * self._usual / float(way[far].max())
        self.sigma = float(np.sqrt(FLOOR**2 + (SPREAD_SHARE * spread) ** 2 + noise**2))
        return True
