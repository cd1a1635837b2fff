"""Merging across time: patches of later frames that repeat a patch of the reference frame share its key and value in global
attention. This method is ours.

In a sliding window most of a frame's content was seen before. Every patch keeps its token and its query, so each frame keeps its
own depth. Where the encoder's features show that patches repeat a patch of frame 0, they become one key: their mean, with a weight
equal to their number (Co-Me's bias with unequal weights).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import Config
from ..kernels import KeyWeights
from ..tokens import Layer, ModelShape, Tokens
from .base import Accelerator
from .matching import Merging, averaged, merge_into, merged_sizes


@dataclass(frozen=True, eq=False)
class RepeatPlan:
    """merging: from the N = S T tokens of each scene to L keys. size: (B, L) fp32, tokens merged into each. repeats: (B * S, h, w)
    bool."""

    merging: Merging
    size: Tensor
    repeats: Tensor


class Temporal(Accelerator):
    """ratio: share of the patches of all frames but the first whose keys are merged into one of the first frame: the most similar
    ones of the whole window.
    """

    name = "temporal"
    frontier = ("ratio=0.25", "ratio=0.5", "ratio=0.75", "ratio=0.9")
    takes = frozenset({"keys"})

    def __init__(self, *, ratio: float = 0.5) -> None:
        if not 0 <= ratio <= 1:
            raise ValueError(f"ratio is {ratio}, but must lie in 0 .. 1")
        self.ratio = ratio
        self.sites = frozenset({"backbone_in"}) if ratio > 0 else frozenset()

    @classmethod
    def create(cls, config: Config, shape: ModelShape, weights: str) -> Temporal:
        return cls(ratio=config.accelerator.ratio)

    def configured(self, config: Config) -> Temporal:
        return self if config.accelerator.ratio == self.ratio else Temporal(ratio=config.accelerator.ratio)

    def compress(self, tokens: Tokens, plan: None, site: str) -> tuple[Tokens, RepeatPlan | None]:
        """Removes no token; finds the repeated patches, once per window."""
        b, s, t, _ = tokens.x.shape
        n, device = tokens.special, tokens.x.device
        patch = torch.arange(n, t, device=device)
        later = (t * torch.arange(1, s, device=device)[:, None] + patch).flatten()
        r = int(self.ratio * len(later) + 1e-9)
        if r == 0:
            return tokens, None
        merging = merge_into(tokens.x.flatten(1, 2), later, patch, r)
        # merged patches go to frame 0, whose tokens come first and keep their places
        repeats = (merging.place < t).unflatten(1, (s, t))[:, :, n:].clone()
        repeats[:, 0] = False
        return tokens, RepeatPlan(merging, merged_sizes(merging), repeats.reshape(b * s, *tokens.grid))

    def condense(
        self, q: Tensor, k: Tensor, v: Tensor, plan: RepeatPlan | None, layer: Layer
    ) -> tuple[Tensor, Tensor, Tensor]:
        if plan is None or layer.part != "global":
            return q, k, v
        k, v = averaged((k, v), plan.merging)
        return q, k, v

    def key_weights(self, plan: RepeatPlan | None, layer: Layer, keys: int) -> KeyWeights | None:
        return None if plan is None or layer.part != "global" else KeyWeights(plan.size, varies=True)

    def read_ratio(self, plan: RepeatPlan | None, layer: Layer, frames: int, grid: tuple[int, int]) -> float:
        return 1.0 if plan is None else plan.merging.share_left(frames * grid[0] * grid[1])

    def merged(self, plan: RepeatPlan | None, frames: int, grid: tuple[int, int]) -> Tensor | None:
        return None if plan is None else plan.repeats
