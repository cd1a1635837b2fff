"""Images with a COLMAP model (Schoenberger and Frahm, CVPR 2016), as text or binary: cameras and images; points are not read."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import geometry
from ..camera.rectify import Lens, pinhole_fault
from ..errors import DatasetError
from ..files import text_of_file
from ..types import F64
from .posed_images import PosedImage, PosedImages, natural

MODEL_FOLDERS = ("sparse/0", "sparse", "colmap/sparse/0", "dense/sparse", "colmap", ".")
IMAGE_FOLDERS = ("images", "../images", "../../images", ".")  # next to the given folder, or above the model

# by COLMAP's number: name, and parameters -> (fx, fy, cx, cy, model, coefficients) in OpenCV's order
_Of = Callable[..., tuple[float, float, float, float, str, tuple[float, ...]]]
CAMERAS: dict[int, tuple[str, int, _Of]] = {
    0: ("SIMPLE_PINHOLE", 3, lambda f, cx, cy: (f, f, cx, cy, "plumb_bob", ())),
    1: ("PINHOLE", 4, lambda fx, fy, cx, cy: (fx, fy, cx, cy, "plumb_bob", ())),
    2: ("SIMPLE_RADIAL", 4, lambda f, cx, cy, k: (f, f, cx, cy, "plumb_bob", (k, 0, 0, 0))),
    3: ("RADIAL", 5, lambda f, cx, cy, k1, k2: (f, f, cx, cy, "plumb_bob", (k1, k2, 0, 0))),
    4: ("OPENCV", 8, lambda fx, fy, cx, cy, *d: (fx, fy, cx, cy, "plumb_bob", d)),
    5: ("OPENCV_FISHEYE", 8, lambda fx, fy, cx, cy, *d: (fx, fy, cx, cy, "equidistant", d)),
    6: ("FULL_OPENCV", 12, lambda fx, fy, cx, cy, *d: (fx, fy, cx, cy, "rational_polynomial", d)),
    8: ("SIMPLE_RADIAL_FISHEYE", 4, lambda f, cx, cy, k: (f, f, cx, cy, "equidistant", (k, 0, 0, 0))),
    9: ("RADIAL_FISHEYE", 5, lambda f, cx, cy, k1, k2: (f, f, cx, cy, "equidistant", (k1, k2, 0, 0))),
}
_NUMBERS = {name: number for number, (name, _, _) in CAMERAS.items()}


class _Image(NamedTuple):
    name: str
    camera: int
    world_from_camera: F64 | None


def find_model(folder: Path) -> Path | None:
    """The model folder for `folder`, None if there is none."""
    for name in MODEL_FOLDERS:
        for suffix in (".bin", ".txt"):
            if all((folder / name / f"{part}{suffix}").is_file() for part in ("cameras", "images")):
                return folder / name
    return None


def colmap(folder: Path, rectify: bool = True, levels: str = "auto") -> PosedImages:
    """`folder` holds images/ and the model in sparse/0 (or another of MODEL_FOLDERS). Sorted by image name. The unit of length is
    the model's own. Raises DatasetError."""
    model = find_model(folder)
    if model is None:
        raise DatasetError(f"{folder} holds no COLMAP model: cameras and images, .bin or .txt, in sparse/0")
    binary = (model / "cameras.bin").is_file() and (model / "images.bin").is_file()
    try:
        if binary:
            cameras = dict(_cameras_binary(_Bytes(model / "cameras.bin")))
            images = list(_images_binary(_Bytes(model / "images.bin")))
        else:
            cameras, images = dict(_cameras_text(model / "cameras.txt")), list(_images_text(model / "images.txt"))
    except (OSError, ValueError, OverflowError, struct.error) as error:
        raise DatasetError(f"the COLMAP model in {model} cannot be read: {error}") from error
    if not images:
        raise DatasetError(f"the COLMAP model in {model} has no registered images")
    unknown = {image.camera for image in images} - cameras.keys()
    if unknown:
        raise DatasetError(
            f"the COLMAP model in {model} has images of cameras {sorted(unknown)}, which it does not list"
        )
    images.sort(key=lambda image: natural(image.name))
    places = [folder / name for name in ("images", ".")] + [model / name for name in IMAGE_FOLDERS]
    root = next((place for place in places if (place / images[0].name).is_file()), None)
    if root is None:
        raise DatasetError(
            f"{images[0].name} of the COLMAP model in {model} is not in {folder / 'images'}: put the images there"
        )
    return PosedImages(
        "folder of images with a COLMAP model",
        (PosedImage(root / image.name, cameras[image.camera], image.world_from_camera) for image in images),
        rectify=rectify,
        levels=levels,
    )


def lens_of(model: str | int, width: int, height: int, parameters: tuple[float, ...]) -> Lens:
    """The lens of a COLMAP camera. COLMAP puts (0, 0) at the corner of the first pixel, we put it at its centre. Raises ValueError
    for models that OpenCV lacks."""
    number = _NUMBERS.get(model, -1) if isinstance(model, str) else model
    if number not in CAMERAS:
        known = ", ".join(name for name, _, _ in CAMERAS.values())
        raise ValueError(
            f"camera model {model} cannot be used, but {known}: undistort the images with colmap image_undistorter"
        )
    name, count, read = CAMERAS[number]
    if len(parameters) != count or not np.isfinite(parameters).all() or width < 1 or height < 1:
        raise ValueError(
            f"a {name} camera needs {count} finite parameters and a size, not {parameters} at {width}x{height}"
        )
    fx, fy, cx, cy, kind, d = read(*parameters)
    if fault := pinhole_fault(fx, fy, cx, cy, width, height):
        raise ValueError(f"a {name} camera has {fault}")
    return Lens(width, height, fx, fy, cx - 0.5, cy - 0.5, kind, d if any(d) else ())


def _image(name: str, camera: int, quat_wxyz: tuple[float, ...], translation: tuple[float, ...]) -> _Image:
    """COLMAP stores camera_from_world."""
    w, x, y, z = quat_wxyz
    camera_from_world = geometry.transform(geometry.matrix_from_quat_xyzw([x, y, z, w]), translation)
    pose = geometry.inverse(camera_from_world)
    return _Image(name, camera, pose if bool(geometry.is_finite_pose(pose)) else None)


def _cameras_text(path: Path) -> Iterator[tuple[int, Lens]]:
    for number, line in enumerate(text_of_file(path).splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 5:
            raise ValueError(f"{path.name}, line {number} needs id, model, width, height, parameters")
        yield int(words[0]), lens_of(words[1], int(words[2]), int(words[3]), tuple(map(float, words[4:])))


def _images_text(path: Path) -> Iterator[_Image]:
    """Two lines per image; the second, its points, may be empty."""
    lines = [line for line in text_of_file(path).splitlines() if not line.startswith("#")]
    for line in lines[::2]:
        if not line.strip():
            continue  # after the last one
        words = line.strip().split(maxsplit=9)
        if len(words) < 10:
            raise ValueError(f"{path.name}: {line!r} needs id, qw, qx, qy, qz, tx, ty, tz, camera, name")
        numbers = tuple(map(float, words[1:8]))
        yield _image(words[9], int(words[8]), numbers[:4], numbers[4:])


class _Bytes:
    """Reads a binary file sequentially."""

    def __init__(self, path: Path) -> None:
        self.name, self._data, self._at = path.name, path.read_bytes(), 0

    def take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + layout, self._data, self._at)
        self._at += struct.calcsize("<" + layout)
        return values

    def text(self) -> str:
        end = self._data.index(b"\0", self._at)
        value, self._at = os.fsdecode(self._data[self._at : end]), end + 1
        return value

    def skip(self, count: int) -> None:
        self._at += count
        if self._at > len(self._data):
            raise ValueError(f"{self.name} ends too early")


def _cameras_binary(data: _Bytes) -> Iterator[tuple[int, Lens]]:
    (count,) = data.take("Q")
    for _ in range(count):
        number, model, width, height = data.take("iiQQ")
        parameters = data.take(f"{CAMERAS[model][1]}d") if model in CAMERAS else ()
        yield number, lens_of(model, width, height, parameters)


def _images_binary(data: _Bytes) -> Iterator[_Image]:
    (count,) = data.take("Q")
    for _ in range(count):
        _, *numbers, camera = data.take("I7dI")
        name = data.text()
        (points,) = data.take("Q")
        data.skip(24 * points)
        yield _image(name, camera, tuple(numbers[:4]), tuple(numbers[4:]))
