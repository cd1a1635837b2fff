"""Images on disk with camera, pose and depth from a data set: the common part of the readers of all layouts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..camera.levels import Levels
from ..camera.rectify import Lens, Rectifier, rectifier_of
from ..errors import DatasetError, FrameError
from ..files import shown, text_of_file
from ..geometry import is_finite_pose
from ..types import F32, F64, Frame
from .image_file import OneSize, Picture, read_picture, read_stored

INVALID_UNITS = (0, 65535)  # default unit of a 16-bit depth image
UNTIMED_RATE = 30.0  # images per second of the stamps of photographs, which only identify them
MOST_STRETCH = 0.02  # tolerance of the aspect ratio: images may be resized, but not distorted


@dataclass(frozen=True)
class PosedImage:
    """One image. lens: at the size of its calibration, which may differ from the image's. world_from_camera: (4, 4), optical axes,
    None if it was not found. depth: file of a depth image along z, or None. depth_lens: pinhole of the depth image; None: the
    image's."""

    path: Path
    lens: Lens | None = None
    world_from_camera: F64 | None = None
    depth: Path | None = None
    depth_lens: Lens | None = None


class PosedImages:
    """Images in order as one camera's recording, with their pixels as stored: poses and intrinsics refer to them, regardless of EXIF.

    kind: description. timed: whether the stamps are times; photographs have none. stamps_ns: 0, then 1 / fps apart. poses:
    world_from_camera (4, 4) of each image, None where unknown.
    """

    def __init__(
        self,
        kind: str,
        images: Iterable[PosedImage],
        fps: float | None = None,
        metres_per_unit: float = 1e-3,
        rectify: bool = True,
        camera: str = "camera_optical_frame",
        levels: str = "auto",
    ) -> None:
        """fps: None for photographs. rectify: whether to remove lens distortion from images and depth. metres_per_unit: of integer
        depth images. levels: the parameter input.range. Raises DatasetError if there is no image."""
        self.kind, self.camera, self.timed = kind, camera, fps is not None
        self._images = list(images)
        if not self._images:
            raise DatasetError(f"this {kind} names no images")
        self._metres_per_unit, self._rectify = metres_per_unit, rectify
        self._levels = Levels(levels, kind)
        self._size = OneSize((image.path for image in self._images), upright=False)
        self.stamps_ns = [round(i * 1e9 / (fps or UNTIMED_RATE)) for i in range(len(self._images))]
        self.poses = [image.world_from_camera for image in self._images]

    def __len__(self) -> int:
        return len(self._images)

    def frame(self, index: int) -> Frame:
        """Image `index`, decoded, with the intrinsics of its own size. Raises DatasetError if it cannot be read."""
        about = self._images[index]
        image = self._picture(about).image
        lens = self._lens(about, *image.shape[:2])
        rectifier = self._rectifier(about, lens)
        if rectifier is not None:
            return Frame(rectifier.image(image), self.stamps_ns[index], self.camera, rectifier.intrinsics)
        return Frame(image, self.stamps_ns[index], self.camera, None if lens is None else lens.intrinsics)

    def depth(self, index: int) -> F32 | None:
        """(H, W) z-depth in metres in the pixels of image `index`, NaN where unknown; None if there is not a depth image. Raises
        DatasetError."""
        about = self._images[index]
        if about.depth is None or not about.depth.is_file():
            return None
        depth = read_depth(about.depth, self._metres_per_unit)
        picture = self._picture(about)
        height, width = picture.image.shape[:2]
        lens = self._lens(about, height, width)
        depth_lens = None if about.depth_lens is None else resized(about.depth_lens, *depth.shape, about.depth)  # type: ignore[call-arg]
        depth = in_pixels_of(depth, (height, width), lens, depth_lens)
        if picture.hidden is not None:  # transparent pixels were not seen
            depth = np.where(picture.hidden, np.float32(np.nan), depth)
        rectifier = self._rectifier(about, lens)
        return depth if rectifier is None else rectifier.depth(depth)

    def _picture(self, about: PosedImage) -> Picture:
        return self._size.fit(read_picture(about.path, self._levels), about.path)

    def _lens(self, about: PosedImage, height: int, width: int) -> Lens | None:
        return None if about.lens is None else resized(about.lens, height, width, about.path)

    def _rectifier(self, about: PosedImage, lens: Lens | None) -> Rectifier | None:
        if not self._rectify or lens is None or not lens.distorted:
            return None
        try:
            return rectifier_of(lens)
        except FrameError as error:
            raise DatasetError(f"the camera of {about.path}: {error}") from error


def resized(lens: Lens, height: int, width: int, path: Path) -> Lens:
    """The same camera on an image of another size. Raises DatasetError if the aspect ratio differs."""
    if (lens.width, lens.height) == (width, height):
        return lens
    sx, sy = width / lens.width, height / lens.height
    if abs(sx / sy - 1) > MOST_STRETCH:
        raise DatasetError(
            f"{shown(path)} has {width}x{height} px, but its camera was calibrated at {lens.width}x{lens.height}: images may be "
            f"resized, but not cropped or distorted"
        )
    return replace(
        lens, width=width, height=height, fx=lens.fx * sx, fy=lens.fy * sy,
        cx=(lens.cx + 0.5) * sx - 0.5, cy=(lens.cy + 0.5) * sy - 0.5,
    )  # fmt: skip


def in_pixels_of(depth: F32, shape: tuple[int, int], lens: Lens | None, depth_lens: Lens | None) -> F32:
    """Depth (h, w) at the pixels of an image of `shape` (H, W) taken from the same place: the nearest values; NaN outside. Without
    both lenses, both are assumed to have the same field of view."""
    if depth.shape == shape and (
        depth_lens is None or lens is None or depth_lens.intrinsics.tolist() == lens.intrinsics.tolist()
    ):
        return depth  # fmt: skip
    height, width = shape
    u, v = np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64)
    if lens is not None and depth_lens is not None:
        u = (u - lens.cx) / lens.fx * depth_lens.fx + depth_lens.cx
        v = (v - lens.cy) / lens.fy * depth_lens.fy + depth_lens.cy
    else:
        u, v = (u + 0.5) * depth.shape[1] / width - 0.5, (v + 0.5) * depth.shape[0] / height - 0.5
    columns, rows = np.floor(u + 0.5).astype(int), np.floor(v + 0.5).astype(int)
    inside = ((rows >= 0) & (rows < depth.shape[0]))[:, None] & ((columns >= 0) & (columns < depth.shape[1]))
    picked = depth[rows.clip(0, depth.shape[0] - 1)[:, None], columns.clip(0, depth.shape[1] - 1)]
    return np.where(inside, picked, np.float32(np.nan))


def read_depth(path: Path, metres_per_unit: float, invalid: Sequence[int] = INVALID_UNITS) -> F32:
    """(H, W) metres of a one-channel image of integers, NaN where its value is one of `invalid`; or of an .npy file with numbers (of
    the same unit if they are integers, metres if not). Raises DatasetError."""
    if path.suffix == ".npy":
        try:
            raw = np.load(path, allow_pickle=False)
        except Exception as error:  # damaged headers raise all kinds of exceptions
            raise DatasetError(f"cannot read the depth {shown(path)}: {error}") from error
    else:
        raw = read_stored(path)
    if raw.ndim == 3 and raw.shape[2] == 1:
        raw = raw[..., 0]
    if raw.ndim != 2:
        raise DatasetError(f"{shown(path)} has the shape {raw.shape}, but a depth image must have one channel")
    if np.issubdtype(raw.dtype, np.floating):
        return np.where(np.isfinite(raw) & (raw > 0), raw, np.nan).astype(np.float32)
    good = ~np.isin(raw, invalid)
    return np.where(good, raw * np.float32(metres_per_unit), np.float32(np.nan)).astype(np.float32)


def read_matrix(path: Path) -> F64:
    """(4, 4) or (3, 3) of numbers in a text file. Raises DatasetError."""
    try:
        values = np.array(
            [[float(word) for word in line.split()] for line in text_of_file(path).splitlines() if line.strip()]
        )
        if values.shape not in ((4, 4), (3, 3)):
            raise ValueError(f"it holds {values.shape}, but needs 4x4 (or 3x3) numbers")
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"cannot read the matrix {shown(path)}: {getattr(error, 'strerror', None) or error}"
        ) from error
    return values


def read_pose(path: Path) -> F64 | None:
    """(4, 4) world_from_camera of a text file; None if it is missing or not finite, which is how data sets mark what was not tracked.
    Raises DatasetError if it is something else than a rigid transform."""
    if not path.is_file():
        return None
    matrix = read_matrix(path)
    if not np.isfinite(matrix).all():
        return None
    return checked_pose(matrix, path)


def checked_pose(matrix: F64, path: Path | str) -> F64:
    """Raises DatasetError unless it is a rigid (4, 4) transform."""
    if matrix.shape != (4, 4) or not is_finite_pose(matrix):
        raise DatasetError(f"{path}: a camera's pose must be a rigid 4x4 transform, but it is {matrix.tolist()}")
    return matrix


def natural(name: str) -> list[tuple[int, int | str]]:
    """Sorting key that takes runs of digits as numbers."""
    return [(0, int(part)) if part.isdigit() else (1, part.lower()) for part in re.split(r"(\d+)", name) if part]
