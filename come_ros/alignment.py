"""Aligns each window with what is published: scale from depth ratios, pose from the poses of shared frames.

A backbone predicts every window in its own frame and scale. Frames that an earlier window has published tie it to
the odometry frame by the similarity odom_from_window, x -> scale * rotation @ x + translation:

- scale: the depth of a shared frame needs no baseline, so log(published depth / new depth) gives the scale even for a still or
  rotating camera. Each frame gives its weighted median over pixels; the frames are then averaged robustly.
- rotation: each shared frame i gives odom_from_camera_i * inverse(window_from_camera_i); their robust chordal mean.
- translation: each gives odom position - scale * rotation @ window position; their robust mean.

The windows of a metric model are all in metres, so their scale is 1 and only rotation and translation are estimated.
A frame that is an outlier in one of the three has little weight in the others. Inconsistent estimates are refused: the window is
left out. What is published is never rewritten.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import geometry
from .geometry import SIGMA_OF_MAD
from .types import F32, F64, Alignment, Frame, Prediction

# Gates. They are lenient: a small model is off by some ten percent and some degrees, and a window refused is a hole in
# the trajectory. They reject windows that are unrelated to the last ones.
MAX_DEPTH_RESIDUAL = 0.5  # half of the pixels differ by more than 65 %: the two depths show different scenes
MAX_ROTATION_RESIDUAL = np.deg2rad(20.0)  # of the frames that count; a good model is within 1 deg
MAX_TRANSLATION_RESIDUAL = 0.5  # of the median depth; a good model is within 0.02
# The unit may differ between windows, but a larger jump is only accepted if the depths agree in shape.
MAX_SCALE_JUMP = 4.0
MAX_JUMP_RESIDUAL = 0.15
MIN_VALID_SHARE = 0.5  # of a window's depth; below that the model has not understood the images

# Depth ratios
PIXELS_PER_FRAME = 3000  # more pixels do not change the median of such a smooth field
MIN_PIXELS = 30  # a median of fewer is unreliable
LOW_CONFIDENCE = 0.2  # this share of a frame's pixels is left out: sky, reflections, edges
MAX_PIXEL_WEIGHT = (
    3.0  # in medians of the frame: exp() makes the weights of a few pixels so large that they would decide alone
)

# Robust averaging: steps towards the median, then steps with redescending weights, which ignore what is far off
L1_STEPS, TUKEY_STEPS = 15, 10
SETTLED = 1e-3  # steps end when they change so little
TUKEY = 4.685  # Tukey's biweight, 95 % efficient on Gaussian noise
MIN_TRUST = 1e-3  # least weight of an outlier, so that weights never sum to zero
# Differences below these are noise of any model: they make no frame an outlier.
# Four frames determine their own spread poorly; with these limits the estimate is as good as the mean without outliers.
SCALE_FLOOR = 0.03  # relative
ROTATION_FLOOR = np.deg2rad(0.5)
TRANSLATION_FLOOR = 0.01  # of the median depth


@dataclass(frozen=True, eq=False)
class _Published:
    """A published frame, for comparison with later windows: depth and confidence on a coarse grid of pixels."""

    odom_from_camera: F64
    depth: F32  # (n,), NaN where invalid
    confidence: F32  # (n,)
    shape: tuple[int, ...]  # of the image that the grid lies on


class WindowAligner:
    """Holds the last published frames, the last pose and the last scale; `align` reads them, `commit` updates them."""

    def __init__(self, capacity: int, metric: bool = False) -> None:
        """`capacity`: number of published frames that are kept, at least as many as windows share. metric: windows are in metres."""
        self.capacity, self.metric = capacity, metric
        self.reset()

    def reset(self) -> None:
        """A new world starts: the camera of the next frame is assumed to be level and at the origin."""
        self._published: OrderedDict[tuple[int, str], _Published] = OrderedDict()
        self._last_pose: F64 | None = None
        self._last_poses: dict[str, F64] = {}  # of each camera, in the set that was published last
        self._last_stamp_ns = -1
        self._scale = 1.0

    def restart(self) -> None:
        """Forgets the published frames, keeps pose and scale: the next window continues from there."""
        self._published.clear()

    @property
    def started(self) -> bool:
        """Whether something was published in this world."""
        return self._last_pose is not None

    @property
    def scale(self) -> float:
        """Odom units per unit of the last accepted window."""
        return self._scale

    def knows(self, frame: Frame) -> bool:
        """Whether `frame` was published, so a window that shares it can be aligned."""
        return _key(frame) in self._published

    def align(self, frames: tuple[Frame, ...], prediction: Prediction) -> tuple[Alignment, F64]:
        """Aligns the window of `frames`; returns the alignment and its odom_from_camera (S, 4, 4).

        Without shared frames, the first frame that is newer than all published ones continues at the last pose with the
        last scale. If the window is refused, all poses are the last one. Always finite.
        """
        reason = unusable(prediction)
        if reason:
            return self._refused(frames, Alignment(False, 0, self._scale, reason=reason))
        window_from_camera = np.array(prediction.window_from_camera, np.float64)
        window_from_camera[:, :3, :3] = geometry.nearest_rotation(window_from_camera[:, :3, :3])
        shared = [i for i, frame in enumerate(frames) if _key(frame) in self._published]
        if shared:
            alignment, rotation, translation = self._estimate(frames, shared, prediction, window_from_camera)
        else:
            alignment = Alignment(True, 0, self._scale)
            rotation, translation = self._continue(frames, window_from_camera)
        poses = geometry.transform_poses(alignment.scale, rotation, translation, window_from_camera)
        if alignment.accepted and not np.isfinite(poses).all():
            alignment = Alignment(False, len(shared), self._scale, reason="the aligned poses are not finite")
        return (alignment, poses) if alignment.accepted else self._refused(frames, alignment)

    def commit(
        self, frames: tuple[Frame, ...], scale: float, odom_from_camera: F64, depth: F32, confidence: F32
    ) -> None:
        """Remembers what was published of N frames: poses (N, 4, 4), depth (N, H, W) in odom units, NaN where invalid,
        confidence (N, H, W); and the scale of their window."""
        grid = _grid(depth.shape[1:])
        self._last_poses = {frame.camera: pose for frame, pose in zip(frames, odom_from_camera, strict=True)}
        for frame, pose, z, c in zip(frames, odom_from_camera, depth, confidence, strict=True):
            self._published[_key(frame)] = _Published(pose, z[grid].ravel(), c[grid].ravel(), z.shape)
            self._last_pose, self._last_stamp_ns = pose, frame.stamp_ns
        self._scale = scale
        while len(self._published) > self.capacity:
            self._published.popitem(last=False)

    def _refused(self, frames: tuple[Frame, ...], alignment: Alignment) -> tuple[Alignment, F64]:
        last = geometry.BODY_FROM_OPTICAL if self._last_pose is None else self._last_pose
        return alignment, np.tile(last, (len(frames), 1, 1))

    def _continue(self, frames: tuple[Frame, ...], window_from_camera: F64) -> tuple[F64, F64]:
        anchor = next((i for i, frame in enumerate(frames) if frame.stamp_ns > self._last_stamp_ns), 0)
        pose = geometry.BODY_FROM_OPTICAL if self._last_pose is None else self._last_pose
        pose = self._last_poses.get(frames[anchor].camera, pose)
        rotation = pose[:3, :3] @ window_from_camera[anchor, :3, :3].T
        return rotation, pose[:3, 3] - self._scale * rotation @ window_from_camera[anchor, :3, 3]

    def _estimate(
        self, frames: tuple[Frame, ...], shared: list[int], prediction: Prediction, window_from_camera: F64
    ) -> tuple[Alignment, F64, F64]:
        known = [self._published[_key(frames[i])] for i in shared]
        odom, window = np.stack([k.odom_from_camera for k in known]), window_from_camera[shared]
        rows = [prediction.row(i) for i in shared]
        votes = [
            _NO_VOTE if row is None else _depth_vote(k, prediction.depth[row], prediction.confidence[row])
            for k, row in zip(known, rows, strict=True)
        ]
        published = np.concatenate([k.depth for k in known])
        distance = geometry.finite_median(published, 1.0)

        # the agreement of a frame's two depths in shape is its weight, before frames are compared with each other
        weights = np.array([1 / (v.spread + SCALE_FLOOR) for v in votes])
        asked = np.array([row is not None for row in rows])
        if asked.any():  # a frame whose depth was not requested cannot be judged and keeps its weight
            weights[~asked] = np.median(weights[asked])
        rotations = odom[:, :3, :3] @ np.swapaxes(window[:, :3, :3], -1, -2)
        _, trust = _robust_rotation(rotations, weights)
        weights = weights * trust

        scale, trust = self._scale, np.ones(len(shared))
        voting = np.array([v.location is not None for v in votes])
        if voting.any() and not self.metric:
            ratios = np.array([v.location for v in votes if v.location is not None])
            location, trust[voting] = _robust_mean(ratios[:, None], weights[voting], SCALE_FLOOR)
            scale = float(np.exp(location[0]))
        weights = weights * trust

        rotation, trust = _robust_rotation(rotations, weights)
        weights = weights * trust
        centres = odom[:, :3, 3] - scale * window[:, :3, 3] @ rotation.T
        translation, trust = _robust_mean(centres, weights, TRANSLATION_FLOOR * distance)

        counts = weights * trust >= 0.05 * (weights * trust).max()
        pixels = [np.abs(v.ratios - np.log(scale)) for v, c in zip(votes, counts & voting, strict=True) if c]
        alignment = Alignment(
            accepted=True,
            shared=len(shared),
            scale=scale,
            depth_residual=float(np.median(np.concatenate(pixels))) if pixels else 0.0,
            rotation_residual=float(geometry.rotation_angle(rotation.T @ rotations)[counts].max()),
            translation_residual=float(np.linalg.norm(centres - translation, axis=1)[counts].max() / distance),
        )
        return self._gate(alignment), rotation, translation

    def _gate(self, a: Alignment) -> Alignment:
        """`a`, or a refusal with its reason if the residuals show that the window does not fit."""
        jump = max(a.scale / self._scale, self._scale / a.scale)
        reason = ""
        if a.depth_residual > MAX_DEPTH_RESIDUAL:
            reason = f"depth of shared frames disagrees by {a.depth_residual:.2f} (at most {MAX_DEPTH_RESIDUAL})"
        elif a.rotation_residual > MAX_ROTATION_RESIDUAL:
            angle, most = np.rad2deg([a.rotation_residual, MAX_ROTATION_RESIDUAL])
            reason = f"poses of shared frames disagree by {angle:.1f} deg (at most {most:.0f})"
        elif a.translation_residual > MAX_TRANSLATION_RESIDUAL:
            reason = (
                f"positions of shared frames disagree by {a.translation_residual:.2f} of the depth "
                f"(at most {MAX_TRANSLATION_RESIDUAL})"
            )
        elif jump > MAX_SCALE_JUMP and a.depth_residual > MAX_JUMP_RESIDUAL:
            reason = f"scale jumps by a factor of {jump:.1f} (at most {MAX_SCALE_JUMP:.0f} where depths disagree)"
        if not reason:
            return a
        return Alignment(
            False, a.shared, self._scale, a.depth_residual, a.rotation_residual, a.translation_residual, reason
        )


def unusable(prediction: Prediction) -> str:
    """Why a prediction cannot be aligned at all, or ""."""
    if not geometry.is_finite_pose(prediction.window_from_camera).all():
        return "the model's poses are not finite or no rotations"
    intrinsics = prediction.intrinsics if prediction.dense is None else prediction.intrinsics[list(prediction.dense)]
    if not (np.isfinite(intrinsics).all() and (intrinsics[:, [0, 1], [0, 1]] > 0).all()):
        return "the model's intrinsics are not finite or not positive"
    rows, columns = _grid(prediction.depth.shape[1:])
    depth = prediction.depth[:, rows, columns]
    valid = float(np.mean(np.isfinite(depth) & (depth > 0)))
    if valid < MIN_VALID_SHARE:
        return f"only {valid:.0%} of the model's depth is finite and positive (at least {MIN_VALID_SHARE:.0%})"
    return ""


@dataclass(frozen=True, eq=False)
class _DepthVote:
    """The scale as estimated from one shared frame: its log depth ratios (n,), their location (None: too few) and spread."""

    ratios: F64
    location: float | None
    spread: float


_NO_VOTE = _DepthVote(np.zeros(0), None, 1.0)


def _depth_vote(published: _Published, depth: F32, confidence: F32) -> _DepthVote:
    grid = _grid(depth.shape) if depth.shape == published.shape else _same_places(published.shape, depth.shape)
    z, c = depth[grid].ravel(), confidence[grid].ravel()
    sure = np.nan_to_num(np.minimum(c, published.confidence), nan=0.0, posinf=np.finfo(np.float32).max)
    with np.errstate(invalid="ignore"):
        valid = np.isfinite(z) & (z > 0) & np.isfinite(published.depth) & (published.depth > 0)
    if np.count_nonzero(valid) < MIN_PIXELS:
        return _NO_VOTE
    low = int(LOW_CONFIDENCE * (np.count_nonzero(valid) - 1))
    least = np.partition(sure[valid], low)[low]
    surer = valid & (sure > least)
    # many equal values, such as the floor of the confidence, are all left out, unless hardly anything else is left
    valid = surer if 2 * np.count_nonzero(surer) >= np.count_nonzero(valid) else valid & (sure >= least)
    weights = sure[valid].astype(np.float64)
    half = len(weights) // 2
    middle = np.partition(weights, half)[half]
    weights = np.clip(weights / middle, 0.0, MAX_PIXEL_WEIGHT) if middle > 0 else np.ones_like(weights)
    ratios = np.log(published.depth[valid].astype(np.float64)) - np.log(z[valid].astype(np.float64))
    location = weighted_median(ratios, weights)
    return _DepthVote(ratios, location, SIGMA_OF_MAD * weighted_median(np.abs(ratios - location), weights))


def weighted_median(values: NDArray[np.floating], weights: NDArray[np.floating]) -> float:
    """The one of `values` (n,) that splits the total of `weights` (n,) in halves; between two of them, their mean."""
    order = np.argsort(values)
    sums = np.cumsum(weights[order])
    half = 0.5 * sums[-1]
    low = values[order[min(np.searchsorted(sums, half * (1 - 1e-12)), len(order) - 1)]]
    high = values[order[min(np.searchsorted(sums, half * (1 + 1e-12)), len(order) - 1)]]
    return float(0.5 * (low + high))


def _robust_mean(values: F64, weights: F64, floor: float) -> tuple[F64, F64]:
    """Robust mean (d,) of values (n, d) and how far each is trusted (n,), 0 .. 1."""
    return _robust(
        lambda w: np.average(values, axis=0, weights=w),
        lambda mean: np.linalg.norm(values - mean, axis=1),
        weights,
        floor,
    )


def _robust_rotation(rotations: F64, weights: F64) -> tuple[F64, F64]:
    """Robust mean (3, 3) of rotations (n, 3, 3) and how far each is trusted (n,), 0 .. 1."""
    return _robust(
        lambda w: geometry.average_rotation(rotations, w),
        lambda mean: geometry.rotation_angle(mean.T @ rotations),
        weights,
        ROTATION_FLOOR,
    )


def _robust(mean: Callable[[F64], F64], distances: Callable[[F64], F64], weights: F64, floor: float) -> tuple[F64, F64]:
    """Iteratively reweighted mean: starts from the median, which tolerates outliers of up to half the weight, and ends with a
    redescending estimate, which is as good as the mean if there are none."""
    estimate = mean(weights)
    trust = np.ones_like(weights)
    if len(weights) < 3:  # of two that disagree, neither can be called the outlier
        return estimate, trust
    for _ in range(L1_STEPS):  # Weiszfeld
        before, estimate = estimate, mean(weights / np.maximum(distances(estimate), 0.1 * floor))
        if np.abs(estimate - before).max() < SETTLED * floor:
            break
    for _ in range(TUKEY_STEPS):
        d = distances(estimate)
        sigma = max(SIGMA_OF_MAD * weighted_median(d, weights), floor)
        before, trust = trust, np.maximum(np.clip(1 - (d / (TUKEY * sigma)) ** 2, 0, None) ** 2, MIN_TRUST)
        estimate = mean(weights * trust)
        if np.abs(trust - before).max() < SETTLED:
            break
    return estimate, trust


def _key(frame: Frame) -> tuple[int, str]:
    return frame.stamp_ns, frame.camera


def _grid(shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Every n-th pixel of an image of `shape`, so that at most about PIXELS_PER_FRAME are left."""
    step = max(1, int(np.ceil(np.sqrt(shape[0] * shape[1] / PIXELS_PER_FRAME))))
    return slice(step // 2, None, step), slice(step // 2, None, step)


def _same_places(shape: tuple[int, ...], other: tuple[int, ...]) -> tuple[NDArray[np.intp], ...]:
    """Where the pixels of _grid(shape) lie in the same image at another resolution. Crops differ by a patch at most, which hardly
    changes a median over smooth depth."""
    places = (np.arange(n)[step] for n, step in zip(shape, _grid(shape), strict=True))
    return np.ix_(*(((p + 0.5) * m / n).astype(np.intp) for p, n, m in zip(places, shape, other, strict=True)))
