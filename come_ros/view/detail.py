"""Levels of detail: fewer points while a view is turned than while it rests, and of both as many as the browser draws in time."""

from __future__ import annotations

import numpy as np

from ..types import F64

FIRST_LEVEL, GROWTH = 20_000, 4  # points; each further level holds so many times as many, with those before
FIRST_POINTS, TURN_POINTS = 500_000, 100_000  # at rest, and while turned, until it is known how fast the browser draws
TURN_S, QUICK_S = 0.12, 0.04  # of a frame while turned: at most; below, one level more the next time
REST_S = 0.5  # of a frame at rest, at most, unless it holds TURN_POINTS: viser draws one every second, and a turn waits for it
STILL_S, MOST_STILL_S = 0.5, 4.0  # without a report, after which the view is at rest: longer where frames take longer
PAUSE_S, GAPS = 15.0, 4  # no frame takes as long: nothing was turned in between; gaps between reports that decide


def shares_of(points: int) -> F64:
    """(levels + 1,) bounds of the levels in so many points, from 0 to 1."""
    bounds = [0.0]
    size = FIRST_LEVEL
    while size < points:
        bounds.append(size / points)
        size *= GROWTH
    return np.array([*bounds, 1.0])


class Detail:
    """Chooses how many levels are drawn, from when browsers report their cameras: once or twice in each frame in which it moved. A frame is
    taken to last as long as there are points in it.

    level: the highest one that is drawn now. points: in these levels. turning: whether a view is turned.
    """

    def __init__(self, points: int) -> None:
        self._sizes = shares_of(points)[1:] * points
        self.turning, self._point_s = False, float("nan")
        self._turned_level, self.level = self._most_of(TURN_POINTS), self._most_of(FIRST_POINTS)
        self._last_s: dict[int, float] = {}
        self._gaps: list[float] = []  # the last GAPS between reports, s
        self._alike = 0  # of them, those since `level` changed

    @property
    def points(self) -> int:
        return round(float(self._sizes[self.level]))

    def _most_of(self, points: float) -> int:
        """The highest level with at most so many, or else the first."""
        return max(0, int(np.searchsorted(self._sizes, points * (1 + 1e-9), side="right")) - 1)

    def reported(self, browser: int, now_s: float) -> bool:
        """A browser reported its camera. Returns whether `level` is another one now."""
        before, last_s = self.level, self._last_s.get(browser)
        self._last_s[browser] = now_s
        if last_s is None:  # it has only opened the page
            return False
        if now_s - last_s < PAUSE_S:
            self._gaps = [*self._gaps[-GAPS + 1 :], now_s - last_s]
            self._alike += 1
        if self._alike >= GAPS:
            took = sorted(self._gaps)[-2]  # a single long one may be a pause of the hand
            point_s = took / self.points
            if np.isnan(self._point_s) or self.points * 2 > REST_S / self._point_s:
                self._point_s = point_s  # of few points it says little: a frame takes its time without any
            if took > TURN_S:
                self._turned_level = min(max(0, self._turned_level - 1), self._most_of(TURN_S / point_s))
        self.turning, self.level = True, self._turned_level
        if self.level != before:
            self._alike = 0
        return self.level != before

    def rested(self, now_s: float) -> bool:
        """Called now and then: whether nothing has turned for a while, so that `level` is another one now."""
        still_s = min(MOST_STILL_S, max(STILL_S, 1.5 * max(self._gaps, default=0.0)))
        if not self.turning or now_s < max(self._last_s.values()) + still_s:
            return False
        if self._alike >= GAPS and max(self._gaps) < QUICK_S:
            self._turned_level = min(len(self._sizes) - 1, self._turned_level + 1)
        before, self.turning, self._alike = self.level, False, 0
        at_rest = FIRST_POINTS if np.isnan(self._point_s) else max(REST_S / self._point_s, TURN_POINTS)
        self.level = max(self._turned_level, self._most_of(at_rest))
        return self.level != before
