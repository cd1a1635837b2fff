"""The torch twin of every kernel: its definition, the fallback without CuPy, and the reference in its tests.

Tokens of R rows (a row is a frame): `special` tokens in front, then P = h * w patches row by row. Patches form whole groups of
gh x gw, counted row by row from the top left; patches at the right and lower edge that fill no group belong to none.
A merged row holds, behind its special tokens: edge patches, patches of unmerged groups, then one token for each merged group.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)  # else tensors cached by a first call in inference mode could not be trained through
def group_members(grid: tuple[int, int], group: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Patches (M, n) of each whole group, and the E patches (E,) in none, both row by row, as indices into P."""
    (h, w), (gh, gw) = grid, group
    index = torch.arange(h * w, device=device).view(h, w)
    rows, columns = h // gh, w // gw
    whole = index[: rows * gh, : columns * gw]
    members = whole.reshape(rows, gh, columns, gw).transpose(1, 2).reshape(rows * columns, gh * gw)
    right, below = index[: rows * gh, columns * gw :], index[rows * gh :]
    return members, torch.cat((right.flatten(), below.flatten()))


def merge_layout(merged: Tensor, grid: tuple[int, int], group: tuple[int, int], length: int) -> tuple[Tensor, Tensor]:
    """Where every patch goes, by a prefix sum over the groups.

    merged: (R, M) bool, True where a group becomes one token. length: patch tokens of a merged row, at least the longest row's.
    Returns source (R, length): patch index, P + group index, or -1 for padding; and rev (R, P): the place of each patch in it.
    """
    patches = grid[0] * grid[1]
    members, edge = group_members(grid, group, merged.device)
    rows, n = len(merged), members.shape[1]
    whole = ~merged
    before_merged = merged.long().cumsum(1) - merged.long()
    before_whole = whole.long().cumsum(1) - whole.long()
    kept = len(edge) + n * whole.sum(1, keepdim=True)
    j = torch.arange(n, device=merged.device)
    slot = torch.where(
        merged[..., None], (kept + before_merged)[..., None], len(edge) + n * before_whole[..., None] + j
    ).flatten(1)  # (R, M n)
    group_index = torch.arange(len(members), device=merged.device)[None, :, None]
    value = torch.where(merged[..., None], patches + group_index, members[None]).flatten(1)
    source = torch.full((rows, length), -1, dtype=torch.long, device=merged.device)
    source[:, : len(edge)] = edge
    source.scatter_(1, slot, value)
    rev = torch.empty(rows, patches, dtype=torch.long, device=merged.device)
    rev[:, edge] = torch.arange(len(edge), device=merged.device)
    rev[:, members.flatten()] = slot
    return source, rev


def merge_tokens(x: Tensor, source: Tensor, special: int, grid: tuple[int, int], group: tuple[int, int]) -> Tensor:
    """(R, special + P, C) -> (R, special + length, C): special tokens and kept patches copied, merged groups averaged in fp32.

    source: (R, length) of merge_layout. Padding is zero.
    """
    members, _ = group_members(grid, group, x.device)
    patches = x[:, special:]
    means = patches[:, members.flatten()].unflatten(1, members.shape).float().mean(2).to(x.dtype)  # (R, M, C)
    zero = x.new_zeros(len(x), 1, x.shape[2])
    index = torch.where(source < 0, patches.shape[1] + means.shape[1], source)
    out = torch.cat((patches, means, zero), 1).gather(1, index[..., None].expand(-1, -1, x.shape[2]))
    return torch.cat((x[:, :special], out), 1)


def merge_positions(
    positions: Tensor, source: Tensor, special: int, grid: tuple[int, int], group: tuple[int, int]
) -> Tensor:
    """(R or 1, special + P, 2) -> (R, special + length, 2) float32: as merge_tokens; a merged token sits at its group's centre,
    which lies between patches where the group's sides are even. One row serves all."""
    return merge_tokens(positions.float().expand(len(source), -1, -1), source, special, grid, group)


def restore_tokens(x: Tensor, rev: Tensor, special: int) -> Tensor:
    """(R, special + length, C) -> (R, special + P, C): every patch gets its token, or its group's. rev: (R, P) of merge_layout."""
    back = x[:, special:].gather(1, rev[..., None].expand(-1, -1, x.shape[2]))
    return torch.cat((x[:, :special], back), 1)
