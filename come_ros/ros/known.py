"""Known inputs besides an image: the depth and odometry for its stamp. Plain arrays and clocks, no ROS.

The executor's thread adds messages; the worker's thread looks them up when it reads the image.
"""

from __future__ import annotations

import bisect
import threading
import time
from typing import Generic, TypeVar

from ..camera.rig import pose_of_words
from ..config import Config
from ..datasets.known import pose_at
from ..types import F64

T = TypeVar("T")

KEPT = 400  # most messages kept: some seconds of fast odometry
ALIVE_NS = 1_000_000_000  # a topic that has been silent for longer is not waited for


class Stamped(Generic[T]):
    """The last messages of one topic by their stamps. If stamps go back, the buffer starts again."""

    def __init__(self) -> None:
        self._stamps: list[int] = []
        self._items: list[T] = []
        self._came = threading.Condition()

    def put(self, stamp_ns: int, item: T) -> None:
        with self._came:
            if self._stamps and stamp_ns <= self._stamps[-1]:
                self._stamps.clear()
                self._items.clear()
            self._stamps.append(stamp_ns)
            self._items.append(item)
            del self._stamps[:-KEPT], self._items[:-KEPT]
            self._came.notify_all()

    def around(self, stamp_ns: int, wait_s: float) -> list[tuple[int, T]]:
        """The last message up to `stamp_ns` and the first one from there on; only one if the other is missing or they are the same.

        Waits for a message that is new enough if the topic is alive.
        """
        end = time.monotonic() + wait_s
        with self._came:
            while self._stamps and 0 < stamp_ns - self._stamps[-1] < ALIVE_NS:
                if not self._came.wait(end - time.monotonic()):
                    break
            i = bisect.bisect_left(self._stamps, stamp_ns)
            if i < len(self._stamps) and self._stamps[i] == stamp_ns:
                return [(stamp_ns, self._items[i])]
            return list(zip(self._stamps[max(0, i - 1) : i + 1], self._items[max(0, i - 1) : i + 1], strict=True))


class PoseSource:
    """Poses of the camera from those of a vehicle: odometry gives the pose of its child frame, `known.base_from_camera` the
    camera's pose in it."""

    def __init__(self, config: Config) -> None:
        """Raises ConfigError."""
        self._base_from_camera = pose_of_words(config.known.base_from_camera, "known.base_from_camera")
        self._poses: Stamped[F64] = Stamped()
        self._child = ""

    def put(self, stamp_ns: int, child: str, world_from_child: F64) -> None:
        self._child = child.lstrip("/")
        self._poses.put(stamp_ns, world_from_child)

    def at(self, stamp_ns: int, camera: str, tolerance_s: float) -> tuple[F64 | None, str]:
        """world_from_camera (4, 4) or None, and the reason for None ("" on success)."""
        pose = pose_at(self._poses.around(stamp_ns, tolerance_s), stamp_ns, tolerance_s)
        if pose is None:
            return None, f"no odometry within {tolerance_s:g} s of an image's stamp: remap `odometry`, check its clock"
        if self._base_from_camera is not None:
            return pose @ self._base_from_camera, ""
        if self._child != camera:
            return None, (
                f"odometry is of {self._child or 'an unnamed frame'}, images are of {camera}: its poses are not used; "
                f"set known.base_from_camera to the camera's pose in that frame"
            )
        return pose, ""
