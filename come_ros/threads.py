"""CPU threads of the model on a machine that others use too: how long they wait for each other, and how many a run starts with.

The threads of one pass meet at every operation. If one of them has to share its core, the others wait; and while they wait by spinning
they take the cores that the late one needs. So they spin only briefly (`spin_briefly`), and where the machine is busy fewer of them are
faster: tools choose a number when they start (`threads_at_start`), the live node goes on choosing (thread_governor.py).
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import time
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import NamedTuple

SPINS = "1000"  # some microseconds; libgomp's default is some milliseconds
BUSY_CORES = 0.3  # so much of a core used by others counts as one that is taken


def spin_briefly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets GOMP_SPINCOUNT for this process and its children, unless the user chose how OpenMP waits. It is read when torch is imported.

    Idle machines lose a few percent, busy ones gain a factor: test/benchmark/speed/busy_robot.py.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & environment.keys():
        environment["GOMP_SPINCOUNT"] = SPINS


class Cores:
    """How busy the cores that this process may use are, from /proc/stat; without it they count as neither idle nor taken."""

    def __init__(self, stat: Path = Path("/proc/stat"), clock: Callable[[], float] = time.monotonic) -> None:
        self._stat, self._clock = stat, clock
        self._before = self._begun = self._read()
        self._spare = 0.0

    def spare(self, over_s: float = 0.5) -> float:
        """Idle cores since the last call that was at least `over_s` ago; 0 before there is one."""
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
    """A program's first step, before torch is imported: sets how threads wait, and begins to watch the load of the machine."""
    global _begun
    spin_briefly()
    _begun = Cores()


def taken_since_start() -> float:
    """Cores that other processes have used since `begin`; 0 if it was not called."""
    return 0.0 if _begun is None else _begun.taken()


@functools.cache
def usable_threads(group: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """What torch would take by itself (the cores, or OMP_NUM_THREADS), and no more than a container's share of the machine.

    Asked once in a process, before anything else sets the number.
    """
    import torch

    most = torch.get_num_threads()
    with contextlib.suppress(OSError, ValueError):
        quota, period = group.read_text().split()
        most = min(most, math.ceil(int(quota) / int(period)))  # "max" is no number, and no limit
    return max(1, most)


def threads_at_start(most: int, taken: float) -> int:
    """Threads for a run that keeps their number: the cores that others leave, but at least half of them, since those share too."""
    others = math.ceil(taken - BUSY_CORES)
    return most if others <= 0 else max(math.ceil(most / 2), most - others)


def use(threads: int) -> None:
    """The passes that the calling thread runs from now on use so many threads."""
    import torch

    torch.set_num_threads(threads)
