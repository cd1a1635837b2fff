"""Co-Me: averages patches in small groups where the model will be least confident ("Co-Me: Confidence-Guided Token Merging for
Visual Geometric Transformers", 2025).

The two published versions choose the groups differently; RULES has both. Differences from both: a merged token sits at the exact
centre of its group (v1: cut to whole patches, as here with its rule); patches at the right and lower edges that do not fill a group
stay single (v2 rejects such grids, in v1 groups wrap around the end of a row); `edge_weight` and the predictor's scopes are our
additions.

A predictor reads the tokens after one encoder block and ranks the groups of each frame; each of the lowest-ranked groups becomes
one token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..companions import PREDICTOR
from ..config import Config
from ..kernels import KeyWeights, choose, group_members, merge_layout, merge_positions, merge_tokens, restore_tokens
from ..tokens import Layer, ModelShape, Tokens
from .base import Accelerator
from .confidence import load_predictor

# fused: merged from the planning block to the end; the full grid only between encoder and trunk and at the taps.
# per_layer: the residual stream keeps all patches; each attention and each MLP runs on merged tokens.
MODES = {
    "fused": frozenset({"encoder_k", "encoder_end", "backbone_in", "tap"}),
    "per_layer": frozenset({"before_attention", "after_attention", "before_mlp", "after_mlp"}),
}


RULES = {
    "static": "as many groups of accelerator.group in every frame (v1's budget, v2's groups; lengths never depend on images)",
    "v1": "the first release: groups of 4 patches in a row, as many in every frame",
    "v2": "the second release: groups of accelerator.group below one quantile of all the window's groups",
}
V1_GROUP = (1, 4)


_ROWS = ("merged", "source", "rev", "confidence")  # of a plan, one row for each frame


@dataclass(frozen=True, eq=False)
class MergePlan:
    """Which groups are merged in each of R = B * S frames (B scenes of S frames).

    merged: (R, M) bool. source (R, L), rev (R, P): see kernels.merge_layout. tail: number of merged groups per frame, None if
    frames differ. weight: (B, S, L) float32, how many patches each token represents. confidence: (R, h, w), as predicted.
    """

    frames: int
    grid: tuple[int, int]
    group: tuple[int, int]
    merged: Tensor
    source: Tensor
    rev: Tensor
    weight: Tensor
    tail: int | None
    confidence: Tensor
    keys: dict[tuple[str, int], KeyWeights] = dataclasses.field(default_factory=dict)
    """computed once per window: (part, special tokens) -> weights of the keys"""

    def of_frame(self, index: int) -> MergePlan:
        """One frame of a scene."""
        row, frame = slice(index, index + 1), (slice(None), slice(index, index + 1))
        rows = {name: getattr(self, name)[row].clone() for name in _ROWS}
        return dataclasses.replace(self, frames=1, weight=self.weight[frame].clone(), keys={}, **rows)

    @staticmethod
    def joined(plans: Sequence[MergePlan]) -> MergePlan:
        """Frames as one scene."""
        rows = {name: torch.cat([getattr(p, name) for p in plans]) for name in _ROWS}
        weight = torch.cat([p.weight for p in plans], dim=1)
        return dataclasses.replace(plans[0], frames=weight.shape[1], weight=weight, keys={}, **rows)

    def key_weights(self, part: str, special: int) -> KeyWeights:
        """For attention within a frame, or over the frames of a scene."""
        if (part, special) not in self.keys:
            weight = F.pad(self.weight, (special, 0), value=1.0)  # (B, S, special + L)
            weight = weight if part == "global" else weight.flatten(0, 1)[:, None]
            size = float(self.group[0] * self.group[1])
            self.keys[part, special] = KeyWeights(weight, weight.shape[1], self.tail, size)
        return self.keys[part, special]


class CoMe(Accelerator):
    """predictor: network from (B, S, h, w, C) to confidence (B, S, h, w). block: index of the encoder block that the predictor
    reads (and was trained on). ratio: share of the complete groups that is merged, 0 to 1. group: (rows, columns) of patches. mode:
    see MODES. bias: whether a merged key counts for all patches it represents (turned off only for ablation). budget: "frame"
    merges the same number of groups in each frame, so that shapes are static; "window" spends the same total where confidence is
    lowest; "quantile" merges what is strictly below the quantile `ratio` of the window's groups. rule: see RULES; v1 and v2 set the
    budget, v1 also the group. kernels: auto, cupy or torch, see kernels.choose. edge_weight: weight of a group's contrast, relative
    to its confidence (weight 1): groups with structure are kept and as many others are merged instead. 0 is plain Co-Me.
    """

    name = "come"
    frontier = (
        *(f"ratio={ratio},group={group},edge_weight={weight}" for weight in (0, 3) for group in ("2x2", "3x3")
          for ratio in (0.25, 0.5, 0.75)),
        *(f"ratio={ratio},rule={rule}" for rule in ("v1", "v2") for ratio in (0.25, 0.5, 0.75)),
    )  # fmt: skip
    takes = frozenset({"tokens"})

    def __init__(
        self,
        predictor: nn.Module,
        block: int,
        *,
        ratio: float = 0.5,
        group: tuple[int, int] = (3, 3),
        mode: str = "fused",
        bias: bool = True,
        budget: str = "frame",
        kernels: str = "auto",
        edge_weight: float = 0.0,
        rule: str = "static",
    ) -> None:
        if not 0 <= edge_weight < float("inf"):
            raise ValueError(f"edge_weight is {edge_weight}, but must be finite and not negative")
        if not 0 <= ratio <= 1:
            raise ValueError(f"ratio is {ratio}, but must lie in 0 .. 1")
        if mode not in MODES or budget not in ("frame", "window", "quantile") or rule not in RULES:
            raise ValueError(
                f"mode {mode!r} must be one of {', '.join(MODES)}, budget {budget!r} frame, window or quantile, rule {rule!r} one of "
                f"{', '.join(RULES)}"
            )
        if rule != "static":
            budget = "quantile" if rule == "v2" else "frame"
            group = V1_GROUP if rule == "v1" else group
        self.predictor, self.block = predictor, block
        self.ratio, self.group, self.mode, self.bias, self.budget = ratio, group, mode, bias, budget
        self.kernels, self.edge_weight, self.rule = kernels, edge_weight, rule
        # nothing to merge: the predictor does not run and no bit changes
        self.sites = MODES[mode] if ratio > 0 else frozenset()

    @classmethod
    def create(cls, config: Config, shape: ModelShape, weights: str) -> CoMe:
        predictor, block = load_predictor(PREDICTOR.of(weights, config.accelerator.predictor), shape, weights)
        return cls(predictor, block, mode=config.accelerator.mode, kernels=config.kernels, **cls.dynamic(config))

    @classmethod
    def dynamic(cls, config: Config) -> dict[str, Any]:
        """The parameters of `config` that may change at run time, as constructor arguments."""
        return dynamic_parameters(config)

    def configured(self, config: Config) -> CoMe:
        wanted = self.dynamic(config)
        if all(getattr(self, name) == value for name, value in wanted.items()):
            return self
        kept = {name: getattr(self, name) for name in ("mode", "bias", "budget", "kernels")}
        if wanted["rule"] != self.rule:  # the rule sets the budget
            kept["budget"] = "frame"
        return type(self)(self.predictor, self.block, **kept, **wanted)

    def about(self) -> str:
        return (
            f"{self.name}, rule {self.rule}: {RULES[self.rule]}"
            + (", groups on edges are kept" * (self.edge_weight > 0))
            + "."
        )

    def to(self, device: torch.device) -> CoMe:
        """Raises ConfigError if the requested kernels are not available on the device."""
        self.predictor.to(device)
        choose(self.kernels, device)  # compiled now, not in the first window
        return self

    def plan_block(self, encoder_depth: int) -> int | None:
        return self.block if self.ratio > 0 else None

    def plan(self, features: Tokens) -> MergePlan | None:
        """Selects the least confident groups: k = floor(ratio M) per frame, or as `budget` says. None if no group is complete or k
        is 0."""
        (h, w), (gh, gw) = features.grid, self.group
        groups = (h // gh) * (w // gw)
        k = int(self.ratio * groups + 1e-9)
        if (
            (k == 0 and self.budget != "quantile") or groups == 0 or min(h, w) < 2
        ):  # the predictor's convolutions reflect at the border
            return None
        patches = features.x[:, :, features.special :]
        confidence = self.predictor(patches.unflatten(2, features.grid))  # (B, S, h, w)
        contrast = group_contrast(patches, features.grid, self.group) if self.edge_weight > 0 else None
        return make_plan(confidence, self.group, k, self.budget, self.kernels, contrast, self.edge_weight, self.ratio)

    def window_bound(self, encoder_depth: int) -> str:
        return f"with budget {self.budget}, what is merged in a frame depends on the others" * (self.budget != "frame")

    def frame_plan(self, plan: MergePlan | None, index: int) -> MergePlan | None:
        return None if plan is None else plan.of_frame(index)

    def join_plans(self, plans: Sequence[MergePlan | None]) -> MergePlan | None:
        return None if plans[0] is None else MergePlan.joined([p for p in plans if p is not None])

    def compress(self, tokens: Tokens, plan: MergePlan | None, site: str) -> tuple[Tokens, MergePlan | None]:
        if plan is None:
            return tokens, plan
        b, s = tokens.x.shape[:2]
        how = (plan.source, tokens.special, plan.grid, plan.group, self.kernels)
        x = merge_tokens(tokens.x.flatten(0, 1).contiguous(), *how)
        positions = tokens.positions  # (B or 1, S or 1, T, 2)
        if positions.shape[:2] != (1, 1):
            positions = positions.expand(b, s, -1, -1)
        positions = merge_positions(positions.flatten(0, 1).contiguous(), *how)
        if self.rule == "v1":
            positions = positions.floor()
        return tokens._replace(x=x.unflatten(0, (b, s)), positions=positions.unflatten(0, (b, s))), plan

    def restore(self, tokens: Tokens, plan: MergePlan | None, site: str) -> tuple[Tokens, MergePlan | None]:
        if plan is None:
            return tokens, plan
        b, s = tokens.x.shape[:2]
        x = restore_tokens(tokens.x.flatten(0, 1).contiguous(), plan.rev, tokens.special, self.kernels)
        return tokens._replace(x=x.unflatten(0, (b, s))), plan

    def key_weights(self, plan: MergePlan | None, layer: Layer, keys: int) -> KeyWeights | None:
        if plan is None or not self.bias:
            return None
        part = "global" if layer.part == "global" else "frame"  # encoder blocks attend within a frame too
        special = keys // (plan.frames if part == "global" else 1) - plan.source.shape[1]
        return plan.key_weights(part, special)

    def token_of_patch(self, plan: MergePlan | None) -> Tensor | None:
        return None if plan is None else plan.rev

    def kept_ratio(self, plan: MergePlan | None) -> float:
        return 1.0 if plan is None else plan.source.shape[1] / (plan.grid[0] * plan.grid[1])

    def merged(self, plan: MergePlan | None, frames: int, grid: tuple[int, int]) -> Tensor | None:
        return None if plan is None else merged_patches(plan)


def dynamic_parameters(config: Config) -> dict[str, Any]:
    """The dynamic parameters of Co-Me and its subclasses, as constructor arguments."""
    rows, columns = config.accelerator.group.split("x")
    how = config.accelerator
    group = V1_GROUP if how.rule == "v1" else (int(rows), int(columns))
    return {"ratio": how.ratio, "group": group, "edge_weight": how.edge_weight, "rule": how.rule}


def make_plan(
    confidence: Tensor,
    group: tuple[int, int],
    k: int,
    budget: str = "frame",
    kernels: str = "auto",
    contrast: Tensor | None = None,
    edge_weight: float = 0.0,
    ratio: float = 0.0,
) -> MergePlan:
    """Merges the k groups with the lowest mean confidence (B, S, h, w) in each frame, or S k in each window (budget "window"), or
    all groups strictly below the quantile `ratio` of each window (budget "quantile").

    contrast: (R, M), larger where a group holds structure; the groups are then ordered by rank of confidence + edge_weight * rank
    of contrast. Ties go to the first group. With budget "frame" shapes never depend on values: no host synchronisation.
    """
    b, s, h, w = confidence.shape
    members, _ = group_members((h, w), group, confidence.device)
    means = confidence.reshape(b * s, -1)[:, members.flatten()].unflatten(1, members.shape).float().mean(2)  # (R, M)
    ranked = means if budget == "frame" else means.view(b, -1)
    if contrast is not None and edge_weight > 0:
        ranked = _ranks(ranked) + edge_weight * _ranks(contrast.reshape_as(ranked))
    if budget == "quantile":
        merged = (ranked < ranked.quantile(ratio, dim=1, keepdim=True)).view(b * s, -1)
    else:
        lowest = ranked.argsort(dim=1, stable=True)[:, : k if budget == "frame" else s * k]
        merged = torch.zeros_like(ranked, dtype=torch.bool).scatter_(1, lowest, True).view(b * s, -1)
    return plan_of(merged, s, (h, w), group, k if budget == "frame" else None, confidence.flatten(0, 1), kernels)


def _ranks(values: Tensor) -> Tensor:
    """Rank of each value within its row (R, M), from 0, as float32."""
    return values.argsort(dim=1, stable=True).argsort(dim=1).float()


def group_contrast(patches: Tensor, grid: tuple[int, int], group: tuple[int, int]) -> Tensor:
    """(B, S, P, C) tokens -> (R, M): how much the tokens of each complete group differ: the mean of 1 - cosine to their mean. It is
    large where a merged token would lose structure, such as a pole in front of a wall."""
    members, _ = group_members(grid, group, patches.device)
    x = F.normalize(patches.flatten(0, 1).float(), dim=-1)  # (R, P, C)
    # the length of the mean of unit vectors equals their mean cosine to it
    mean = torch.zeros(len(x), len(members), x.shape[2], device=x.device)
    for j in range(members.shape[1]):  # n small gathers, no copy of all tokens
        mean += x[:, members[:, j]]
    return 1 - mean.norm(dim=-1) / members.shape[1]


def plan_of(
    merged: Tensor,
    frames: int,
    grid: tuple[int, int],
    group: tuple[int, int],
    k: int | None,
    confidence: Tensor,
    kernels: str = "auto",
) -> MergePlan:
    """The plan that merges the groups marked in (R, M) `merged`; k: how many per row, None if rows differ."""
    n, patches = group[0] * group[1], grid[0] * grid[1]
    fewest = k if k is not None else int(merged.sum(1).min())  # rows that merge more are padded
    source, rev = merge_layout(merged, grid, group, patches - fewest * (n - 1), kernels)
    weight = torch.where(source >= patches, float(n), torch.where(source < 0, 0.0, 1.0))
    return MergePlan(frames, grid, group, merged, source, rev, weight.unflatten(0, (-1, frames)), k, confidence)


def merged_patches(plan: MergePlan) -> Tensor:
    """(R, h, w) bool: True for patches that share their token with others."""
    (h, w), (gh, gw) = plan.grid, plan.group
    mask = plan.merged.view(len(plan.merged), h // gh, w // gw).repeat_interleave(gh, 1).repeat_interleave(gw, 2)
    return F.pad(mask, (0, w % gw, 0, h % gh))
