"""Images with poses in a transforms.json, as of instant-ngp, nerfstudio and the Blender scenes of NeRF (Mildenhall et al., ECCV 2020)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from ..camera.rectify import Lens, pinhole_fault
from ..errors import DatasetError
from ..files import text_of_file
from ..geometry import transform
from .image_file import SUFFIXES, read_stored, size_of
from .posed_images import PosedImage, PosedImages, checked_pose, natural

OPTICAL_FROM_OPENGL = transform(np.diag([1.0, -1.0, -1.0]), np.zeros(3))  # OpenGL: x right, y up, z back
NAMES = ("transforms.json", "transforms_train.json", "transforms_test.json", "transforms_val.json")


def find_transforms(path: Path) -> Path | None:
    """The file with the poses: `path` itself, or the first of NAMES in it; None if there is none."""
    if path.is_file():
        return path if path.suffix == ".json" else None
    return next((path / name for name in NAMES if (path / name).is_file()), None)


def transforms(path: Path, rectify: bool = True, levels: str = "auto") -> PosedImages:
    """`path`: the .json file, or the folder that holds it. Poses are world_from_camera with OpenGL's axes. Depth images
    (`depth_file_path`) in mm, unless set by `depth_unit_scale_factor` or `integer_depth_scale`. Sorted by name. The
    unit of length is the file's own. Raises DatasetError."""
    file = find_transforms(path)
    if file is None:
        raise DatasetError(f"{path} holds no transforms.json")
    try:
        about = json.loads(text_of_file(file))
        frames = list(about["frames"])
        scale = float(about.get("depth_unit_scale_factor", about.get("integer_depth_scale", 1e-3)))
        images = [_image(file, about, frame) for frame in frames]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        said = f"it has no {error}" if isinstance(error, KeyError) else error
        raise DatasetError(f"cannot use {file}: {said}") from error
    images.sort(key=lambda image: natural(image.path.as_posix()))
    return PosedImages(
        "folder of images with a transforms.json", images, metres_per_unit=scale, rectify=rectify, levels=levels
    )


def _image(file: Path, about: dict[str, Any], frame: dict[str, Any]) -> PosedImage:
    path = file.parent / str(frame["file_path"])
    if not path.is_file():  # the Blender scenes omit the suffix
        path = next((p for s in SUFFIXES if (p := path.with_name(path.name + s)).is_file()), path)
    matrix = np.array(frame["transform_matrix"], np.float64)
    if matrix.shape == (3, 4):
        matrix = np.vstack([matrix, [0, 0, 0, 1]])
    pose = None
    if np.isfinite(matrix).all():
        pose = checked_pose(matrix, f"{file}, {frame['file_path']}") @ OPTICAL_FROM_OPENGL
    depth = file.parent / str(frame["depth_file_path"]) if frame.get("depth_file_path") else None
    return PosedImage(path, _lens({**about, **frame}, path), pose, depth)


def _lens(values: dict[str, Any], image: Path) -> Lens | None:
    """The lens from the values of the frame, else of the file; None without a focal length."""
    if not {"fl_x", "camera_angle_x"} & values.keys():
        return None
    if "w" in values and "h" in values:
        width, height = int(values["w"]), int(values["h"])
    else:
        height, width = size_of(image) or read_stored(image).shape[:2]
    fx = float(values["fl_x"]) if "fl_x" in values else width / 2 / math.tan(float(values["camera_angle_x"]) / 2)
    fy = float(values["fl_y"]) if "fl_y" in values else fx
    cx, cy = float(values.get("cx", width / 2)), float(values.get("cy", height / 2))
    if fault := pinhole_fault(fx, fy, cx, cy, width, height):
        raise ValueError(f"it has {fault}")
    model = str(values.get("camera_model", "OPENCV"))
    fisheye = model == "OPENCV_FISHEYE"
    if not fisheye and model not in ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE"):
        raise ValueError(
            f"camera_model {model} cannot be used, but OPENCV, OPENCV_FISHEYE, PINHOLE: undistort the images"
        )
    names = ("k1", "k2", "k3", "k4") if fisheye else ("k1", "k2", "p1", "p2", "k3")
    d = tuple(float(values.get(name, 0.0)) for name in names)
    return Lens(
        width, height, fx, fy, cx - 0.5, cy - 0.5,
        "equidistant" if fisheye else "plumb_bob", d if any(d) and model != "PINHOLE" else (),
    )  # fmt: skip
