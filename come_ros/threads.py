"""CPU threads of the model on a shared machine: how long they spin while waiting, and how many a run starts with.

The threads of one pass synchronise at every operation. If one of them has to share its core, the others wait, and by spinning they
take the cores that the late thread needs. So they spin only briefly (`spin_briefly`), and on a busy machine fewer threads are
faster: tools choose a number when they start (`threads_at_start`), the live node adapts it continuously (thread_governor.py).
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import sys
import threading
import time
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import NamedTuple

SPINS = "1000"  # a few microseconds; libgomp's default is some milliseconds
BUSY_CORES = 0.3  # share of a core used by other processes from which on it counts as taken


def spin_briefly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets GOMP_SPINCOUNT for this process and its children, unless the user configured how OpenMP waits. It is read when torch is
    imported.

    It costs a few percent on an idle machine and is several times faster on a busy one: test/benchmark/speed/busy_robot.py.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & environment.keys():
        environment["GOMP_SPINCOUNT"] = SPINS


def multiply_alone(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets OPENBLAS_NUM_THREADS to 1 for this process and its children, unless the user configured threads. It is read when numpy is
    imported; the model's threads are those of torch and do not depend on it.

    The matrices of bundle and tracking are so small that waking a second thread takes longer than their product.
    """
    if not {"OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"} & environment.keys():
        environment["OPENBLAS_NUM_THREADS"] = "1"


class Cores:
    """Load of the cores that this process may use, from /proc/stat; without that file they count as neither idle nor taken."""

    def __init__(self, stat: Path = Path("/proc/stat"), clock: Callable[[], float] = time.monotonic) -> None:
        self._stat, self._clock = stat, clock
        self._before = self._begun = self._read()
        self._spare = 0.0

    def spare(self, over_s: float = 0.5) -> float:
        """Idle cores since the last call that was at least `over_s` ago; 0 before there was one."""
        now = self._read()
        passed = now.when - self._before.when
        if passed >= over_s:
            self._spare = max(0.0, (now.idle - self._before.idle) / passed)
            self._before = now
        return self._spare

    def taken(self) -> float:
        """Cores that other processes have used on average since this object was made; 0 if that is less than 0.2 s ago."""
        now = self._read()
        passed = now.when - self._begun.when
        if passed < 0.2:
            return 0.0
        return max(0.0, (now.busy - self._begun.busy - (now.ours - self._begun.ours)) / passed)

    class _Reading(NamedTuple):
        when: float  # s
        idle: float  # core seconds
        busy: float
        ours: float

    def _read(self) -> Cores._Reading:
        idle = busy = 0.0
        with contextlib.suppress(OSError, ValueError):
            cores = {f"cpu{core}" for core in os.sched_getaffinity(0)} if hasattr(os, "sched_getaffinity") else set()
            ticks = os.sysconf("SC_CLK_TCK")
            for line in self._stat.read_text().splitlines():
                name, *fields = line.split()
                if name in cores:
                    user, nice, system, waiting, io, irq, soft, steal = (int(f) / ticks for f in fields[:8])
                    idle += waiting + io
                    busy += user + nice + system + irq + soft + steal
        return Cores._Reading(self._clock(), idle, busy, time.process_time())


_begun: Cores | None = None


def begin() -> None:
    """Call first in a program, before numpy and torch are imported: sets how threads wait and multiply, and starts to measure the load
    of the machine."""
    global _begun
    spin_briefly()
    multiply_alone()
    _begun = Cores()


def taken_since_start() -> float:
    """Cores that other processes have used since `begin`; 0 if it was not called."""
    return 0.0 if _begun is None else _begun.taken()


@functools.cache
def usable_threads(group: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """torch's default (the cores, or OMP_NUM_THREADS), limited to a container's share of the machine.

    Evaluated once per process, before anything else sets the number.
    """
    import torch

    most = torch.get_num_threads()
    with contextlib.suppress(OSError, ValueError):
        quota, period = group.read_text().split()
        most = min(most, math.ceil(int(quota) / int(period)))  # "max" is no number, and no limit
    return max(1, most)


def threads_at_start(most: int, taken: float) -> int:
    """Threads for a run with a fixed number: the cores not used by others, but at least half of all, since the others share too."""
    others = math.ceil(taken - BUSY_CORES)
    return most if others <= 0 else max(math.ceil(most / 2), most - others)


FIRST = -10  # niceness of a thread that others wait for, and that needs a core for some milliseconds only


def go_first() -> bool:
    """From now on the calling thread, and threads that it starts, run before others that want the same cores: those of the model, and of
    other processes. Whether that is permitted: to root, with CAP_SYS_NICE, or within `ulimit -e`. Linux only; the rest of the process
    stays as it is.

    Lowering the model's threads instead needs no permission, but next to a busy process they then get hardly any time.
    """
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), FIRST)  # Linux: of one thread
    except (OSError, AttributeError):
        return False
    return sys.platform == "linux"


def use(threads: int) -> None:
    """Sets the number of threads for passes of the calling thread."""
    import torch

    torch.set_num_threads(threads)
