"""Data kept of all frames since the world began: path, trajectory and map, bounded in memory, and their unit."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import Config
from ..errors import OutputError
from ..files import whole_folder, write_pcd, write_ply, write_tum
from ..messages import Messages
from ..types import F64
from .cloud import POINT_DTYPE
from .voxel_map import VoxelMap

MAX_POSES = 100_000  # of the trajectory that is saved: some three hours of ten keyframes a second, about 40 MB


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A copy to be saved. points: the map's, of cloud.POINT_DTYPE. trajectory: stamp in ns -> odom_from_camera (4, 4)."""

    points: NDArray[np.void]
    trajectory: dict[int, F64]

    def save(self, folder: Path) -> None:
        """Writes map.ply, map.pcd and trajectory.tum into the new folder `folder`: all of them or none. Raises OutputError."""
        with whole_folder(folder) as part:
            write_ply(part / "map.ply", self.points)
            write_pcd(part / "map.pcd", self.points)
            write_tum(part / "trajectory.tum", self.trajectory)


class World:
    """Poses and map of the frames published since the world began, in `config.odom_frame`. Any thread may call it.

    The path is kept as messages: each pose is built once, not again for each path. The map is there only if map.enabled.
    path_changes, map_changes: counters that grow when the path or map changes. metric: whether the model's unit is the metre.
    """

    metric = False

    def __init__(self, config: Config, messages: Messages) -> None:
        self.messages = messages
        self.path_changes = self.map_changes = 0
        self._lock = threading.Lock()
        self._trajectory: deque[tuple[int, F64]] = deque(maxlen=MAX_POSES)
        self._path: deque[Any] = deque()
        self._map: VoxelMap | None = None
        self.set_config(config)

    def set_config(self, config: Config) -> None:
        """Changes the parameters: a path that is now too long loses its oldest poses, and a map with another voxel size is
        cleared."""
        wanted = config.map
        with self._lock:
            self.config = config
            self._path = deque(self._path, maxlen=config.path_max_size)
            if self._map is not None and (not wanted.enabled or self._map.voxel != wanted.voxel):
                self._map = None
                self.map_changes += 1
            if wanted.enabled and self._map is None:
                self._map = VoxelMap(wanted.voxel, wanted.max_points)
            elif self._map is not None:
                self._map.max_points = wanted.max_points

    def add_points(self, points: Callable[[], NDArray[np.void]]) -> None:
        """Adds the points of a published frame (cloud.POINT_DTYPE, in the odometry frame); `points` is called only if there is a
        map."""
        with self._lock:
            if self._map is not None:
                self._map.add(points())
                self.map_changes += 1

    def add_pose(self, stamp_ns: int, odom_from_moving: F64) -> None:
        """Adds a published pose (4, 4)."""
        with self._lock:
            head = self.messages.header(stamp_ns, self.config.odom_frame)
            self._path.append(self.messages.pose_stamped(odom_from_moving, head))
            self._trajectory.append(
                (stamp_ns, odom_from_moving.copy())
            )  # otherwise those of the whole window stay in memory
            self.path_changes += 1

    def clear(self) -> None:
        """Forgets the path and the map: a new world begins."""
        with self._lock:
            self.path_changes += bool(self._path)
            self._path.clear()
            self._trajectory.clear()
            if self._map is not None:
                self._map.clear()
                self.map_changes += 1

    def path(self) -> Any:
        """The Path of the last path_max_size poses, stamped as the last one."""
        with self._lock:
            return self.messages.path(list(self._path), self._head())

    def map_points(self) -> Any:
        """The map as PointCloud2, stamped as the last pose; empty if there is none."""
        with self._lock:
            return self.messages.point_cloud(self._points(), self._head())

    def scale(self) -> Any:
        """`metres` as Float64."""
        return self.messages.number(self.metres())

    def metres(self) -> float:
        """Metres per unit of the model, NaN if unknown."""
        unknown = 1.0 if self.metric else float("nan")
        return self.config.scale.fixed if self.config.scale.mode == "fixed" else unknown

    def snapshot(self) -> Snapshot:
        """A copy of the map and the trajectory. Raises OutputError, which says what to do, if there is nothing to save."""
        with self._lock:
            if self._map is None:
                raise OutputError(
                    "there is no map to save: set map.enabled to true; it contains the frames from then on"
                )
            if not self._trajectory:
                raise OutputError("there is no map to save yet: move the camera until odometry is published")
            return Snapshot(self._points(), dict(self._trajectory))

    def _points(self) -> NDArray[np.void]:
        return np.empty(0, POINT_DTYPE) if self._map is None else self._map.points()

    def _head(self) -> Any:
        stamp_ns = self._trajectory[-1][0] if self._trajectory else 0
        return self.messages.header(stamp_ns, self.config.odom_frame)
