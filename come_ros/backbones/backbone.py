"""The interface of a backbone to the pipeline: a window of images in, a prediction out, all in NumPy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np

from ..camera.preprocess import patch_grid_size
from ..config import Config
from ..types import DeviceMemory, Known, Prediction
from .stream import EncoderCache, FrameCache, Step


class Backbone(ABC):
    """A model as the pipeline sees it: images in, Prediction out; no state is kept between windows."""

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
    """the inputs of types.Known that it accepts: "intrinsics", "depth", "poses" """
    streams: bool = False
    """whether predict() takes a Step"""
    causal: bool = False
    """whether it answers for each frame once, from that and earlier ones, and so needs a whole window where a stream begins"""

    @property
    def places(self) -> str:
        """What makes its place descriptors (Prediction.places): descriptors of equal makers can be compared. The file of the weights is
        read for it."""
        return "small copies of the images"

    def image_size(self, width: int, height: int, side: int) -> tuple[int, int]:
        """(W, H) of the model's image for one of (width, height) whose longer side is to be about `side`."""
        return patch_grid_size(width, height, side, self.patch_size)

    def configured(self, config: Config) -> Backbone:
        """A copy with the dynamic parameters of `config`, sharing the weights; self if nothing changes. Raises ConfigError if
        `config` names another accelerator."""
        return self

    def dense(self) -> Backbone:
        """The same model without an accelerator (always the same object); self if it has none."""
        return self

    def new_cache(self) -> FrameCache:
        """What a Step of this backbone takes as its cache, empty."""
        return EncoderCache()

    def free_memory(self) -> None:  # noqa: B027
        """Frees caches that only make the next window faster."""

    def memory(self) -> DeviceMemory | None:
        """Memory of its device, None for the CPU."""
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

        known: what is known besides the images; values that are not in `inputs` are ignored. step: position in a sliding window;
        None computes everything for all frames.
        """
