"""Random tensors and tokens for the tests of accelerators."""

from __future__ import annotations

import torch
from torch import Tensor

from come_ros.accelerators import Tokens


def random(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal values of that shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens_of(x: Tensor, special: int, grid: tuple[int, int]) -> Tokens:
    """x: (B, S, T, C), the first `special` of T in front of a grid of patches."""
    return Tokens(x, torch.zeros(1, 1, x.shape[2], 2), special, grid)
