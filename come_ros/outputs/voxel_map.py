"""A cloud of all frames: at most one point per voxel and a bounded number of points; those not seen for the longest time are
removed first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .cloud import POINT_DTYPE

_BITS = 21  # bits of each axis in a voxel's key
_HALF = 1 << (_BITS - 1)
# merging into a large map costs more than the frame itself: several frames are merged at once
_WAITING_SHARE = 0.25
_LEAST_WAITING = 50_000
_BLOCK = 1 << 14  # points processed at once, so that they stay in the CPU cache


_Rows = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float32], NDArray[np.int64]]
"""of each voxel: key, sums, largest confidence, latest sight"""


class Chunk(NamedTuple):
    """What a frame adds to a map, one point in each voxel. places: (n, 3) float32. colours: (n, 3) uint8, RGB. weight: (n,) float32, summed
    confidence. confidence: (n,) float32, the largest."""

    places: NDArray[np.float32]
    colours: NDArray[np.uint8]
    weight: NDArray[np.float32]
    confidence: NDArray[np.float32]

    @staticmethod
    def none() -> Chunk:
        empty = np.empty((0, 3), np.float32)
        return Chunk(empty, empty.astype(np.uint8), np.empty(0, np.float32), np.empty(0, np.float32))

    def at(self, rows: NDArray[Any]) -> Chunk:
        """Some of its points."""
        return Chunk(*(column[rows] for column in self))

    def moved(self, matrix: NDArray[np.float64]) -> Chunk:
        """After x -> matrix x, (4, 4): a rigid transform or a similarity."""
        turn, shift = matrix[:3, :3].astype(np.float32), matrix[:3, 3].astype(np.float32)
        return self._replace(places=self.places @ turn.T + shift)

    def voxels(self, voxel: float) -> NDArray[np.int64]:
        """(n,) a number for the voxel of each point."""
        cells = np.floor(self.places.astype(np.float64) / voxel)
        return cell_keys(list(np.clip(cells, 1 - _HALF, _HALF - 1).T))


class VoxelMap:
    """Points in one frame, averaged in each voxel by their confidence (position and colour; the largest is kept as conf).

    voxel: edge length, in odom units. max_points: voxels kept; beyond, those seen longest ago are dropped. The same frames in the
    same order give the same bytes.
    """

    def __init__(self, voxel: float, max_points: int) -> None:
        self.voxel, self.max_points = voxel, max_points
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self._keys = np.empty(0, np.int64)  # sorted
        # of each voxel: summed weight, weighted sums of x y z (from the voxel's corner) and r g b
        self._sums = np.empty((0, 7))
        self._confidence = np.empty(0, np.float32)
        self._seen = np.empty(0, np.int64)
        self._waiting: list[tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float32], NDArray[np.int64]]] = []
        self._waiting_count = 0
        self._frames = 0

    def __len__(self) -> int:
        self._merge()
        return len(self._keys)

    def add(self, points: NDArray[Any]) -> Chunk:
        """Points of cloud.POINT_DTYPE of one frame, any shape; those that are not finite, or over a million voxels away, are left out.
        Returns what is left of them."""
        points = points.reshape(-1)
        x, y, z, rgb, confidence = np.ascontiguousarray(points).view(np.float32).reshape(-1, 5).T.copy()
        with np.errstate(invalid="ignore", over="ignore"):
            cells = [np.floor(axis.astype(np.float64) / self.voxel) for axis in (x, y, z)]
            good = np.logical_and.reduce([np.abs(cell) < _HALF for cell in cells])  # False for NaN
        if not good.all():
            x, y, z, rgb, confidence = (column[good] for column in (x, y, z, rgb, confidence))
            cells = [cell[good] for cell in cells]
        if not len(x):
            return Chunk.none()
        self._frames += 1
        weight = np.maximum(confidence.astype(np.float64), 1e-6)
        values = np.empty((len(x), 7), order="F")  # column by column, which is several times as fast as row by row
        values[:, 0] = weight
        for column, (axis, cell) in enumerate(zip((x, y, z), cells, strict=True), start=1):
            values[:, column] = (axis - cell * self.voxel) * weight
        bits = rgb.view(np.uint32)
        for column, shift in ((4, 16), (5, 8), (6, 0)):
            values[:, column] = (bits >> shift & 255) * weight
        return self._chunk(self._wait(cells, values, confidence))

    def put(self, chunk: Chunk) -> None:
        """What `add` of some map returned, moved as the frame that it hangs on."""
        cells = [np.floor(axis.astype(np.float64) / self.voxel) for axis in chunk.places.T]
        good = np.logical_and.reduce([np.abs(cell) < _HALF for cell in cells])
        cells = [cell[good] for cell in cells]
        if not good.any():
            return
        self._frames += 1
        values = np.empty((len(cells[0]), 7), order="F")
        values[:, 0] = weight = chunk.weight[good].astype(np.float64)
        for column, (axis, cell) in enumerate(zip(chunk.places[good].T, cells, strict=True), start=1):
            values[:, column] = (axis - cell * self.voxel) * weight
        values[:, 4:] = chunk.colours[good] * weight[:, None]
        self._wait(cells, values, chunk.confidence[good])

    def _wait(self, cells: list[NDArray[Any]], values: NDArray[np.float64], confidence: NDArray[np.float32]) -> _Rows:
        """Rows of one frame wait to be merged."""
        key = cell_keys(cells)
        rows = _reduced(key, values, confidence, np.full(len(key), self._frames, np.int64))
        self._waiting.append(rows)
        self._waiting_count += len(rows[0])
        if self._waiting_count > max(_LEAST_WAITING, _WAITING_SHARE * len(self._keys)):
            self._merge()
        return rows

    def _chunk(self, rows: _Rows) -> Chunk:
        keys, sums, confidence, _ = rows
        mean = sums[:, 1:] / sums[:, :1]
        places = np.empty((len(keys), 3), np.float32)
        for axis in range(3):
            places[:, axis] = _cell_of(keys, axis) * self.voxel + mean[:, axis]
        colours = np.clip(np.rint(mean[:, 3:]), 0, 255).astype(np.uint8)
        return Chunk(places, colours, sums[:, 0].astype(np.float32), confidence)

    def points(self) -> NDArray[np.void]:
        """(n,) of cloud.POINT_DTYPE, in an order that depends on the position only."""
        self._merge()
        out = np.empty((len(self._keys), 5), np.float32)
        for start in range(0, len(out), _BLOCK):
            block = slice(start, start + _BLOCK)
            rows, keys, sums = out[block], self._keys[block], self._sums[block]
            mean = sums[:, 1:] / sums[:, :1]
            for axis in range(3):
                rows[:, axis] = _cell_of(keys, axis) * self.voxel + mean[:, axis]
            colour = np.clip(np.rint(mean[:, 3:]), 0, 255).astype(np.uint32)
            rows[:, 3] = (colour[:, 0] << 16 | colour[:, 1] << 8 | colour[:, 2]).view(np.float32)
        out[:, 4] = self._confidence
        return out.view(POINT_DTYPE)[:, 0]

    def _merge(self) -> None:
        if not self._waiting:
            return
        parts, self._waiting, self._waiting_count = self._waiting, [], 0
        key, sums, confidence, seen = _reduced(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        # known voxels are updated in place, so that a large map costs little where nothing is new
        place = np.searchsorted(self._keys, key)
        new = np.ones(len(key), bool)
        within = place < len(self._keys)
        new[within] = self._keys[place[within]] != key[within]
        known = place[~new]
        self._sums[known] += sums[~new]
        self._confidence[known] = np.maximum(self._confidence[known], confidence[~new])
        self._seen[known] = seen[~new]
        if new.any():
            at = place[new]
            self._keys = np.insert(self._keys, at, key[new])
            self._sums = np.insert(self._sums, at, sums[new], axis=0)
            self._confidence = np.insert(self._confidence, at, confidence[new])
            self._seen = np.insert(self._seen, at, seen[new])
        if len(self._keys) > self.max_points:
            self._keep(_newest(self._seen, self.max_points))

    def _keep(self, rows: NDArray[np.bool_]) -> None:
        self._keys, self._sums = self._keys[rows], self._sums[rows]
        self._confidence, self._seen = self._confidence[rows], self._seen[rows]


def cell_keys(cells: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    """(n,) one number for each cell of a grid, from the whole numbers (n,) of its three axes, each within 2**20 of 0."""
    key = np.zeros(len(cells[0]), np.int64)
    for cell in cells:
        key = key << _BITS | (cell.astype(np.int64) + _HALF)
    return key


def _cell_of(keys: NDArray[np.int64], axis: int) -> NDArray[np.int64]:
    return np.asarray(((keys >> (2 - axis) * _BITS) & ((1 << _BITS) - 1)) - _HALF, np.int64)


def _newest(seen: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """Marks the `count` largest; of those equal to the least of them, the first."""
    least = np.partition(seen, len(seen) - count)[len(seen) - count]
    newest = seen > least
    equal = np.flatnonzero(seen == least)
    newest[equal[: count - np.count_nonzero(newest)]] = True
    return newest


def _reduced(
    key: NDArray[np.int64], sums: NDArray[np.float64], confidence: NDArray[np.float32], seen: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float32], NDArray[np.int64]]:
    """One row per key, sorted: sums, the largest confidence, the latest observation."""
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    begins = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    first = np.flatnonzero(begins)
    group = np.empty(len(key), np.intp)
    group[order] = np.cumsum(begins) - 1
    return (
        ordered[first],
        np.stack([np.bincount(group, column) for column in sums.T], axis=1),
        np.maximum.reduceat(confidence[order], first),
        np.maximum.reduceat(seen[order], first),
    )
