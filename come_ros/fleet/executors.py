"""What runs units of work: the interface, and one that runs them here, in threads of this process."""

from __future__ import annotations

import queue
import threading
from typing import Protocol

from .work import Outcome, Work, run


class Executor(Protocol):
    """Runs units of work somewhere, as many at a time as it has room for."""

    def room(self) -> int:
        """How many more it is worth to submit now."""

    def submit(self, work: Work) -> None:
        """Starts it as soon as it can."""

    def wait(self, timeout_s: float) -> list[tuple[Work, Outcome]]:
        """Those that have ended since the last call, each once; waits for one as long as that."""

    def stop(self) -> None:
        """Ends all that run; `wait` returns them as STOPPED or LOST."""


class Here:
    """`workers` threads of this process, each with one unit of work at a time. A context manager, which ends all of them."""

    def __init__(self, workers: int = 1) -> None:
        self._workers = workers
        self._pending: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[tuple[Work, Outcome]] = queue.SimpleQueue()
        self._inside = 0
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    def room(self) -> int:
        return self._workers - self._inside

    def submit(self, work: Work) -> None:
        self._inside += 1
        self._pending.put(work)

    def wait(self, timeout_s: float) -> list[tuple[Work, Outcome]]:
        try:
            ended = [self._ended.get(timeout=timeout_s)]
            while not self._ended.empty():
                ended.append(self._ended.get())
        except queue.Empty:
            return []
        self._inside -= len(ended)
        return ended

    def stop(self) -> None:
        self._stopped.set()

    def _serve(self) -> None:
        while (work := self._pending.get()) is not None:
            self._ended.put((work, run(work, self._stopped.is_set, threading.current_thread().name)))

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        for _thread in self._threads:
            self._pending.put(None)
        for thread in self._threads:
            thread.join()
