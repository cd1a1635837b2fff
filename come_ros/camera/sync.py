"""SetMatcher: images of several cameras that were taken at about the same time become one set."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")

WAITING = 10  # most items of one camera that wait for the others
TIME_JUMP_NS = 100_000_000  # stamps that go back by more start a new sequence, by less are late images


class Matched(NamedTuple, Generic[T]):
    """The result of adding one item. sets: complete sets, oldest first, each with one item per camera. dropped: items (possibly
    this one) that can no longer be in a set."""

    sets: list[tuple[T, ...]]
    dropped: int


class SetMatcher(Generic[T]):
    """Every item ends in a set, is dropped, or waits. All methods may be called from any thread.

    Items of one camera come in the order of their stamps. The oldest waiting items of all cameras are compared: if they lie within
    `slop_ns`, they form a set; otherwise those too old for the newest of them can never be in a set, because later items are newer
    still. The result therefore does not depend on the order in which the cameras' messages arrive, and no other rule makes more
    sets.
    """

    def __init__(self, cameras: int, slop_ns: int, waiting: int = WAITING) -> None:
        """Raises ValueError unless cameras and waiting are 1 or more and slop_ns is not negative."""
        if cameras < 1 or slop_ns < 0 or waiting < 1:
            raise ValueError(f"cannot match {cameras} cameras within {slop_ns} ns with {waiting} waiting")
        self.slop_ns, self.waiting = slop_ns, waiting
        self._queues: Sequence[deque[tuple[int, T]]] = [deque() for _ in range(cameras)]
        self._last: list[int | None] = [None] * cameras
        self._lock = threading.Lock()

    def put(self, camera: int, stamp_ns: int, item: T) -> Matched[T]:
        """An item of camera number `camera`. One whose stamp is not newer than the last one's is dropped; if it goes back by more than
        TIME_JUMP_NS, all waiting items are dropped instead, and matching starts again."""
        with self._lock:
            last, dropped = self._last[camera], 0
            if last is not None and stamp_ns <= last:
                if last - stamp_ns <= TIME_JUMP_NS:
                    return Matched([], 1)
                dropped = self._clear()
            self._last[camera] = stamp_ns
            self._queues[camera].append((stamp_ns, item))
            if len(self._queues[camera]) > self.waiting:  # of a camera that is ahead of the others
                self._queues[camera].popleft()
                dropped += 1
            sets: list[tuple[T, ...]] = []
            while all(self._queues):
                heads = [queue[0][0] for queue in self._queues]
                if max(heads) - min(heads) <= self.slop_ns:
                    sets.append(tuple(queue.popleft()[1] for queue in self._queues))
                    continue
                for queue in self._queues:
                    if queue[0][0] < max(heads) - self.slop_ns:
                        queue.popleft()
                        dropped += 1
            return Matched(sets, dropped)

    def clear(self) -> int:
        """Drops all waiting items and forgets the stamps. Returns the number of items dropped."""
        with self._lock:
            return self._clear()

    def missing(self) -> list[int]:
        """The cameras that the others wait for."""
        with self._lock:
            empty = [i for i, queue in enumerate(self._queues) if not queue]
            return empty if len(empty) < len(self._queues) else []

    def _clear(self) -> int:
        dropped = sum(map(len, self._queues))
        for queue in self._queues:
            queue.clear()
        self._last = [None] * len(self._queues)
        return dropped
