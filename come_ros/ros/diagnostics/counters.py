"""FrameCounters: accounts for every received frame. received = used + pending + sum(dropped), at any instant."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

from ...drops import DROP_REASONS


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
