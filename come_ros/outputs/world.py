"""Data kept of all frames since the world began: path, trajectory and map, bounded in memory, and their unit."""

from __future__ import annotations

import math
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
from ..mapping.follow import in_map
from ..mapping.mapper import Corrections, LoopCounts, Mapper
from ..messages import Messages
from ..types import F32, F64, Submap
from .cloud import POINT_DTYPE
from .following_map import FollowingMap

AUTO_VOXEL_M, AUTO_VOXEL_SHARE = (
    0.05,
    0.01,
)  # edge of a voxel by itself: m, or of the first median depth: about a pixel's width
MAX_POSES = 100_000  # of the trajectory that is saved: some three hours of ten keyframes a second, about 40 MB
MAX_PENDING = 16  # keyframes that wait for the map's graph; where it does not keep up, the oldest are left out of it


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A copy to be saved. points: the map's, of cloud.POINT_DTYPE. trajectory: stamp in ns -> odom_from_moving (4, 4), as odometry told it.
    map_trajectory: the same where the map has it, map_from_moving."""

    points: NDArray[np.void]
    trajectory: dict[int, F64]
    map_trajectory: dict[int, F64]

    def save(self, folder: Path) -> None:
        """Writes map.ply, map.pcd, trajectory.tum and trajectory_map.tum into the new folder `folder`: all of them or none. Raises
        OutputError."""
        with whole_folder(folder) as part:
            write_ply(part / "map.ply", self.points)
            write_pcd(part / "map.pcd", self.points)
            write_tum(part / "trajectory.tum", self.trajectory)
            write_tum(part / "trajectory_map.tum", self.map_trajectory)


class World:
    """Poses and map of the frames published since the world began, in `config.world_frame`. Any thread may call it.

    The path is kept as messages: each pose is built once, not again for each path. The map is there only if map.enabled. Where loops are
    looked for, `work` does so, and moves path and map; it may take long. path_changes, map_changes: grow whenever there is something new
    to publish of them. metric: whether the model's unit is the metre.
    voxel: edge of the map's voxels, in the unit of its lengths; NaN until the first frame of the world tells it.
    """

    metric = False
    voxel = float("nan")

    def __init__(self, config: Config, messages: Messages) -> None:
        self.messages = messages
        self.path_changes = self.map_changes = 0
        self._lock = threading.Lock()
        self._working = threading.Lock()
        self._trajectory: deque[tuple[int, F64]] = deque(maxlen=MAX_POSES)
        self._path: deque[Any] = deque()
        self._map: FollowingMap | None = None
        self._begin()
        self._wanted_voxel = config.map.voxel
        self.set_config(config)

    def _begin(self) -> None:
        """Nothing is known of the graph."""
        self._mapper: Mapper | None = None
        self._pending: deque[tuple[Submap, int]] = deque(maxlen=MAX_PENDING)
        self._corrections = Corrections.none()
        self._stale = False  # path and map do not follow the corrections yet

    def set_config(self, config: Config) -> None:
        """Changes the parameters: a path that is now too long loses its oldest poses, and a map with another voxel size is
        cleared."""
        wanted = config.map
        with self._lock:
            self.config = config
            self._path = deque(self._path, maxlen=config.path_max_size)
            if self._map is not None and (not wanted.enabled or self._wanted_voxel != wanted.voxel):
                self._map = None
                self.map_changes += 1
            self._wanted_voxel = wanted.voxel
            if wanted.enabled and self._map is None:
                self._map, self.voxel = FollowingMap(1.0, wanted.max_points, config.closes_loops), float("nan")
            elif self._map is not None:
                self._map.max_points = wanted.max_points

    def add_points(self, points: Callable[[], NDArray[np.void]], depth: F32, stamp_ns: int = 0) -> None:
        """Adds the points of a published frame (cloud.POINT_DTYPE, in the odometry frame); `points` is called only if there is a
        map. depth: of the frame, NaN where invalid; its median is the measure of a world without metres."""
        with self._lock:
            if self._map is None:
                return
            if not math.isfinite(self.voxel):
                self.voxel = self._edge(depth)
                if not math.isfinite(self.voxel):
                    return  # nothing of this frame is valid
                self._map.voxel = self.voxel
            self._map.add(points(), stamp_ns, self._corrections)
            self.map_changes += 1

    def _edge(self, depth: F32) -> float:
        """Of a voxel, in the unit of the lengths."""
        wanted = self.config.map.voxel
        if math.isfinite(self.metres()):
            return wanted or AUTO_VOXEL_M
        seen = depth[np.isfinite(depth)]
        return (wanted or AUTO_VOXEL_SHARE) * float(np.median(seen)) if len(seen) else float("nan")

    def add_keyframe(self, submap: Submap, row: int) -> None:
        """A published keyframe of the first camera waits for `work`, if loops are looked for."""
        if self.config.closes_loops:
            with self._lock:
                self._pending.append((submap, row))

    def add_pose(self, stamp_ns: int, odom_from_moving: F64) -> None:
        """Adds a published pose (4, 4)."""
        with self._lock:
            self._path.append(self._path_pose(stamp_ns, self._in_map(odom_from_moving)))
            self._trajectory.append(
                (stamp_ns, odom_from_moving.copy())
            )  # otherwise those of the whole window stay in memory
            self.path_changes += 1

    def map_from_odom(self) -> F64 | None:
        """(4, 4) where the odometry frame lies in the map now; None if there is no frame for the map."""
        return self._corrections.latest() if self.config.closes_loops else None

    @property
    def loops(self) -> LoopCounts | None:
        """How the search for loops went so far; None if there is none."""
        return None if self._mapper is None else self._mapper.counts

    @property
    def keyframes(self) -> int:
        """That the map's graph keeps."""
        return len(self._corrections.stamps_ns)

    def work(self, most: int = MAX_PENDING) -> None:
        """Adds what waits to the graph, the `most` newest of it, and closes loops. Path and map follow in `settle`."""
        with self._working:
            with self._lock:
                waiting = list(self._pending)[-most:]
                self._pending.clear()
                if waiting and self._mapper is None:
                    self._mapper = Mapper(self.metric, self.config.map.max_keyframes)
                mapper = self._mapper
            for submap, row in waiting:
                assert mapper is not None
                closed = mapper.add(submap, row)
                with self._lock:
                    if self._mapper is not mapper:  # another world
                        return
                    self._corrections = mapper.corrections
                    self._stale = self._stale or closed

    def settle(self) -> None:
        """Moves path and map to where the last loop has them, if they are not there yet."""
        while True:
            with self._lock:
                if not self._stale:
                    return
                corrections, poses = self._corrections, list(self._trajectory)[-self.config.path_max_size :]
                followed = None if self._map is None else (self._map, self._map.chunks())
            path = [self._path_pose(stamp, pose) for stamp, pose in _moved(poses, corrections).items()]
            rebuilt = None if followed is None else followed[0].rebuilt(followed[1], corrections)
            with self._lock:
                if self._corrections.version != corrections.version:  # once more, or another world
                    self._stale = self._stale and self._corrections.version > 0
                    continue
                newer = list(self._trajectory)[len(self._trajectory) - self._added_since(poses) :]
                path += [self._path_pose(stamp, self._in_map(pose)) for stamp, pose in newer]
                self._path = deque(path, maxlen=self.config.path_max_size)
                self.path_changes += 1
                if rebuilt is not None and followed is not None and self._map is followed[0]:
                    self._map.swap(rebuilt, followed[1], self._corrections)
                    self.map_changes += 1
                self._stale = False

    def _added_since(self, poses: list[tuple[int, F64]]) -> int:
        """How many poses came after those."""
        last = poses[-1][0] if poses else None
        for count, (stamp, _) in enumerate(reversed(self._trajectory)):
            if stamp == last:
                return count
        return len(self._trajectory)

    def _in_map(self, odom_from_moving: F64) -> F64:
        return self._corrections.latest() @ odom_from_moving if self._corrections.version else odom_from_moving

    def _path_pose(self, stamp_ns: int, pose: F64) -> Any:
        return self.messages.pose_stamped(pose, self.messages.header(stamp_ns, self.config.world_frame))

    def clear(self) -> None:
        """Forgets the path and the map: a new world begins."""
        with self._lock:
            self.path_changes += bool(self._path)
            self._path.clear()
            self._trajectory.clear()
            self._begin()
            if self._map is not None:
                self._map.clear()
                self.voxel = float("nan")  # the next world has a unit of its own
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
        """A copy of the map and the trajectories, after `settle`. Raises OutputError, which says what to do, if there is nothing to
        save."""
        self.settle()
        with self._lock:
            if self._map is None:
                raise OutputError(
                    "there is no map to save: set map.enabled to true; it contains the frames from then on"
                )
            if not self._trajectory:
                raise OutputError("there is no map to save yet: move the camera until odometry is published")
            trajectory = dict(self._trajectory)
            return Snapshot(self._points(), trajectory, _moved(list(trajectory.items()), self._corrections))

    def _points(self) -> NDArray[np.void]:
        return np.empty(0, POINT_DTYPE) if self._map is None else self._map.points()

    def _head(self) -> Any:
        stamp_ns = self._trajectory[-1][0] if self._trajectory else 0
        return self.messages.header(stamp_ns, self.config.world_frame)


def _moved(poses: list[tuple[int, F64]], corrections: Corrections) -> dict[int, F64]:
    """Stamp -> map_from_moving of poses as odometry told them."""
    if not corrections.version or not poses:
        return dict(poses)
    stamps = [stamp for stamp, _ in poses]
    return dict(
        zip(stamps, in_map(np.array(stamps, np.int64), np.stack([p for _, p in poses]), corrections), strict=True)
    )
