"""Metres from several cameras whose places on the robot are known: corners are found again in the other image of the same instant, and
triangulated over the baseline."""

from __future__ import annotations

from collections import Counter

import cv2
import numpy as np

from ..alignment import weighted_median
from ..camera.preprocess import uncrop_intrinsics
from ..camera.rig import MIN_BASELINE
from ..geometry import SIGMA_OF_MAD, inverse, skew
from ..types import F64, U8, Frame
from .reading import Reading, Readings, Seen

CORNERS, QUALITY, SPACING = 300, 0.01, 6  # of cv2.goodFeaturesToTrack; px
WINDOW, LEVELS = (21, 21), 3  # of the optical flow
MIN_POINTS = 12
# By which a corner may miss itself on the way back, and its epipolar line; in an image WIDTH wide
BACK_PX, EPIPOLAR_PX = 1.0, 1.5
# Px, of a corner, and of the extrinsics' and intrinsics' rotation, which all share
PIXEL_SIGMA, CALIBRATION_PX, WIDTH = 0.5, 0.15, 640.0
MOST_SIGMA = 0.3  # of the logarithm of a point's depth
MODEL_SIGMA = 0.1  # of the model's log depth at a point
INDEPENDENT = 12  # see depth.py


def read_rig(seen: Seen, log_metres: float) -> Readings:
    """One reading for each other camera of each set. log_metres: of the model's unit, NaN while unknown."""
    readings, left_out = [], Counter[str]()
    for first in range(0, len(seen.frames), seen.cameras):
        for other in range(first + 1, first + seen.cameras):
            found = _read_pair(seen, first, other, log_metres)
            if isinstance(found, str):
                left_out[found] += 1
            else:
                readings.append(found)
    return Readings(tuple(readings), left_out)


def _read_pair(seen: Seen, first: int, other: int, log_metres: float) -> Reading | str:
    """The reading of two cameras at one instant, or why there is none."""
    a, b = seen.frames[first], seen.frames[other]
    if a.base_from_camera is None or b.base_from_camera is None:
        return "extrinsics unknown"
    b_from_a = inverse(b.base_from_camera) @ a.base_from_camera
    baseline = float(np.linalg.norm(b_from_a[:3, 3]))
    if not baseline > MIN_BASELINE:
        return "cameras at the same place"
    k_a, k_b = _intrinsics(seen, first), _intrinsics(seen, other)
    wide = max(1.0, a.image.shape[1] / WIDTH)
    gray_a, gray_b = _gray(a), _gray(b)
    corners = cv2.goodFeaturesToTrack(gray_a, CORNERS, QUALITY, SPACING)
    if corners is None or len(corners) < MIN_POINTS:
        return "no texture"
    pixels = corners.reshape(-1, 2).astype(np.float64)
    ours = _depth_at(seen, first, pixels)
    rays = np.column_stack([(pixels - k_a[:2, 2]) / k_a[[0, 1], [0, 1]], np.ones(len(pixels))])
    far = rays @ b_from_a[:3, :3].T  # where a corner at infinity is
    with np.errstate(invalid="ignore"):
        near = np.nan_to_num(1 / (ours * np.exp(log_metres)))
    guess = _projected(far + near[:, None] * b_from_a[:3, 3], k_b)
    height, width = gray_b.shape
    with np.errstate(invalid="ignore"):
        inside = ((guess > 0) & (guess < [width - 1, height - 1])).all(axis=1)
    if np.count_nonzero(inside) < MIN_POINTS:
        return "no common view"
    pixels, ours, rays, far, guess = pixels[inside], ours[inside], rays[inside], far[inside], guess[inside]
    matched, good = _matched(gray_a, gray_b, pixels, guess, BACK_PX * wide)
    there = np.column_stack([(matched - k_b[:2, 2]) / k_b[[0, 1], [0, 1]], np.ones(len(matched))])
    good &= _off_line(there, rays, b_from_a, k_b) < EPIPOLAR_PX * wide
    # far + t / z is parallel to the ray there
    across, along = np.cross(there, far), np.cross(there, b_from_a[:3, 3])
    with np.errstate(invalid="ignore", divide="ignore"):
        z = -(along**2).sum(axis=1) / (across * along).sum(axis=1)
        good &= np.isfinite(z) & (z > 0) & np.isfinite(ours) & (ours > 0)
    if np.count_nonzero(good) < MIN_POINTS:
        return "too few points in both images"
    ratios = np.log(z[good]) - np.log(ours[good])
    focal = float(k_b[0, 0])
    middle = float(np.median(ratios))
    for _ in range(2):  # how sure a point is must not depend on where its own noise has put it
        expected = ours[good] * np.exp(middle)
        parallax = np.linalg.norm(np.cross(rays[good], inverse(b_from_a)[:3, 3]), axis=1) / (
            expected * np.linalg.norm(rays[good], axis=1) ** 2
        )
        per_pixel = 1 / (focal * np.maximum(parallax, 1e-9))
        sigma = PIXEL_SIGMA * wide * per_pixel
        sure = sigma < MOST_SIGMA
        if np.count_nonzero(sure) < MIN_POINTS:
            return "too far for the baseline"
        weights = 1 / (sigma[sure] ** 2 + MODEL_SIGMA**2)
        middle = weighted_median(ratios[sure], weights)
    spread = SIGMA_OF_MAD * weighted_median(np.abs(ratios[sure] - middle), weights)
    independent = min(int(np.count_nonzero(sure)), INDEPENDENT)
    common = CALIBRATION_PX * wide * float(np.median(per_pixel[sure]))
    return Reading(a.stamp_ns, middle, float(1.25 * spread / np.sqrt(independent)), common)


def _gray(frame: Frame) -> U8:
    return np.asarray(cv2.cvtColor(frame.image, cv2.COLOR_RGB2GRAY), np.uint8)


def _intrinsics(seen: Seen, row: int) -> F64:
    """(3, 3) in pixels of the frame's image."""
    given = seen.frames[row].intrinsics
    return uncrop_intrinsics(seen.intrinsics[row], seen.plans[row]) if given is None else given


def _depth_at(seen: Seen, row: int, pixels: F64) -> F64:
    """(n,) the model's depth at pixels (n, 2) of the frame's image, NaN outside."""
    plan, depth = seen.plans[row], seen.depth[row]
    x, y = np.rint((pixels + 0.5 - [plan.left, plan.top]) * plan.scale - 0.5).astype(np.int64).T
    inside = (x >= 0) & (y >= 0) & (x < depth.shape[1]) & (y < depth.shape[0])
    out = np.full(len(pixels), np.nan)
    out[inside] = depth[y[inside], x[inside]]
    return out


def _projected(points: F64, k: F64) -> F64:
    """(n, 2) pixels, NaN behind the camera."""
    with np.errstate(invalid="ignore", divide="ignore"):
        z = np.where(points[:, 2:] > 0.1 * np.linalg.norm(points, axis=1, keepdims=True), points[:, 2:], np.nan)
        return points[:, :2] / z * k[[0, 1], [0, 1]] + k[:2, 2]


def _matched(a: U8, b: U8, pixels: F64, guess: F64, back_px: float) -> tuple[F64, np.ndarray]:
    """Where corners of image `a` are in image `b`, about `guess`, (n, 2), and which (n,) came back to where they began."""
    height, width = np.maximum(a.shape, b.shape)  # the flow wants images of one size
    a, b = (_padded(i, int(height), int(width)) for i in (a, b))
    start, where = pixels.astype(np.float32)[:, None], guess.astype(np.float32)[:, None].copy()
    options = {"winSize": WINDOW, "maxLevel": LEVELS, "flags": cv2.OPTFLOW_USE_INITIAL_FLOW}
    there, found, _ = cv2.calcOpticalFlowPyrLK(a, b, start, where, **options)  # type: ignore[call-overload]
    back, returned, _ = cv2.calcOpticalFlowPyrLK(b, a, there, start.copy(), **options)  # type: ignore[call-overload]
    good = (found[:, 0] == 1) & (returned[:, 0] == 1)
    good &= np.linalg.norm(back[:, 0] - start[:, 0], axis=1) < back_px
    return there[:, 0].astype(np.float64), good


def _padded(image: U8, height: int, width: int) -> U8:
    """Larger at the bottom and on the right."""
    extra = (0, height - image.shape[0], 0, width - image.shape[1])
    return np.asarray(cv2.copyMakeBorder(image, *extra, cv2.BORDER_REPLICATE), np.uint8)


def _off_line(there: F64, rays: F64, b_from_a: F64, k_b: F64) -> F64:
    """(n,) px by which rays (n, 3) in camera b miss the epipolar lines of rays in camera a."""
    lines = rays @ (skew(b_from_a[:3, 3]) @ b_from_a[:3, :3]).T
    across = np.linalg.norm(lines[:, :2] / k_b[[0, 1], [0, 1]], axis=1)
    return np.abs((there * lines).sum(axis=1)) / np.maximum(across, 1e-12)
