"""Metres from the camera's height over the floor: the floor is the lowest large plane of the cloud, about level."""

from __future__ import annotations

from collections import Counter, deque

import numpy as np
from numpy.typing import NDArray

from ..alignment import weighted_median
from ..geometry import SIGMA_OF_MAD, unproject
from ..types import F64
from .reading import Seen

POINTS = 1500  # of each frame
TILT = np.deg2rad(12.0)  # sigma of the floor's, where the first camera was only taken to be level
RINGS, DIRECTIONS = (1.0, 2.0), 8  # tilts that are tried then, in those sigmas, and directions of each
# By which the model's surface of a floor leans here and there; where level is known
SLOPE, LEVEL_SLOPE = np.deg2rad(54.0), np.deg2rad(36.0)
BIN = 0.04  # of the logarithm of a point's depth below the camera
NOISE = 0.1  # sigma of that logarithm for points of the floor: the model's depth errs so much
DEEPER = 0.3  # a point so much deeper is below the floor
STRETCH = 0.3  # sigma of the exponent by which the model's depth grows with the true one
LEAST_POINTS = 50
MIN_SHARE, MOST_BELOW = 0.06, 0.04  # of the points, that must lie on the floor, and that may lie below it
LEAST_HEIGHT = 0.12  # of the scene's depth
ITERATIONS = 10
INDEPENDENT = 20  # errors of the model's depth, however many pixels
MEMORY = 60  # windows
SAME = 0.25  # of the logarithm: heights so near are over the same floor
OFTEN = 0.5  # of the most that speaks for any height
# Sigma of the height as one window has it, if the floor has that share of the points; less floor, more sigma
WINDOW_SIGMA, FULL_SHARE = 0.1, 0.25
WINDOWS_ALIKE = 6  # so many in a row err alike
# Sigmas of the source as such, and by which the model's unit moves from keyframe to keyframe
FLOOR, DRIFT = 0.04, 0.004
LOST = 0.3  # of what is known after windows that share no frame


class HeightSource:
    """log_metres, sigma: NaN while unknown. readings: windows in which a floor was found. stamp_ns: of the last of them. left_out:
    keyframes without, by reason.

    What looks like a floor in one window may be a table: of all heights that were found lately, the largest one that was found often
    counts.
    """

    def __init__(self, height: float) -> None:
        """height: m, of the first camera over the floor."""
        self._height = height
        self.log_metres = self.sigma = float("nan")
        self.readings = self.stamp_ns = 0
        self.left_out = Counter[str]()
        self._clear()

    def _clear(self) -> None:
        self._found: deque[tuple[float, float]] = deque(maxlen=MEMORY)  # height, and the floor's share of the points

    def observe(self, seen: Seen, lost: bool = False) -> None:
        """lost: as in MetricScale."""
        if lost:
            self._clear()
            self.sigma = float(np.hypot(self.sigma, LOST))
        self.sigma = float(np.hypot(self.sigma, DRIFT * np.sqrt(len(seen.frames) / seen.cameras)))
        found = _look(seen)
        if found is None:
            self.left_out["no floor in sight"] += len(seen.frames) // seen.cameras
            return
        self._found.append(found)
        self._estimate(seen)

    def _estimate(self, seen: Seen) -> None:
        heights, shares = np.array(self._found).T
        near = np.abs(heights[:, None] - heights[None]) < SAME
        support = near @ shares
        often = np.flatnonzero(support >= OFTEN * support.max())
        members = near[often[np.argmax(heights[often])]]
        height = weighted_median(heights[members], shares[members])
        off = np.abs(heights[members] - height)
        one = WINDOW_SIGMA * np.sqrt(FULL_SHARE / min(FULL_SHARE, float(shares[members].mean())))
        spread = max(SIGMA_OF_MAD * weighted_median(off, shares[members]), one)
        independent = max(1.0, np.count_nonzero(members) / WINDOWS_ALIKE)
        self.log_metres = float(np.log(self._height) - height)
        self.sigma = float(np.sqrt(FLOOR**2 + spread**2 / independent))
        self.readings += 1
        self.stamp_ns = seen.frames[-1].stamp_ns


def _look(seen: Seen) -> tuple[float, float] | None:
    """See `floor`, of the first camera's frames of a window."""
    slope = LEVEL_SLOPE if seen.level else SLOPE
    points, level = [], []
    first = slice(None, None, seen.cameras)
    for depth, k, pose in zip(seen.depth[first], seen.intrinsics[first], seen.poses[first], strict=True):
        step = max(1, int(np.sqrt(depth.size / POINTS)))
        cloud = unproject(depth.astype(np.float64), k)[step // 2 :: step, step // 2 :: step] @ pose[:3, :3].T
        inner, normal = _normals(cloud)
        good = np.isfinite(inner).all(axis=-1)
        points.append(inner[good])
        level.append(np.abs(normal @ seen.up)[good] > np.cos(slope))
    return floor(np.concatenate(points), np.concatenate(level), seen.up, 0.0 if seen.level else TILT)


def _normals(cloud: F64) -> tuple[F64, F64]:
    """The inner points of a grid (h, w, 3), and the normals (h - 2, w - 2, 3) of its surface there, NaN where unknown."""
    along, across = cloud[1:-1, 2:] - cloud[1:-1, :-2], cloud[2:, 1:-1] - cloud[:-2, 1:-1]
    normal = np.cross(along, across)
    with np.errstate(invalid="ignore", divide="ignore"):
        return cloud[1:-1, 1:-1], normal / np.linalg.norm(normal, axis=-1, keepdims=True)


def floor(points: F64, level: NDArray[np.bool_], up: F64, tilt: float) -> tuple[float, float] | None:
    """The logarithm of the camera's height over the plane that many of the points (n, 3), with the camera at the origin, lie on and hardly
    any below, and their share; None if there is none. level: (n,) those where the surface is about level. up: (3,) against gravity; tilt:
    sigma of the floor's, rad, 0 if `up` is sure.

    The error of a depth image is proportional to depth, so a point's depth below the camera errs by the same share wherever it is on the
    floor: all is done in that logarithm, which is how far the point's own depth is off. First heights, and tilts of a grid, are tried by
    histograms, then the best one is fitted with a robust loss. A model that stretches depth has the floor too high here and too low
    there: what counts is the height by points as far away as the scene is.
    """
    length = np.linalg.norm(points, axis=1)
    usual = float(np.median(length)) if len(length) else 0.0
    flat, far = points[level], length[level]
    if usual <= 0 or len(flat) < max(LEAST_POINTS, MIN_SHARE * len(points)):
        return None
    side = np.linalg.svd(up[None])[2][1:]  # (2, 3) across
    angles = 2 * np.pi * np.arange(DIRECTIONS) / DIRECTIONS
    leans = [(0.0, 0.0), *((r * np.cos(a), r * np.sin(a)) for r in RINGS if tilt > 0 for a in angles)]
    edges = np.arange(np.log(LEAST_HEIGHT * usual), np.log(20 * usual), BIN)
    reach = int(np.ceil(2 * NOISE / BIN))
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) * BIN / NOISE) ** 2)
    best, most = None, 0.0
    for x, y in leans:
        n = _normal(up, side, np.tan(tilt) * np.array([x, y]))
        count, every = (_histogram(-(p @ n), edges) for p in (flat, points))
        beyond = np.append(np.cumsum(every[::-1])[::-1], 0.0)
        below = beyond[np.minimum(np.arange(len(count)) + 1 + int(DEEPER / BIN), len(count))]
        score = np.convolve(count, bell, "same") * np.exp(-0.5 * (x * x + y * y)) - 2 * below
        top = int(np.argmax(score))
        if score[top] > most:
            best, most = (np.tan(tilt) * np.array([x, y]), float(edges[top] + BIN / 2)), float(score[top])
    if best is None:
        return None
    lean, height = best
    stretch, away = 0.0, np.log(far / usual)
    across, down = flat @ side.T, -(flat @ up)
    for _ in range(ITERATIONS):
        # n = up + lean: how deep a point is below the camera is down - lean across, and should be height
        norm, depth = np.sqrt(1 + lean @ lean), down - across @ lean
        low = depth > 0
        r = np.log(depth[low] / norm) - height - stretch * away[low]
        weight = np.where(np.abs(r) < DEEPER, 1 / (1 + (r / NOISE) ** 2) ** 2, 0.0)
        if weight.sum() < 10:
            return None
        jacobian = np.column_stack([np.ones(len(r)), away[low], across[low] / depth[low, None]])
        # the model's errors hang together, so that priors count as much as all points
        held = (
            np.diag([0.0, STRETCH**-2, *np.full(2, 1e9 if tilt == 0 else tilt**-2)])
            * weight.sum()
            * NOISE**2
            / INDEPENDENT
        )
        change = np.linalg.lstsq(
            jacobian.T @ (jacobian * weight[:, None]) + held,
            jacobian.T @ (weight * r) - held @ [0.0, stretch, *lean],
            rcond=None,
        )[0]
        height, stretch, lean = height + float(change[0]), stretch + float(change[1]), lean + change[2:]
    n = _normal(up, side, lean)
    on_it = np.count_nonzero(np.abs(_log(-(flat @ n)) - height - stretch * away) < 2 * NOISE) / len(points)
    deeper = np.count_nonzero(_log(-(points @ n)) - height - stretch * np.log(length / usual) > DEEPER) / len(points)
    if np.exp(height) < LEAST_HEIGHT * usual or on_it < MIN_SHARE or deeper > MOST_BELOW:
        return None
    return height, on_it


def _log(values: F64) -> F64:
    """(n,) -inf where they are not positive."""
    return np.log(values, out=np.full(len(values), -np.inf), where=values > 0)


def _histogram(values: F64, edges: F64) -> F64:
    """(bins,) how many logarithms of the positive ones of `values` (n,) lie between `edges`."""
    return np.histogram(np.log(values[values > 0]), edges)[0].astype(np.float64)


def _normal(up: F64, side: F64, lean: F64) -> F64:
    """(3,) of length 1: `up` (3,), leaning by `lean` (2,) along `side` (2, 3)."""
    n = up + lean @ side
    return np.asarray(n / np.linalg.norm(n), np.float64)
