"""What the sources look at, and what they return."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..camera.preprocess import CropResize
from ..types import F32, F64, Frame


@dataclass(frozen=True, eq=False)
class Seen:
    """The N new frames of a window, of all cameras, set by set, with lengths in the model's unit as the aligner chains it.

    plans: how each image was cut. depth: (N, H, W), NaN where invalid. intrinsics: (N, 3, 3) in pixels of that. poses: (N, 4, 4), in a
    frame that stays the same. up: (3,) against gravity in that frame; level: whether the robot's frame says so, else the first camera was
    only taken to be level. cameras: how many there are.
    """

    frames: Sequence[Frame]
    plans: Sequence[CropResize]
    depth: F32
    intrinsics: F64
    poses: F64
    up: F64
    level: bool = False
    cameras: int = 1


class Source(Protocol):
    """What one source says by now. log_metres: logarithm of the metres in one unit of the model, NaN while unknown, with its sigma.
    readings: windows with news. stamp_ns: of the last of them. left_out: readings that there could have been, by reason."""

    @property
    def log_metres(self) -> float: ...

    @property
    def sigma(self) -> float: ...

    readings: int
    stamp_ns: int
    left_out: Counter[str]

    def observe(self, seen: Seen, lost: bool = False) -> None:
        """The frames of one more window; lost: they share none with those before."""


@dataclass(frozen=True)
class Reading:
    """One measurement. log_metres: logarithm of the metres in one unit of the model. sigma: its own error. common: an error that it shares
    with all other readings of the source, such as that of a calibration."""

    stamp_ns: int
    log_metres: float
    sigma: float
    common: float = 0.0


@dataclass(frozen=True)
class Readings:
    """readings: of one window, oldest first. left_out: how many there could have been but for these reasons."""

    readings: tuple[Reading, ...] = ()
    left_out: Counter[str] = field(default_factory=Counter)
