"""What is scored side by side: the dense model, accelerated ones, and the dense model on smaller images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...config import Config, split_name, with_accelerator
from ...types import U8, Prediction

DENSE = "dense"
RESOLUTION = "resolution"
MOST_SQUASH = 0.12  # of the aspect ratio, by going to whole patches


@dataclass(frozen=True, eq=False)
class Variant:
    """name: as in tables. family: what varies along a line of the plot, without its ratio. backbone: with `predict`. config: what it was
    made from."""

    name: str
    family: str
    backbone: Any
    config: Config

    def predict(self, images: U8) -> Prediction:
        """Of (S, H, W, 3) images."""
        return self.backbone.predict(images)


def accelerated(backbone: Any, config: Config, text: str) -> Variant:
    """text: see config.with_accelerator. Raises ConfigError, CheckpointError."""
    import torch

    from ...accelerators import make_accelerator

    name, words = split_name(text)
    config = with_accelerator(config, text)
    made = make_accelerator(config, backbone.model.shape, backbone.description["weights"])
    words = [word for word in words if word not in ("edge_weight=0", "edge_weight=0.0")]
    family = " ".join([name, *(word.partition("=")[2] if word.startswith("group") else word
                               for word in words if not word.startswith("ratio="))])  # fmt: skip
    accelerator = made.to(torch.device(backbone.device))
    return Variant(" ".join([name, *words]), family, backbone.accelerated(accelerator), config)


def dense(backbone: Any, config: Config) -> Variant:
    """The model without an accelerator."""
    return Variant(DENSE, DENSE, backbone.dense(), config.replace(**{"accelerator.name": "none"}))


def smaller(backbone: Any, config: Config, height: int, width: int) -> Iterator[Variant]:
    """The dense model on images of fewer rows of patches, down to half of them."""
    config = config.replace(**{"accelerator.name": "none"})
    patch = backbone.patch_size
    rows, columns = height // patch, width // patch
    for h in range(rows - 1, max(1, rows // 2 - 1), -1):
        w = round(columns * h / rows)
        if w >= 2 and abs(w * rows / (h * columns) - 1) <= MOST_SQUASH:
            yield Variant(f"{RESOLUTION} {w * patch}x{h * patch}", RESOLUTION, SmallerImages(backbone, h, w), config)


class SmallerImages:
    """The dense model on (h, w) patches: images shrunk before, its maps enlarged after. The trivial baseline that reduces tokens by looking
    less closely."""

    def __init__(self, backbone: Any, h: int, w: int) -> None:
        self.dense, self.size = backbone.dense(), (h * backbone.patch_size, w * backbone.patch_size)

    def shrink(self, images: U8) -> U8:
        """(S, H, W, 3) -> (S, *size, 3), as the pipeline resizes."""
        from PIL import Image

        height, width = self.size
        # Image.Resampling is newer than the Pillow of Ubuntu 22.04
        how: Any = Image.BICUBIC  # type: ignore[attr-defined]
        return np.stack([np.asarray(Image.fromarray(image).resize((width, height), how)) for image in images])

    def predict(self, images: U8) -> Prediction:
        """Of (S, H, W, 3) images, in their pixels."""
        import cv2

        height, width = images.shape[1:3]
        p = self.dense.predict(self.shrink(images))
        sy, sx = height / self.size[0], width / self.size[1]
        grow = np.array([[sx, 0, 0.5 * sx - 0.5], [0, sy, 0.5 * sy - 0.5], [0, 0, 1.0]])
        depth, confidence = (
            np.stack([cv2.resize(m, (width, height), interpolation=cv2.INTER_LINEAR) for m in maps])
            for maps in (p.depth, p.confidence)
        )
        kept = self.size[0] * self.size[1] / (height * width)
        return Prediction(
            images, depth, confidence, p.window_from_camera, grow @ p.intrinsics, kept_ratio=kept, read_ratio=kept
        )
