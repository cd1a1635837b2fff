"""FrameCounters: accounts for every received frame. received = used + pending + sum(dropped), at any instant."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ...drops import DROP_REASONS

DROP_FIXES: Mapping[str, str] = {
    "busy": "the machine is too slow for them, or busy with other programs: lower window.size or input.max_side, or free a core",
    "old": "lower window.size or input.max_side, or raise max_data_age",
    "decode": "let the driver publish whole images of an encoding that is read",
    "sync": "check that all cameras run and are triggered together, or raise sync.slop",
    "time": "check the camera's clock, or the bag that is played",
    "rejected": "move the camera slower, or raise the frame rate",
}
"""What to do where images come, but are dropped for that reason."""


@dataclass(frozen=True)
class Counts:
    """A snapshot. pending: in the ring, being decoded, waiting in the window, or being inferred."""

    received: int
    used: int
    pending: int
    dropped: Mapping[str, int]

    def balanced(self) -> bool:
        """Whether every received frame is accounted for."""
        return self.received == self.used + self.pending + sum(self.dropped.values())

    def since(self, before: Counts) -> Counts:
        """What happened after `before`; all of it if counting began again meanwhile."""
        if self.received < before.received:
            return self
        dropped = {reason: n - before.dropped[reason] for reason, n in self.dropped.items()}
        return Counts(self.received - before.received, self.used - before.used, self.pending, dropped)


def drops_text(dropped: Mapping[str, int], reasons: Iterable[str] = DROP_FIXES) -> tuple[str, str]:
    """("41 busy, 3 decode", what to do about the most frequent one) of those reasons; two empty texts where nothing was dropped."""
    found = {reason: dropped[reason] for reason in reasons if dropped.get(reason)}
    if not found:
        return "", ""
    return ", ".join(f"{n} {reason}" for reason, n in found.items()), DROP_FIXES.get(
        max(found, key=lambda r: found[r]), ""
    )


class Lately:
    """The counts of the last seconds, for who asks now and then."""

    def __init__(self, over_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._over_s, self._clock = over_s, clock
        self._kept: deque[tuple[float, Counts]] = deque()

    def restart(self) -> None:
        self._kept.clear()

    def __call__(self, counts: Counts) -> tuple[float, Counts] | None:
        """(seconds, what happened in them), over_s or a little more; None if that is not known yet."""
        now = self._clock()
        if self._kept and counts.received < self._kept[-1][1].received:
            self._kept.clear()
        self._kept.append((now, counts))
        while len(self._kept) > 1 and now - self._kept[1][0] >= self._over_s:
            self._kept.popleft()
        begun, before = self._kept[0]
        return (now - begun, counts.since(before)) if now - begun >= self._over_s else None


class FrameCounters:
    """Thread-safe. Each step moves frames from one place to another, so that the sum always holds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.restart()

    def restart(self) -> None:
        """All counts to zero."""
        with self._lock:
            self._received = self._used = self._pending = 0
            self._dropped = dict.fromkeys(DROP_REASONS, 0)

    def receive(self) -> None:
        """Counts a received frame, which is pending until `use` or `drop`."""
        with self._lock:
            self._received += 1
            self._pending += 1

    def use(self, frames: int = 1) -> None:
        """Counts pending frames as published. Raises ValueError if fewer are pending."""
        with self._lock:
            self._settle(frames)
            self._used += frames

    def drop(self, reason: str, frames: int = 1) -> None:
        """Counts pending frames as dropped, for one of DROP_REASONS. Raises ValueError if fewer are pending, or for another
        reason."""
        if reason not in DROP_REASONS:
            raise ValueError(f"unknown reason {reason!r}; known are {', '.join(DROP_REASONS)}")
        with self._lock:
            self._settle(frames)
            self._dropped[reason] += frames

    def snapshot(self) -> Counts:
        with self._lock:
            return Counts(self._received, self._used, self._pending, dict(self._dropped))

    def _settle(self, frames: int) -> None:
        if not 0 <= frames <= self._pending:
            raise ValueError(f"{frames} frames to settle, but {self._pending} pending")
        self._pending -= frames
