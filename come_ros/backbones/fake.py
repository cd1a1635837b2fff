"""A stand-in for a model, to test all that surrounds one: depth from brightness, a camera that slides sideways."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import Config
from ..errors import Cancelled
from ..types import Prediction

STEP = 0.05  # how far the camera moves along its x from frame to frame
FOCAL = 0.9  # focal length in widths of the image
POLL_S = 0.01


class FakeBackbone:
    """Predicts from the image alone, the same every time: depth = 1 + 4 * gray / 255, poses STEP apart along x.

    delay_s: how long a window pretends to take. fail_on: called with the images of each window first; what it raises
    comes out of `predict`. windows: how many windows were asked for.
    """

    name = "fake"
    patch_size = 14
    native_side = 224
    device = "cpu"

    def __init__(self, delay_s: float = 0.0, fail_on: Callable[[NDArray[np.uint8]], Any] | None = None) -> None:
        self.delay_s = delay_s
        self.fail_on = fail_on
        self.windows = 0
        self.description = {
            "backbone": self.name,
            "accelerator": "none",
            "weights": "none",
            "parameters": "0",
            "device": self.device,
            "precision": "fp32",
            "attention": "none",
        }

    def configure(self, config: Config) -> None:
        """Nothing to set."""

    def dense(self) -> FakeBackbone:
        """Itself: there is no accelerator."""
        return self

    def predict(self, images: NDArray[np.uint8], stop: Callable[[], bool] | None = None) -> Prediction:
        """Prediction of images (S, H, W, 3) uint8. Raises Cancelled within some 10 ms of `stop()` turning true."""
        self.windows += 1
        if self.fail_on is not None:
            self.fail_on(images)
        self._wait(stop)
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

    def _wait(self, stop: Callable[[], bool] | None) -> None:
        end = time.monotonic() + self.delay_s
        while True:
            if stop is not None and stop():
                raise Cancelled("the window was given up on request")
            left = end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(POLL_S, left))
