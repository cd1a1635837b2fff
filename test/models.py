"""Every backbone at a size that a test runs in no time, with random weights; all their encoders are 48 wide.

And what the bundled model, whatever its native side, makes of an image.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from come_ros.backbones.checkpoint import MODELS, bundled_weights, load_vggt
from come_ros.backbones.da3 import DA3Sizes
from come_ros.backbones.graphs import Graphs, _Recording, put_together, taken_apart
from come_ros.backbones.mapanything import MapAnythingSizes
from come_ros.backbones.model import GeometryModel
from come_ros.backbones.pi3 import Pi3Sizes
from come_ros.backbones.vggt import VGGTSizes
from come_ros.camera.preprocess import patch_grid_size

WIDTH = 48

TINY = {
    "vggt": VGGTSizes(
        image_side=70, native_side=70, dim=WIDTH, encoder_depth=2, encoder_heads=3, depth=4, heads=3,
        taps=(0, 1, 2, 3), camera_depth=1, camera_heads=3, features=16, channels=(16, 16, 16, 16),
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
    """A small model of that kind; `sizes` differ from TINY's. Its cameras look ahead, so that the pipeline takes them for such."""
    from dataclasses import replace

    torch.manual_seed(seed)
    model = MODELS[backbone](replace(TINY[backbone], **sizes))  # type: ignore[call-arg]
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model.eval()


def bundled_size(width: int, height: int) -> tuple[int, int]:
    """(W, H) of the image that the bundled model is given for one of `width` x `height` px."""
    return patch_grid_size(width, height, load_vggt(bundled_weights()).native_side, 14)


def kept_by_come(width: int, height: int, group: int, ratio: float) -> float:
    """Share of the tokens that Co-Me leaves of a (height, width) image in patches of 14 px: whole square groups become one."""
    rows, columns = height // 14, width // 14
    merged = int(ratio * (rows // group) * (columns // group))
    return 1 - merged * (group**2 - 1) / (rows * columns)


class CountedGraphs(Graphs):
    """CUDA graphs on the CPU: a recording replays by calling again and writing over what it gave. Counts what it does."""

    all: ClassVar[list[CountedGraphs]] = []

    def __init__(self, device):
        super().__init__(device)
        self.recorded, self.replayed = [], []
        self.all.append(self)

    def _record(self, function, form, tensors):
        given = [t.clone() for t in tensors]
        result = function(*put_together(form, iter(given)))
        self.recorded.append(function.__name__)
        counted = self.replayed

        class Graph:
            def replay(self):
                counted.append(function.__name__)
                again = function(*put_together(form, iter(given)))
                for ours, new in zip(taken_apart(result)[1], taken_apart(again)[1], strict=True):
                    ours.copy_(new)

        return _Recording(Graph(), given, result)


def graphed(backbone, monkeypatch):
    """A copy of `backbone` on the CPU that runs as one with optimize graph does on a GPU."""
    monkeypatch.setattr("come_ros.backbones.torch_backbone.Graphs", CountedGraphs)
    monkeypatch.setattr(CountedGraphs, "all", [])
    backbone._graphs, backbone._dense = CountedGraphs(torch.device("cpu")), []
    backbone.description["optimize"] = "graph"
    return backbone
