"""What a view shows of a folder of results, as arrays: cloud, paths, keyframes with pictures, landmarks, loops. Knows no viewer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import geometry, progress
from ..datasets.stamps import matched
from ..outputs.cloud import colours_of
from ..outputs.voxel_map import cell_keys
from ..results import Results
from ..types import F32, F64, U8
from . import COLUMNS, MOST_KEYFRAMES, MOST_POINTS
from .colours import painted, span
from .keyframes import Shown, evenly, shown_of

SAMPLES, MOST_SAMPLES = (
    3000,
    1_500_000,
)  # points of each frame, and of all, that say when and from where the map was seen
CELLS = 200  # along the scene: of several sightings in a cell the first counts
MOST_LANDMARKS = 20_000
MODES = ("colour", "confidence", "height", "age")


@dataclass(frozen=True, eq=False)
class Cloud:
    """places: (n, 3) float32. colours: (n, 3) uint8. confidence: (n,) float32. seen_s: (n,) float32, when it was first seen, from the first
    image on. range: (n,) float32, from how far; NaN where it is unknown."""

    places: F32
    colours: U8
    confidence: F32
    seen_s: F32
    range: F32

    def __len__(self) -> int:
        return len(self.places)

    @staticmethod
    def none() -> Cloud:
        empty = np.empty(0, np.float32)
        return Cloud(np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8), empty, empty, empty)

    def columns(self) -> tuple[NDArray[Any], ...]:
        """Its arrays, in the order of the fields."""
        return self.places, self.colours, self.confidence, self.seen_s, self.range

    def at(self, rows: Any) -> Cloud:
        """Some of its points."""
        return Cloud(*(column[rows] for column in self.columns()))


@dataclass(frozen=True, eq=False)
class Path:
    """times_s: (n,) from the first image on, ascending. places: (n, 3)."""

    times_s: F64
    places: F64


@dataclass(frozen=True, eq=False)
class Content:
    """title, facts, verdict: in words. up: (3,). world, unit: the frame of places and the unit of lengths, in words. size: of the scene,
    the length that 90 % of the cloud lies within. odometry, path, truth: None where they are unknown; the truth is fitted to the path by a
    similarity. landmarks: (k, 3). loops: (l, 2, 3), positions of keyframes that see the same place. dropped: points that are left out,
    because there were more than wanted."""

    title: str
    facts: str
    verdict: str
    up: F64
    world: str
    unit: str
    size: float
    cloud: Cloud
    odometry: Path | None
    path: Path | None
    truth: Path | None
    keyframes: tuple[Shown, ...]
    landmarks: F64
    loops: F64
    dropped: int = 0

    @property
    def duration_s(self) -> float:
        """Time of the last image."""
        ends = [p.times_s[-1] for p in (self.path, self.odometry) if p is not None and len(p.times_s)]
        return float(max([*ends, *(k.time_s for k in self.keyframes)], default=0.0))


def content_of(
    results: Results, most_points: int = MOST_POINTS, most_keyframes: int = MOST_KEYFRAMES, columns: int = COLUMNS
) -> Content:
    """columns: of the pictures of a keyframe. Raises DatasetError."""
    start_ns = min([*results.trajectory, *results.odometry, *results.stamps_ns], default=0)
    shown, sightings, seen_s = [], [], []
    chosen = {results.stamps_ns[row] for row in evenly(len(results.stamps_ns), most_keyframes)}
    samples = max(1, min(SAMPLES, MOST_SAMPLES // max(1, len(results))))
    for frame in progress.bar(results.frames(), total=len(results), desc="reading frames", unit="frame"):
        time_s = (frame.stamp_ns - start_ns) * 1e-9
        places, _ = frame.points()
        some = places[:: max(1, len(places) // samples)]
        far = np.linalg.norm(some - frame.world_from_camera[:3, 3].astype(np.float32), axis=1)
        sightings.append(np.column_stack([some, far]).astype(np.float32))
        seen_s.append(np.full(len(some), time_s, np.float32))
        if frame.stamp_ns in chosen:
            shown.append(shown_of(frame, time_s, columns))
    points = results.points()
    points = points[np.isfinite(points["x"]) & np.isfinite(points["y"]) & np.isfinite(points["z"])]
    count = len(points)
    if count > most_points:
        points = points[np.sort(np.random.default_rng(0).permutation(count)[:most_points])]
    cloud = _cloud_of(points, sightings, seen_s)
    path = _path_of(results.trajectory, start_ns)
    odometry = _path_of(results.odometry, start_ns)
    return Content(
        title=results.title,
        facts=_facts(results, count),
        verdict=_verdict(results),
        up=up_of([k.pose for k in shown] or list(results.trajectory.values())),
        world=results.world,
        unit=results.unit_text,
        size=_size_of(cloud, path),
        cloud=cloud,
        odometry=_in_unit_of(path, odometry, results.same_unit),
        path=path,
        truth=_fitted(results, start_ns),
        keyframes=tuple(shown),
        landmarks=_some(results.landmarks(), MOST_LANDMARKS),
        loops=_loops_of(results),
        dropped=count - len(points),
    )


def _some(rows: F64, most: int) -> F64:
    """About `most` of them, evenly taken, in an order that is random."""
    return np.random.default_rng(0).permutation(rows[:: max(1, len(rows) // most)])


def _facts(results: Results, points: int) -> str:
    words = [results.kind, f"{len(results)} frames with depth", f"{points:,} points"]
    if results.loops:
        words.append(f"{len(results.loops)} loops closed")
    return ", ".join(words)


def _verdict(results: Results) -> str:
    """The verdict of metrics.json in words, "" without one."""
    found = results.metrics.get("verdict")
    if not isinstance(found, Mapping) or "level" not in found:
        return ""
    reasons = "; ".join(str(reason) for reason in found.get("reasons") or ())
    return f"verdict: {found['level']}" + (f": {reasons}" if reasons else "")


def _cloud_of(points: NDArray[np.void], sightings: list[F32], seen_s: list[F32]) -> Cloud:
    places = np.stack([points[axis] for axis in "xyz"], axis=1)
    far, times = np.full(len(points), np.nan, np.float32), np.zeros(len(points), np.float32)
    seen = np.concatenate(sightings) if sightings else np.empty((0, 4), np.float32)
    if len(seen) and len(points):
        from scipy.spatial import cKDTree

        low, high = np.quantile(seen[:, :3], [0.05, 0.95], axis=0)
        edge = max(float((high - low).max()) / CELLS, 1e-9)
        cells = np.floor(seen[:, :3] / edge).astype(np.int64)
        _, first = np.unique(cell_keys(cells.T), return_index=True)  # of equal ones the first
        tree = cKDTree(seen[first, :3], balanced_tree=False, compact_nodes=False)
        _, nearest = tree.query(places)
        times, far = np.concatenate(seen_s)[first][nearest], seen[first, 3][nearest]
    return Cloud(places, colours_of(points), points["conf"].astype(np.float32), times, far)


def _path_of(poses: Mapping[int, F64], start_ns: int) -> Path | None:
    if not poses:
        return None
    stamps = sorted(poses)
    return Path(_seconds(stamps, start_ns), np.stack([poses[stamp][:3, 3] for stamp in stamps]))


def _seconds(stamps_ns: list[int], start_ns: int) -> F64:
    return np.array([(stamp - start_ns) * 1e-9 for stamp in stamps_ns], np.float64)


def _in_unit_of(path: Path | None, odometry: Path | None, same: bool | None) -> Path | None:
    """The odometry's path in the unit of the map, whose lengths may be metres where odometry's are not. same: whether both have the same
    unit, None where that is not known: then lengths that differ by more than loops can change them tell."""
    if path is None or odometry is None or same:
        return odometry
    start, end = (of(path.times_s[at], odometry.times_s[at]) for of, at in ((max, 0), (min, -1)))
    ours, theirs = (_length_between(p, start, end) for p in (odometry, path))
    ratio = theirs / ours if ours > 0 and theirs > 0 else 1.0
    if same is None and 0.5 < ratio < 2:
        return odometry
    return Path(odometry.times_s, odometry.places * ratio)


def _length_between(path: Path, start_s: float, end_s: float) -> float:
    """Of the way in that time."""
    inside = (path.times_s >= start_s - 1e-9) & (path.times_s <= end_s + 1e-9)
    return float(np.linalg.norm(np.diff(path.places[inside], axis=0), axis=1).sum())


def _fitted(results: Results, start_ns: int) -> Path | None:
    """The true path where the similarity that fits best puts it on ours; None if it is unknown or does not say where it lies."""
    stamps = sorted(results.trajectory)
    truth = matched(stamps, dict(results.truth()))
    if len(truth) < 3:
        return None
    true = np.stack([truth[stamp][:3, 3] for stamp in truth])
    ours = np.stack([results.trajectory[stamp][:3, 3] for stamp in truth])
    if min(np.ptp(true, axis=0).max(), np.ptp(ours, axis=0).max()) < 1e-9:
        return None
    scale, rotation, translation = geometry.umeyama(true, ours)
    return Path(_seconds(list(truth), start_ns), scale * true @ rotation.T + translation)


def _loops_of(results: Results) -> F64:
    pairs = [
        [results.trajectory[stamp][:3, 3] for stamp in pair]
        for pair in results.loops
        if all(stamp in results.trajectory for stamp in pair)
    ]
    return np.array(pairs, np.float64).reshape(-1, 2, 3)


def up_of(poses: list[F64]) -> F64:
    """What the cameras agree to be up: cameras are mostly held upright."""
    mean = -np.mean([pose[:3, 1] for pose in poses], axis=0) if poses else np.zeros(3)
    length = float(np.linalg.norm(mean))
    return mean / length if length > 0.2 else np.array([0.0, 0.0, 1.0])


def _size_of(cloud: Cloud, path: Path | None) -> float:
    places = cloud.places if len(cloud) else (path.places if path is not None else np.zeros((1, 3)))
    low, high = np.quantile(places[:: max(1, len(places) // 100_000)], [0.05, 0.95], axis=0)
    return max(float(np.linalg.norm(high - low)), 1e-6)


Limits = dict[str, tuple[float, float]]
"""of each of MODES but colour: the values with the first and the last colour"""


def limits_of(cloud: Cloud, up: F64) -> Limits:
    """From the 2nd to the 98th percentile of the cloud."""
    return {mode: span(_values_of(cloud, mode, up)) for mode in MODES[1:]}


def painted_cloud(cloud: Cloud, mode: str, up: F64, limits: Limits) -> U8:
    """(n, 3) uint8 of a cloud by one of MODES. limits: of all that is shown, see limits_of."""
    if mode == "colour":
        return cloud.colours
    maps = {"confidence": "viridis", "height": "turbo", "age": "plasma"}
    return painted(_values_of(cloud, mode, up), maps[mode], limits[mode])


def _values_of(cloud: Cloud, mode: str, up: F64) -> NDArray[Any]:
    if mode == "height":
        return cloud.places @ up.astype(np.float32)
    return cloud.confidence if mode == "confidence" else cloud.seen_s
