"""One interface for token reduction: plan, compress, attend, restore. The base class is the identity: dense, bit for bit.

A backbone calls these steps (`reach` and `key_weights` are two parts of attend that can be changed by themselves); a plan is a value
handed along, so nothing is patched and two windows can never mix.
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
    """Base of all accelerators and itself the identity. Subclasses name the sites they use; the others cost nothing."""

    name = "none"
    sites: frozenset[str] = frozenset()
    takes: frozenset[str] = frozenset()
    """what no other accelerator may change at the same time: "tokens" (which patches there are), "keys" (whose keys are
    read across frames)"""

    frontier: tuple[str, ...] = ("",)
    """what `come_ros eval --frontier` tries of it: parameters of the group `accelerator`, as in "ratio=0.5,group=3x3"; each class its
    own"""

    @classmethod
    def create(cls, config: Config, shape: ModelShape, weights: str) -> Accelerator:
        """As `config.accelerator` asks for, for a model read from the file `weights`. Raises CheckpointError."""
        return cls()

    def about(self) -> str:
        """What it does here and where that differs from the publication it is named after, for reports: one sentence, or ""."""
        return ""

    def configured(self, config: Config) -> Accelerator:
        """The same with the dynamic parameters of `config`; self if nothing changes."""
        return self

    def to(self, device: torch.device) -> Accelerator:
        """Its own networks on that device."""
        return self

    def plan_block(self, encoder_depth: int) -> int | None:
        """Index of the encoder block after which plan() is called, or None for no plan."""
        return None

    def plan(self, features: Tokens) -> Any:
        """Decide, once a window, from the tokens after the encoder block `plan_block`. The value is handed to all other steps."""
        return None

    def window_bound(self, encoder_depth: int) -> str:
        """Why what comes out of the encoder for a frame cannot be kept for other windows, "" if it can: it depends on the frame alone
        (or on the frames that came with it), and so does the plan by then."""
        inside = self.sites & {"encoder_k", "residual", "before_attention", "before_mlp"}
        if inside or self.plan_block(encoder_depth) is not None:
            return f"{self.name} does not say what of its plan is about which frame"
        return ""

    def frame_plan(self, plan: Any, index: int) -> Any:
        """What a plan made in the encoder for one scene says of one of its frames: a plan for that frame alone."""
        return None

    def join_plans(self, plans: Sequence[Any]) -> Any:
        """Plans of frames, by frame_plan, as one of a scene of those frames."""
        return None

    def compress(self, tokens: Tokens, plan: Any, site: str) -> tuple[Tokens, Any]:
        """Fewer tokens at `site`. Special tokens stay in front, unchanged."""
        return tokens, plan

    def reach(self, tokens: Tokens, plan: Any, layer: Layer) -> Reach:
        """Whose keys and values the queries of `tokens` read in this block."""
        return Reach(layer.part == "global")

    def key_weights(self, plan: Any, layer: Layer, keys: int) -> KeyWeights | None:
        """What each of the `keys` tokens of a sequence counts for as a key; None if each counts once. Shared ones always count once
        and are not among them."""
        return None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: Any, layer: Layer) -> Tensor:
        """softmax(q k^T / sqrt(d) + log weight) v for (B, heads, N, d), between `condense` and `expand`. layer: its part is "frame" if
        every frame attends to itself, also in a global block whose reach says so."""
        q, k, v = self.condense(q, k, v, plan, layer)
        weights = self.key_weights(plan, layer, k.shape[2] - layer.shared)
        if weights is None:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = weighted_attention(q, k, v, weights._replace(shared=layer.shared))
        return self.expand(x, plan, layer)

    def condense(self, q: Tensor, k: Tensor, v: Tensor, plan: Any, layer: Layer) -> tuple[Tensor, Tensor, Tensor]:
        """Fewer queries, keys and values for one attention: (B, heads, N, d) each; those of shared tokens stay at the end."""
        return q, k, v

    def expand(self, x: Tensor, plan: Any, layer: Layer) -> Tensor:
        """What came out of that attention for the condensed queries -> for all of them."""
        return x

    def restore(self, tokens: Tokens, plan: Any, site: str) -> tuple[Tokens, Any]:
        """The full grid again."""
        return tokens, plan

    def token_of_patch(self, plan: Any) -> Tensor | None:
        """(B * S, P) int64: which token behind the special ones stands for each patch; None if every patch has its own."""
        return None

    def kept_ratio(self, plan: Any) -> float:
        """Share of patch tokens that the trunk processes under `plan`."""
        return 1.0

    def read_ratio(self, plan: Any, layer: Layer, frames: int, grid: tuple[int, int]) -> float:
        """Share of the patches, of `frames` frames of (h, w) = grid, whose keys the queries of this global block read; several that share
        one key count once. Asked after each global block, from shapes alone: a GPU is not waited for."""
        return self.kept_ratio(plan)

    def merged(self, plan: Any, frames: int, grid: tuple[int, int]) -> torch.Tensor | None:
        """(frames, h, w) bool, True where a patch was reduced; None if none was."""
        return None


class NoAccelerator(Accelerator):
    """The identity: changes no bit of the dense model."""
