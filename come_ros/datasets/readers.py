"""Readers of other packages: given as READER::PATH, where READER is NAME or module:Class, or because they accept what they are shown.

A reader is a subclass of recording.Recording with `accepts(path) -> bool` as a class method; it is made with the path, and with its
`Parameters`, if it declares any, as a second argument: READER:name=value,...::PATH. What it returns is checked.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..config_text import own_parameters, split_name
from ..errors import ComeRosError, ConfigError, DatasetError, PluginError
from ..files import shown
from ..plugins import READERS, check_complete, one_line
from ..types import F32, F64, Frame
from .part import Chosen, Part
from .recording import Recording

log = logging.getLogger("come_ros")

MARK = "::"


def split_reader(source: str) -> tuple[str, str]:
    """READER::PATH -> READER, PATH; the reader is "" where none is named."""
    reader, mark, path = source.partition(MARK)
    return (reader, path) if mark else ("", source)


def accepting(path: Path) -> str:
    """Name of the first registered reader that accepts `path`, "" if none does. One that cannot be asked is left out, which is logged."""
    for name in READERS.others:
        try:
            if READERS.load(name).accepts(path):
                return name
        except ConfigError as error:
            log.warning("%s", error)
        except Exception as error:
            log.warning("the dataset reader %s cannot be asked about %s: %s", name, shown(path), one_line(error))
    return ""


def make_reader(reader: str, path: Path) -> Recording:
    """The Recording that READER makes of `path`. Raises ConfigError if there is no such reader or parameter, PluginError if it lacks
    attributes, DatasetError if it fails."""
    name, words = split_name(reader)
    kind, own = READERS.load(name), own_parameters(READERS, name, words)
    try:
        made: Recording = kind(path) if own is None else kind(path, own)
    except ComeRosError:
        raise
    except Exception as error:
        raise DatasetError(f"the dataset reader {name} cannot open {shown(path)}: {one_line(error)}") from error
    check_complete(made, Recording, f"the dataset reader {name}")
    return made


class Foreign(Recording):
    """A part of a recording from a reader of another package. Everything that the reader returns is checked: a mistake there becomes a
    PluginError that names the method."""

    def __init__(self, reader: str, path: Path, part: Part, with_depth: bool = True) -> None:
        self._reader, self._whole, self._part, self._with_depth = reader, make_reader(reader, path), part, with_depth
        whole = self._whole
        self.kind, self.topic, self.depth_topic, self.timed = whole.kind, whole.topic, whole.depth_topic, whole.timed
        self.count = None if part else whole.count

    def iter_frames(self) -> Iterator[Frame]:
        chosen = Chosen(self._part)
        with self._asked("iter_frames", DatasetError):  # the images before the failure count
            for frame in self._whole.iter_frames():
                self._check_frame(frame)
                if chosen.takes(frame.stamp_ns):
                    yield frame
                if chosen.done:
                    break

    @property
    def unreadable(self) -> int:  # type: ignore[override]
        return self._whole.unreadable

    @property
    def damage(self) -> str:  # type: ignore[override]
        return self._whole.damage

    def iter_depth(self) -> Iterator[tuple[int, F32]]:
        with self._asked("iter_depth"):
            for stamp_ns, depth in self._whole.iter_depth() if self._with_depth else ():
                self._check_stamp("iter_depth", stamp_ns)
                self._check("iter_depth", "depth", depth, "float32", (None, None), "(H, W) float32 in metres")
                yield stamp_ns, depth

    def truth(self) -> dict[int, F64]:
        with self._asked("truth"):
            found = self._whole.truth()
            for stamp_ns, pose in found.items():
                self._check_stamp("truth", stamp_ns)
                self._check("truth", "a pose", pose, "float64", (4, 4), "(4, 4) float64")
            return found

    def close(self) -> None:
        self._whole.close()

    @contextmanager
    def _asked(self, method: str, kind: type[ComeRosError] = PluginError) -> Iterator[None]:
        """Raises `kind` in place of exceptions that are not ours."""
        try:
            yield
        except ComeRosError:
            raise
        except Exception as error:
            raise kind(f"the dataset reader {self._reader} failed in {method}: {one_line(error)}") from error

    def _check_frame(self, frame: Any) -> None:
        """The image itself is checked where images of all sources are."""
        if not isinstance(frame, Frame):
            self._refuse("iter_frames", type(frame).__name__, "come_ros.types.Frame")
        self._check_stamp("iter_frames", frame.stamp_ns)
        if frame.intrinsics is not None:
            self._check("iter_frames", "intrinsics", frame.intrinsics, "float64", (3, 3), "None or (3, 3) float64")

    def _check_stamp(self, method: str, stamp_ns: Any) -> None:
        if type(stamp_ns) is not int:
            self._refuse(method, f"the stamp {stamp_ns!r} ({type(stamp_ns).__name__})", "an int in ns")

    def _check(
        self, method: str, name: str, value: Any, dtype: str, shape: tuple[int | None, ...], wanted: str
    ) -> None:
        found = np.asarray(value)
        fits = len(found.shape) == len(shape) and all(b in (None, a) for a, b in zip(found.shape, shape, strict=True))
        if not fits or found.dtype != dtype:
            self._refuse(method, f"{name} of shape {found.shape} and type {found.dtype}", wanted)

    def _refuse(self, method: str, found: str, wanted: str) -> None:
        raise PluginError(f"the dataset reader {self._reader} gave {found}, but {method} must give {wanted}")
