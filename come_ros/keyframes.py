"""Selects keyframes: frames since which the camera has moved enough, or enough time has passed."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from .config import Config
from .types import Frame

THUMBNAIL_WIDTH = 320  # keyframe.min_flow is in pixels of this width
FLOW_STRIDE = 4  # every n-th pixel of the dense flow is enough for a median
# The stamps of a 10 Hz camera are not exactly 0.1 s apart: without this, min_interval 0.1 would drop every other frame.
INTERVAL_SLACK = 0.9


class KeyframeSelector:
    """Compares each frame with the last keyframe rather than the last frame, so that slow motion adds up.

    Image motion is the median of dense DIS flow (Kroeger et al., ECCV 2016): on real images it was closer to known
    shifts than tracked corners were, needs no special case for images without corners, and costs 2 ms with the thumbnail.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)  # type: ignore[attr-defined]
        self.reset()

    def reset(self) -> None:
        """Forgets the last keyframe: the next frame is one."""
        self._last: Frame | None = None
        self._thumbnail: NDArray[np.uint8] | None = None

    def is_keyframe(self, frame: Frame) -> bool:
        """Whether `frame` is a keyframe; if so, the next frames are compared with it."""
        if self._last is not None and not self._is_due(frame, self._last):
            return False
        self._last = frame
        self._thumbnail = thumbnail_of(frame.image) if self.config.keyframe.mode == "flow" else None
        return True

    def flow(self, thumbnail: NDArray[np.uint8]) -> float:
        """Median image motion (px of the thumbnail) since the last keyframe."""
        flow = self._flow.calc(self._thumbnail, thumbnail, None)[::FLOW_STRIDE, ::FLOW_STRIDE]
        return float(np.median(np.hypot(flow[..., 0], flow[..., 1])))

    def _is_due(self, frame: Frame, last: Frame) -> bool:
        parameters = self.config.keyframe
        if parameters.mode == "every" or last.camera != frame.camera or last.image.shape != frame.image.shape:
            return True
        seconds = (frame.stamp_ns - last.stamp_ns) * 1e-9
        if (
            seconds < INTERVAL_SLACK * parameters.min_interval
        ):  # most frames of a fast camera: decided without the image
            return False
        if parameters.mode == "time" or seconds >= parameters.max_interval:
            return True
        if self._thumbnail is None:  # the mode was changed to flow since the last keyframe
            return True
        return self.flow(thumbnail_of(frame.image)) >= parameters.min_flow


def thumbnail_of(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Gray (h, THUMBNAIL_WIDTH) uint8 of an image (H, W, 3)."""
    height, width = image.shape[:2]
    size = (THUMBNAIL_WIDTH, max(16, round(height * THUMBNAIL_WIDTH / width)))
    interpolation = cv2.INTER_AREA if width >= THUMBNAIL_WIDTH else cv2.INTER_LINEAR
    shrunk = cv2.resize(image, size, interpolation=interpolation)
    return np.asarray(cv2.cvtColor(shrunk, cv2.COLOR_RGB2GRAY), np.uint8)
