"""Units of work over Ray (https://docs.ray.io, Apache-2.0): its own small cluster in this machine's memory, or one that is there.

Ray places the tasks, moves them to other nodes, and notices workers and nodes that die. Which task is tried again is decided in loop.py,
because a hang and a damaged recording are no matter of Ray's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import logging
import math
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ComeRosError
from . import work
from .work import LOST, STOPPED, Outcome, Work

log = logging.getLogger("come_ros")

STORE_BYTES = 80 << 20  # of Ray's object store, which needs 75 MiB at least: tasks exchange a few kilobytes
PATIENCE_S = 10.0  # for processes that are killed
SESSIONS = "come_ros_fleet_"  # folders of local sessions, with the process id
INSTALL = "pip install 'come_ros[fleet]'"


@dataclass(frozen=True)
class Needs:
    """What one task takes of a node: cores, GPUs (also parts of one), bytes of memory."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory: int = 0

    def fit(self, node: dict[str, float]) -> int:
        """How many tasks a node with those resources can run at a time."""
        wanted = (("CPU", self.cpus), ("GPU", self.gpus), ("memory", float(self.memory)))
        shares = [node.get(name, 0.0) / need for name, need in wanted if need > 0]
        return int(min(shares, default=0.0) + 1e-9)

    def text(self) -> str:
        parts = [f"{self.cpus:g} cores"]
        parts += [f"{self.gpus:g} GPUs"] if self.gpus else []
        parts += [f"{self.memory / 2**20:.0f} MiB of memory"] if self.memory else []
        return ", ".join(parts)


class FleetError(ComeRosError):
    """Ray is missing, cannot be reached, or has no node for a task."""


def check_ray() -> None:
    """Raises FleetError if Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise FleetError(f"needs Ray, which is not installed: {INSTALL}")


def import_ray() -> Any:
    """The package, with its reports to its makers switched off. Raises FleetError."""
    check_ray()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    return ray


@contextlib.contextmanager
def session(address: str, workers: int, needs: Needs, spare_gpu: bool = False) -> Iterator[RayExecutor]:
    """Connects to the cluster at `address`; "local" starts one on this machine, for `workers` tasks at a time, which ends with this block,
    or with this process. spare_gpu: a task takes a GPU where there is any. Raises FleetError."""
    folder = Path()
    with contextlib.ExitStack() as stack:
        if address == "local":
            if "ray" in sys.modules and not _key.cache_info().currsize:
                raise FleetError(
                    "Ray was imported before it could be kept on this machine: start the fleet in a process of its own"
                )
            stack.enter_context(_environment(_private()))
            folder = _session_folder()
            stack.callback(_end, folder)
        ray = import_ray()
        stack.callback(_shut_down, ray)
        options: dict[str, Any] = {"address": address, "log_to_driver": False, "configure_logging": False}
        if address == "local":
            options |= {
                "num_cpus": max(1, math.ceil(workers * needs.cpus)), "include_dashboard": False, "object_store_memory": STORE_BYTES,
                "_temp_dir": str(folder),
            }  # fmt: skip
        try:
            with _signals_kept():
                ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError, OSError, ImportError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise FleetError(
                f"--address {address}: Ray cannot be reached ({first}): start it with `ray start --head`, or leave --address out"
            ) from error
        if spare_gpu and ray.cluster_resources().get("GPU", 0.0) > 0:
            needs = dataclasses.replace(needs, gpus=1.0)
        yield RayExecutor(ray, needs, workers if address == "local" else 0)


@functools.cache
def _key() -> str:
    """One for this process: Ray reads it once, when it is imported."""
    return secrets.token_hex(32)


def _private() -> dict[str, str]:
    """Of Ray on this machine only: it listens on the loopback interface, with a key of its own, and as nice as this process."""
    return {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # what keeps Ray on Windows and macOS from listening elsewhere
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": _key(),
        "RAY_worker_niceness": "0",
    }


@contextlib.contextmanager
def _environment(wanted: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _session_folder() -> Path:
    """A new folder for Ray's sockets and logs, whose path must be short. Those of drivers that were killed are removed."""
    for left in Path(tempfile.gettempdir()).glob(f"{SESSIONS}*"):
        pid = left.name.removeprefix(SESSIONS).partition("_")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            _end(left)
    return Path(tempfile.mkdtemp(prefix=f"{SESSIONS}{os.getpid()}_"))


def _end(folder: Path) -> None:
    """Of the local session with that folder: processes, also where Ray failed to start and does not know them, and files."""
    mark, deadline = os.fsencode(folder), time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if mark in _read(path)]
        if not left:
            break
        for path in left:
            with contextlib.suppress(OSError):
                os.kill(int(path.parent.name), signal.SIGKILL)
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _shut_down(ray: Any) -> None:
    with contextlib.suppress(Exception):  # it is gone already
        ray.shutdown()


class RayExecutor:
    """Runs units of work as tasks of a Ray that is connected."""

    def __init__(self, ray: Any, needs: Needs, most: int = 0) -> None:
        """most: tasks at a time, 0: as many as fit. Raises FleetError if no node can run a task."""
        self._ray, self._needs, self._most = ray, needs, most
        self._tasks: dict[Any, Work] = {}
        self._remote = ray.remote(max_retries=0, num_cpus=needs.cpus, num_gpus=needs.gpus, memory=needs.memory or None)(
            _task
        )
        self._stopped = self._without_room = False
        nodes = self.nodes()
        if not any(map(needs.fit, nodes.values())):
            largest = "; ".join(sorted({_resources(about) for about in nodes.values()})) or "none is alive"
            raise FleetError(
                f"no node can run a task that takes {needs.text()} (nodes: {largest}): lower --cpus-per-task, --gpus-per-task or "
                f"--memory-per-task, or add a node"
            )

    def nodes(self) -> dict[str, dict[str, float]]:
        """Id of each living node -> its resources."""
        return {node["NodeID"]: node["Resources"] for node in self._ray.nodes() if node["Alive"]}

    def room(self) -> int:
        if self._stopped:
            return 0
        fit = sum(self._needs.fit(about) for about in self.nodes().values())
        if not fit and not self._without_room:
            log.warning("no node is left that can run a task of %s: waiting for one", self._needs.text())
        self._without_room = not fit
        # a few more wait within Ray, so that a cluster that grows with its queue does so
        return (self._most or fit + 1) - len(self._tasks)

    def submit(self, work: Work) -> None:
        strategy: Any = "SPREAD"
        others = {node for node, about in self.nodes().items() if self._needs.fit(about)} - set(work.avoid)
        if work.avoid and others:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            strategy = NodeAffinitySchedulingStrategy(min(others), soft=True)
        self._tasks[self._remote.options(scheduling_strategy=strategy, name=work.title).remote(work)] = work

    def wait(self, timeout_s: float) -> list[tuple[Work, Outcome]]:
        try:
            ready, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=timeout_s)
        except self._ray.exceptions.RayError as error:
            raise FleetError(
                f"the connection to Ray is lost ({type(error).__name__}): start the fleet again for the rest"
            ) from error
        return [(self._tasks.pop(task), self._outcome(task)) for task in ready]

    def stop(self) -> None:
        self._stopped = True
        for task in self._tasks:
            self._ray.cancel(task, force=True)  # its worker dies, and with it what it runs: see child.py

    def _outcome(self, task: Any) -> Outcome:
        errors = self._ray.exceptions
        try:
            found: Outcome = self._ray.get(task)
            return found
        except errors.TaskCancelledError:
            return Outcome(STOPPED, "ended on request")
        except errors.RayTaskError as error:
            return Outcome(work.FAILED, f"{type(error.cause).__name__}: {error.cause}")
        except errors.RayError as error:  # the worker or its node died, or Ray ended it for its memory
            if self._stopped:
                return Outcome(STOPPED, "ended on request")
            first = (str(error).strip().splitlines() or [""])[0]
            return Outcome(LOST, f"{type(error).__name__}: {first}")


def _task(unit: Work) -> Outcome:
    """On the node that runs it."""
    import ray

    return work.run(unit, node=ray.get_runtime_context().get_node_id())


def _resources(about: dict[str, float]) -> str:
    memory = about.get("memory", 0.0) / 2**20
    return f"{about.get('CPU', 0):g} cores, {about.get('GPU', 0):g} GPUs, {memory:.0f} MiB"
