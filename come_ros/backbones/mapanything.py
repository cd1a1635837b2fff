"""MapAnything (Keetha et al., "MapAnything: Universal Feed-Forward Metric 3D Reconstruction", 2025): metric geometry from images
and, where known, intrinsics, depth and poses.

Written from the paper and from the published checkpoints' key names and shapes. `v1_1` (January 2026) and `v1` (September 2025) are
the published sizes; `tiny` is ours, of as many parameters as VGGT's `tiny` and with its encoder.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..tokens import Tokens
from .cameras import (
    fit_intrinsics,
    invert_rigid,
    quaternion_from_rotation,
    rays_of,
    rigid,
    rotation_from_quaternion,
    world_points,
)
from .heads import PoseRegressor, Pyramid, level_resize
from .layers import Block, Mlp, PatchEncoder, SwiGLU, offset_table, patch_positions
from .model import ENCODED, Check, GeometryModel, KnownTensors, RopeTables, Trunk

# The model's image (W, H) by the aspect ratio of the camera's, at 518 px
IMAGE_SIZES = (
    (518, 518), (518, 392), (518, 336), (518, 294), (518, 252), (518, 168), (392, 518), (336, 518), (294, 518), (252, 518),
)  # fmt: skip


@dataclass(frozen=True)
class MapAnythingSizes:
    """Sizes of one variant. Lengths in tokens, channels or blocks; image_side in pixels."""

    image_side: int = 518  # of the stored position table: (image_side / patch)^2 patches
    native_side: int = 518  # longer side the model is run at
    patch: int = 14
    dim: int = 1536
    encoder_depth: int = 24
    encoder_heads: int = 24
    registers: int = 0  # of the encoder
    encoder_norm: bool = False  # after the last encoder block
    gated: bool = True  # SwiGLU instead of GELU
    view_token: bool = True  # the trunk also gets the encoder's cls token
    trunk_dim: int = 1536
    depth: int = 16
    heads: int = 24
    layer_scale: bool = True  # in the trunk
    taps: tuple[int, ...] = (7, 11)  # besides the encoder's output and the last block's
    features: int = 256
    channels: tuple[int, ...] = (96, 192, 384, 768)
    pose_dim: int = 784
    scale_dim: int = 196
    map_dims: tuple[int, ...] = (588, 768, 1024)  # of the encoders of rays and depth
    vector_dims: tuple[int, ...] = (128, 256, 512)  # of the encoders of poses and lengths


VARIANTS = {
    "v1_1": MapAnythingSizes(),
    "v1": MapAnythingSizes(
        dim=1024,
        encoder_heads=16,
        encoder_norm=True,
        gated=False,
        view_token=False,
        trunk_dim=768,
        depth=24,
        heads=12,
        layer_scale=False,
        taps=(11, 17),
    ),
    "tiny": MapAnythingSizes(
        image_side=168,
        native_side=168,
        dim=160,
        encoder_depth=4,
        encoder_heads=5,
        registers=4,
        encoder_norm=True,
        gated=False,
        trunk_dim=160,
        depth=8,
        heads=5,
        taps=(3, 5),
        features=48,
        channels=(48, 64, 96, 128),
        pose_dim=160,
        scale_dim=48,
        map_dims=(64, 96, 128),
        vector_dims=(32, 64, 128),
    ),
}


class MapAnything(GeometryModel):
    """Maps images and known geometry to cameras and depth in metres. Parameter names are the published checkpoint's."""

    metric = True
    inputs = frozenset({"intrinsics", "depth", "poses"})
    name = "mapanything"
    sizes_type = MapAnythingSizes
    landmark, weights_from = "info_sharing.view_pos_table", "facebook/map-anything-apache on Hugging Face"

    def __init__(self, sizes: MapAnythingSizes) -> None:
        super().__init__()
        z = self.sizes = sizes
        self.patch, self.native_side = z.patch, z.native_side
        self.taps = (ENCODED, *z.taps, z.depth - 1)
        mlp = SwiGLU if z.gated else Mlp
        blocks = (Block(z.dim, z.encoder_heads, eps=1e-6, scale_init=1.0, mlp=mlp) for _ in range(z.encoder_depth))
        norm_eps = 1e-6 if z.encoder_norm else None
        side = z.image_side // z.patch
        encoder = PatchEncoder(
            side, z.patch, z.dim, blocks, registers=z.registers, norm_eps=norm_eps, table=offset_table
        )
        self.encoder = nn.ModuleDict({"model": encoder})
        self.fusion_norm_layer = nn.LayerNorm(z.dim, eps=1e-6)
        self.scale_token = nn.Parameter(torch.zeros(z.dim))
        self.info_sharing = InfoSharing(z)
        self.dense_head = nn.ModuleList(
            (DenseFeatures((z.dim, *[z.trunk_dim] * 3), z.features, z.channels), DenseRegressor(z.features, outputs=6))
        )
        self.pose_head = PoseRegressor(z.pose_dim, rotation=4, convolution=True, dim_in=z.trunk_dim)
        self.scale_head = ScaleHead(z.trunk_dim, z.scale_dim)
        self.ray_dirs_encoder = MapEncoder(3, z.patch, z.map_dims, z.dim)
        self.depth_encoder = MapEncoder(1, z.patch, z.map_dims, z.dim)
        self.depth_scale_encoder = VectorEncoder(1, z.vector_dims, z.dim)
        self.cam_rot_encoder = VectorEncoder(4, z.vector_dims, z.dim)
        self.cam_trans_encoder = VectorEncoder(3, z.vector_dims, z.dim)
        self.cam_trans_scale_encoder = VectorEncoder(1, z.vector_dims, z.dim)

    @classmethod
    def published_sizes(cls, state: Mapping[str, Tensor]) -> MapAnythingSizes:
        return VARIANTS["v1" if "info_sharing.proj_embed.weight" in state else "v1_1"]

    @classmethod
    def own_names(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The dense head is registered under several names that share memory; a file may hold any of them, or several."""
        return {_own_name(key): value for key, value in state.items()}

    def image_size(self, width: int, height: int, side: int) -> tuple[int, int]:
        """The published model knows ten sizes; smaller or larger images keep their proportions."""
        if side != 518:
            return super().image_size(width, height, side)
        return min(IMAGE_SIZES, key=lambda size: abs(size[0] / size[1] - width / height))

    def encoder_input(self, images: Tensor) -> Tokens:
        tokens: Tokens = self.encoder["model"](images)
        return tokens

    def encoder_blocks(self) -> list[Block]:
        return list(self.encoder["model"].blocks)  # type: ignore[arg-type]

    def encoder_output(self, encoded: Tokens, known: KnownTensors | None) -> Tokens:
        x = self.encoder["model"].norm(encoded.x)  # type: ignore[operator]
        patches = x[:, :, encoded.special :]
        if known is not None:
            with torch.autocast(x.device.type, enabled=False):
                patches = patches + self.encode_known(known)
        patches = self.fusion_norm_layer(patches)
        n = int(self.sizes.view_token)
        x = torch.cat((x[:, :, :n].to(patches.dtype), patches), dim=2)  # the view token as it is, without the norm
        return Tokens(x, patch_positions(encoded.grid, n, x.device), n, encoded.grid)

    def encode_known(self, known: KnownTensors) -> Tensor:
        """(B, S, h*w, C) to be added to the patches' features; 0 where nothing is known.

        Depth requires intrinsics, poses require the first frame's pose; otherwise they are ignored.
        """
        k, metric = known.intrinsics, known.metric[..., None, None]
        has_rays = k.isfinite().flatten(2).all(2)
        depth = known.depth.nan_to_num(0.0, 0.0, 0.0).clamp_min(0)
        has_depth = has_rays & (depth > 0).flatten(2).any(2)
        poses = known.world_from_camera
        has_pose = poses.isfinite().flatten(2).all(2)
        has_pose = has_pose & has_pose[:, :1]

        pixels = rays_of(torch.where(has_rays[..., None, None], k, torch.eye(3, device=k.device)), depth.shape[-2:])
        lengths = pixels.norm(dim=-1)  # of the ray to z = 1
        out = only(has_rays, self.ray_dirs_encoder((pixels / lengths[..., None]).movedim(-1, -3)))

        along_ray = depth * lengths
        mean = along_ray.flatten(2).sum(2) / (depth > 0).flatten(2).sum(2).clamp_min(1)
        mean = torch.where(has_depth, mean, 1.0)[..., None]  # (B, S, 1)
        out = out + only(has_depth, self.depth_encoder((along_ray / mean[..., None]).log1p()[:, :, None]))
        out = out + only(has_depth[..., None, None] & metric, self.depth_scale_encoder(mean.log())[:, :, None])

        rotation, translation = relative_poses(
            torch.where(has_pose[..., None, None], poses, torch.eye(4, device=k.device))
        )
        distance = translation.norm(dim=-1)
        moved = has_pose & (distance > 0)
        mean = (distance * moved).sum(1) / moved.sum(1).clamp_min(1)
        mean = torch.where(moved.any(1), mean, 1.0)[:, None, None]  # (B, 1, 1)
        out = out + only(has_pose, self.cam_rot_encoder(rotation)[:, :, None])
        out = out + only(has_pose, self.cam_trans_encoder(translation / mean)[:, :, None])
        return out + only(has_pose[..., None, None] & metric, self.cam_trans_scale_encoder(mean.log())[:, :, None])

    def trunk_input(self, encoded: Tokens) -> Tokens:
        sharing = self.info_sharing
        x = sharing.proj_embed(encoded.x)
        x = torch.cat((x[:, :1] + sharing.view_pos_table, x[:, 1:]), dim=1)
        shared = sharing.proj_embed(self.scale_token).to(x.dtype).expand(len(x), 1, -1)
        return encoded._replace(x=x, shared=shared)

    def trunk_blocks(self) -> list[tuple[str, Block]]:
        return [(("global", "frame")[i % 2], b) for i, b in enumerate(self.info_sharing.self_attention_blocks)]  # type: ignore[misc]

    def rope(self) -> RopeTables | None:
        return None

    def joined(self, tap: int) -> tuple[int, ...]:
        return (tap,)

    def decode(
        self,
        trunk: Trunk,
        size: tuple[int, int],
        heads: tuple[str, ...],
        check: Check,
        dense: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """Keys of all heads, in metres: depth, depth_conf, meaningful, mask_logits, depth_along_ray (B, S, H, W); rays
        (B, S, H, W, 3), unit; intrinsics (B, S, 3, 3), fitted to the rays; world_from_camera (B, S, 4, 4), quat_xyzw (B, S, 4);
        metric_scale (B,), metres per unit of the network. points: points (B, S, H, W, 3) in the world.
        """
        levels = self.head_levels(trunk)
        raw = self.run_dense_head(levels, trunk.grid, size, check, frames=dense)
        scale = self.run_scale_head(trunk).exp().clamp_min(1e-8)  # (B,)
        rays = unit(raw[:, :, :3].movedim(2, -1))
        along_ray = raw[:, :, 3].exp() * scale[:, None, None, None]
        translation, quat = self.run_pose_head(levels)
        out = {
            "depth": rays[..., 2] * along_ray,
            "depth_conf": 1 + raw[:, :, 4].exp(),
            "mask_logits": raw[:, :, 5],
            "meaningful": raw[:, :, 5] > 0,
            "rays": rays,
            "depth_along_ray": along_ray,
            "metric_scale": scale,
            "intrinsics": fit_intrinsics(rays),
            "world_from_camera": rigid(rotation_from_quaternion(quat), translation * scale[:, None, None]),
            "quat_xyzw": quat,
        }
        if "points" in heads:
            out["points"] = world_points(out["world_from_camera"], rays * along_ray[..., None], dense)
        return out

    def head_levels(self, trunk: Trunk) -> list[Tensor]:
        """The levels that the dense head reads, fine to coarse (the pose head reads the last): patch tokens (B, S, h*w, .)."""
        first, *others = (trunk.levels[i][:, :, trunk.special :] for i in self.taps)
        return [first, *(self.info_sharing.norm(x) for x in others)]

    def run_dense_head(
        self,
        levels: list[Tensor],
        grid: tuple[int, int],
        size: tuple[int, int],
        check: Check,
        chunk: int = 8,
        frames: Sequence[int] | None = None,
    ) -> Tensor:
        """Raw channels (B, S, 6, H, W): ray, logarithm of the depth along it, of the confidence, mask; or of some `frames` only."""
        features, regressor = self.dense_head
        return self.run_dense(lambda part: regressor(features(part, grid), size), levels, check, frames, chunk)

    def run_pose_head(self, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
        """World from camera, in the network's unit: translation (B, S, 3), quaternion xyzw of length 1 (B, S, 4)."""
        translation, quat = (t.unflatten(0, levels[-1].shape[:2]) for t in self.pose_head(levels[-1].flatten(0, 1)))
        return translation, unit(quat)

    def run_scale_head(self, trunk: Trunk) -> Tensor:
        """(B,) logarithm of metres per unit of the network."""
        assert trunk.shared is not None
        log_scale: Tensor = self.scale_head(self.info_sharing.norm(trunk.shared))[:, 0, 0]
        return log_scale


def unit(x: Tensor) -> Tensor:
    """Vectors in the last axis, normalised to length 1."""
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-8)


def _own_name(key: str) -> str:
    key = re.sub(r"^dpt_feature_head\.", "dense_head.0.", key)
    key = re.sub(r"^dpt_regressor_head\.", "dense_head.1.", key)
    key = re.sub(r"\.scratch\.layer_rn\.(\d)\.", r".input_process.\1.1.", key)
    return re.sub(r"\.scratch\.layer(\d)_rn\.", lambda m: f".input_process.{int(m[1]) - 1}.1.", key)


def only(where: Tensor, x: Tensor) -> Tensor:
    """x (B, S, n, C), 0 where `where` (B, S) or (B, S, 1, 1) is False, whatever x is there."""
    where = where if where.ndim == 4 else where[..., None, None]
    return torch.where(where, x, 0.0)


class InfoSharing(nn.Module):
    """The trunk: blocks that attend over all views and the scale token, and blocks that attend over one view, in turn."""

    def __init__(self, z: MapAnythingSizes) -> None:
        super().__init__()
        c = z.trunk_dim
        self.proj_embed = nn.Linear(z.dim, c) if c != z.dim else nn.Identity()
        self.register_buffer("view_pos_table", torch.arange(c).remainder(2).float()[None])  # marks the first view
        self.self_attention_blocks = nn.ModuleList(
            Block(c, z.heads, eps=1e-6, scale_init=1e-5 if z.layer_scale else None, mlp=SwiGLU if z.gated else Mlp)
            for _ in range(z.depth)
        )
        self.norm = nn.LayerNorm(c, eps=1e-6)


class DenseFeatures(nn.Module):
    """DPT without norm and position embedding, from levels of their own widths; see heads.DenseHead."""

    def __init__(self, dims: tuple[int, ...], features: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.input_process = nn.ModuleList(
            nn.Sequential(
                nn.Sequential(nn.Conv2d(dim, c, 1), level_resize(i, c)),
                nn.Conv2d(c, features, 3, padding=1, bias=False),
            )
            for i, (dim, c) in enumerate(zip(dims, channels, strict=True))
        )
        self.scratch = Pyramid(features, rectified=False)

    def forward(self, levels: list[Tensor], grid: tuple[int, int]) -> Tensor:
        """Four levels (frames, h*w, .) -> (frames, features, 8h, 8w)."""
        maps = [
            process(tokens.transpose(1, 2).unflatten(2, grid))
            for process, tokens in zip(self.input_process, levels, strict=True)
        ]
        return self.scratch.fuse(maps, doubling=True)


class DenseRegressor(nn.Module):
    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        half = features // 2
        self.conv1 = nn.Conv2d(features, half, 3, padding=1)
        self.conv2 = nn.Sequential(nn.Conv2d(half, half, 3, padding=1), nn.ReLU(), nn.Conv2d(half, outputs, 1))

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(frames, features, ., .) -> (frames, outputs, H, W)."""
        out: Tensor = self.conv2(F.interpolate(self.conv1(x), size=size, mode="bilinear", align_corners=True))
        return out


class ScaleHead(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, hidden)
        self.mlp = nn.Sequential(*(nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU()) for _ in range(2)))
        self.output_proj = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., 1), the logarithm of metres per unit."""
        out: Tensor = self.output_proj(self.mlp(self.proj(x)))
        return out


class MapEncoder(nn.Module):
    """Maps an image of known values (rays, depth) to features of the patches."""

    def __init__(self, channels: int, patch: int, dims: tuple[int, ...], out: int) -> None:
        super().__init__()
        self.patch = patch
        self.conv_in = nn.Conv2d(channels * patch**2, dims[0], 3, padding=1)
        stages = [ConvStage(a, b) for a, b in itertools.pairwise(dims)]
        self.encoder = nn.Sequential(*stages, nn.Conv2d(dims[-1], out, 1))
        self.norm_layer = nn.LayerNorm(out, eps=1e-6)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, S, channels, H, W) -> (B, S, h*w, out)."""
        x = self.encoder(self.conv_in(F.pixel_unshuffle(maps.flatten(0, 1), self.patch)))
        return self.norm_layer(x.flatten(2).transpose(1, 2)).unflatten(0, maps.shape[:2])


class ConvStage(nn.Module):
    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, out, 3, padding=1)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Conv2d(dim, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.conv2(F.gelu(self.conv1(x))) + self.shortcut(x))


class VectorEncoder(nn.Module):
    """Maps a few known numbers (a rotation, a translation, the logarithm of a length) to features of all patches of a frame."""

    def __init__(self, numbers: int, dims: tuple[int, ...], out: int) -> None:
        super().__init__()
        nested = nn.Sequential(nn.Linear(numbers, dims[0]), nn.GELU())  # as the published keys nest them
        for a, b in itertools.pairwise(dims):
            nested = nn.Sequential(nested, nn.Linear(a, b), nn.GELU())
        self.encoder = nn.Sequential(nested, nn.Linear(dims[-1], out))
        self.norm_layer = nn.LayerNorm(out, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(..., numbers) -> (..., out)."""
        out: Tensor = self.norm_layer(self.encoder(x))
        return out


def relative_poses(world_from_camera: Tensor) -> tuple[Tensor, Tensor]:
    """(B, S, 4, 4) -> quaternions xyzw (B, S, 4) and translations (B, S, 3) of the cameras about the first one."""
    relative = invert_rigid(world_from_camera[:, :1]) @ world_from_camera
    return quaternion_from_rotation(relative[..., :3, :3]), relative[..., :3, 3]
