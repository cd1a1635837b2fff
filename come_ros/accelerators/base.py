"""One interface for token reduction: plan, compress, attend, restore. The base class is the identity: dense, bit for bit.

A backbone calls these steps (`reach` and `key_weights` are parts of attend that can be overridden separately). A plan is a value
that is passed along, so no model is patched and two windows can never mix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Config
from ..kernels import KeyWeights, weighted_attention
from ..tokens import Layer, ModelShape, Reach, Tokens


class Accelerator:
    """Base class of all accelerators; it is itself the identity. Subclasses list the sites they use; other sites cost nothing."""

    name = "none"
    sites: frozenset[str] = frozenset()
    takes: frozenset[str] = frozenset()
    """what no other accelerator may change at the same time: "tokens" (which patches there are), "keys" (whose keys are
    read across frames)"""

    frontier: tuple[str, ...] = ("",)
    """settings that `come_ros eval --frontier` tries: parameters of the group `accelerator`, as in "ratio=0.5,group=3x3"; each
    class its own"""

    @classmethod
    def create(cls, config: Config, shape: ModelShape, weights: str) -> Accelerator:
        """An instance as configured by `config.accelerator`, for a model read from the file `weights`. Raises CheckpointError."""
        return cls()

    def about(self) -> str:
        """One sentence for reports: what it does and where it differs from the publication it is named after; "" if nothing is to
        be added."""
        return ""

    def configured(self, config: Config) -> Accelerator:
        """A copy with the dynamic parameters of `config`; self if nothing changes."""
        return self

    def to(self, device: torch.device) -> Accelerator:
        """Moves its networks to the device."""
        return self

    def plan_block(self, encoder_depth: int) -> int | None:
        """Index of the encoder block after which plan() is called, or None for no plan."""
        return None

    def plan(self, features: Tokens) -> Any:
        """Decides once per window, from the tokens after encoder block `plan_block`. All other steps receive the result."""
        return None

    def window_bound(self, encoder_depth: int) -> str:
        """Why the encoder's output for a frame cannot be reused in other windows; "" if it can, because it (and the plan so far)
        depends on this frame alone."""
        inside = self.sites & {"encoder_k", "residual", "before_attention", "before_mlp"}
        if inside or self.plan_block(encoder_depth) is not None:
            return f"{self.name} does not say what of its plan is about which frame"
        return ""

    def frame_plan(self, plan: Any, index: int) -> Any:
        """The part of a one-scene plan, made in the encoder, that concerns one frame: a plan for that frame alone."""
        return None

    def join_plans(self, plans: Sequence[Any]) -> Any:
        """Joins plans of single frames (from frame_plan) into the plan of a scene made of those frames."""
        return None

    def compress(self, tokens: Tokens, plan: Any, site: str) -> tuple[Tokens, Any]:
        """Reduces the tokens at `site`. Special tokens stay in front, unchanged."""
        return tokens, plan

    def reach(self, tokens: Tokens, plan: Any, layer: Layer) -> Reach:
        """Which keys and values the queries of `tokens` read in this block."""
        return Reach(layer.part == "global")

    def key_weights(self, plan: Any, layer: Layer, keys: int) -> KeyWeights | None:
        """Weight of each of the `keys` tokens of a sequence as a key; None if all weigh 1. Shared tokens always weigh 1 and are not
        included."""
        return None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: Any, layer: Layer) -> Tensor:
        """softmax(q k^T / sqrt(d) + log weight) v for (B, heads, N, d), between `condense` and `expand`. layer.part is "frame" if
        every frame attends to itself, even in a global block whose reach says so."""
        q, k, v = self.condense(q, k, v, plan, layer)
        weights, mask = self.key_weights(plan, layer, k.shape[2] - layer.shared), None
        if layer.stream is not None:
            k, v, weights = layer.stream.recall(layer.index, q, k, v, weights)
            mask = layer.stream.mask
        if weights is None:
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            x = weighted_attention(q, k, v, weights._replace(shared=layer.shared))
        return self.expand(x, plan, layer)

    def condense(self, q: Tensor, k: Tensor, v: Tensor, plan: Any, layer: Layer) -> tuple[Tensor, Tensor, Tensor]:
        """Reduces queries, keys and values for one attention: (B, heads, N, d) each; those of shared tokens stay at the end."""
        return q, k, v

    def expand(self, x: Tensor, plan: Any, layer: Layer) -> Tensor:
        """Expands the attention's output from the condensed queries to all of them."""
        return x

    def restore(self, tokens: Tokens, plan: Any, site: str) -> tuple[Tokens, Any]:
        """Restores the full grid."""
        return tokens, plan

    def token_of_patch(self, plan: Any) -> Tensor | None:
        """(B * S, P) int64: index (after the special tokens) of the token that represents each patch; None if every patch has its
        own."""
        return None

    def kept_ratio(self, plan: Any) -> float:
        """Share of patch tokens that the trunk processes under `plan`."""
        return 1.0

    def read_ratio(self, plan: Any, layer: Layer, frames: int, grid: tuple[int, int]) -> float:
        """Share of the patches of `frames` frames of (h, w) = grid whose keys are read in this global block; patches that share a
        key count once. Computed from shapes alone, so it never synchronises with a GPU."""
        return self.kept_ratio(plan)

    def merged(self, plan: Any, frames: int, grid: tuple[int, int]) -> torch.Tensor | None:
        """(frames, h, w) bool, True where a patch was reduced; None if none was."""
        return None


class NoAccelerator(Accelerator):
    """The identity: changes no bit of the dense model."""
