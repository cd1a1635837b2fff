"""Time stamps of recordings: read from text, and matched to the nearest within 20 ms."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import TypeVar

from ..errors import DatasetError
from ..types import F32

T = TypeVar("T")

MAX_DIFFERENCE_NS = 20_000_000  # greatest difference of matched stamps, as in the benchmark's own script
NANOSECOND_DIGITS = 16  # least digits of a stamp in nanoseconds; one in seconds has 10
_EXPONENT = re.compile(r"\d+(\.\d*)?[eE]\+?\d{1,2}", re.ASCII)


class NearestDepth:
    """Looks up depth by stamp in a stream sorted by time, with only 20 ms on either side in memory."""

    def __init__(self, readings: Iterator[tuple[int, F32]]) -> None:
        self._readings = readings
        self._near: deque[tuple[int, F32]] = deque()

    def at(self, stamp_ns: int) -> F32 | None:
        """The depth nearest to `stamp_ns`, which must not decrease; None if there is none within 20 ms."""
        try:
            while not self._near or self._near[-1][0] <= stamp_ns + MAX_DIFFERENCE_NS:
                self._near.append(next(self._readings))
                while self._near and self._near[0][0] < stamp_ns - MAX_DIFFERENCE_NS:
                    self._near.popleft()
        except (StopIteration, DatasetError):  # a damaged recording is reported by the reader of its images
            pass
        at_best = min(self._near, key=lambda reading: abs(reading[0] - stamp_ns), default=None)
        if at_best is None or abs(at_best[0] - stamp_ns) > MAX_DIFFERENCE_NS:
            return None
        return at_best[1]


def stamp_ns_from_text(text: str) -> int:
    """Integer nanoseconds of decimal seconds ("1305031229.528748", or "1.305031229528748e+09" as NumPy writes them), exact: a float would
    be off by some 100 ns. Whole numbers of 16 digits and more are nanoseconds already. Raises ValueError."""
    whole, _, part = text.partition(".")
    if not (whole.isdecimal() and (part.isdecimal() or not part)):
        if not _EXPONENT.fullmatch(text):
            raise ValueError(f"{text!r} is not a time in decimal seconds")
        text = f"{Decimal(text):f}"
        whole, _, part = text.partition(".")
        part = part.rstrip("0")
    if len(whole) >= NANOSECOND_DIGITS and not part:
        return int(whole)
    return int(whole) * 1_000_000_000 + int((part + "000000000")[:9])


def matched(stamps_ns: Sequence[int], values: Mapping[int, T]) -> dict[int, T]:
    """stamp -> the value of the nearest stamp among `values`; stamps without one within MAX_DIFFERENCE_NS are left out."""
    others = sorted(values)
    near = nearest(stamps_ns, others)
    return {stamp: values[others[i]] for stamp, i in zip(stamps_ns, near, strict=True) if i is not None}


def nearest(stamps_ns: Sequence[int], others_ns: Sequence[int]) -> list[int | None]:
    """For each stamp the index of the nearest of `others_ns` (sorted), None if over MAX_DIFFERENCE_NS away."""
    out: list[int | None] = []
    for stamp in stamps_ns:
        right = bisect_left(others_ns, stamp)
        around = [j for j in (right - 1, right) if 0 <= j < len(others_ns)]
        best = min(around, key=lambda j: abs(others_ns[j] - stamp), default=None)
        out.append(best if best is not None and abs(others_ns[best] - stamp) <= MAX_DIFFERENCE_NS else None)
    return out
