"""FrameRing: a bounded queue between the subscription callbacks and the worker that keeps the newest frames."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FrameRing(Generic[T]):
    """At most `capacity` references, oldest first. A full ring drops its oldest item for a new one.

    All methods may be called from any thread, and return at once (`wait` excepted).
    """

    def __init__(self, capacity: int) -> None:
        """Raises ValueError if capacity < 1."""
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._woken = False
        self._capacity = self._checked(capacity)

    @staticmethod
    def _checked(capacity: int) -> int:
        if capacity < 1:
            raise ValueError(f"the capacity of a ring must be 1 or more, not {capacity}")
        return capacity

    @property
    def capacity(self) -> int:
        return self._capacity

    def __len__(self) -> int:
        with self._changed:
            return len(self._items)

    def put(self, item: T) -> int:
        """Adds the newest item. Returns how many older ones were dropped."""
        with self._changed:
            self._items.append(item)
            self._changed.notify_all()
            return self._shrink()

    def pop(self) -> T | None:
        """The oldest item, or None if there is none."""
        with self._changed:
            return self._items.popleft() if self._items else None

    def resize(self, capacity: int) -> int:
        """Changes the capacity. Returns how many of the oldest items were dropped."""
        with self._changed:
            self._capacity = self._checked(capacity)
            return self._shrink()

    def clear(self) -> int:
        """Drops all items. Returns how many."""
        with self._changed:
            given_up = len(self._items)
            self._items.clear()
            return given_up

    def wait(self, timeout_s: float) -> bool:
        """Sleeps until there is an item, `wake` was called, or the time is up. True if there is an item."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._items) or self._woken, timeout_s)
            self._woken = False
            return bool(self._items)

    def wake(self) -> None:
        """Ends the current or the next `wait` without an item."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def _shrink(self) -> int:
        given_up = 0
        while len(self._items) > self._capacity:
            self._items.popleft()
            given_up += 1
        return given_up
