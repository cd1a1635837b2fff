"""VGGT (Wang et al., "VGGT: Visual Geometry Grounded Transformer", CVPR 2025): where it keeps its blocks, tokens and heads.

Written from the paper and from the published checkpoint's key names and shapes. `1b` is the published size, `tiny` is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..accelerators.base import Tokens
from .base import Check, GeometryModel, Trunk
from .layers import Block, DenseHead, Mlp, PatchEncoder

HEADS = ("camera", "depth", "points")
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as the published encoder expects


@dataclass(frozen=True)
class VGGTSizes:
    """Sizes of one variant. Lengths in tokens, channels or blocks; image_side in pixels."""

    image_side: int = 518  # of the stored position table: (image_side / patch)^2 patches
    native_side: int = 518  # longer side the model is run at
    patch: int = 14
    dim: int = 1024
    encoder_depth: int = 24
    encoder_heads: int = 16
    depth: int = 24  # pairs of a frame and a global block
    heads: int = 16
    registers: int = 4
    taps: tuple[int, ...] = (4, 11, 17, 23)
    camera_depth: int = 4
    camera_heads: int = 16
    camera_iterations: int = 4
    features: int = 256
    channels: tuple[int, ...] = (256, 512, 1024, 1024)


VARIANTS = {
    "1b": VGGTSizes(),
    "tiny": VGGTSizes(
        image_side=112,
        native_side=112,
        dim=160,
        encoder_depth=4,
        encoder_heads=5,
        depth=4,
        heads=5,
        registers=4,
        taps=(0, 1, 2, 3),
        camera_depth=1,
        camera_heads=5,
        features=32,
        channels=(32, 48, 64, 96),
    ),
}


class VGGT(GeometryModel):
    """Images to cameras, depth and point maps. Parameter names are the published checkpoint's."""

    def __init__(self, sizes: VGGTSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.patch, self.native_side, self.taps = sizes.patch, sizes.native_side, sizes.taps
        self.aggregator = Aggregator(sizes)
        self.camera_head = CameraHead(2 * sizes.dim, sizes.camera_depth, sizes.camera_heads, sizes.camera_iterations)
        self.depth_head = DenseHead(2 * sizes.dim, sizes.features, sizes.channels, outputs=2)
        self.point_head = DenseHead(2 * sizes.dim, sizes.features, sizes.channels, outputs=4)

    def encoder_input(self, images: Tensor) -> Tokens:
        b, s, _, height, width = images.shape
        grid = (height // self.patch, width // self.patch)
        encoder = self.aggregator.patch_embed
        mean, std = (images.new_tensor(v).view(1, 3, 1, 1) for v in (IMAGE_MEAN, IMAGE_STD))
        x = encoder.embed((images.flatten(0, 1) - mean) / std, grid)
        return Tokens(x.view(b, s, *x.shape[1:]), patch_positions(grid, encoder.prefix, x.device), encoder.prefix, grid)

    def encoder_blocks(self) -> list[Block]:
        return list(self.aggregator.patch_embed.blocks)  # type: ignore[arg-type]

    def trunk_input(self, encoded: Tokens) -> Tokens:
        a = self.aggregator
        patches = a.patch_embed.norm(encoded.x)[:, :, encoded.special :]
        b, s = patches.shape[:2]
        special = torch.cat(
            (a.camera_token, a.register_token), dim=2
        )  # (1, 2, 5, C): slot 0 first frame, slot 1 the others
        special = torch.cat((special[:, :1], special[:, 1:].expand(-1, s - 1, -1, -1)), dim=1).expand(b, -1, -1, -1)
        n = special.shape[2]
        return Tokens(
            torch.cat((special, patches), dim=2), patch_positions(encoded.grid, n, patches.device), n, encoded.grid
        )

    def trunk_blocks(self) -> list[tuple[Block, Block]]:
        return list(zip(self.aggregator.frame_blocks, self.aggregator.global_blocks, strict=True))  # type: ignore[arg-type]

    def decode(self, trunk: Trunk, size: tuple[int, int], heads: tuple[str, ...], check: Check) -> dict[str, Tensor]:
        """Keys by head. camera: pose_encodings (iterations, B, S, 9), world_from_camera (B, S, 4, 4), intrinsics (B, S, 3, 3);
        depth: depth, depth_conf (B, S, H, W); points: points (B, S, H, W, 3), points_conf (B, S, H, W).
        """
        out: dict[str, Tensor] = {}
        if "camera" in heads:
            encodings = self.camera_head(trunk.levels[self.taps[-1]][:, :, 0])
            out["pose_encodings"] = encodings
            camera_from_world, out["intrinsics"] = decode_pose(encodings[-1], size)
            out["world_from_camera"] = invert_rigid(camera_from_world)
        for name, head in (("depth", self.depth_head), ("points", self.point_head)):
            if name in heads:
                raw = self.run_dense_head(head, trunk, size, check)  # (B, S, n, H, W)
                out[f"{name}_conf"] = 1 + raw[:, :, -1].exp()
                out[name] = raw[:, :, 0].exp() if name == "depth" else inverse_log(raw[:, :, :-1]).movedim(2, -1)
        return out

    def run_dense_head(
        self, head: DenseHead, trunk: Trunk, size: tuple[int, int], check: Check, chunk: int = 8
    ) -> Tensor:
        """Raw channels (B, S, n, H, W); frames are independent, `chunk` of them at a time to bound memory."""
        levels = [trunk.levels[i][:, :, trunk.special :] for i in self.taps]
        b, s = levels[0].shape[:2]
        parts = []
        for start in range(0, s, chunk):
            check()
            part = [t[:, start : start + chunk].flatten(0, 1) for t in levels]
            parts.append(head(part, trunk.grid, size).unflatten(0, (b, -1)))
        return torch.cat(parts, dim=1)


class Aggregator(nn.Module):
    def __init__(self, z: VGGTSizes) -> None:
        super().__init__()
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, z.dim))
        self.register_token = nn.Parameter(torch.zeros(1, 2, z.registers, z.dim))
        self.patch_embed = PatchEncoder(
            z.image_side // z.patch, z.patch, z.dim, z.encoder_depth, z.encoder_heads, z.registers
        )

        def stack() -> nn.ModuleList:
            return nn.ModuleList(Block(z.dim, z.heads, qk_norm=True, eps=1e-5, scale_init=0.01) for _ in range(z.depth))

        self.frame_blocks, self.global_blocks = stack(), stack()


class CameraHead(nn.Module):
    """Camera tokens to pose encodings, refined over a few iterations, each modulated by the estimate so far (adaptive norm)."""

    def __init__(self, dim: int, depth: int, heads: int, iterations: int) -> None:
        super().__init__()
        self.iterations = iterations
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, 9))
        self.embed_pose = nn.Linear(9, dim)
        self.token_norm = nn.LayerNorm(dim, eps=1e-5)
        self.trunk_norm = nn.LayerNorm(dim, eps=1e-5)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 3 * dim))
        self.trunk = nn.ModuleList(Block(dim, heads, eps=1e-5, scale_init=0.01) for _ in range(depth))
        self.pose_branch = Mlp(dim, dim // 2, 9)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, S, 2C) -> (iterations, B, S, 9): translation, quaternion xyzw, field of view (vertical, horizontal) in rad."""
        tokens = self.token_norm(tokens)
        raw: Tensor | None = None
        encodings = []
        for _ in range(self.iterations):
            given = self.empty_pose_tokens.expand(*tokens.shape[:2], -1) if raw is None else raw
            shift, scale, gate = self.poseLN_modulation(self.embed_pose(given)).chunk(3, dim=-1)
            x = tokens + gate * (F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6) * (1 + scale) + shift)
            for block in self.trunk:
                x = block(x)
            delta = self.pose_branch(self.trunk_norm(x))
            raw = delta if raw is None else raw + delta  # the raw estimate goes around, not the activated one
            encodings.append(torch.cat((raw[..., :7], F.relu(raw[..., 7:])), dim=-1))
        return torch.stack(encodings)


def patch_positions(grid: tuple[int, int], special: int, device: torch.device) -> Tensor:
    """(1, 1, special + h*w, 2) integer (y, x): special tokens at (0, 0), patches from (1, 1)."""
    y, x = torch.meshgrid(torch.arange(grid[0], device=device), torch.arange(grid[1], device=device), indexing="ij")
    patches = torch.stack((y, x), dim=-1).view(-1, 2) + 1
    return torch.cat((patches.new_zeros(special, 2), patches))[None, None]


def inverse_log(x: Tensor) -> Tensor:
    """sign(x) (exp|x| - 1): the point head's activation."""
    return x.sign() * x.abs().expm1()


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


def decode_pose(encoding: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(..., 9) -> camera_from_world (..., 4, 4), intrinsics (..., 3, 3) in pixels of an image of (H, W) = size.

    The field of view is held within 1..170 degrees: the head's ReLU can give 0, an infinite focal length.
    """
    rotation, translation = rotation_from_quaternion(encoding[..., 3:7]), encoding[..., :3]
    pose = torch.eye(4, dtype=encoding.dtype, device=encoding.device).expand(*encoding.shape[:-1], 4, 4).clone()
    pose[..., :3, :3], pose[..., :3, 3] = rotation, translation
    fov = encoding[..., 7:].clamp(0.0175, 2.967)
    k = torch.zeros(*encoding.shape[:-1], 3, 3, dtype=encoding.dtype, device=encoding.device)
    k[..., 0, 0] = size[1] / 2 / (fov[..., 1] / 2).tan()
    k[..., 1, 1] = size[0] / 2 / (fov[..., 0] / 2).tan()
    k[..., 0, 2], k[..., 1, 2], k[..., 2, 2] = size[1] / 2, size[0] / 2, 1
    return pose, k


def invert_rigid(pose: Tensor) -> Tensor:
    """(..., 4, 4) -> its inverse, exactly rigid."""
    rt = pose[..., :3, :3].transpose(-1, -2)
    out = pose.clone()
    out[..., :3, :3] = rt
    out[..., :3, 3] = -(rt @ pose[..., :3, 3:])[..., 0]
    return out
