"""Scenes in the layout of ScanNet (Dai et al., CVPR 2017), as exported by its own reader: color/, depth/, pose/, intrinsic/."""

from __future__ import annotations

import contextlib
from pathlib import Path

from ..camera.rectify import Lens, pinhole_fault
from ..errors import DatasetError
from .image_file import read_stored
from .image_folder import image_files
from .posed_images import PosedImage, PosedImages, read_matrix, read_pose

RATE = 30.0  # of the sensor; the layout gives no times


def is_scannet(folder: Path) -> bool:
    return (folder / "color").is_dir() and (folder / "pose").is_dir()


def scannet(folder: Path, levels: str = "auto") -> PosedImages:
    """One scene (`scene0000_00`). Depth in mm, with its own size and intrinsics; poses are world_from_camera, -inf where
    tracking was lost. Raises DatasetError."""
    files = image_files(folder / "color")
    if not files:
        raise DatasetError(f"{folder / 'color'} holds no images: export the scene with ScanNet's SensReader")
    depths = {path.stem: path for path in (folder / "depth").glob("*.png")} if (folder / "depth").is_dir() else {}
    lens = _lens(folder, "color", files)
    depth_lens = _lens(folder, "depth", list(depths.values())) if depths and lens is not None else None
    return PosedImages(
        "ScanNet scene",
        (
            PosedImage(f, lens, read_pose(folder / "pose" / f"{f.stem}.txt"), depths.get(f.stem), depth_lens)
            for f in files
        ),
        fps=RATE,
        levels=levels,
    )


def _lens(folder: Path, what: str, files: list[Path]) -> Lens | None:
    """Camera of the images `files`, None if no file describes it."""
    names = (f"intrinsic/intrinsic_{what}.txt", f"intrinsic_{what}.txt", f"intrinsics_{what}.txt")
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        return None
    k = read_matrix(path)
    height, width = _size(files)
    if fault := pinhole_fault(k[0, 0], k[1, 1], k[0, 2], k[1, 2], width, height):
        raise DatasetError(f"{path} has {fault}")
    return Lens(width, height, k[0, 0], k[1, 1], k[0, 2], k[1, 2])


def _size(files: list[Path]) -> tuple[int, int]:
    """(height, width) of the first one that can be read. Raises DatasetError if none can."""
    for path in files[:-1]:
        with contextlib.suppress(DatasetError):
            return read_stored(path).shape[:2]
    return read_stored(files[-1]).shape[:2]
