"""Two motions among the tracks of a keyframe: that of the camera, and that of something that moves by itself.

Distances of points are hardly known at first, so a point is free along its epipolar line, and a compromise between the two motions fits
nearly all tracks loosely, but few closely. So where too little of the image is fitted closely, poses are tried from parts of it: each
border, and what does not fit the best pose so far. Nothing is concluded unless the rest follows another motion together. Unless something
moved shortly before, it must lie together, too: a thing covers a region of the image, while bad tracks, of which any pose fits some, lie
among good ones (on a nearly plain wall up to half of all tracks are bad). Then the camera's motion is the one that more of the image
follows; if both follow many, the one that is closer to the predicted pose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..geometry import vector_from_rotation
from ..tracking.resection import INLIER, LEAST, Rays, resect, squared_residuals
from ..types import F64

Mask = NDArray[np.bool_]

GRID = 8  # cells along each side of the image
NEAR = 1.4  # sigmas up to which a point fits closely
CLOSE = 1.5  # sigmas: a point further off costs no more than one at that distance
FITS_CLOSELY = 0.6  # share of the image from which no other motion is looked for
BORDER = 1 / 3  # of the image, at each side
COMPARABLE = 0.3  # share of the image that follows the second motion, relative to the first, from which the predicted pose decides
# The second motion: of so many points, of which so many fit within so many sigmas
LEAST_SECOND, SECOND_SHARE, SECOND_NEAR = 20, 0.6, 2.0
# Where nothing moved before: that share times the share of such points among the nearest neighbours of each. In rooms where nothing moves
# it is .16 to .44, where a thing comes into view .5 to 1.
LEAST_COHERENCE, NEIGHBOURS = 0.47, 5


class Motions(NamedTuple):
    """pose: (4, 4) world_from_camera. fits: (n,) the points that belong to it. moving: (n,) those of the other motion."""

    pose: F64
    fits: Mask
    moving: Mask


def even_weights(pixels: F64, shape: tuple[int, ...]) -> F64:
    """(n,) weights of points at pixels (n, 2) of an image (H, W, ...): cells of a grid count alike, and all sum to 1."""
    column, row = np.clip(pixels * GRID / np.array(shape[1::-1]), 0, GRID - 1).astype(np.intp).T
    cell = row * GRID + column
    weights = 1 / np.bincount(cell)[cell]
    return np.asarray(weights / weights.sum(), np.float64)


def together(pixels: F64, some: Mask, rest: Mask) -> float:
    """Share of `some` points (n,) among the NEIGHBOURS nearest ones of each of them, of those in `some` or in the `rest` (n,); 0 if there
    are too few. pixels: (n, 2)."""
    either = np.flatnonzero(some | rest)
    if not some.any() or len(either) <= NEIGHBOURS:
        return 0.0
    apart = np.linalg.norm(pixels[some][:, None] - pixels[either], axis=2)
    apart[np.arange(len(apart)), np.searchsorted(either, np.flatnonzero(some))] = np.inf  # from itself
    return float(some[either[np.argpartition(apart, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]]].mean())


def two_motions(
    points: Rays,
    pixels: F64,
    k: F64,
    sigma: float,
    shape: tuple[int, ...],
    pose: F64,
    starts: Sequence[tuple[F64, F64]],
    unknown: F64,
    moved_before: bool = False,
) -> Motions | None:
    """The motions of the camera and of something else, where n `points` follow two; otherwise None.

    pixels: (n, 2), where the points are seen in an image of `shape` (H, W, ...). k: (3, 3). sigma: px. pose: (4, 4), the best one so far
    for all points. starts: further poses with their covariances (6, 6), the predicted one first. unknown: (6, 6), covariance of a pose
    about which nothing is known. moved_before: whether something moved in the last keyframes, so that another motion is likely."""
    if len(pixels) < LEAST_SECOND:
        return None
    search = _Search(points, pixels, k, sigma, even_weights(pixels, shape), pose)
    before = search.cost
    if search.closely >= FITS_CLOSELY:
        return None
    for start, prior in starts:
        search.consider(resect(points, pixels, k, sigma, start, prior).world_from_camera)
        search.consider(start)
    for some in _borders(pixels, shape):
        search.try_some(some, unknown)
    search.try_some(~search.fits, unknown)
    other = search.another(unknown, 0.0 if moved_before else LEAST_COHERENCE)
    if other is None or search.cost > before:
        return None
    second, moving = other
    first_share, second_share = (float(search.weights[rows].sum()) for rows in (search.fits, moving))
    by_prediction = [_squared_distance(p, *starts[0]) for p in (search.pose, second)]
    if second_share > COMPARABLE * first_share and by_prediction[1] < by_prediction[0]:
        return Motions(second, moving, search.fits)
    return Motions(search.pose, search.fits, moving)


def _squared_distance(pose: F64, expected: F64, prior: F64) -> float:
    """Squared Mahalanobis distance of a pose from an expected one with covariance `prior`."""
    turn = vector_from_rotation(pose[:3, :3] @ expected[:3, :3].T)
    off = np.concatenate([pose[:3, 3] - expected[:3, 3], turn])
    return float(off @ np.linalg.solve(prior, off))


class _Search:
    """The best pose so far, its cost, and which points fit it."""

    def __init__(self, points: Rays, pixels: F64, k: F64, sigma: float, weights: F64, start: F64) -> None:
        self.points, self.pixels, self.k, self.sigma, self.weights = points, pixels, k, sigma, weights
        self.cost = np.inf
        self.consider(start)

    def consider(self, pose: F64) -> bool:
        """Whether `pose` is the best one now."""
        squares = squared_residuals(self.points, self.pixels, self.k, self.sigma, pose)
        cost = float(self.weights @ np.minimum(squares / CLOSE**2, 1.0))
        if not np.isfinite(pose).all() or not cost < self.cost:
            return False
        self.pose, self.cost = pose, cost
        self.fits = squares <= INLIER**2
        self.closely = float(self.weights @ (squares <= NEAR**2))
        return True

    def try_some(self, some: Mask, unknown: F64) -> None:
        """By some of the points alone, then by all that fit what they say."""
        if np.count_nonzero(some) >= LEAST and self.consider(self._resected(some, unknown)):
            self.consider(self._resected(self.fits, unknown))

    def another(self, unknown: F64, least_coherence: float) -> tuple[F64, Mask] | None:
        """Another motion (4, 4) that points which do not fit follow together, and these points (n,)."""
        others = ~self.fits
        if np.count_nonzero(others) >= LEAST_SECOND:
            pose = self._resected(others, unknown)
            squares = squared_residuals(_some(self.points, others), self.pixels[others], self.k, self.sigma, pose)
            share = (squares <= SECOND_NEAR**2).mean()
            others[others] = squares <= INLIER**2
            if share >= SECOND_SHARE and share * together(self.pixels, others, self.fits) >= least_coherence:
                return pose, others
        return None

    def _resected(self, some: Mask, prior: F64) -> F64:
        return resect(
            _some(self.points, some), self.pixels[some], self.k, self.sigma, self.pose, prior
        ).world_from_camera


def _some(points: Rays, rows: Mask) -> Rays:
    return Rays(*(a[rows] for a in points))


def _borders(pixels: F64, shape: tuple[int, ...]) -> Iterator[Mask]:
    for axis, length in enumerate(shape[1::-1]):
        yield pixels[:, axis] < BORDER * length
        yield pixels[:, axis] > (1 - BORDER) * length
