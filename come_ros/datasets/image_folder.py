"""A folder of images as a sequence, sorted by name; without a rate they are photographs without times."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from ..camera.levels import Levels
from ..errors import DatasetError
from ..files import shown
from ..types import F32, F64, Frame
from .image_file import OneSize, left_out, read_picture, suffixes
from .posed_images import natural

log = logging.getLogger("come_ros")

RATE = 10.0  # default rate of the stamps, images per second
RESULTS = {"overview.png", "compare.png"}  # files written by a run into this folder
RESULTS_MARK = "run.yaml"


class ImageFolder:
    """The images of `folder` in the order of their names, numbers by value ("frame2" before "frame10"), upright, all of one size.

    stamps_ns: 0, then 1 / fps apart. timed: whether stamps are times, because a rate was given; otherwise every image is used.
    Neither poses nor depth are known. unread: number of image files of unsupported formats.
    """

    kind = "folder of images"

    def __init__(
        self,
        folder: str | Path,
        fps: float | None = None,
        intrinsics: F64 | None = None,
        camera: str = "camera_optical_frame",
        levels: str = "auto",
    ) -> None:
        """fps: None for photographs. intrinsics: (3, 3) of all images, if known. levels: the parameter input.range. Raises
        DatasetError if there are no images or fps is invalid."""
        if fps is not None and not 0 < fps <= 10_000:
            raise DatasetError(f"fps is {fps!r}, but must lie in 0 .. 10000: it gives the images their stamps")
        self.folder, self.intrinsics, self.camera = Path(folder), intrinsics, camera
        self.timed = fps is not None
        if not self.folder.is_dir():
            raise DatasetError(f"{shown(self.folder)} is not a folder: give the one that holds the images")
        self.paths = image_files(self.folder)
        if not self.paths:
            raise DatasetError(f"{shown(self.folder)} holds no images ({', '.join(suffixes())})")
        rest, self.unread = left_out(self.folder, self.paths)
        if rest:
            log.warning("%s", rest)
        self._levels = Levels(levels, shown(self.folder))
        self._size = OneSize(self.paths, upright=True)
        if self._size.others and self._size.size:
            height, width = self._size.size
            log.warning(
                "%s: %d images are not of %dx%d px like most: those of the same shape are resized, others are left out",
                shown(self.folder), self._size.others, width, height,
            )  # fmt: skip
        self.stamps_ns = [round(i * 1e9 / (fps or RATE)) for i in range(len(self.paths))]
        self.poses: list[F64 | None] = [None] * len(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def frame(self, index: int) -> Frame:
        """Image `index`, decoded. Raises DatasetError if it cannot be read."""
        path = self.paths[index]
        picture = self._size.fit(read_picture(path, self._levels, upright=True), path)
        return Frame(picture.image, self.stamps_ns[index], self.camera, self.intrinsics)

    def depth(self, index: int) -> F32 | None:
        """Unknown."""
        return None

    def iter_frames(self) -> Iterator[Frame]:
        """All images in order, one in memory at a time."""
        return map(self.frame, range(len(self)))


def image_files(folder: Path) -> list[Path]:
    """The images in `folder` by name, without hidden files and results of this package."""
    known = suffixes()
    results = RESULTS if (folder / RESULTS_MARK).is_file() else set()
    files = (
        path for path in folder.iterdir()
        if path.suffix.lower() in known and not path.name.startswith(".") and path.name not in results and path.is_file()
    )  # fmt: skip
    return sorted(files, key=lambda path: natural(path.name))
