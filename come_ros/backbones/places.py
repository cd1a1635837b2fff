"""What a frame looks like as a whole, from the tokens that the encoder makes of it anyway: no further weights, no further pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ..tokens import Tokens


def place_descriptors(tokens: Tokens) -> Tensor:
    """(S, C) float32 of one scene's tokens after the encoder, each of length 1; the more alike two views, the nearer to 1 their product.

    Patch tokens of length 1, their mean, signed square roots, as SwiftVGGT has it; what all frames have in common is left to the code that
    compares them.
    """
    import torch

    with torch.inference_mode():
        patches = torch.nn.functional.normalize(tokens.x[0, :, tokens.special :].float(), dim=-1)
        mean = patches.mean(dim=1)
        return torch.nn.functional.normalize(mean.sign() * mean.abs().sqrt(), dim=-1)
