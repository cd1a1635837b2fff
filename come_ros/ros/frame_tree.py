"""FrameTree: transforms from /tf and /tf_static. Plain arrays and clocks, no ROS; thread-safe."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np

from ..geometry import inverse, is_finite_pose
from ..types import F64
from .known import Stamped, pose_at

TOLERANCE_S = 0.5  # the last transform of a moving joint is valid for this long


class FrameTree:
    """Edges by child frame: a frame has one parent, the last one received."""

    def __init__(self) -> None:
        self._edges: dict[str, tuple[str, F64 | Stamped[F64]]] = {}
        self._newest: dict[str, int] = {}
        self._changed = threading.Condition()

    def observe(self, parent: str, child: str, stamp_ns: int, parent_from_child: F64, static: bool) -> None:
        """Adds one edge, at one time unless it is `static`. Invalid transforms are ignored, as in tf2."""
        parent, child = parent.lstrip("/"), child.lstrip("/")
        if not parent or not child or parent == child or not is_finite_pose(parent_from_child):
            return
        with self._changed:
            if static:
                self._edges[child] = parent, parent_from_child
            else:
                before, where = self._edges.get(child, ("", None))
                if before != parent or not isinstance(where, Stamped):
                    where = Stamped()
                    self._edges[child] = parent, where
                elif stamp_ns == self._newest[child]:  # received twice
                    return
                where.put(stamp_ns, parent_from_child)
                self._newest[child] = stamp_ns
            self._changed.notify_all()

    def lookup(self, target: str, source: str, stamp_ns: int, wait_s: float = 0.0) -> F64 | None:
        """target_from_source (4, 4) at that time; None if the two are not connected within `wait_s` from now."""
        end = time.monotonic() + wait_s
        with self._changed:
            while (found := self._lookup(target, source, stamp_ns)) is None:
                if not self._changed.wait(end - time.monotonic()):
                    return None
            return found

    def _lookup(self, target: str, source: str, stamp_ns: int) -> F64 | None:
        above = dict(self._up(target, stamp_ns))
        for frame, frame_from_source in self._up(source, stamp_ns):
            if frame in above:
                return inverse(above[frame]) @ frame_from_source
        return None

    def _up(self, frame: str, stamp_ns: int) -> Iterator[tuple[str, F64]]:
        """`frame` and its ancestors, each with it_from_frame; ends where an edge is unknown at that time, and at a loop."""
        pose, seen = np.eye(4), {frame}
        yield frame, pose
        while frame in self._edges:
            frame, where = self._edges[frame]
            edge = pose_at(where.around(stamp_ns, 0.0), stamp_ns, TOLERANCE_S) if isinstance(where, Stamped) else where
            if edge is None or frame in seen:
                return
            seen.add(frame)
            pose = edge @ pose
            yield frame, pose
