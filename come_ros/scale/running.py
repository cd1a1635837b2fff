"""A running estimate of one source: the logarithm of the metres in a unit of the model, which wanders as the model drifts.

A local level (random walk and noise) in a Kalman filter with one state. Readings of one window err alike, so a window counts once; what all
readings of a source have in common never averages out. Readings that lie far off count less, as Huber's loss has it, until so many of
them agree with each other that the level itself must have been wrong.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence

import numpy as np

from .reading import Reading, Readings, Seen

HUBER = 2.0  # sigmas of a reading from which on it counts less
FAR = 3.0  # sigmas: readings beyond are kept aside
AGREE = 5  # of these in a row, which agree, are the new level
LOST = 0.3  # sigma of what is known after windows that share no frame


class Running:
    """log_metres, sigma: NaN while unknown. readings: windows with news. stamp_ns: of the last of them. left_out: readings, by reason."""

    def __init__(self, read: Callable[[Seen], Readings], drift: float, floor: float) -> None:
        """drift: sigma by which the level moves from keyframe to keyframe. floor: of the source as such, which no reading shows."""
        self._read, self._drift, self._floor = read, drift, floor
        self.readings = self.stamp_ns = 0
        self.log_metres = float("nan")
        self.left_out = Counter[str]()
        self._variance = float("inf")
        self._common = 0.0
        self._aside: deque[tuple[float, float]] = deque(maxlen=AGREE)

    @property
    def sigma(self) -> float:
        return float(np.sqrt(self._variance + self._common**2 + self._floor**2)) if self.readings else float("nan")

    def observe(self, seen: Seen, lost: bool = False) -> None:
        """lost: as in MetricScale."""
        self._variance += len(seen.frames) // seen.cameras * self._drift**2 + (LOST**2 if lost else 0.0)
        found = self._read(seen)
        self.left_out.update(found.left_out)
        self.add(found.readings)

    def add(self, readings: Sequence[Reading]) -> None:
        """Those of one window."""
        if not readings:
            return
        value = float(np.median([r.log_metres for r in readings]))
        variance = float(np.median([r.sigma for r in readings])) ** 2
        common = float(np.median([r.common for r in readings]))
        self.stamp_ns = max(r.stamp_ns for r in readings)
        if not self.readings:
            self.log_metres, self._variance, self._common = value, variance, common
        else:
            self._update(value, variance)
            share = 1 / min(self.readings + 1, 20)
            self._common += share * (common - self._common)
        self.readings += 1

    def _update(self, value: float, variance: float) -> None:
        off = value - self.log_metres
        surprise = abs(off) / np.sqrt(self._variance + variance)
        if surprise > FAR:
            self._aside.append((value, variance))
            if len(self._aside) == AGREE and self._agree():
                self.log_metres = float(np.median([v for v, _ in self._aside]))
                self._variance = float(np.median([v for _, v in self._aside]))
                self._aside.clear()
                return
        else:
            self._aside.clear()
        if surprise > HUBER:
            variance = variance * (surprise / HUBER) ** 2
        gain = self._variance / (self._variance + variance)
        self.log_metres += gain * off
        self._variance *= 1 - gain

    def _agree(self) -> bool:
        values, variances = np.array(self._aside).T
        return float(np.ptp(values)) < 2 * FAR * float(np.sqrt(np.median(variances)))
