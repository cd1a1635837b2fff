"""Rolling shutter: where tracked points would be seen if all rows of an image were exposed at its stamp.

Most cameras read an image out row by row, in 10 to 30 ms, and a hand turns a camera by a degree meanwhile. That bends the image: taken for
a rigid view, it looks as if the camera had moved by some percent of the depth. A point in row y is seen at the time t + readout *
(y / height - 1/2), so it moves to its place at t along the image motion there. The image motion of one moment is a field of eight
parameters (Longuet-Higgins and Prazdny, 1980: exact for a camera that turns, and for a plane), fitted to the tracks since the last image
and extrapolated to this one.

The readout time is a constant of the camera. It is estimated from pairs of images between which the turning changed: points that only turn
with the camera then leave residuals in proportion to it (Forssen and Ringaby, CVPR 2010, estimate motions by the same residuals). As
long as it cannot be told from zero, it counts as zero.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..geometry import SIGMA_OF_MAD, rotation_from_vector
from ..types import F64, I64
from .resection import turn_between

Ints = NDArray[np.intp]

LEAST_POINTS = 30  # common points of two images
LONGEST_S = 0.15  # between two images: a motion over a longer time says little about that within one image
FIT_STEPS = 3  # of reweighting
LEAST_SPREAD = 0.3  # px, of residuals

PAIR_S = 0.25  # between the two images that tell the readout time
REMEMBERED = 16  # images
INDEPENDENT = 20.0  # points: parallax and errors of tracks are alike all over a surface, and from pair to pair
EVERY = 2  # images: a pair ends at every second one
PAIR_SHARE = 0.5  # of the information of a pair that is new, as pairs overlap
LEAST_EFFECT = (
    0.2  # px that the longest readout time would move the points of a pair, on average: below that it says nothing
)
FIRM, HELD = 5.0, 3.0  # sigmas from zero from which the readout time is used, and down to which it stays in use
SETTLED_S = 0.0015  # sigma of it from which it is no longer estimated
ROUGHLY_S = 0.01  # sigma of it below which residuals are taken with it
SURE_S = 0.006  # largest sigma of it then
MOST_S = 0.05  # longest readout time that is believed


class _Image(NamedTuple):
    stamp_ns: int
    ids: I64
    pixels: F64
    shift: F64  # (n, 2) px that a point moves in one second, times its share of the readout

    def at(self, rows: Ints) -> _Image:
        return _Image(self.stamp_ns, self.ids[rows], self.pixels[rows], self.shift[rows])


class Shutter:
    """The shutter of one camera. One thread calls it, for every image."""

    def __init__(self, readout_s: float | None = None) -> None:
        """readout_s: from the first row to the last one; None: it is estimated."""
        self._given = readout_s
        self._information = self._weighted = self._scatter = 0.0
        self._pairs = self._count = 0
        self._firm = False
        self.reset()

    def reset(self) -> None:
        """Forgets the images, but not the readout time."""
        self._last: tuple[int, I64, F64] | None = None
        self._motion: tuple[float, F64] | None = None  # time in s and image motion (8,), px/s, see `_basis`
        self._recent: deque[_Image] = deque(maxlen=REMEMBERED)

    @property
    def readout_s(self) -> float:
        """s from the first row to the last one, 0 while it is not known to differ from that."""
        if self._given is not None:
            return self._given
        return float(np.clip(self.estimate[0], -MOST_S, MOST_S)) if self._firm else 0.0

    @property
    def estimate(self) -> tuple[float, float]:
        """Readout time as estimated, and its standard deviation, s."""
        if not self._pairs:
            return 0.0, np.inf
        value = self._weighted / self._information
        excess = max(1.0, (self._scatter - self._weighted * value) / self._pairs)
        return value, float(np.sqrt(excess / self._information))

    def at_once(self, ids: I64, pixels: F64, shape: tuple[int, ...], stamp_ns: int, k: F64 | None) -> F64 | None:
        """(n, 2) px where the points `ids` (n,), ascending, that the image of `shape` (H, W) shows at `pixels` (n, 2) would be seen with
        a global shutter; None if nothing is known to move them. k: (3, 3) intrinsics, without which nothing is estimated."""
        settled = self._given is not None or self.estimate[1] <= SETTLED_S
        readout = self.readout_s
        if settled and not readout:
            return None
        before, last = self._motion, self._last
        self._motion = self._motion_until(ids, pixels, shape, stamp_ns)
        self._last = stamp_ns, ids, pixels
        if self._motion is None:
            self._recent.clear()
            return None
        time, motion = self._motion
        trend = np.zeros(8) if before is None else (motion - before[1]) / (time - before[0])
        if not settled and k is not None and last is not None and before is not None:
            # the motion at the last image is known better now
            at_last = motion + (1e-9 * last[0] - time) * trend
            shares = (last[2][:, 1:] + 0.5) / shape[0] - 0.5
            self._recent.append(_Image(*last, shares * _field(last[2], at_last, shape)))
            self._count += 1
            if self._count % EVERY == 0:
                self._learn(k)
            readout = self.readout_s
        if not readout:
            return None
        share = (pixels[:, 1:] + 0.5) / shape[0] - 0.5
        return np.asarray(pixels - readout * share * _field(pixels, motion + (1e-9 * stamp_ns - time) * trend, shape))

    def _motion_until(self, ids: I64, pixels: F64, shape: tuple[int, ...], stamp_ns: int) -> tuple[float, F64] | None:
        """Image motion (8,) between the last image and this one, and its time in s; None if it is not known."""
        if self._last is None or not 0 < stamp_ns - self._last[0] <= LONGEST_S * 1e9:
            return None
        last_ns, last_ids, last_pixels = self._last
        _, there, here = np.intersect1d(last_ids, ids, assume_unique=True, return_indices=True)
        if len(here) < LEAST_POINTS:
            return None
        a, b = last_pixels[there], pixels[here]
        # each point has its own time between two images, since it moves over the rows
        seconds = (stamp_ns - last_ns) * 1e-9 + self.readout_s * (b[:, 1:] - a[:, 1:]) / shape[0]
        return 0.5e-9 * (stamp_ns + last_ns), _fitted(0.5 * (a + b), (b - a) / seconds, shape)

    def _learn(self, k: F64) -> None:
        """Updates the readout time with the newest image and one from PAIR_S before."""
        now = self._recent[-1]
        apart = [abs((now.stamp_ns - image.stamp_ns) * 1e-9 - PAIR_S) for image in self._recent]
        then = self._recent[int(np.argmin(apart))]
        if min(apart) > 0.5 * PAIR_S:
            return
        _, a, b = np.intersect1d(then.ids, now.ids, assume_unique=True, return_indices=True)
        if len(a) < LEAST_POINTS or MOST_S * float(np.abs(now.shift[b] - then.shift[a]).mean()) < LEAST_EFFECT:
            return
        value, sigma = self.estimate
        begun = float(np.clip(value, -MOST_S, MOST_S)) if sigma < ROUGHLY_S else self.readout_s
        found = _readout(then.at(a), now.at(b), k, begun)
        if found is None:
            return
        value, information = found
        self._information += information
        self._weighted += information * value
        self._scatter += information * value**2
        self._pairs += 1
        value, sigma = self.estimate
        self._firm = sigma <= SURE_S and (HELD if self._firm else FIRM) * sigma <= abs(value) <= MOST_S


def _readout(then: _Image, now: _Image, k: F64, readout: float) -> tuple[float, float] | None:
    """Readout time (s) from n points in two images, and its information; None if they do not determine it. readout: to start from.

    The distances of the points from their epipolar lines depend on it, on the rotation and on the direction of the translation, whatever
    the depths. Where the camera only turned, any direction will do."""
    focal, middle = k[[0, 1], [0, 1]], k[:2, 2]

    def rays(image: _Image, readout: float) -> F64:
        return np.column_stack([(image.pixels - readout * image.shift - middle) / focal, np.ones(len(image.ids))])

    before, after = rays(then, readout), rays(now, readout)
    first, second = (r / np.linalg.norm(r, axis=1, keepdims=True) for r in (before, after))
    turn = turn_between(first, second, FIT_STEPS)
    by_before, by_after = (np.column_stack([-i.shift / focal, np.zeros(len(i.ids))]) for i in (then, now))
    weights = np.ones(len(before))
    for _ in range(FIT_STEPS):
        before, after = rays(then, readout), rays(now, readout)
        turned = before @ turn  # in the axes of the second camera
        normal = np.cross(turned, after)
        way = np.linalg.eigh((weights[:, None] * normal).T @ normal)[1]  # the translation is the first column
        line = np.cross(way[:, 0], turned)
        scale = focal.mean() / np.maximum(np.linalg.norm(line[:, :2], axis=1), 1e-9)
        off = scale * (line * after).sum(axis=1)  # px
        # turned moves by turned x d for a rotation by d
        crossed = np.cross(after, way[:, 0])
        by_turn = np.cross(crossed, turned)
        by_way = normal @ way[:, 1:]
        by_readout = ((by_before @ turn) * crossed).sum(axis=1) + (line * by_after).sum(axis=1)
        jacobian = scale[:, None] * np.column_stack([by_turn, by_way, by_readout])
        spread = max(LEAST_SPREAD, SIGMA_OF_MAD * float(np.median(np.abs(off))))
        weights = 1 / (1 + (off / (2 * spread)) ** 2)
        hessian = (weights[:, None] * jacobian).T @ jacobian + np.diag([*[1e-9] * 3, *[spread**2] * 2, 1e-9])
        step = -np.linalg.solve(hessian, jacobian.T @ (weights * off))
        turn = turn @ rotation_from_vector(-step[:3])
        readout = float(np.clip(readout + step[5], -2 * MOST_S, 2 * MOST_S))
    information = 1 / np.linalg.inv(hessian)[5, 5] / spread**2 * min(1.0, INDEPENDENT / len(off)) * PAIR_SHARE
    return (readout, float(information)) if np.isfinite(readout) and information > 0 else None


def _basis(pixels: F64, shape: tuple[int, ...]) -> F64:
    """(n, 2, 8) image motion by its parameters. Coordinates are from the image's middle, in image widths."""
    x, y = ((pixels - 0.5 * np.array(shape[1::-1])) / shape[1]).T
    one, zero = np.ones(len(x)), np.zeros(len(x))
    return np.stack(
        [
            np.stack([one, x, y, zero, zero, zero, x * x, x * y], axis=1),
            np.stack([zero, zero, zero, one, x, y, x * y, y * y], axis=1),
        ],
        axis=1,
    )


def _field(pixels: F64, motion: F64, shape: tuple[int, ...]) -> F64:
    """(n, 2) px/s"""
    return np.asarray(_basis(pixels, shape) @ motion, np.float64)


def _fitted(pixels: F64, velocity: F64, shape: tuple[int, ...]) -> F64:
    """(8,) image motion that fits the velocities (n, 2), px/s, at `pixels` (n, 2), robustly."""
    basis = _basis(pixels, shape)
    flat = basis.reshape(-1, 8)
    weights = np.ones(len(pixels))
    motion = np.zeros(8)
    for _ in range(FIT_STEPS):
        whitened = (np.repeat(weights, 2)[:, None] * flat).T
        motion = np.linalg.solve(whitened @ flat + 1e-6 * np.eye(8), whitened @ velocity.ravel())
        off = np.linalg.norm(velocity - (flat @ motion).reshape(-1, 2), axis=1)
        weights = 1 / (1 + (off / (2 * max(1e-3, SIGMA_OF_MAD * float(np.median(off))))) ** 2)
    return motion
