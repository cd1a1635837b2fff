"""VGGT (Wang et al., "VGGT: Visual Geometry Grounded Transformer", CVPR 2025): its blocks, tokens and heads.

Written from the paper and from the published checkpoint's key names and shapes. `1b` is the published size; `tiny` and `tiny2` are
ours, the latter with a convolutional stem.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..tokens import StreamPass, Tokens
from .cameras import decode_pose, invert_rigid
from .heads import DenseHead
from .layers import Block, Mlp, PatchEncoder, Recall, patch_positions
from .model import Check, GeometryModel, KnownTensors, Trunk
from .stem import FINE_CHANNELS, STRIDE, StemEncoder

HEADS = ("camera", "depth", "points")


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
    centre: float = 0.0  # of the predicted intrinsics, see cameras.decode_pose
    stem: bool = False  # convolutional stem in place of the patch projection; the dense heads read it too, see stem.py
    by_place: bool = (
        False  # whether the depth's confidence depends on the place in the image, see training/confidence.py
    )


VARIANTS = {
    "1b": VGGTSizes(),
    "tiny": VGGTSizes(
        image_side=168,
        native_side=168,
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
        centre=-0.5,
    ),
    "tiny2": VGGTSizes(
        image_side=256,
        native_side=240,
        patch=16,
        dim=160,
        encoder_depth=2,
        encoder_heads=5,
        depth=4,
        heads=5,
        registers=4,
        taps=(0, 1, 2, 3),
        camera_depth=1,
        camera_heads=5,
        features=32,
        channels=(32, 48, 64, 96),
        centre=-0.5,
        stem=True,
    ),
}


class VGGT(GeometryModel):
    """Maps images to cameras, depth and point maps. Parameter names are the published checkpoint's."""

    name = "vggt"
    sizes_type = VGGTSizes
    unsaid = {"centre": -0.5}  # noqa: RUF012  all files of ours before that was stored were taught in these rooms
    landmark, weights_from = "aggregator.camera_token", "facebook/VGGT-1B on Hugging Face"
    camera_to_world = False
    """what the camera head predicts; else camera-from-world"""

    def __init__(self, sizes: VGGTSizes) -> None:
        super().__init__()
        if sizes.stem and sizes.patch != STRIDE:
            raise ValueError(
                f"patch is {sizes.patch}, but a model with a stem has patches of {STRIDE} px: set it to that"
            )
        self.sizes = sizes
        self.patch, self.native_side, self.taps = sizes.patch, sizes.native_side, sizes.taps
        self.aggregator = Aggregator(sizes)
        self.camera_head = CameraHead(2 * sizes.dim, sizes.camera_depth, sizes.camera_heads, sizes.camera_iterations)
        fine = FINE_CHANNELS if sizes.stem else ()
        self.depth_head = DenseHead(
            2 * sizes.dim, sizes.features, sizes.channels, outputs=2, fine=fine, by_place=sizes.by_place
        )
        self.point_head = DenseHead(2 * sizes.dim, sizes.features, sizes.channels, outputs=4, fine=fine)

    @classmethod
    def published_sizes(cls, state: Mapping[str, Tensor]) -> VGGTSizes:
        return VARIANTS["1b"]

    @classmethod
    def doubt(cls, state: Mapping[str, Tensor]) -> str:
        if any(key.startswith("track_head.") for key in state):
            return ""
        return (
            "has no track head, which VGGT's published files have: if it is the first stage of LingBot-Map, set backbone to lingbot, or "
            "all poses are read the wrong way round"
        )

    @classmethod
    def own_names(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {k: v for k, v in state.items() if not k.startswith("track_head.")}

    def encoder_input(self, images: Tensor) -> Tokens:
        tokens: Tokens = self.aggregator.patch_embed(images)
        return tokens

    def encoder_blocks(self) -> list[Block]:
        return list(self.aggregator.patch_embed.blocks)  # type: ignore[arg-type]

    def encoder_output(self, encoded: Tokens, known: KnownTensors | None) -> Tokens:
        x = self.aggregator.patch_embed.norm(encoded.x)[:, :, encoded.special :]
        return Tokens(x, patch_positions(encoded.grid, 0, x.device), 0, encoded.grid)

    def special_tokens(self, frames: int, stream: StreamPass | None) -> Tensor:
        """(1, frames, n, C), in front of the patches of each frame."""
        a = self.aggregator
        special = torch.cat(
            (a.camera_token, a.register_token), dim=2
        )  # (1, 2, 5, C): slot 0 first frame, slot 1 the others
        return torch.cat((special[:, :1], special[:, 1:].expand(-1, frames - 1, -1, -1)), dim=1)

    def trunk_input(self, encoded: Tokens) -> Tokens:
        b, s = encoded.x.shape[:2]
        special = self.special_tokens(s, encoded.stream).expand(b, -1, -1, -1)
        n, x = special.shape[2], torch.cat((special, encoded.x), dim=2)
        return Tokens(x, patch_positions(encoded.grid, n, x.device), n, encoded.grid)

    def trunk_blocks(self) -> list[tuple[str, Block]]:
        out: list[tuple[str, Block]] = []
        for pair in zip(self.aggregator.frame_blocks, self.aggregator.global_blocks, strict=True):
            out += zip(("frame", "global"), pair, strict=True)  # type: ignore[arg-type]
        return out

    def decode(
        self,
        trunk: Trunk,
        size: tuple[int, int],
        heads: tuple[str, ...],
        check: Check,
        dense: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """Keys by head. camera: pose_encodings (iterations, B, S, 9), world_from_camera (B, S, 4, 4), intrinsics (B, S, 3, 3);
        depth: depth, depth_conf (B, S, H, W); points: points (B, S, H, W, 3), points_conf (B, S, H, W).
        """
        out: dict[str, Tensor] = {}
        if "camera" in heads:
            encodings = self.camera_head(trunk.levels[self.taps[-1]][:, :, 0], trunk.stream)
            out["pose_encodings"] = encodings
            pose, out["intrinsics"] = decode_pose(encodings[-1], size, self.sizes.centre)
            out["world_from_camera"] = pose if self.camera_to_world else invert_rigid(pose)
        for name, head in (("depth", "depth_head"), ("points", "point_head")):
            if name in heads:
                dense_head: DenseHead = getattr(self, head)
                raw = self.run_dense_head(dense_head, trunk, size, check, frames=dense)  # (B, S, n, H, W)
                out[f"{name}_conf"] = 1 + raw[:, :, -1].exp()
                out[name] = raw[:, :, 0].exp() if name == "depth" else inverse_log(raw[:, :, :-1]).movedim(2, -1)
        return out

    def run_dense_head(
        self,
        head: DenseHead,
        trunk: Trunk,
        size: tuple[int, int],
        check: Check,
        frames: Sequence[int] | None = None,
        chunk: int = 8,
    ) -> Tensor:
        """Raw channels (B, S, n, H, W), of all frames or of some."""
        levels, n = [trunk.levels[i][:, :, trunk.special :] for i in self.taps], len(self.taps)

        def one_part(part: list[Tensor]) -> Tensor:
            return head(part[:n], trunk.grid, size, part[n:])

        return self.run_dense(one_part, [*levels, *trunk.fine], check, frames, chunk)


class Aggregator(nn.Module):
    def __init__(self, z: VGGTSizes) -> None:
        super().__init__()
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, z.dim))
        self.register_token = nn.Parameter(torch.zeros(1, 2, z.registers, z.dim))
        blocks = (Block(z.dim, z.encoder_heads, eps=1e-6, scale_init=1.0) for _ in range(z.encoder_depth))
        side = z.image_side // z.patch
        self.patch_embed = (
            StemEncoder(side, z.dim, blocks, registers=z.registers)
            if z.stem
            else PatchEncoder(side, z.patch, z.dim, blocks, registers=z.registers)
        )
        self.patch_embed.mask_token = nn.Parameter(torch.zeros(1, z.dim))  # unused, but present in the published file

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

    def forward(self, tokens: Tensor, stream: StreamPass | None = None) -> Tensor:
        """(B, S, 2C) -> (iterations, B, S, 9): translation, quaternion xyzw, field of view (vertical, horizontal) in rad.

        stream: of a causal model, whose camera tokens also read those of all earlier frames, by iteration and block.
        """
        tokens = self.token_norm(tokens)
        raw: Tensor | None = None
        encodings = []
        for i in range(self.iterations):
            given = self.empty_pose_tokens.expand(*tokens.shape[:2], -1) if raw is None else raw
            shift, scale, gate = self.poseLN_modulation(self.embed_pose(given)).chunk(3, dim=-1)
            x = tokens + gate * (F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6) * (1 + scale) + shift)
            for j, block in enumerate(self.trunk):
                recall: Recall | None = None if stream is None else functools.partial(stream.recall_camera, (i, j))
                x = block(x, recall=recall, mask=None if stream is None else stream.camera_mask)
            delta = self.pose_branch(self.trunk_norm(x))
            raw = delta if raw is None else raw + delta  # the raw estimate is fed back, not the activated one
            encodings.append(torch.cat((raw[..., :7], F.relu(raw[..., 7:])), dim=-1))
        return torch.stack(encodings)


def inverse_log(x: Tensor) -> Tensor:
    """sign(x) (exp|x| - 1): the point head's activation."""
    return x.sign() * x.abs().expm1()
