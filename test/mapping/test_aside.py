"""A function that runs in another process gives what it gives here; failures, deaths and an end in mid-call are reported."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from come_ros.geometry import rotation_from_vector
from come_ros.mapping.aside import NICE, Aside


@pytest.fixture(scope="module")
def aside() -> Iterator[Aside]:
    process = Aside()
    yield process
    process.close()


def test_results_are_those_of_a_direct_call_to_the_last_bit(aside: Aside) -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 3))
    assert np.array_equal(aside(rotation_from_vector, vectors), rotation_from_vector(vectors))


def test_the_process_has_a_low_priority_and_one_thread(aside: Aside) -> None:
    pid = aside(os.getpid)
    assert pid != os.getpid()
    assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICE)
    assert len(os.listdir(f"/proc/{pid}/task")) == 1
    assert aside(os.getpid) == pid, "one process for all calls"


def test_what_a_library_prints_does_not_disturb_the_answers(aside: Aside) -> None:
    assert aside(os.system, "echo printed") == 0
    assert aside(print, "by Python too") is None
    assert aside(abs, -3) == 3


def test_a_failure_is_raised_here_and_the_next_call_works(aside: Aside) -> None:
    with pytest.raises(ZeroDivisionError):
        aside(divmod, 1, 0)
    assert aside(divmod, 7, 2) == (3, 1)


def test_what_cannot_be_sent_is_reported_and_the_next_call_works(aside: Aside) -> None:
    pid = aside(os.getpid)
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        aside(len, [bytes(1 << 20), lambda: None])
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        aside(threading.Lock)  # an answer that cannot be sent back
    assert aside(os.getpid) == pid


def test_a_process_that_is_killed_is_reported_and_replaced(aside: Aside) -> None:
    pid = aside(os.getpid)
    with pytest.raises(RuntimeError, match="ended with code -9"):
        aside(os.kill, pid, signal.SIGKILL)
    assert aside(os.getpid) != pid


def test_closing_ends_a_call_and_the_process() -> None:
    aside = Aside()
    pid, raised = aside(os.getpid), []

    def call() -> None:
        try:
            aside(time.sleep, 60)
        except RuntimeError as error:
            raised.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    time.sleep(0.1)
    aside.close()
    thread.join(10)
    assert raised and "sleep was not finished" in raised[0]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(RuntimeError, match="closed"):
        aside(abs, 1)


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    script = (
        "import os, signal\nfrom come_ros.mapping.aside import Aside\n"
        "print(Aside()(os.getpid), flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    pid = int(done.stdout)
    ended = time.monotonic() + 20
    while os.path.exists(f"/proc/{pid}") and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < ended, "the process outlived the one that started it"
        time.sleep(0.02)
