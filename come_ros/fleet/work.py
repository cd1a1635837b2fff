"""The unit of work of a fleet: one command in a process of its own. Its results appear whole, with their record, or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .. import __version__
from ..errors import ComeRosError
from ..files import shown
from .record import DONE, PARTIAL, RECORD, Inputs, Record, read_record, with_source, write_record
from .sources import Source

FAILED, HUNG, KILLED, LOST, FULL, STOPPED = "failed", "hung", "killed", "lost", "disk full", "stopped"
"""states of an outcome besides record.DONE and record.PARTIAL: ended with an error; ran into the time limit; was ended by a signal; its
worker or node is gone; had no space; was ended on request"""
AGAIN = (FAILED, HUNG, KILLED, LOST)
"""states after which another attempt may help"""
COME_ROS = "come_ros.tools.cli"
METRICS = "metrics.json"  # of `come_ros bag`: it writes this last
POLL_S = 0.05
LINE = 400  # longest reason, characters
THREADS = "OMP_NUM_THREADS"
"""Ray sets it for its workers. Results depend on the number of threads, so the command gets what the fleet was started with."""


@dataclass(frozen=True)
class Work:
    """name: of the recording's results. part: what of it, "" for all. module, words: the command, as in `python -m`. source, inputs: of the
    recording. out: folder of the fleet. final: whether the command writes results of `come_ros bag` with -o, to become out/name. folder: in
    which to run it. environment: variables that it needs, None to remove one. attempt: from 1 on; last: whether there is no other.
    avoid: nodes on which it failed."""

    name: str
    module: str
    words: tuple[str, ...]
    source: Source
    inputs: Inputs
    out: str
    part: str = ""
    final: bool = True
    folder: str = ""
    timeout_s: float = 0.0
    environment: Mapping[str, str | None] = field(default_factory=dict)
    attempt: int = 1
    avoid: tuple[str, ...] = ()
    last: bool = True

    @property
    def title(self) -> str:
        return f"{self.name}, {self.part}" if self.part else self.name

    @property
    def log(self) -> Path:
        """Where the command's output goes, one attempt after the other."""
        return Path(self.out, "logs", f"{self.name}.log")

    @property
    def stage(self) -> Path:
        """Where this attempt writes."""
        return hidden(self.out) / f"{self.name}.{(self.part or 'whole').replace(' ', '_')}.{self.attempt}"


@dataclass(frozen=True)
class Outcome:
    """reason: in one line, "" if done. seconds: that the attempt took. node: on which it ran."""

    state: str
    reason: str = ""
    seconds: float = 0.0
    node: str = ""


def hidden(out: str | Path) -> Path:
    """The folder of what is not finished, in that of the fleet."""
    return Path(out, ".fleet")


def never() -> bool:
    return False


def run(work: Work, stop: Callable[[], bool] = never, node: str = "") -> Outcome:
    """Runs `work` and returns what became of it; nothing is raised. stop: polled; the command is killed then."""
    begun = time.monotonic()
    try:
        outcome = _run(work, stop)
    except (ComeRosError, OSError) as error:
        outcome = Outcome(FULL if _no_space(str(error)) else FAILED, str(error))
    finally:
        shutil.rmtree(work.stage, ignore_errors=True)
    return dataclasses.replace(outcome, seconds=time.monotonic() - begun, node=node)


def _run(work: Work, stop: Callable[[], bool]) -> Outcome:
    if work.inputs.come_ros != __version__:
        return Outcome(
            FAILED,
            f"this node has come_ros {__version__}, but {work.inputs.come_ros} is asked for: install the same on all",
        )
    if work.folder and not os.path.isdir(work.folder):
        return Outcome(
            FAILED, f"this node has no folder {shown(work.folder)}: start the fleet in a folder that all nodes share"
        )
    begun = time.monotonic()
    place = Path(work.folder, work.source.place)  # a worker of Ray may be in another folder
    inputs = with_source(work.inputs, place, whole=work.final)
    shutil.rmtree(work.stage, ignore_errors=True)
    work.stage.mkdir(parents=True)
    work.log.parent.mkdir(exist_ok=True)
    words = (*work.words, "-o", str(work.stage / work.name)) if work.final else work.words
    with open(work.log, "ab") as log:
        head = f"\n--- {_now()}, {work.title}, attempt {work.attempt}, {os.uname().nodename}\n{shlex.join(words)}\n"
        log.write(head.encode(errors="replace"))
        log.flush()
        start = log.tell()
        code, state = _process(work, words, log.fileno(), stop)
    said = _last_line(work.log, start)
    if state:
        return Outcome(state, f"ran longer than --timeout {work.timeout_s:g}" if state == HUNG else "ended on request")
    if code < 0 or code > 128:
        number = -code if code < 0 else code - 128
        hint = ", often because memory was short" if number == signal.SIGKILL else ""
        return Outcome(
            KILLED, f"ended by {_name(number)}{hint}; its last line: {said}" if said else f"{_name(number)}{hint}"
        )
    results = work.stage / work.name
    if code and _no_space(said):
        return Outcome(FULL, said)
    whole = work.final and (results / METRICS).is_file()
    if code and not (whole and code == 1):
        return Outcome(FAILED, said or f"exit code {code}")
    state, reason = (DONE, "") if code == 0 else (PARTIAL, said)
    if state == PARTIAL and not work.last:
        return Outcome(PARTIAL, reason)
    if work.final:
        if with_source(work.inputs, place, whole=False).state != inputs.state:
            return Outcome(FAILED, f"{shown(work.source.path)} was written to while it was read")
        made = (*sorted(path.name for path in results.iterdir()), RECORD)
        took = time.monotonic() - begun
        node = os.uname().nodename
        write_record(results, Record(inputs, state, reason, took, work.attempt, node, _now(), made))
        publish(results, Path(work.out, work.name))
    return Outcome(state, reason)


def _process(work: Work, words: tuple[str, ...], log: int, stop: Callable[[], bool]) -> tuple[int, str]:
    """Exit code of the command, negative for a signal; and HUNG or STOPPED where it was killed for that."""
    environment = dict(os.environ)
    for name, value in work.environment.items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    command = [sys.executable, "-m", "come_ros.fleet.child", str(os.getpid()), work.module, *words]
    child = subprocess.Popen(
        command, cwd=work.folder or None, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + work.timeout_s if work.timeout_s else float("inf")
    state = ""
    try:
        while child.poll() is None:
            state = HUNG if time.monotonic() > deadline else STOPPED if stop() else ""
            if state:
                break
            time.sleep(POLL_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # what it may have started, too
        child.wait()
    return child.returncode, state


def publish(results: Path, place: Path) -> None:
    """Makes the folder `results`, which has a record, the folder `place`. Files of others in it stay. Raises OSError."""
    old = results.with_name(f"{results.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        before = read_record(place)
        ours = set() if before is None else set(before.made)
        for path in place.iterdir():
            if path.name not in ours and not (results / path.name).exists():
                os.rename(path, results / path.name)
        os.rename(place, old)
    os.rename(results, place)
    shutil.rmtree(old, ignore_errors=True)


def _no_space(text: str) -> bool:
    """Whether an error says so."""
    return any(os.strerror(number) in text for number in (errno.ENOSPC, errno.EDQUOT))


def _last_line(log: Path, start: int) -> str:
    """Of what was written since `start`; progress bars are left out."""
    with open(log, "rb") as stream:
        stream.seek(max(start, os.path.getsize(log) - (1 << 14)))
        lines = stream.read().decode("utf-8", "replace").replace("\r", "\n").splitlines()
    told = [line.strip() for line in lines if line.strip()]
    mine = [line for line in told if line.startswith("come_ros ")]  # its error, see tools/ending.py
    text = (mine or told or [""])[-1]
    return text if len(text) <= LINE else f"{text[:LINE]}..."


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
