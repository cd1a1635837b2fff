"""Images of more than 8 bits for a model that takes 8: which part of the range a stream of images really uses.

Sensors of 10, 12 or 14 bits, and thermal cameras, fill a part of 16 bits only: divided by 257, their images would be nearly black.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import parse_range
from ..types import U8

log = logging.getLogger("come_ros")

BITS = (8, 10, 12, 14, 16)  # of common sensors
NARROW = (
    1 / 8
)  # a range that uses less than this share of its bits is stretched: a thermal scene spans a few of some hundred degrees
LEAST_SPAN = 32.0  # least width of a stretched range: noise alone must not become a picture
CLIPPED = 0.01  # the range widens if more than this share of the pixels lies outside
OUTLIERS = 0.1  # % of the pixels at either end that may be defects
_SAMPLES = 20_000  # pixels sampled per image


class Levels:
    """Maps the values of one stream of images to 8 bits, all by the same range.

    The range comes from the first image. Later ones widen it where more than 1 % of their pixels lie outside of it; it never
    becomes narrower, so the brightness of the stream stays consistent. range: (low, high), None before the first image.
    """

    def __init__(self, setting: str = "auto", stream: str = "") -> None:
        """setting: the parameter input.range. stream: its name in the log. Raises ConfigError."""
        self.range = self._fixed = parse_range(setting)
        self._stream = stream
        self._used: tuple[float, float] | None = None

    def to_8_bits(self, values: NDArray[Any]) -> U8:
        """The same shape as uint8. values: uint16 or float; NaN becomes 0."""
        if self._fixed is None:
            self._look_at(values)
        low, high = self.range or (0.0, 65535.0)
        if values.dtype.kind in "ui" and (low, high) == (0.0, 65535.0):
            return np.asarray((values.astype(np.uint32) + 128) // 257, np.uint8)  # 257 = 65535 / 255; rounded
        with np.errstate(invalid="ignore"):
            scaled = (values.astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
        return np.asarray(np.rint(np.clip(np.nan_to_num(scaled, nan=0.0), 0, 255)), np.uint8)

    def _look_at(self, values: NDArray[Any]) -> None:
        some = values.reshape(-1)[:: max(1, values.size // _SAMPLES)]
        some = some[np.isfinite(some)] if some.dtype.kind == "f" else some
        if not some.size:
            return
        if self.range is not None:
            low, high = self.range
            if np.mean((some < low) | (some > high)) <= CLIPPED:
                return
        low, high = (float(v) for v in np.percentile(some, (OUTLIERS, 100 - OUTLIERS)))
        if self._used is not None:
            low, high = min(low, self._used[0]), max(high, self._used[1])
        self._used = (low, high)
        before, self.range = self.range, _range_of(low, high, some.dtype.kind == "f")
        if self.range != before and self.range != (0.0, 65535.0):
            log.warning(
                "%s%s: values of %g .. %g are shown to the model as 0 .. 255; input.range fixes that",
                f"{self._stream}: " if self._stream else "", "more than 8 bits" if before is None else "a wider range",
                *self.range,
            )  # fmt: skip


FULL = Levels("full")
"""The full 16-bit range, for single images"""


def _range_of(low: float, high: float, is_float: bool) -> tuple[float, float]:
    """The range to show for values in low .. high (outliers removed)."""
    if is_float:
        whole = next((top for top in (1.0, 255.0) if low >= 0 and high <= top), None)
        if whole is not None:
            return 0.0, whole
    full = float(next((2**bits - 1 for bits in BITS if high < 2**bits), max(high, 65535.0)))
    span = high - low
    if low < 0 or span < NARROW * full:
        margin = max(0.1 * span, (LEAST_SPAN - span) / 2)
        floor = -np.inf if low < 0 else 0.0
        return max(floor, low - margin), high + margin
    return 0.0, full
