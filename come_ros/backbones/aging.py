"""Token reduction in the cache of a causal model: keyframes of the local window keep fewer keys as they age. Ours, untrained.

When more than `stream.whole` newer keyframes have come, a keyframe gives up a share of its patches, in one of these ways:

- groups: neighbouring patches become one key: the mean of theirs, taken before rotation and turned to the centre, which counts for all
  of them (Co-Me's bias). Those groups first whose keys agree best.
- repeats: a patch whose value a newer frame repeats joins the patch there: that one's key stays (keys of different frames must not be
  averaged), the value becomes the mean, and it counts for one more.
- evict: the patches that newer frames attended to least are dropped (the idea of Evict3R, arXiv 2509.17650).
- random: as groups, but any of them: the baseline.

Special tokens stay. With equal keys and values, groups and repeats change nothing but rounding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..accelerators.matching import Merging, best_match, merged_mean, moved
from ..config_groups import StreamParameters

COMPARED = 4  # blocks, evenly spaced, in which tokens are compared

Turn = Callable[[Tensor, int, int], Any]
"""(positions (T, 2), special tokens in front, temporal index) -> Rotary, by which keys of that frame are turned"""


@dataclass(frozen=True, eq=False)
class Kept:
    """Keys and values of N tokens in each global block, each (1, heads, N, d), the `special` ones first.

    frames: the temporal indices they are of. weight: (N,) fp32, what each counts for; None if each counts once. positions: (N, 2), see
    Tokens. turn: how the keys are rotated. mass: (N,) fp32, the attention that each received, if it is measured. aged: whether it gave
    up its share.
    """

    frames: tuple[int, ...]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    special: int
    weight: Tensor | None
    positions: Tensor
    turn: Turn
    mass: Tensor | None = None
    aged: bool = False

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def bytes(self) -> int:
        """What it takes on the device."""
        held = [*self.keys, *self.values, self.positions, *(t for t in (self.weight, self.mass) if t is not None)]
        return sum(t.numel() * t.element_size() for t in held)

    def weights(self) -> Tensor:
        """(N,) fp32."""
        return self.positions.new_ones(len(self), dtype=torch.float32) if self.weight is None else self.weight

    def turned_back(self) -> Callable[[Tensor], Tensor]:
        """What takes the rotation off keys of these tokens, which are of one frame."""
        table = self.turn(self.positions, self.special, self.frames[0])
        back: Callable[[Tensor], Tensor] = type(table)(table.cos, -table.sin).apply
        return back

    def features(self, keys: bool) -> Tensor:
        """(1, N, C), by which tokens are compared: their keys, before rotation, or their values, in some of the blocks."""
        blocks = sorted({round(i * (len(self.keys) - 1) / (COMPARED - 1)) for i in range(COMPARED)})
        back = self.turned_back() if keys else None
        parts = [self.values[i] if back is None else back(self.keys[i]) for i in blocks]
        return torch.cat([part.transpose(1, 2).flatten(2) for part in parts], dim=2)

    def only(self, index: Tensor) -> Kept:
        """The tokens `index` (n,), the special ones among them."""
        return dataclasses.replace(
            self,
            keys=tuple(k[:, :, index] for k in self.keys),
            values=tuple(v[:, :, index] for v in self.values),
            weight=None if self.weight is None else self.weight[index],
            positions=self.positions[index],
            mass=None if self.mass is None else self.mass[index],
        )

    def specials(self) -> Kept:
        """Its special tokens only, sharing no memory with the rest."""
        index = torch.arange(self.special, device=self.positions.device)
        return dataclasses.replace(self.only(index), weight=None, mass=None)

    def joined(self, other: Kept) -> Kept:
        """Special tokens of frames, and those of one more frame."""
        return Kept(
            self.frames + other.frames,
            tuple(torch.cat(pair, dim=2) for pair in zip(self.keys, other.keys, strict=True)),
            tuple(torch.cat(pair, dim=2) for pair in zip(self.values, other.values, strict=True)),
            self.special + other.special,
            None,
            torch.cat((self.positions, other.positions)),
            self.turn,
        )


def measures_attention(parameters: StreamParameters) -> bool:
    """Whether `Kept.mass` is needed."""
    return parameters.reduce == "evict" and parameters.reduce_ratio > 0


def aged(local: tuple[Kept, ...], parameters: StreamParameters) -> tuple[Kept, ...]:
    """The local window, oldest first, after those that are old enough gave up their share."""
    if parameters.reduce == "none" or parameters.reduce_ratio == 0:
        return local
    frames = list(local)
    for i in range(len(frames) - parameters.whole):
        old = frames[i]
        count = int(parameters.reduce_ratio * (len(old) - old.special) + 1e-9)
        if old.aged or count == 0:
            continue
        newer = slice(len(frames) - parameters.whole, None)
        if parameters.reduce in ("groups", "random"):
            rows, columns = (int(n) for n in parameters.group.split("x"))
            old = grouped(old, count, (rows, columns), at_random=parameters.reduce == "random")
        elif parameters.reduce == "evict":
            old = evicted(old, count)
        elif frames[newer]:
            old, frames[newer] = repeated(old, count, frames[newer])
        frames[i] = dataclasses.replace(old, aged=True)
    return tuple(frames)


def grouped(kept: Kept, count: int, group: tuple[int, int], at_random: bool = False) -> Kept:
    """At most `count` patches fewer: groups of (rows, columns) patches, as far as they are still several, are one token each."""
    n, device = kept.special, kept.positions.device
    cells = ((kept.positions[n:].float() - 1) / torch.tensor(group, device=device)).floor().long()
    _, cell, sizes = torch.unique(cells, dim=0, return_inverse=True, return_counts=True)
    if at_random:
        score = torch.rand(len(sizes), generator=torch.Generator().manual_seed(kept.frames[0])).to(device)
    else:
        unit = torch.nn.functional.normalize(kept.features(keys=True)[0, n:].float(), dim=1)
        score = unit.new_zeros(len(sizes), unit.shape[1]).index_add_(0, cell, unit).norm(dim=1) / sizes
    order = score.masked_fill(sizes < 2, -1.0).argsort(descending=True, stable=True)
    fits = ((sizes - 1)[order].cumsum(0) <= count) & (sizes[order] > 1)
    chosen = torch.zeros_like(sizes, dtype=torch.bool)
    chosen[order] = fits
    # the first patch of each group stays, the others join it
    first = torch.full_like(sizes, len(cell)).scatter_reduce_(0, cell, torch.arange(len(cell), device=device), "amin")
    going = (chosen[cell] & (first[cell] != torch.arange(len(cell), device=device))).nonzero()[:, 0]
    if len(going) == 0:
        return kept
    return _merged(kept, moved(going[None] + n, first[cell[going]][None] + n, len(kept)))


def _merged(kept: Kept, merging: Merging) -> Kept:
    """Tokens of one frame that go together as one key, turned to their mean position."""
    weight = kept.weights()[None]

    def mean(x: Tensor) -> Tensor:  # (1, heads, N, d) -> (1, heads, L, d)
        heads = x.shape[1]
        return merged_mean(x.transpose(1, 2).flatten(2), weight, merging)[0].unflatten(2, (heads, -1)).transpose(1, 2)

    positions, total = merged_mean(kept.positions[None].float(), weight, merging)
    back = kept.turned_back()
    centre = kept.turn(positions[0], kept.special, kept.frames[0])
    alone = (total[0] == kept.weights()[merging.origin[0]])[:, None]  # these keep every bit

    def key(k: Tensor) -> Tensor:
        return torch.where(alone, k[:, :, merging.origin[0]], centre.apply(mean(back(k))).to(k.dtype)).contiguous()

    return dataclasses.replace(
        kept,
        keys=tuple(key(k) for k in kept.keys),
        values=tuple(mean(v).contiguous() for v in kept.values),
        weight=total[0],
        positions=positions[0],
        mass=None,
    )


def repeated(old: Kept, count: int, newer: list[Kept]) -> tuple[Kept, list[Kept]]:
    """`count` patches of `old` join those of `newer` frames that are most like them."""
    n, device = old.special, old.positions.device
    lengths = [len(frame) for frame in newer]
    patch = torch.cat(
        [torch.arange(length, device=device) >= frame.special for length, frame in zip(lengths, newer, strict=True)]
    )
    targets = patch.nonzero()[:, 0]
    features = torch.cat([frame.features(keys=False) for frame in newer], dim=1)[:, targets]
    score, match = best_match(old.features(keys=False)[:, n:].float(), features.float())
    best = score[0].argsort(descending=True, stable=True)[:count]
    going, to = best + n, targets[match[0, best]]
    stays = torch.ones(len(old), dtype=torch.bool, device=device)
    stays[going] = False
    total, weight = sum(lengths), torch.cat([frame.weights() for frame in newer])
    merging = moved(total + torch.arange(len(going), device=device)[None], to[None], total + len(going))
    weights = torch.cat((weight, old.weights()[going]))[None]
    values, counts = [], weight
    for block, own in enumerate(old.values):
        heads = own.shape[1]
        joined = torch.cat([frame.values[block] for frame in newer] + [own[:, :, going]], dim=2)
        mean, summed = merged_mean(joined.transpose(1, 2).flatten(2), weights, merging)
        values.append(mean.unflatten(2, (heads, -1)).transpose(1, 2).split(lengths, dim=2))
        counts = summed[0]
    out = [
        dataclasses.replace(frame, values=tuple(v[i].contiguous() for v in values), weight=part.clone())
        for i, (frame, part) in enumerate(zip(newer, counts.split(lengths), strict=True))
    ]
    return old.only(stays.nonzero()[:, 0]), out


def evicted(kept: Kept, count: int) -> Kept:
    """Without the `count` patches that received least attention."""
    if kept.mass is None:  # measured only since the parameter was set
        return kept
    least = kept.mass[kept.special :].argsort(stable=True)[:count] + kept.special
    stays = torch.ones(len(kept), dtype=torch.bool, device=least.device)
    stays[least] = False
    return kept.only(stays.nonzero()[:, 0])
