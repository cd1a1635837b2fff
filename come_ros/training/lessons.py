"""What the bundle of a recording teaches a model: keyframes with its poses, its points and its corrected depth, and windows of them.

There are no labels: the teacher is the pipeline itself, whose tracks and bundle know more about a window than one pass of the network does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..camera.preprocess import cover
from ..evaluation.window import WindowTruth
from ..geometry import inverse, project
from ..pipeline import ReconstructionPipeline
from ..tracking.landmarks import DEPTH_SIGMA
from ..types import F32, F64, U8, Frame, Submap
from .room_windows import spoil

Batch = dict[str, torch.Tensor]
"""images (B, S, 3, H, W) uint8; depth, log_confidence, log_points, weight (B, S, H, W); camera_from_first (B, S, 4, 4); intrinsics
(B, 3, 3)"""
Name = tuple[int, int]
"""World and number of a tracked point."""

LEAST_FITTING = 30  # points of a keyframe that must lie where the bundle has them, as the bundle itself asks
# Parallax at which a point begins to count, and at which it counts fully. On fr3_cabinet the points' median error of log depth is .02 above
# 8 deg, where the network's is .12 to .14; below 4 deg, there and on fr1_rpy, points are no better than the network.
LEAST_PARALLAX, FULL_PARALLAX = np.deg2rad(4.0), np.deg2rad(8.0)
MOST_OFF = 0.005  # image widths between a point's projection and where it was seen
LEAST_POINTS = 8  # of a window; with fewer its points do not teach
FRAMES = (2, 3, 4, 6, 8)  # in a training window
STRIDES = (1, 1, 2)  # keyframes from one to the next in a window
SCORED = 4  # keyframes in a window that is scored, as on recordings with truth


@dataclass(frozen=True, eq=False)
class Keyframe:
    """One keyframe as the bundle left it, in pixels of the model's image and the odometry's unit.

    image: (H, W, 3) uint8. world_from_camera: (4, 4). intrinsics: (3, 3). log_depth: (H, W) float16, of the depth with the bundle's smooth
    correction. log_confidence: (H, W) float16, lowered where points disagree. rows, columns, log_points, weight: (n,) each, of points
    that were seen from far enough apart: pixel, logarithm of the depth along z, and 0 to 1 by how far. run: keyframes of one run lie in
    one frame of reference. supported: whether the bundle refined it, and enough points fit.
    """

    stamp_ns: int
    image: U8
    world_from_camera: F64
    intrinsics: F64
    log_depth: NDArray[np.float16]
    log_confidence: NDArray[np.float16]
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    log_points: F32
    weight: F32
    run: int
    supported: bool

    def points(self) -> tuple[F32, F32]:
        """(H, W) logarithm of the points' depth, 0 elsewhere; and their weight, 0 where there is none."""
        depth, weight = np.zeros((2, *self.log_depth.shape), np.float32)
        depth[self.rows, self.columns], weight[self.rows, self.columns] = self.log_points, self.weight
        return depth, weight

    def state(self) -> dict[str, Any]:
        """Its fields, arrays as tensors, for a file."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: torch.tensor(x) if isinstance(x, np.ndarray) else x for name, x in fields.items()}

    @staticmethod
    def of_state(state: Mapping[str, Any]) -> Keyframe:
        return Keyframe(**{name: x.numpy() if isinstance(x, torch.Tensor) else x for name, x in state.items()})


def keyframes(
    pipeline: ReconstructionPipeline, frames: Iterable[Frame], stop: Callable[[], bool] | None = None
) -> list[Keyframe]:
    """Runs `frames` through the pipeline, which must refine by its bundle. Raises Cancelled."""
    found: list[tuple[Keyframe, Frame]] = []
    places: dict[Name, F64] = {}
    run, world = 0, 0
    for submap in pipeline.run(frames, stop):
        if not len(submap):
            continue
        if submap.alignment.shared == 0 or submap.world != world:
            run, world = run + 1, submap.world
        found += [(_plain(submap, i, run), frame) for i, frame in enumerate(submap.frames)]
        if submap.landmarks is not None:
            known = submap.landmarks.sure(DEPTH_SIGMA)  # the others have only the depth of one keyframe
            places |= {(submap.world, n): p for n, p in zip(known.ids.tolist(), known.positions, strict=True)}
    parallax = _parallax(found, places)
    return [_with_points(keyframe, frame, places, parallax) for keyframe, frame in found]


def _plain(submap: Submap, i: int, run: int) -> Keyframe:
    none, nothing = np.zeros(0, np.intp), np.zeros(0, np.float32)
    depth = submap.depth[i]
    good = np.isfinite(depth) & (depth > 0)
    depth = np.where(good, depth, np.median(depth[good]) if good.any() else 1.0)
    return Keyframe(
        submap.frames[i].stamp_ns, submap.images[i], submap.odom_from_camera[i], submap.intrinsics[i],
        np.log(depth).astype(np.float16), np.log(submap.confidence[i]).astype(np.float16),
        none, none, nothing, nothing, run, submap.refinement.refined > 0,
    )  # fmt: skip


def _parallax(found: Sequence[tuple[Keyframe, Frame]], places: Mapping[Name, F64]) -> dict[Name, float]:
    """Point -> the largest angle between the direction from which a keyframe saw it first and all later ones, rad."""
    first: dict[Name, F64] = {}
    out: dict[Name, float] = {}
    for keyframe, frame in found:
        seen = frame.observations
        for number in () if seen is None else seen.ids.tolist():
            name = (seen.world, number)  # type: ignore[union-attr]
            place = places.get(name)
            if place is None:
                continue
            away = keyframe.world_from_camera[:3, 3] - place
            direction = away / max(float(np.linalg.norm(away)), 1e-12)
            angle = float(np.arccos(np.clip(first.setdefault(name, direction) @ direction, -1, 1)))
            out[name] = max(out.get(name, 0.0), angle)
    return out


def _with_points(
    keyframe: Keyframe, frame: Frame, places: Mapping[Name, F64], parallax: Mapping[Name, float]
) -> Keyframe:
    """The keyframe with the points that it sees where the bundle has them, seen from far enough apart."""
    seen = frame.observations
    names = [] if seen is None else [(seen.world, n) for n in seen.ids.tolist()]
    rows = [i for i, name in enumerate(names) if name in parallax]
    if seen is None or not rows:
        return dataclasses.replace(keyframe, supported=False)
    height, width = keyframe.log_depth.shape
    plan = cover(frame.image.shape[1], frame.image.shape[0], width, height)
    pixels = (seen.pixels[rows] + 0.5 - [plan.left, plan.top]) * plan.scale - 0.5
    camera_from_world = inverse(keyframe.world_from_camera)
    points = np.array([places[names[i]] for i in rows]) @ camera_from_world[:3, :3].T + camera_from_world[:3, 3]
    column, row = np.rint(pixels).astype(np.intp).T
    good = (points[:, 2] > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    with np.errstate(invalid="ignore"):  # NaN behind the camera
        good &= np.linalg.norm(project(points, keyframe.intrinsics) - pixels, axis=1) < MOST_OFF * width
    supported = keyframe.supported and int(good.sum()) >= LEAST_FITTING
    angle = np.array([parallax[names[i]] for i in rows])
    good &= angle > LEAST_PARALLAX
    weight = np.minimum(1.0, (angle[good] - LEAST_PARALLAX) / (FULL_PARALLAX - LEAST_PARALLAX))
    return dataclasses.replace(
        keyframe, rows=row[good], columns=column[good], log_points=np.log(points[good, 2]).astype(np.float32),
        weight=weight.astype(np.float32), supported=supported,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Lessons:
    """Windows of keyframes that the bundle vouches for. left_out: keyframes that it does not."""

    runs: tuple[tuple[Keyframe, ...], ...]
    left_out: int = 0

    @staticmethod
    def of(found: Sequence[Keyframe]) -> Lessons:
        """Runs of neighbouring keyframes, all supported; one that is not ends a run."""
        runs: list[list[Keyframe]] = [[]]
        before: Keyframe | None = None
        for keyframe in found:
            if (
                before is None
                or not before.supported
                or before.run != keyframe.run
                or before.image.shape != keyframe.image.shape
            ):
                runs.append([])
            if keyframe.supported:
                runs[-1].append(keyframe)
            before = keyframe
        whole = tuple(tuple(run) for run in runs if len(run) >= FRAMES[0])
        return Lessons(whole, len(found) - sum(map(len, whole)))

    def __len__(self) -> int:
        return sum(map(len, self.runs))

    def batch(self, rng: np.random.Generator, frames: int) -> Batch:
        """About `frames` frames: windows of one random length, degraded and mirrored at random. Needs at least one run."""
        # of images of one size, which longer recordings set more often
        lengths = np.array([len(run) for run in self.runs], np.float64)
        shape = self.runs[rng.choice(len(self.runs), p=lengths / lengths.sum())][0].image.shape
        runs = [run for run in self.runs if run[0].image.shape == shape]
        size = int(rng.choice([n for n in FRAMES if n <= max(map(len, runs))]))
        runs = [run for run in runs if len(run) >= size]
        share = np.array([len(run) - size + 1 for run in runs], np.float64)
        windows = []
        for _ in range(max(1, frames // size)):
            run = runs[rng.choice(len(runs), p=share / share.sum())]
            stride = min(int(rng.choice(STRIDES)), max(1, (len(run) - 1) // max(1, size - 1)))
            start = int(rng.integers(len(run) - (size - 1) * stride))
            window = run[start : start + (size - 1) * stride + 1 : stride]
            windows.append(_drawn(window if rng.random() < 0.5 else window[::-1], rng))
        return _stacked(windows)

    def windows(self, size: int = SCORED) -> list[tuple[Keyframe, ...]]:
        """Windows of `size` neighbours without overlap, in order."""
        return [run[i : i + size] for run in self.runs for i in range(0, len(run) - size + 1, size)]


def plain_batch(window: Sequence[Keyframe]) -> Batch:
    """One window as it is."""
    return _stacked([_arrays(window)])


def truth_of(window: Sequence[Keyframe], source: str, index: int) -> WindowTruth:
    """The bundle's result as if it were the truth, to score how far a model agrees with it. Depth is that of the points."""
    maps = [np.where(weight > 0, np.exp(depth), np.nan) for depth, weight in (k.points() for k in window)]
    enough = sum(np.isfinite(m).sum() for m in maps) >= LEAST_POINTS
    return WindowTruth(
        source, index, np.stack([k.image for k in window]), np.stack(maps).astype(np.float32) if enough else None,
        np.stack([k.world_from_camera for k in window]), window[0].intrinsics,
    )  # fmt: skip


def _arrays(window: Sequence[Keyframe]) -> dict[str, NDArray[Any]]:
    poses = np.stack([k.world_from_camera for k in window])
    points = [k.points() for k in window]
    return {
        "images": np.stack([k.image for k in window]),
        "depth": np.exp(np.stack([k.log_depth for k in window]).astype(np.float32)),
        "log_confidence": np.stack([k.log_confidence for k in window]).astype(np.float32),
        "log_points": np.stack([depth for depth, _ in points]),
        "weight": np.stack([weight for _, weight in points]),
        "camera_from_first": inverse(poses) @ poses[0],
        "intrinsics": np.mean([k.intrinsics for k in window], axis=0),
    }


def _drawn(window: Sequence[Keyframe], rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    arrays = _arrays(window)
    if rng.random() < 0.5:  # mirrored: x -> -x in every camera
        mirror = np.diag([-1.0, 1.0, 1.0, 1.0])
        for name in ("images", "depth", "log_confidence", "log_points", "weight"):
            arrays[name] = arrays[name][:, :, ::-1]
        arrays["camera_from_first"] = mirror @ arrays["camera_from_first"] @ mirror
        arrays["intrinsics"][0, 2] = arrays["images"].shape[2] - 1 - arrays["intrinsics"][0, 2]
    arrays["images"] = spoil(np.ascontiguousarray(arrays["images"]), rng)
    return arrays


def _stacked(windows: Sequence[Mapping[str, NDArray[Any]]]) -> Batch:
    out = {name: np.stack([w[name] for w in windows]) for name in windows[0]}
    out["images"] = out["images"].transpose(0, 1, 4, 2, 3)
    return {
        name: torch.from_numpy(np.ascontiguousarray(a if a.dtype == np.uint8 else a.astype(np.float32)))
        for name, a in out.items()
    }
