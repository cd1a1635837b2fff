"""Any recording in one shape: bags, folders of images with and without poses and depth, videos."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DatasetError
from ..types import F32, F64, Frame
from .colmap import colmap, find_model
from .image_folder import SUFFIXES as IMAGES
from .image_folder import ImageFolder
from .posed_images import PosedImages
from .scannet import is_scannet, scannet
from .seven_scenes import is_seven_scenes, seven_scenes
from .transforms import find_transforms, transforms
from .tum import TumSequence
from .video import SUFFIXES as VIDEOS
from .video import Video

log = logging.getLogger("come_ros")

FPS = 10.0  # of folders, which tell no times
ACCEPTED = (
    "a ROS 2 bag (its folder, .mcap or .db3), a ROS 1 .bag, a folder in the layout of TUM RGB-D (frames.txt or rgb.txt), 7-Scenes "
    "(frame-*.color.png) or ScanNet (color/, pose/), images with a transforms.json or a COLMAP model (sparse/0), "
    f"a folder of images ({', '.join(IMAGES)}), a video ({', '.join(VIDEOS)})"
)


class Sequence(ABC):
    """One camera's images in order, with depth and true path where the source knows them. A context manager.

    kind: what it is, in words. topic: the images' in a bag, else "". count: images it holds, None if unknown before they are
    read. unreadable: images that `iter_frames` left out so far. damage: why images may be missing at the end, "" if none are.
    Each `iter_` method starts anew and may be called while another one runs on another Sequence, not on this one.
    """

    kind: str
    topic = ""
    count: int | None
    unreadable = 0
    damage = ""

    @abstractmethod
    def iter_frames(self) -> Iterator[Frame]:
        """All images, one in memory at a time; those that are damaged are left out, counted and logged. Raises DatasetError
        where nothing more can be read."""

    def iter_depth(self) -> Iterator[tuple[int, F32]]:
        """(stamp in ns, (H, W) z-depth in metres, NaN where unknown) in the pixels of the images. Raises DatasetError."""
        return iter(())

    def truth(self) -> dict[int, F64]:
        """Stamp in ns -> world_from_camera (4, 4) of the optical frame, oldest first; empty if it is not known. Raises DatasetError."""
        return {}

    def close(self) -> None:  # noqa: B027
        """Lets go of files, if any are held."""

    def __enter__(self) -> Sequence:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.close()


def open_sequence(
    path: str | Path,
    topic: str | None = None,
    fps: float | None = None,
    rectify: str = "auto",
    truth: str | None = None,
) -> Sequence:
    """What `path` is, opened. topic: the images' of a bag with several. fps: of folders of images (default: FPS) and, in place of
    the container's times, of videos. rectify: the parameter of that name. truth: topic of a bag that tells the true path.

    Raises DatasetError, which lists what is accepted, or what of the options does not fit.
    """
    path = Path(path)
    if not path.exists():
        raise DatasetError(f"{path} does not exist: give {ACCEPTED}")
    is_bag = any(path.glob("*.mcap")) or any(path.glob("*.db3")) or (path / "metadata.yaml").is_file()
    if path.suffix in (".mcap", ".db3", ".bag") if path.is_file() else is_bag:
        return BagSequence(path, topic, rectify, truth)
    if topic is not None:
        raise DatasetError(f"{path} is no bag, so that --topic {topic} has no meaning: leave it out")
    if truth is not None:
        raise DatasetError(
            f"ground truth {truth} is no file, and {path} no bag that could hold such a topic: give a TUM file"
        )
    if path.is_file() and path.suffix.lower() in VIDEOS:
        return VideoSequence(Video(path, fps))
    if (folder := _known_layout(path, rectify != "off")) is not None:
        return FolderSequence(folder)
    if path.is_dir() and any(file.suffix.lower() in IMAGES for file in path.iterdir()):
        return FolderSequence(ImageFolder(path, FPS if fps is None else fps))
    raise DatasetError(f"{path} is no recording that can be read: give {ACCEPTED}")


def _known_layout(path: Path, rectify: bool) -> TumSequence | PosedImages | None:
    if find_transforms(path) is not None:
        return transforms(path, rectify)
    if not path.is_dir():
        return None
    if any((path / name).is_file() for name in ("frames.txt", "rgb.txt")):
        return TumSequence(path, rectify)
    if is_seven_scenes(path):
        return seven_scenes(path)
    if is_scannet(path):
        return scannet(path)
    return colmap(path, rectify) if find_model(path) is not None else None


class BagSequence(Sequence):
    """A bag; `bag` is the thing itself."""

    def __init__(self, path: Path, topic: str | None, rectify: str, truth: str | None) -> None:
        from .rosbag import Bag

        self.bag = Bag(path, topic, rectify)
        try:
            if truth is not None:
                self.bag.use_truth(truth)
        except DatasetError:
            self.close()
            raise
        self.kind = "ROS 1 bag" if path.suffix == ".bag" else "ROS 2 bag"
        self.topic, self.count, self.damage = self.bag.topic, len(self.bag), self.bag.damage

    def iter_frames(self) -> Iterator[Frame]:
        return self.bag.iter_frames()

    @property
    def unreadable(self) -> int:  # type: ignore[override]
        return self.bag.unreadable

    def iter_depth(self) -> Iterator[tuple[int, F32]]:
        return self.bag.iter_depth()

    def truth(self) -> dict[int, F64]:
        return self.bag.truth()

    def close(self) -> None:
        self.bag.close()


class FolderSequence(Sequence):
    """Images on disk, one file each."""

    def __init__(self, folder: ImageFolder | TumSequence | PosedImages) -> None:
        self._folder = folder
        self.kind = folder.kind
        self.count = len(folder)

    def iter_frames(self) -> Iterator[Frame]:
        self.unreadable = 0
        for index in range(len(self._folder)):
            try:
                frame = self._folder.frame(index)
            except DatasetError as error:
                self.unreadable += 1
                log.warning("an image is left out: %s", error)
                continue
            yield frame

    def iter_depth(self) -> Iterator[tuple[int, F32]]:
        for index, stamp_ns in enumerate(self._folder.stamps_ns):
            try:
                depth = self._folder.depth(index)
            except DatasetError as error:
                log.warning("a depth image is left out: %s", error)
                continue
            if depth is not None:
                yield stamp_ns, depth

    def truth(self) -> dict[int, F64]:
        pairs = zip(self._folder.stamps_ns, self._folder.poses, strict=True)
        return {stamp_ns: pose for stamp_ns, pose in pairs if pose is not None}


class VideoSequence(Sequence):
    """A video file."""

    kind = "video"

    def __init__(self, video: Video) -> None:
        self._video = video
        self.count = video.count

    def iter_frames(self) -> Iterator[Frame]:
        yield from self._video.iter_frames()
        self.unreadable, self.damage = self._video.unreadable, self._video.damage
