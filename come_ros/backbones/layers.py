"""Parts that visual geometry transformers share: attention block, rotary positions, ViT encoder, dense prediction head, cameras.

Module and parameter names are those of the published checkpoints, so that a user's file loads strictly. Written from the papers
(VGGT, Wang et al., CVPR 2025; DINOv2, Oquab et al., 2023; RoPE, Su et al., 2021; DPT, Ranftl et al., ICCV 2021).
Shapes: B scenes, S frames, T tokens of a frame, N tokens that attend to one another, C width, h x w patches, H x W pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..accelerators.base import Tokens


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


class Block(nn.Module):
    """Pre-norm transformer block: x + ls1(attention(norm1(x))), then x + ls2(mlp(norm2(x))). Run by base.run_block.

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

    def forward(self, x: Tensor, rope: Rotary | None = None) -> Tensor:
        """(B, N, C) -> (B, N, C), with plain attention: for blocks that no accelerator touches (in heads)."""
        return finish(self, x, F.scaled_dot_product_attention(*project(self, x, rope)))


def project(block: Block, x: Tensor, rope: Rotary | None, index: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """What of a block comes before its attention: (B, N, C) -> q, k, v, see Attention.project."""
    return block.attn.project(block.norm1(x), rope, index)


def finish(block: Block, x: Tensor, attended: Tensor) -> Tensor:
    """What comes after it: the stream x (B, N, C) and what was attended to (B, heads, N, d) -> (B, N, C)."""
    x = x + block.ls1(block.attn.merge_heads(attended))
    return x + block.ls2(block.mlp(block.norm2(x)))


class BlockParts(NamedTuple):
    """The two parts of a block around its attention: plain, or compiled, which fuses all that moves bytes between the matrix products
    (norms, bias, GELU, rotation, residuals)."""

    project: Callable[..., tuple[Tensor, Tensor, Tensor]] = project
    finish: Callable[..., Tensor] = finish

    @classmethod
    def compiled(cls, backend: str = "inductor") -> BlockParts:
        """By torch.compile: once for encoder and trunk each, and again when another length comes, then for all lengths."""
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
    last block; None if there is none. projection: what `embed` makes patch tokens with; None for a PatchProjection.
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
        # filled on the device: a copy from the host would wait for it, and cannot be recorded
        mean, std = (torch.cat([images.new_full((1, 1, 1, 1), x) for x in v], dim=1) for v in (IMAGE_MEAN, IMAGE_STD))
        return self.patch_embed((images - mean) / std), []


def patch_positions(grid: tuple[int, int], special: int, device: torch.device) -> Tensor:
    """(1, 1, special + h*w, 2) integer (y, x): special tokens at (0, 0), patches from (1, 1)."""
    y, x = torch.meshgrid(torch.arange(grid[0], device=device), torch.arange(grid[1], device=device), indexing="ij")
    patches = torch.stack((y, x), dim=-1).view(-1, 2) + 1
    return torch.cat((patches.new_zeros(special, 2), patches))[None, None]


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
    """Residual convolution unit. rectified: the skip carries relu(x) instead of x, as the published VGGT was trained."""

    def __init__(self, dim: int, rectified: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)
        self.skip = nn.ReLU() if rectified else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu(self.conv1(F.relu(x)))) + self.skip(x)


class Fusion(nn.Module):
    """One step from coarse to fine: add the finer level, refine, upsample."""

    def __init__(self, dim: int, has_skip: bool, rectified: bool = True) -> None:
        super().__init__()
        if has_skip:
            self.resConfUnit1 = ResidualConv(dim, rectified)
        self.resConfUnit2 = ResidualConv(dim, rectified)
        self.out_conv = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, skip: Tensor | None, size: tuple[int, int]) -> Tensor:
        if skip is not None:
            x = x + self.resConfUnit1(skip)
        x = F.interpolate(self.resConfUnit2(x), size=size, mode="bilinear", align_corners=True)
        return self.out_conv(x)


class Pyramid(nn.Module):
    """DPT's four fusion steps, coarse to fine, under the published names `refinenet1` (finest) to `refinenet4`."""

    def __init__(self, features: int, rectified: bool) -> None:
        super().__init__()
        for i in range(1, 5):
            setattr(self, f"refinenet{i}", Fusion(features, has_skip=i < 4, rectified=rectified))

    def fuse(self, maps: list[Tensor], doubling: bool = False) -> Tensor:
        """Four maps (frames, features, ., .), fine to coarse -> one of twice the finest's size.

        Each step resamples to the next map's size; `doubling`: to twice its own, of which the next map's size is then cut out.
        """
        x, skip = maps[3], None
        for i in (3, 2, 1, 0):
            size = (2 * maps[i].shape[-2], 2 * maps[i].shape[-1])
            finer = (maps[i - 1].shape[-2], maps[i - 1].shape[-1]) if i else size
            x = getattr(self, f"refinenet{i + 1}")(x, skip, size if doubling else finer)[..., : finer[0], : finer[1]]
            skip = maps[i - 1]
        return x


def level_resize(index: int, channels: int) -> nn.Module:
    """What brings level `index` of four from the patch grid to its place in the pyramid: 4, 2, 1 and 1/2 times the grid."""
    if index < 2:
        factor = 4 >> index
        return nn.ConvTranspose2d(channels, channels, factor, stride=factor)
    return nn.Identity() if index == 2 else nn.Conv2d(channels, channels, 3, stride=2, padding=1)


class _Scratch(Pyramid):
    """The pyramid with what the published keys of VGGT keep beside it."""

    def __init__(self, channels: tuple[int, ...], features: int, outputs: int, rectified: bool) -> None:
        super().__init__(features, rectified)
        for i, c in enumerate(channels, start=1):
            setattr(self, f"layer{i}_rn", nn.Conv2d(c, features, 3, padding=1, bias=False))
        self.output_conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.output_conv2 = nn.Sequential(
            nn.Conv2d(features // 2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, outputs, 1)
        )


class DenseHead(nn.Module):
    """DPT as VGGT and Depth Anything 3 have it: patch tokens of four levels to a map at image resolution, raw channels."""

    def __init__(
        self,
        dim: int,
        features: int,
        channels: tuple[int, ...],
        outputs: int,
        rectified: bool = True,
        fine: tuple[int, ...] = (),
    ) -> None:
        """fine: channels of finer features of the images, which are added to the first levels of the pyramid; such a head makes four
        pixels of each of half the resolution, where its last convolutions are a quarter of the work."""
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.projects = nn.ModuleList(nn.Conv2d(dim, c, 1) for c in channels)
        self.resize_layers = nn.ModuleList(level_resize(i, c) for i, c in enumerate(channels))
        self.shuffle = 2 if fine else 1
        self.scratch = _Scratch(channels, features, outputs * self.shuffle**2, rectified)
        if fine:
            self.fine = nn.ModuleList(nn.Conv2d(c, features, 3, padding=1) for c in fine)

    def forward(
        self, levels: list[Tensor], grid: tuple[int, int], size: tuple[int, int], fine: Sequence[Tensor] = ()
    ) -> Tensor:
        """Four levels (frames, h*w, dim) of patch tokens on a grid (h, w) -> (frames, outputs, H, W) for size = (H, W).

        fine: maps (frames, ., 4 h, 4 w) and (frames, ., 2 h, 2 w), if the head was made for them.
        """
        h, w = grid
        aspect = size[1] / size[0]
        maps = []
        for i, tokens in enumerate(levels):
            x = self.norm(tokens).transpose(1, 2).reshape(len(tokens), -1, h, w)
            x = self.projects[i](x)
            x = x + grid_embedding(h, w, x.shape[1], aspect, x.device).to(x.dtype)
            x = getattr(self.scratch, f"layer{i + 1}_rn")(self.resize_layers[i](x))
            maps.append(x + self.fine[i](fine[i]) if i < len(fine) else x)
        s = self.scratch
        x = s.output_conv1(s.fuse(maps))
        height, width = size[0] // self.shuffle, size[1] // self.shuffle
        x = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=True)
        x = x + grid_embedding(height, width, x.shape[1], aspect, x.device).to(x.dtype)
        x = s.output_conv2(x)
        return F.pixel_shuffle(x, self.shuffle) if self.shuffle > 1 else x


def in_chunks(
    head: Callable[[list[Tensor]], Tensor],
    levels: list[Tensor],
    check: Callable[[], None],
    chunk: int = 8,
    frames: Sequence[int] | None = None,
) -> Tensor:
    """`head` on levels (B, S, h*w, C) of independent frames, `chunk` of them at a time to bound memory: (B, S, ...); or on some of the
    `frames` only: (B, n, ...)."""
    b, s = levels[0].shape[:2]
    wanted = range(s) if frames is None else frames
    parts = []
    for start in range(0, len(wanted), chunk):
        check()
        some = wanted[start : start + chunk]
        if list(some) == list(range(some[0], some[0] + len(some))):  # no copy
            part = head([t[:, some[0] : some[-1] + 1].flatten(0, 1) for t in levels])
        else:
            part = head([torch.stack([t[:, i] for i in some], dim=1).flatten(0, 1) for t in levels])
        parts.append(part.unflatten(0, (b, -1)))
    out = torch.cat(parts, dim=1)
    return out.to(torch.promote_types(out.dtype, torch.float32))  # exponentials follow


class PoseRegressor(nn.Module):
    """Patch tokens of a frame to its pose: two residual stages, mean over patches, MLP (MapAnything and Pi3).

    rotation: how many numbers tell it. convolution: whether the residual stages are stored as 1x1 convolutions. dim_in: channels
    of the tokens, to be projected first; None if they are `dim`.
    """

    def __init__(self, dim: int, rotation: int, convolution: bool, dim_in: int | None = None) -> None:
        super().__init__()
        layer: Callable[[int, int], nn.Module] = (
            functools.partial(nn.Conv2d, kernel_size=1) if convolution else nn.Linear
        )
        self.convolution = convolution
        self.proj = nn.Identity() if dim_in is None else layer(dim_in, dim)
        self.res_conv = nn.ModuleList(
            nn.ModuleDict({f"res_conv{i}": layer(dim, dim) for i in (1, 2, 3)}) for _ in range(2)
        )
        self.more_mlps = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU())
        self.fc_t = nn.Linear(dim, 3)
        self.fc_rot = nn.Linear(dim, rotation)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(frames, N, dim_in) -> translation (frames, 3), rotation (frames, rotation)."""
        x = self.proj(tokens.transpose(1, 2)[..., None] if self.convolution else tokens)
        for stage in self.res_conv:
            z = x
            for layer in stage.values():  # type: ignore[operator, union-attr]
                z = F.relu(layer(z))
            x = x + z
        x = self.more_mlps(x.mean((2, 3)) if self.convolution else x.mean(1))
        return self.fc_t(x), self.fc_rot(x)


def rotation_from_quaternion(quat_xyzw: Tensor) -> Tensor:
    """(..., 4) of any non-zero length -> (..., 3, 3)."""
    x, y, z, w = quat_xyzw.unbind(-1)
    s = 2 / quat_xyzw.square().sum(-1).clamp_min(1e-12)
    rows = (
        (1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)),
        (s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w)),
        (s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y)),
    )
    return torch.stack([torch.stack(r, dim=-1) for r in rows], dim=-2)


def quaternion_from_rotation(rotation: Tensor) -> Tensor:
    """(..., 3, 3) -> xyzw (..., 4) of length 1 with w >= 0."""
    m = rotation.flatten(-2).unbind(-1)
    # each row is the quaternion times twice one of its parts; the row of the largest part is the most exact
    rows = torch.stack(
        [
            torch.stack((1 + m[0] - m[4] - m[8], m[1] + m[3], m[2] + m[6], m[7] - m[5]), dim=-1),
            torch.stack((m[1] + m[3], 1 - m[0] + m[4] - m[8], m[5] + m[7], m[2] - m[6]), dim=-1),
            torch.stack((m[2] + m[6], m[5] + m[7], 1 - m[0] - m[4] + m[8], m[3] - m[1]), dim=-1),
            torch.stack((m[7] - m[5], m[2] - m[6], m[3] - m[1], 1 + m[0] + m[4] + m[8]), dim=-1),
        ],
        dim=-2,
    )
    best = rows.diagonal(dim1=-2, dim2=-1).argmax(-1)
    quat = rows.gather(-2, best[..., None, None].expand(*best.shape, 1, 4))[..., 0, :]
    quat = quat / quat.norm(dim=-1, keepdim=True)
    return torch.where(quat[..., 3:] < 0, -quat, quat)


def rigid(rotation: Tensor, translation: Tensor) -> Tensor:
    """(..., 3, 3) and (..., 3) -> (..., 4, 4)."""
    pose = torch.eye(4, dtype=rotation.dtype, device=rotation.device).expand(*rotation.shape[:-2], 4, 4).clone()
    pose[..., :3, :3], pose[..., :3, 3] = rotation, translation
    return pose


def invert_rigid(pose: Tensor) -> Tensor:
    """(..., 4, 4) -> its inverse, exactly rigid."""
    rt = pose[..., :3, :3].transpose(-1, -2)
    return rigid(rt, -(rt @ pose[..., :3, 3:])[..., 0])


def world_points(world_from_camera: Tensor, local: Tensor, frames: Sequence[int] | None = None) -> Tensor:
    """Points (B, n, H, W, 3) in the cameras of `frames` (None for all) among (B, S, 4, 4) -> the same in the world."""
    pose = world_from_camera[:, slice(None) if frames is None else list(frames), None, None]
    return (pose[..., :3, :3] @ local[..., None])[..., 0] + pose[..., :3, 3]


def pinhole(fx: Tensor, fy: Tensor, cx: Tensor | float, cy: Tensor | float) -> Tensor:
    """Focal lengths and principal point (...) -> intrinsics (..., 3, 3)."""
    k = fx.new_zeros(*fx.shape, 3, 3)
    k[..., 0, 0], k[..., 1, 1], k[..., 0, 2], k[..., 1, 2], k[..., 2, 2] = fx, fy, cx, cy, 1
    return k


def decode_pose(encoding: Tensor, size: tuple[int, int], centre: float = 0.0) -> tuple[Tensor, Tensor]:
    """(..., 9), i.e. translation, quaternion xyzw, field of view (vertical, horizontal) in rad -> transform (..., 4, 4) and
    intrinsics (..., 3, 3) in pixels of an image of (H, W) = size.

    centre: of the image, beyond W / 2 and H / 2, px. 0 is what published models say; where the middle of the first pixel is (0, 0), as
    everywhere in this package, the middle of the image is half a pixel before that: -0.5.

    The field of view is held within 1..170 degrees: the heads' ReLU can give 0, an infinite focal length.
    """
    fov = encoding[..., 7:].clamp(0.0175, 2.967)
    height, width = size
    fx, fy = width / 2 / (fov[..., 1] / 2).tan(), height / 2 / (fov[..., 0] / 2).tan()
    k = pinhole(fx, fy, width / 2 + centre, height / 2 + centre)
    return rigid(rotation_from_quaternion(encoding[..., 3:7]), encoding[..., :3]), k


def rays_of(intrinsics: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., 3, 3) -> (..., H, W, 3): what the pixels of an image of (H, W) = size see at z = 1."""
    k = intrinsics[..., None, None, :, :]
    v, u = torch.meshgrid(*(torch.arange(n, device=k.device, dtype=k.dtype) for n in size), indexing="ij")
    x, y = (u - k[..., 0, 2]) / k[..., 0, 0], (v - k[..., 1, 2]) / k[..., 1, 1]
    return torch.stack((x, y, torch.ones_like(x)), dim=-1)


def fit_intrinsics(rays: Tensor) -> Tensor:
    """(..., H, W, 3) rays or points in the camera frame, z > 0 -> (..., 3, 3): the pinhole camera nearest to them.

    Least squares of the pixels' whole-numbered indices on x/z and y/z, over some 50 x 50 pixels. Rays that are no camera's give focal
    lengths that are none: not finite, or not positive.
    """
    height, width = rays.shape[-3:-1]
    rows = torch.arange(0, height, max(1, height // 50), device=rays.device)
    columns = torch.arange(0, width, max(1, width // 50), device=rays.device)
    some = rays[..., rows, :, :][..., columns, :].double()
    slopes = some[..., :2] / some[..., 2:].clamp_min(1e-6)  # (..., rows, columns, 2)
    u, v = torch.meshgrid(columns.double(), rows.double(), indexing="xy")
    found = []
    for slope, pixel in ((slopes[..., 0], u), (slopes[..., 1], v)):
        mean, middle = slope.mean((-2, -1)), pixel.mean()
        deviation = slope - mean[..., None, None]
        focal = (deviation * (pixel - middle)).mean((-2, -1)) / deviation.square().mean((-2, -1))
        found.append((focal, middle - focal * mean))
    (fx, cx), (fy, cy) = found
    return pinhole(fx, fy, cx, cy).to(rays.dtype)
