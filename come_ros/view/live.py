"""The scene of a running node, from what it publishes, bounded in memory. Knows neither ROS nor a viewer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..geometry import inverse
from ..outputs.voxel_map import cell_keys
from ..results import ResultFrame
from ..types import F32, F64, U8
from . import LIVE_POINTS
from .content import Cloud, Content, Path, up_of
from .keyframes import Shown, shown_of
from .server import Batch

MOST_CAMERAS, MOST_POSES = 150, 20_000
CELL_SHARE = 0.01  # edge of the cells that hold one point each, in the first frame's median depth
NEW_SHARE = (
    0.02  # of the cells that a frame sees: fewer new ones are noise, and a camera that stands still adds nothing
)
MOVED_SHARE = 0.02  # in its median depth: how far a loop must move a frame for its points to be drawn again


@dataclass(eq=False)
class _Frame:
    """What is kept of a frame: its points in the odometry frame, and map_from_odom where they are drawn."""

    stamp_ns: int
    places: F32
    colours: U8
    confidence: F32
    range: F32
    depth: float
    keys: NDArray[np.int64]
    correction: F64


class LiveScene:
    """Collects frames and paths of one node. Not for several threads at once. frames: how many came. worlds: how often it began again."""

    def __init__(self, title: str, most_points: int = LIVE_POINTS) -> None:
        self.title, self.most_points, self.worlds = title, most_points, 0
        self.facts: Mapping[str, str] = {}
        self._begin()

    def _begin(self) -> None:
        self.frames, self._edge, self._start_ns = 0, 0.0, 0
        self._kept: dict[str, _Frame] = {}
        self._changed: set[str] = set()
        self._gone: list[str] = []
        self._keys = np.empty(0, np.int64)
        self._cameras: list[tuple[Shown, F64]] = []  # with odom_from_camera
        self._odometry: dict[int, F64] = {}
        self._path: dict[int, F64] = {}
        self._correction = np.eye(4)

    def add_pose(self, stamp_ns: int, odom_from_camera: F64) -> None:
        """A pose of the odometry. One that is older than the last by over a second begins a new world."""
        last = next(reversed(self._odometry), stamp_ns)
        if stamp_ns < last - 1_000_000_000:
            self.restart()
        self._odometry[stamp_ns] = odom_from_camera
        while len(self._odometry) > MOST_POSES:
            del self._odometry[next(iter(self._odometry))]

    def restart(self) -> None:
        """Forgets everything: the node has begun a new world."""
        gone = [*self._gone, *self._kept]
        self._begin()
        self._gone, self.worlds = gone, self.worlds + 1

    def add_path(self, map_from_camera: Mapping[int, F64]) -> None:
        """The path in the map, as published: where loops have moved it, points follow."""
        if self._path and (not map_from_camera or max(map_from_camera) < min(self._path)):
            self.restart()
        if self.facts.get("odom_unit") != self.facts.get("map_unit"):
            return  # points are in the odometry's unit
        self._path = dict(map_from_camera)
        both = [stamp for stamp in sorted(self._path) if stamp in self._odometry]
        if not both:
            return
        self._correction = self._path[both[-1]] @ inverse(self._odometry[both[-1]])
        for name, frame in self._kept.items():
            wanted = self._correction_at(frame.stamp_ns)
            if np.linalg.norm(wanted[:3, 3] - frame.correction[:3, 3]) > MOVED_SHARE * frame.depth or (
                np.abs(wanted[:3, :3] - frame.correction[:3, :3]).max() > MOVED_SHARE
            ):
                frame.correction = wanted
                self._changed.add(name)

    def _correction_at(self, stamp_ns: int) -> F64:
        if stamp_ns in self._path and stamp_ns in self._odometry:
            return np.asarray(self._path[stamp_ns] @ inverse(self._odometry[stamp_ns]))
        return self._correction

    def add_frame(self, frame: ResultFrame) -> None:
        """A frame with depth; world_from_camera is odom_from_camera."""
        known = np.isfinite(frame.depth)
        if not known.any():
            return
        depth = float(np.median(frame.depth[known]))
        self._edge = self._edge or CELL_SHARE * depth
        self._start_ns = self._start_ns or frame.stamp_ns
        self.frames += 1
        correction = self._correction_at(frame.stamp_ns)
        moved = replace(frame, world_from_camera=correction @ frame.world_from_camera)
        time_s = (frame.stamp_ns - self._start_ns) * 1e-9
        self._cameras.append((shown_of(moved, time_s), frame.world_from_camera))
        if len(self._cameras) > MOST_CAMERAS:
            self._cameras = self._cameras[: -MOST_CAMERAS // 3 : 2] + self._cameras[-MOST_CAMERAS // 3 :]
        self._add_points(frame, known, depth, correction)

    def _add_points(self, frame: ResultFrame, known: NDArray[np.bool_], depth: float, correction: F64) -> None:
        """Those of its points whose cells are empty; the oldest frames' points make room."""
        places, _ = frame.points()
        cells = np.floor(places / self._edge).astype(np.int64)
        keys, first = np.unique(cell_keys(cells.T), return_index=True)
        new = ~np.isin(keys, self._keys, assume_unique=True)
        rows, keys = first[new], keys[new]
        if len(rows) < max(1.0, NEW_SHARE * len(new)):
            return
        image = frame.image if frame.image is not None else frame.overlay
        colours = np.full((len(places), 3), 128, np.uint8) if image is None else image[known]
        sure = np.ones(len(places), np.float32) if frame.confidence is None else frame.confidence[known]
        far = np.linalg.norm(places - frame.world_from_camera[:3, 3].astype(np.float32), axis=1)
        name = f"{self.worlds}_{self.frames:06d}"
        self._kept[name] = _Frame(
            frame.stamp_ns, places[rows], colours[rows], sure[rows], far[rows].astype(np.float32), depth, keys, correction
        )  # fmt: skip
        self._changed.add(name)
        self._keys = np.union1d(self._keys, keys)
        while len(self._keys) > self.most_points and len(self._kept) > 1:
            oldest = next(iter(self._kept))
            self._keys = np.setdiff1d(self._keys, self._kept.pop(oldest).keys, assume_unique=True)
            self._gone.append(oldest)
            self._changed.discard(oldest)

    def batches(self) -> tuple[list[Batch], tuple[str, ...]]:
        """What has to be drawn since the last call, and the names of what has to go."""
        changed, gone = [self._batch(name) for name in sorted(self._changed)], tuple(self._gone)
        self._changed, self._gone = set(), []
        return changed, gone

    def _batch(self, name: str) -> Batch:
        frame = self._kept[name]
        turn, shift = frame.correction[:3, :3].astype(np.float32), frame.correction[:3, 3].astype(np.float32)
        time_s = (frame.stamp_ns - self._start_ns) * 1e-9
        seen = np.full(len(frame.places), time_s, np.float32)
        return Batch(
            name, time_s, Cloud(frame.places @ turn.T + shift, frame.colours, frame.confidence, seen, frame.range)
        )

    def content(self) -> Content:
        """Everything but the points, which `batches` has; `cloud` holds those of the first frame, to choose a first look by."""
        cloud = self._batch(next(iter(self._kept))).cloud if self._kept else Cloud.none()
        cameras = [self._placed(shown, pose) for shown, pose in self._cameras]
        metres = "metre" in self.facts.get("map_unit", "")
        facts = f"live: {self.frames} frames with depth, {len(self._keys):,} points"
        if loops := int(self.facts.get("loops_closed", "0") or 0):
            facts += f", {loops} loops closed"
        verdict = self.facts.get("verdict", "")
        depths = [frame.depth for frame in self._kept.values()]
        unit = "lengths in metres" if metres else "lengths in the model's own unit"
        return Content(
            title=self.title, facts=facts, verdict=f"verdict: {verdict}" if verdict not in ("", "none") else "",
            up=up_of([shown.pose for shown in cameras]), world="map frame", unit=unit,
            size=2.0 * float(np.median(depths)) if depths else 1.0, cloud=cloud, odometry=self._line(self._odometry),
            path=self._line(self._path), truth=None, keyframes=tuple(cameras), landmarks=np.zeros((0, 3)),
            loops=np.zeros((0, 2, 3)),
        )  # fmt: skip

    def _placed(self, shown: Shown, odom_from_camera: F64) -> Shown:
        pose = self._correction_at(shown.stamp_ns) @ odom_from_camera
        return shown if np.allclose(pose, shown.pose, atol=1e-6) else self._replaced(shown, pose)

    def _replaced(self, shown: Shown, pose: F64) -> Shown:
        moved = replace(shown, pose=pose)
        self._cameras = [(moved if each is shown else each, odom) for each, odom in self._cameras]
        return moved

    def _line(self, poses: Mapping[int, F64]) -> Path | None:
        if len(poses) < 2:
            return None
        stamps = sorted(poses)
        return Path(
            np.array([(t - self._start_ns) * 1e-9 for t in stamps]), np.stack([poses[t][:3, 3] for t in stamps])
        )
