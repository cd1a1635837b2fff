"""Subscenes: in global attention a frame reads itself, its group and the first frame ("S-VGGT", arXiv 2603.17625). No training.

The frames of a window are divided into K groups of equal size that look alike. All groups share the first frame, whose coordinates the
model predicts in, so their results fit together without being aligned. Each group is one attention, all of them run as a batch, and the
cost of global attention falls to about 1 / K.

Differences from the paper, which we know from its abstract and from notes on it: groups are found by farthest-point sampling and a greedy
assignment with a fixed capacity, not by gradient steps on a soft assignment, so that their sizes depend on the window's length alone; K is
set by the ratio, not by how many frames are similar; the first frame exists once and reads all frames, where the authors give each group a
copy of its own. `subscenes: time` and `random` are baselines: consecutive frames, and groups that do not depend on the images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Config
from ..tokens import Layer, ModelShape, Tokens
from .base import Accelerator
from .good_token_hunting import pooled

BY = ("looks", "time", "random")


@dataclass(frozen=True, eq=False)
class Groups:
    """order: (B, S - 1) int64, the frames but the first, group after group. sizes: number of frames of each group, largest first."""

    order: Tensor
    sizes: tuple[int, ...]

    def batches(self) -> list[tuple[int, int, Tensor]]:
        """(groups, frames of each, (B, groups, frames) int64) for each size of groups."""
        out, start = [], 0
        for size in sorted(set(self.sizes), reverse=True):
            count = self.sizes.count(size)
            rows = self.order[:, start : start + count * size]
            out.append((count, size, rows.unflatten(1, (count, size))))
            start += count * size
        return out


class Subscene(Accelerator):
    """ratio: a window is divided into 1 / (1 - ratio) groups, rounded up, and at most one for each frame but the first. by: what decides
    the groups, one of BY."""

    name = "subscene"
    frontier = tuple(f"ratio={ratio},subscenes={by}" for by in BY for ratio in (0.5, 0.75))
    takes = frozenset({"keys"})

    def __init__(self, *, ratio: float = 0.5, by: str = "looks") -> None:
        if not 0 <= ratio <= 1 or by not in BY:
            raise ValueError(f"ratio is {ratio} and by {by!r}, but they must be 0 .. 1 and one of {', '.join(BY)}")
        self.ratio, self.by = ratio, by
        self.sites = frozenset({"backbone_in"}) if ratio > 0 else frozenset()

    @classmethod
    def create(cls, config: Config, shape: ModelShape, weights: str) -> Subscene:
        return cls(ratio=config.accelerator.ratio, by=config.accelerator.subscenes)

    def about(self) -> str:
        return f"{self.name}: groups by {self.by}; the first frame exists once and reads all frames."

    def configured(self, config: Config) -> Subscene:
        a = config.accelerator
        return self if (a.ratio, a.subscenes) == (self.ratio, self.by) else Subscene(ratio=a.ratio, by=a.subscenes)

    def sizes(self, frames: int) -> tuple[int, ...]:
        """Number of frames of each group in a window of `frames`; one group means that nothing is reduced."""
        others = frames - 1
        wanted = others if self.ratio == 1 else math.ceil(1 / (1 - self.ratio) - 1e-9)
        count = max(1, min(others, wanted))
        return tuple(others // count + (i < others % count) for i in range(count))

    def compress(self, tokens: Tokens, plan: None, site: str) -> tuple[Tokens, Groups | None]:
        """Removes no token; finds the groups, once per window."""
        b, s = tokens.x.shape[:2]
        sizes = self.sizes(s)
        if len(sizes) == 1:
            return tokens, None
        if self.by == "looks":
            order = alike(pooled(tokens), sizes)
        elif self.by == "time":
            order = torch.arange(1, s, device=tokens.x.device).expand(b, -1)
        else:
            at_random = torch.randperm(s - 1, generator=torch.Generator().manual_seed(s)) + 1
            order = at_random.to(tokens.x.device).expand(b, -1)
        return tokens, Groups(order, sizes)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: Groups | None, layer: Layer) -> Tensor:
        if plan is None or layer.part != "global":
            return super().attend(q, k, v, plan, layer)
        b, heads, total, d = q.shape
        n = total - layer.shared
        s = 1 + sum(plan.sizes)
        t = n // s
        frames = [x[:, :, :n].unflatten(2, (s, t)) for x in (q, k, v)]
        # what every group reads: the first frame and the scene's own tokens; their queries read everything
        common = [torch.cat((x[:, :, :t], x[:, :, n:]), dim=2) for x in (q, k, v)]
        first = F.scaled_dot_product_attention(common[0], k, v)
        out = torch.empty_like(frames[0])
        out[:, :, 0] = first[:, :, :t]
        for count, size, rows in plan.batches():
            where = rows.flatten(1)[:, None, :, None, None].expand(-1, heads, -1, t, d)

            def of_groups(x: Tensor, where: Tensor = where, count: int = count, size: int = size) -> Tensor:
                chosen = x.gather(2, where).reshape(b, heads, count, size * t, d)
                return chosen.transpose(1, 2).reshape(b * count, heads, size * t, d)

            own = of_groups(frames[0])
            keys, values = (
                torch.cat((of_groups(x), c.repeat_interleave(count, 0)), dim=2)
                for x, c in zip(frames[1:], common[1:], strict=True)
            )
            found = F.scaled_dot_product_attention(own, keys, values).unflatten(0, (b, count)).transpose(1, 2)
            out.scatter_(2, where, found.reshape(b, heads, count * size, t, d).to(out.dtype))
        return torch.cat((out.flatten(2, 3), first[:, :, t:]), dim=2)

    def read_ratio(self, plan: Groups | None, layer: Layer, frames: int, grid: tuple[int, int]) -> float:
        if plan is None:
            return 1.0
        read = frames + sum(size * (size + 1) for size in plan.sizes)
        return read / frames**2


def alike(descriptors: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """(B, S, D) -> (B, S - 1): the frames but the first, group after group of these `sizes` (largest first).

    Each group begins with the frame that is farthest (1 - cosine) from the first frame and from the other beginnings. Then the most similar
    pair of a free frame and a group that is not full is joined, again and again. So the order in which frames come does not matter.
    """
    with torch.autocast(descriptors.device.type, enabled=False):
        f = F.normalize(descriptors.float(), dim=-1)
        likeness = f @ f.transpose(1, 2)
    b, s, device = len(f), f.shape[1], f.device
    rows = torch.arange(b, device=device)
    nearest = likeness[:, 0].clone()  # of each frame to what was chosen
    nearest[:, 0] = torch.inf
    centres = []
    for _ in sizes:
        newest = nearest.argmin(dim=1)
        centres.append(newest)
        nearest = torch.maximum(nearest, likeness[rows, newest])
        nearest[rows, newest] = torch.inf  # no frame twice
    to_group = likeness.gather(2, torch.stack(centres, dim=1)[:, None].expand(-1, s, -1))[:, 1:]  # (B, S - 1, K)
    for group, centre in enumerate(centres):  # a beginning belongs to its own group
        to_group[rows, centre - 1, group] = 2.0
    room = torch.tensor(sizes, device=device).expand(b, -1).clone()
    group_of = torch.zeros(b, s - 1, dtype=torch.long, device=device)
    for _ in range(s - 1):
        best = to_group.flatten(1).argmax(dim=1)
        frame, group = best // len(sizes), best % len(sizes)
        group_of[rows, frame] = group
        to_group[rows, frame] = -torch.inf
        room[rows, group] -= 1
        to_group = to_group.masked_fill((room == 0)[:, None], -torch.inf)
    return group_of.argsort(dim=1, stable=True) + 1
