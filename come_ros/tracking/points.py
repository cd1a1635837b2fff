"""Points that the odometry holds on to between windows: those that a window knows, and those that it has not come to yet.

A new point is given a distance by its neighbours when it is first seen; what the camera's own motion says of it afterwards narrows that
(an inverse-depth filter, as Civera et al., T-RO 2008), so that a fast turn does not run out of points before the next window comes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..types import F64, I64, Landmarks, Observations
from .resection import Fit, Rays, view

GUESSED_SIGMA = 0.4  # of the log distance of a point whose neighbours tell it
KNOWN_SIGMA = 0.02  # below it a point's own filter rests: motion between two images is not known better
GIVEN_SIGMA = 0.1  # the same of a point that a window gave: it has better reasons
LONGEST_STEP = 0.5  # of the log distance by one image
CAUTION = 1.5  # sigmas: the poses that the filter takes for true are none
NEIGHBOURS, NEAR = 3, 10.0  # how many neighbours tell a distance, and px below which one is as good as another


class Points(NamedTuple):
    """ids: (n,) int64, ascending. rays: where they lie. given: (n,) bool, by a window."""

    ids: I64
    rays: Rays
    given: NDArray[np.bool_]

    @staticmethod
    def none() -> Points:
        empty = np.empty((0, 3))
        return Points(np.empty(0, np.int64), Rays(empty, empty, np.empty(0), np.empty(0)), np.empty(0, bool))

    @staticmethod
    def of(landmarks: Landmarks) -> Points:
        """Those of a window; what is not finite is left out."""
        ray = landmarks.positions - landmarks.anchors
        distance = np.linalg.norm(ray, axis=1)
        good = np.isfinite(distance) & (distance > 0) & np.isfinite(landmarks.log_sigma)
        ray, distance = ray[good], distance[good]
        rays = Rays(landmarks.anchors[good], ray / distance[:, None], np.log(distance), landmarks.log_sigma[good] ** 2)
        return Points(landmarks.ids[good], rays, np.ones(len(distance), bool))

    def at(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Points:
        """Some of them."""
        return Points(self.ids[rows], Rays(*(a[rows] for a in self.rays)), self.given[rows])

    def joined(self, newer: Points) -> Points:
        """With those of `newer`, which replace the ones of the same id."""
        old = self.at(~np.isin(self.ids, newer.ids))
        rays = Rays(*(np.concatenate(pair) for pair in zip(old.rays, newer.rays, strict=True)))
        both = Points(np.concatenate([old.ids, newer.ids]), rays, np.concatenate([old.given, newer.given]))
        return both.at(np.argsort(both.ids))

    def moved(self, rotation: F64, translation: F64, scale: float) -> Points:
        """After x -> rotation scale x + translation."""
        return self._replace(rays=self.rays.moved(rotation, scale=scale, translation=translation))

    def learnt(self, rows: NDArray[np.intp], fit: Fit, k: F64, sigma: float) -> Points:
        """After an image in which `fit` is about the points `rows`: distances that are not well known are corrected by the residuals, and
        points that no window gave are forgotten if they did not fit. k: (3, 3). sigma: px."""
        own = fit.inliers & (self.rays.variance[rows] > np.where(self.given[rows], GIVEN_SIGMA, KNOWN_SIGMA) ** 2)
        which = rows[own]
        anchors, directions, log_distance, variance = self.rays
        by_distance = view(Rays(*(a[which] for a in self.rays)), fit.world_from_camera, k).by_distance
        noise = (CAUTION * sigma) ** 2
        total = noise + variance[which] * (by_distance * by_distance).sum(axis=1)
        step = variance[which] / total * (by_distance * fit.residuals[own]).sum(axis=1)
        log_distance, variance = log_distance.copy(), variance.copy()
        log_distance[which] += np.clip(step, -LONGEST_STEP, LONGEST_STEP)
        variance[which] *= noise / total
        wrong = np.zeros(len(self.ids), bool)
        wrong[rows[~fit.inliers & ~self.given[rows]]] = True
        return self._replace(rays=Rays(anchors, directions, log_distance, variance)).at(~wrong)


def guessed(seen: Observations, known: NDArray[np.intp], depth: F64, world_from_camera: F64, k: F64) -> Points:
    """Points for all that is `seen` but not `known` (m,) rows of it, whose z-depth (m,) tells that of the others. m >= 1."""
    new = np.setdiff1d(np.arange(len(seen)), known)
    pixels, told = seen.pixels[new], seen.pixels[known]
    away = (pixels**2).sum(axis=1)[:, None] + (told**2).sum(axis=1) - 2.0 * pixels @ told.T
    count = min(NEIGHBOURS, len(known))
    near = np.argpartition(away, count - 1, axis=1)[:, :count]
    weight = 1 / (np.maximum(np.take_along_axis(away, near, axis=1), 0.0) + NEAR**2)
    log_depth = (weight * np.log(depth)[near]).sum(axis=1) / weight.sum(axis=1)
    ray = np.column_stack([(pixels - k[:2, 2]) / k[[0, 1], [0, 1]], np.ones(len(pixels))])
    length = np.linalg.norm(ray, axis=1)
    rays = Rays(
        np.tile(world_from_camera[:3, 3], (len(new), 1)), ray / length[:, None] @ world_from_camera[:3, :3].T,
        log_depth + np.log(length), np.full(len(new), GUESSED_SIGMA**2),
    )  # fmt: skip
    return Points(seen.ids[new], rays, np.zeros(len(new), bool))
