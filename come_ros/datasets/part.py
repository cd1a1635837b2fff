"""A part of a recording: start, duration, every n-th image, and how many."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError


@dataclass(frozen=True)
class Part:
    """start_s: seconds after the first image. duration_s: seconds from there, None to the end. every: 1 takes all images, 2 every
    other one. most: greatest number of images, None for all."""

    start_s: float = 0.0
    duration_s: float | None = None
    every: int = 1
    most: int | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        for name, value, good, rule in (
            ("start", self.start_s, 0 <= self.start_s < 1e9, "0 or more seconds"),
            ("duration", self.duration_s, self.duration_s is None or 0 < self.duration_s < 1e9, "more than 0 seconds"),
            ("every", self.every, 1 <= self.every <= 1_000_000, "1 or more"),
            ("max-images", self.most, self.most is None or self.most >= 1, "1 or more"),
        ):
            if not good:
                raise ConfigError(f"--{name} is {value}, but must be {rule}")

    def __bool__(self) -> bool:
        """Whether it leaves out any image."""
        return self != Part()

    def count(self, stamps_ns: list[int]) -> int:
        """Number of those images that it contains."""
        chosen = Chosen(self)
        return sum(chosen.takes(stamp) for stamp in stamps_ns)


class Chosen:
    """Decides for one image after the other, in the order of the recording. done: no more images will be taken."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._first_ns: int | None = None
        self._inside = self._taken = 0
        self.done = False

    def takes(self, stamp_ns: int) -> bool:
        """Whether the next image, which has this stamp, belongs to the part."""
        part = self._part
        if self._first_ns is None:
            self._first_ns = stamp_ns
        after_s = (stamp_ns - self._first_ns) * 1e-9 - part.start_s
        early = part.start_s > 0 and after_s < 0  # without a start, an image with a wrong stamp must not be lost here
        if self.done or early or (part.duration_s is not None and after_s >= part.duration_s):
            return False
        number = self._inside
        self._inside += 1
        if number % part.every:
            return False
        self._taken += 1
        self.done = part.most is not None and self._taken >= part.most
        return True
