"""The interface of all recordings, built-in ones and those of other packages (readers.py)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from ..types import F32, F64, Frame


class Recording(ABC):
    """One camera's images in order, with depth and true path where known. A context manager.

    kind: description. topic: of the images in a bag, else "". depth_topic: of the depth in a bag, else "". timed: whether stamps
    are times; those of photographs are not, so every photograph is used. count: number of images, None if unknown before they are
    read. unreadable: images that `iter_frames` left out so far. damage: why images may be missing, "" if none are. Each `iter_`
    method starts again from the first image and may be called while another one runs on another Recording, not on this one.
    """

    kind: str
    topic = depth_topic = ""
    timed = True
    count: int | None = None
    unreadable = 0
    damage = ""

    @abstractmethod
    def iter_frames(self) -> Iterator[Frame]:
        """All images, one in memory at a time; damaged ones are left out, counted and logged. Raises DatasetError if nothing more
        can be read."""

    def iter_depth(self) -> Iterator[tuple[int, F32]]:
        """(stamp in ns, (H, W) z-depth in metres, NaN where unknown) in the pixels of the images. Raises DatasetError."""
        return iter(())

    def truth(self) -> dict[int, F64]:
        """Stamp in ns -> world_from_camera (4, 4) of the optical frame, oldest first; empty if it is not known. Raises DatasetError."""
        return {}

    def close(self) -> None:  # noqa: B027
        """Closes open files."""

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.close()
