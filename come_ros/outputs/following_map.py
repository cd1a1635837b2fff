"""A voxel map whose points hang on keyframes: where a loop moves those, it is built again from what each frame added."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..geometry import inverse
from ..mapping.mapper import Corrections
from .cloud import POINT_DTYPE, moved
from .voxel_map import Chunk, VoxelMap

# Of chunks, where each voxel is in many frames, only the surest point of each voxel stays, as often as they have grown by so much
GROWTH, LEAST_GROWTH = 2.0, 400_000

Hung = tuple[int, Chunk]
"""stamp in ns of the frame that it hangs on, and what that added, in the odometry frame"""


class FollowingMap:
    """follows: whether chunks are kept, some 23 bytes a point; they are at most GROWTH times as many as the map's points, and
    LEAST_GROWTH."""

    def __init__(self, voxel: float, max_points: int, follows: bool) -> None:
        self.follows = follows
        self._map = VoxelMap(voxel, max_points)
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self._map.clear()
        self._chunks: list[Hung] = []
        self._count, self._compact = 0, 0

    @property
    def voxel(self) -> float:
        return self._map.voxel

    @voxel.setter
    def voxel(self, edge: float) -> None:
        """Of an empty map."""
        self._map.voxel = edge

    @property
    def max_points(self) -> int:
        return self._map.max_points

    @max_points.setter
    def max_points(self, value: int) -> None:
        self._map.max_points = value

    def add(self, points: NDArray[Any], stamp_ns: int, corrections: Corrections) -> None:
        """Points of cloud.POINT_DTYPE in the odometry frame, of the frame of that stamp, which is the newest."""
        now = corrections.latest() if corrections.version else None
        chunk = self._map.add(points if now is None else moved(points, now))
        if not self.follows:
            return
        self._chunks.append((stamp_ns, chunk if now is None else chunk.moved(inverse(now))))
        self._count += len(chunk.weight)
        if self._count > GROWTH * self._compact + LEAST_GROWTH:
            self._chunks = thinned(self._chunks, self.voxel, self.max_points, corrections)
            self._count = self._compact = sum(len(chunk.weight) for _, chunk in self._chunks)

    def points(self) -> NDArray[np.void]:
        """(n,) of cloud.POINT_DTYPE, in the map's frame."""
        return self._map.points() if len(self._map) else np.empty(0, POINT_DTYPE)

    def chunks(self) -> list[Hung]:
        """What the frames have added so far."""
        return list(self._chunks)

    def rebuilt(self, chunks: list[Hung], corrections: Corrections) -> VoxelMap:
        """The map of `chunks` where `corrections` have them. It may take long, and this map may go on meanwhile."""
        out = VoxelMap(self.voxel, self.max_points)
        for stamp, chunk in chunks:
            out.put(chunk.moved(correction_at(stamp, corrections)))
        len(out)  # merges
        return out

    def swap(self, rebuilt: VoxelMap, chunks: list[Hung], corrections: Corrections) -> None:
        """From now on `rebuilt`, which was made of `chunks`, with what came since."""
        known = {id(chunk) for _, chunk in chunks}
        for stamp, chunk in self._chunks:
            if id(chunk) not in known:
                rebuilt.put(chunk.moved(correction_at(stamp, corrections)))
        rebuilt.max_points = self.max_points
        self._map = rebuilt


def correction_at(stamp_ns: int, corrections: Corrections) -> NDArray[np.float64]:
    """(4, 4) map_from_odom, with its scale, of the keyframe that a frame hangs on: the newest that is not later."""
    if not corrections.version:
        return np.eye(4)
    row = max(0, int(np.searchsorted(corrections.stamps_ns, stamp_ns, side="right")) - 1)
    return corrections.map_from_odom.at([row]).matrices()[0]


def thinned(chunks: list[Hung], voxel: float, most: int, corrections: Corrections) -> list[Hung]:
    """Of all points in a voxel the surest; and where there are more voxels than `most`, those of the newest frames."""
    if not chunks:
        return []
    keys = np.concatenate([c.moved(correction_at(stamp, corrections)).voxels(voxel) for stamp, c in chunks])
    weight = np.concatenate([c.weight for _, c in chunks])
    order = np.lexsort((-weight, keys))
    first = np.ones(len(keys), bool)
    first[1:] = keys[order][1:] != keys[order][:-1]
    keep = np.zeros(len(keys), bool)
    keep[order[first]] = True
    newest = np.flatnonzero(keep)[-most:]
    keep[:] = False
    keep[newest] = True
    parts = np.split(keep, np.cumsum([len(c.weight) for _, c in chunks])[:-1])
    return [(stamp, c.at(part)) for (stamp, c), part in zip(chunks, parts, strict=True) if part.any()]
