"""Combines two accelerators: one that reduces the patches, and one that chooses whose keys are read across frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Config
from ..errors import ConfigError
from ..kernels import KeyWeights, weighted_attention
from ..tokens import Layer, Reach, Tokens
from .base import Accelerator
from .good_token_hunting import GoodTokenHunting


class Both(NamedTuple):
    """The plans of both."""

    tokens: Any
    keys: Any


class Combined(Accelerator):
    """`reducer` reduces the tokens, `hunter` chooses keys among them. A patch on the hunter's grid is represented by its token,
    with weight 1; where all tokens of a frame are read, a token counts for all patches it represents.
    """

    takes = frozenset({"tokens", "keys"})

    def __init__(self, reducer: Accelerator, hunter: GoodTokenHunting) -> None:
        self.reducer, self.hunter = reducer, hunter
        self.name = f"{reducer.name}+{hunter.name}"
        self.sites = reducer.sites | hunter.sites

    def about(self) -> str:
        return " ".join(filter(None, (self.reducer.about(), self.hunter.about())))

    def configured(self, config: Config) -> Combined:
        reducer, hunter = self.reducer.configured(config), self.hunter.configured(config)
        return self if (reducer, hunter) == (self.reducer, self.hunter) else Combined(reducer, hunter)

    def to(self, device: torch.device) -> Combined:
        return Combined(self.reducer.to(device), self.hunter.to(device))

    def plan_block(self, encoder_depth: int) -> int | None:
        return self.reducer.plan_block(encoder_depth)

    def plan(self, features: Tokens) -> Both:
        return Both(self.reducer.plan(features), None)

    def window_bound(self, encoder_depth: int) -> str:
        return self.reducer.window_bound(encoder_depth) or self.hunter.window_bound(encoder_depth)

    def frame_plan(self, plan: Both | None, index: int) -> Both | None:
        return None if plan is None else Both(self.reducer.frame_plan(plan.tokens, index), None)

    def join_plans(self, plans: Sequence[Both | None]) -> Both | None:
        return None if plans[0] is None else Both(self.reducer.join_plans([p.tokens for p in plans if p]), None)

    def compress(self, tokens: Tokens, plan: Both | None, site: str) -> tuple[Tokens, Both]:
        plan = plan or Both(None, None)
        if site in self.hunter.sites:  # first: it looks at whole frames
            tokens, keys = self.hunter.compress(tokens, plan.keys, site)
            plan = plan._replace(keys=keys)
        if site in self.reducer.sites:
            tokens, own = self.reducer.compress(tokens, plan.tokens, site)
            plan = plan._replace(tokens=own)
        return tokens, plan

    def restore(self, tokens: Tokens, plan: Both | None, site: str) -> tuple[Tokens, Both]:
        plan = plan or Both(None, None)
        tokens, own = self.reducer.restore(tokens, plan.tokens, site)
        return tokens, plan._replace(tokens=own)

    def reach(self, tokens: Tokens, plan: Both | None, layer: Layer) -> Reach:
        if plan is None:
            return super().reach(tokens, plan, layer)
        return self.hunter.reach(tokens, plan.keys, layer, self._place(tokens, plan))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: Both | None, layer: Layer) -> Tensor:
        own, keys = plan or Both(None, None)
        if layer.part != "global" or keys is None:
            return self.reducer.attend(q, k, v, own, layer)
        if self.hunter.kind(layer) == "grid":
            return F.scaled_dot_product_attention(q, k, v)
        weights = self.reducer.key_weights(own, layer, q.shape[2] - layer.shared)
        if weights is None:
            return F.scaled_dot_product_attention(q, k, v)
        return weighted_attention(q, k, v, _of_frames(weights, keys.frames)._replace(shared=layer.shared))

    def kept_ratio(self, plan: Both | None) -> float:
        return self.reducer.kept_ratio(plan.tokens if plan else None)

    def read_ratio(self, plan: Both | None, layer: Layer, frames: int, grid: tuple[int, int]) -> float:
        own, keys = plan or Both(None, None)
        read = self.hunter.read_ratio(keys, layer, frames, grid)
        # on the grid each patch has one key, its token's
        return read if self.hunter.kind(layer) == "grid" else read * self.reducer.kept_ratio(own)

    def merged(self, plan: Both | None, frames: int, grid: tuple[int, int]) -> Tensor | None:
        return self.reducer.merged(plan.tokens if plan else None, frames, grid)

    def _place(self, tokens: Tokens, plan: Both) -> Tensor | None:
        """(B, S, P): index (after the special tokens) of the token that represents each patch, if the patches are reduced here."""
        place = self.reducer.token_of_patch(plan.tokens)
        short = tokens.x.shape[2] < tokens.special + tokens.grid[0] * tokens.grid[1]
        return place.unflatten(0, tokens.x.shape[:2]) if short and place is not None else None


def _of_frames(weights: KeyWeights, frames: Tensor) -> KeyWeights:
    """The weights of the frames (B, K) only."""
    by_frame = weights.weight.flatten(1).unflatten(1, (weights.frames, -1)).expand(len(frames), -1, -1)
    chosen = by_frame.gather(1, frames[..., None].expand(-1, -1, by_frame.shape[2]))
    return weights._replace(weight=chosen, frames=frames.shape[1])


def combine(parts: list[Accelerator]) -> Accelerator:
    """Combines several accelerators into one. Raises ConfigError, naming the conflict, if they cannot be combined."""
    if len(parts) == 1:
        return parts[0]
    names = "+".join(p.name for p in parts)
    for i, a in enumerate(parts):
        for b in parts[:i]:
            if both := a.takes & b.takes:
                what = {"tokens": "which patches exist", "keys": "whose keys are read across frames"}
                raise ConfigError(
                    f"accelerator.name is {names!r}, but {b.name} and {a.name} both change {what[min(both)]}: give one of them, or "
                    f"one of come, pace with good_token_hunting"
                )
    hunters = [p for p in parts if isinstance(p, GoodTokenHunting)]
    reducers = [p for p in parts if "tokens" in p.takes]
    if len(parts) != 2 or len(hunters) != 1 or len(reducers) != 1:
        raise ConfigError(
            f"accelerator.name is {names!r}, but only one of come, pace can be combined, with good_token_hunting"
        )
    return Combined(reducers[0], hunters[0])
