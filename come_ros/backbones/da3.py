"""Depth Anything 3 (Lin et al., "Depth Anything 3: Recovering the Visual Space from Any Views", 2025): one plain encoder whose later
blocks attend over all views in turn. Small and permissive: `small` and `base` fit a small Jetson.

Written from the paper, the published checkpoints' key names and shapes, and facts of the Apache-2.0 code. Not implemented: the
choice of a reference view (it is the first one, as in the authors' own evaluation), the ray branch (poses come from the camera
decoder), and cameras as input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..tokens import Tokens
from .cameras import decode_pose
from .heads import DenseHead
from .layers import Block, PatchEncoder, offset_table, patch_positions
from .model import Check, GeometryModel, KnownTensors, RopeTables, Trunk


@dataclass(frozen=True)
class DA3Sizes:
    """Sizes of one variant. Lengths in tokens, channels or blocks; image_side in pixels."""

    image_side: int = 518  # of the stored position table: (image_side / patch)^2 patches
    native_side: int = 504  # longer side the model is run at
    patch: int = 14
    dim: int = 768
    heads: int = 12
    depth: int = 12
    alternate: int = (
        4  # the first block of the trunk; earlier blocks attend within one view and have no rotary positions
    )
    taps: tuple[int, ...] = (0, 1, 2, 3)  # pairs of trunk blocks
    features: int = 128
    channels: tuple[int, ...] = (96, 192, 384, 768)


VARIANTS = {
    "base": DA3Sizes(),
    "small": DA3Sizes(dim=384, heads=6, features=64, channels=(48, 96, 192, 384)),
}


class DepthAnything3(GeometryModel):
    """Images to cameras and depth. Parameter names are the published checkpoint's, without its prefix `model.`."""

    name = "da3"
    sizes_type = DA3Sizes
    landmark, weights_from = "backbone.pretrained.camera_token", "depth-anything/DA3-BASE on Hugging Face"

    def __init__(self, sizes: DA3Sizes) -> None:
        super().__init__()
        z = self.sizes = sizes
        self.patch, self.native_side, self.taps = z.patch, z.native_side, z.taps
        blocks = (Block(z.dim, z.heads, qk_norm=i >= z.alternate, eps=1e-6, scale_init=1.0) for i in range(z.depth))
        encoder = PatchEncoder(z.image_side // z.patch, z.patch, z.dim, blocks, norm_eps=1e-5, table=offset_table)
        encoder.camera_token = nn.Parameter(torch.zeros(1, 2, z.dim))
        self.backbone = nn.ModuleDict({"pretrained": encoder})
        self.head = DenseHead(2 * z.dim, z.features, z.channels, outputs=2, rectified=False)
        self.cam_dec = CameraDecoder(2 * z.dim)

    @classmethod
    def published_sizes(cls, state: Mapping[str, Tensor]) -> DA3Sizes:
        token = state.get(cls.landmark)
        return VARIANTS["small" if token is not None and token.shape[2] == VARIANTS["small"].dim else "base"]

    @classmethod
    def own_names(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        named = {key.removeprefix("model."): value for key, value in state.items()}
        return {k: v for k, v in named.items() if not k.startswith("cam_enc.") and "_aux." not in k}

    @property
    def _encoder(self) -> PatchEncoder:
        return self.backbone["pretrained"]  # type: ignore[return-value]

    def encoder_input(self, images: Tensor) -> Tokens:
        tokens: Tokens = self._encoder(images)
        return tokens

    def encoder_blocks(self) -> list[Block]:
        return list(self._encoder.blocks)[: self.sizes.alternate]  # type: ignore[arg-type]

    def encoder_output(self, encoded: Tokens, known: KnownTensors | None) -> Tokens:
        return encoded._replace(positions=patch_positions(encoded.grid, encoded.special, encoded.x.device))

    def trunk_input(self, encoded: Tokens) -> Tokens:
        b, s = encoded.x.shape[:2]
        token = self._encoder.camera_token  # slot 0 for the first view, slot 1 for the others
        camera = torch.cat((token[:, :1], token[:, 1:].expand(-1, s - 1, -1)), dim=1).expand(b, -1, -1)
        x = torch.cat((camera[:, :, None].to(encoded.x.dtype), encoded.x[:, :, 1:]), dim=2)
        return encoded._replace(x=x)

    def trunk_blocks(self) -> list[tuple[str, Block]]:
        blocks = list(self._encoder.blocks)[self.sizes.alternate :]
        return [(("frame", "global")[i % 2], block) for i, block in enumerate(blocks)]  # type: ignore[misc]

    def rope(self) -> RopeTables:
        return RopeTables(spatial_across_frames=False)

    def decode(
        self,
        trunk: Trunk,
        size: tuple[int, int],
        heads: tuple[str, ...],
        check: Check,
        dense: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """Keys by head. camera: pose_encoding (B, S, 9), world_from_camera (B, S, 4, 4), intrinsics (B, S, 3, 3); depth: depth,
        depth_conf (B, S, H, W).
        """
        out: dict[str, Tensor] = {}
        if "camera" in heads:
            out["pose_encoding"] = self.cam_dec(trunk.levels[self.taps[-1]][:, :, 0])
            out["world_from_camera"], out["intrinsics"] = decode_pose(out["pose_encoding"], size)
        if "depth" in heads:
            c = self.sizes.dim
            tapped = [trunk.levels[i][:, :, trunk.special :] for i in self.taps]
            levels = [torch.cat((t[..., :c], self._encoder.norm(t[..., c:])), dim=-1) for t in tapped]
            raw = self.run_dense(
                lambda part: self.head(part, trunk.grid, size), levels, check, dense
            )  # (B, S, 2, H, W)
            out["depth"], out["depth_conf"] = raw[:, :, 0].exp(), 1 + raw[:, :, 1].exp()
        return out


class CameraDecoder(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU())
        self.fc_t = nn.Linear(dim, 3)
        self.fc_qvec = nn.Linear(dim, 4)
        self.fc_fov = nn.Sequential(nn.Linear(dim, 2), nn.ReLU())

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, S, 2C) -> (B, S, 9), as decode_pose takes it."""
        x = self.backbone(tokens)
        return torch.cat((self.fc_t(x), self.fc_qvec(x), self.fc_fov(x)), dim=-1)
