"""A stand-in for a model, to test everything around it: depth from brightness, a camera that slides sideways."""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..config import Config
from ..errors import Cancelled, OutOfMemory
from ..types import DeviceMemory, Known, Prediction
from .backbone import Backbone
from .stream import Step

STEP = 0.05  # motion of the camera along its x axis from frame to frame
FOCAL = 0.9  # focal length in widths of the image
POLL_S = 0.01


class Load(NamedTuple):
    """The size of one window, which determines its cost: frames of height x width px, with the share `ratio` of the 3x3 groups
    merged."""

    frames: int
    height: int
    width: int
    ratio: float

    @property
    def tokens(self) -> float:
        """Number of patches that are left."""
        return self.frames * (self.height // 14) * (self.width // 14) * (1 - 8 / 9 * self.ratio)


class FakeBackbone(Backbone):
    """Predicts from the image alone, the same every time: depth = 1 + 4 * gray / 255, poses STEP apart along x.

    delay_s: simulated time per window. fail_on: called with the images of each window first; its exceptions are raised by
    `predict`. cost: additional seconds per window. needs: memory of a window, MiB; more than `free_mib` raises OutOfMemory. sleep:
    the function that waits. loads: the most recent windows.
    """

    name = "fake"
    patch_size = 14
    native_side = 224
    device = "cpu"
    about = {"parameters": "0", "precision": "fp32", "attention": "none"}  # noqa: RUF012

    def __init__(
        self,
        delay_s: float = 0.0,
        fail_on: Callable[[NDArray[np.uint8]], Any] | None = None,
        *,
        cost: Callable[[Load], float] = lambda load: 0.0,
        needs: Callable[[Load], float] = lambda load: 0.0,
        free_mib: float = np.inf,
        sleep: Callable[[float], Any] = time.sleep,
    ) -> None:
        self.delay_s = delay_s
        self.fail_on = fail_on
        self.cost, self.needs, self.sleep = cost, needs, sleep
        self._shared = {"windows": 0, "free_mib": free_mib}
        self.loads: deque[Load] = deque(maxlen=100)
        self._ratio = 0.0

    @classmethod
    def create(cls, config: Config) -> FakeBackbone:
        """The backbone for `backbone: fake`."""
        return cls()

    def configured(self, config: Config) -> FakeBackbone:
        """A copy with another merge ratio, which affects cost and memory only. All copies share the device and the counters."""
        ratio = config.accelerator.ratio if config.accelerator.name != "none" else 0.0
        if ratio == self._ratio:
            return self
        out = copy.copy(self)
        out._ratio = ratio
        return out

    @property
    def windows(self) -> int:
        """Number of windows so far."""
        return int(self._shared["windows"])

    @property
    def free_mib(self) -> float:
        """Free memory of the device that all copies share."""
        return self._shared["free_mib"]

    @free_mib.setter
    def free_mib(self, value: float) -> None:
        self._shared["free_mib"] = value

    def memory(self) -> DeviceMemory | None:
        """None unless there is a limit."""
        return DeviceMemory(0.0, self.free_mib) if np.isfinite(self.free_mib) else None

    def predict(
        self,
        images: NDArray[np.uint8],
        stop: Callable[[], bool] | None = None,
        known: Known | None = None,
        step: Step | None = None,
    ) -> Prediction:
        """Prediction of images (S, H, W, 3) uint8. Raises Cancelled within some 10 ms of `stop()` turning true."""
        self._shared["windows"] += 1
        load = Load(len(images), *images.shape[1:3], self._ratio)
        self.loads.append(load)
        if self.fail_on is not None:
            self.fail_on(images)
        if self.needs(load) > self.free_mib:
            raise OutOfMemory(
                f"a window of {load.frames} frames needs {self.needs(load):.0f} MiB, {self.free_mib:.0f} are free"
            )
        self._wait(self.delay_s + self.cost(load), stop)
        frames, height, width = images.shape[:3]
        gray = images.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)  # (S, H, W)
        contrast = np.abs(np.diff(gray, axis=2, append=gray[:, :, -1:]))
        window_from_camera = np.tile(np.eye(4), (frames, 1, 1))
        window_from_camera[:, 0, 3] = STEP * np.arange(frames)
        k = np.array([[FOCAL * width, 0, (width - 1) / 2], [0, FOCAL * width, (height - 1) / 2], [0, 0, 1]])
        return Prediction(
            images=images,
            depth=1 + 4 * gray / np.float32(255),
            confidence=2 + contrast / np.float32(255),
            window_from_camera=window_from_camera,
            intrinsics=np.tile(k, (frames, 1, 1)),
        )

    def _wait(self, seconds: float, stop: Callable[[], bool] | None) -> None:
        while True:
            if stop is not None and stop():
                raise Cancelled("the window was cancelled")
            if seconds <= 0:
                return
            begun = time.monotonic()
            self.sleep(min(POLL_S, seconds))
            # a simulated sleep takes no time; a real one may take longer than requested
            seconds -= max(min(POLL_S, seconds), time.monotonic() - begun)
