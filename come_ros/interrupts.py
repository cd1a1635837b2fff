"""Signals that end a command: asked for between steps, or raised where the work stands."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from .errors import Stopped

T = TypeVar("T")

AGAIN_S = 0.5  # of CPU time: far longer than the way out of any work takes


def leave_terminal() -> None:
    """After SIGHUP: what is printed to a terminal goes nowhere, since writing to a closed one raises OSError."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):  # isatty() is false once it is closed
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, descriptor)
                os.close(null)


@contextlib.contextmanager
def postponed() -> Iterator[None]:
    """Signals that end a program wait for the end of this block: for the time in which their handlers change hands."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Interrupts:
    """Turns Ctrl-C, SIGTERM and SIGHUP into a flag, `stopped()`, which is polled between steps. A second signal ends the program at once,
    by KeyboardInterrupt(number); but SIGHUP does not, because a closed terminal sends it twice: from the shell, and from the kernel.

    A context manager. Inside another one, it takes over while it lasts. number: of the first signal, None if there was none. name: of it.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._raising = False
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        return self.number is not None

    @property
    def name(self) -> str:
        return "Ctrl-C" if self.number == signal.SIGINT else signal.Signals(self.number or 0).name

    def _note(self, number: int, frame: Any) -> None:
        if number == signal.SIGHUP:
            leave_terminal()
        if self.number is not None:
            if number == signal.SIGHUP:
                return
            raise KeyboardInterrupt(number)
        self.number = number
        self._raise(number, frame)

    def _raise(self, number: int, frame: Any) -> None:
        """An import or a destructor may drop an exception that it does not know. So this comes again, by a clock that runs only while
        this process works, until `raising` is left."""
        if self._raising:
            signal.setitimer(signal.ITIMER_VIRTUAL, AGAIN_S)
            raise Stopped(self.number or number)

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """For work that cannot ask (it imports, loads, renders, times): meanwhile a signal, also one that came before, raises Stopped."""
        self._raising = True
        try:
            if self.number is not None:
                raise Stopped(self.number)
            yield
        finally:
            self._raising = False
            if self.number is not None and self._before:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Within `raising`, for what must be whole: a signal raises Stopped at its end."""
        raising, self._raising = self._raising, False
        try:
            yield
        finally:
            self._raising = raising
        if self.number is not None:
            self._raise(self.number, None)

    def until(self, items: Iterable[T]) -> Iterator[T]:
        """`items`, whose making cannot ask; a signal ends them."""
        left = iter(items)
        while True:
            try:
                with self.raising():
                    item = next(left)
            except (StopIteration, Stopped):
                return
            yield item

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            handlers = {signal.SIGINT: self._note, signal.SIGTERM: self._note, signal.SIGVTALRM: self._raise}
            if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # the terminal is closed; nohup ignores that
                handlers[signal.SIGHUP] = self._note
            outer = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
            self._before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
            if isinstance(outer, Interrupts):  # a signal that an import has dropped just now
                self.number = self.number or outer.number
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
