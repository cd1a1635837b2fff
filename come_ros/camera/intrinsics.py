"""Intrinsics of published frames: the known ones where available, else an estimate that settles."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..types import F64, Frame, Prediction
from .preprocess import CropResize, crop_intrinsics

MOST_WINDOWS = 10  # the median of the predicted intrinsics is over so many windows, and then stays as it is


class IntrinsicsMedian:
    """Intrinsics from CameraInfo, else from the bundle, else the median of those that the model predicted so far."""

    def __init__(self) -> None:
        self._predicted: dict[tuple[str, CropResize], list[F64]] = {}

    def add(self, frames: tuple[Frame, ...], plans: list[CropResize], prediction: Prediction) -> None:
        """Learns from the predicted intrinsics of one window."""
        rows: dict[tuple[str, CropResize], list[int]] = {}
        for i, (frame, plan) in enumerate(zip(frames, plans, strict=True)):
            if prediction.row(i) is not None:
                rows.setdefault((frame.camera, plan), []).append(i)
        for key, of_camera in rows.items():
            windows = self._predicted.setdefault(key, [])
            if len(windows) < MOST_WINDOWS:
                windows.append(np.asarray(prediction.intrinsics[of_camera], np.float64))

    def of(self, frames: tuple[Frame, ...], plans: list[CropResize], estimated: Callable[[Frame], F64 | None]) -> F64:
        """(N, 3, 3) in pixels of the model's image. estimated: those of a frame's image by the bundle, None if it has none."""
        out = np.empty((len(frames), 3, 3))
        for row, frame, plan in zip(out, frames, plans, strict=True):
            if frame.intrinsics is not None:
                row[:] = crop_intrinsics(frame.intrinsics, plan)
            elif (by_bundle := estimated(frame)) is not None:
                row[:] = crop_intrinsics(by_bundle, plan)
            else:
                row[:] = np.median(np.concatenate(self._predicted[frame.camera, plan]), axis=0)
        return out
