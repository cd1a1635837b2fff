"""The two small networks of PaceVGGT: one scores patches, the other rebuilds the dropped patches. The paper (arXiv 2605.08371)
describes only their type; the sizes are ours.
"""

from __future__ import annotations

import json
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..companions import NETWORKS
from ..errors import CheckpointError
from ..files import write_safetensors
from ..tokens import ModelShape

_KEY = "come_ros.pace"  # in the safetensors metadata
SHARPNESS = 12.0
PARTS = ("frame", "global")  # trunk blocks whose outputs make up a level


class TokenScorer(nn.Module):
    """Depth-wise convolutions over the encoder's output; predict how much the model will attend to each patch, as a logit."""

    def __init__(self, width: int, dim: int = 256, spread: float = 0.0) -> None:
        """spread: weight of an even choice relative to the score; stored in the file."""
        super().__init__()
        self.register_buffer("spread", torch.tensor(float(spread)))
        self.norm = nn.LayerNorm(width)
        self.layers = nn.Sequential(
            nn.Conv2d(width, dim, 1),
            nn.GELU(),
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim),
            nn.Conv2d(dim, dim, 1),
            nn.GELU(),
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim),
            nn.Conv2d(dim, 1, 1),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, S, h, w, width) -> (B, S, h, w)."""
        maps = self.norm(tokens).flatten(0, 1).permute(0, 3, 1, 2)
        return self.layers(maps).view(tokens.shape[:4])


class Lookup(NamedTuple):
    """Inputs of restoration for one window: queries (R, heads, P, d) of all patches, keys (R, heads, K, d) of the kept ones, kept
    (R, K): their indices, and features (R, P, width) of all patches, normalised."""

    q: Tensor
    k: Tensor
    kept: Tensor
    features: Tensor


class Correction(nn.Module):
    """Corrects a restored patch from its own features: one MLP for all layers of a part, conditioned on the layer.

    Its output is in units of the tokens' standard deviation, which grows from layer to layer.
    """

    def __init__(self, width: int, level: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(level)
        self.fc1, self.layer, self.fc2 = (
            nn.Linear(level + width, hidden),
            nn.Embedding(depth, hidden),
            nn.Linear(hidden, level),
        )
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, found: Tensor, features: Tensor, index: int) -> Tensor:
        """(R, P, level), (R, P, width), which layer -> (R, P, level)."""
        h = self.fc1(torch.cat((self.norm(found), features.to(found.dtype)), dim=-1)) + self.layer.weight[index]
        return found + found.std(-1, keepdim=True) * self.fc2(F.gelu(h))


class Restorer(nn.Module):
    """One cross-attention guided by features: dropped patches attend to kept patches of their frame with similar encoder features
    and a nearby position, and take over their trunk outputs; a small MLP that reads the patch's own features corrects the result.
    Kept patches pass through.

    width: of the encoder's tokens. level: of the trunk's. depth: pairs of blocks in the trunk.
    """

    def __init__(
        self, width: int, level: int, dim: int = 256, heads: int = 4, hidden: int = 512, depth: int = 24
    ) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.q, self.k = nn.Linear(width, dim), nn.Linear(width, dim)
        # penalty of the logit per squared distance in patches, one per head; softplus is applied to it
        self.nearness = nn.Parameter(torch.linspace(-2.0, 1.0, heads))
        self.corrections = nn.ModuleDict({part: Correction(width, level, hidden, depth) for part in PARTS})
        # starts as a soft copy of the most similar patch: the logit of a normalised feature with itself is about SHARPNESS
        nn.init.orthogonal_(self.q.weight, gain=SHARPNESS**0.5 * (dim / heads) ** -0.25)
        nn.init.zeros_(self.q.bias)
        self.k.load_state_dict(self.q.state_dict())

    def lookup(self, features: Tensor, kept: Tensor, grid: tuple[int, int]) -> Lookup:
        """features: (R, P, width) of all patches. kept: (R, K)."""
        f = self.norm(features)
        q, k = (p(f).unflatten(2, (self.heads, -1)).transpose(1, 2) for p in (self.q, self.k))
        y, x = torch.meshgrid(
            *(torch.arange(n, device=f.device, dtype=f.dtype) - (n - 1) / 2 for n in grid), indexing="ij"
        )
        place, one = torch.stack((y, x), dim=-1).flatten(0, 1), torch.ones(y.numel(), 1, device=f.device, dtype=f.dtype)
        # - w |p - p'|^2 as a dot product, up to a term per query that is the same for all of its logits
        w = F.softplus(self.nearness)[:, None, None] * q.shape[3] ** 0.5
        of_q = torch.cat((2 * w * place, one.expand(self.heads, -1, -1)), dim=-1)
        of_k = torch.cat((place.expand(self.heads, -1, -1), -w * (place**2).sum(-1, keepdim=True)), dim=-1)
        q, k = (torch.cat((t, where.expand(len(f), -1, -1, -1)), dim=-1) for t, where in ((q, of_q), (k, of_k)))
        chosen = kept[:, None, :, None].expand(-1, self.heads, -1, k.shape[3])
        return Lookup(q, k.gather(2, chosen), kept, f)

    def forward(self, x: Tensor, lookup: Lookup, part: str, index: int) -> Tensor:
        """Kept tokens (R, K, level) from block number `index` of that part -> all patches (R, P, level)."""
        values = x.unflatten(2, (self.heads, -1)).transpose(1, 2)
        scale = (self.q.weight.shape[0] / self.heads) ** -0.5
        found = F.scaled_dot_product_attention(lookup.q.to(x.dtype), lookup.k.to(x.dtype), values, scale=scale)
        found = self.corrections[part](found.transpose(1, 2).flatten(2), lookup.features, index).to(x.dtype)
        return found.scatter(1, lookup.kept[..., None].expand(-1, -1, x.shape[2]), x)


def _depth(shape: ModelShape) -> int:
    """Levels of each part that are rebuilt."""
    return sum(part == "frame" for part in shape.trunk)


def make_networks(shape: ModelShape, dim: int, spread: float = 0.0) -> tuple[TokenScorer, Restorer]:
    """Untrained networks for the model."""
    level = shape.trunk_width
    hidden, depth = max(32, level // 2), _depth(shape)
    return TokenScorer(shape.encoder_width, dim, spread), Restorer(
        shape.encoder_width, level, dim, hidden=hidden, depth=depth
    )


def save_networks(path: str, scorer: TokenScorer, restorer: Restorer, about: dict[str, str] | None = None) -> None:
    """Writes both to one fp16 safetensors file, with the sizes needed to read it. about: more metadata, such as companions.made_for
    the weights."""
    networks = {"scorer": scorer, "restorer": restorer}
    state = {
        f"{n}.{k}": v.detach().half().contiguous().clone()
        for n, m in networks.items()
        for k, v in m.state_dict().items()
    }
    sizes = {
        "width": scorer.norm.weight.shape[0],
        "level": restorer.corrections["frame"].norm.weight.shape[0],  # type: ignore[union-attr]
        "depth": restorer.corrections["frame"].layer.weight.shape[0],  # type: ignore[union-attr]
        "dim": restorer.q.weight.shape[0],
        "hidden": restorer.corrections["frame"].layer.weight.shape[1],  # type: ignore[union-attr]
    }
    write_safetensors(path, state, {_KEY: json.dumps(sizes), **(about or {})})


def load_networks(path: str, shape: ModelShape, weights: str = "") -> tuple[TokenScorer, Restorer]:
    """Both networks, in fp32 on the CPU. weights: the model's file; networks that were made for others are logged. Raises
    CheckpointError, naming the file, if it does not hold them or belongs to a model of other sizes."""
    from ..weights import fill, read_checkpoint

    state, metadata = read_checkpoint(path)
    if _KEY not in metadata:
        raise CheckpointError(f"{path} holds no scorer and restorer of PaceVGGT: make them with come_ros train-pace")
    sizes = json.loads(metadata[_KEY])
    level, depth = shape.trunk_width, _depth(shape)
    if (sizes["width"], sizes["level"], sizes["depth"]) != (shape.encoder_width, level, depth):
        raise CheckpointError(
            f"{path} is for an encoder of width {sizes['width']} and a trunk of width {sizes['level']} with {sizes['depth']} frame blocks, "
            f"but this model's are {shape.encoder_width} and {level} with {depth}: make one for these weights with come_ros train-pace"
        )
    scorer = TokenScorer(sizes["width"], sizes["dim"])
    restorer = Restorer(sizes["width"], level, sizes["dim"], hidden=sizes["hidden"], depth=sizes["depth"])
    for name, network in (("scorer", scorer), ("restorer", restorer)):
        fill(network, {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}, path)
        network.float().eval().requires_grad_(False)
    NETWORKS.fits(path, metadata, weights)
    return scorer, restorer
