"""Resection: the pose of one camera from points whose positions are known, with their uncertainty.

Robust least squares from an expected pose (Gauss-Newton, Cauchy weights whose kernel narrows as the points fit better). If few points fit,
the pose is also estimated without the expected one (RANSAC, OpenCV). A point lies on the ray of the camera that saw it first, and its
distance along that ray has a variance, so an observation counts little along the epipolar line and fully across it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ..geometry import inverse, nearest_rotation, rotation_from_vector, skew, transform
from ..types import F64

KERNEL = 2.5  # sigmas at which an observation starts to count less
INLIER = 3.5  # sigmas up to which an observation is an inlier
LEAST = 8  # fewest points for RANSAC
FEW = 0.5  # below this share of inliers RANSAC is tried as well
STEPS = 10
SETTLED = 0.03  # squared length of the last step, in standard deviations of the pose
MOST_TURN = 0.5  # rad in one step
TURN_STEPS = 8


class Rays(NamedTuple):
    """n points at anchors + exp(log_distance) * directions. anchors, directions: (n, 3). log_distance: (n,), and its variance (n,)."""

    anchors: F64
    directions: F64
    log_distance: F64
    variance: F64

    def positions(self) -> F64:
        """(n, 3)"""
        return self.anchors + np.exp(self.log_distance)[:, None] * self.directions

    def moved(self, rotation: F64, translation: F64, scale: float) -> Rays:
        """The points moved by x -> rotation scale x + translation."""
        return Rays(
            scale * self.anchors @ rotation.T + translation, self.directions @ rotation.T,
            self.log_distance + np.log(scale), self.variance,
        )  # fmt: skip


class View(NamedTuple):
    """n points seen by one camera. pixels: (n, 2). by_distance: (n, 2), their derivative with respect to log_distance. by_point:
    (n, 2, 3), their derivative with respect to the point in the camera's frame. away: (n, 3) from the camera, in the world's axes."""

    pixels: F64
    by_distance: F64
    by_point: F64
    away: F64


@dataclass(frozen=True, eq=False)
class Fit:
    """world_from_camera: (4, 4). covariance: (6, 6) of position, then rotation (a vector from the left), from the scatter of the
    pixels and the prior. inliers: (n,) bool. residuals: (n, 2) px."""

    world_from_camera: F64
    covariance: F64
    inliers: NDArray[np.bool_]
    residuals: F64


def resect(points: Rays, pixels: F64, k: F64, sigma: float, expected: F64, prior: F64) -> Fit:
    """Estimates the pose from which n `points` are seen at `pixels` (n, 2). k: (3, 3). sigma: px. expected: (4, 4), the predicted pose.
    prior: (6, 6), its covariance."""
    information = np.asarray(np.linalg.inv(prior), np.float64)
    fit = _descend(points, pixels, k, sigma, expected, expected, information)
    if len(pixels) >= LEAST and np.count_nonzero(fit.inliers) < FEW * len(pixels):
        found = _from_scratch(points.positions(), pixels, k, 4 * sigma)
        if found is not None:
            other = _descend(points, pixels, k, sigma, found, expected, 1e-3 * information)
            if np.count_nonzero(other.inliers) > 1.2 * np.count_nonzero(fit.inliers) + 2:
                return other
    return fit


def squared_residuals(points: Rays, pixels: F64, k: F64, sigma: float, pose: F64) -> F64:
    """(n,) squared residuals, in sigmas, of n `points` seen at `pixels` (n, 2) from `pose` (4, 4)."""
    seen = view(points, pose, k)
    return _normalised(pixels - seen.pixels, seen.by_distance, points.variance, sigma)[0]


def misfit(points: Rays, pixels: F64, k: F64, sigma: float, pose: F64) -> tuple[float, NDArray[np.bool_]]:
    """Robust cost of n `points` seen at `pixels` (n, 2) from `pose` (4, 4), and which of them fit (n,)."""
    squares = squared_residuals(points, pixels, k, sigma, pose)
    return float(np.log1p(squares / KERNEL**2).sum()), squares <= INLIER**2


def best_resection(
    points: Rays, pixels: F64, k: F64, sigma: float, starts: Sequence[tuple[F64, F64]]
) -> tuple[F64, NDArray[np.bool_]]:
    """The pose (4, 4) of lowest cost among `starts` and the results of `resect` from each of them, and which points fit it (n,). starts:
    poses with their covariances (6, 6); at least one is finite."""
    fits = [resect(points, pixels, k, sigma, *start).world_from_camera for start in starts]
    tried = [pose for pose in (*fits, *(pose for pose, _ in starts)) if np.isfinite(pose).all()]
    costs = [misfit(points, pixels, k, sigma, pose) for pose in tried]
    best = int(np.argmin([cost for cost, _ in costs]))
    return tried[best], costs[best][1]


def turn_between(before: F64, now: F64, steps: int = TURN_STEPS) -> F64:
    """(3, 3) before_from_now of a camera that moves little compared with the distance of the points. now, before: (n, 3) unit vectors to
    the same points in the axes of each camera, n >= 1. steps: of reweighting. Robust."""
    weights = np.ones(len(now))
    for _ in range(steps):
        turn = nearest_rotation(np.einsum("n,ni,nj->ij", weights, before, now))
        off = np.linalg.norm(before - now @ turn.T, axis=1)
        weights = 1 / (1 + (off / max(float(np.median(off)), 1e-6)) ** 2)
    return np.asarray(turn, np.float64)


def two_views(before: F64, now: F64, depth: F64, tolerance: float) -> F64 | None:
    """(4, 4) before_from_now of two cameras from the points that both see. before, now: (n, 2) image points on the plane z = 1. depth: (n,)
    in the first camera, NaN where unknown; it only gives the length of the translation. tolerance: of the image points. None if the
    points do not determine the pose."""
    if len(before) < LEAST:
        return None
    try:
        essential, _ = cv2.findEssentialMat(now, before, np.eye(3), cv2.RANSAC, 0.999, tolerance, 500)
        if essential is None or essential.shape != (3, 3):
            return None
        _, turn, way, _ = cv2.recoverPose(essential, now, before, np.eye(3))
    except cv2.error:  # no sample of the points gave a pose
        return None
    ones = np.ones((len(now), 1))
    a, c, t = np.hstack([before, ones]), np.hstack([now, ones]) @ turn.T, way.ravel()
    aa, cc, ac, at, ct = (a * a).sum(1), (c * c).sum(1), (a * c).sum(1), a @ t, c @ t
    parallax = np.maximum(aa * cc - ac * ac, 1e-15)
    with np.errstate(divide="ignore", invalid="ignore"):
        length = depth * parallax / (cc * at - ac * ct)  # known depth over that of a way of length 1
    good = np.isfinite(length) & (length > 0) & (parallax >= np.median(parallax))
    if not (np.isfinite(turn).all() and good.any()):
        return None
    return transform(turn, float(np.median(length[good])) * t)


def view(points: Rays, world_from_camera: F64, k: F64) -> View:
    """Projects `points` into the camera. Points behind the camera are projected far outside of the image."""
    turn = world_from_camera[:3, :3]
    reach = np.exp(points.log_distance)[:, None] * points.directions
    away = points.anchors + reach - world_from_camera[:3, 3]
    y = away @ turn
    z = np.maximum(y[:, 2], 1e-3 * np.maximum(np.linalg.norm(y, axis=1), 1e-12))
    focal = k[[0, 1], [0, 1]]
    by_point = np.zeros((len(y), 2, 3))
    by_point[:, 0, 0], by_point[:, 1, 1] = focal[0] / z, focal[1] / z
    by_point[:, :, 2] = -focal * y[:, :2] / z[:, None] ** 2
    by_distance = (by_point @ (reach @ turn)[:, :, None])[:, :, 0]
    return View(focal * y[:, :2] / z[:, None] + k[:2, 2], by_distance, by_point, away)


def _descend(points: Rays, pixels: F64, k: F64, sigma: float, start: F64, expected: F64, information: F64) -> Fit:
    pose = start.copy()
    hessian = information
    for count in range(STEPS):
        seen = view(points, pose, k)
        residuals = pixels - seen.pixels
        squares, slack, along = _normalised(residuals, seen.by_distance, points.variance, sigma)
        # wide enough for the start and narrow soon: under a wide kernel, outliers keep the pose from moving
        width = KERNEL * max(1.0, 1.5 * 0.5**count * float(np.sqrt(np.median(squares)))) if len(squares) else KERNEL
        weights = 1 / (1 + squares / width**2) / sigma**2
        turn = pose[:3, :3]
        # a point in the camera moves by -R^T dp + R^T [away]x dtheta
        by_world = seen.by_point @ turn.T
        by_pose = np.concatenate([-by_world, by_world @ skew(seen.away)], axis=2)  # (n, 2, 6)
        projected = (seen.by_distance[:, None] @ by_pose)[:, 0]  # (n, 6)
        flat, whitened = by_pose.reshape(-1, 6), (weights[:, None, None] * by_pose).reshape(-1, 6)
        loose = (weights * slack)[:, None] * projected
        hessian = whitened.T @ flat - loose.T @ projected + information
        off = np.concatenate([expected[:3, 3] - pose[:3, 3], _log(expected[:3, :3] @ turn.T)])
        right = whitened.T @ residuals.ravel() - loose.T @ along + information @ off
        step = np.linalg.solve(hessian, right)
        step *= min(1.0, MOST_TURN / max(float(np.linalg.norm(step[3:])), 1e-12))
        pose = transform(cv2.Rodrigues(step[3:])[0] @ turn, pose[:3, 3] + step[:3])
        if step @ hessian @ step < SETTLED:
            break
    pose = transform(nearest_rotation(pose[:3, :3]), pose[:3, 3])  # rounding errors would grow from image to image
    seen = view(points, pose, k)
    residuals = pixels - seen.pixels
    squares, _, _ = _normalised(residuals, seen.by_distance, points.variance, sigma)
    inliers = squares <= INLIER**2
    # the measured scatter of the inliers, but never less than assumed
    freedom = 2.0 * np.count_nonzero(inliers) - 6.0
    excess = max(1.0, float(squares[inliers].sum()) / freedom) if freedom > 0 else 1.0
    return Fit(pose, excess * np.asarray(np.linalg.inv(hessian), np.float64), inliers, residuals)


def _normalised(residuals: F64, by_distance: F64, variance: F64, sigma: float) -> tuple[F64, F64, F64]:
    """Squared residuals (n,), normalised by (s2 I + v g g^T)^-1 (Sherman-Morrison), where v is the variance of the log distance and g its
    direction in the image; the weight of the residual along g that is removed (n,); and the residual along g (n,)."""
    slack = variance / (sigma**2 + variance * (by_distance * by_distance).sum(axis=1))
    along = (by_distance * residuals).sum(axis=1)
    squares = ((residuals * residuals).sum(axis=1) - slack * along**2) / sigma**2
    return np.maximum(squares, 0.0), slack, along


def _log(rotation: F64) -> F64:
    """(3,) rotation vector of one (3, 3); for a single matrix OpenCV is several times as fast as the batched function."""
    return np.asarray(cv2.Rodrigues(rotation)[0], np.float64).ravel()


def _from_scratch(positions: F64, pixels: F64, k: F64, tolerance: float) -> F64 | None:
    try:
        ok, turn, place, _ = cv2.solvePnPRansac(
            positions,
            pixels,
            k,
            None,
            iterationsCount=200,
            reprojectionError=tolerance,
            confidence=0.999,
            flags=cv2.SOLVEPNP_EPNP,
        )
    except cv2.error:  # no sample of the points gave a pose
        return None
    if not ok or not (np.isfinite(turn).all() and np.isfinite(place).all()):
        return None
    return inverse(transform(rotation_from_vector(turn.ravel()), place.ravel()))
