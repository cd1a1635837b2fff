"""Parts that visual geometry transformers share: attention block, rotary positions, ViT encoder, dense prediction head.

Module and parameter names are those of the published VGGT checkpoint, so that a user's file loads strictly. Written from the papers
(VGGT, Wang et al., CVPR 2025; DINOv2, Oquab et al., 2023; RoPE, Su et al., 2021; DPT, Ranftl et al., ICCV 2021).
Shapes: B scenes, S frames, T tokens of a frame, N tokens that attend to one another, C width, h x w patches, H x W pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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

        return Rotary(pick(self.cos), pick(self.sin))


def rotary(positions: Tensor, head_dim: int, base: float = 100.0) -> Rotary:
    """Rotation tables of 2D RoPE: the first half of the head turns with y, the second with x.

    positions: (..., N, 2) (y, x), special tokens at (0, 0) are not turned. Angles a = p * base^(-2k/m), m = head_dim / 2.
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
    """q and k turned by their positions, all of one type; index (B, n): which tokens k and v are of, None for all."""
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
    """The linear maps and norms of multi-head attention; the attention itself is handed in by the accelerator (`attend`)."""

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

    def project(self, x: Tensor, rope: Rotary | None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, C) -> q, k, v, each (B, heads, N, d), normalised and rotated."""
        return rotate(*self.heads_of(x), rope)

    def merge_heads(self, x: Tensor) -> Tensor:  # (B, heads, N, d) -> (B, N, C)
        return self.proj(x.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int, out: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, out or dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block: x + ls1(attention(norm1(x))), then x + ls2(mlp(norm2(x))). Run by base.run_block."""

    def __init__(
        self, dim: int, heads: int, *, qk_norm: bool = False, eps: float, scale_init: float, mlp_ratio: float = 4.0
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads, qk_norm, eps=1e-5)
        self.ls1 = LayerScale(dim, scale_init)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.ls2 = LayerScale(dim, scale_init)

    def forward(self, x: Tensor, rope: Rotary | None = None) -> Tensor:
        """(B, N, C) -> (B, N, C), with plain attention: for blocks that no accelerator touches (camera head)."""
        q, k, v = self.attn.project(self.norm1(x), rope)
        x = x + self.ls1(self.attn.merge_heads(F.scaled_dot_product_attention(q, k, v)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchProjection(nn.Module):
    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, h*w, C)
        return self.proj(images).flatten(2).transpose(1, 2)


class PatchEncoder(nn.Module):
    """DINOv2 ViT with register tokens: images to patch tokens. Tokens in front of the patches: cls, then registers."""

    def __init__(self, side: int, patch: int, dim: int, depth: int, heads: int, registers: int) -> None:
        """side: number of patches of one side of the stored position table."""
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side * side, dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))  # unused, but in the published file
        self.patch_embed = PatchProjection(patch, dim)
        self.blocks = nn.ModuleList(Block(dim, heads, eps=1e-6, scale_init=1.0) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.prefix = 1 + registers

    def embed(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, 3, H, W) normalised images -> (B, 1 + registers + h*w, C) tokens before the first block; size = (h, w)."""
        x = self.patch_embed(images)
        table = position_table(self.pos_embed, *size)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1) + table
        return torch.cat((x[:, :1], self.register_tokens.expand(len(x), -1, -1), x[:, 1:]), dim=1)


def position_table(stored: Tensor, h: int, w: int) -> Tensor:
    """The (1, 1 + n*n, C) learned table resampled to a grid of (h, w) patches: (1, 1 + h*w, C).

    Antialiased bicubic by output size (the VGGT rule; MapAnything and DA3 use another). Unchanged where the grid is the stored one.
    """
    side = round((stored.shape[1] - 1) ** 0.5)
    if h == side and w == side:
        return stored
    grid = stored[:, 1:].float().view(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(h, w), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat((stored[:, :1], grid.flatten(2).transpose(1, 2).to(stored.dtype)), dim=1)


def grid_embedding(h: int, w: int, channels: int, aspect: float, device: torch.device) -> Tensor:
    """Sine-cosine position map (channels, h, w) that DPT adds to its features, times 0.1; aspect = W / H of the image."""
    span_x, span_y = aspect / (aspect**2 + 1) ** 0.5, 1 / (aspect**2 + 1) ** 0.5
    x = torch.linspace(-span_x * (w - 1) / w, span_x * (w - 1) / w, w, dtype=torch.float32, device=device)
    y = torch.linspace(-span_y * (h - 1) / h, span_y * (h - 1) / h, h, dtype=torch.float32, device=device)
    n = channels // 4
    frequency = 100.0 ** (-torch.arange(n, dtype=torch.float64, device=device) / n)

    def waves(p: Tensor) -> Tensor:  # (length,) -> (2n, length)
        angle = frequency[:, None] * p.double()
        return torch.cat((angle.sin(), angle.cos()))

    ex = waves(x)[:, None, :].expand(-1, h, -1)
    ey = waves(y)[:, :, None].expand(-1, -1, w)
    return 0.1 * torch.cat((ex, ey)).float()


class ResidualConv(nn.Module):
    """Residual convolution unit. The skip carries relu(x), not x: the published weights were trained that way."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        return self.conv2(F.relu(self.conv1(x))) + x


class Fusion(nn.Module):
    """One step from coarse to fine: add the finer level, refine, upsample."""

    def __init__(self, dim: int, has_skip: bool) -> None:
        super().__init__()
        if has_skip:
            self.resConfUnit1 = ResidualConv(dim)
        self.resConfUnit2 = ResidualConv(dim)
        self.out_conv = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, skip: Tensor | None, size: tuple[int, int]) -> Tensor:
        if skip is not None:
            x = x + self.resConfUnit1(skip)
        x = F.interpolate(self.resConfUnit2(x), size=size, mode="bilinear", align_corners=True)
        return self.out_conv(x)


class _Scratch(nn.Module):
    """Only a name: the published keys keep the fusion part under `scratch`."""

    def __init__(self, channels: tuple[int, ...], features: int, outputs: int) -> None:
        super().__init__()
        for i, c in enumerate(channels, start=1):
            setattr(self, f"layer{i}_rn", nn.Conv2d(c, features, 3, padding=1, bias=False))
            setattr(self, f"refinenet{i}", Fusion(features, has_skip=i < 4))
        self.output_conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.output_conv2 = nn.Sequential(
            nn.Conv2d(features // 2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, outputs, 1)
        )


class DenseHead(nn.Module):
    """DPT: patch tokens of four levels to a map at image resolution. Returns raw channels; activations belong to the model."""

    def __init__(self, dim: int, features: int, channels: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.projects = nn.ModuleList(nn.Conv2d(dim, c, 1) for c in channels)
        self.resize_layers = nn.ModuleList(
            (
                nn.ConvTranspose2d(channels[0], channels[0], 4, stride=4),
                nn.ConvTranspose2d(channels[1], channels[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(channels[3], channels[3], 3, stride=2, padding=1),
            )
        )
        self.scratch = _Scratch(channels, features, outputs)

    def forward(self, levels: list[Tensor], grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Four levels (frames, h*w, dim) of patch tokens on a grid (h, w) -> (frames, outputs, H, W) for size = (H, W)."""
        h, w = grid
        aspect = size[1] / size[0]
        maps = []
        for i, tokens in enumerate(levels):
            x = self.norm(tokens).transpose(1, 2).reshape(len(tokens), -1, h, w)
            x = self.projects[i](x)
            x = x + grid_embedding(h, w, x.shape[1], aspect, x.device).to(x.dtype)
            maps.append(getattr(self.scratch, f"layer{i + 1}_rn")(self.resize_layers[i](x)))
        s = self.scratch
        x = s.refinenet4(maps[3], None, maps[2].shape[-2:])
        x = s.refinenet3(x, maps[2], maps[1].shape[-2:])
        x = s.refinenet2(x, maps[1], maps[0].shape[-2:])
        x = s.refinenet1(x, maps[0], (2 * maps[0].shape[-2], 2 * maps[0].shape[-1]))
        x = s.output_conv1(x)
        x = F.interpolate(x, size=size, mode="bilinear", align_corners=True)
        x = x + grid_embedding(*size, x.shape[1], aspect, x.device).to(x.dtype)
        return s.output_conv2(x)
