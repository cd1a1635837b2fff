"""What the processes of one test session leave on this machine: living processes, and shared memory of DDS.

Other programs use the machine at the same time: a second checkout's tests, the other workers of pytest-xdist, a robot. So every
process of a session carries the session's mark in its environment, and shared memory counts only if such a process had it mapped.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from come_ros.ros.environment import SHARED_MEMORY, shared_memory

PERIOD_S = 0.5  # between two looks at who has which memory: a process that lives shorter may be missed, never accused


class Leftovers:
    """Watches the processes whose environment holds `variable`=`mark`, from `start()` to `stop()`.

    The process that calls `start()` counts among them, whatever its environment says.
    """

    def __init__(self, variable: str, mark: str) -> None:
        self._mark = f"{variable}={mark}".encode()
        self._mapped: set[str] = set()  # names of all shared memory that one of our processes had mapped
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="leftovers", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def processes(self) -> dict[int, str]:
        """Living processes of the session other than this one: process id to command line."""
        found = {}
        for pid in self._session():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                command = (
                    Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                )
                # multiprocessing's own server ends with this process, by design
                if pid != os.getpid() and command and "multiprocessing.resource_tracker" not in command:
                    found[pid] = command[:200]
        return found

    def memory(self) -> set[str]:
        """Names of shared memory that processes of the session had mapped, that still exists, and that no living process uses."""
        self.look()
        left = self._mapped & _segments().keys()
        return left - _mapped_by(_all_processes()) if left else left

    def look(self) -> None:
        """Notes what the session's processes have mapped now."""
        self._mapped |= _mapped_by(self._session())

    def remove(self) -> None:
        """Ends the processes and removes the memory, so that neither disturbs what runs next on this machine."""
        for pid in self.processes():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        for name in self.memory():
            for file in (name, f"{name}_el"):
                (SHARED_MEMORY / file).unlink(missing_ok=True)

    def _watch(self) -> None:
        while not self._done.wait(PERIOD_S):
            self.look()

    def _session(self) -> Iterator[int]:
        yield os.getpid()
        for pid in _all_processes():
            with contextlib.suppress(OSError):  # it has ended meanwhile, or is another user's
                if pid != os.getpid() and self._mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    yield pid


def _all_processes() -> Iterator[int]:
    return (int(entry) for entry in os.listdir("/proc") if entry.isdecimal())


def _segments() -> dict[str, bytes]:
    """Name -> path of the segments of DDS that hold data. Each belongs to one participant, which removes it when it ends in order.

    Left out are locks (_el), which come and go with them, and ports, whose names (port7000, port7001) are shared by all domains of the
    machine: another participant may take over the name, and looks into ours when it starts.
    """
    paths = (path for path in shared_memory() if not path.name.endswith("_el") and "_port" not in path.name)
    return {path.name: os.fsencode(path) for path in paths}


def _mapped_by(processes: Iterator[int]) -> set[str]:
    """Names of the segments of DDS that these processes have mapped."""
    known = _segments()
    found = set()
    for pid in processes if known else ():
        with contextlib.suppress(OSError):
            maps = Path(f"/proc/{pid}/maps").read_bytes()
            if os.fsencode(SHARED_MEMORY) in maps:
                found |= {name for name, path in known.items() if path + b"\n" in maps}
    return found
