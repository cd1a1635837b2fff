"""What is known of images besides their pixels: depth and the poses of another odometry, joined to the frames of a recording."""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from ..geometry import rotation_from_vector, transform, vector_from_rotation
from ..types import F64, Frame
from .stamps import NearestDepth

T = TypeVar("T")

MAX_SPAN_NS = 500_000_000  # poses further apart are not interpolated


def nearest(found: list[tuple[int, T]], stamp_ns: int, tolerance_s: float) -> T | None:
    """The item of the stamp nearest to `stamp_ns`, None if none is within `tolerance_s`."""
    if not found:
        return None
    stamp, item = min(found, key=lambda pair: abs(pair[0] - stamp_ns))
    return item if abs(stamp - stamp_ns) <= tolerance_s * 1e9 else None


def pose_at(found: list[tuple[int, F64]], stamp_ns: int, tolerance_s: float) -> F64 | None:
    """The pose (4, 4) at `stamp_ns`: interpolated between two poses at most 0.5 s apart, else the nearest one."""
    if len(found) == 2 and found[1][0] - found[0][0] <= MAX_SPAN_NS:
        (start, a), (end, b) = found
        share = (stamp_ns - start) / (end - start)
        turn = vector_from_rotation(a[:3, :3].T @ b[:3, :3])
        position = a[:3, 3] + share * (b[:3, 3] - a[:3, 3])
        return transform(a[:3, :3] @ rotation_from_vector(share * turn), position)
    return nearest(found, stamp_ns, tolerance_s)


class Poses:
    """Poses by stamps, all in memory."""

    def __init__(self, poses: Mapping[int, F64], base_from_camera: F64 | None, tolerance_s: float) -> None:
        """poses: stamp in ns -> world_from_base (4, 4), or world_from_camera if base_from_camera (4, 4) is None."""
        self._poses, self._mount, self._tolerance_s = poses, base_from_camera, tolerance_s
        self._stamps = sorted(poses)

    def at(self, stamp_ns: int) -> F64 | None:
        """world_from_camera (4, 4), None if there is no pose near enough in time."""
        i = bisect_left(self._stamps, stamp_ns)
        if i < len(self._stamps) and self._stamps[i] == stamp_ns:
            around = [stamp_ns]
        else:
            around = self._stamps[max(0, i - 1) : i + 1]
        pose = pose_at([(t, self._poses[t]) for t in around], stamp_ns, self._tolerance_s)
        return pose if pose is None or self._mount is None else pose @ self._mount


def with_known(frames: Iterable[Frame], depth: NearestDepth | None, poses: Poses | None) -> Iterator[Frame]:
    """`frames` in the order of their stamps, with what there is for each."""
    for frame in frames:
        yield dataclasses.replace(
            frame,
            depth=frame.depth if depth is None else depth.at(frame.stamp_ns),
            world_from_camera=frame.world_from_camera if poses is None else poses.at(frame.stamp_ns),
        )
