"""The small network that says, from encoder tokens alone, how sure the whole model will be of each patch (Co-Me, 3.2).

Also the scorer's shape for other accelerators. Parameter names are those of the released Co-Me predictors, so that such a file loads.
"""

from __future__ import annotations

import json
import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError
from ..files import write_safetensors
from ..tokens import ModelShape

_KEY = "come_ros.predictor"  # in the safetensors metadata of our own files
SCOPES = ("window", "frame", "pooled")


class _Attention(nn.Module):
    """One head over all tokens it is given."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, source: Tensor | None) -> Tensor:
        """x: (B, N, C) asks; source: (B, K, C) answers, None for x itself."""
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
    "none". scope: who attends to whom: "window" all patches of the window (the paper's), "frame" each frame by itself, "pooled" all
    patches to the 4x4-averaged ones of the window (a sixteenth of the cost). registers: learned tokens next to the patches.
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
        """(B, S, h, w, width) patch tokens -> (B, S, h, w) confidence; only its order within a window means anything. h, w >= 2."""
        out = self.logits(tokens)
        return out.exp() + 1 if self.activation == "expp1" else out

    def logits(self, tokens: Tensor) -> Tensor:
        """Before the activation, in the same order."""
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
    """Index of the encoder block that a predictor reads: the 15th of 24 (Co-Me), and as far through other encoders."""
    return max(0, round(encoder_depth * 15 / 24) - 1)


def save_predictor(path: str, predictor: ConfidencePredictor, block: int, about: dict[str, str] | None = None) -> None:
    """As fp16 safetensors, with all that is needed to read it. block: index of the encoder block it was trained on."""
    p = predictor
    sizes = {"width": p.width, "dim": p.dim, "activation": p.activation, "scope": p.scope, "registers": p.registers}
    state = {k: v.detach().half().contiguous() for k, v in p.state_dict().items()}
    write_safetensors(path, state, {_KEY: json.dumps({**sizes, "block": block}), **(about or {})})


def load_predictor(path: str, shape: ModelShape) -> tuple[ConfidencePredictor, int]:
    """A predictor in fp32 on the CPU, and the index of the encoder block it reads.

    A file of ours says its sizes; one of the released predictors is measured: its shapes give the sizes, and it reads the 15th of 24
    blocks. Raises CheckpointError, naming the file, if it is no predictor or is one for another encoder.
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
    return predictor.float().eval().requires_grad_(False), block


def bundled_predictor(weights: str) -> str:
    """The predictor that ships for the weights file of that name. Raises CheckpointError if none does."""
    from ..weights import MODEL_FOLDER

    name = f"come_{os.path.splitext(os.path.basename(weights))[0]}.safetensors"
    path = os.path.join(MODEL_FOLDER, name)
    if os.path.dirname(os.path.abspath(weights)) != MODEL_FOLDER or not os.path.isfile(path):
        raise CheckpointError(
            f"no confidence predictor ships for {weights}: make one with `come_ros distill --weights {weights}`, and name it with "
            f"accelerator.predictor, or set accelerator.name to none"
        )
    return path
