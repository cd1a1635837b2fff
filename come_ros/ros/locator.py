"""The thread that locates the camera: it decodes and tracks every image, publishes its pose, and hands the frame on to the worker.

It shares nothing with the model's pass but the odometry's lock, which is held for some milliseconds: a pose does not wait for the model.
Where that is permitted, the thread goes before all others that want its core.
"""

from __future__ import annotations

import threading
from typing import Any, Protocol

from ..threads import go_first
from .ring import FrameRing

WAITING = 2  # messages: an older one than these is not worth a pose any more
IDLE_S = 0.2


class Tracking(Protocol):
    """What the locator asks of the worker."""

    @property
    def stopping(self) -> bool: ...

    @property
    def session(self) -> int: ...

    def goes_first(self, permitted: bool) -> None: ...

    def locate(self, message: Any, arrival_ns: int, session: int) -> None: ...

    def tell_located(self, session: int) -> None: ...


class Locator(threading.Thread):
    """Every message put into `ring` goes to the worker as a frame, or is counted there as dropped."""

    def __init__(self, worker: Tracking) -> None:
        super().__init__(name="come_locator", daemon=True)
        self.ring: FrameRing[tuple[Any, int]] = FrameRing(WAITING)
        self._worker = worker

    def run(self) -> None:
        self._worker.goes_first(go_first())
        while not self._worker.stopping:
            self.step()

    def step(self) -> None:
        """One message, or a wait for one; landmarks that came meanwhile end it."""
        session, waiting = self._worker.session, self.ring.pop()
        if waiting is not None:
            self._worker.locate(*waiting, session)
        elif not self.ring.wait(IDLE_S):
            self._worker.tell_located(session)
