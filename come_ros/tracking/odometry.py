"""Odometry at the camera's rate: the pose of every image from tracked points, without waiting for the model.

Between windows, resection (resection.py) locates the camera relative to the points of the model's last window and to those that came into
view since (points.py). When the next window is ready, everything estimated since its newest keyframe moves to the pose that the window
gives that keyframe. Published poses are not changed; the difference fades in within FADE_S. If too few points fit, the last velocity is
extrapolated for a while, with a growing variance, until a window gives the pose again.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass

import cv2
import numpy as np

from ..camera.preprocess import check_image
from ..config import Config
from ..errors import FrameError
from ..geometry import inverse, nearest_rotation, rotation_from_vector, transform, vector_from_rotation
from ..timeline import Place, Timeline
from ..types import F64, NO_SCALE, Frame, Landmarks, Observations, Scale
from ..window import TIME_JUMP_NS
from .drift import UNDERSTATED, carried
from .points import Points, guessed
from .resection import resect
from .shutter import Shutter
from .tracks import Tracker

PIXEL_SIGMA, SIGMA_WIDTH = 0.7, 640  # px: error of flow, with drift along a track, in an image of this width or less
MIN_INLIERS = 8  # fewer inliers do not determine a pose
MIN_SHARE = 0.25  # least share of inliers among the known points

# Change of velocity of a camera in a hand or on a robot, sigma: scene depths/s2, rad/s2. A prior that is weak on purpose.
ACCELERATION, ANGULAR_ACCELERATION = 3.0, 12.0
MOST_SHIFT, MOST_TURN = 10.0, 2.0  # largest sigmas of the prior after a long pause: scene depths, rad
LEAST_DT_S = 0.02
LONGEST_PREDICTION_S = 0.5  # a velocity is extrapolated this long, then the camera is assumed to stand still

FADE_S = 0.3
PENDING = 1200  # most images that wait for the first landmarks
HISTORY = 1200  # images whose poses are kept until a window that includes them is ready
TWIST_S, LEAST_TWIST_POSES, TWIST_POSES = 0.21, 3, 8  # the last poses, from which the velocity is computed
# Error of a velocity, sigma of each axis, in addition to the noise of the poses: a share of its change since the last image, and a share
# of itself. Fitted like the constants of drift.py.
CHANGE_SHARE, TWIST_SHARE = 0.26, 0.01
LEAST_NOISE = 0.1  # of PIXEL_SIGMA: least noise that a median residual may indicate
MIN_SCALE_POINTS, SCALE_SIGMA = 10, 0.15  # points known this well before and after show how the unit changed
CAMERA_IDS = 1 << 40  # ids per camera

NORM_MEDIAN = 1.1774  # sigmas: median norm of two Gaussian coordinates
UNKNOWN = 9999.0  # variance that consumers read as "do not use"


@dataclass(frozen=True, eq=False)
class Located:
    """Pose and motion of the first camera at one image.

    odom_from_camera: (4, 4). covariance: (6, 6) of position (odometry units), then rotation (rad, a vector from the left), in the odometry
    frame. twist: (6,) linear (odometry units/s) and angular (rad/s), in the camera's frame. twist_covariance: (6, 6). points, inliers:
    number of known points, and of those that fit. error: px, median residual of the inliers, NaN without any. lost: too few points fit,
    so the pose is extrapolated. scale: of the odometry's unit. world: number of the world that the pose belongs to. readout_ms: of the
    shutter, as used (shutter.py).
    """

    frame: Frame
    odom_from_camera: F64
    covariance: F64
    twist: F64
    twist_covariance: F64
    points: int
    inliers: int
    error: float
    lost: bool
    scale: Scale = NO_SCALE
    world: int = 0
    readout_ms: float = 0.0


class LocatedCounts:
    """Counts over the poses of a run. Stores three numbers per pose."""

    def __init__(self) -> None:
        self.lost = 0
        self._readout_ms = 0.0
        self._rows: list[tuple[int, int, float]] = []

    def add(self, located: Located) -> None:
        self.lost += located.lost
        self._readout_ms = located.readout_ms
        self._rows.append((located.points, located.inliers, located.error))

    def result(self) -> dict[str, float]:
        """images: number of images with a pose. lost: those of them whose pose was extrapolated. points, inliers, error_px: medians over
        the images. readout_ms: of the shutter, as used for the last one."""
        if not self._rows:
            return {"images": 0, "lost": 0}
        points, inliers, error = np.array(self._rows).T
        fits = error[np.isfinite(error)]
        return {
            "images": len(self._rows), "lost": self.lost, "points": float(np.median(points)), "inliers": float(np.median(inliers)),
            "error_px": float(np.median(fits)) if len(fits) else float("nan"), "readout_ms": self._readout_ms,
        }  # fmt: skip


class Odometry:
    """Takes every frame with `add` and the landmarks of each window with `update`. `add` and `located` return the poses, each stamp once,
    in order.

    Any thread may call it, but poses are in order only if one thread takes them. Frame and unit of the poses are those of the landmarks.
    world: number of restarts.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.world = 0
        self.timeline = Timeline()
        self._lock = threading.Lock()
        cameras = range(max(1, len(config.camera_names)))
        self._trackers = [Tracker(i * CAMERA_IDS) for i in cameras]
        self._shutters = [Shutter(config.shutter.readout_s) for _ in cameras]
        self._begin()

    def _begin(self) -> None:
        self._news: list[Landmarks] = []
        self._landmarks: Landmarks | None = None
        self._points = Points.none()
        self._pending: deque[Frame] = deque(maxlen=PENDING)
        self._history: OrderedDict[int, F64] = OrderedDict()  # stamp -> pose, as it is estimated now
        self._recent: deque[tuple[int, F64]] = deque(maxlen=TWIST_POSES)
        self._motion = np.zeros(6), 0.0  # see _velocity
        self._offset = np.eye(4)  # camera as estimated from camera as published
        self._drift = np.zeros((6, 6))  # variance since the landmarks' last keyframe, from images that were lost
        self._depth = 1.0  # median of the scene
        self._located_ns: int | None = None  # the last stamp with a pose

    def reset(self) -> None:
        """Starts a new world: images wait for its landmarks."""
        with self._lock:
            self._restart()
            self.timeline.reset()
            self.world += 1

    def _restart(self) -> None:
        for tracker, shutter in zip(self._trackers, self._shutters, strict=True):
            tracker.reset()
            shutter.reset()
        self._begin()

    def add(self, frame: Frame) -> tuple[Frame, list[Located]]:
        """Tracks the next frame. Returns it with the observations of all its cameras, and the poses that are known now: that of this
        frame, or none while there are no landmarks. A frame that the pipeline will drop is returned unchanged."""
        with self._lock:
            try:
                for each in frame.all_cameras:
                    check_image(each.image)
            except FrameError:
                return frame, []
            if not self._is_next(frame):
                return frame, []
            poses = self._catch_up()
            first, *others = (
                dataclasses.replace(each, observations=self._seen(tracker, shutter, each))
                for tracker, shutter, each in zip(self._trackers, self._shutters, frame.all_cameras, strict=False)
            )
            frame = dataclasses.replace(first, others=tuple(others))
            if self.config.odometry.rate != "image":  # only the bundle uses the points
                return frame, []
            if self._landmarks is None:
                # only the width of its image is needed from now on; a view would keep the whole image in memory
                self._pending.append(dataclasses.replace(frame, image=frame.image[:0].copy(), depth=None, others=()))
                return frame, poses
            return frame, [*poses, self._locate(frame, self._landmarks)]

    def update(self, landmarks: Landmarks | None) -> None:
        """Stores the landmarks of a window for the next `add` or `located`. None, and landmarks of an older world, are ignored."""
        if landmarks is not None:
            with self._lock:
                self._news.append(landmarks)

    def located(self) -> list[Located]:
        """Returns the poses of images that waited for the first landmarks, if these are known now."""
        with self._lock:
            return self._catch_up()

    def _catch_up(self) -> list[Located]:
        poses: list[Located] = []
        news, self._news = self._news, []
        for landmarks in news:
            stamp = landmarks.stamps_ns[-1]
            known = stamp in self._history
            # landmarks from before a jump back in time belong to images that are no longer used; a world that begins in another unit
            # continues from the images of the one before
            if landmarks.world < self.world or not (known or any(frame.stamp_ns == stamp for frame in self._pending)):
                continue
            if known:
                self._move(self._history[stamp], landmarks.odom_from_camera[-1], landmarks)
            if landmarks.world > self.world:
                self.world, self._offset = landmarks.world, np.eye(4)
            self._landmarks = landmarks
            self._drift = np.zeros((6, 6))
            self._points = self._points.joined(Points.of(landmarks))
            waiting, self._pending = list(self._pending), deque(maxlen=PENDING)
            poses += [self._locate(frame, landmarks) for frame in waiting]
        return poses

    def _is_next(self, frame: Frame) -> bool:
        """Whether the frame's stamp is accepted, as the pipeline will decide. If stamps jump back, the world or the points restart, as
        on_time_jump says."""
        newest = self.timeline.last_ns
        if newest is not None and frame.stamp_ns < newest - TIME_JUMP_NS and self.config.on_time_jump == "ignore":
            return False
        place = self.timeline.place(frame.stamp_ns)
        if place is Place.RETURN:  # the stamps since the pause were wrong
            self._history = OrderedDict((t, pose) for t, pose in self._history.items() if t < frame.stamp_ns)
            self._recent = deque([(t, pose) for t, pose in self._recent if t < frame.stamp_ns], maxlen=TWIST_POSES)
            self._located_ns = self._recent[-1][0] if self._recent else None
        if place is not Place.JUMP:
            return place in (Place.NEXT, Place.RETURN)
        before, last = self._landmarks, self._recent[-1][1] @ self._offset if self._recent else None
        self._restart()
        if self.config.on_time_jump == "reset":
            self.world += 1
        elif before is not None and last is not None:
            nothing = np.empty((0, 3))
            self._landmarks = dataclasses.replace(
                before, ids=np.empty(0, np.int64), positions=nothing, anchors=nothing, log_sigma=np.empty(0),
                stamps_ns=(frame.stamp_ns - 1,), odom_from_camera=last[None],
            )  # fmt: skip
        return True

    def _seen(self, tracker: Tracker, shutter: Shutter, frame: Frame) -> Observations:
        gray = np.asarray(cv2.cvtColor(frame.image, cv2.COLOR_RGB2GRAY), np.uint8)
        seen = tracker.track(gray, frame.stamp_ns)
        k = frame.intrinsics
        if k is None and self._landmarks is not None and self._landmarks.camera == frame.camera:
            k = self._landmarks.intrinsics
        at_once = shutter.at_once(seen.ids, seen.pixels, gray.shape, frame.stamp_ns, k)
        return dataclasses.replace(seen, world=self.world, at_once=at_once)

    def _move(self, before: F64, after: F64, landmarks: Landmarks) -> None:
        """Moves all that was estimated since a keyframe from its old pose `before` to its new pose `after`."""
        new = Points.of(landmarks)
        _, mine, theirs = np.intersect1d(self._points.ids, new.ids, assume_unique=True, return_indices=True)
        sure = (self._points.rays.variance[mine] < SCALE_SIGMA**2) & (new.rays.variance[theirs] < SCALE_SIGMA**2)
        scale = landmarks.scale.unit / (landmarks if self._landmarks is None else self._landmarks).scale.unit
        if np.count_nonzero(sure) >= MIN_SCALE_POINTS:
            here = np.linalg.norm(self._points.at(mine[sure]).rays.positions() - before[:3, 3], axis=1)
            there = np.linalg.norm(new.at(theirs[sure]).rays.positions() - after[:3, 3], axis=1)
            scale = float(np.median(there / here))
        rotation = nearest_rotation(after[:3, :3] @ before[:3, :3].T)
        translation = after[:3, 3] - scale * rotation @ before[:3, 3]

        def moved(pose: F64) -> F64:
            return transform(rotation @ pose[:3, :3], scale * rotation @ pose[:3, 3] + translation)

        published = self._recent[-1][1] @ self._offset if self._recent else None
        self._motion = self._motion[0] * np.repeat([scale, 1.0], 3), self._motion[1]
        self._points = self._points.moved(rotation, translation, scale)
        self._history = OrderedDict((stamp, moved(pose)) for stamp, pose in self._history.items())
        self._recent = deque(((stamp, moved(pose)) for stamp, pose in self._recent), maxlen=TWIST_POSES)
        if published is not None:
            self._offset = inverse(self._recent[-1][1]) @ published

    def _locate(self, frame: Frame, landmarks: Landmarks) -> Located:
        seen = frame.observations
        assert seen is not None
        k = landmarks.intrinsics if frame.intrinsics is None else frame.intrinsics
        sigma = PIXEL_SIGMA * max(1.0, frame.image.shape[1] / SIGMA_WIDTH)
        dt = 0.0 if self._located_ns is None else (frame.stamp_ns - self._located_ns) * 1e-9
        self._located_ns = frame.stamp_ns
        expected, prior = self._expected(frame.stamp_ns, dt, landmarks)

        _, rows, here = np.intersect1d(self._points.ids, seen.ids, assume_unique=True, return_indices=True)
        known = self._points.at(rows).rays
        fit = resect(known, seen.steady[here], k, sigma, expected, prior)
        inliers = int(np.count_nonzero(fit.inliers))
        lost = inliers < max(MIN_INLIERS, MIN_SHARE * len(here))
        if not lost:
            pose, by_pixels = fit.world_from_camera, fit.covariance
            depth = ((known.positions() - pose[:3, 3]) @ pose[:3, :3])[:, 2]
            good = fit.inliers & (depth > 0)
            self._points = self._points.learnt(rows, fit, k, sigma)
            if good.any():
                self._depth = float(np.median(depth[good]))
                self._points = self._points.joined(guessed(seen, here[good], depth[good], pose, k))
        else:
            at = np.flatnonzero(np.array(landmarks.stamps_ns) == frame.stamp_ns)
            pose = landmarks.odom_from_camera[at[-1]] if len(at) else expected
            by_pixels = np.zeros((6, 6))
            self._drift = self._drift + (0.0 if len(at) else 1.0) * prior
        # points that are neither seen now nor in the last window cannot return
        self._points = self._points.at(np.isin(self._points.ids, seen.ids) | np.isin(self._points.ids, landmarks.ids))
        self._history[frame.stamp_ns] = pose
        if len(self._history) > HISTORY:
            self._history.popitem(last=False)
        self._recent.append((frame.stamp_ns, pose))

        self._offset = faded(self._offset, dt)
        lever = pose[:3, 3] - landmarks.odom_from_camera[-1][:3, 3]
        total = carried(landmarks.covariance, lever) + self._drift + UNDERSTATED**2 * by_pixels
        before = self._motion[0]
        self._motion = twist, weights = self._velocity()
        change, size = ((a.reshape(2, 3) ** 2).mean(axis=1) for a in (twist - before, twist))
        unseen = np.diag(np.repeat(CHANGE_SHARE**2 * change + TWIST_SHARE**2 * size, 3))
        turn = np.kron(np.eye(2), pose[:3, :3].T)
        error = float(np.median(np.linalg.norm(fit.residuals[fit.inliers], axis=1))) if inliers else float("nan")
        if lost or weights == 0:
            twist_covariance = UNKNOWN * np.eye(6)
        else:
            # an error that all poses share cancels in a velocity: only the noise in the residuals counts, which may be less than assumed
            noise = float(np.clip(error / (NORM_MEDIAN * sigma), LEAST_NOISE, 1.0))
            twist_covariance = noise**2 * weights * turn @ by_pixels @ turn.T + unseen
        return Located(
            frame, pose @ self._offset, total, twist, twist_covariance, len(here), inliers, error, lost, landmarks.scale,
            self.world, 1e3 * self._shutters[0].readout_s,
        )  # fmt: skip

    def _expected(self, stamp_ns: int, dt: float, landmarks: Landmarks) -> tuple[F64, F64]:
        """Predicted pose of the camera, and its covariance (6, 6)."""
        if not self._recent:
            near = int(np.argmin([abs(stamp - stamp_ns) for stamp in landmarks.stamps_ns]))
            pose, sigma = landmarks.odom_from_camera[near], np.array([MOST_SHIFT, MOST_TURN])
        else:
            velocity, _ = self._motion
            pose = self._recent[-1][1] @ displaced(velocity * min(dt, LONGEST_PREDICTION_S))
            sigma = np.array([ACCELERATION, ANGULAR_ACCELERATION]) * dt * max(dt, LEAST_DT_S)
            sigma = np.minimum(sigma, [MOST_SHIFT, MOST_TURN])
        return pose, np.diag(np.repeat(sigma * [self._depth, 1.0], 3) ** 2)

    def _velocity(self) -> tuple[F64, float]:
        """(6,) linear and angular velocity in the last camera's frame: the derivative at the end of a polynomial through the last poses,
        which is smoother than their differences. And its variance relative to that of a pose, 1/s2; 0 if there is only one pose."""
        now, last = self._recent[-1]
        near = [(stamp, pose) for stamp, pose in self._recent if now - stamp <= TWIST_S * 1e9]
        near = max(near, list(self._recent)[-LEAST_TWIST_POSES:], key=len)
        if len(near) < 2:
            return np.zeros(6), 0.0
        seconds = np.array([(stamp - now) * 1e-9 for stamp, _ in near])
        from_last = inverse(last) @ np.stack([pose for _, pose in near])
        values = np.hstack([from_last[:, :3, 3], vector_from_rotation(from_last[:, :3, :3])])
        weights = np.linalg.pinv(np.vander(seconds, min(3, len(near)), increasing=True))[1]
        return weights @ values, float(weights @ weights)


def displaced(step: F64) -> F64:
    """(4, 4) transform of a displacement (6,), linear and angular, in the moving frame."""
    return transform(rotation_from_vector(step[3:]), step[:3])


def faded(offset: F64, dt: float) -> F64:
    """`offset` (4, 4) after another dt s: a share exp(-dt / FADE_S) of it is left."""
    share = float(np.exp(-dt / FADE_S))
    return displaced(share * np.concatenate([offset[:3, 3], vector_from_rotation(offset[:3, :3])]))
