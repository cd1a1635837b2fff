"""A voxel map whose points hang on keyframes: where a loop moves those, it is built again from what each frame added."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..geometry import inverse
from ..mapping.mapper import Corrections
from ..mapping.saved_map import SavedMap
from .cloud import POINT_DTYPE, moved
from .voxel_map import Chunk, VoxelMap

# Of chunks, where each voxel is in many frames, only the surest point of each voxel stays, as often as they have grown by so much
GROWTH, LEAST_GROWTH = 2.0, 400_000

Hung = tuple[tuple[int, int], Chunk]
"""session and stamp in ns of the frame that it hangs on, see Keyframe.key; and what that added, in its odometry frame"""


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

    def add(self, points: NDArray[Any], key: tuple[int, int], corrections: Corrections) -> None:
        """Points of cloud.POINT_DTYPE in the odometry frame, of the frame of that session and stamp, which is the newest."""
        now = corrections.latest() if corrections.version else None
        chunk = self._map.add(points if now is None else moved(points, now))
        if self.follows:
            self.hang(key, chunk if now is None else chunk.moved(inverse(now)), corrections)

    def add_aside(self, points: NDArray[Any], key: tuple[int, int], corrections: Corrections, voxel: float) -> None:
        """The same while the session is not located in the map: the points are added when the map is `rebuilt`. voxel: edge, in the unit of
        the session."""
        self.hang(key, VoxelMap(voxel, self.max_points).add(points), corrections)

    def hang(self, key: tuple[int, int], chunk: Chunk, corrections: Corrections) -> None:
        """Keeps the chunk of a frame, in its odometry frame, for the next time that the map is `rebuilt`."""
        self._chunks.append((key, chunk))
        self._count += len(chunk.weight)
        if self._count > GROWTH * self._compact + LEAST_GROWTH:
            placed = [hung for hung in self._chunks if corrections.knows(hung[0][0])]
            others = [hung for hung in self._chunks if not corrections.knows(hung[0][0])]
            self._chunks = [
                hung for some in (placed, others) for hung in thinned(some, self.voxel, self.max_points, corrections)
            ]
            self._count = self._compact = sum(len(chunk.weight) for _, chunk in self._chunks)

    def points(self) -> NDArray[np.void]:
        """(n,) of cloud.POINT_DTYPE, in the map's frame."""
        return self._map.points() if len(self._map) else np.empty(0, POINT_DTYPE)

    def chunks(self) -> list[Hung]:
        """What the frames have added so far."""
        return list(self._chunks)

    def swap(self, rebuilt: VoxelMap, chunks: list[Hung], corrections: Corrections) -> None:
        """From now on `rebuilt`, which was made of `chunks`, with what came since."""
        known = {id(chunk) for _, chunk in chunks}
        for key, chunk in self._chunks:
            if id(chunk) not in known and corrections.knows(key[0]):
                rebuilt.put(chunk.moved(correction_at(key, corrections)))
        rebuilt.max_points = self.max_points
        self._map = rebuilt


def rebuilt(chunks: list[Hung], corrections: Corrections, voxel: float, max_points: int) -> VoxelMap:
    """The map of `chunks` where `corrections` have them, those of sessions that are not in the map yet left out. It may take long, and can
    run in another process. voxel: its edge."""
    out = VoxelMap(voxel, max_points)
    for key, chunk in chunks:
        if corrections.knows(key[0]):
            out.put(chunk.moved(correction_at(key, corrections)))
    len(out)  # merges
    return out


def chunks_of(saved: SavedMap) -> list[Hung]:
    """The points of the keyframes of a saved map, all of confidence 1."""
    out = []
    for keyframe in saved.keyframes:
        if keyframe.thumbnail is not None:
            places, colours = keyframe.thumbnail.points()
            one = np.ones(len(places), np.float32)
            out.append((keyframe.key, Chunk(places, colours, one, one).moved(keyframe.odom_from_camera)))
    return out


def correction_at(key: tuple[int, int], corrections: Corrections) -> NDArray[np.float64]:
    """(4, 4) map_from_odom, with its scale, of the keyframe that a frame hangs on: the newest of its session that is not later."""
    session, stamp_ns = key
    corrections = corrections.of(session)
    if not corrections.version:
        return np.eye(4)
    row = max(0, int(np.searchsorted(corrections.stamps_ns, stamp_ns, side="right")) - 1)
    return corrections.map_from_odom.at([row]).matrices()[0]


def thinned(chunks: list[Hung], voxel: float, most: int, corrections: Corrections) -> list[Hung]:
    """Of all points in a voxel the surest; and where there are more voxels than `most`, those of the newest frames."""
    if not chunks:
        return []
    keys = np.concatenate([c.moved(correction_at(key, corrections)).voxels(voxel) for key, c in chunks])
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
    return [(key, c.at(part)) for (key, c), part in zip(chunks, parts, strict=True) if part.any()]
