"""Token merging with checked arguments: each function runs the CUDA kernel or its torch twin, as `kernels` says (auto, cupy or
torch).

All raise ValueError if a tensor has the wrong shape, type, device or strides (the same checks for both), and ConfigError if
`kernels` is cupy and CuPy cannot be used. Only the twins (`torch`) have gradients. Shapes as in reference.py: R rows (frames) of P
= h * w patches, M groups, L patch tokens of a merged row.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from . import compiled, reference

Pair = tuple[int, int]
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
POSITIONS = (torch.float32, torch.int32, torch.int64)


def merge_layout(merged: Tensor, grid: Pair, group: Pair, length: int, kernels: str = "auto") -> tuple[Tensor, Tensor]:
    """(R, M) bool, True where a group becomes one token -> source (R, length), rev (R, P) int64: see reference.merge_layout.

    length: patch tokens of a merged row, at least the longest row's.
    """
    patches, groups, n = _sizes(grid, group)
    _check("merged", merged, (None, groups), (torch.bool,), merged.device)
    if length < patches - groups * (n - 1):
        raise ValueError(
            f"length is {length}, but {groups} merged groups of {patches} patches leave {patches - groups * (n - 1)}: "
            f"give as much as the longest row needs"
        )
    return _way(kernels, merged.device).merge_layout(merged, grid, group, length)


def merge_tokens(x: Tensor, source: Tensor, special: int, grid: Pair, group: Pair, kernels: str = "auto") -> Tensor:
    """(R, special + P, C) -> (R, special + L, C): special tokens and kept patches copied, merged groups averaged in fp32.

    x: float32, float16 or bfloat16. source: (R, L) of merge_layout. Padding is zero.
    """
    patches, _, _ = _sizes(grid, group)
    _check("x", x, (None, special + patches, None), FLOATS, x.device)
    _check("source", source, (len(x), None), (torch.int64,), x.device)
    return _way(kernels, x.device).merge_tokens(x, source, special, grid, group)


def merge_positions(
    positions: Tensor, source: Tensor, special: int, grid: Pair, group: Pair, kernels: str = "auto"
) -> Tensor:
    """(R or 1, special + P, 2) -> (R, special + L, 2) float32: a merged token sits at its group's centre, even between patches.

    positions: float32, int32 or int64; one row serves all R. source: (R, L) of merge_layout.
    """
    patches, _, _ = _sizes(grid, group)
    rows = len(source) if len(positions) != 1 else 1
    _check("positions", positions, (rows, special + patches, 2), POSITIONS, positions.device)
    _check("source", source, (None, None), (torch.int64,), positions.device)
    return _way(kernels, positions.device).merge_positions(positions, source, special, grid, group)


def restore_tokens(x: Tensor, rev: Tensor, special: int, kernels: str = "auto") -> Tensor:
    """(R, special + L, C) -> (R, special + P, C): every patch gets its token, or its group's. rev: (R, P) of merge_layout."""
    _check("x", x, (None, None, None), None, x.device)
    _check("rev", rev, (len(x), None), (torch.int64,), x.device)
    if x.shape[1] < special:
        raise ValueError(f"x has {x.shape[1]} tokens a row, but special is {special}: give x with its special tokens")
    return _way(kernels, x.device).restore_tokens(x, rev, special)


def _way(kernels: str, device: torch.device) -> ModuleType:
    """The module that implements the functions: both have the same ones."""
    return compiled if compiled.choose(kernels, device) == "cupy" else reference


def _sizes(grid: Pair, group: Pair) -> tuple[int, int, int]:
    """Number of patches, of complete groups, and of patches in a group."""
    if min(*grid, *group) < 1:
        raise ValueError(f"grid is {grid} and group {group}, but both need at least one row and one column")
    return grid[0] * grid[1], (grid[0] // group[0]) * (grid[1] // group[1]), group[0] * group[1]


def _check(
    name: str,
    tensor: Tensor,
    shape: tuple[int | None, ...],
    dtypes: tuple[torch.dtype, ...] | None,
    device: torch.device,
) -> None:
    """Raises ValueError with the value, what is allowed and the fix. None in `shape` allows any size."""
    found = tuple(tensor.shape)
    if len(found) != len(shape) or any(want not in (None, size) for size, want in zip(found, shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(
            f"{name} has shape {found}, but must have ({wanted}): see the grid, the group and special given"
        )
    if dtypes and tensor.dtype not in dtypes:
        allowed = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise ValueError(
            f"{name} is {str(tensor.dtype).removeprefix('torch.')}, but must be {allowed}: convert with .to()"
        )
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, but the other tensor on {device}: move it with .to()")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} has strides {tensor.stride()}, but must be contiguous: call .contiguous()")
