"""`random`: merges random groups; the trivial baseline that a choice of groups must beat at the same number of kept tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..config import Config
from ..tokens import ModelShape
from .come import CoMe, dynamic_parameters
from .confidence import default_block

KEY_BITS = 24


class RandomConfidence(nn.Module):
    """(B, S, h, w, C) tokens -> (B, S, h, w) random numbers in 0 .. 1, the same whenever the same frame comes.

    A hash of the frame's tokens and of each patch's position: no state, no host synchronisation, independent of the order of
    frames. The key has one bit for the sign of each of KEY_BITS random contrasts, which rounding errors hardly ever flip.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        planes = torch.randn(KEY_BITS, width, generator=torch.Generator().manual_seed(0))
        self.register_buffer("planes", planes, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        b, s, h, w, c = tokens.shape
        x = tokens.reshape(b, s, h * w, c).float()
        place = torch.arange(h * w, device=x.device)
        bit = torch.arange(KEY_BITS, device=x.device)
        # a random half of the patches minus the other half: what all frames have in common cancels
        signs = (_mix(place[None] * 31 + bit[:, None] * 7919) & 1).float() * 2 - 1  # (K, P)
        signs = signs - signs.mean(dim=1, keepdim=True)
        contrasts = torch.einsum("kp,bspc,kc->bsk", signs, x, self.planes)
        key = ((contrasts > 0).long() << bit).sum(dim=-1)  # (B, S)
        return (_mix(key[..., None] * 65537 + place) & 0xFFFFFF).float().view(b, s, h, w) / 2**24


class Random(CoMe):
    """Co-Me with random numbers in place of the predictor."""

    name = "random"
    frontier = tuple(f"ratio={ratio},group={group}" for group in ("2x2", "3x3") for ratio in (0.25, 0.5, 0.75))

    @classmethod
    def create(cls, config: Config, shape: ModelShape, weights: str) -> Random:
        block = default_block(shape.encoder_depth)
        how = {"mode": config.accelerator.mode, "kernels": config.kernels}
        return cls(RandomConfidence(shape.encoder_width), block, **how, **cls.dynamic(config))

    @classmethod
    def dynamic(cls, config: Config) -> dict[str, Any]:
        """Those of Co-Me with edge_weight 0: a baseline that looks at the image would not be trivial."""
        return {**dynamic_parameters(config), "edge_weight": 0.0}


def _mix(x: Tensor) -> Tensor:
    """int64 -> int64 of 31 bits; each bit of the result depends on many bits of the input (Thomas Mueller's hash of 32 bits)."""
    for _ in range(2):
        x = ((x >> 16) ^ x) & 0xFFFFFFFF
        x = (x * 0x45D9F3B) & 0xFFFFFFFF
    return ((x >> 16) ^ x) & 0x7FFFFFFF
