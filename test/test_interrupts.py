"""A signal ends what runs, once, whole and for good."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from come_ros import interrupts
from come_ros.errors import Stopped
from come_ros.interrupts import Interrupts


def send(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


def work_until(done: Callable[[], Any], cpu_s: float = 30.0) -> None:
    """Keeps this process busy."""
    end = time.process_time() + cpu_s
    while not done():
        assert time.process_time() < end, "it never came"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_the_handlers_of_before_come_back(number: int) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGVTALRM)]
    with Interrupts() as stopped:
        assert not stopped()
        send(number)
        work_until(stopped)
        assert stopped.number == number
        with pytest.raises(KeyboardInterrupt):  # a second one
            send(number)
            work_until(lambda: False)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGVTALRM)] == before


def test_a_second_hang_up_does_not_end_the_way_out_and_other_signals_say_which_they_are() -> None:
    with Interrupts() as stopped:
        send(signal.SIGHUP)
        work_until(stopped)
        try:
            for _ in range(3):  # from the shell, and from the kernel
                send(signal.SIGHUP)
        except KeyboardInterrupt:  # which would end pytest
            pytest.fail("another hang-up ended the way out")
        assert stopped.number == signal.SIGHUP
        for number in (signal.SIGTERM, signal.SIGINT):
            with pytest.raises(KeyboardInterrupt) as caught:
                send(number)
                work_until(lambda: False)
            assert caught.value.args == (number,)


@pytest.mark.slow
def test_what_an_import_drops_comes_again_until_the_work_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "AGAIN_S", 0.05)
    dropped = 0
    with Interrupts() as stopped, pytest.raises(Stopped) as caught, stopped.raising():
        for _ in range(3):
            try:
                if not dropped:
                    send()
                work_until(lambda: False)
            except Stopped:
                dropped += 1
        work_until(lambda: False)
    assert dropped == 3 and caught.value.number == signal.SIGINT
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_what_the_outer_one_has_dropped_ends_the_inner_one() -> None:
    with Interrupts() as outer:
        try:
            with outer.raising():
                send()
                work_until(lambda: False)
        except Stopped:
            pass
        with Interrupts() as inner, pytest.raises(Stopped), inner.raising():
            raise AssertionError("it must not begin")


def test_what_is_held_is_whole() -> None:
    done = []
    with Interrupts() as stopped, pytest.raises(Stopped), stopped.raising():
        with stopped.held():
            send()
            work_until(stopped)
            done.append("held")
        done.append("after")
    assert done == ["held"]


def test_items_end_with_a_signal() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        send()
        work_until(lambda: False)

    with Interrupts() as stopped:
        assert list(stopped.until(items())) == [1, 2] and stopped()


def test_in_another_thread_it_polls_only() -> None:
    found = []

    def run() -> None:
        with Interrupts() as stopped, stopped.raising():
            found.append(stopped())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [False]


def test_who_handles_failures_does_not_handle_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it happened to `doctor`, which took the signal for an import that had failed, and went on."""
    from come_ros.tools.doctor import checks

    stopped = Interrupts()

    def interrupted(name: str) -> None:
        if not stopped():
            send()
            work_until(lambda: False, 2.0)

    monkeypatch.setattr(checks.importlib, "import_module", interrupted)
    with stopped, pytest.raises(Stopped), stopped.raising():
        list(checks.libraries())
