"""Points that the odometry uses between windows: those of the last window, and newer ones that no window has reconstructed yet.

A new point gets its first distance from its neighbours. The camera's motion then narrows that distance (an inverse-depth filter, as in
Civera et al., T-RO 2008), so that a fast turn does not run out of points before the next window is ready.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..types import F64, I64, Landmarks, Observations
from .resection import Fit, Rays, view

GUESSED_SIGMA = 0.4  # of the log distance of a point that has it from its neighbours
KNOWN_SIGMA = 0.02  # the filter stops below this sigma: motion between two images is not known better
GIVEN_SIGMA = 0.1  # the same for a point of a window, whose distance has more evidence
LONGEST_STEP = 0.5  # largest change of the log distance per image
CAUTION = 1.5  # pixel noise is multiplied by this, since the filter assumes exact poses
NEIGHBOURS, NEAR = 3, 10.0  # neighbours that give a distance, and px within which they count alike


class Points(NamedTuple):
    """ids: (n,) int64, ascending. rays: their positions. given: (n,) bool, whether a window gave the point."""

    ids: I64
    rays: Rays
    given: NDArray[np.bool_]

    @staticmethod
    def none() -> Points:
        empty = np.empty((0, 3))
        return Points(np.empty(0, np.int64), Rays(empty, empty, np.empty(0), np.empty(0)), np.empty(0, bool))

    @staticmethod
    def of(landmarks: Landmarks) -> Points:
        """The points of a window; points that are not finite are left out."""
        ray = landmarks.positions - landmarks.anchors
        distance = np.linalg.norm(ray, axis=1)
        good = np.isfinite(distance) & (distance > 0) & np.isfinite(landmarks.log_sigma)
        ray, distance = ray[good], distance[good]
        rays = Rays(landmarks.anchors[good], ray / distance[:, None], np.log(distance), landmarks.log_sigma[good] ** 2)
        return Points(landmarks.ids[good], rays, np.ones(len(distance), bool))

    def at(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Points:
        """The points of these rows."""
        return Points(self.ids[rows], Rays(*(a[rows] for a in self.rays)), self.given[rows])

    def joined(self, newer: Points) -> Points:
        """These points and those of `newer`, which replace points of the same id."""
        old = self.at(~np.isin(self.ids, newer.ids))
        rays = Rays(*(np.concatenate(pair) for pair in zip(old.rays, newer.rays, strict=True)))
        both = Points(np.concatenate([old.ids, newer.ids]), rays, np.concatenate([old.given, newer.given]))
        return both.at(np.argsort(both.ids))

    def moved(self, rotation: F64, translation: F64, scale: float) -> Points:
        """The points moved by x -> rotation scale x + translation."""
        return self._replace(rays=self.rays.moved(rotation, scale=scale, translation=translation))

    def learnt(self, rows: NDArray[np.intp], fit: Fit, k: F64, sigma: float) -> Points:
        """The points updated with one image: residuals correct the distances that are not well known, and points that no window gave are
        dropped if they did not fit. rows: the points of `fit`. k: (3, 3). sigma: px."""
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
    """New points for the observations `seen` that are not `known`. known: (m,) rows of `seen`, m >= 1. depth: (m,) z-depth of those
    rows, from which the others take theirs."""
    new = np.setdiff1d(np.arange(len(seen)), known)
    pixels, told = seen.steady[new], seen.steady[known]
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
