"""What the pipeline asks of a backbone: a window of images in, a prediction out, all in NumPy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np

from ..camera.preprocess import patch_grid_size
from ..config import Config
from ..types import DeviceMemory, Known, Prediction
from .stream import Step


class Backbone(ABC):
    """What the pipeline sees of a model: images in, Prediction out; nothing is kept between windows."""

    name: str
    patch_size: int
    native_side: int
    """longer side of the images the model was made for, px"""
    device: str
    description: dict[str, str]
    """for logs and diagnostics: weights, parameters, precision, attention kernel"""
    metric: bool = False
    """whether depth and poses are in metres, in every window"""
    inputs: frozenset[str] = frozenset()
    """what of types.Known it takes: "intrinsics", "depth", "poses" """
    streams: bool = False
    """whether predict() takes a Step"""

    def image_size(self, width: int, height: int, side: int) -> tuple[int, int]:
        """(W, H) of the model's image for one of (width, height) whose longer side is to be about `side`."""
        return patch_grid_size(width, height, side, self.patch_size)

    def configured(self, config: Config) -> Backbone:
        """The same model with the dynamic parameters of `config`; self if nothing changes. Weights are shared, and this one stays as it
        is. Raises ConfigError if `config` names another accelerator than the one it has."""
        return self

    def dense(self) -> Backbone:
        """The same model without an accelerator, the same object at every call; self if it has none."""
        return self

    def free_memory(self) -> None:  # noqa: B027
        """Gives back what is kept for the next window only to be fast."""

    def memory(self) -> DeviceMemory | None:
        """Of its device, None if that is the CPU."""
        return None

    @abstractmethod
    def predict(
        self,
        images: np.ndarray,
        stop: Callable[[], bool] | None = None,
        known: Known | None = None,
        step: Step | None = None,
    ) -> Prediction:
        """(S, H, W, 3) uint8 RGB, sides multiples of patch_size -> Prediction. Raises Cancelled soon after stop() turns true,
        OutOfMemory, DeviceLost.

        known: what is known besides the images; what is not among `inputs` is ignored. step: of a sliding window; None
        computes everything again, for all frames.
        """
