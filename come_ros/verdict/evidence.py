"""Collects what a run shows about its own result, without any truth: does the next image look as the result predicts?

A published keyframe has an image, a depth, intrinsics and a pose. Together they predict what the keyframe before must look like from there.
If depth and motion are right, the prediction agrees with the image (`agreement`); if the images show no common scene, or the motion is
wrong, it does not, however confident the network is.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .. import geometry
from ..geometry import finite_median
from ..types import F32, F64, U8, Refinement, Submap
from .judge import CHANCE, Facts

SIDE = 168  # px: longer side at which images are compared, so that an agreement means the same for every model; smaller ones stay
SMOOTH = (
    1.5  # px: sigma of the smoothing before images are compared, so that a pixel's error of depth is no disagreement
)
BLOCK = 9  # px: edge of the areas that are compared
LEAST_TEXTURE = 4.0  # grey levels: spread in an area below which there is nothing to compare
WHOLE = 0.8  # share of an area that both images must show
LEAST_AREA = 0.03  # of the pixels; with fewer that can be compared nothing is said
CONFIDENCE_STEP = 4  # px: of the confidence every such pixel counts, in both directions


@dataclass(frozen=True, eq=False)
class View:
    """A published keyframe. grey: (H, W) float32. depth: (H, W) float32 along z, NaN where invalid. intrinsics: (3, 3). odom_from_camera:
    (4, 4)."""

    grey: F32
    depth: F32
    intrinsics: F64
    odom_from_camera: F64

    @staticmethod
    def of(image: U8, depth: F32, intrinsics: F64, odom_from_camera: F64) -> View:
        """The view, SIDE pixels wide or high if it is larger. image: (H, W, 3)."""
        grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.float32)
        if max(depth.shape) > SIDE:
            size = np.array(depth.shape[::-1])
            width, height = small = np.round(size * SIDE / size.max()).astype(int)
            grey = cv2.resize(grey, (int(width), int(height)), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
            # the nearest pixel: a mean of two depths is the depth of neither
            columns, rows = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(small, size, strict=True))
            depth = depth[rows[:, None], columns]
            k = intrinsics.copy()
            k[:2] *= (small / size)[:, None]
            k[:2, 2] += 0.5 * small / size - 0.5  # pixel centres lie at integers
            intrinsics = k
        return View(np.asarray(cv2.GaussianBlur(grey, (0, 0), SMOOTH), np.float32), depth, intrinsics, odom_from_camera)


@dataclass(frozen=True)
class Agreement:
    """How well a view agrees with the one before it, moved as the result says; NaN where there is too little to compare.

    correlation: mean over small areas, 1 is perfect, 0 is chance. shared: share of the pixels that both see. depth: median difference of
    the two depths there, of the logarithm.
    """

    correlation: float
    shared: float
    depth: float


def agreement(before: View, now: View) -> Agreement:
    """Compares two views of one camera."""
    height, width = now.depth.shape
    k, step = now.intrinsics, geometry.inverse(before.odom_from_camera) @ now.odom_from_camera
    # the rays of all pixels in the other camera, as an outer sum
    turn = (step[:3, :3] @ np.linalg.inv(k)).astype(np.float32)
    across = turn[:, 0, None] * np.arange(width, dtype=np.float32)
    down = turn[:, 1, None] * np.arange(height, dtype=np.float32) + turn[:, 2, None]
    x, y, z = now.depth * (across[:, None, :] + down[:, :, None]) + step[:3, 3, None, None].astype(np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        to = before.intrinsics.astype(np.float32)
        u, v = to[0, 0] * x / z + to[0, 2], to[1, 1] * y / z + to[1, 2]
        inside = (z > 0) & (u >= 0) & (v >= 0) & (u <= before.grey.shape[1] - 1) & (v <= before.grey.shape[0] - 1)
        u, v = (np.where(inside, a, np.float32(-2)) for a in (u, v))
        known = cv2.remap(
            before.depth, u, v, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=float("nan")
        )  # type: ignore[call-overload]
        differences = np.abs(np.log(z / known))[inside]
    there = np.isfinite(differences)
    return Agreement(
        correlation=_correlation(now.grey, cv2.remap(before.grey, u, v, cv2.INTER_LINEAR), inside),  # type: ignore[arg-type]
        shared=float(inside.mean()),
        depth=float(np.median(differences[there]))
        if np.count_nonzero(there) > LEAST_AREA * height * width
        else float("nan"),
    )


def _correlation(ours: F32, theirs: F32, inside: NDArray[np.bool_]) -> float:
    """Mean correlation of the small areas around each pixel of two images (H, W), of which only the pixels `inside` are compared, over the
    areas that have texture. NaN where there are too few."""
    weight = np.maximum(_mean(inside.astype(np.float32)), np.float32(1e-6))
    a, b = (np.where(inside, image, np.float32(0)) for image in (ours, theirs))
    mean_a, mean_b = _mean(a) / weight, _mean(b) / weight
    square_a, square_b = _mean(a * a) / weight - mean_a**2, _mean(b * b) / weight - mean_b**2
    good = inside & (weight > WHOLE) & (square_a > LEAST_TEXTURE**2)
    if good.mean() < LEAST_AREA:
        return float("nan")
    both = (_mean(a * b) / weight - mean_a * mean_b)[good]
    return float(np.mean(both / np.sqrt(square_a[good] * np.maximum(square_b[good], 1.0))))


def _mean(image: F32) -> F32:
    return np.asarray(cv2.boxFilter(image, -1, (BLOCK, BLOCK)), np.float32)


@dataclass(frozen=True)
class _Step:
    """A published keyframe, and its agreement with the one before it; None for the first one. depth, confidence: medians."""

    position: F64
    depth: float
    confidence: float
    agreement: Agreement | None


class Evidence:
    """Follows the published submaps of a run, and knows the facts so far. Keeps some numbers for each keyframe. Any thread may call it."""

    def __init__(self, most: int | None = None) -> None:
        """most: number of keyframes and windows to judge by, the newest ones; None: all."""
        self._lock = threading.Lock()
        self._most = most
        self._begin(0)

    def _begin(self, world: int) -> None:
        self._world = world
        self._last: dict[str, View] = {}  # by camera
        self._steps: deque[_Step] = deque(maxlen=self._most)
        self._windows: deque[tuple[int, Refinement | None]] = deque(maxlen=self._most)

    def reset(self) -> None:
        """Forgets everything: another run begins."""
        with self._lock:
            self._begin(0)

    def add(self, submap: Submap, bundle: bool = True) -> None:
        """Adds a window; a new world forgets the one before. bundle: whether it went through the bundle."""
        with self._lock:
            if submap.world > self._world:
                self._begin(submap.world)
            self._windows.append((len(submap), submap.refinement if bundle else None))
            for row, frame in enumerate(submap.frames):
                depth = submap.depth[row]
                now = View.of(submap.images[row], depth, submap.intrinsics[row], submap.odom_from_camera[row])
                before = self._last.get(frame.camera)
                self._last[frame.camera] = now
                confidence = submap.confidence[row, ::CONFIDENCE_STEP, ::CONFIDENCE_STEP]
                self._steps.append(
                    _Step(
                        submap.odom_from_camera[row, :3, 3].copy(), finite_median(now.depth, math.nan),
                        finite_median(confidence, math.nan), None if before is None else agreement(before, now),
                    )
                )  # fmt: skip

    def facts(self) -> Facts:
        """What is known so far of published keyframes and windows; the rest is the caller's to add."""
        with self._lock:
            steps, windows = list(self._steps), list(self._windows)
        if not steps:
            return Facts(refused=1.0 if windows else math.nan)
        seen = [step.agreement for step in steps if step.agreement is not None]
        correlation = np.array([a.correlation for a in seen])
        known = np.isfinite(correlation)
        positions = np.stack([step.position for step in steps])
        spread = float(np.sqrt(((positions - positions.mean(axis=0)) ** 2).sum(axis=1).mean()))
        went = [(n, r) for n, r in windows if r is not None and n]
        frames = sum(n for n, _ in went)
        return Facts(
            keyframes=len(steps),
            agreement=finite_median(correlation, math.nan),
            agreed=float((correlation[known] > CHANCE).mean()) if known.any() else math.nan,
            compared=float(known.mean()) if seen else math.nan,
            extent=spread / finite_median([step.depth for step in steps], math.nan),
            held=sum(n * r.refined for n, r in went) / frames if frames else math.nan,
            landmarks=float(np.median([r.landmarks for _, r in went])) if went else math.nan,
            confidence=finite_median([step.confidence for step in steps], math.nan),
            refused=sum(n == 0 for n, _ in windows) / len(windows),
        )
