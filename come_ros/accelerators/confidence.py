"""The small network that predicts, from encoder tokens alone, how confident the full model will be of each patch (Co-Me, 3.2).

Parameter names are those of the released Co-Me predictors, so that their files load.
"""

from __future__ import annotations

import json

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..companions import PREDICTOR
from ..errors import CheckpointError
from ..files import write_safetensors
from ..tokens import ModelShape

_KEY = "come_ros.predictor"  # in the safetensors metadata of our own files
SCOPES = ("window", "frame", "pooled")


class _Attention(nn.Module):
    """Single-head attention over all given tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, source: Tensor | None) -> Tensor:
        """x: (B, N, C) gives the queries; source: (B, K, C) the keys and values, None for x itself."""
        if source is None:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
        else:
            c = x.shape[-1]
            q = F.linear(x, self.qkv.weight[:c], self.qkv.bias[:c])
            k, v = F.linear(source, self.qkv.weight[c:], self.qkv.bias[c:]).chunk(2, dim=-1)
        return self.proj(F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0])


class _Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 2 * dim)
        self.fc2 = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = _Attention(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = _Mlp(dim)


class ConfidencePredictor(nn.Module):
    """Linear, one pre-norm transformer block, two 3x3 convolutions, activation.

    width: channels of the encoder tokens. dim: of the predictor. activation: "expp1" (exp(x) + 1, as the teacher's confidence) or
    "none". scope: what each patch attends to: "window" all patches of the window (as in the paper), "frame" its own frame,
    "pooled" the 4x4-averaged patches of the window (a sixteenth of the cost). registers: number of learned tokens added to the
    patches.
    """

    def __init__(
        self, width: int, dim: int = 128, *, activation: str = "expp1", scope: str = "window", registers: int = 0
    ) -> None:
        super().__init__()
        if activation not in ("expp1", "none") or scope not in SCOPES:
            raise ValueError(f"activation {activation!r} must be expp1 or none, scope {scope!r} one of {SCOPES}")
        self.width, self.dim, self.activation, self.scope = width, dim, activation, scope
        self.proj1 = nn.Linear(width, dim)
        self.block = _Block(dim)
        self.proj2 = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, padding_mode="reflect"),
            nn.GELU(),
            nn.Conv2d(dim, 1, 3, padding=1, padding_mode="reflect"),
        )
        if registers:
            self.register_token = nn.Parameter(torch.zeros(1, registers, dim))
        self.registers = registers

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, S, h, w, width) patch tokens -> (B, S, h, w) confidence, of which only the order within a window is meaningful. h, w
        >= 2."""
        out = self.logits(tokens)
        return out.exp() + 1 if self.activation == "expp1" else out

    def logits(self, tokens: Tensor) -> Tensor:
        """The values before the activation; their order is the same."""
        b, s, h, w, _ = tokens.shape
        grid = self.proj1(tokens)
        x = grid.reshape(b * s, h * w, -1) if self.scope == "frame" else grid.reshape(b, s * h * w, -1)
        if self.registers:
            x = torch.cat((self.register_token.expand(len(x), -1, -1), x), dim=1)
        normed = self.block.norm1(x)
        source = None
        if self.scope == "pooled":
            maps = normed[:, self.registers :].reshape(b * s, h, w, -1).permute(0, 3, 1, 2)
            pooled = F.avg_pool2d(maps, 4, ceil_mode=True, count_include_pad=False)
            source = pooled.flatten(2).transpose(1, 2).reshape(b, -1, self.dim)
        x = x + self.block.attn(normed, source)
        x = x + self.block.mlp(self.block.norm2(x))
        maps = x[:, self.registers :].reshape(b * s, h, w, -1).permute(0, 3, 1, 2)
        return self.proj2(maps).view(b, s, h, w)


def default_block(encoder_depth: int) -> int:
    """Index of the encoder block that a predictor reads: the 15th of 24 (Co-Me), or the same relative depth in other encoders."""
    return max(0, round(encoder_depth * 15 / 24) - 1)


def save_predictor(path: str, predictor: ConfidencePredictor, block: int, about: dict[str, str] | None = None) -> None:
    """Writes an fp16 safetensors file with everything needed to read it. block: index of the encoder block it was trained on. about: more
    metadata, such as companions.made_for the weights."""
    p = predictor
    sizes = {"width": p.width, "dim": p.dim, "activation": p.activation, "scope": p.scope, "registers": p.registers}
    state = {k: v.detach().half().contiguous() for k, v in p.state_dict().items()}
    write_safetensors(path, state, {_KEY: json.dumps({**sizes, "block": block}), **(about or {})})


def load_predictor(path: str, shape: ModelShape, weights: str = "") -> tuple[ConfidencePredictor, int]:
    """Returns a predictor in fp32 on the CPU and the index of the encoder block it reads.

    Our files state their sizes in their metadata; for the released predictors they follow from the tensor shapes, and the block is
    the 15th of 24. weights: the model's file; a predictor that was made for others is logged. Empty where it is not for them, or they
    are about to change. Raises CheckpointError, naming the file, if it is not a predictor or belongs to another encoder.
    """
    from ..weights import fill, read_checkpoint

    state, metadata = read_checkpoint(path)
    depth = shape.encoder_depth
    if _KEY in metadata:
        sizes = json.loads(metadata[_KEY])
        block = int(sizes.pop("block"))
    else:
        if "proj1.weight" not in state:
            raise CheckpointError(
                f"{path} is not a confidence predictor (no key proj1.weight): make one with come_ros distill"
            )
        dim, width = state["proj1.weight"].shape
        tokens = state.get("register_token")
        sizes = {"width": width, "dim": dim, "registers": 0 if tokens is None else tokens.shape[1]}
        block = default_block(depth)
    width = shape.encoder_width
    if sizes["width"] != width or not 0 <= block < depth:
        raise CheckpointError(
            f"{path} reads block {block} of an encoder of width {sizes['width']}, but this model's has {depth} blocks of width "
            f"{width}: make a predictor for these weights with come_ros distill"
        )
    predictor = ConfidencePredictor(**sizes)
    fill(predictor, state, path)
    PREDICTOR.fits(path, metadata, weights)
    return predictor.float().eval().requires_grad_(False), block
