"""Matches similar tokens and averages them: shared by all accelerators that merge by similarity.

Shapes: R rows (frames, or scenes), T tokens of a row, L <= T tokens after merging, C and d channels. Nothing synchronises with the
device: every length follows from the requested numbers of tokens, not from values. Matching runs in blocks, so that memory grows
with T, not T^2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 2**24  # similarities computed at a time


class Merging(NamedTuple):
    """place: (R, T) int64, the merged token that each token joins. origin: (R, L) int64, the token whose position each merged one
    keeps."""

    place: Tensor
    origin: Tensor

    def share_left(self, patches: int) -> float:
        """Share of the `patches` of a row that is left, given that only patches were merged."""
        return 1 - (self.place.shape[1] - self.origin.shape[1]) / patches

    def then(self, later: Merging) -> Merging:
        """This merging followed by `later`."""
        return Merging(later.place.gather(1, self.place), self.origin.gather(1, later.origin))


def best_match(a: Tensor, b: Tensor, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """For each of a (R, M, d) the most similar of b (R, N, d) by cosine: similarity and index, each (R, M)."""
    a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    (rows, m, _), n = a.shape, b.shape[1]
    rows_at_once = max(1, min(rows, block // max(1, m * n)))
    at_once = max(1, min(m, block // max(1, n)))
    scores, indices = [], []
    for i in range(0, rows, rows_at_once):
        other = b[i : i + rows_at_once].transpose(1, 2)
        parts = [
            (a[i : i + rows_at_once, j : j + at_once] @ other).max(dim=2) for j in range(0, max(m, 1), max(at_once, 1))
        ]
        scores.append(torch.cat([p.values for p in parts], dim=1))
        indices.append(torch.cat([p.indices for p in parts], dim=1))
    return torch.cat(scores), torch.cat(indices)


def bipartite(metric: Tensor, r: int, protected: int = 0) -> Merging:
    """ToMe's soft matching (Bolya et al., "Token Merging: Your ViT but Faster", ICLR 2023, 3.1) of tokens (R, T, d).

    Tokens alternate between two sets, A and B; each of A finds the most similar of B, and the r pairs that are most alike become one
    token. r is at most half of the unprotected tokens; the `protected` leading tokens are in no pair. Order of the result: the rest
    of A, by descending similarity (in its old order if there are protected tokens), then B.
    """
    rows, t, _ = metric.shape
    in_a, in_b = (t + 1) // 2, t // 2
    skip_a, skip_b = (protected + 1) // 2, protected // 2
    r = max(0, min(r, (t - protected) // 2))
    if r == 0:
        return unmerged(rows, t, metric.device)
    score, match = best_match(metric[:, 0::2], metric[:, 1::2][:, skip_b:])
    score[:, :skip_a] = -torch.inf
    order = score.argsort(dim=1, descending=True, stable=True)
    merged, left = order[:, :r], order[:, r:]
    if protected:
        left = left.sort(dim=1).values
    kept = in_a - r
    place = torch.empty(rows, t, dtype=torch.long, device=metric.device)
    a = torch.empty(rows, in_a, dtype=torch.long, device=metric.device)
    a.scatter_(1, left, torch.arange(kept, device=a.device).expand(rows, -1))
    a.scatter_(1, merged, kept + skip_b + match.gather(1, merged))
    place[:, 0::2] = a
    place[:, 1::2] = kept + torch.arange(in_b, device=a.device)
    origin = torch.cat((2 * left, 1 + 2 * torch.arange(in_b, device=a.device).expand(rows, -1)), dim=1)
    return Merging(place, origin)


def merge_into(metric: Tensor, source: Tensor, target: Tensor, r: int) -> Merging:
    """Merges the r tokens of `source` that are most similar to a token of `target` into it.

    metric: (R, T, d). source (m,), target (n,): disjoint indices into T, the same in all rows; tokens in neither stay by themselves.
    r is at most m. The order is kept.
    """
    rows, t, _ = metric.shape
    r = min(r, len(source)) if len(target) else 0
    if r <= 0:
        return unmerged(rows, t, metric.device)
    score, match = best_match(metric[:, source], metric[:, target])
    if r == len(source):
        going, to = source.expand(rows, -1), target[match]
    else:
        best = score.argsort(dim=1, descending=True, stable=True)[:, :r]
        going, to = source[best], target[match.gather(1, best)]
    return moved(going, to, t)


def moved(going: Tensor, to: Tensor, tokens: int) -> Merging:
    """Merges tokens `going` (R, r) into tokens `to` (R, r); all others keep their order."""
    stays = torch.ones(len(going), tokens, dtype=torch.bool, device=going.device).scatter_(1, going, False)
    rank = stays.long().cumsum(1) - 1  # (R, T), correct for tokens that stay
    place = rank.scatter(1, going, rank.gather(1, to))
    # the stable sort puts the tokens that stay first, in order; their number is known without a device synchronisation
    origin = stays.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : tokens - going.shape[1]]
    return Merging(place, origin)


def unmerged(rows: int, tokens: int, device: torch.device) -> Merging:
    """No token is merged."""
    index = torch.arange(tokens, device=device).expand(rows, -1)
    return Merging(index, index)


def merged_mean(x: Tensor, weight: Tensor, merging: Merging) -> tuple[Tensor, Tensor]:
    """Weighted means of the merged tokens x (R, T, C), (R, L, C), and their summed weights, (R, L) fp32.

    weight: (R, T) fp32. The mean is computed in fp32; a token that is not merged is unchanged.
    """
    length = merging.origin.shape[1]
    total = _sum(weight[..., None], merging.place, length)
    mean = _sum(x.float() * weight[..., None], merging.place, length) / total
    alone = weight.gather(1, merging.origin)[..., None] == total
    own = x.gather(1, merging.origin[..., None].expand(-1, -1, x.shape[2]))
    return torch.where(alone, own, mean.to(x.dtype)), total[..., 0]


def merged_sizes(merging: Merging) -> Tensor:
    """(R, L) fp32: how many tokens each one stands for."""
    ones = torch.ones(merging.place.shape, device=merging.place.device)
    return _sum(ones[..., None], merging.place, merging.origin.shape[1])[..., 0]


def averaged(parts: tuple[Tensor, ...], merging: Merging) -> tuple[Tensor, ...]:
    """Means over the merged tokens of queries, keys or values (B, heads, N, d), in the order given. Tokens behind those of `merging`,
    which the scene shares, stay as they are."""
    n = merging.place.shape[1]
    joined = torch.cat(parts, dim=3).transpose(1, 2)  # (B, N, heads, parts * d)
    own, shared = joined[:, :n].flatten(2), joined[:, n:]
    mean, _ = merged_mean(own, torch.ones(own.shape[:2], device=own.device), merging)
    return torch.cat((mean.unflatten(2, shared.shape[2:]), shared), dim=1).transpose(1, 2).chunk(len(parts), dim=3)


def _sum(x: Tensor, place: Tensor, length: int) -> Tensor:
    """(R, T, C), (R, T) -> (R, length, C): sums of the values with the same place, in a fixed order."""
    return (_sum_segments if x.is_cuda else _sum_index)(x, place, length)


def _sum_index(x: Tensor, place: Tensor, length: int) -> Tensor:
    rows, _, c = x.shape
    flat = (place + length * torch.arange(rows, device=x.device)[:, None]).flatten()
    return x.new_zeros(rows * length, c).index_add_(0, flat, x.flatten(0, 1)).view(rows, length, c)


def _sum_segments(x: Tensor, place: Tensor, length: int) -> Tensor:
    """The same for CUDA, where index_add_ adds in no fixed order."""
    rows, _, c = x.shape
    order = place.argsort(dim=1, stable=True)
    sorted_x = x.gather(1, order[..., None].expand(-1, -1, c)).flatten(0, 1)
    count = place.new_zeros(rows, length).scatter_add_(1, place, torch.ones_like(place))
    return torch.segment_reduce(sorted_x, "sum", lengths=count.flatten(), unsafe=True).view(rows, length, c)
