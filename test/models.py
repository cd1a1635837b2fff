"""Small models for tests (those of come_ros.testing), and what the bundled model, whatever its native side, makes of an image."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from come_ros.backbones.checkpoint import bundled_weights, load_model, load_vggt
from come_ros.backbones.graphs import Graphs, _Recording, put_together, taken_apart
from come_ros.backbones.model import GeometryModel
from come_ros.backbones.vggt import VGGT, VGGTSizes
from come_ros.camera.preprocess import patch_grid_size
from come_ros.testing.models import TINY, WIDTH, tiny

__all__ = [
    "ROUNDING",
    "TINY",
    "WIDTH",
    "bundled_as_stream",
    "bundled_size",
    "kept_by_come",
    "recorded_sizes",
    "tiny",
]

# Of the largest value: float32 sums of some hundred terms, which each CPU adds up in an order of its own. A mistake is far larger.
ROUNDING = 5e-6


def recorded_sizes(kind: type[VGGTSizes], config: dict[str, Any], taps: Sequence[int], **more: Any) -> Any:
    """The sizes of a VGGT-like model as a parity fixture has them. kind: VGGTSizes, or of another model with the same trunk and heads."""
    return kind(
        image_side=config["img_size"],
        patch=config["patch_size"],
        dim=config["embed_dim"],
        encoder_depth=config["vit"]["depth"],
        encoder_heads=config["vit"]["num_heads"],
        depth=config["aggregator"]["depth"],
        heads=config["aggregator"]["num_heads"],
        registers=config["num_register_tokens"],
        taps=tuple(taps),
        camera_depth=config["camera_head"]["trunk_depth"],
        camera_heads=config["camera_head"]["num_heads"],
        camera_iterations=config["camera_head"]["num_iterations"],
        features=config["dpt"]["features"],
        channels=tuple(config["dpt"]["out_channels"]),
        **more,
    )


def bundled_size(width: int, height: int) -> tuple[int, int]:
    """(W, H) of the image that the bundled model is given for one of `width` x `height` px."""
    model = _bundled()
    return patch_grid_size(width, height, model.native_side, model.patch)


@functools.cache
def _bundled() -> VGGT:
    return load_vggt(bundled_weights())


def bundled_as_stream() -> GeometryModel:
    """The bundled VGGT with frames one by one, untrained for it."""
    return load_model("lingbot", bundled_weights()).eval()


def kept_by_come(width: int, height: int, group: int, ratio: float) -> float:
    """Share of the tokens that Co-Me leaves of a (height, width) image in the patches of the bundled model: whole square groups become
    one."""
    rows, columns = height // _bundled().patch, width // _bundled().patch
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
