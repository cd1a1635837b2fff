"""Pi3 (Wang et al., "Pi3: Permutation-Equivariant Visual Geometry Learning", 2025): no frame is special; each predicts its own
points.

Written from the paper and from the published checkpoint's key names and shapes. Lengths are in an arbitrary unit that differs
between windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..tokens import Tokens
from .cameras import fit_intrinsics, rigid, world_points
from .heads import PoseRegressor, in_chunks
from .layers import IMAGE_MEAN, IMAGE_STD, Block, PatchEncoder, Rotary, patch_positions
from .model import Check, GeometryModel, KnownTensors, RopeTables, Trunk

MAX_PIXELS = 255_000  # of an image, as the published model was trained


@dataclass(frozen=True)
class Pi3Sizes:
    """Sizes of one variant. Lengths in tokens, channels or blocks; image_side in pixels."""

    image_side: int = 518  # of the stored position table: (image_side / patch)^2 patches
    native_side: int = 574  # longer side of a 4:3 image the model is run at
    patch: int = 14
    dim: int = 1024  # of encoder and trunk
    encoder_depth: int = 24
    encoder_heads: int = 16
    encoder_registers: int = 4
    depth: int = 36  # blocks of the trunk
    heads: int = 16
    registers: int = 5
    head_dim: int = 1024
    head_depth: int = 5
    head_heads: int = 16
    map_out: int = 1024
    camera_out: int = 512


VARIANTS = {"pi3": Pi3Sizes()}


class Pi3(GeometryModel):
    """Maps images to cameras, depth and points in each frame. Parameter names are the published checkpoint's."""

    name = "pi3"
    sizes_type = Pi3Sizes
    landmark, weights_from = "point_decoder.projects.weight", "yyfz233/Pi3 on Hugging Face"

    def __init__(self, sizes: Pi3Sizes) -> None:
        super().__init__()
        z = self.sizes = sizes
        self.patch, self.native_side = z.patch, z.native_side
        self.taps = (z.depth // 2 - 1,)  # the last pair of blocks
        blocks = (Block(z.dim, z.encoder_heads, eps=1e-6, scale_init=1.0) for _ in range(z.encoder_depth))
        self.encoder = PatchEncoder(z.image_side // z.patch, z.patch, z.dim, blocks, registers=z.encoder_registers)
        self.register_token = nn.Parameter(torch.zeros(1, 1, z.registers, z.dim))
        for name, value in (("image_mean", IMAGE_MEAN), ("image_std", IMAGE_STD)):
            self.register_buffer(name, torch.tensor(value).view(1, 3, 1, 1))  # unused: the encoder's are the same
        self.decoder = nn.ModuleList(
            Block(z.dim, z.heads, qk_norm=True, eps=1e-6, scale_init=0.01) for _ in range(z.depth)
        )
        self.point_decoder = FrameDecoder(z, z.map_out)
        self.conf_decoder = FrameDecoder(z, z.map_out)
        self.camera_decoder = FrameDecoder(z, z.camera_out)
        self.point_head = PixelHead(z.map_out, z.patch, 3)
        self.conf_head = PixelHead(z.map_out, z.patch, 1)
        self.camera_head = PoseRegressor(z.camera_out, rotation=9, convolution=False)

    @classmethod
    def published_sizes(cls, state: Mapping[str, Tensor]) -> Pi3Sizes:
        return VARIANTS["pi3"]

    def image_size(self, width: int, height: int, side: int) -> tuple[int, int]:
        """As large as MAX_PIXELS allows, as in the published model's training. Other values of `side` are used as given."""
        if side != self.native_side:
            return super().image_size(width, height, side)
        scale = (MAX_PIXELS / (width * height)) ** 0.5
        w, h = (max(1, round(extent * scale / self.patch)) for extent in (width, height))
        while w * h * self.patch**2 > MAX_PIXELS:
            w, h = (w - 1, h) if w / h > width / height else (w, h - 1)
        return max(1, w) * self.patch, max(1, h) * self.patch

    def encoder_input(self, images: Tensor) -> Tokens:
        tokens: Tokens = self.encoder(images)
        return tokens

    def encoder_blocks(self) -> list[Block]:
        return list(self.encoder.blocks)  # type: ignore[arg-type]

    def encoder_output(self, encoded: Tokens, known: KnownTensors | None) -> Tokens:
        x = self.encoder.norm(encoded.x)[:, :, encoded.special :]
        return Tokens(x, patch_positions(encoded.grid, 0, x.device), 0, encoded.grid)

    def trunk_input(self, encoded: Tokens) -> Tokens:
        special = self.register_token.expand(*encoded.x.shape[:2], -1, -1).to(encoded.x.dtype)
        n, x = special.shape[2], torch.cat((special, encoded.x), dim=2)
        return Tokens(x, patch_positions(encoded.grid, n, x.device), n, encoded.grid)

    def trunk_blocks(self) -> list[tuple[str, Block]]:
        return [(("frame", "global")[i % 2], block) for i, block in enumerate(self.decoder)]  # type: ignore[misc]

    def decode(
        self,
        trunk: Trunk,
        size: tuple[int, int],
        heads: tuple[str, ...],
        check: Check,
        dense: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """Keys by head. camera: world_from_camera (B, S, 4, 4); depth: depth, depth_conf (B, S, H, W), the latter exp of the logit
        plus 1, conf_logits, points_in_camera (B, S, H, W, 3), intrinsics (B, S, 3, 3), fitted to those; points: points
        (B, S, H, W, 3) in the world. Intrinsics require depth, and points require both, which are then returned as well.
        """
        levels = [trunk.levels[self.taps[0]]]
        positions = patch_positions(trunk.grid, trunk.special, levels[0].device)
        grid, n = trunk.grid, trunk.special

        def rope(part: Tensor) -> Rotary:
            tokens = Tokens(part[:, None], positions, n, grid)
            return RopeTables()(tokens, "frame", False, self.sizes.head_dim // self.sizes.head_heads)

        def pixels(decoder: FrameDecoder, head: PixelHead, part: list[Tensor]) -> Tensor:
            return head(decoder(part[0], rope(part[0]))[:, n:], grid)

        def pose(part: list[Tensor]) -> Tensor:
            translation, rotation = self.camera_head(self.camera_decoder(part[0], rope(part[0]))[:, n:])
            return rigid(nearest_rotation(rotation.unflatten(-1, (3, 3))), translation)

        def dense_pixels(decoder: FrameDecoder, head: PixelHead) -> Tensor:
            return self.run_dense(lambda part: pixels(decoder, head, part), levels, check, dense)

        raw = dense_pixels(self.point_decoder, self.point_head).movedim(2, -1)
        z = raw[..., 2:].exp()
        local = torch.cat((raw[..., :2] * z, z), dim=-1)
        out = {"points_in_camera": local, "depth": local[..., 2], "intrinsics": fit_intrinsics(local)}
        if "depth" in heads or "points" in heads:
            logits = dense_pixels(self.conf_decoder, self.conf_head)[:, :, 0]
            out["conf_logits"], out["depth_conf"] = logits, 1 + logits.exp()
        if "camera" in heads or "points" in heads:
            out["world_from_camera"] = in_chunks(pose, levels, check)
        if "points" in heads:
            out["points"] = world_points(out["world_from_camera"], local, dense)
        return out


class FrameDecoder(nn.Module):
    """Blocks within each frame, between the trunk and a head."""

    def __init__(self, z: Pi3Sizes, out: int) -> None:
        super().__init__()
        self.projects = nn.Linear(2 * z.dim, z.head_dim)
        self.blocks = nn.ModuleList(
            Block(z.head_dim, z.head_heads, eps=1e-6, scale_init=None) for _ in range(z.head_depth)
        )
        self.linear_out = nn.Linear(z.head_dim, out)

    def forward(self, tokens: Tensor, rope: Rotary) -> Tensor:
        """(frames, T, 2C) -> (frames, T, out)."""
        x = self.projects(tokens)
        for block in self.blocks:
            x = block(x, rope)
        out: Tensor = self.linear_out(x)
        return out


class PixelHead(nn.Module):
    """Each patch's token predicts all its pixels."""

    def __init__(self, dim: int, patch: int, channels: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Linear(dim, channels * patch**2)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(frames, h*w, dim) -> (frames, channels, H, W)."""
        return F.pixel_shuffle(self.proj(tokens).transpose(1, 2).unflatten(2, grid), self.patch)


def nearest_rotation(matrix: Tensor) -> Tensor:
    """(..., 3, 3) -> the nearest rotation after normalising its rows (orthogonal Procrustes, by SVD)."""
    u, _, vt = torch.linalg.svd(F.normalize(matrix.float(), dim=-1))
    sign = torch.linalg.det(u @ vt)
    flip = torch.stack((torch.ones_like(sign), torch.ones_like(sign), sign), dim=-1)
    return (u * flip[..., None, :]) @ vt
