"""Recordings in the layout of 7-Scenes (Shotton et al., CVPR 2013): frame-000000.color.png, .depth.png, .pose.txt."""

from __future__ import annotations

from pathlib import Path

from ..camera.rectify import Lens
from ..errors import DatasetError
from .posed_images import PosedImage, PosedImages, read_pose

# The data set's page gives these for depth and colour alike, which were not registered to each other.
RATE = 30.0  # of the Kinect; the layout gives no times
KINECT = Lens(640, 480, 585.0, 585.0, 320.0, 240.0)


def is_seven_scenes(folder: Path) -> bool:
    return any(folder.glob("frame-*.color.png")) or bool(_sequences(folder))


def seven_scenes(folder: Path, levels: str = "auto") -> PosedImages:
    """One sequence (`chess/seq-01`). Depth in mm; 0 and 65535 are invalid. Poses are world_from_camera.

    Raises DatasetError, which lists the sequences if it is the folder of a whole scene.
    """
    files = sorted(folder.glob("frame-*.color.png"))
    if not files:
        there = ", ".join(path.name for path in _sequences(folder))
        raise DatasetError(f"{folder} is a scene of 7-Scenes with several sequences ({there}): give one of them")

    def sibling(file: Path, name: str) -> Path:
        return file.with_name(file.name.replace(".color.png", name))

    images = (PosedImage(f, KINECT, read_pose(sibling(f, ".pose.txt")), sibling(f, ".depth.png")) for f in files)
    return PosedImages("7-Scenes sequence", images, fps=RATE, levels=levels)


def _sequences(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("seq-*") if any(path.glob("frame-*.color.png")))
