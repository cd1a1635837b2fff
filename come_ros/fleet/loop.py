"""The loop of a fleet: starts units of work, tries again what may succeed elsewhere, and starts nothing new on a full disk."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from .executors import Executor
from .record import DONE, PARTIAL
from .work import AGAIN, FULL, STOPPED, Outcome, Work

log = logging.getLogger("come_ros")

TICK_S = 0.5


@dataclass(frozen=True)
class Rules:
    """retries: further attempts of a unit of work that failed. least_free: bytes of disk space, with less of which nothing is started."""

    retries: int = 1
    least_free: int = 500_000_000


@dataclass(frozen=True)
class Job:
    """A recording. phases: units of work; those of one may run at the same time, the next begins when all of them are done."""

    name: str
    phases: tuple[tuple[Work, ...], ...]


@dataclass(frozen=True)
class Ended:
    """What became of a recording. state: record.DONE, record.PARTIAL, or one of work.py. attempts: of the unit of work that took most."""

    state: str
    reason: str = ""
    attempts: int = 1
    seconds: float = 0.0
    node: str = ""


@dataclass
class Progress:
    """waiting, running: units of work. ended: name of a recording -> what became of it."""

    waiting: int = 0
    running: int = 0
    ended: dict[str, Ended] = field(default_factory=dict)


class _Open:
    """A recording that is worked on."""

    def __init__(self, job: Job) -> None:
        self.job, self.phase, self.left = job, 0, 0
        self.attempts, self.seconds = 1, 0.0

    def next_phase(self) -> tuple[Work, ...]:
        """Its units of work; empty if there is no more."""
        works = self.job.phases[self.phase] if self.phase < len(self.job.phases) else ()
        self.phase, self.left = self.phase + 1, len(works)
        return works


def run_all(
    jobs: Iterable[Job],
    executor: Executor,
    rules: Rules,
    out: Path,
    stopped: Callable[[], bool],
    watch: Callable[[Progress], object] = lambda progress: None,
) -> dict[str, Ended]:
    """Name of each recording -> what became of it. out: folder of the fleet. stopped: polled; what runs is ended then. watch: called on
    every change, and twice a second."""
    open_ = {job.name: _Open(job) for job in jobs}
    progress = Progress()
    waiting = deque(work for one in open_.values() for work in one.next_phase())
    running: set[tuple[str, str]] = set()
    full, ending = "", False

    def end(name: str, ended: Ended) -> None:
        if name not in progress.ended:
            progress.ended[name] = ended

    while waiting or running:
        if stopped() and not ending:
            ending = True
            executor.stop()
        full = full or _full(out, rules)
        if ending or full:
            for work in waiting:
                end(work.name, Ended(STOPPED, "not started") if ending else Ended(FULL, f"not started: {full}"))
            waiting.clear()
        while waiting and executor.room() > 0:
            work = waiting.popleft()
            if work.name in progress.ended:
                continue
            running.add((work.name, work.part))
            executor.submit(dataclasses.replace(work, last=work.attempt > rules.retries))
        progress.waiting, progress.running = len(waiting), len(running)
        watch(progress)
        for work, outcome in executor.wait(TICK_S) if running else ():
            running.discard((work.name, work.part))
            shutil.rmtree(work.stage, ignore_errors=True)  # of a worker that was killed
            one = open_[work.name]
            one.attempts, one.seconds = max(one.attempts, work.attempt), one.seconds + outcome.seconds
            if outcome.state == DONE or (outcome.state == PARTIAL and work.last):
                one.left -= 1
                more = one.next_phase() if not one.left and work.name not in progress.ended else ()
                waiting.extendleft(reversed(more))  # what has begun is finished first
                if not more and not one.left:
                    end(work.name, Ended(outcome.state, outcome.reason, one.attempts, one.seconds, outcome.node))
                continue
            full = full or (outcome.reason if outcome.state == FULL else "")
            if (
                outcome.state in (PARTIAL, *AGAIN)
                and work.attempt <= rules.retries
                and not (ending or work.name in progress.ended)
            ):
                log.warning("%s: %s (%s); it is tried again", work.title, outcome.state, outcome.reason)
                waiting.append(_again(work, outcome))
                continue
            state = STOPPED if ending else outcome.state
            end(work.name, Ended(state, outcome.reason, one.attempts, one.seconds, outcome.node))
        watch(progress)
    return progress.ended


def _again(work: Work, outcome: Outcome) -> Work:
    avoid = (*work.avoid, outcome.node) if outcome.node else work.avoid
    return dataclasses.replace(work, attempt=work.attempt + 1, avoid=avoid)


def _full(out: Path, rules: Rules) -> str:
    """Why nothing may be started; "" if it may."""
    free = shutil.disk_usage(out).free
    if free >= rules.least_free:
        return ""
    return f"{free / 1e6:.0f} MB are free in the output folder, at least {rules.least_free / 1e6:.0f} MB must be (--min-free)"
