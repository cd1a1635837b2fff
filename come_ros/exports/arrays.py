"""Frames as files: images, depth and confidence, each named by the number of its frame."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..files import whole_file
from ..results import ResultFrame
from ..types import F64
from .formats import CONFIDENCE, DEPTH, IMAGES

MILLI = 1e-3
LEAST_MEDIAN = 0.5  # with less, thousandths of a unit are too coarse
MOST_VALUE = 65535


@dataclass(frozen=True, eq=False)
class Camera:
    """name: of the frame's files. intrinsics: (3, 3), pixel centres at whole numbers. world_from_camera: (4, 4), optical axes."""

    name: str
    stamp_ns: int
    width: int
    height: int
    intrinsics: F64
    world_from_camera: F64

    @property
    def image(self) -> str:
        """Its image, relative to the folder."""
        return f"{IMAGES}/{self.name}.png"

    def as_json(self) -> dict[str, Any]:
        k = self.intrinsics
        return {
            "name": self.name,
            "stamp_ns": self.stamp_ns,
            "size": [self.width, self.height],
            "fx_fy_cx_cy": [float(k[0, 0]), float(k[1, 1]), float(k[0, 2]), float(k[1, 2])],
            "world_from_camera": self.world_from_camera.tolist(),
        }


def camera_of(index: int, frame: ResultFrame) -> Camera:
    """The camera of the frame with that number."""
    height, width = frame.depth.shape
    return Camera(f"frame_{index:05d}", frame.stamp_ns, width, height, frame.intrinsics, frame.world_from_camera)


def unit_per_value(median: float, largest: float) -> float:
    """Of a 16-bit depth image: thousandths (of a metre: what other programs expect), unless these are too coarse for the median or the
    largest depth needs more; then the smallest power of ten that holds the largest depth."""
    if median >= LEAST_MEDIAN and largest <= MOST_VALUE * MILLI:
        return MILLI
    return float(10.0 ** -math.floor(math.log10(MOST_VALUE / largest)))


def write_image(folder: Path, camera: Camera, frame: ResultFrame) -> None:
    """Raises OutputError."""
    assert frame.image is not None  # see export._lacks
    _write_png(folder / camera.image, np.ascontiguousarray(frame.image[..., ::-1]))


def write_depth(folder: Path, camera: Camera, frame: ResultFrame, per_value: float) -> None:
    """A 16-bit PNG, 0 where unknown, and an NPZ with what the frame's points need. Raises OutputError."""
    known = np.isfinite(frame.depth)
    values = np.clip(np.rint(np.where(known, frame.depth, 0) / per_value), 1, MOST_VALUE)
    _write_png(folder / DEPTH / f"{camera.name}.png", np.where(known, values, 0).astype(np.uint16))
    _write_npz(
        folder / DEPTH / f"{camera.name}.npz",
        depth=frame.depth,
        intrinsics=frame.intrinsics,
        world_from_camera=frame.world_from_camera,
        stamp_ns=np.int64(frame.stamp_ns),
    )


def write_confidence(folder: Path, camera: Camera, frame: ResultFrame) -> None:
    """Raises OutputError."""
    assert frame.confidence is not None
    _write_npz(folder / CONFIDENCE / f"{camera.name}.npz", confidence=frame.confidence)


def _write_png(path: Path, pixels: Any) -> None:
    _, data = cv2.imencode(".png", pixels)
    with whole_file(path) as stream:
        stream.write(data.tobytes())


def _write_npz(path: Path, **arrays: Any) -> None:
    with whole_file(path) as stream:
        np.savez_compressed(stream, **arrays)
