"""Points that are recognised by their descriptors, across gaps that optical flow cannot bridge.

SIFT (Lowe, IJCV 2004) from OpenCV. A pair must pass the ratio test, both points must be each other's nearest, and the pair must fit one
epipolar geometry with the others. Descriptors are whole numbers, so their products are exact and the same on any number of threads.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ..types import F32, I64, U8

Ints = NDArray[np.intp]
Mask = NDArray[np.bool_]

MOST = 600  # points per image
CONTRAST = 0.01  # a quarter of Lowe's threshold: a nearly plain wall keeps some points
RATIO = 0.8  # largest ratio of the distances to the nearest and the second nearest
LEAST_PAIRS = 12  # fewer pairs cannot confirm each other
MAX_OFF = 2.0  # px from the epipolar line
REMEMBERED = 8  # newest described images in which points are searched for


class Described(NamedTuple):
    """Points with their descriptors. ids: (n,) int64. image: (n,) number of the image in which each was last seen. points: (n, 2)
    float32, px in that image. descriptors: (n, 128) float32."""

    ids: I64
    image: I64
    points: F32
    descriptors: F32

    @staticmethod
    def none() -> Described:
        empty = np.empty(0, np.int64)
        return Described(empty, empty, np.empty((0, 2), np.float32), np.empty((0, 128), np.float32))

    def at(self, rows: Ints | Mask) -> Described:
        """The points of these rows."""
        return Described(self.ids[rows], self.image[rows], self.points[rows], self.descriptors[rows])

    def joined(self, newer: Described) -> Described:
        """These points and those of `newer`, which replace points of the same id. Points not seen for long are dropped."""
        recent = newer.image.max(initial=-1) - REMEMBERED
        old = self.at(~np.isin(self.ids, newer.ids) & (self.image > recent))
        return Described(
            np.concatenate([old.ids, newer.ids]), np.concatenate([old.image, newer.image]),
            np.concatenate([old.points, newer.points]), np.concatenate([old.descriptors, newer.descriptors]),
        )  # fmt: skip


def describe(image: U8, border: int, first_id: int, number: int) -> Described:
    """The strongest points of an image (H, W), at least `border` px from its edge. Each position occurs once. Ids start at `first_id`,
    strongest first."""
    keypoints, descriptors = cv2.SIFT_create(MOST, 3, CONTRAST).detectAndCompute(image, None)  # type: ignore[attr-defined]
    if descriptors is None or not len(keypoints):
        return Described.none()
    points = np.array([k.pt for k in keypoints], np.float32)
    order = np.lexsort((points[:, 0], points[:, 1], -np.array([k.response for k in keypoints])))
    _, first = np.unique(points[order], axis=0, return_index=True)  # a point with two orientations is listed twice
    order = order[np.sort(first)]
    most = np.array(image.shape[::-1]) - 1 - border
    order = order[((points[order] >= border) & (points[order] <= most)).all(axis=1)]
    ids = first_id + np.arange(len(order))
    return Described(ids, np.full(len(order), number), points[order], np.rint(descriptors[order]).astype(np.float32))


def pairs(known: Described, now: Described) -> tuple[Ints, Ints]:
    """Rows (m,) of `known` and (m,) of `now` (one image) that look alike: each other's nearest, and much nearer than the second."""
    if len(known.ids) < 2 or len(now.ids) < 2:
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    a, b = now.descriptors, known.descriptors
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    two = np.argpartition(squares, 1, axis=1)[:, :2]
    nearest, second = np.take_along_axis(squares, two, axis=1).T
    there, here = two[:, 0], np.arange(len(a))
    good = (nearest < RATIO**2 * second) & (squares.argmin(axis=0)[there] == here)
    return there[good], here[good]


def consistent(before: F32, after: F32) -> Mask:
    """(n,) whether each pair of points (n, 2) fits one epipolar geometry; all False if there are too few pairs to decide."""
    none = np.zeros(len(before), bool)
    if len(before) < LEAST_PAIRS:
        return none
    try:
        _, fits = cv2.findFundamentalMat(np.float64(before), np.float64(after), cv2.USAC_MAGSAC, MAX_OFF, 0.999, 1000)
    except cv2.error:  # no sample of the points gave one
        return none
    good = none if fits is None else fits.ravel() > 0
    return good if np.count_nonzero(good) >= LEAST_PAIRS else none


def warped(points: F32, before: F32, after: F32) -> F32 | None:
    """Predicts where `points` (n, 2) are, from pairs (m, 2), (m, 2), as if the camera only turned. None if the pairs do not determine
    it."""
    if len(before) < LEAST_PAIRS or not len(points):
        return None
    homography, _ = cv2.findHomography(np.float64(before), np.float64(after), cv2.RANSAC, 3 * MAX_OFF)
    if homography is None or not np.isfinite(homography).all():
        return None
    moved = cv2.perspectiveTransform(np.float64(points)[:, None], homography)[:, 0]
    return np.asarray(moved, np.float32) if np.isfinite(moved).all() else None
