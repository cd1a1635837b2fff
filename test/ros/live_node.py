"""A node under test as its own process, and a peer in this one that feeds it and collects what it publishes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Odometry
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2

from come_ros.ros import messages

ROOT = Path(__file__).resolve().parents[2]
WIDTH, HEIGHT = 320, 240
K = np.array([[280.0, 0, 159.5], [0, 282.0, 119.5], [0, 0, 1]])
START_NS = 1_700_000_000_123_456_789  # float64 seconds cannot hold it
STEP_NS = 100_000_001
PATIENCE_S = 60.0  # for what comes in a moment on an idle machine: only a failure waits so long


def wait_until(condition: Callable[[], Any], timeout_s: float = PATIENCE_S, what: str = "") -> Any:
    """The first true value of `condition`, polled; fails the test when the time is up."""
    end = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            pytest.fail(f"waited {timeout_s} s for {what or condition}", pytrace=False)
        time.sleep(0.01)


WITH_MODEL = """
import os, sys, time
from come_ros import errors
from come_ros.backbones.fake import FakeBackbone
from come_ros.pipeline import ReconstructionPipeline
from come_ros.ros.main import main
SETUP
def load(config):
    return ReconstructionPipeline(config, BACKBONE)
sys.exit(main(load=load))
"""


def node_with(backbone: str, setup: str = "") -> str:
    """A program: the node with `backbone`, an expression, as its model; `setup` comes before it."""
    return WITH_MODEL.replace("BACKBONE", backbone).replace("SETUP", setup)


class NodeProcess:
    """`come` as a subprocess with its log; `script` runs instead of the module, to arrange a model for the test."""

    def __init__(self, *arguments: str, script: str = "", env: dict[str, str] | None = None) -> None:
        command = ["-c", script] if script else ["-m", "come_ros.ros.main"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **(env or {})}
        environment["PYTHONPATH"] = os.pathsep.join(p for p in (str(ROOT), environment.get("PYTHONPATH", "")) if p)
        self.process = subprocess.Popen(
            [sys.executable, *command, "--ros-args", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        )  # fmt: skip
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self.lines.append(line.rstrip())

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, text: str, timeout_s: float = PATIENCE_S) -> None:
        """Waits until the log holds `text`."""
        end = time.monotonic() + timeout_s
        while text not in self.log:
            if time.monotonic() > end or (self.process.poll() is not None and text not in self.log):
                pytest.fail(f"no {text!r} in the node's log:\n{self.log}", pytrace=False)
            time.sleep(0.02)

    def stop(self, with_signal: int = signal.SIGINT, timeout_s: float = PATIENCE_S) -> tuple[int, float]:
        """Exit code, and seconds from the signal to the end of the process, less those that its threads waited for a core."""
        start, before = time.monotonic(), self._waits_ns()
        waits = dict(before)
        self.process.send_signal(with_signal)
        while (code := self.process.poll()) is None:
            if time.monotonic() > start + timeout_s:
                raise subprocess.TimeoutExpired(self.process.args, timeout_s)
            waits.update(self._waits_ns())
            time.sleep(0.01)
        waited = sum(ns - before.get(thread, 0) for thread, ns in waits.items())
        seconds = time.monotonic() - start - 1e-9 * waited
        self._reader.join(PATIENCE_S)
        return code, seconds

    def _waits_ns(self) -> dict[str, int]:
        """For each living thread of the process, how long it was ready to run and had no core: next to nothing on an idle machine."""
        found = {}
        for file in Path(f"/proc/{self.process.pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):  # the thread has ended
                found[file.parent.name] = int(file.read_text().split()[1])
        return found

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(5.0)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdout:
            self._reader.join(2.0)
            self.process.stdout.close()


class Peer:
    """A camera and a listener. Lists of received messages by topic; publishing is best effort, as cameras do it."""

    def __init__(self, context: Any) -> None:
        self.node = Node("peer", context=context)
        self.received: dict[str, list[Any]] = {}
        sensor = QoSProfile(depth=20, reliability=ReliabilityPolicy.BEST_EFFORT)
        self.image = self.node.create_publisher(Image, "/image", sensor)
        self.compressed = self.node.create_publisher(CompressedImage, "/image/compressed", sensor)
        self.camera_info = self.node.create_publisher(CameraInfo, "/camera_info", sensor)
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._closing = False
        self._thread.start()

    def _spin(self) -> None:
        while not self._closing:
            self._executor.spin_once(timeout_sec=0.05)

    def listen(self, topic: str, kind: type, qos: Any = 50) -> list[Any]:
        """Starts to collect; the list grows as messages come."""
        got = self.received.setdefault(topic, [])
        self.node.create_subscription(kind, topic, got.append, qos)
        self._executor.wake()
        return got

    def listen_to_outputs(self) -> dict[str, list[Any]]:
        for topic, kind in (
            ("/come/points", PointCloud2), ("/come/odometry", Odometry), ("/come/depth/image", Image),
            ("/come/depth/camera_info", CameraInfo), ("/diagnostics", DiagnosticArray),
        ):  # fmt: skip
            self.listen(topic, kind)
        return self.received

    def matched(self) -> bool:
        """Whether the node is reached by our images (it says so itself: only then none is lost), and we have found its outputs."""
        reached = int(self.status("come: input").get("publishers", "0")) and self.camera_info.get_subscription_count()
        return bool(reached) and all(self.node.count_publishers(topic) for topic in self.received)

    def send(
        self, picture: np.ndarray, stamp_ns: int, frame: str = "cam_optical_frame", k: np.ndarray | None = K
    ) -> None:
        """One image, with its camera_info first unless k is None."""
        head = messages.header(stamp_ns, frame)
        height, width = picture.shape[:2]
        if k is not None:
            self.camera_info.publish(messages.camera_info_message(k, width, height, head))
        self.image.publish(messages.image_message(picture, head))

    def status(self, name: str) -> dict[str, str]:
        """Values of the newest diagnostics of that name, with `message` and `level` (0 ok, 1 warn, 2 error) among them."""
        for array in reversed(self.received.get("/diagnostics", [])):
            for status in array.status:
                if status.name == name:
                    values = {v.key: v.value for v in status.values}
                    return {
                        **values,
                        "message": status.message,
                        "level": str(status.level[0]),
                        "hardware_id": status.hardware_id,
                    }
        return {}

    def close(self) -> None:
        self._closing = True
        self._executor.wake()
        self._thread.join(5.0)
        self._executor.shutdown()
        self.node.destroy_node()


def picture(index: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """(height, width, 3) uint8: a smooth texture that moves by some pixels from frame to frame."""
    u, v = np.meshgrid(np.arange(width) + 12.0 * index, np.arange(height))
    waves = [np.sin(u / 9 + v / 23), np.sin(u / 31 - v / 11), np.cos(u / 17) * np.sin(v / 13)]
    return np.stack([(127 + 120 * w).astype(np.uint8) for w in waves], axis=-1)
