"""Every backbone at a very small size, with random weights; all encoders have width WIDTH."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..backbones.checkpoint import MODELS
from ..backbones.da3 import DA3Sizes
from ..backbones.lingbot import LingBotSizes
from ..backbones.mapanything import MapAnythingSizes
from ..backbones.model import GeometryModel
from ..backbones.pi3 import Pi3Sizes
from ..backbones.vggt import VGGTSizes

WIDTH = 48

TINY = {
    "vggt": VGGTSizes(
        image_side=70, native_side=70, dim=WIDTH, encoder_depth=2, encoder_heads=3, depth=4, heads=3,
        taps=(0, 1, 2, 3), camera_depth=1, camera_heads=3, features=16, channels=(16, 16, 16, 16),
    ),
    "lingbot": LingBotSizes(
        image_side=70, native_side=70, dim=WIDTH, encoder_depth=2, encoder_heads=3, depth=4, heads=3,
        taps=(0, 1, 2, 3), camera_depth=1, camera_heads=3, features=16, channels=(16, 16, 16, 16), rope_split=(4, 6, 6),
    ),
    "mapanything": MapAnythingSizes(
        image_side=70, native_side=70, dim=WIDTH, encoder_depth=2, encoder_heads=3, trunk_dim=WIDTH, depth=4, heads=3,
        taps=(1, 2), features=16, channels=(16, 16, 16, 16), pose_dim=16, scale_dim=8, map_dims=(16, 16), vector_dims=(16, 16),
    ),
    "pi3": Pi3Sizes(
        image_side=70, native_side=70, dim=WIDTH, encoder_depth=2, encoder_heads=3, depth=4, heads=3, head_dim=WIDTH,
        head_depth=1, head_heads=3, map_out=16, camera_out=16,
    ),
    "da3": DA3Sizes(
        image_side=70, native_side=70, dim=WIDTH, heads=3, depth=6, alternate=2, taps=(0, 0, 1, 1), features=16,
        channels=(16, 16, 16, 16),
    ),
}  # fmt: skip


def tiny(backbone: str, seed: int = 0, std: float = 0.1, **sizes: object) -> GeometryModel:
    """A small model of that kind; `sizes` override TINY's. Its cameras look ahead, so that the pipeline accepts them."""
    torch.manual_seed(seed)
    model = MODELS[backbone](replace(TINY[backbone], **sizes))  # type: ignore[call-arg]
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model.eval()
