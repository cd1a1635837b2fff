"""Recordings in the layout of the TUM RGB-D benchmark: images, depth and poses in text lists."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .. import geometry
from ..camera.levels import Levels
from ..camera.rectify import Lens, Rectifier, pinhole_fault, rectifier_of
from ..errors import DatasetError, FrameError
from ..files import shown, text_of_file
from ..types import F32, F64, Frame
from .image_file import OneSize, Picture, read_picture, read_stored
from .stamps import matched, stamp_ns_from_text

METRES_PER_UNIT = 1 / 5000  # unit of a depth PNG, unless set in sequence.json

# fx fy cx cy of the benchmark's three cameras; folders carry their names
KNOWN_CAMERAS = {
    "freiburg1": (517.3, 516.5, 318.6, 255.3),
    "freiburg2": (520.9, 521.0, 325.1, 249.7),
    "freiburg3": (535.4, 539.2, 320.1, 247.6),
}


class TumSequence:
    """A folder with `frames.txt` (stamp, rgb, depth by row) or with `rgb.txt` and `depth.txt`, matched by time.

    `groundtruth.txt` (stamp tx ty tz qx qy qz qw, world_from_camera, optical axes) is optional, and so is
    `sequence.json` (camera, frame_id, metres per unit of depth).

    name: the sequence's. camera: name of the optical frame. intrinsics: (3, 3) of the images as they are given, or None.
    distortion: remaining plumb_bob coefficients (OpenCV), () if none. stamps_ns: integer nanoseconds of each image.
    poses: world_from_camera (4, 4) of each image, None where there is none within 20 ms.
    """

    kind = "TUM folder"
    timed = True

    def __init__(self, folder: str | Path, rectify: bool = True, levels: str = "auto") -> None:
        """Reads the lists, and one image only if distortion is to be removed from images and depth (`rectify`). levels: the
        parameter input.range.

        Raises DatasetError if the folder or one of its lists cannot be used.
        """
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise DatasetError(f"{self.folder} is not a folder: give the one that holds frames.txt or rgb.txt")
        about = self._about()
        self.name: str = about.get("name", self.folder.name)
        self.camera: str = about.get("frame_id", "camera_optical_frame")
        self.intrinsics, self.distortion = self._calibration(about)
        self.metres_per_unit = self._unit(about)
        self.stamps_ns, self._rgb, self._depth = self._lists()
        self.poses = self._poses()
        self._levels = Levels(levels, self.name)
        self._size = OneSize(self._rgb, upright=False)
        if (k := self.intrinsics) is not None:
            height, width = self._size.size or (480, 640)
            if fault := pinhole_fault(k[0, 0], k[1, 1], k[0, 2], k[1, 2], width, height):
                raise DatasetError(f"{self.folder / 'sequence.json'}: camera has {fault}")
        self._rectifier = self._made_rectifier() if rectify and self.distortion else None
        if self._rectifier is not None:
            self.intrinsics, self.distortion = self._rectifier.intrinsics, ()

    def __len__(self) -> int:
        return len(self.stamps_ns)

    def frame(self, index: int) -> Frame:
        """Image `index`, decoded. Raises DatasetError if it cannot be read."""
        image = self._picture(index).image
        if self._rectifier is not None:
            image = self._rectifier.image(image)
        return Frame(image, self.stamps_ns[index], self.camera, self.intrinsics)

    def iter_frames(self) -> Iterator[Frame]:
        """All images, oldest first, one in memory at a time."""
        return map(self.frame, range(len(self)))

    def depth(self, index: int) -> F32 | None:
        """(H, W) z-depth of image `index` in metres, NaN where unknown; None without a depth image."""
        path = self._depth[index]
        if path is None:
            return None
        raw = read_stored(path)
        if raw.ndim != 2:
            raise DatasetError(f"{path} has {raw.shape[2]} channels, but a depth image must have one")
        metres = np.where(raw > 0, raw * np.float32(self.metres_per_unit), np.float32(np.nan)).astype(np.float32)
        return metres if self._rectifier is None else self._rectifier.depth(metres)

    def _picture(self, index: int) -> Picture:
        return self._size.fit(read_picture(self._rgb[index], self._levels), self._rgb[index])

    def _about(self) -> dict[str, Any]:
        path = self.folder / "sequence.json"
        if not path.is_file():
            return {}
        try:
            return dict(json.loads(text_of_file(path)))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise DatasetError(f"cannot read {path}: {error}") from error

    def _unit(self, about: dict[str, Any]) -> float:
        """Metres per unit of the depth images."""
        try:
            unit = float(about.get("depth", {}).get("metres_per_unit", METRES_PER_UNIT))
        except (AttributeError, TypeError, ValueError):
            unit = math.nan
        if not 0 < unit < math.inf:
            raise DatasetError(
                f"{self.folder / 'sequence.json'}: depth needs a positive metres_per_unit: write a number"
            )
        return unit

    def _calibration(self, about: dict[str, Any]) -> tuple[F64 | None, tuple[float, ...]]:
        camera = about.get("camera")
        if camera is None:
            known = next((v for name, v in KNOWN_CAMERAS.items() if name in self.folder.name), None)
            if known is None:
                return None, ()
            camera = dict(zip(("fx", "fy", "cx", "cy"), known, strict=True))
        try:
            k = np.array([[camera["fx"], 0, camera["cx"]], [0, camera["fy"], camera["cy"]], [0, 0, 1]], np.float64)
            distortion = tuple(float(d) for d in camera.get("d", ()))
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"{self.folder / 'sequence.json'}: camera needs fx, fy, cx, cy ({error!r})") from error
        if not np.isfinite(distortion).all():
            raise DatasetError(f"{self.folder / 'sequence.json'}: camera has distortion that is not finite")
        return k, distortion if any(distortion) else ()

    def _made_rectifier(self) -> Rectifier:
        assert self.intrinsics is not None  # distortion comes with it
        k = self.intrinsics
        height, width = self._size.size or self._picture(0).image.shape[:2]
        coefficients = (*self.distortion, *(0.0,) * (4 - len(self.distortion)))  # missing coefficients are zero
        try:
            return rectifier_of(Lens(width, height, k[0, 0], k[1, 1], k[0, 2], k[1, 2], "plumb_bob", coefficients))
        except FrameError as error:
            raise DatasetError(f"{self.folder / 'sequence.json'}: {error}") from error

    def _lists(self) -> tuple[list[int], list[Path], list[Path | None]]:
        """Stamps, images and depth images, oldest first."""
        if (self.folder / "frames.txt").is_file():
            rows = read_list(self.folder / "frames.txt", 2)
            depth = [self.folder / words[1] if len(words) > 1 and words[1] != "-" else None for _, words in rows]
        elif (self.folder / "rgb.txt").is_file():
            rows = read_list(self.folder / "rgb.txt", 2)
            depth = [None] * len(rows)
            if (self.folder / "depth.txt").is_file():
                readings = {stamp: self.folder / words[0] for stamp, words in read_list(self.folder / "depth.txt", 2)}
                found = matched([stamp for stamp, _ in rows], readings)
                depth = [found.get(stamp) for stamp, _ in rows]
        else:
            raise DatasetError(f"{self.folder} holds neither frames.txt nor rgb.txt: it is not a TUM sequence")
        if not rows:
            raise DatasetError(f"{self.folder} lists no images")
        return [stamp for stamp, _ in rows], [self.folder / words[0] for _, words in rows], depth

    def _poses(self) -> list[F64 | None]:
        path = self.folder / "groundtruth.txt"
        if not path.is_file():
            return [None] * len(self)
        poses = read_trajectory(path)
        known = matched(self.stamps_ns, poses)
        return [known.get(stamp) for stamp in self.stamps_ns]


def read_list(path: Path, columns: int) -> list[tuple[int, list[str]]]:
    """Rows of a TUM list sorted by stamp: nanoseconds, the other words (`columns` - 1 or more). Columns may be separated by spaces,
    tabs or commas, and the first line may name them. Raises DatasetError."""
    try:
        lines = text_of_file(path).splitlines()
    except OSError as error:
        raise DatasetError(f"cannot read {shown(path)}: {error.strerror or error}") from error
    rows: list[tuple[int, list[str]]] = []
    for number, line in enumerate(lines, 1):
        words = _words(line, columns)
        if not words or words[0].startswith("#"):
            continue
        try:
            stamp_ns = stamp_ns_from_text(words[0])
        except ValueError as error:
            if not rows and words[0].lower().startswith(("time", "stamp", "sec", "nsec")):  # names of the columns
                continue
            raise DatasetError(f"{shown(path)}, line {number}: {error}") from error
        if len(words) < columns:
            raise DatasetError(f"{shown(path)}, line {number} has {len(words)} columns, but needs {columns}")
        rows.append((stamp_ns, words[1:]))
    return sorted(rows, key=lambda row: row[0])


def _words(line: str, columns: int) -> list[str]:
    words = line.split()
    if len(words) >= columns and any("," in word.rstrip(",") for word in words):  # commas are decimal points
        return [word.rstrip(",").replace(",", ".") for word in words]
    return line.replace(",", " ").split()


def read_trajectory(path: Path) -> dict[int, F64]:
    """Stamp in ns -> (4, 4) of a TUM trajectory (stamp tx ty tz qx qy qz qw), oldest first; of EuRoC's, whose header has q_w before
    q_x. Rows with invalid values, which trackers write when they are lost, are left out. Raises DatasetError."""
    rows = read_list(path, 8)
    if not rows:
        raise DatasetError(f"{shown(path)} holds no poses: each row must be stamp tx ty tz qx qy qz qw")
    if all(len(words) == 11 for _, words in rows) and len({stamp for stamp, _ in rows}) < max(2, len(rows) // 2):
        raise DatasetError(
            f"{shown(path)} has 12 columns, as KITTI's paths, which have no times: write its poses as rows of "
            f"stamp tx ty tz qx qy qz qw, with the stamps of its times.txt"
        )
    try:
        values = np.array([[float(word) for word in words[:7]] for _, words in rows]).reshape(-1, 7)
        good = np.isfinite(values).all(axis=1) & (np.linalg.norm(values[:, 3:], axis=1) > 1e-6)
        if not good.any():
            raise ValueError("its numbers must be finite, and its quaternions not zero")
        if _w_first(path):
            values = values[:, [0, 1, 2, 4, 5, 6, 3]]
        poses = geometry.transform(geometry.matrix_from_quat_xyzw(values[good, 3:]), values[good, :3])
    except ValueError as error:
        raise DatasetError(f"{shown(path)}: {error}") from error
    stamps = [stamp for (stamp, _), finite in zip(rows, good, strict=True) if finite]
    return dict(zip(stamps, poses, strict=True))


def _w_first(path: Path) -> bool:
    """Whether the first line states that quaternions begin with w."""
    head = text_of_file(path).partition("\n")[0].lower().replace("_", "")
    return "qw" in head and "qx" in head and head.index("qw") < head.index("qx")
