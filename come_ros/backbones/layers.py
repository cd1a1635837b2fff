"""Parts that visual geometry transformers share: attention block, rotary positions, ViT encoder, dense prediction head, cameras.

Module and parameter names are those of the published checkpoints, so that a user's file loads strictly. Written from the papers
(VGGT, Wang et al., CVPR 2025; DINOv2, Oquab et al., 2023; RoPE, Su et al., 2021; DPT, Ranftl et al., ICCV 2021).
Shapes: B scenes, S frames, T tokens of a frame, N tokens that attend to one another, C width, h x w patches, H x W pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..tokens import Tokens


class Rotary(NamedTuple):
    """Cosine and sine of every token's rotation, each (B, 1, N, d) or broadcastable to it; see rotary()."""

    cos: Tensor
    sin: Tensor

    def apply(self, x: Tensor) -> Tensor:  # (B, heads, N, d)
        """Rotate queries or keys: in each half of d (y, then x) channel k pairs with channel k + d/4."""
        y1, y2, x1, x2 = x.chunk(4, dim=-1)
        turned = torch.cat((-y2, y1, -x2, x1), dim=-1)
        return (x * self.cos + turned * self.sin).to(x.dtype)

    def at(self, index: Tensor) -> Rotary:
        """The tables of the tokens `index` (B, n) only."""

        def pick(table: Tensor) -> Tensor:  # (B or 1, 1, N, d) -> (B, 1, n, d)
            table = table.expand(len(index), -1, -1, -1)
            return table.gather(2, index[:, None, :, None].expand(-1, -1, -1, table.shape[3]))

        return type(self)(pick(self.cos), pick(self.sin))


class NeighbourRotary(Rotary):
    """The same with neighbouring pairs: channel 2j turns with 2j + 1; see video_rotary()."""

    def apply(self, x: Tensor) -> Tensor:  # (B, heads, N, d)
        turned = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
        return (x * self.cos + turned * self.sin).to(x.dtype)


def video_rotary(positions: Tensor, split: tuple[int, int, int], base: float = 10000.0) -> NeighbourRotary:
    """Rotation tables of 3D RoPE: split[0] channels of the head turn with t, then split[1] with y and split[2] with x.

    positions: (..., N, 3) (t, y, x). Angles a = p * base^(-2j/m) in each part of m channels, computed in fp64: t grows large.
    """
    angles = []
    for axis, m in enumerate(split):
        j = torch.arange(m // 2, dtype=torch.float64, device=positions.device)
        angles.append(positions[..., axis, None].double() * base ** (-2.0 * j / m))  # (..., N, m/2)
    angle = torch.cat(angles, dim=-1).repeat_interleave(2, dim=-1).unsqueeze(-3)  # (..., 1, N, d)
    return NeighbourRotary(angle.cos().float(), angle.sin().float())


def rotary(positions: Tensor, head_dim: int, base: float = 100.0) -> Rotary:
    """Rotation tables of 2D RoPE: the first half of the head turns with y, the second with x.

    positions: (..., N, 2) (y, x), special tokens at (0, 0) are not rotated. Angles a = p * base^(-2k/m), m = head_dim / 2.
    Always computed in fp32: in bf16 the angle would be off by up to 0.07 rad at position 37.
    """
    half = head_dim // 2
    k = torch.arange(half // 2, dtype=torch.float32, device=positions.device)
    frequency = base ** (-2.0 * k / half)
    angle = positions.float().unsqueeze(-1) * frequency  # (..., N, 2, half/2)
    angle = torch.cat((angle, angle), dim=-1).flatten(-2)  # (..., N, d): [y y x x]
    return Rotary(angle.cos().unsqueeze(-3), angle.sin().unsqueeze(-3))


def rotate(
    q: Tensor, k: Tensor, v: Tensor, rope: Rotary | None, index: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """q and k rotated by their positions, all of one type; index (B, n): which tokens k and v are of, None for all."""
    if rope is not None:
        q, k = rope.apply(q), (rope if index is None else rope.at(index)).apply(k)
    return q.to(v.dtype), k.to(v.dtype), v


class LayerScale(nn.Module):
    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Attention(nn.Module):
    """The linear maps and norms of multi-head attention; the accelerator supplies the attention itself (`attend`)."""

    def __init__(self, dim: int, heads: int, qk_norm: bool, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = nn.LayerNorm(dim // heads, eps=eps) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // heads, eps=eps) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def heads_of(self, x: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, C) -> q, k, v, each (B, heads, N, d), normalised, not rotated. index (B, n): k and v of those tokens only."""
        b, n, c = x.shape
        if index is None:
            q, k, v = self.qkv(x).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
            return self.q_norm(q), self.k_norm(k), v
        weight, bias = self.qkv.weight, self.qkv.bias
        q = F.linear(x, weight[:c], bias[:c]).view(b, n, self.heads, -1).transpose(1, 2)
        chosen = x.gather(1, index[..., None].expand(-1, -1, c))
        kv = F.linear(chosen, weight[c:], bias[c:])
        k, v = kv.view(b, index.shape[1], 2, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        return self.q_norm(q), self.k_norm(k), v

    def project(self, x: Tensor, rope: Rotary | None, index: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, C) -> q, k, v, each (B, heads, N, d), normalised and rotated. index: see heads_of."""
        return rotate(*self.heads_of(x, index), rope, index)

    def merge_heads(self, x: Tensor) -> Tensor:  # (B, heads, N, d) -> (B, N, C)
        return self.proj(x.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int, out: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, out or dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGLU(nn.Module):
    """Gated MLP (Shazeer, 2020) of DINOv2's largest encoder; two thirds of the hidden channels, rounded up to a multiple of 8."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        gated = (int(hidden * 2 / 3) + 7) // 8 * 8
        self.w12 = nn.Linear(dim, 2 * gated)
        self.w3 = nn.Linear(gated, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


Recall = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Block(nn.Module):
    """Pre-norm transformer block: x + ls1(attention(norm1(x))), then x + ls2(mlp(norm2(x))). Run by model.run_block.

    scale_init: first value of the layer scales, None for a block without them.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        qk_norm: bool = False,
        eps: float,
        scale_init: float | None,
        mlp_ratio: float = 4.0,
        mlp: Callable[[int, int], nn.Module] = Mlp,
    ) -> None:
        super().__init__()
        scale = nn.Identity if scale_init is None else functools.partial(LayerScale, dim, scale_init)
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads, qk_norm, eps=1e-5)
        self.ls1 = scale()
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = mlp(dim, int(dim * mlp_ratio))
        self.ls2 = scale()

    def forward(
        self, x: Tensor, rope: Rotary | None = None, recall: Recall | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """(B, N, C) -> (B, N, C), with plain attention, for blocks that accelerators do not change (in heads). recall: adds the
        keys and values of earlier frames to those of these tokens. mask: (N, N) bool, which token reads which; None for all."""
        q, k, v = project(self, x, rope)
        if recall is not None:
            k, v = recall(k, v)
        return finish(self, x, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


def project(block: Block, x: Tensor, rope: Rotary | None, index: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The part of the block before its attention: (B, N, C) -> q, k, v, see Attention.project."""
    return block.attn.project(block.norm1(x), rope, index)


def finish(block: Block, x: Tensor, attended: Tensor) -> Tensor:
    """The part after it: the stream x (B, N, C) and the attention's output (B, heads, N, d) -> (B, N, C)."""
    x = x + block.ls1(block.attn.merge_heads(attended))
    return x + block.ls2(block.mlp(block.norm2(x)))


class BlockParts(NamedTuple):
    """The two parts of a block around its attention: eager, or compiled, which fuses the memory-bound operations between the matrix
    products (norms, bias, GELU, rotation, residuals)."""

    project: Callable[..., tuple[Tensor, Tensor, Tensor]] = project
    finish: Callable[..., Tensor] = finish

    @classmethod
    def compiled(cls, backend: str = "inductor") -> BlockParts:
        """Compiled by torch.compile: once each for encoder and trunk, and once more for all other lengths."""
        return cls(torch.compile(project, backend=backend), torch.compile(finish, backend=backend))


class PatchProjection(nn.Module):
    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, h*w, C)
        return self.proj(images).flatten(2).transpose(1, 2)


IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as the published encoders expect


def antialiased_table(stored: Tensor, h: int, w: int) -> Tensor:
    """The (1, 1 + n*n, C) learned table resampled to a grid of (h, w) patches: (1, 1 + h*w, C).

    Antialiased bicubic by output size: the rule of VGGT and Pi3. Unchanged where the grid is the stored one.
    """
    return _resample_table(stored, h, w, size=(h, w), antialias=True)


def offset_table(stored: Tensor, h: int, w: int) -> Tensor:
    """As antialiased_table, by DINOv2's first rule, which MapAnything and Depth Anything 3 keep: plain bicubic by the scale factors
    (h + 0.1) / n, (w + 0.1) / n, which shifts the samples a little. Unchanged where there are as many patches, in a square."""
    side = round((stored.shape[1] - 1) ** 0.5)
    return _resample_table(stored, h, w, scale_factor=((h + 0.1) / side, (w + 0.1) / side))


def _resample_table(stored: Tensor, h: int, w: int, **how: object) -> Tensor:
    side = round((stored.shape[1] - 1) ** 0.5)
    if h == side and w == side:
        return stored
    grid = stored[:, 1:].float().view(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, mode="bicubic", align_corners=False, **how)  # type: ignore[arg-type]
    return torch.cat((stored[:, :1], grid.flatten(2).transpose(1, 2).to(stored.dtype)), dim=1)


class PatchEncoder(nn.Module):
    """DINOv2 ViT: images to patch tokens. Tokens in front of the patches (`prefix` of them): cls, then registers.

    side: number of patches of one side of the stored position table. table: how that is resampled. norm_eps: of the norm after the
    last block; None if there is none. projection: the module by which `embed` makes patch tokens; None for a PatchProjection.
    """

    def __init__(
        self,
        side: int,
        patch: int,
        dim: int,
        blocks: Iterable[Block],
        *,
        registers: int = 0,
        norm_eps: float | None = 1e-6,
        table: Callable[[Tensor, int, int], Tensor] = antialiased_table,
        projection: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side * side, dim))
        if registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, registers, dim))
        self.patch_embed = projection or PatchProjection(patch, dim)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.Identity() if norm_eps is None else nn.LayerNorm(dim, eps=norm_eps)
        self.patch, self.prefix, self._table = patch, 1 + registers, table

    def forward(self, images: Tensor) -> Tokens:
        """(B, S, 3, H, W) RGB in [0, 1] -> tokens before the first block."""
        b, s, _, height, width = images.shape
        grid = (height // self.patch, width // self.patch)
        x, fine = self.embed(images.flatten(0, 1))
        front = self.cls_token.expand(len(x), -1, -1)
        x = torch.cat((front, x), dim=1) + self._table(self.pos_embed, *grid)
        if self.prefix > 1:  # registers get no position
            x = torch.cat((x[:, :1], self.register_tokens.expand(len(x), -1, -1), x[:, 1:]), dim=1)
        x = x.unflatten(0, (b, s))
        positions = patch_positions(grid, self.prefix, x.device)
        return Tokens(x, positions, self.prefix, grid, fine=tuple(f.unflatten(0, (b, s)) for f in fine))

    def embed(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, 3, H, W) RGB in [0, 1] -> patch tokens (B, h*w, C) without positions; and finer features, if there are any."""
        # filled on the device: a copy from the host would synchronise and cannot be recorded
        mean, std = (torch.cat([images.new_full((1, 1, 1, 1), x) for x in v], dim=1) for v in (IMAGE_MEAN, IMAGE_STD))
        return self.patch_embed((images - mean) / std), []


def patch_positions(grid: tuple[int, int], special: int, device: torch.device) -> Tensor:
    """(1, 1, special + h*w, 2) integer (y, x): special tokens at (0, 0), patches from (1, 1)."""
    y, x = torch.meshgrid(torch.arange(grid[0], device=device), torch.arange(grid[1], device=device), indexing="ij")
    patches = torch.stack((y, x), dim=-1).view(-1, 2) + 1
    return torch.cat((patches.new_zeros(special, 2), patches))[None, None]
