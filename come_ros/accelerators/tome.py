"""ToMe: in every block the most similar tokens are merged, so the number of tokens falls from block to block (Bolya et al., "Token
Merging: Your ViT but Faster", ICLR 2023). No training. Similarity is that of the keys of the preceding attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Config
from ..kernels import KeyWeights, choose, restore_tokens
from ..tokens import Layer, ModelShape, Tokens
from .base import Accelerator
from .matching import Merging, bipartite, merge_into, merged_mean, merged_sizes, unmerged

# fused: as published, tokens merge between attention and MLP and stay merged up to the taps.
# per_layer: tokens are merged before every attention and every MLP and unmerged after it ("Token Merging for Fast Stable Diffusion", 2023).
MODES = {
    "fused": frozenset({"residual", "encoder_end", "backbone_in", "tap"}),
    "per_layer": frozenset({"before_attention", "after_attention", "before_mlp", "after_mlp"}),
}


@dataclass(frozen=True, eq=False)
class SizePlan:
    """How the P patches of each of R = B * S frames are merged. merging: from P to L tokens. size: (R, L) fp32, patches in each."""

    frames: int
    grid: tuple[int, int]
    merging: Merging
    size: Tensor

    @classmethod
    def whole(cls, tokens: Tokens) -> SizePlan:
        """No patch is merged."""
        b, s = tokens.x.shape[:2]
        patches = tokens.grid[0] * tokens.grid[1]
        merging = unmerged(b * s, patches, tokens.x.device)
        return cls(s, tokens.grid, merging, torch.ones(b * s, patches, device=tokens.x.device))

    def of_frame(self, index: int) -> SizePlan:
        """One frame of a scene."""
        row = slice(index, index + 1)
        merging = Merging(*(t[row].clone() for t in self.merging))
        return SizePlan(1, self.grid, merging, self.size[row].clone())

    @staticmethod
    def joined(plans: Sequence[SizePlan]) -> SizePlan:
        """Frames as one scene."""
        merging = Merging(*(torch.cat(parts) for parts in zip(*(p.merging for p in plans), strict=True)))
        return SizePlan(len(plans), plans[0].grid, merging, torch.cat([p.size for p in plans]))

    def key_weights(self, part: str, keys: int) -> KeyWeights:
        """For attention within a frame, or over the frames of a scene."""
        frames = self.frames if part == "global" else 1
        special = keys // frames - self.size.shape[1]
        weight = F.pad(self.size, (special, 0), value=1.0).unflatten(0, (-1, frames))
        return KeyWeights(weight, frames, varies=True)


class ToMe(Accelerator):
    """blocks: the part ("encoder", "frame" or "global") of every block of the model, in the order they run. ratio: share of each
    frame's patches that is merged: by the last block in mode "fused", where each block merges at most half; around every module in
    mode "per_layer", where at most three of each 2x2 cell are merged. schedule: "constant" or "decreasing" (linearly to none) over
    the blocks. bias: proportional attention. kernels: auto, cupy or torch, see kernels.choose.
    """

    name = "tome"
    frontier = ("ratio=0.25", "ratio=0.5", "ratio=0.75")
    takes = frozenset({"tokens", "keys"})

    def __init__(
        self,
        blocks: Sequence[str],
        *,
        ratio: float = 0.5,
        mode: str = "fused",
        schedule: str = "constant",
        bias: bool = True,
        kernels: str = "auto",
    ) -> None:
        if not 0 <= ratio <= 1:
            raise ValueError(f"ratio is {ratio}, but must lie in 0 .. 1")
        if mode not in MODES or schedule not in ("constant", "decreasing"):
            raise ValueError(
                f"mode {mode!r} must be one of {', '.join(MODES)}, schedule {schedule!r} constant or decreasing"
            )
        self.blocks, self.ratio, self.mode, self.schedule, self.bias = tuple(blocks), ratio, mode, schedule, bias
        self.kernels = kernels
        self.sites = MODES[mode] if ratio > 0 else frozenset()

    @classmethod
    def create(cls, config: Config, shape: ModelShape, weights: str) -> ToMe:
        a = config.accelerator
        blocks = ["encoder"] * shape.encoder_depth + list(shape.trunk)
        return cls(blocks, ratio=a.ratio, mode=a.mode, schedule=a.schedule, kernels=config.kernels)

    def about(self) -> str:
        return f"{self.name}: ratio is the share merged by the last of all blocks (paper: r tokens in each), within frames only."

    def configured(self, config: Config) -> ToMe:
        ratio = config.accelerator.ratio
        if ratio == self.ratio:
            return self
        kept = {name: getattr(self, name) for name in ("mode", "schedule", "bias", "kernels")}
        return ToMe(self.blocks, ratio=ratio, **kept)

    def to(self, device: torch.device) -> ToMe:
        choose(self.kernels, device)
        return self

    def window_bound(self, encoder_depth: int) -> str:
        return ""  # tokens are matched within a frame

    def frame_plan(self, plan: SizePlan | None, index: int) -> SizePlan | None:
        return None if plan is None else plan.of_frame(index)

    def join_plans(self, plans: Sequence[SizePlan | None]) -> SizePlan | None:
        return None if plans[0] is None else SizePlan.joined([p for p in plans if p is not None])

    def compress(self, tokens: Tokens, plan: SizePlan | None, site: str) -> tuple[Tokens, SizePlan | None]:
        if site == "residual":
            return self._merge_more(tokens, plan)
        if site == "before_attention":
            plan = self._cells(tokens)
        if plan is None:
            return tokens, plan
        # also at backbone_in: known geometry may have been added to patches that were merged
        ones = torch.ones(plan.merging.place.shape, device=tokens.x.device)
        x, _ = merged_mean(patches_of(tokens), ones, plan.merging)
        return regrouped(tokens, x, plan.merging.origin), plan

    def restore(self, tokens: Tokens, plan: SizePlan | None, site: str) -> tuple[Tokens, SizePlan | None]:
        if plan is None:
            return tokens, plan
        x = restore_tokens(
            tokens.x.flatten(0, 1).contiguous(), plan.merging.place.contiguous(), tokens.special, self.kernels
        )
        return tokens._replace(x=x.unflatten(0, tokens.x.shape[:2])), plan

    def key_weights(self, plan: SizePlan | None, layer: Layer, keys: int) -> KeyWeights | None:
        return None if plan is None or not self.bias else plan.key_weights(layer.part, keys)

    def kept_ratio(self, plan: SizePlan | None) -> float:
        """Mean over the blocks of the trunk."""
        if plan is None:
            return 1.0
        patches = plan.merging.place.shape[1]
        if self.mode == "per_layer":
            return plan.size.shape[1] / patches
        left, after = patches, []
        for part, r in zip(self.blocks, self.merged_by_block(patches), strict=True):
            left -= min(r, left // 2)
            after += [] if part == "encoder" else [left]
        return sum(after) / len(after) / patches

    def merged(self, plan: SizePlan | None, frames: int, grid: tuple[int, int]) -> Tensor | None:
        return None if plan is None else (plan.size.gather(1, plan.merging.place) > 1).unflatten(1, grid)

    def merged_by_block(self, patches: int) -> list[int]:
        """Number of tokens of a frame that each block should merge, in the order in which blocks run."""
        n = len(self.blocks)
        total = int(self.ratio * patches + 1e-9)
        share = [1.0] * n if self.schedule == "constant" else [float(n - 1 - i) for i in range(n)]
        whole = sum(share) or 1.0
        up_to = [int(total * sum(share[: i + 1]) / whole + 1e-9) for i in range(n)]
        return [after - before for before, after in zip([0, *up_to], up_to, strict=False)]

    def _merge_more(self, tokens: Tokens, plan: SizePlan | None) -> tuple[Tokens, SizePlan | None]:
        """Merges as published, between attention and MLP of one block."""
        assert tokens.layer is not None and tokens.keys is not None
        ours = [i for i, part in enumerate(self.blocks) if part == tokens.layer.part]
        left = tokens.x.shape[2] - tokens.special
        r = min(self.merged_by_block(tokens.grid[0] * tokens.grid[1])[ours[tokens.layer.index]], left // 2)
        if r == 0:
            return tokens, plan
        plan = plan or SizePlan.whole(tokens)
        now = bipartite(tokens.keys[:, :, tokens.special :].flatten(0, 1), r)
        x, size = merged_mean(patches_of(tokens), plan.size, now)
        return regrouped(tokens, x, now.origin), replace(plan, merging=plan.merging.then(now), size=size)

    def _cells(self, tokens: Tokens) -> SizePlan | None:
        """For one block: one patch of each 2x2 cell (a different one in the next block) is a target; the others may be merged into
        it."""
        assert tokens.layer is not None
        patches = tokens.grid[0] * tokens.grid[1]
        source, target = cells(tokens.grid, tokens.layer.index, tokens.x.device)
        r = min(int(self.ratio * patches + 1e-9), len(source))
        if r == 0:
            return None
        merging = merge_into(patches_of(tokens), source, target, r)
        return SizePlan(tokens.x.shape[1], tokens.grid, merging, merged_sizes(merging))


def patches_of(tokens: Tokens) -> Tensor:
    """(R, P, C): the tokens after the special ones."""
    return tokens.x[:, :, tokens.special :].flatten(0, 1)


def regrouped(tokens: Tokens, patches: Tensor, origin: Tensor) -> Tokens:
    """`tokens` with its patches replaced by (R, L, C), each at the position of patch origin (R, L)."""
    b, s = tokens.x.shape[:2]
    n = tokens.special
    index = origin.unflatten(0, (b, s))[..., None].expand(-1, -1, -1, 2)
    positions = tokens.positions.expand(b, s, -1, -1)
    positions = torch.cat((positions[:, :, :n], positions[:, :, n:].gather(2, index)), dim=2)
    return tokens._replace(x=torch.cat((tokens.x[:, :, :n], patches.unflatten(0, (b, s))), dim=2), positions=positions)


def cells(grid: tuple[int, int], turn: int | Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Patches of a grid by 2x2 cells: (m,) those that may be merged, and (n,) one of each cell, the target. turn: which of the four
    is the target, 0 to 3, for all cells or for each (ceil(h / 2), ceil(w / 2)); cells at an odd edge have only one candidate."""
    h, w = grid
    rows = (torch.arange(0, h, 2, device=device)[:, None] + turn % 2).clamp_max(h - 1)
    columns = (torch.arange(0, w, 2, device=device) + turn // 2 % 2).clamp_max(w - 1)
    target = (rows * w + columns).flatten()
    stays = torch.zeros(h * w, dtype=torch.bool, device=device).index_fill_(0, target, True)
    source = stays.to(torch.uint8).argsort(stable=True)[: h * w - len(target)]
    return source, target
