"""FastVGGT: in global attention, similar tokens of different frames share one query, key and value ("FastVGGT: Training-Free Acceleration
of Visual Geometry Transformer", arXiv 2509.02560). No training; everything but global attention runs in full.

Differences from the paper: special tokens and the sparse protected tokens take no part (there, protected tokens are also targets
and patches may merge into special tokens); the target of each cell is chosen by a hash, the same in every frame.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import Config
from ..tokens import Layer, ModelShape, Tokens
from .base import Accelerator
from .matching import Merging, averaged, merge_into
from .tome import cells

PROTECTED = 10  # every 10th patch is neither merged nor merged into; the paper protects the most salient ones instead


class Fast(Accelerator):
    """ratio: share of all patches that is merged in global attention. Frame 0, one patch of each 2x2 cell and every tenth of the
    others are never merged, which limits the share.
    """

    name = "fast"
    frontier = ("ratio=0.3", "ratio=0.6", "ratio=0.9")
    takes = frozenset({"tokens", "keys"})

    def __init__(self, *, ratio: float = 0.5) -> None:
        if not 0 <= ratio <= 1:
            raise ValueError(f"ratio is {ratio}, but must lie in 0 .. 1")
        self.ratio = ratio
        self.sites = frozenset({"before_attention"}) if ratio > 0 else frozenset()

    @classmethod
    def create(cls, config: Config, shape: ModelShape, weights: str) -> Fast:
        return cls(ratio=config.accelerator.ratio)

    def about(self) -> str:
        return f"{self.name}: special and protected tokens take no part, so at most about two thirds of a frame are merged."

    def configured(self, config: Config) -> Fast:
        return self if config.accelerator.ratio == self.ratio else Fast(ratio=config.accelerator.ratio)

    def window_bound(self, encoder_depth: int) -> str:
        return ""  # the encoder runs in full

    def compress(self, tokens: Tokens, plan: Merging | None, site: str) -> tuple[Tokens, Merging | None]:
        """Matches tokens by the input of the attention, for this block only; `condense` merges them."""
        assert tokens.layer is not None
        _, s, t, _ = tokens.x.shape
        if tokens.layer.part != "global":
            return tokens, plan
        source, target = partition(s, t, tokens.special, tokens.grid, tokens.x.device)
        r = min(int(self.ratio * s * (t - tokens.special) + 1e-9), len(source))
        return tokens, merge_into(tokens.x.flatten(1, 2), source, target, r) if r else None

    def condense(
        self, q: Tensor, k: Tensor, v: Tensor, plan: Merging | None, layer: Layer
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Averages q, k and v over the tokens that are merged."""
        if plan is None or layer.part != "global":
            return q, k, v
        q, k, v = averaged((q, k, v), plan)
        return q, k, v

    def expand(self, x: Tensor, plan: Merging | None, layer: Layer) -> Tensor:
        """Copies the result back to all merged tokens."""
        if plan is None or layer.part != "global":
            return x
        length = x.shape[2] - layer.shared
        back = x[:, :, :length].gather(2, plan.place[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
        return torch.cat((back, x[:, :, length:]), dim=2)

    def read_ratio(self, plan: Merging | None, layer: Layer, frames: int, grid: tuple[int, int]) -> float:
        return 1.0 if plan is None else plan.share_left(frames * grid[0] * grid[1])

    def merged(self, plan: Merging | None, frames: int, grid: tuple[int, int]) -> Tensor | None:
        """Patches that shared their query, key and value with others in the last global attention."""
        if plan is None:
            return None
        size = torch.zeros_like(plan.origin).scatter_add(1, plan.place, torch.ones_like(plan.place))
        shared = size.gather(1, plan.place).unflatten(1, (frames, -1)) > 1  # (B, S, T)
        return shared[:, :, -grid[0] * grid[1] :].reshape(-1, *grid)


def partition(
    frames: int, tokens: int, special: int, grid: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Indices of a scene's tokens, frame by frame: (m,) those that may be merged, and (n,) their possible targets."""
    h, w = -(-grid[0] // 2), -(-grid[1] // 2)
    cell = torch.arange(h * w, device=device).view(h, w)
    source, target = cells(grid, (cell * 0x9E3779B1 >> 13) & 3, device)
    source, target = source[source % PROTECTED != 0], target[target % PROTECTED != 0]
    first = special + torch.arange(grid[0] * grid[1], device=device)
    start = tokens * torch.arange(1, frames, device=device)[:, None] + special
    return (start + source).flatten(), torch.cat((first, (start + target).flatten()))
