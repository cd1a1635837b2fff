"""Tracks: points of a scene followed from image to image by one camera.

Optical flow (pyramidal Lucas-Kanade, OpenCV) follows points from the last image to the next one. A point is kept if backward flow from
its new position returns to the old one. Each grid cell without a point gets its best corner, however weak, so that a nearly plain wall
keeps some points. If flow loses most of the points because the camera turned far between two images, points are recognised by their
descriptors (descriptors.py), also those of earlier images, and show flow where to search for the others. OpenCV does the tracking; this
file does the bookkeeping.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ..types import F32, I64, U8, Observations
from .descriptors import LEAST_PAIRS, Described, consistent, describe, pairs, warped

POINTS = 250  # grid cells, and so about as many points
MOST_PER_CELL = 2  # where points crowd together, the oldest ones stay
LONGEST_SIDE = 1000  # px: larger images are halved until they fit; more pixels cost more and are not more accurate
BORDER = 8  # px at the edge of the image where no point starts or stays: about half a flow window

WINDOW, COARSE_WINDOW = (13, 13), (11, 11)  # px, of flow; and of flow on the small images
STEPS = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 8, 0.03)
COARSE = 4  # flow starts on an image smaller by this factor, with LEVELS further levels: it covers about a third of the image
LEVELS = 3
LEAST_SHIFT = 1.0  # px of the small image: flow finds smaller shifts without a start value
MAX_RETURN = 0.7  # px: largest distance between the start and the end of forward and backward flow
MAX_DIFFERENCE = 30.0  # grey levels per pixel: largest difference of two patches, after equal exposure
# Descriptors cost about ten times as much as flow. At low image rates there is time for them as soon as flow loses some of the points; at
# higher rates they are computed only when flow fails.
# A blurred image has no descriptors that match. If few points are left at a high rate, the sharpest of the last images are tried, too.
KEPT_IMAGES, TRIED, FEW = 6, 2, 50
SELDOM_S = 0.15  # s between images from which on the rate is low
WIDE, TORN = 0.75, 0.2  # descriptors are used when flow keeps a smaller share of the points: at low rates, at others

# Exposure changes from image to image, and flow compares grey levels: each image is scaled to this mean and spread.
MEAN, SPREAD, MOST_GAIN = 120.0, 50.0, 4.0
CORNER_BLOCK = 3
LEAST_CORNER = 1e-7  # smaller eigenvalue of the gradients (OpenCV's unit) below which a corner is noise


class _Seen(NamedTuple):
    """An image and the points in it."""

    image: U8
    ids: I64
    points: F32


class Tracker:
    """Tracks the points that one camera sees. One thread calls it. The same images give the same tracks, on any number of threads."""

    def __init__(self, first_id: int = 0) -> None:
        """first_id: the smallest id of this camera; smaller ids belong to other cameras."""
        self._next_id = first_id
        self.reset()

    def reset(self) -> None:
        """Drops all points; the next image starts new ones. Ids are never reused."""
        self._last: U8 | None = None
        self._count, self._stamp_ns = 0, 0  # of the last image
        self._ids = np.empty(0, np.int64)
        self._points = np.empty((0, 2), np.float32)
        self._described = Described.none()
        self._before: deque[_Seen] = deque(maxlen=KEPT_IMAGES)  # images before the last one

    def track(self, gray: U8, stamp_ns: int = 0) -> Observations:
        """Returns the points in the next image, (H, W) uint8. An image of another size starts new points. Raises ValueError for other
        arrays."""
        if gray.ndim != 2 or gray.dtype != np.uint8 or min(gray.shape) < 2 * BORDER:
            raise ValueError(
                f"an image to track has shape {gray.shape} and type {gray.dtype}, but must be (H, W) uint8 with sides of "
                f"{2 * BORDER} px or more: convert it before"
            )
        image, factor = shrunken(gray)
        image = equal_exposure(image)
        if self._last is not None and self._last.shape != image.shape:
            self.reset()
        last = None if self._last is None else _Seen(self._last, self._ids, self._points)
        if self._last is None:
            self._remember(image)
            self._ids, self._points = self._described.ids, self._described.points
            self._thin(image.shape, POINTS)
        elif len(self._ids):
            points, good = flow(self._last, image, self._points)
            seldom = (stamp_ns - self._stamp_ns) * 1e-9 >= SELDOM_S
            least = WIDE if seldom else TORN
            if len(good) >= LEAST_PAIRS and np.count_nonzero(good) < least * len(good):
                self._bridge(self._last, image, points, good, seldom)
            else:
                self._ids, self._points = self._ids[good], points[good]
                self._thin(image.shape)
        self._top_up(image)
        if last is not None:
            self._before.append(last)
        self._last, self._stamp_ns = image, stamp_ns
        self._count += 1
        # pixel centres of a halved image lie between two pixels of the original
        return Observations(self._ids.copy(), (self._points.astype(np.float64) + 0.5) * factor - 0.5)

    def _bridge(self, last: U8, image: U8, points: F32, good: NDArray[np.bool_], seldom: bool) -> None:
        """Recognises points by their descriptors, and finds others by flow that starts where those predict them. points, good: result of
        plain flow for all points of the last image. seldom: whether the image rate is low."""
        if not (self._described.image == self._count - 1).any():
            self._remember(last, -1)
        known = self._described
        now = describe(image, BORDER, self._next_id, self._count)
        there, here = pairs(known, now)
        fits = np.zeros(len(there), bool)
        for number in np.unique(known.image[there]):
            of_image = np.flatnonzero(known.image[there] == number)
            fits[of_image] = consistent(known.points[there[of_image]], now.points[here[of_image]])
        there, here = there[fits], here[fits]
        of_last = known.image[there] == self._count - 1
        before, after = known.points[there[of_last]], now.points[here[of_last]]
        now.ids[here] = known.ids[there]
        self._next_id += len(now.ids)
        self._described = known.joined(now)

        guess = warped(self._points, before, after)
        if guess is not None:
            points, good = flow(last, image, self._points, guess)
        good = good & ~np.isin(self._ids, now.ids)
        rows = np.flatnonzero(good)
        both = consistent(np.concatenate([before, self._points[rows]]), np.concatenate([after, points[rows]]))
        if len(both) >= LEAST_PAIRS:
            good[rows] = both[len(before) :]
        ids, places = np.concatenate([self._ids[good], now.ids]), np.concatenate([points[good], now.points])
        if (
            not seldom
            and self._before
            and np.isin(ids, np.concatenate([seen.ids for seen in self._before])).sum() < FEW
        ):
            sharpest = sorted(self._before, key=lambda seen: sharpness(seen.image), reverse=True)
            for seen in sharpest[:TRIED]:
                again, where = self._from(seen, image, now)
                new = ~np.isin(again, ids)
                ids, places = np.concatenate([ids, again[new]]), np.concatenate([places, where[new]])
        order = np.argsort(ids)
        self._ids, self._points = ids[order], places[order]
        self._thin(image.shape, POINTS)

    def _from(self, seen: _Seen, image: U8, now: Described) -> tuple[I64, F32]:
        """Ids (n,) and places (n, 2) of points of an earlier image in this one, by flow that starts where descriptors predict them."""
        known = describe(seen.image, BORDER, 0, 0)
        there, here = pairs(known, now)
        before, after = known.points[there], now.points[here]
        fits = consistent(before, after)
        guess = warped(seen.points, before[fits], after[fits])
        if guess is None:
            return seen.ids[:0], seen.points[:0]
        points, good = flow(seen.image, image, seen.points, guess)
        rows = np.flatnonzero(good)
        together = np.concatenate([before[fits], seen.points[rows]]), np.concatenate([after[fits], points[rows]])
        rows = rows[consistent(*together)[np.count_nonzero(fits) :]]
        return seen.ids[rows], points[rows]

    def _remember(self, image: U8, back: int = 0) -> None:
        """Describes the points of an image, to recognise them later."""
        new = describe(image, BORDER, self._next_id, self._count + back)
        self._next_id += len(new.ids)
        self._described = self._described.joined(new)

    def _thin(self, shape: tuple[int, ...], least: int = 0) -> None:
        """Drops the youngest points of cells with more than MOST_PER_CELL, or with more than are needed to keep `least` points in all."""
        if not len(self._ids):
            return
        cell = _cell_of(self._points, shape)
        order = np.lexsort((self._ids, cell))
        rank = np.arange(len(order)) - np.searchsorted(cell[order], cell[order])
        most = max(MOST_PER_CELL, 1 + int(np.sort(rank)[min(least, len(rank)) - 1]) if least else 0)
        keep = np.sort(order[rank < most])
        self._ids, self._points = self._ids[keep], self._points[keep]

    def _top_up(self, image: U8) -> None:
        """Adds the best corner of each cell that has no point."""
        new = corners(image, self._points)
        self._ids = np.concatenate([self._ids, self._next_id + np.arange(len(new))])
        self._points = np.concatenate([self._points, new])
        self._next_id += len(new)


def shrunken(gray: U8) -> tuple[U8, int]:
    """`gray` halved until its longer side is at most LONGEST_SIDE, and the factor by which it was shrunk."""
    factor = 1
    while max(gray.shape) > LONGEST_SIDE * factor:
        factor *= 2
    if factor == 1:
        return np.ascontiguousarray(gray), 1
    size = gray.shape[1] // factor, gray.shape[0] // factor
    whole = np.ascontiguousarray(gray[: size[1] * factor, : size[0] * factor])
    return np.asarray(cv2.resize(whole, size, interpolation=cv2.INTER_AREA), np.uint8), factor


def equal_exposure(gray: U8) -> U8:
    """`gray` scaled to mean MEAN and spread SPREAD, so that a change of exposure does not change the image."""
    mean, spread = (float(v[0, 0]) for v in cv2.meanStdDev(gray))
    gain = min(MOST_GAIN, SPREAD / max(spread, 1.0))
    levels = (np.arange(256) - mean) * gain + MEAN
    return np.asarray(cv2.LUT(gray, np.clip(np.rint(levels), 0, 255).astype(np.uint8)), np.uint8)


def sharpness(gray: U8) -> float:
    """Variance of the Laplacian of an image (H, W)."""
    return float(cv2.meanStdDev(cv2.Laplacian(gray, cv2.CV_16S))[1][0, 0])


def flow(before: U8, after: U8, points: F32, guess: F32 | None = None) -> tuple[F32, NDArray[np.bool_]]:
    """Positions of `points` (n, 2) of one image (H, W) in another one, and whether each was found reliably (n,).

    guess: (n, 2) start positions; by default they are found on small copies of the images.
    """
    if len(points) == 0:
        return points.copy(), np.zeros(0, bool)
    if guess is None:
        guess = _coarse(before, after, points)
    there, found, difference = _lucas_kanade(before, after, points, guess, 1)
    # backward flow starts at the guess, not at the known position, which would be found too easily
    back, returned, _ = _lucas_kanade(after, before, there, points + (there - guess), 0)
    good = found & returned & (difference <= MAX_DIFFERENCE)
    good &= np.linalg.norm(back - points, axis=1) <= MAX_RETURN
    height, width = after.shape
    good &= ((there >= BORDER) & (there <= np.array([width, height]) - 1 - BORDER)).all(axis=1)
    return there, good


def _coarse(before: U8, after: U8, points: F32) -> F32:
    """Flow on small copies that starts without motion. Points that do not go near where the shift of the whole image takes them start a
    second time, from that shift, and keep the result whose patches differ less."""
    size = max(1, before.shape[1] // COARSE), max(1, before.shape[0] // COARSE)
    a, b = (np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8) for image in (before, after))
    scale = np.array(size, np.float32) / np.array(before.shape[::-1], np.float32)
    start = np.asarray((points + 0.5) * scale - 0.5, np.float32)
    there, found, difference = _lucas_kanade(a, b, start, start, LEVELS, COARSE_WINDOW)
    shift, _ = cv2.phaseCorrelate(a.astype(np.float32), b.astype(np.float32), cv2.createHanningWindow(size, cv2.CV_32F))
    if np.hypot(shift[0], shift[1]) > LEAST_SHIFT:
        guess = start + np.array(shift, np.float32)
        other = np.flatnonzero(~found | (np.abs(there - guess).max(axis=1) > COARSE_WINDOW[0] // 2))
        if len(other):
            moved, found_too, by = _lucas_kanade(a, b, start[other], guess[other], 1, COARSE_WINDOW)
            closer = found_too & (~found[other] | (by < difference[other]))
            there[other[closer]] = moved[closer]
    return np.asarray((there + 0.5) / scale - 0.5, np.float32)


def _lucas_kanade(
    before: U8, after: U8, points: F32, guess: F32, levels: int, window: tuple[int, int] = WINDOW
) -> tuple[F32, NDArray[np.bool_], NDArray[np.float32]]:
    """New positions of `points` (n, 2), searched from `guess`, whether each was found (n,), and the difference of its patches in grey
    levels (n,)."""
    there, found, difference = cv2.calcOpticalFlowPyrLK(
        before, after, points, guess.copy(), winSize=window, maxLevel=levels, criteria=STEPS, flags=cv2.OPTFLOW_USE_INITIAL_FLOW
    )  # fmt: skip
    return np.asarray(there, np.float32), np.asarray(found).ravel() > 0, np.asarray(difference, np.float32).ravel()


def corners(image: U8, taken: F32) -> F32:
    """(n, 2) the best corner of each cell of `image` without any of the points `taken` (m, 2), row by row."""
    half = cv2.pyrDown(image)
    strength = cv2.cornerMinEigenVal(half, CORNER_BLOCK)
    rows, columns, side = _grid(image.shape)
    cell = max(1, side // 2)
    edge = BORDER // 2
    free = np.zeros((rows * cell, columns * cell), np.float32)
    inside = strength[edge:-edge, edge:-edge][: rows * cell - edge, : columns * cell - edge]
    free[edge : edge + inside.shape[0], edge : edge + inside.shape[1]] = inside
    cells = free.reshape(rows, cell, columns, cell).swapaxes(1, 2).reshape(rows * columns, cell * cell)
    best = cells.argmax(axis=1)
    wanted = cells[np.arange(len(cells)), best] > LEAST_CORNER
    wanted[_cell_of(taken, image.shape)] = False
    which = np.flatnonzero(wanted)
    y = (which // columns) * cell + best[which] // cell
    x = (which % columns) * cell + best[which] % cell
    return np.stack([2.0 * x, 2.0 * y], axis=1).astype(np.float32)


def _grid(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Rows, columns and side (px, even) of the grid cells of an image: POINTS cells or a few more."""
    height, width = shape[:2]
    side = max(4, 2 * int(np.sqrt(height * width / POINTS) / 2))
    return -(-height // side), -(-width // side), side


def _cell_of(points: F32, shape: tuple[int, ...]) -> I64:
    """(n,) number of the cell of each point."""
    rows, columns, side = _grid(shape)
    x, y = (points // side).astype(np.int64).T if len(points) else np.empty((2, 0), np.int64)
    return np.asarray(np.clip(y, 0, rows - 1) * columns + np.clip(x, 0, columns - 1), np.int64)
