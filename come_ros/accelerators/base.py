"""One interface for token reduction: plan, compress, attend, restore. The base class is the identity: dense, bit for bit.

A backbone calls these four steps; a plan is a value handed along, so nothing is patched and two windows can never mix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Config

if TYPE_CHECKING:
    from ..backbones.base import GeometryModel


class Layer(NamedTuple):
    """Which attention is asked for: part = "encoder" | "frame" | "global", index counts within the part, from 0."""

    part: str
    index: int


class Tokens(NamedTuple):
    """Tokens of S frames and where they sit.

    x: (B, S, T, C). positions: (B or 1, S or 1, T, 2) integer (y, x), special tokens at (0, 0), patch (row, column) at
    (row + 1, column + 1). special: leading tokens of each frame that no accelerator may touch. grid: (h, w) patches of the image.
    """

    x: Tensor
    positions: Tensor
    special: int
    grid: tuple[int, int]


# Where a backbone offers its tokens. Around the stack of blocks (`Tokens` of all frames):
#   encoder_k      after the encoder block after which the plan was made       compress
#   encoder_end    after the last encoder block, before its norm               restore
#   backbone_in    special tokens added, before the first alternating block    compress
#   tap            a copy of the level's tokens on its way to the heads        restore
# and inside every accelerated block:
#   before_attention, before_mlp   the normalised input of the module          compress
#   after_attention, after_mlp     the module's output, before the residual    restore
#   residual                       the residual stream between the two         compress
SITES = frozenset(
    {
        "encoder_k",
        "encoder_end",
        "backbone_in",
        "tap",
        "before_attention",
        "after_attention",
        "residual",
        "before_mlp",
        "after_mlp",
    }
)


class Accelerator:
    """Base of all accelerators and itself the identity. Subclasses name the sites they use; the others cost nothing."""

    name = "none"
    sites: frozenset[str] = frozenset()

    @classmethod
    def create(cls, config: Config, model: GeometryModel, weights: str) -> Accelerator:
        """As `config.accelerator` asks for, for a model read from the file `weights`. Raises CheckpointError."""
        return cls()

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

    def compress(self, tokens: Tokens, plan: Any, site: str) -> tuple[Tokens, Any]:
        """Fewer tokens at `site`. Special tokens stay in front, unchanged."""
        return tokens, plan

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: Any, layer: Layer) -> Tensor:
        """softmax(q k^T / sqrt(d)) v for (B, heads, N, d); subclasses add key weights or choose keys."""
        return F.scaled_dot_product_attention(q, k, v)

    def restore(self, tokens: Tokens, plan: Any, site: str) -> tuple[Tokens, Any]:
        """The full grid again."""
        return tokens, plan

    def kept_ratio(self, plan: Any) -> float:
        """Share of patch tokens that the trunk processes under `plan`."""
        return 1.0

    def merged(self, plan: Any, frames: int, grid: tuple[int, int]) -> torch.Tensor | None:
        """(frames, h, w) bool, True where a patch was reduced; None if none was."""
        return None
