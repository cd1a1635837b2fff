"""The interface of a backbone to the pipeline: a window of images in, a prediction out, all in NumPy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..camera.preprocess import patch_grid_size
from ..config import Config
from ..errors import PluginError
from ..types import U8, DeviceMemory, Known, Prediction
from .stream import EncoderCache, FrameCache, Step


class Backbone(ABC):
    """A model as the pipeline sees it: images in, Prediction out; no state is kept between windows."""

    name: str
    patch_size: int
    """sides of the model's images are multiples of this, px"""
    native_side: int
    """longer side of the images the model was made for, px"""
    device: str
    about: Mapping[str, str] = {}
    """entries of `description` that differ from its defaults, and further ones"""
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

    @property
    def description(self) -> dict[str, str]:
        """What logs, diagnostics and results say of the model."""
        usual = {
            "backbone": self.name,
            "accelerator": "none",
            "weights": "none",
            "parameters": "unknown",
            "device": self.device,
            "precision": "unknown",
        }
        return {**usual, **self.about}

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


def check_prediction(prediction: Any, images: U8, backbone: str) -> None:
    """Raises PluginError if a backbone returned something other than a Prediction for `images` (S, H, W, 3) in the promised shapes
    and dtypes."""
    if not isinstance(prediction, Prediction):
        raise PluginError(
            f"the backbone {backbone} returned {type(prediction).__name__}: its predict must return come_ros.types.Prediction"
        )
    s, h, w = images.shape[:3]
    rows = s if prediction.dense is None else len(prediction.dense)
    for name, shape, dtype in (
        ("depth", (rows, h, w), "float32"),
        ("confidence", (rows, h, w), "float32"),
        ("window_from_camera", (s, 4, 4), "float64"),
        ("intrinsics", (s, 3, 3), "float64"),
    ):
        found = np.asarray(getattr(prediction, name))
        if found.shape != shape or found.dtype != dtype:
            raise PluginError(
                f"the backbone {backbone} returned {name} of shape {found.shape} and type {found.dtype}, but its predict must return "
                f"{shape} {dtype} for images of shape {images.shape}"
            )
