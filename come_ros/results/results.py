"""A folder of results as one value, whatever made it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..camera.preprocess import in_model_pixels
from ..datasets.rosbag import Bag
from ..datasets.stamps import NearestDepth
from ..datasets.storage import is_recording
from ..datasets.tum import read_trajectory
from ..errors import DatasetError, MapError
from ..files import read_ply, shown
from ..geometry import apply, unproject
from ..mapping.saved_map import HEAD, SavedMap, map_folder, read_map
from ..outputs.cloud import POINT_DTYPE, points_of
from ..outputs.frames_file import FRAMES, read_frames
from ..outputs.voxel_map import VoxelMap
from ..outputs.world import AUTO_VOXEL_SHARE
from ..types import F32, F64, U8
from .recorded import NodeRecording, Recorded

BAG, DEMO, MAP, RECORDING = "come_ros bag", "come_ros demo", "saved map", "recording of the node"
MOST_POINTS = 2_000_000  # of a cloud that is made of the frames
MODEL_UNIT = "lengths in the model's own unit, which is not known in metres"


@dataclass(frozen=True, eq=False)
class ResultFrame:
    """A frame with depth. image: (H, W, 3) uint8, RGB, as the model saw it; None if it was not kept. depth: (H, W) float32 along z, in the
    unit of the results, NaN where it is unknown or not trusted. confidence: (H, W) float32, larger is more confident; None if it was not
    kept. intrinsics: (3, 3), px of all of these; pixel centres lie at whole numbers. world_from_camera: (4, 4), optical axes, in the frame
    and the unit of the results. overlay: (H, W, 3) uint8, the image, dark where tokens were merged; None if it was not kept. true_depth:
    (H, W) float32, m, NaN where it is unknown; None without truth."""

    stamp_ns: int
    image: U8 | None
    depth: F32
    confidence: F32 | None
    intrinsics: F64
    world_from_camera: F64
    overlay: U8 | None = None
    true_depth: F32 | None = None

    def points(self) -> tuple[F32, NDArray[np.bool_]]:
        """Points (n, 3) in the world, row by row, and which pixels (H, W) they are of."""
        known = np.isfinite(self.depth)
        seen = unproject(self.depth, self.intrinsics)[known].astype(np.float64)
        moved = seen @ self.world_from_camera[:3, :3].T + self.world_from_camera[:3, 3]
        return moved.astype(np.float32), known


def _nothing() -> F64:
    return np.zeros((0, 3))


@dataclass(frozen=True, eq=False)
class Results:
    """What a run left. kind: one of BAG, DEMO, MAP, RECORDING. world: the frame of poses and points, in words. unit: of all lengths, with
    where it comes from, "" for the model's own, whose metres are not known. stamps_ns: of the frames with depth, oldest first.
    has_confidence, has_images: whether these were kept. odometry: stamp -> odom_from_camera (4, 4) of all located images, as published and
    never corrected, in `odometry_unit`, which is as `unit`, or None where nobody kept it; empty if it was not kept. trajectory: stamp ->
    world_from_camera of all located images, or of the keyframes where only these were kept. loops: pairs of stamps of keyframes between
    which a loop was closed. metrics: of metrics.json, {} if there is none. remark: what of the run is missing here and which option keeps
    it, "" if nothing is."""

    path: Path
    kind: str
    world: str
    unit: str
    stamps_ns: tuple[int, ...]
    has_confidence: bool
    has_images: bool
    trajectory: Mapping[int, F64]
    _frames: Callable[[], Iterator[ResultFrame]]
    odometry: Mapping[int, F64] = field(default_factory=dict)
    odometry_unit: str | None = ""
    loops: tuple[tuple[int, int], ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    remark: str = ""
    _cloud: Path | None = None
    _landmarks: Callable[[], F64] = _nothing
    _truth: Callable[[], Mapping[int, F64]] = dict

    def __len__(self) -> int:
        """Number of frames with depth."""
        return len(self.stamps_ns)

    @property
    def title(self) -> str:
        """What was reconstructed: the name of the recording, or else of the folder, which holds the demo's own recording."""
        source = self.metrics.get("source") or self.metrics.get("bag")
        path = self.path.resolve()
        return shown(path.name if not source or Path(str(source)).resolve().parent == path else Path(str(source)).name)

    @property
    def in_metres(self) -> bool:
        """Whether lengths are metres, as well as `unit` says."""
        return bool(self.unit)

    @property
    def same_unit(self) -> bool | None:
        """Whether odometry and the results have the same unit; None where that of odometry is not known."""
        return None if self.odometry_unit is None else bool(self.unit) == bool(self.odometry_unit)

    @property
    def unit_text(self) -> str:
        """`unit`, in words in any case."""
        return self.unit or MODEL_UNIT

    def frames(self) -> Iterator[ResultFrame]:
        """The frames with depth, oldest first, one in memory at a time; those whose messages are damaged are left out. Raises
        DatasetError."""
        return self._frames()

    def points(self, voxel: float = 0.0) -> NDArray[np.void]:
        """(n,) of cloud.POINT_DTYPE: the saved cloud, or, without one or with a voxel (its edge, in the unit of the results), one made of
        all frames. Raises DatasetError."""
        if self._cloud is not None and not voxel:
            rows = read_ply(self._cloud)
            places, colours = (
                np.stack([rows[name] for name in names], axis=-1) for names in ("xyz", ("red", "green", "blue"))
            )
            return points_of(places, colours, rows["confidence"])
        cloud: VoxelMap | None = None
        for frame in self.frames():
            places, known = frame.points()
            if not len(places):
                continue
            if cloud is None:
                cloud = VoxelMap(voxel or AUTO_VOXEL_SHARE * float(np.median(frame.depth[known])), MOST_POINTS)
            colours = np.full((len(places), 3), 128, np.uint8) if frame.image is None else frame.image[known]
            sure = np.ones(len(places), np.float32) if frame.confidence is None else frame.confidence[known]
            cloud.add(points_of(places, colours, sure))
        return np.empty(0, POINT_DTYPE) if cloud is None else cloud.points()

    def landmarks(self) -> F64:
        """(n, 3) in the world: the features of the map's keyframes, by which their places are found again; none where no map was saved."""
        return self._landmarks()

    def truth(self) -> Mapping[int, F64]:
        """stamp -> true world_from_camera (4, 4), in metres and a world of its own; empty if it is not known. Raises DatasetError."""
        return self._truth()


def open_results(path: str | Path, node: str = "/come") -> Results:
    """The results in `path`: the output folder of `come_ros bag` or `come_ros demo`, a folder that ~/save_map wrote, or a recording of the
    node's topics. node: its full name in a recording. Raises DatasetError, MapError if there are none, or they are damaged."""
    path = Path(path).expanduser()
    if not path.exists():
        raise DatasetError(f"{shown(path)} does not exist: give the output folder of `come_ros bag`, or a saved map")
    if path.is_dir():
        if (path / FRAMES).is_file() and (path / "output").is_dir():
            return _of_bag(path, node)
        if (map_folder(path) / HEAD).is_file():
            return _of_map(path)
        for name, kind in (("output.mcap", DEMO), ("output", BAG)):
            if (path / name).exists() and not (path / "metadata.yaml").exists():
                return _of_recording(path, path / name, kind, node)
    if is_recording(path):
        return _of_recording(path, path, RECORDING, node)
    raise DatasetError(
        f"{shown(path)} holds no depth of frames: give the output folder of `come_ros bag` or `come_ros demo`, a folder that ~/save_map "
        f"wrote with loop.enabled, or a recording of the node's topics"
    )


def _of_bag(path: Path, node: str) -> Results:
    """Results with output/ and frames.json."""
    placed = read_frames(path / FRAMES)
    recording = NodeRecording(path / "output", node)
    metrics = read_metrics(path)
    stamps = [stamp for stamp in recording.stamps_ns if stamp in placed.placed]

    def frames() -> Iterator[ResultFrame]:
        for found in recording.frames():
            if found.stamp_ns in placed.placed:
                yield _placed(found, *placed.placed[found.stamp_ns])

    odometry = _path(path / "trajectory.tum")
    saved = _map(path) if (map_folder(path) / HEAD).is_file() else None
    metres = saved.metres if saved is not None and placed.unit and np.isfinite(saved.metres) else 1.0
    return Results(
        path, BAG, placed.frame, placed.unit, tuple(stamps), recording.has_confidence, recording.has_images,
        _path(path / "trajectory_map.tum") or {t: pose for t, (pose, _) in placed.placed.items()}, frames, odometry,
        _odometry_unit(metrics), () if saved is None else _loops(saved), metrics, "", _there(path / "map.ply"),
        _nothing if saved is None else functools.partial(_landmarks, saved, metres), lambda: placed.truth,
    )  # fmt: skip


def _of_map(path: Path) -> Results:
    """A saved map, alone or in results without output/."""
    saved = _map(path)
    metres = saved.metres if np.isfinite(saved.metres) else 1.0
    unit = "lengths in metres, as the map was saved" if np.isfinite(saved.metres) else ""
    keyframes = [
        (k, pose, float(length))
        for k, pose, length in zip(saved.keyframes, saved.nodes.poses(), saved.nodes.scale, strict=True)
    ]
    keyframes.sort(key=lambda row: row[0].stamp_ns)  # sessions one after another, as they were recorded
    poses = {k.stamp_ns: _scaled(pose, metres) for k, pose, _ in keyframes}

    def frames() -> Iterator[ResultFrame]:
        for k, pose, length in keyframes:  # sessions may hold the same stamps
            if k.thumbnail is not None:
                depth = k.thumbnail.depth.astype(np.float32) * np.float32(length * metres)
                yield ResultFrame(
                    k.stamp_ns, k.thumbnail.image, depth, None, k.thumbnail.intrinsics, _scaled(pose, metres)
                )

    of_bag = (path / FRAMES).is_file()
    metrics = read_metrics(path)
    return Results(
        path, BAG if of_bag else MAP, "map frame", unit, tuple(k.stamp_ns for k, _, _ in keyframes if k.thumbnail is not None), False,
        True, _path(path / "trajectory_map.tum") or poses, frames, _path(path / "trajectory.tum"),
        _odometry_unit(metrics) if of_bag else None, _loops(saved),
        metrics,
        "the map keeps no confidence, and of large images every nth pixel only: "
        + ("run `come_ros bag` without --no-bag" if of_bag else "run `come_ros bag` on a recording")
        + " to have all pixels of all frames",
        _there(path / "map.ply"), functools.partial(_landmarks, saved, metres),
        (lambda: read_frames(path / FRAMES).truth) if of_bag else dict,
    )  # fmt: skip


def _of_recording(path: Path, file: Path, kind: str, node: str) -> Results:
    """The node's topics alone: poses are the odometry's."""
    recording = NodeRecording(file, node)
    poses = recording.odometry()
    stamps = tuple(stamp for stamp in recording.stamps_ns if stamp in poses)
    if not stamps:
        raise DatasetError(
            f"{shown(file)} holds no depth image with an odometry message of the same stamp: record both topics of the node"
        )
    metrics = read_metrics(path) if kind != RECORDING else {}
    unit = _odometry_unit(metrics) if kind == BAG else recording.unit()

    played = (metrics.get("bag"), metrics.get("topic")) if kind == DEMO else (None, None)

    def frames() -> Iterator[ResultFrame]:
        placed = (_placed(found, poses[found.stamp_ns], 1.0) for found in recording.frames() if found.stamp_ns in poses)
        return _with_true_depth(placed, *played)

    return Results(
        path, kind, "odometry frame", unit, stamps, recording.has_confidence, recording.has_images, poses, frames, poses, unit,
        metrics=metrics, remark="poses are the odometry's, without loops: `come_ros bag` has them in the map",
        _truth=functools.partial(_truth_of, *played),
    )  # fmt: skip


def _placed(found: Recorded, pose: F64, length: float) -> ResultFrame:
    depth = found.depth if length == 1.0 else found.depth * np.float32(length)
    return ResultFrame(
        found.stamp_ns, found.image, depth, found.confidence, found.intrinsics, pose, found.overlay, found.true_depth
    )


def _map(path: Path) -> SavedMap:
    try:
        return read_map(path, None)
    except MapError as error:
        raise MapError(str(error).removeprefix("map.load: ")) from error


def _loops(saved: SavedMap) -> tuple[tuple[int, int], ...]:
    closed = saved.edges.at(saved.edges.switchable)
    stamp = [k.stamp_ns for k in saved.keyframes]
    return tuple((stamp[a], stamp[b]) for a, b in zip(closed.first, closed.second, strict=True))


def _landmarks(saved: SavedMap, metres: float) -> F64:
    """See Results.landmarks. metres: length of the map's unit in that of the results."""
    out = [np.zeros((0, 3))]
    for keyframe, node in zip(saved.keyframes, saved.nodes.matrices(), strict=True):
        if keyframe.view is not None:
            places = keyframe.view.points()
            out.append(metres * apply(node, places[np.isfinite(places).all(axis=1)]))
    return np.concatenate(out)


def _path(file: Path) -> dict[int, F64]:
    return read_trajectory(file) if file.is_file() else {}


def _there(file: Path) -> Path | None:
    return file if file.is_file() else None


def read_metrics(folder: Path) -> dict[str, Any]:
    """metrics.json, {} if there is none that can be read: nothing but words depends on it."""
    try:
        found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _odometry_unit(metrics: Mapping[str, Any]) -> str:
    """Of `come_ros bag`, see Results.unit."""
    scale = metrics.get("scale") or {}
    if (scale.get("unit") or {}).get("odometry") != "metre":
        return ""
    sigma = scale.get("sigma")
    return f"lengths in metres, from {scale.get('source')}" + (
        f", sigma {100 * sigma:.1f} %" if sigma is not None else ""
    )


def _truth_of(bag: str | None, topic: str | None) -> dict[int, F64]:
    """Of the bag that the demo played, if it is still there."""
    if not bag or not Path(bag).exists():
        return {}
    with Bag(bag, topic, depth="none") as source:
        return source.truth()


def _with_true_depth(frames: Iterator[ResultFrame], bag: str | None, topic: str | None) -> Iterator[ResultFrame]:
    """The frames, with the depth of the bag that the demo played, if it is still there and has any."""
    if not bag or not Path(bag).exists():
        yield from frames
        return
    with Bag(bag, topic) as source:
        depths = NearestDepth(source.iter_depth())
        for frame in frames:
            real = depths.at(frame.stamp_ns)
            yield frame if real is None else replace(frame, true_depth=in_model_pixels(real, frame.depth.shape))


def _scaled(pose: F64, factor: float) -> F64:
    out = np.array(pose)
    out[:3, 3] *= factor
    return out
