"""A folder of images as a sequence: sorted by name, at a constant rate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2

from ..errors import DatasetError
from ..types import F32, F64, Frame
from .posed_images import natural

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class ImageFolder:
    """The images of `folder` in the order of their names, numbers by value ("frame2" before "frame10").

    stamps_ns: 0, then 1 / fps apart. Neither poses nor depth are known.
    """

    kind = "folder of images"

    def __init__(
        self, folder: str | Path, fps: float = 10.0, intrinsics: F64 | None = None, camera: str = "camera_optical_frame"
    ) -> None:
        """intrinsics: (3, 3) of all images, if known. Raises DatasetError if there are no images or fps is no rate."""
        if not 0 < fps <= 10_000:
            raise DatasetError(f"fps is {fps!r}, but must lie in 0 .. 10000: it gives the images their stamps")
        self.folder = Path(folder)
        self.intrinsics = intrinsics
        self.camera = camera
        if not self.folder.is_dir():
            raise DatasetError(f"{self.folder} is no folder: give the one that holds the images")
        images = (path for path in self.folder.iterdir() if path.suffix.lower() in SUFFIXES)
        self.paths = sorted(images, key=lambda path: natural(path.name))
        if not self.paths:
            raise DatasetError(f"{self.folder} holds no images ({', '.join(SUFFIXES)})")
        self.stamps_ns = [round(i * 1e9 / fps) for i in range(len(self.paths))]
        self.poses: list[F64 | None] = [None] * len(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def frame(self, index: int) -> Frame:
        """Image `index`, decoded. Raises DatasetError if it cannot be read."""
        image = cv2.imread(str(self.paths[index]), cv2.IMREAD_COLOR)
        if image is None:
            raise DatasetError(f"cannot read the image {self.paths[index]}: it is damaged or of an unknown format")
        return Frame(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), self.stamps_ns[index], self.camera, self.intrinsics)

    def depth(self, index: int) -> F32 | None:
        """Unknown."""
        return None

    def iter_frames(self) -> Iterator[Frame]:
        """All images in order, one in memory at a time."""
        return map(self.frame, range(len(self)))
