"""Decides whether two keyframes show the same place, and estimates their relative pose. Descriptors and two kinds of geometry must agree.

Features are matched by their descriptors (ratio test, both ways). Two estimates must give the same rotation: one without depth, from an
essential matrix or, if the camera only turned, a homography; and one with depth, from two resections, each of one view's points in the
other (OpenCV, RANSAC). A bundle adjustment of both views then estimates the similarity between them.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .. import geometry
from ..types import F64
from .graph import Similarities, jacobians_of_points
from .view import View

RATIO = 0.8
LEAST_MATCHES = 25
LEAST_INLIERS, LEAST_SHARE = 22, 0.5  # of the matches
PIXELS = 3.0  # reprojection of an inlier
EPIPOLAR_PIXELS = 1.5
MOST_DISAGREEMENT = np.deg2rad(4.0)  # between the rotations
LEAST_SPREAD = 0.05  # standard deviation of the inliers' rays in the narrower direction
PLANE = 0.05  # largest difference of a homography to a rotation
DEPTH_SIGMA = 0.1  # of the log of a network's depth at a pixel
MOST_SCALE = 3.0  # between the two views
STEPS = 12
# Least error of such an edge: rad, share of the depth, log scale; factor on the sigmas from the scatter of pixels; and additional errors
# per distance between the views in scene depths, since wrong depth looks like a rotation. Measured on rooms.
ROTATION_FLOOR, POSITION_FLOOR, SCALE_FLOOR, CAUTION = np.deg2rad(0.4), 0.012, 0.03, 3.0
APART_ROTATION, APART_POSITION = 0.1, 0.25


@dataclass(frozen=True, eq=False)
class Match:
    """first_from_second: one similarity. sigma: (3,) of its rotation (rad), translation (units of the first view) and log scale. inliers:
    number of matches that fit, out of `matches`. reason: why this is not the same place, "" if it is."""

    first_from_second: Similarities | None
    sigma: F64
    inliers: int
    matches: int
    reason: str


def compare(first: View, second: View) -> Match:
    """Decides whether `first` and `second` show the same place."""
    a, b = matched(first, second)
    count = len(a)

    def refused(reason: str, inliers: int = 0) -> Match:
        return Match(None, np.full(3, np.inf), inliers, count, reason)

    if count < LEAST_MATCHES:
        return refused("few descriptors match")
    rays_a, rays_b = first.rays[a].astype(np.float64), second.rays[b].astype(np.float64)
    focal = min(first.focal, second.focal)
    turns = [_by_essential(rays_a, rays_b, EPIPOLAR_PIXELS / focal), _by_homography(rays_a, rays_b, PIXELS / focal)]
    without_depth = [turn for turn in turns if turn is not None]
    if not without_depth:
        return refused("no epipolar geometry fits")
    points_a, points_b = first.points()[a], second.points()[b]
    a_from_b = _resected(points_b, rays_a, PIXELS / focal)
    b_from_a = _resected(points_a, rays_b, PIXELS / focal)
    if a_from_b is None or b_from_a is None:
        return refused("no resection fits")
    by_depth = a_from_b[:3, :3], b_from_a[:3, :3].T
    apart = [max(geometry.rotation_angle(turn.T @ np.stack(by_depth))) for turn in without_depth]
    if max(min(apart), geometry.rotation_angle(by_depth[0].T @ by_depth[1])) > MOST_DISAGREEMENT:
        return refused("two kinds of geometry disagree")
    found, sigma, inliers = _refined(points_a, points_b, rays_a, rays_b, geometry.inverse(b_from_a), focal)
    good = int(np.count_nonzero(inliers))
    if good < LEAST_INLIERS or good < LEAST_SHARE * count:
        return refused("few matches fit", good)
    if min(np.linalg.svd(r[inliers] - r[inliers].mean(axis=0), compute_uv=False)[1] for r in (rays_a, rays_b)) < (
        LEAST_SPREAD * np.sqrt(good)
    ):
        return refused("what fits is too small a part of the image", good)
    if abs(found.log_scale[0]) > np.log(MOST_SCALE):
        return refused("depths disagree", good)
    depth = first.usual_depth
    sigma = CAUTION * sigma + np.array([ROTATION_FLOOR, POSITION_FLOOR * depth, SCALE_FLOOR])
    way = float(np.linalg.norm(found.translation[0]))
    sigma = np.hypot(sigma, [APART_ROTATION * way / depth, APART_POSITION * way, 0.0])
    return Match(found, sigma, good, count, "")


def matched(first: View, second: View) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows of both whose descriptors match: each other's nearest, and clearly nearer than the second nearest."""
    nothing = np.empty(0, np.intp)
    if min(len(first), len(second)) < 2:
        return nothing, nothing
    # square roots of the histograms (RootSIFT: Arandjelovic and Zisserman, CVPR 2012)
    x, y = (
        np.sqrt(d / np.maximum(d.sum(axis=1, keepdims=True), 1e-9))
        for d in (first.descriptors.astype(np.float32), second.descriptors.astype(np.float32))
    )
    likeness = x @ y.T
    best = likeness.argmax(axis=1)
    rows = np.arange(len(x))
    top = likeness[rows, best]
    likeness[rows, best] = -1.0
    distance, next_one = (np.sqrt(np.maximum(2 - 2 * v, 0.0)) for v in (top, likeness.max(axis=1)))
    likeness[rows, best] = top
    good = (likeness.argmax(axis=0)[best] == rows) & (distance < RATIO * next_one)
    return rows[good], best[good]


def _by_essential(rays_a: F64, rays_b: F64, tolerance: float) -> F64 | None:
    """(3, 3) rotation a_from_b from an essential matrix; None if there is none."""
    try:
        essential, mask = cv2.findEssentialMat(rays_b, rays_a, np.eye(3), cv2.USAC_MAGSAC, 0.999, tolerance)
        if essential is None or essential.shape != (3, 3):
            return None
        _, turn, _, _ = cv2.recoverPose(essential, rays_b, rays_a, np.eye(3), mask=mask.copy())
    except cv2.error:
        return None
    return np.asarray(turn, np.float64)


def _by_homography(rays_a: F64, rays_b: F64, tolerance: float) -> F64 | None:
    """(3, 3) rotation a_from_b of a camera that only turned; None if it did not."""
    found, inliers = cv2.findHomography(rays_b, rays_a, cv2.RANSAC, tolerance)
    if found is None or np.count_nonzero(inliers) < LEAST_INLIERS or not np.linalg.det(found) > 0:
        return None
    matrix = found / np.cbrt(np.linalg.det(found))
    turn = geometry.nearest_rotation(matrix)
    return turn if np.abs(matrix - turn).max() < PLANE else None


def _resected(points: F64, rays: F64, tolerance: float) -> F64 | None:
    """(4, 4) camera_from_points of a camera that sees `points` (n, 3) along `rays` (n, 2); None if it is not determined."""
    known = np.isfinite(points[:, 2])
    if np.count_nonzero(known) < LEAST_INLIERS:
        return None
    try:
        ok, turn, place, inliers = cv2.solvePnPRansac(
            points[known], rays[known], np.eye(3), None, iterationsCount=200, reprojectionError=tolerance,
            confidence=0.999, flags=cv2.SOLVEPNP_EPNP,
        )  # fmt: skip
    except cv2.error:  # no sample of the points gave a pose
        return None
    if not ok or inliers is None or len(inliers) < LEAST_INLIERS // 2:
        return None
    pose = geometry.transform(geometry.rotation_from_vector(turn.ravel()), place.ravel())
    return pose if np.isfinite(pose).all() else None


def _refined(
    points_a: F64, points_b: F64, rays_a: F64, rays_b: F64, start: F64, focal: float
) -> tuple[Similarities, F64, NDArray[np.bool_]]:
    """The similarity a_from_b that best fits the points and depths of both views (Gauss-Newton, Cauchy weights), its sigma (3,), and which
    matches fit (n,).

    start: (4, 4) a_from_b in units of a.
    """
    to_a = points_b @ start[:3, :3].T
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.log((points_a[:, 2] - start[2, 3]) / to_a[:, 2])
    scale = geometry.finite_median(ratio, 0.0)
    s = Similarities(np.array([scale]), start[None, :3, :3].copy(), start[None, :3, 3].copy())
    good_a, good_b = np.isfinite(points_a[:, 2]), np.isfinite(points_b[:, 2])
    both = good_a & good_b
    normal = np.eye(7)
    for _ in range(STEPS):
        rows, errors = _terms(s, points_a, points_b, rays_a, rays_b, focal, good_a, good_b, both)
        weight = 1 / (1 + errors**2)
        normal = (rows * weight[:, None]).T @ rows + 1e-9 * np.eye(7)
        step = -np.linalg.solve(normal, rows.T @ (weight * errors))
        s = Similarities(
            s.log_scale + step[6], geometry.rotation_from_vector(step[:3])[None] @ s.rotation, s.translation + step[3:6]
        )
        if np.abs(step).max() < 1e-7:
            break
    to_a, to_b = _moved(s, points_b), _moved(s.inverse(), points_a)
    inliers = _fits(to_a, rays_a, focal) | ~good_b
    inliers &= _fits(to_b, rays_b, focal) | ~good_a
    inliers &= good_a | good_b
    covariance = np.linalg.inv(normal)
    blocks = [np.sqrt(np.trace(covariance[i : i + 3, i : i + 3]) / 3) for i in (0, 3)]
    return s, np.array([*blocks, np.sqrt(covariance[6, 6])]), inliers


def _terms(
    s: Similarities, points_a: F64, points_b: F64, rays_a: F64, rays_b: F64, focal: float,
    good_a: NDArray[np.bool_], good_b: NDArray[np.bool_], both: NDArray[np.bool_],
) -> tuple[F64, F64]:  # fmt: skip
    """Derivatives (m, 7) with respect to the steps of graph.moved, and errors (m,) in sigmas: reprojection in both views, and depth."""
    forward, backward = jacobians_of_points(s, points_b[good_b], points_a[good_a])
    parts, errors = [], []
    for (moved, by_step), rays in ((forward, rays_a[good_b]), (backward, rays_b[good_a])):
        z = np.maximum(moved[:, 2], 1e-3)
        projected = moved[:, :2] / z[:, None]
        for axis in (0, 1):
            parts.append(focal * (by_step[:, axis] - projected[:, axis, None] * by_step[:, 2]) / z[:, None])
            errors.append(focal * (projected[:, axis] - rays[:, axis]))
    moved, by_step = (v[both[good_b]] for v in forward)
    z = np.maximum(moved[:, 2], 1e-3)
    parts.append(by_step[:, 2] / z[:, None] / DEPTH_SIGMA)
    errors.append(np.log(z / points_a[both, 2]) / DEPTH_SIGMA)
    return np.concatenate(parts), np.concatenate(errors)


def _moved(s: Similarities, points: F64) -> F64:
    return s.scale[0] * points @ s.rotation[0].T + s.translation[0]


def _fits(points: F64, rays: F64, focal: float) -> NDArray[np.bool_]:
    with np.errstate(invalid="ignore", divide="ignore"):
        off = np.linalg.norm(points[:, :2] / points[:, 2:] - rays, axis=1)
    return (points[:, 2] > 0) & (off * focal < PIXELS)
