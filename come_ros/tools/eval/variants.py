"""The variants that are scored: the dense model, accelerated ones, and trivial baselines without an accelerator."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...config import Config
from ...config_groups import AcceleratorParameters
from ...config_text import split_name, with_accelerator
from ...evaluation.window import WindowTruth
from ...types import U8, Known, Prediction

DENSE = "dense"
RESOLUTION = "resolution"
SINGLE, REPEATED, ALONE = "single images", "the same image n times", "no cross-frame attention"
WITHOUT_WINDOW = (SINGLE, REPEATED, ALONE)
"""the model without the benefit of a window: each frame separately; copies of it; all frames without attention between them"""
MOST_SQUASH = 0.12  # of the aspect ratio, by going to whole patches
NOT_IN_NAMES = (
    "name",
    "params",
    "predictor",
    "pace",
    "layer_plan",
)  # parameters of the group accelerator that are not shown: files, and the name


@dataclass(frozen=True, eq=False)
class Variant:
    """name: unique, used in tables. family: the name without the ratio, which varies along a line of the plot. backbone: with
    `predict`. config: its configuration. trivial: whether it is a baseline."""

    name: str
    family: str
    backbone: Any
    config: Config
    trivial: bool = False

    def predict(self, window: WindowTruth, stop: Callable[[], bool] | None = None) -> Prediction:
        """Predicts from the images and what the node would know, see known_of."""
        known = known_of(self.backbone, self.config, window)
        more: dict[str, Any] = {} if known is None else {"known": known}
        return self.backbone.predict(window.images, stop, **more)

    @property
    def about(self) -> str:
        """The accelerator's description of itself, "" if there is none."""
        found = getattr(getattr(self.backbone, "accelerator", None), "about", None)
        return "" if found is None else found()


def known_of(backbone: Any, config: Config, window: WindowTruth) -> Known | None:
    """The known inputs that the node would pass to a model that accepts them: intrinsics, from camera_info. Depth and odometry
    would require other sensors."""
    takes = "intrinsics" in getattr(backbone, "inputs", ())
    if not (takes and config.known.intrinsics) or window.intrinsics is None:
        return None
    known = Known.nothing(*window.images.shape[:3], config.known.metric)  # type: ignore[call-arg]
    known.intrinsics[:] = window.intrinsics
    return known


def accelerated(backbone: Any, config: Config, text: str) -> Variant:
    """text: see config.with_accelerator. Raises ConfigError, CheckpointError."""
    import torch

    from ...accelerators import make_accelerator

    name, given = split_name(text)
    config = with_accelerator(config, text)
    made = make_accelerator(config, backbone.model.shape, backbone.description["weights"])
    words = _words(config, given)
    family = " ".join([name, *(word.partition("=")[2] if word.startswith("group") else word
                               for word in words if not word.startswith("ratio="))])  # fmt: skip
    accelerator = made.to(torch.device(backbone.device))
    return Variant(" ".join([name, *words]), family, backbone.accelerated(accelerator), config, name == "random")


def _words(config: Config, given: list[str]) -> list[str]:
    """The parameters in a variant's name: those given, and all others of the accelerator that differ from their default, so that
    different variants never share a name."""
    usual, words = AcceleratorParameters(), dict(word.split("=", 1) for word in given)
    for field in dataclasses.fields(usual):
        value = getattr(config.accelerator, field.name)
        if field.name not in NOT_IN_NAMES and value != getattr(usual, field.name):
            words.setdefault(field.name, f"{value:g}" if isinstance(value, float) else str(value))
    if config.accelerator.edge_weight == 0:
        words.pop("edge_weight", None)  # for Co-Me, there is none
    return [f"{name}={value}" for name, value in words.items()]


def dense(backbone: Any, config: Config) -> Variant:
    """The model without an accelerator."""
    return Variant(DENSE, DENSE, backbone.dense(), config.replace(**{"accelerator.name": "none"}))


def without_window(backbone: Any, config: Config) -> Iterator[Variant]:
    """The trivial baselines of WITHOUT_WINDOW for the dense model; without the last of them for a stand-in without layers."""
    config = config.replace(**{"accelerator.name": "none"})
    yield Variant(SINGLE, SINGLE, OneByOne(backbone.dense(), 1), config, True)
    yield Variant(REPEATED, REPEATED, OneByOne(backbone.dense(), None), config, True)
    if not hasattr(backbone, "model"):
        return
    from ...accelerators.good_token_hunting import GoodTokenHunting, LayerPlan

    layers = sum(part == "global" for part, _ in backbone.model.trunk_blocks())
    alone = GoodTokenHunting(LayerPlan(layers, layers), frames=10**6)
    yield Variant(ALONE, ALONE, backbone.accelerated(alone), config, True)


def smaller(backbone: Any, config: Config, height: int, width: int) -> Iterator[Variant]:
    """The dense model on images of fewer rows of patches, down to half of them."""
    config = config.replace(**{"accelerator.name": "none"})
    patch = backbone.patch_size
    rows, columns = height // patch, width // patch
    for h in range(rows - 1, max(1, rows // 2 - 1), -1):
        w = round(columns * h / rows)
        if w >= 2 and abs(w * rows / (h * columns) - 1) <= MOST_SQUASH:
            images = SmallerImages(backbone, h, w)
            yield Variant(f"{RESOLUTION} {w * patch}x{h * patch}", RESOLUTION, images, config, True)


class OneByOne:
    """The dense model on each image separately, or on `copies` of it (None: as many as the window has). All cameras are at the pose
    of the first one, since a single image contains no motion."""

    def __init__(self, dense: Any, copies: int | None) -> None:
        self.dense, self.copies = dense, copies
        self.inputs: frozenset[str] = getattr(dense, "inputs", frozenset())

    def predict(self, images: U8, stop: Callable[[], bool] | None = None, known: Known | None = None) -> Prediction:
        """Of (S, H, W, 3) images. Raises Cancelled."""
        n, found = self.copies or len(images), []
        for i, image in enumerate(images):
            of_it = None if known is None else _copies(known, i, n)
            more: dict[str, Any] = {} if of_it is None else {"known": of_it}
            found.append(self.dense.predict(np.repeat(image[None], n, axis=0), stop, **more))
        depth, confidence, k = (
            np.stack([getattr(p, name)[0] for p in found]) for name in ("depth", "confidence", "intrinsics")
        )
        return Prediction(images, depth, confidence, np.tile(np.eye(4), (len(images), 1, 1)), k)


def _copies(known: Known, frame: int, n: int) -> Known:
    """The known inputs of one frame, repeated n times."""
    arrays = {
        f.name: np.repeat(value[frame : frame + 1], n, axis=0)
        for f in dataclasses.fields(known)
        if isinstance(value := getattr(known, f.name), np.ndarray)
    }
    return dataclasses.replace(known, **arrays)  # type: ignore[arg-type]


class SmallerImages:
    """The dense model on (h, w) patches: images are shrunk before, its maps enlarged after. The trivial baseline that reduces
    tokens by resolution."""

    def __init__(self, backbone: Any, h: int, w: int) -> None:
        self.dense, self.size = backbone.dense(), (h * backbone.patch_size, w * backbone.patch_size)
        self.inputs: frozenset[str] = getattr(self.dense, "inputs", frozenset()) & {"intrinsics"}

    def shrink(self, images: U8) -> U8:
        """(S, H, W, 3) -> (S, *size, 3), as the pipeline resizes."""
        from PIL import Image

        height, width = self.size
        # Image.Resampling is newer than the Pillow of Ubuntu 22.04
        how: Any = Image.BICUBIC  # type: ignore[attr-defined]
        return np.stack([np.asarray(Image.fromarray(image).resize((width, height), how)) for image in images])

    def predict(self, images: U8, stop: Callable[[], bool] | None = None, known: Known | None = None) -> Prediction:
        """Of (S, H, W, 3) images, in their pixels. Raises Cancelled."""
        import cv2

        height, width = images.shape[1:3]
        sy, sx = height / self.size[0], width / self.size[1]
        grow = np.array([[sx, 0, 0.5 * sx - 0.5], [0, sy, 0.5 * sy - 0.5], [0, 0, 1.0]])
        more: dict[str, Any] = {}
        if known is not None:
            more["known"] = Known.nothing(len(images), *self.size, known.metric)
            more["known"].intrinsics[:] = np.linalg.inv(grow) @ known.intrinsics
        p = self.dense.predict(self.shrink(images), stop, **more)
        depth, confidence = (
            np.stack([cv2.resize(m, (width, height), interpolation=cv2.INTER_LINEAR) for m in maps])
            for maps in (p.depth, p.confidence)
        )
        kept = self.size[0] * self.size[1] / (height * width)
        return Prediction(
            images, depth, confidence, p.window_from_camera, grow @ p.intrinsics, kept_ratio=kept, read_ratio=kept
        )
