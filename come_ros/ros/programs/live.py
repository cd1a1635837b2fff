"""Plays a bag to the live node: node, camera and recorder are separate processes in a separate DDS domain."""

from __future__ import annotations

import ctypes
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import ComeRosError
from ..environment import isolated_dds_environment, shared_memory  # imports no ROS

PACKAGE_FOLDER = Path(__file__).resolve().parents[3]
ACTIVE_TIMEOUT_S = 180.0  # importing torch and reading the weights, on a slow disk
MATCH_TIMEOUT_S = 30.0
SETTLE_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 6.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)  # loaded here, since nothing may be loaded between fork and exec

Progress = Callable[[str, int], None]
"""(current activity, images sent so far)"""


class LiveError(ComeRosError):
    """A process of a live run ended or timed out."""


@dataclass(frozen=True)
class LiveRun:
    """Result of a live run. sent: (stamp, time of publication) in ns of every image. recording: the MCAP file. settled:
    whether no frame was pending any more at the end. start_s: from the start of the processes until the node was
    active. stop_s: from SIGINT to the end of the node, exit_code its own. late_ms: greatest delay of the camera. seconds: total
    duration. node_cpu_s: CPU time of the node's process from the first image until no frame was pending.
    """

    sent: list[tuple[int, int]]
    recording: Path
    tf_from_odometry: bool
    settled: bool
    start_s: float
    stop_s: float
    exit_code: int
    late_ms: float
    seconds: float
    node_cpu_s: float = float("nan")


@dataclass(frozen=True)
class PlayedCamera:
    """The camera that is played. arguments: of come_ros.ros.programs.player. inputs: topic -> type of its topics. names: of several
    cameras, whose topics are /NAME/..."""

    arguments: Sequence[str]
    topic: str
    camera_info_topic: str
    inputs: dict[str, str]
    compressed: bool = False
    names: tuple[str, ...] = ()

    @staticmethod
    def of_bag(path: str | Path, topic: str | None = None, rate: float = 1.0) -> PlayedCamera:
        """Raises DatasetError."""
        from ...datasets.rosbag import Bag

        with Bag(path, topic) as bag:
            inputs = {t: bag.topics[t] for t in (bag.topic, bag.camera_info_topic) if t}
            arguments = (str(path), "--topic", bag.topic, "--rate", str(rate))
            return PlayedCamera(arguments, bag.topic, bag.camera_info_topic, inputs, bag.compressed)

    @staticmethod
    def of_pattern(width: int, height: int, count: int, hz: float, names: Sequence[str] = ()) -> PlayedCamera:
        """Moving noise, of several cameras if names are given, for counting deliveries."""
        size = ("--pattern", f"{width}x{height}", "--count", str(count), "--hz", str(hz))
        arguments = (*size, "--cameras", *names) if names else size
        topics, kinds = ("image_raw", "camera_info"), ("sensor_msgs/msg/Image", "sensor_msgs/msg/CameraInfo")
        inputs = {f"/{n}/{t}": kind for n in names or ("camera",) for t, kind in zip(topics, kinds, strict=True)}
        image, info = list(inputs)[:2]
        return PlayedCamera(arguments, image, info, inputs, names=tuple(names))

    def remaps(self) -> list[str]:
        """ROS arguments that connect the node to the camera."""
        if self.names:
            out = ["-p", f"cameras:=[{', '.join(self.names)}]"]
            for name in self.names:
                out += ["-r", f"{name}/image:=/{name}/image_raw"]
            return out
        out = ["-r", f"image{'/compressed' if self.compressed else ''}:={self.topic}"]
        if self.camera_info_topic:
            out += ["-r", f"camera_info:={self.camera_info_topic}"]
        return [*out, "-p", "image_transport:=compressed"] if self.compressed else out


def run_live(
    camera: PlayedCamera,
    out: Path,
    node_arguments: Sequence[str] = (),
    record_inputs: bool = True,
    progress: Progress = lambda text, sent: None,
) -> LiveRun:
    """Plays `camera` to a node started with `node_arguments` (ROS arguments), and records what it publishes into
    `out`/output.mcap. Logs go to `out` too (node.log, recorder.log, player.log, ros_log/).

    No process is left running, even after Ctrl-C. Raises LiveError.
    """
    begun = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    environment = live_environment(out)
    recording = out / "output.mcap"
    recorded = camera.inputs if record_inputs else {}
    with Processes(environment, out) as processes:
        inputs = [word for topic, kind in recorded.items() for word in ("--input", topic, kind)]
        progress("starting the node", 0)
        names = ("--cameras", *camera.names) if camera.names else ()
        recorder = processes.start("recorder", "come_ros.ros.programs.recorder", str(recording), *inputs, *names)
        ready = recorder.wait_for("ready", MATCH_TIMEOUT_S, processes)
        node = processes.start("node", "come_ros.ros.main", "--ros-args", *camera.remaps(), *node_arguments)
        _wait_until_active(node, recorder, processes)
        start_s = time.monotonic() - begun

        listeners = "2" if record_inputs else "1"
        player = processes.start("player", "come_ros.ros.programs.player", *camera.arguments, "--listeners", listeners)
        player.wait_for("matched", MATCH_TIMEOUT_S, processes)
        progress("playing", 0)
        cpu_s = node.cpu_s()
        played = _play(player, processes, progress)
        player.wait(STOP_TIMEOUT_S)

        progress("waiting for the last results", len(played["images"]))
        settled = _wait_until_settled(recorder, processes)
        cpu_s = node.cpu_s() - cpu_s
        stop_s, exit_code = node.stop(signal.SIGINT)
        recorder.stop(signal.SIGTERM)
        recorder.wait_for("recorded", STOP_TIMEOUT_S, processes)
    return LiveRun(
        sent=[(stamp, when) for stamp, when in played["images"]],
        recording=recording,
        tf_from_odometry=ready["tf_from_odometry"],
        settled=settled,
        start_s=start_s,
        stop_s=stop_s,
        exit_code=exit_code,
        late_ms=played["late_ms"],
        seconds=time.monotonic() - begun,
        node_cpu_s=cpu_s,
    )


def live_environment(out: Path) -> dict[str, str]:
    """Environment of the processes of one run: a separate DDS domain, this package, logs below `out`."""
    environment = isolated_dds_environment(log_dir=out / "ros_log")
    environment["PYTHONUNBUFFERED"] = "1"
    folders = (str(PACKAGE_FOLDER), environment.get("PYTHONPATH", ""))
    environment["PYTHONPATH"] = os.pathsep.join(p for p in folders if p)
    return environment


def _wait_until_active(node: Process, recorder: Process, processes: Processes) -> None:
    end = time.monotonic() + ACTIVE_TIMEOUT_S
    while time.monotonic() < end:
        status = recorder.wait_for("status", end - time.monotonic(), processes)
        if status["state"] == "active" and status["outputs_found"]:
            return
        if status["state"] == "unconfigured" and status["trouble"] != "ok":
            raise LiveError(f"the node cannot start: {status['trouble']}")
    raise LiveError(f"the node was not active after {ACTIVE_TIMEOUT_S:.0f} s; its log:\n{node.tail()}")


def _play(player: Process, processes: Processes, progress: Progress) -> dict[str, Any]:
    while True:
        event = player.next_event(MATCH_TIMEOUT_S, processes)
        if event["event"] == "played":
            return event
        if event["event"] == "sent":
            progress("playing", event["images"])


def _wait_until_settled(recorder: Process, processes: Processes) -> bool:
    """Waits until nothing is pending and the counts are constant."""
    recorder.forget("status")
    end, before = time.monotonic() + SETTLE_TIMEOUT_S, None
    while time.monotonic() < end:
        status = recorder.wait_for("status", SETTLE_TIMEOUT_S, processes)
        if status["pending"] == 0 and status == before:
            return True
        before = status
    return False


class Process:
    """A Python module as a child process, with its log in a file and events as lines of JSON on stdout."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        self._early: list[dict[str, Any]] = []
        self.stopped = False
        with open(log, "wb") as errors:
            # a separate session: Ctrl-C in the terminal reaches only this process, which ends the child properly
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
                start_new_session=True, preexec_fn=_end_with_parent,
            )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines, open(self.log, "ab") as log:
            for line in lines:
                if line.startswith(b'{"event"'):
                    self._events.put(json.loads(line))
                else:
                    log.write(line)
                    log.flush()

    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu_s(self) -> float:
        """CPU time that it has used so far, without its children."""
        stat = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def next_event(self, timeout_s: float, others: Processes) -> dict[str, Any]:
        """The next event. Raises LiveError if none comes in time, or a process has ended unexpectedly."""
        end = time.monotonic() + timeout_s
        if self._early:
            return self._early.pop(0)
        while True:
            try:
                return self._events.get(timeout=0.1)
            except queue.Empty:
                others.check(but=self)
                if not self.running() and not self._reader.is_alive() and self._events.empty():
                    raise LiveError(self.obituary()) from None
                if time.monotonic() > end:
                    text = f"the {self.name} said nothing for {timeout_s:.0f} s; its log:\n{self.tail()}"
                    raise LiveError(text) from None

    def wait_for(self, event: str, timeout_s: float, others: Processes) -> dict[str, Any]:
        """The next event of that kind; events before it are skipped. Raises LiveError."""
        end = time.monotonic() + timeout_s
        while True:
            got = self.next_event(max(0.1, end - time.monotonic()), others)
            if got["event"] == event:
                return got

    def forget(self, event: str) -> None:
        """Drops pending events of that kind."""
        while True:
            try:
                got = self._events.get_nowait()
            except queue.Empty:
                return
            if got["event"] != event:
                self._early.append(got)

    def stop(self, with_signal: int, timeout_s: float = STOP_TIMEOUT_S) -> tuple[float, int]:
        """Ends the process by the signal, then by force. Returns the seconds it took, and its exit code."""
        self.stopped = True
        start = time.monotonic()
        if self.running():
            self._process.send_signal(with_signal)
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        seconds = time.monotonic() - start
        self._reader.join(2.0)
        return seconds, self._process.returncode

    def wait(self, timeout_s: float) -> None:
        """Waits for the process to end."""
        self.stopped = True
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.stop(signal.SIGTERM)

    def tail(self, lines: int = 15) -> str:
        """The last lines of its log."""
        text = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join("  " + line for line in text[-lines:]) or "  (empty)"

    def obituary(self) -> str:
        return f"the {self.name} has ended by itself (exit code {self.exit_code}); its log:\n{self.tail()}"


@dataclass
class Processes:
    """The processes of one run: a context manager that ends them all and removes shared memory of killed ones."""

    environment: dict[str, str]
    folder: Path
    started: list[Process] = field(default_factory=list)

    def start(self, name: str, module: str, *arguments: str) -> Process:
        command = [sys.executable, "-m", module, *arguments]
        self.started.append(Process(name, command, self.environment, self.folder / f"{name}.log"))
        return self.started[-1]

    def check(self, but: Process | None = None) -> None:
        """Raises LiveError if one of them has ended unexpectedly."""
        for process in self.started:
            if process is not but and not process.stopped and not process.running():
                raise LiveError(process.obituary())

    def __enter__(self) -> Processes:
        self._memory = shared_memory(semaphores=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        before = None
        if threading.current_thread() is threading.main_thread():  # a second Ctrl-C must not interrupt the cleanup
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            for process in self.started:
                if process.running() and process.name != "node":
                    process.stop(signal.SIGTERM)
            for process in self.started:
                process.stop(signal.SIGINT)
            if any((process.exit_code or 0) < 0 for process in self.started):
                _clear(shared_memory(semaphores=True) - self._memory)
        finally:
            if before is not None:
                signal.signal(signal.SIGINT, before)


def _end_with_parent() -> None:
    """Asks Linux to end this child when its parent dies."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _clear(segments: set[Path]) -> None:
    """Removes our segments that no living process has mapped, which killed participants leave. The lock of a segment (_el) is never
    mapped; it is removed with its segment, since others treat a segment without a lock as dead."""
    time.sleep(0.2)  # a segment that is being created is mapped by now
    mapped = b""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            mapped += maps.read_bytes()
        except OSError:  # the process has ended, or belongs to another user, whose segments are not ours
            continue
    for segment in segments:
        try:
            owner = os.fsencode(segment).removesuffix(b"_el")
            if segment.stat().st_uid == os.getuid() and owner + b"\n" not in mapped:
                segment.unlink()
        except OSError:
            continue
