"""Opens recordings of any kind: bags, folders of images with and without poses and depth, videos, and those of other packages."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DatasetError
from ..files import shown
from ..types import F32, F64, Frame
from .colmap import colmap, find_model
from .image_file import HEIF, NOT_READ
from .image_file import SUFFIXES as IMAGES
from .image_folder import ImageFolder, image_files
from .part import Chosen, Part
from .posed_images import PosedImages
from .readers import Foreign, accepting, split_reader
from .recording import Recording
from .scannet import is_scannet, scannet
from .seven_scenes import is_seven_scenes, seven_scenes
from .storage import is_recording
from .transforms import find_transforms, transforms
from .tum import TumSequence
from .video import SUFFIXES as VIDEOS
from .video import Video

log = logging.getLogger("come_ros")

MOST_TOLD = 5  # images left out that are logged individually
ACCEPTED = (
    "a ROS 2 bag (its folder, .mcap or .db3), a ROS 1 .bag, a folder in the layout of TUM RGB-D (frames.txt or rgb.txt), 7-Scenes "
    "(frame-*.color.png) or ScanNet (color/, pose/), images with a transforms.json or a COLMAP model (sparse/0), "
    f"a folder of images ({', '.join(IMAGES)}), a video ({', '.join(VIDEOS)})"
)


def open_sequence(
    path: str | Path,
    topic: str | None = None,
    fps: float | None = None,
    rectify: str = "auto",
    truth: str | None = None,
    depth: str | None = None,
    part: Part | None = None,
    levels: str = "auto",
) -> Recording:
    """Opens a recording of any kind; READER::PATH uses a reader of another package, see readers.py.

    topic: of the images, for a bag with several. fps: of folders of images, which are photographs without it, and of videos instead
    of the container's times. rectify, levels: the parameters rectify and input.range. truth: topic of a bag with the true path.
    depth: depth topic of a bag, "none" for no depth; None for the one that belongs to the images. part: of the images to read; None
    for all.

    Raises DatasetError, which lists what is accepted, and ConfigError for an option without effect on this kind of recording.
    """
    reader, text = split_reader(str(path))
    path, part = Path(text), part or Part()
    if not path.exists():
        raise DatasetError(f"{shown(path)} does not exist: give {ACCEPTED}")
    if not (path.is_file() or path.is_dir()):
        raise DatasetError(
            f"{shown(path)} is a pipe or device, which cannot be read from the start again: write it to a file"
        )
    try:
        if reader or (reader := accepting(path)):
            _refuse(
                path,
                f"read by {reader}",
                topic=topic,
                fps=fps,
                gt=truth,
                depth_topic=None if depth == "none" else depth,
            )
            return Foreign(reader, path, part, depth != "none")
        if is_recording(path):
            _refuse(path, "a bag, whose messages have stamps", fps=fps)
            return BagSequence(path, topic, rectify, truth, depth, part, levels)
        if truth is not None:
            raise DatasetError(
                f"ground truth {truth} is not a file, and {shown(path)} is not a bag that could hold such a topic: give a TUM file"
            )
        _refuse(path, "not a bag", topic=topic, depth_topic=None if depth == "none" else depth)
        if path.is_file() and path.suffix.lower() in VIDEOS:
            return VideoSequence(Video(path, fps), part)
        if (opened := _layout(path)) is not None:
            folder = opened(path, rectify != "off", levels)
            _refuse(path, f"a {folder.kind}, which needs no rate", fps=fps)
            return FolderSequence(folder, part, depth != "none")
        if path.is_dir() and image_files(path):
            return FolderSequence(ImageFolder(path, fps, levels=levels), part)
    except OSError as error:
        raise DatasetError(f"{shown(path)} cannot be read: {error.strerror or error}") from error
    raise DatasetError(_why_nothing(path))


def _refuse(path: Path, what: str, **options: Any) -> None:
    """Raises ConfigError if an option is given that has no effect."""
    for name, value in options.items():
        if value is not None:
            raise ConfigError(
                f"{shown(path)} is {what}, so that --{name.replace('_', '-')} {value} has no effect: leave it out"
            )


def _why_nothing(path: Path) -> str:
    """What to use instead of `path`."""
    if path.is_file() and path.suffix.lower() in (*IMAGES, *HEIF):
        return f"{shown(path)} is a single image: give its folder, {shown(path.absolute().parent)}"
    if path.is_file() and path.suffix.lower() in NOT_READ:
        return f"{shown(path)} cannot be read: {NOT_READ[path.suffix.lower()]}"
    if path.is_dir():
        unread = [file for file in path.iterdir() if file.suffix.lower() in NOT_READ and not file.name.startswith(".")]
        if unread:
            return f"{shown(path)} holds {len(unread)} images that cannot be read: {NOT_READ[unread[0].suffix.lower()]}"
        below = [inside for inside in sorted(path.iterdir()) if is_readable(inside)]
        if below:
            listed = ", ".join(shown(inside) for inside in below[:5]) + (", ..." if len(below) > 5 else "")
            return f"{shown(path)} is not a recording that can be read, but holds some: give one of {listed}"
    return f"{shown(path)} is not a recording that can be read: give {ACCEPTED}"


def _layout(path: Path) -> Callable[[Path, bool, str], TumSequence | PosedImages] | None:
    """What opens `path` (path, rectify, levels), if it is images in a known layout."""
    if find_transforms(path) is not None:
        return transforms
    if not path.is_dir():
        return None
    if any((path / name).is_file() for name in ("frames.txt", "rgb.txt")):
        return TumSequence
    if is_seven_scenes(path):
        return lambda path, _, levels: seven_scenes(path, levels)
    if is_scannet(path):
        return lambda path, _, levels: scannet(path, levels)
    return colmap if find_model(path) is not None else None


def is_readable(path: Path) -> bool:
    """Whether it looks like a recording."""
    try:
        if path.is_file():
            return is_recording(path) or path.suffix.lower() in VIDEOS
        return bool(accepting(path) or is_recording(path) or _layout(path) or image_files(path))
    except OSError:
        return False


class BagSequence(Recording):
    """A bag; `bag` is the datasets.rosbag.Bag."""

    def __init__(
        self,
        path: Path,
        topic: str | None,
        rectify: str,
        truth: str | None,
        depth: str | None = None,
        part: Part | None = None,
        levels: str = "auto",
    ) -> None:
        from .rosbag import Bag

        part = part or Part()
        self.bag = Bag(path, topic, rectify, depth, part, levels)
        try:
            if truth is not None:
                self.bag.use_truth(truth)
        except DatasetError:
            self.close()
            raise
        self.kind = "ROS 1 bag" if self.bag.is_ros1 else "ROS 2 bag"
        self.topic, self.depth_topic = self.bag.topic, self.bag.depth_topic
        self.count = None if part else len(self.bag)

    def iter_frames(self) -> Iterator[Frame]:
        return self.bag.iter_frames()

    @property
    def unreadable(self) -> int:  # type: ignore[override]
        return self.bag.unreadable

    @property
    def damage(self) -> str:  # type: ignore[override]
        return self.bag.damage

    def iter_depth(self) -> Iterator[tuple[int, F32]]:
        return self.bag.iter_depth()

    def truth(self) -> dict[int, F64]:
        return self.bag.truth()

    def close(self) -> None:
        self.bag.close()


class FolderSequence(Recording):
    """Images on disk, one file each."""

    def __init__(
        self, folder: ImageFolder | TumSequence | PosedImages, part: Part | None = None, with_depth: bool = True
    ) -> None:
        self._folder, self._part, self._with_depth = folder, part or Part(), with_depth
        self.kind, self.timed = folder.kind, folder.timed
        self.count = self._part.count(folder.stamps_ns)
        self._unread = getattr(folder, "unread", 0)

    def _indices(self) -> Iterator[int]:
        chosen = Chosen(self._part)
        return (index for index, stamp_ns in enumerate(self._folder.stamps_ns) if chosen.takes(stamp_ns))

    def iter_frames(self) -> Iterator[Frame]:
        self.unreadable = self._unread
        for index in self._indices():
            try:
                frame = self._folder.frame(index)
            except DatasetError as error:
                self.unreadable += 1
                if self.unreadable - self._unread <= MOST_TOLD:
                    log.warning("an image is left out: %s", error)
                continue
            yield frame
        more = self.unreadable - self._unread - MOST_TOLD
        if more > 0:
            log.warning("%d more images are left out", more)

    def iter_depth(self) -> Iterator[tuple[int, F32]]:
        unreadable = 0
        for index in self._indices() if self._with_depth else ():
            try:
                depth = self._folder.depth(index)
            except DatasetError as error:
                unreadable += 1
                if unreadable <= MOST_TOLD:
                    log.warning("a depth image is left out: %s", error)
                continue
            if depth is not None:
                yield self._folder.stamps_ns[index], depth
        if unreadable > MOST_TOLD:
            log.warning("%d more depth images are left out", unreadable - MOST_TOLD)

    def truth(self) -> dict[int, F64]:
        pairs = zip(self._folder.stamps_ns, self._folder.poses, strict=True)
        return {stamp_ns: pose for stamp_ns, pose in pairs if pose is not None}


class VideoSequence(Recording):
    """A video file."""

    kind = "video"

    def __init__(self, video: Video, part: Part | None = None) -> None:
        self._video, self._part = video, part or Part()
        self.count = None if self._part else video.count

    def iter_frames(self) -> Iterator[Frame]:
        chosen = Chosen(self._part)
        for frame in self._video.iter_frames():
            if chosen.takes(frame.stamp_ns):
                yield frame
            if chosen.done:
                return
        self.unreadable, self.damage = self._video.unreadable, self._video.damage
