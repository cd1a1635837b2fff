"""Good Token Hunting: in global attention all queries stay, but they read the keys and values of a few diverse frames only, and in
the early layers only some patches of those ("Good Token Hunting", arXiv 2605.23892). No training.

Stage one chooses frames by farthest-point sampling, once per window. Stage two depends on the layer: the first global layers stay
within each frame, the next ones read a strided grid of patches, the others all patches of the chosen frames.

Differences from the paper: frames are described by the mean of the model's own patch tokens, not by MegaLoc (a network for place
recognition with its own weights, at 322 px); the number of frames read is a share of the window unless `frames` sets it (paper:
25); the first frame chosen is frame 0, as in the authors' code (paper: any). A measured plan (see LayerPlan.from_entropy) does not
thin any layer of a model with peaked attention throughout, such as the bundled one: then only frames are chosen, and `about`
says so.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..companions import LAYER_PLAN
from ..config import Config
from ..errors import CheckpointError
from ..tokens import Layer, ModelShape, Reach, Tokens
from .base import Accelerator

log = logging.getLogger("come_ros")

THRESHOLDS = (
    0.97,
    0.90,
)  # of the normalised entropy of attention: below, layers read a grid; below, all (D2, adaptive option)
# At most this share of the global layers is local, whatever their entropy: some layers must read other frames
MOST_LOCAL, MOST_THINNED = 0.25, 0.5

# (local, thinned), published for models with at least this many global layers
PUBLISHED, LEAST_PUBLISHED = (2, 9), 18

Descriptor = Callable[[Tokens], Tensor]
"""Tokens before the first trunk block -> (B, S, D), by which frames are distinguished."""


@dataclass(frozen=True)
class LayerPlan:
    """Global layers with index below `local` stay within their frame, those below `grid` read a strided grid, the others everything."""

    local: int
    grid: int

    @classmethod
    def published(cls, layers: int) -> LayerPlan:
        """The authors' plan for VGGT (24 global layers) and Pi3 (18): 2 and 9. For fewer layers it is scaled from VGGT's, which is
        our extrapolation."""
        if layers >= LEAST_PUBLISHED:
            return cls(*PUBLISHED)
        return cls(round(layers * PUBLISHED[0] / 24), round(layers * PUBLISHED[1] / 24))

    @classmethod
    def from_entropy(cls, entropy: Sequence[float]) -> LayerPlan:
        """From the normalised entropy of each global layer's attention: layers with spread-out attention may be thinned, layers
        with peaked attention must not."""

        def first_below(threshold: float, start: int, most: float) -> int:
            below = (i for i, h in enumerate(entropy) if i >= start and h < threshold)
            return min(next(below, len(entropy)), int(most * len(entropy)))

        local = first_below(THRESHOLDS[0], 0, MOST_LOCAL)
        return cls(local, max(local, first_below(THRESHOLDS[1], local, MOST_THINNED)))


@dataclass(frozen=True, eq=False)
class ChosenFrames:
    """frames: (B, K) int64, in ascending order, frame 0 among them. all: they are all of the window."""

    frames: Tensor
    all: bool
    index: dict[tuple[str, int], Tensor] = dataclasses.field(default_factory=dict)
    """made once a window: ("grid" or "full", tokens of a frame) -> which of the scene's tokens are read"""


class GoodTokenHunting(Accelerator):
    """layers: what each global layer reads. frames: number of frames that are read; 0: the share 1 - ratio of the window. stride:
    of the grid of patches. ratio 0 with frames 0 reduces nothing. descriptor: describes each frame, see `pooled`.
    """

    name = "good_token_hunting"
    frontier = tuple(f"ratio={ratio},stride={stride}" for stride in (2, 3) for ratio in (0.25, 0.5, 0.75))
    takes = frozenset({"keys"})

    def __init__(
        self,
        layers: LayerPlan,
        *,
        ratio: float = 0.5,
        frames: int = 0,
        stride: int = 2,
        descriptor: Descriptor | None = None,
    ) -> None:
        if not 0 <= ratio <= 1 or frames < 0 or stride < 1:
            raise ValueError(
                f"ratio is {ratio}, frames {frames} and stride {stride}, but they must be 0 .. 1, >= 0 and >= 1"
            )
        self.layers, self.ratio, self.frames, self.stride = layers, ratio, frames, stride
        self.descriptor = descriptor or pooled
        self.sites = frozenset({"backbone_in"}) if ratio > 0 or frames else frozenset()

    @classmethod
    def create(cls, config: Config, shape: ModelShape, weights: str) -> GoodTokenHunting:
        a = config.accelerator
        depth = sum(part == "global" for part in shape.trunk)
        return cls(read_layer_plan(weights, depth, a.layer_plan), ratio=a.ratio, frames=a.frames, stride=a.stride)

    def about(self) -> str:
        local, grid = self.layers.local, self.layers.grid - self.layers.local
        half = ": stage two is off, only frames are chosen" * (self.layers.grid == 0)
        layers = f"{local} global layers stay within their frame, {grid} read a grid{half}"
        return f"{self.name}: {layers}; frames are described by the model's own tokens, not by MegaLoc."

    def configured(self, config: Config) -> GoodTokenHunting:
        a = config.accelerator
        if (a.ratio, a.frames, a.stride) == (self.ratio, self.frames, self.stride):
            return self
        return GoodTokenHunting(
            self.layers, ratio=a.ratio, frames=a.frames, stride=a.stride, descriptor=self.descriptor
        )

    def how_many(self, frames: int) -> int:
        """Number of frames that are read in a window of `frames`."""
        wanted = self.frames or math.ceil((1 - self.ratio) * frames - 1e-9)
        return max(1, min(frames, wanted))

    def compress(self, tokens: Tokens, plan: None, site: str) -> tuple[Tokens, ChosenFrames]:
        """Removes no token; chooses the frames, from the full grid."""
        s = tokens.x.shape[1]
        k = self.how_many(s)
        if k == s:
            return tokens, ChosenFrames(torch.arange(s, device=tokens.x.device).expand(len(tokens.x), -1), True)
        return tokens, ChosenFrames(diverse_frames(self.descriptor(tokens), k), False)

    def reach(self, tokens: Tokens, plan: ChosenFrames | None, layer: Layer, place: Tensor | None = None) -> Reach:
        """place: (B, S, P), the token that represents each patch, where another accelerator reduced them."""
        if plan is None or layer.part != "global":
            return super().reach(tokens, plan, layer)
        kind = self.kind(layer)
        if kind == "local" or (kind == "full" and plan.all):
            return Reach(kind != "local")
        key = (kind, tokens.x.shape[2])
        if key not in plan.index:
            plan.index[key] = self._index(tokens, plan, kind, place)
        return Reach(True, plan.index[key])

    def read_ratio(self, plan: ChosenFrames | None, layer: Layer, frames: int, grid: tuple[int, int]) -> float:
        if plan is None:
            return 1.0
        kind, share = self.kind(layer), plan.frames.shape[1] / frames
        if kind == "grid":
            share *= math.prod(-(-n // self.stride) / n for n in grid)
        return 1 / frames if kind == "local" else share

    def kind(self, layer: Layer) -> str:
        """What that global layer reads: "local", "grid" or "full"."""
        return "local" if layer.index < self.layers.local else "grid" if layer.index < self.layers.grid else "full"

    def _index(self, tokens: Tokens, plan: ChosenFrames, kind: str, place: Tensor | None) -> Tensor:
        t, device = tokens.x.shape[2], tokens.x.device
        if kind == "full":
            within = torch.arange(t, device=device).expand(*plan.frames.shape, -1)
        else:
            (h, w), n = tokens.grid, tokens.special
            patch = torch.arange(h * w, device=device).view(h, w)[:: self.stride, :: self.stride].flatten()
            if place is None:
                patch = patch.expand(*plan.frames.shape, -1)
            else:
                place = place[:, :, patch]
                patch = place.gather(1, plan.frames[..., None].expand(-1, -1, place.shape[2]))
            special = torch.arange(n, device=device).expand(*plan.frames.shape, -1)
            within = torch.cat((special, n + patch), dim=2)
        return (plan.frames[..., None] * t + within).flatten(1)  # (B, K n)


def pooled(tokens: Tokens) -> Tensor:
    """(B, S, C): mean of the encoder's output over each frame's patches."""
    return tokens.x[:, :, tokens.special :].mean(2)


def diverse_frames(descriptors: Tensor, k: int) -> Tensor:
    """(B, S, D) -> (B, k), ascending: frame 0, then repeatedly the frame farthest (1 - cosine) from all chosen ones."""
    with torch.autocast(descriptors.device.type, enabled=False):  # neighbours differ in the third digit
        f = F.normalize(descriptors.float(), dim=-1)
        distance = 1 - f @ f.transpose(1, 2)  # (B, S, S)
    newest = torch.zeros(len(f), 1, dtype=torch.long, device=f.device)
    nearest, chosen = distance.new_full(f.shape[:2], torch.inf), [newest]
    for _ in range(k - 1):
        to_newest = distance.gather(1, newest[..., None].expand(-1, -1, f.shape[1]))[:, 0]
        nearest = torch.minimum(nearest, to_newest).scatter(1, newest, -torch.inf)  # no frame twice
        newest = nearest.argmax(dim=1, keepdim=True)
        chosen.append(newest)
    return torch.cat(chosen, dim=1).sort(dim=1).values


def read_layer_plan(weights: str, layers: int, path: str = "") -> LayerPlan:
    """The plan that `come_ros calibrate` wrote, for a model with this many global layers. If there is none, or it was made for
    other weights, LayerPlan.published is used and logged. path: the file; empty: the one next to the weights. Raises
    CheckpointError if it cannot be used.
    """
    file = path or LAYER_PLAN.next_to(weights)
    if not path and not os.path.isfile(file):
        plan = LayerPlan.published(layers)
        whose = (
            "the published layer plan" if layers >= LEAST_PUBLISHED else "a layer plan scaled from the published one"
        )
        log.info(
            "no attention was measured for %s: %s, %d local and %d thinned of %d (come_ros calibrate measures it)",
            weights, whose, plan.local, plan.grid - plan.local, layers,
        )  # fmt: skip
        return plan
    try:
        with open(file, encoding="utf-8") as stream:
            content = json.load(stream)
        plan, measured = LayerPlan(int(content["local"]), int(content["grid"])), len(content["entropy"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"cannot read the layer plan {file} ({error!r}): make it with `come_ros calibrate --weights {weights}`"
        ) from error
    if measured != layers or not 0 <= plan.local <= plan.grid <= layers:
        raise CheckpointError(
            f"{file} plans {measured} global layers (local {plan.local}, grid {plan.grid}), but this model has {layers}: make it "
            f"with `come_ros calibrate --weights {weights}`"
        )
    if path:
        LAYER_PLAN.fits(file, content, weights)
    elif not LAYER_PLAN.fits(file, content, weights, "until then the published layer plan is used"):
        return LayerPlan.published(layers)
    return plan
