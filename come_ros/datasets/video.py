"""A video file as a sequence, decoded by OpenCV; stamps are the container's own times where it has them."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from ..errors import DatasetError
from ..files import shown
from ..types import F64, Frame

log = logging.getLogger("come_ros")

# read by FFmpeg at its first use; errors are reported below, in one line
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")


class Video:
    """The images of a video. The first one has stamp 0, or its time in the container.

    fps: rate of the stamps, None if they are the container's times. count: number of images stated by the container, None if
    unknown. unreadable: how many of those `iter_frames` could not find so far. damage: the same in words, "" if none.
    """

    def __init__(
        self,
        path: str | Path,
        fps: float | None = None,
        intrinsics: F64 | None = None,
        camera: str = "camera_optical_frame",
    ) -> None:
        """fps: None for the container's times. intrinsics: (3, 3) of all images, if known. Raises DatasetError."""
        if fps is not None and not 0 < fps <= 10_000:
            raise DatasetError(f"fps is {fps!r}, but must lie in 0 .. 10000: it gives the images their stamps")
        self.path, self.fps, self.intrinsics, self.camera = Path(path), fps, intrinsics, camera
        self.unreadable, self.damage = 0, ""
        if not self.path.is_file():
            raise DatasetError(f"{shown(self.path)} does not exist: give a video file")
        capture = self._capture()
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.count: int | None = int(count) if count > 0 else None
        self._rate = float(capture.get(cv2.CAP_PROP_FPS))
        times = [capture.get(cv2.CAP_PROP_POS_MSEC) for _ in range(2) if capture.read()[0]]
        capture.release()
        if not times:
            raise DatasetError(
                f"{shown(self.path)} holds no image that OpenCV can decode: it is damaged, or must be converted to H.264"
            )
        if self.fps is None and len(times) > 1 and not times[1] > times[0] >= 0:
            self.fps = self._rate if 0 < self._rate <= 10_000 else 30.0
            log.warning("%s has no times: its images are stamped at %g per second (--fps)", shown(self.path), self.fps)

    def iter_frames(self) -> Iterator[Frame]:
        """All images in order, one in memory at a time."""
        capture = self._capture()
        index, last = 0, -1
        try:
            while True:
                # of the image just read; whole nanoseconds of a container's microseconds
                good, image = capture.read()
                if not good:
                    break
                if self.fps is None:
                    stamp = round(capture.get(cv2.CAP_PROP_POS_MSEC) * 1000) * 1000
                else:
                    stamp = round(index * 1e9 / self.fps)
                if stamp > last:  # a container may list one image twice
                    yield Frame(
                        np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8),
                        stamp,
                        self.camera,
                        self.intrinsics,
                    )
                index, last = index + 1, max(last, stamp)
        finally:
            capture.release()
        self.unreadable = max(0, (self.count or 0) - index)
        # containers estimate: one image more or less is not damage
        if self.count is not None and self.unreadable > max(1, 0.01 * self.count):
            self.damage = f"{shown(self.path)} is damaged: {index} of {self.count} images could be decoded"

    def _capture(self) -> cv2.VideoCapture:
        told = cv2.utils.logging.getLogLevel()
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        try:
            with _openable(self.path) as name:
                capture = cv2.VideoCapture(name, cv2.CAP_FFMPEG)
                if not capture.isOpened():
                    capture = cv2.VideoCapture(name)  # builds without FFmpeg have another backend
        finally:
            cv2.utils.logging.setLogLevel(told)
        if not capture.isOpened():
            raise DatasetError(
                f"OpenCV cannot open the video {shown(self.path)}: it is damaged, or of a format that this OpenCV cannot decode; "
                f"convert it (ffmpeg -i {shown(self.path.name)} -c:v libx264 video.mp4), or give its images in a folder"
            )
        return capture


@contextlib.contextmanager
def _openable(path: Path) -> Iterator[str]:
    """A name of the file that OpenCV can open while this lasts: it crashes at names that are not UTF-8, and FFmpeg takes what is before a
    colon for a protocol, unless the name begins with a slash."""
    name = str(path.absolute())
    try:
        name.encode()
    except UnicodeEncodeError:
        with open(path, "rb") as stream:
            yield f"/proc/self/fd/{stream.fileno()}"
    else:
        yield name
