"""PaceVGGT: a learned scorer keeps the patches that the model will attend to; some of the others are merged into them, the rest is
dropped, and all are rebuilt before the dense heads ("PaceVGGT", arXiv 2605.08371). Everything between encoder and heads runs on the
kept patches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..companions import NETWORKS
from ..config import Config
from ..kernels import KeyWeights
from ..tokens import Layer, ModelShape, Tokens
from .base import Accelerator
from .matching import Merging, best_match, merged_mean
from .pace_networks import Lookup, Restorer, TokenScorer, load_networks
from .tome import patches_of, regrouped


@dataclass(frozen=True, eq=False)
class PacePlan:
    """Routing of the P patches of each of R = B * S frames. merging: maps each patch to the kept one that it joins or is most
    similar to. merged: (R, P) bool, whether it joins. score: (R, P), 0 to 1. logit: the score before the sigmoid. lookup: used by
    restoration."""

    frames: int
    grid: tuple[int, int]
    merging: Merging
    merged: Tensor
    logit: Tensor
    lookup: Lookup | None

    @property
    def score(self) -> Tensor:
        return self.logit.sigmoid()


class Pace(Accelerator):
    """ratio: share of each frame's patches that is not kept. merge_budget: share of all patches of the window that is merged into
    kept ones instead of dropped; frames whose remaining patches score higher merge more of them. bias: whether a key counts for all
    patches that joined it. restorer: None copies the most similar kept patch. spread: weight of an even lattice relative to the
    score (both in standard deviations) in the choice of the kept patches. Important patches lie close together, and patches far
    from all kept ones are hard to rebuild. This is our addition; 0, the paper's choice by score alone, leaves a larger error than a
    random choice.
    """

    name = "pace"
    frontier = tuple(f"ratio={ratio}" for ratio in (0.25, 0.5, 0.6, 0.75))
    takes = frozenset({"tokens"})

    def __init__(
        self,
        scorer: TokenScorer,
        restorer: Restorer | None,
        *,
        ratio: float = 0.6,
        merge_budget: float = 0.3,
        bias: bool = False,
        spread: float = 0.0,
    ) -> None:
        if not (0 <= ratio <= 1 and 0 <= merge_budget <= 1):
            raise ValueError(f"ratio is {ratio} and merge_budget {merge_budget}, but both must lie in 0 .. 1")
        self.scorer, self.restorer = scorer, restorer
        self.ratio, self.merge_budget, self.bias, self.spread = ratio, merge_budget, bias, spread
        self.sites = frozenset({"backbone_in", "tap"}) if ratio > 0 else frozenset()

    @classmethod
    def create(cls, config: Config, shape: ModelShape, weights: str) -> Pace:
        a = config.accelerator
        scorer, restorer = load_networks(NETWORKS.of(weights, a.pace), shape, weights)
        return cls(scorer, restorer, ratio=a.ratio, merge_budget=a.merge_budget, spread=float(scorer.spread))

    def about(self) -> str:
        lattice = f"by score and an even lattice of weight {self.spread:g} (paper: by score)" * (self.spread > 0)
        return f"{self.name}: kept patches are chosen {lattice or 'by score'}, the others {'rebuilt' if self.restorer else 'copied'}."

    def configured(self, config: Config) -> Pace:
        a = config.accelerator
        if (a.ratio, a.merge_budget) == (self.ratio, self.merge_budget):
            return self
        return Pace(
            self.scorer, self.restorer, ratio=a.ratio, merge_budget=a.merge_budget, bias=self.bias, spread=self.spread
        )

    def to(self, device: torch.device) -> Pace:
        for network in (self.scorer, self.restorer):
            if network is not None:
                network.to(device)
        return self

    def compress(self, tokens: Tokens, plan: None, site: str) -> tuple[Tokens, PacePlan | None]:
        b, s = tokens.x.shape[:2]
        patches = patches_of(tokens)  # (R, P, C)
        p = patches.shape[1]
        keep = max(1, p - int(self.ratio * p + 1e-9))
        if keep == p:
            return tokens, None
        logit = self.scorer(patches.unflatten(0, (b, s)).unflatten(2, tokens.grid)).flatten(0, 1).flatten(1)  # (R, P)
        order = self._wanted(logit, tokens.grid).argsort(dim=1, descending=True, stable=True)
        kept = order[:, :keep].sort(dim=1).values
        merged = self._merged(logit.sigmoid().detach(), order, keep, s)
        with torch.no_grad():
            merging = Merging(_nearest(patches, kept), kept)
        lookup = None if self.restorer is None else self.restorer.lookup(patches, kept, tokens.grid)
        plan_ = PacePlan(s, tokens.grid, merging, merged, logit, lookup)
        is_kept = torch.zeros_like(merged).scatter(1, kept, True)
        # the score weights the merged patches, which is how a gradient reaches the scorer
        weight = torch.where(is_kept | merged, plan_.score.float().clamp_min(1e-4), 0.0)
        x, _ = merged_mean(patches, weight, merging)
        return regrouped(tokens, x, kept), plan_

    def _wanted(self, logit: Tensor, grid: tuple[int, int]) -> Tensor:
        """(R, P): patches with the highest values are kept."""
        if not self.spread:
            return logit
        logit, even = (
            (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True).clamp_min(1e-6)
            for x in (logit.detach().float(), lattice(grid, logit.device))
        )
        return logit + self.spread * even

    def _merged(self, score: Tensor, order: Tensor, keep: int, frames: int) -> Tensor:
        """(R, P) bool: the highest-scored patches that are not kept, as many per frame as its share of the window's budget."""
        left = score.gather(1, order[:, keep:])  # (R, P - K)
        total = min(int(self.merge_budget * frames * score.shape[1] + 1e-9), frames * left.shape[1])
        share = allotment(left.double().sum(1).unflatten(0, (-1, frames)), total, left.shape[1]).flatten()  # (R,)
        joins = torch.arange(left.shape[1], device=score.device) < share[:, None]
        return torch.zeros_like(score, dtype=torch.bool).scatter(1, order[:, keep:], joins)

    def restore(self, tokens: Tokens, plan: PacePlan | None, site: str) -> tuple[Tokens, PacePlan | None]:
        if plan is None:
            return tokens, plan
        assert tokens.layer is not None
        n, x = tokens.special, patches_of(tokens)
        if self.restorer is None or plan.lookup is None:
            x = x.gather(1, plan.merging.place[..., None].expand(-1, -1, x.shape[2]))
        else:
            x = self.restorer(x, plan.lookup, tokens.layer.part, tokens.layer.index)
        return tokens._replace(x=torch.cat((tokens.x[:, :, :n], x.unflatten(0, tokens.x.shape[:2])), dim=2)), plan

    def key_weights(self, plan: PacePlan | None, layer: Layer, keys: int) -> KeyWeights | None:
        if plan is None or not self.bias or layer.part == "encoder":
            return None
        frames = plan.frames if layer.part == "global" else 1
        # every kept patch and all that joined it
        ones = plan.merged.float().scatter(1, plan.merging.origin, 1.0)
        size = torch.zeros(plan.merging.origin.shape, device=ones.device).scatter_add(1, plan.merging.place, ones)
        special = keys // frames - size.shape[1]
        return KeyWeights(F.pad(size, (special, 0), value=1.0).unflatten(0, (-1, frames)), frames)

    def token_of_patch(self, plan: PacePlan | None) -> Tensor | None:
        return None if plan is None else plan.merging.place

    def kept_ratio(self, plan: PacePlan | None) -> float:
        return 1.0 if plan is None else plan.merging.origin.shape[1] / plan.merging.place.shape[1]

    def merged(self, plan: PacePlan | None, frames: int, grid: tuple[int, int]) -> Tensor | None:
        if plan is None:
            return None
        return torch.ones_like(plan.merged).scatter(1, plan.merging.origin, False).unflatten(1, grid)


def lattice(grid: tuple[int, int], device: torch.device) -> Tensor:
    """(P,) in 0 .. 1; the n highest are evenly spread over the grid for every n: the fractional parts of a rank-1 lattice of the
    plastic number (Roberts, "The unreasonable effectiveness of quasirandom sequences", 2018)."""
    y, x = (torch.arange(n, device=device, dtype=torch.float64) for n in grid)
    return ((0.7548776662466927 * x + 0.5698402909980532 * y[:, None]) % 1).flatten().float()


def _nearest(patches: Tensor, kept: Tensor) -> Tensor:
    """(R, P): for each patch the index of the most similar kept one; a kept patch maps to itself."""
    chosen = patches.gather(1, kept[..., None].expand(-1, -1, patches.shape[2]))
    _, place = best_match(patches, chosen)
    return place.scatter(1, kept, torch.arange(kept.shape[1], device=kept.device).expand_as(kept))


def allotment(weight: Tensor, total: int, most: int) -> Tensor:
    """Whole numbers (B, S) in proportion to weight (B, S) float64, at most `most` each, that sum to `total` <= S * most.

    What exceeds a frame's limit goes to the others; rounding is resolved by largest remainders. No host synchronisation: with
    weights in descending order, the full frames come first, and their number is found by testing all candidates at once.
    """
    weight = weight + 1e-9 * weight.sum(1, keepdim=True) + 1e-12
    s = weight.shape[1]
    ordered = weight.sort(dim=1, descending=True).values
    full = torch.arange(s, device=weight.device)  # candidates for the number of full frames
    rest = ordered.flip(1).cumsum(1).flip(1)  # total weight of the other frames
    factor = (total - most * full) / rest  # (B, S)
    first = (factor * ordered <= most + 1e-9).to(torch.uint8).argmax(dim=1, keepdim=True)
    exact = (factor.gather(1, first) * weight).clamp(0, most)
    whole = (exact + 1e-9).floor()
    remainder = torch.where(whole < most, exact - whole, -1.0)
    rank = remainder.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (whole + (rank < total - whole.sum(1, keepdim=True))).long()
