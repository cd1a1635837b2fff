"""Windows with ground truth, from everything that can be scored: rendered rooms, rooms with thin structures, recordings."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...camera.preprocess import CropResize, crop_intrinsics, image_plan, in_model_pixels, preprocess
from ...config import Config
from ...datasets import Recording
from ...datasets.part import Part
from ...datasets.sequence import open_sequence
from ...datasets.stamps import matched, nearest
from ...datasets.tum import read_trajectory
from ...errors import ConfigError, DatasetError, FrameError
from ...evaluation.window import LEAST_KNOWN, WindowTruth
from ...types import F32, F64, Frame

log = logging.getLogger("come_ros")

ROOMS, THIN = "rooms", "thin"
RENDERED = (ROOMS, THIN)

Plan = Callable[[int, int], CropResize]
"""(width, height) of an image -> crop of the model's image in it"""


@dataclass(frozen=True)
class Cut:
    """How windows are cut from a recording. size: images per window. stride: step between its images. step: step between the starts
    of windows, 0 for windows without overlap. most: greatest number of windows per source, evenly spread."""

    size: int = 4
    stride: int = 1
    step: int = 0
    most: int = 64

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        for name, low, high in (("size", 1, 64), ("stride", 1, 10_000), ("step", 0, 10_000), ("most", 1, 1000)):
            if not low <= getattr(self, name) <= high:
                option = {"most": "windows"}.get(name, name)
                raise ConfigError(f"--{option} is {getattr(self, name)}, but must lie in {low} .. {high}")

    def starts(self, images: int) -> list[int]:
        """Index of the first image of every window that is used, of a recording of that many images."""
        span = (self.size - 1) * self.stride + 1
        all_of_them = range(0, images - span + 1, self.step or self.size * self.stride)
        if len(all_of_them) <= self.most:
            return list(all_of_them)
        return [all_of_them[i] for i in np.linspace(0, len(all_of_them) - 1, self.most).round().astype(int)]

    def indices(self, start: int) -> range:
        """Indices of the images of a window."""
        return range(start, start + (self.size - 1) * self.stride + 1, self.stride)


@dataclass(frozen=True)
class Source:
    """One source: ROOMS, THIN, or the path of a recording, with its options. label: its name in tables. part: of the recording, None
    for all."""

    name: str
    config: Config
    topic: str | None = None
    gt: str | None = None
    label: str = ""
    part: Part | None = None

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.name if self.rendered else Path(self.name).resolve().name)

    @property
    def rendered(self) -> bool:
        return self.name in RENDERED

    def open(self) -> Recording:
        """Raises DatasetError."""
        gt_topic = self.gt if self.gt is not None and not Path(self.gt).is_file() else None
        return open_sequence(self.name, self.topic, None, self.config.rectify, gt_topic, part=self.part)

    def truth(self, sequence: Recording) -> dict[int, F64]:
        """Stamp -> world_from_camera. Raises DatasetError."""
        return read_trajectory(Path(self.gt)) if self.gt and Path(self.gt).is_file() else sequence.truth()

    def count(self, cut: Cut) -> int:
        """Greatest number of windows."""
        if self.rendered:
            return cut.most
        with self.open() as sequence:
            return cut.most if sequence.count is None else len(cut.starts(sequence.count))

    def windows(self, cut: Cut, backbone: Any) -> Iterator[WindowTruth]:
        """The windows in order, at the pipeline's image size, see preprocess.image_plan. Raises DatasetError if there is no ground
        truth."""
        side = self.config.input.max_side or backbone.native_side

        def plan(width: int, height: int) -> CropResize:
            return image_plan(backbone, width, height, side)

        yield from _rendered(self.name, cut, plan) if self.rendered else _recorded(self, cut, plan)


def sources_of(names: Iterable[str], config: Config, topic: str | None, gt: str | None) -> list[Source]:
    """Each source once; sources with the same file name are labelled by the whole path."""
    sources = [Source(name, config, topic, gt) for name in dict.fromkeys(names)]
    labels = [source.label for source in sources]
    return [s if labels.count(s.label) == 1 else replace(s, label=s.name) for s in sources]


def _rendered(name: str, cut: Cut, plan_of: Plan) -> Iterator[WindowTruth]:
    if cut.stride != 1 or cut.step:
        raise ConfigError(f"--stride and --step do not apply to {name}, whose windows are rendered: leave them out")
    plan = plan_of(640, 480)
    size = {"frames": cut.size, "width": plan.width, "height": plan.height}
    if name == ROOMS:
        from ...datasets.rooms.rooms import test_windows

        for i, s in enumerate(test_windows(cut.most, **size)):
            yield WindowTruth(name, i, s.images, s.depth, s.world_from_camera, s.intrinsics)
        return
    from ...datasets.rooms.thin_structures import thin_windows

    for i, t in enumerate(thin_windows(cut.most, width=size["width"], height=size["height"])):
        s = t.sequence
        yield WindowTruth(name, i, s.images, s.depth, s.world_from_camera, s.intrinsics, t.background)


@dataclass(frozen=True, eq=False)
class _Seen:
    """One image at the model's size."""

    frame: Frame
    """with the small image"""
    source_size: tuple[int, int]


def _recorded(source: Source, cut: Cut, plan_of: Plan) -> Iterator[WindowTruth]:
    """Two passes: the images of the chosen windows are kept at the model's size, then depth is looked up for them."""
    with source.open() as sequence:
        poses = source.truth(sequence)
        count = sequence.count if sequence.count is not None else sum(1 for _ in sequence.iter_frames())
        starts = cut.starts(count)
        wanted = set(itertools.chain.from_iterable(map(cut.indices, starts)))
        seen: dict[int, _Seen] = {}
        for i, frame in enumerate(sequence.iter_frames()):
            if i in wanted:
                try:
                    seen[i] = _small(frame, plan_of)
                except FrameError as error:
                    log.warning("an image is left out: %s", error)
    if not starts or not seen:
        raise DatasetError(
            f"{source.name} has {count} images, but a window takes {cut.indices(0)[-1] + 1}: choose a smaller --size or --stride"
        )
    with source.open() as sequence:
        depth = _depth(sequence, {s.frame.stamp_ns: s for s in seen.values()})
    stamps = [s.frame.stamp_ns for s in seen.values()]
    truth = matched(stamps, poses)
    if not depth and not truth:
        raise DatasetError(
            f"{source.name} has neither depth nor camera poses near its images: there is no ground truth to compare with"
        )
    for number, start in enumerate(starts):
        members = [seen.get(i) for i in cut.indices(start)]
        window = _window(source.label, number, members, depth, truth)
        if window is not None:
            yield window


def _small(frame: Frame, plan_of: Plan) -> _Seen:
    height, width = frame.image.shape[:2]
    plan = plan_of(width, height)
    intrinsics = None if frame.intrinsics is None else crop_intrinsics(frame.intrinsics, plan)
    small = Frame(preprocess(frame.image, plan), frame.stamp_ns, frame.camera, intrinsics)
    return _Seen(small, (height, width))


def _depth(sequence: Recording, seen: dict[int, _Seen]) -> dict[int, F32]:
    """Stamp of an image -> its depth at the model's size: that of the nearest reading within 20 ms."""
    found: dict[int, tuple[int, F32]] = {}
    stamps = sorted(seen)
    for stamp, metres in sequence.iter_depth():
        (i,) = nearest([stamp], stamps)
        if i is None:
            continue
        away, image = abs(stamps[i] - stamp), seen[stamps[i]]
        if metres.shape != image.source_size:
            raise DatasetError(
                f"depth of {metres.shape[1]}x{metres.shape[0]} px does not fit images of {image.source_size[1]}x{image.source_size[0]} "
                f"px: register it to them"
            )
        if stamps[i] not in found or away < found[stamps[i]][0]:
            found[stamps[i]] = (away, in_model_pixels(metres, image.frame.image.shape[:2]))
    return {stamp: depth for stamp, (_, depth) in found.items()}


def _window(
    label: str, number: int, members: list[_Seen | None], depth: dict[int, F32], poses: dict[int, F64]
) -> WindowTruth | None:
    """None if an image is missing, sizes differ, or there is no ground truth for it."""
    frames = [m.frame for m in members if m is not None]
    if len(frames) < len(members) or len({f.image.shape for f in frames}) > 1:
        return None
    unknown = np.full(frames[0].image.shape[:2], np.nan, np.float32)
    maps = np.stack([depth.get(f.stamp_ns, unknown) for f in frames])
    with_depth = (np.isfinite(maps) & (maps > 0)).mean() >= LEAST_KNOWN
    with_poses = len(frames) > 1 and all(f.stamp_ns in poses for f in frames)
    if not with_depth and not with_poses:
        return None
    lenses = [f.intrinsics for f in frames if f.intrinsics is not None]
    return WindowTruth(
        label, number, np.stack([f.image for f in frames]), maps if with_depth else None,
        np.stack([poses[f.stamp_ns] for f in frames]) if with_poses else None,
        lenses[0] if len(lenses) == len(frames) and np.ptp(lenses, axis=0).max() < 1e-6 else None,
    )  # fmt: skip
