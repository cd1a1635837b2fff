"""What the model is given for a window: the images, cut and resized, and what is known about their cameras."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import config_groups
from ..types import Known, Window
from .preprocess import CropResize, Sized, cover, crop_depth, crop_intrinsics, image_plan, preprocess


class ModelInput(NamedTuple):
    """stamps_ns: of the frames. images: (S, H, W, 3) uint8 RGB. known: depth, poses and intrinsics that are known, None if nothing is."""

    stamps_ns: tuple[int, ...]
    images: NDArray[np.uint8]
    known: Known | None


class ModelInputs:
    """Makes the input of one window after the other; images of shared frames are resized once.

    last: the input of the last window, None if there was none yet.
    """

    def __init__(self) -> None:
        self.last: ModelInput | None = None
        self._images: dict[tuple[int, str], NDArray[np.uint8]] = {}  # by stamp and camera

    def make(self, window: Window, plans: list[CropResize], known: Known | None) -> ModelInput:
        """plans: one for each frame of the window."""
        images = {}
        for frame, plan in zip(window.frames, plans, strict=True):
            key = (frame.stamp_ns, frame.camera)
            image = self._images.get(key)
            if image is None or image.shape[:2] != (plan.height, plan.width):
                image = preprocess(frame.image, plan)
            images[key] = image
        self._images = images
        stamps_ns = tuple(frame.stamp_ns for frame in window.frames)
        self.last = ModelInput(stamps_ns, np.stack(list(images.values())), known)
        return self.last

    def clear(self) -> None:
        """Forgets all frames."""
        self._images.clear()
        self.last = None


def window_plans(model: Sized, window: Window, side: int) -> list[CropResize]:
    """How each frame of the window is cut and resized. The first camera's image sets the size; those of the others are cut to it."""
    height, width = window.frames[0].image.shape[:2]
    plan = image_plan(model, width, height, side)
    return [cover(f.image.shape[1], f.image.shape[0], plan.width, plan.height) for f in window.frames]


def known_of(
    window: Window, plans: list[CropResize], wanted: config_groups.Known, takes: Collection[str]
) -> Known | None:
    """What the frames bring besides their images, as far as the model takes it and the parameters `known` allow it; None if nothing."""
    known = Known.nothing(len(window), plans[0].height, plans[0].width, wanted.metric)
    for i, (frame, plan) in enumerate(zip(window.frames, plans, strict=True)):
        if "intrinsics" in takes and wanted.intrinsics and frame.intrinsics is not None:
            known.intrinsics[i] = crop_intrinsics(frame.intrinsics, plan)
        if "depth" in takes and wanted.depth and frame.depth is not None:
            known.depth[i] = crop_depth(frame.depth, plan)
        if "poses" in takes and wanted.odometry and frame.world_from_camera is not None:
            known.world_from_camera[i] = frame.world_from_camera
    return known if known else None
