"""Regime: the outer layers of the trunk read a sparse grid of patches, shifted from frame to frame ("RegimeVGGT", arXiv 2606.18439).

In a trained VGGT the first global layers hold hardly any structure across views, the middle ones align the views, and the last ones matter
for the pose only. So keys and values are thinned in the first and the last layers, and whole in the middle. What is left is a grid with a
spacing of `stride` patches, at another offset in frames that look alike, so that together they cover the image; the reference frame and
all special tokens are whole. All queries stay. No training.

Differences from the paper, which we know from its abstract and from notes on it: only its thinning of keys and values is here, not its
merging of tokens; which layers count as outer is set by the ratio, not found by probing; frames are ordered by their likeness to the first
one before they get their offsets, so that the order in which they come does not matter. `phases: same` is the baseline without shifts.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Config
from ..tokens import Layer, ModelShape, Reach, Tokens
from .base import Accelerator
from .good_token_hunting import pooled

PHASES = ("shifted", "same")


@dataclass(frozen=True, eq=False)
class Grid:
    """phase: (B, S) int64, number of each frame's offset, see `offset`; -1 for the first frame, which is read whole."""

    phase: Tensor
    index: dict[int, Tensor] = dataclasses.field(default_factory=dict)
    """made once a window: tokens of a frame -> which of the scene's tokens are read"""


class Regime(Accelerator):
    """outer: number of global layers at the beginning and at the end of the trunk that read the grid. stride: spacing of the grid, in
    patches; 1 reduces nothing. shifted: whether each frame has another offset."""

    name = "regime"
    frontier = (
        *(f"ratio={ratio},stride={stride}" for stride in (2, 3) for ratio in (0.5, 1.0)),
        "ratio=1.0,stride=2,phases=same",
    )
    takes = frozenset({"keys"})

    def __init__(self, layers: int, *, ratio: float = 0.5, stride: int = 2, shifted: bool = True) -> None:
        """layers: number of global layers. ratio: share of them that read the grid; if their number is odd, one more at the end."""
        if not 0 <= ratio <= 1 or stride < 1:
            raise ValueError(f"ratio is {ratio} and stride {stride}, but they must be 0 .. 1 and >= 1")
        self.layers, self.ratio, self.stride, self.shifted = layers, ratio, stride, shifted
        count = 0 if ratio == 0 or stride == 1 else max(1, round(ratio * layers))
        self.outer = count // 2, count - count // 2
        self.sites = frozenset({"backbone_in"}) if count else frozenset()

    @classmethod
    def create(cls, config: Config, shape: ModelShape, weights: str) -> Regime:
        a = config.accelerator
        depth = sum(part == "global" for part in shape.trunk)
        return cls(depth, ratio=a.ratio, stride=a.stride, shifted=a.phases == "shifted")

    def about(self) -> str:
        first, last = self.outer
        return f"{self.name}: the first {first} and the last {last} of {self.layers} global layers read a grid; no tokens are merged."

    def configured(self, config: Config) -> Regime:
        a = config.accelerator
        if (a.ratio, a.stride, a.phases == "shifted") == (self.ratio, self.stride, self.shifted):
            return self
        return Regime(self.layers, ratio=a.ratio, stride=a.stride, shifted=a.phases == "shifted")

    def thins(self, layer: Layer) -> bool:
        """Whether that layer reads the grid."""
        first, last = self.outer
        return layer.part == "global" and not first <= layer.index < self.layers - last

    def compress(self, tokens: Tokens, plan: None, site: str) -> tuple[Tokens, Grid | None]:
        """Removes no token; gives each frame its offset, once per window."""
        b, s = tokens.x.shape[:2]
        if s == 1:  # a lone frame is the reference
            return tokens, None
        rank = by_likeness(pooled(tokens))
        phase = rank % self.stride**2 if self.shifted else torch.zeros_like(rank)
        first = torch.full((b, 1), -1, dtype=phase.dtype, device=phase.device)
        return tokens, Grid(torch.cat((first, phase), dim=1))

    def reach(self, tokens: Tokens, plan: Grid | None, layer: Layer) -> Reach:
        if plan is None or not self.thins(layer):
            return super().reach(tokens, plan, layer)
        t = tokens.x.shape[2]
        if t not in plan.index:
            plan.index[t] = self._index(tokens, plan)
        return Reach(True, plan.index[t])

    def read_ratio(self, plan: Grid | None, layer: Layer, frames: int, grid: tuple[int, int]) -> float:
        if plan is None or not self.thins(layer):
            return 1.0
        return (grid[0] * grid[1] + sum(self._counts(frames, grid))) / (frames * grid[0] * grid[1])

    def _counts(self, frames: int, grid: tuple[int, int]) -> list[int]:
        """Number of patches that are read of each frame but the first, in the order of their ranks."""
        phases = [rank % self.stride**2 if self.shifted else 0 for rank in range(frames - 1)]
        starts = [offset(grid, self.stride, phase) for phase in phases]
        return [math.prod(-(-(n - first) // self.stride) for n, first in zip(grid, at, strict=True)) for at in starts]

    def _index(self, tokens: Tokens, plan: Grid) -> Tensor:
        """(B, n): which of the scene's S T tokens are read, ascending. How many depends on shapes alone."""
        b, s, t, _ = tokens.x.shape
        n, device = tokens.special, tokens.x.device
        every = torch.stack([on_grid(tokens.grid, self.stride, p).flatten() for p in range(self.stride**2)])
        read = torch.ones(b, s, t, dtype=torch.bool, device=device)
        read[:, 1:, n:] = every.to(device)[plan.phase[:, 1:]]
        count = s * n + t - n + sum(self._counts(s, tokens.grid))
        order = read.flatten(1).byte().argsort(dim=1, descending=True, stable=True)
        return order[:, :count]


def offset(grid: tuple[int, int], stride: int, phase: int) -> tuple[int, int]:
    """(row, column) of the first patch at the offset number `phase`. The stride^2 offsets cover all patches, and neighbouring numbers are
    far apart. A frame that is smaller than the offset reads its last row or column."""
    return min(phase % stride, grid[0] - 1), min((phase + phase // stride) % stride, grid[1] - 1)


def on_grid(grid: tuple[int, int], stride: int, phase: int) -> Tensor:
    """(h, w) bool: the patches of a grid with that spacing, at the offset number `phase`."""
    row, column = offset(grid, stride, phase)
    out = torch.zeros(grid, dtype=torch.bool)
    out[row::stride, column::stride] = True
    return out


def by_likeness(descriptors: Tensor) -> Tensor:
    """(B, S, D) -> (B, S - 1): rank of each frame but the first by its likeness (cosine) to the first one, 0 for the most similar."""
    with torch.autocast(descriptors.device.type, enabled=False):
        f = F.normalize(descriptors.float(), dim=-1)
        likeness = (f[:, 1:] @ f[:, :1].transpose(1, 2))[..., 0]
    return likeness.argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True)
