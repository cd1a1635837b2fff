"""Data kept of all frames since the world began: path, trajectory and map, bounded in memory, and their unit."""

from __future__ import annotations

import itertools
import logging
import math
import operator
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import Config
from ..errors import OutputError
from ..files import whole_folder, write_pcd, write_ply, write_tum
from ..geometry import transform
from ..mapping.aside import Call, directly
from ..mapping.follow import in_map, lengths_in_map
from ..mapping.mapper import Corrections, LoopCounts, Mapper
from ..mapping.saved_map import SavedMap, write_map
from ..messages import NANO, Messages
from ..scale.decide import by_map
from ..scale.metric import given
from ..types import F32, F64, Scale, Submap
from .cloud import POINT_DTYPE, moved, valid_mask
from .following_map import FollowingMap, chunks_of, rebuilt

log = logging.getLogger("come_ros")

# Edge of a voxel by itself: m, or of the first median depth: about a pixel's width
AUTO_VOXEL_M, AUTO_VOXEL_SHARE = 0.05, 0.01
MAX_POSES = 100_000  # of the trajectory that is saved: some three hours of ten keyframes a second, about 40 MB
LEAST_CHANGE = 0.002  # of the logarithm of the scale, that path and map are published again for
MAX_PENDING = 16  # keyframes that wait for the map's graph; where it does not keep up, the oldest are left out of it


@dataclass(frozen=True)
class Whereabouts:
    """Whether the present session is located in the saved map `path` of `keyframes` keyframes. looked, compared: number of keyframes of
    the session, and of pairs of views, that were tried. reason: the most frequent reason why pairs were refused. after_s: time from the
    first image to that moment, NaN until then. unit: length of the odometry's unit in units of the saved map, NaN until then. metres:
    in a unit of the saved map, NaN if unknown."""

    path: str
    keyframes: int
    located: bool
    looked: int
    compared: int
    reason: str
    after_s: float
    unit: float
    metres: float = math.nan


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A copy to be saved. points: the map's, of cloud.POINT_DTYPE. trajectory: stamp in ns -> odom_from_moving (4, 4), as odometry told it.
    map_trajectory: the same where the map has it, map_from_moving; empty where that is not known. keyframes: what `map.load` needs, None
    if the map has none. unsaved: why it must not be saved, "" if it may. unit: of points and map_trajectory, in words, "" for
    the model's own. frame: of points, in words. placed: stamp -> map_from_camera (4, 4) of each used frame as its window has it, which is
    what its depth fits, and what its depth has to be multiplied by to have the unit of the map; empty where the map is not known."""

    points: NDArray[np.void]
    trajectory: dict[int, F64]
    map_trajectory: dict[int, F64]
    keyframes: SavedMap | None = None
    unsaved: str = ""
    unit: str = ""
    frame: str = "odometry frame"
    placed: dict[int, tuple[F64, float]] = field(default_factory=dict)

    def save_keyframes(self, folder: Path) -> None:
        """Writes what `map.load` needs into the new folder `folder`, all or nothing. There must be keyframes. Raises OutputError."""
        assert self.keyframes is not None
        with whole_folder(folder) as part:
            write_map(self.keyframes, part)

    def save(self, folder: Path) -> None:
        """Writes map.ply, map.pcd, trajectory.tum and trajectory_map.tum, and the files of saved_map.py where there are keyframes, into the
        new folder `folder`: all of them or none. Raises OutputError."""
        if self.unsaved:
            raise OutputError(self.unsaved)
        with whole_folder(folder) as part:
            if self.keyframes is not None:
                write_map(self.keyframes, part)
            write_ply(part / "map.ply", self.points, self.unit, self.frame)
            write_pcd(part / "map.pcd", self.points, self.unit)
            write_tum(part / "trajectory.tum", self.trajectory)
            if self.map_trajectory:
                write_tum(part / "trajectory_map.tum", self.map_trajectory, self.unit)


class World:
    """Poses and map of the frames published since the world began, in `config.world_frame`. Any thread may call it.

    The path is kept as messages: each pose is built once, not again for each path. The map is there only if map.enabled. Where loops are
    looked for, `work` does so, and moves path and map; it may take long. Where the scale is known, lengths in `map_frame` are metres,
    whatever the unit of the odometry: what is kept has the latter, and is multiplied where it is published. path_changes, map_changes:
    grow whenever there is something new to publish of them. metric: whether the model's unit is the metre. voxel: edge of the map's
    voxels, in the odometry's unit; NaN until the first frame of the world tells it.
    """

    voxel = float("nan")
    _scale: Scale | None = None
    _factor = 1.0  # of the unit of path and map, as they are published now, in a unit of the odometry
    _in_saved_unit = (
        False  # whether the map's points and voxel have the saved map's unit: until it is built in the session's unit
    )

    def __init__(
        self, config: Config, messages: Messages, metric: bool = False, saved: SavedMap | None = None, places: str = "",
        call: Call = directly,
    ) -> None:  # fmt: skip
        """saved: the map to start in. places: Backbone.places of the model, see SavedMap. call: runs what takes long."""
        self._call = call
        self.messages, self.metric, self.saved, self._places = messages, metric, saved, places
        self.path_changes = self.map_changes = 0
        self._lock = threading.Lock()
        self._working = threading.Lock()
        self._trajectory: deque[tuple[int, int, F64]] = deque(maxlen=MAX_POSES)  # session, stamp, pose
        self._frames: deque[tuple[int, int, F64]] = deque(
            maxlen=MAX_POSES
        )  # the same of the used frames, by their windows
        self._path: deque[Any] = deque()
        self._map: FollowingMap | None = None
        self.config = config
        self._begin()
        self._wanted_voxel = config.map.voxel
        self.set_config(config)

    def _begin(self) -> None:
        """Starts a new graph, with the saved map if there is one."""
        self._era = object()  # of the world
        self._mapper: Mapper | None = None if self.saved is None else self._new_mapper()
        self._pending: deque[tuple[Submap, int]] = deque(maxlen=MAX_PENDING)
        self._corrections = Corrections.none() if self._mapper is None else self._mapper.corrections
        self._scale, self._factor, self._path_factor = None, 1.0, 1.0
        self._stale = self.saved is not None  # path and map do not follow the corrections yet
        # of poses and of points, which come in different threads; see Keyframe.session
        self._sessions = [self._corrections.saved] * 2
        self._newest_ns = [0, 0]
        self._first_ns = self._located_ns = 0

    def _new_mapper(self) -> Mapper:
        metric = self.metric and (self.saved is None or self.saved.metres == 1.0)
        c = self.config
        return Mapper(metric, c.map.max_keyframes, c.closes_loops, self.saved, c.localizes, self._call)

    def _session(self, what: int, stamp_ns: int) -> int:
        """The session of the next pose (what = 0) or points (1): a new one starts when stamps jump back (on_time_jump is keep_pose)."""
        self._sessions[what] += stamp_ns < self._newest_ns[what]
        self._newest_ns[what] = stamp_ns
        return self._sessions[what]

    def _new_map(self, config: Config) -> None:
        """Creates an empty map, or one that holds the saved map's points after `settle`."""
        self._map, self.voxel = FollowingMap(1.0, config.map.max_points, config.has_map_frame), float("nan")
        self._in_saved_unit = self.saved is not None
        if self.saved is not None:
            self.voxel = self._map.voxel = self._saved_voxel(self.saved)
            for key, chunk in chunks_of(self.saved):
                self._map.hang(key, chunk, self._corrections)
            self._stale = True

    def _saved_voxel(self, saved: SavedMap) -> float:
        """Edge of the voxels of a saved map, in its unit."""
        if self.config.map.voxel == 0 and math.isfinite(saved.voxel):
            return saved.voxel
        if math.isfinite(saved.metres):
            return (self.config.map.voxel or AUTO_VOXEL_M) / saved.metres
        usual = [k.view.usual_depth for k in saved.keyframes if k.view is not None]
        return (self.config.map.voxel or AUTO_VOXEL_SHARE) * float(np.median(usual))

    def set_config(self, config: Config) -> None:
        """Changes the parameters: a path that is now too long loses its oldest poses, and a map with another voxel size is
        cleared."""
        wanted = config.map
        with self._lock:
            self.config = config
            self._path = deque(self._path, maxlen=config.path_max_size)
            if self._map is not None and (not wanted.enabled or self._wanted_voxel != wanted.voxel):
                self._map, self._in_saved_unit = None, False
                self.map_changes += 1
            self._wanted_voxel = wanted.voxel
            if wanted.enabled and self._map is None:
                self._new_map(config)
            elif self._map is not None:
                self._map.max_points = wanted.max_points

    def add_points(self, points: Callable[[], NDArray[np.void]], depth: F32, stamp_ns: int = 0) -> None:
        """Adds the points of a published frame (cloud.POINT_DTYPE, in the odometry frame); `points` is called only if there is a
        map. depth: of the frame, NaN where invalid; its median is the measure of a world without metres."""
        with self._lock:
            session = self._session(1, stamp_ns)
            if self._map is None or self.config.localizes:
                return
            if not self._corrections.located:
                edge = self._edge(depth)
                if math.isfinite(edge):
                    self._map.add_aside(points(), (session, stamp_ns), self._corrections, edge)
                return
            if not math.isfinite(self.voxel):
                self.voxel = self._edge(depth)
                if not math.isfinite(self.voxel):
                    return  # nothing of this frame is valid
                self._map.voxel = self.voxel
            self._map.add(points(), (session, stamp_ns), self._corrections)
            self.map_changes += 1

    def _edge(self, depth: F32) -> float:
        """Of a voxel, in the unit of the lengths."""
        wanted = self.config.map.voxel
        if self._odometry_in_metres:
            return (wanted or AUTO_VOXEL_M) / self._factor
        seen = depth[np.isfinite(depth)]
        return (wanted or AUTO_VOXEL_SHARE) * float(np.median(seen)) if len(seen) else float("nan")

    def add_keyframe(self, submap: Submap, row: int) -> None:
        """A published keyframe of the first camera, after its points; it waits for `work`, if the map may move."""
        with self._lock:
            pose = submap.odom_from_camera[row].copy()
            self._frames.append((self._sessions[1], submap.frames[row].stamp_ns, pose))
            if self.config.has_map_frame:
                self._first_ns = self._first_ns or submap.frames[row].stamp_ns
                self._pending.append((submap, row))

    def add_pose(self, stamp_ns: int, odom_from_moving: F64) -> None:
        """Adds a published pose (4, 4)."""
        with self._lock:
            session = self._session(0, stamp_ns)
            self._first_ns = self._first_ns or stamp_ns
            # copied: otherwise those of the whole window stay in memory
            self._trajectory.append((session, stamp_ns, odom_from_moving.copy()))
            if self._corrections.located:
                self._path.append(self._path_pose(stamp_ns, self._in_map(odom_from_moving)))
                self.path_changes += 1

    def learn_scale(self, scale: Scale) -> None:
        """How long units are, as measured by now."""
        with self._lock:
            self._scale = scale
            self._follow_unit()

    def _follow_unit(self) -> None:
        """The unit of the map may have changed. A change that hardly matters waits for more: listeners get path and map again with each."""
        factor = self._unit_of_map()
        if abs(math.log(factor / self._factor)) > LEAST_CHANGE:
            self._factor = factor
            self.path_changes += bool(self._path)
            self.map_changes += self._map is not None

    def _unit_of_map(self) -> float:
        """Of a unit of the odometry: metres where they are known, units of the saved map where the session is located in one, so that a
        place keeps its coordinates from session to session, else 1."""
        scale, corrections = self.known_scale, self._corrections
        if not self.config.has_map_frame:
            return 1.0
        if scale.known:
            return scale.correction
        return corrections.unit if self.saved is not None and corrections.located else 1.0

    @property
    def known_scale(self) -> Scale:
        """Of the model's unit and the odometry's: as measured, else by the saved map in which the session is located."""
        scale, corrections = self._scale or given(self.config, self.metric), self._corrections
        if scale.known or self.saved is None or not corrections.located or not math.isfinite(self.saved.metres):
            return scale
        return by_map(scale, self.saved.metres * corrections.unit, self.saved.sigma)

    @property
    def in_metres(self) -> bool:
        """Whether the lengths of path and map are metres, as they are published."""
        if self._in_saved_unit and self.saved is not None:
            return math.isfinite(self.saved.metres)
        return self._odometry_in_metres

    @property
    def _map_factor(self) -> float:
        """From the unit of the map's points and voxel to the one that they are published in."""
        if self._in_saved_unit and self.saved is not None:
            return self.saved.metres if math.isfinite(self.saved.metres) else 1.0
        return self._factor

    @property
    def _odometry_in_metres(self) -> bool:
        """Whether the odometry's lengths, times `_factor`, are metres."""
        scale = self.known_scale
        return scale.in_metres or (scale.known and self.config.has_map_frame)

    def map_from_odom(self, odom_from_moving: F64 | None = None) -> F64 | None:
        """(4, 4) where the odometry frame lies in the map for a robot at `odom_from_moving`, by default at its origin; None if there is
        no frame for the map, and as long as the session has not found itself in the saved map. TF knows no scale, so where the two have
        different units this moves with the robot."""
        corrections, factor = self._corrections, self._factor
        if not (self.config.has_map_frame and corrections.located):
            return None
        latest = corrections.latest()
        if factor == 1.0:
            return latest
        place = np.zeros(3) if odom_from_moving is None else odom_from_moving[:3, 3]
        turned = latest[:3, :3] @ place
        return transform(latest[:3, :3], factor * (turned + latest[:3, 3]) - turned)

    @property
    def searches(self) -> bool:
        """Whether there is a saved map in which the session is not located yet."""
        return not self._corrections.located

    @property
    def whereabouts(self) -> Whereabouts | None:
        """Location in the saved map; None if there is no saved map."""
        with self._lock:
            saved, mapper, corrections = self.saved, self._mapper, self._corrections
            if saved is None or mapper is None:
                return None
            after_s = (self._located_ns - self._first_ns) / NANO if self._located_ns else math.nan
        search = mapper.search
        refused = dict(search.refused)  # the other thread goes on counting
        reason = max(refused, key=refused.__getitem__, default="no view looks like it")
        return Whereabouts(
            saved.path, len(saved.keyframes), corrections.located, search.keyframes, search.compared, reason, after_s,
            corrections.unit if corrections.located else math.nan, saved.metres,
        )  # fmt: skip

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
                waiting, found = list(self._pending), False
                self._pending.clear()
                if waiting and self._mapper is None:
                    self._mapper = self._new_mapper()
                mapper = self._mapper
                c = self.config
                # thumbnails take memory: only for keyframes that `snapshot` may save
                trusted = self._trusted if c.map.enabled and c.closes_loops and not c.localizes else None
            for submap, row in waiting[:-most]:
                assert mapper is not None
                mapper.pass_by(submap, row)
            for submap, row in waiting[-most:]:
                assert mapper is not None
                closed = mapper.add(submap, row, trusted)
                with self._lock:
                    if self._mapper is not mapper:  # another world
                        return
                    self._stale = self._stale or closed
                    if mapper.located and not self._corrections.located:
                        self._located_ns = max(self._newest_ns[0], submap.frames[-1].stamp_ns)
                        found = True
                    self._corrections = mapper.corrections
                    self._follow_unit()
            if found and (place := self.whereabouts) is not None:
                log.info(
                    "found in the map %s after %.1f s and %d keyframes: one unit of this odometry is %.3g of the map's",
                    place.path, place.after_s, place.looked, place.unit,
                )  # fmt: skip

    def _trusted(self, submap: Submap, row: int) -> NDArray[np.bool_]:
        return valid_mask(submap.depth[row], submap.confidence[row], self.config)

    def settle(self) -> None:
        """Moves path and map to where the last loop has them, if they are not there yet."""
        while True:
            with self._lock:
                if not self._stale:
                    return
                era, corrections = self._era, self._corrections
                poses = list(self._trajectory)[-self.config.path_max_size :]
                followed = None if self._map is None else (self._map, self._map.chunks())
                voxel = self.voxel if self.saved is None else self._saved_voxel(self.saved) / corrections.unit
            factor = self._factor
            path = [self._path_pose(stamp, pose) for stamp, pose in _moved(poses, corrections, factor)]
            new = None
            if followed is not None:
                new = self._call(rebuilt, followed[1], corrections, voxel, followed[0].max_points)
            with self._lock:
                if self._era is not era or self._corrections.version != corrections.version:
                    continue  # another world, or once more
                self._path_factor = factor
                if corrections.located:
                    newer = list(self._trajectory)[len(self._trajectory) - self._added_since(poses) :]
                    path += [self._path_pose(stamp, self._in_map(pose)) for _, stamp, pose in newer]
                self._path = deque(path, maxlen=self.config.path_max_size)
                self.path_changes += 1
                if new is not None and followed is not None and self._map is followed[0]:
                    self._map.swap(new, followed[1], self._corrections)
                    self.voxel = voxel
                    self._in_saved_unit = not corrections.located
                    self.map_changes += 1
                self._stale = False

    def _added_since(self, poses: list[tuple[int, int, F64]]) -> int:
        """How many poses came after those."""
        last = poses[-1][:2] if poses else None
        for count, (session, stamp, _) in enumerate(reversed(self._trajectory)):
            if (session, stamp) == last:
                return count
        return len(self._trajectory)

    def _in_map(self, odom_from_moving: F64) -> F64:
        moved = self._corrections.latest() @ odom_from_moving if self._corrections.version else odom_from_moving
        return _scaled(moved, self._path_factor)

    def _scale_path(self) -> None:
        """Builds the path again if it has another unit than the map."""
        with self._lock:
            era, factor, corrections = self._era, self._factor, self._corrections
            poses = list(self._trajectory)[-self.config.path_max_size :]
            if factor == self._path_factor or not poses or not corrections.located:
                self._path_factor = factor
                return
        path = [self._path_pose(stamp, pose) for stamp, pose in _moved(poses, corrections, factor)]
        with self._lock:
            if self._era is not era:
                return
            newer = list(self._trajectory)[len(self._trajectory) - self._added_since(poses) :]
            self._path_factor = factor
            path += [self._path_pose(stamp, self._in_map(pose)) for _, stamp, pose in newer]
            self._path = deque(path, maxlen=self.config.path_max_size)

    def _path_pose(self, stamp_ns: int, pose: F64) -> Any:
        return self.messages.pose_stamped(pose, self.messages.header(stamp_ns, self.config.world_frame))

    def clear(self) -> None:
        """Forgets the path and the map: a new world begins."""
        with self._lock:
            self.path_changes += bool(self._path)
            self._path.clear()
            self._trajectory.clear()
            self._frames.clear()
            self._begin()
            if self._map is not None:
                self._new_map(self.config)  # the next world has a unit of its own
                self.map_changes += 1

    def path(self) -> Any:
        """The Path of the last path_max_size poses, stamped as the last one."""
        self._scale_path()
        with self._lock:
            return self.messages.path(list(self._path), self._head())

    def map_points(self) -> Any:
        """The map as PointCloud2, stamped as the last pose; empty if there is none."""
        with self._lock:
            return self.messages.point_cloud(self._points(), self._head())

    @property
    def map_voxel(self) -> float:
        """`voxel` in the unit that the map is published in."""
        return self.voxel * self._map_factor

    def scale(self) -> Any:
        """`metres` as Float64."""
        return self.messages.number(self.metres())

    def metres(self) -> float:
        """Metres per unit of the model, NaN if unknown."""
        return self.known_scale.metres

    def snapshot(self) -> Snapshot:
        """A copy of the map and the trajectories, after `settle`. Raises OutputError, which says what to do, if there is nothing to
        save."""
        self.settle()
        with self._working, self._lock:
            if self._map is None:
                raise OutputError(
                    "there is no map to save: set map.enabled to true; it contains the frames from then on"
                )
            if not self._trajectory:
                raise OutputError("there is no map to save yet: move the camera until odometry is published")
            trajectory = {stamp: pose for _, stamp, pose in self._trajectory}
            located, mapper, unsaved = self._corrections.located, self._mapper, ""
            if not located and not self.config.localizes:
                unsaved = (
                    f"this session has not found itself in the map {self.saved.path if self.saved else ''} yet, so it cannot be saved as a "
                    f"part of it: move the camera to a place that the map shows, or start without map.load"
                )
            keyframes = None
            if mapper is not None and located and self.config.closes_loops and not self.config.localizes:
                keyframes = mapper.save(self._places, *self._metres_saved(), self.voxel)
            in_map = dict(_moved(list(self._trajectory), self._corrections, self._factor))
            frame = "map frame" if self.config.has_map_frame else "odometry frame"
            placed = {
                stamp: (pose, length)
                for stamp, pose, length in _placed(list(self._frames), self._corrections, self._factor)
            }
            return Snapshot(self._points(), trajectory, in_map, keyframes, unsaved, self.unit_text, frame, placed)

    def _metres_saved(self) -> tuple[float, float]:
        """Metres per unit of the lengths of the map's graph, which are the odometry's, and the sigma of their logarithm; NaN if unknown."""
        scale = self.known_scale
        return (scale.correction, scale.sigma) if self._odometry_in_metres else (math.nan, math.nan)

    @property
    def unit_text(self) -> str:
        """The unit of the map and where it comes from, for files; "" for the model's own."""
        scale = self.known_scale
        if not self.in_metres:
            return ""
        if self._in_saved_unit:
            return "lengths in metres, from the saved map"
        return f"lengths in metres, from {scale.source}, sigma {100 * scale.sigma:.1f} %"

    def _points(self) -> NDArray[np.void]:
        if self._map is None:
            return np.empty(0, POINT_DTYPE)
        points, factor = self._map.points(), self._map_factor
        return points if factor == 1.0 else moved(points, np.diag([factor] * 3 + [1.0]))

    def _head(self) -> Any:
        stamp_ns = self._trajectory[-1][1] if self._trajectory else 0
        return self.messages.header(stamp_ns, self.config.world_frame)


def _moved(poses: list[tuple[int, int, F64]], corrections: Corrections, factor: float) -> list[tuple[int, F64]]:
    """Stamp and map_from_moving of poses (session, stamp, pose) as odometry told them; of sessions that are in the map. factor: metres
    of the map in a unit of the odometry."""
    return [(stamp, pose) for stamp, pose, _ in _placed(poses, corrections, factor)]


def _placed(poses: list[tuple[int, int, F64]], corrections: Corrections, factor: float) -> list[tuple[int, F64, float]]:
    """The same, and the length of the odometry's unit there in the unit of what is returned."""
    out: list[tuple[int, F64, float]] = []
    for session, group in itertools.groupby(poses, operator.itemgetter(0)):
        rows = list(group)
        if not corrections.knows(session):
            continue
        stamps, matrices = [stamp for _, stamp, _ in rows], [pose for _, _, pose in rows]
        lengths = np.ones(len(rows))
        if corrections.of(session).version:
            times = np.array(stamps, np.int64)
            matrices = list(in_map(times, np.stack(matrices), corrections.of(session)))
            lengths = lengths_in_map(times, corrections.of(session))
        moved = (_scaled(pose, factor) for pose in matrices)
        out += zip(stamps, moved, (factor * lengths).tolist(), strict=True)
    return out


def _scaled(poses: F64, factor: float) -> F64:
    """Poses (..., 4, 4) whose lengths are `factor` times as long."""
    if factor == 1.0:
        return poses
    out = poses.copy()
    out[..., :3, 3] *= factor
    return out
