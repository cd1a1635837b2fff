"""Heads that the models share: dense maps from levels of tokens, and poses."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


def place_terms(height: int, width: int, device: torch.device) -> Tensor:
    """y, y^2 and x^2 of all pixels, (3, height, width) fp32, in image heights and widths from the centre, y down."""
    y, x = ((torch.arange(n, device=device, dtype=torch.float32) + 0.5) / n - 0.5 for n in (height, width))
    y, x = y[:, None].expand(height, width), x.expand(height, width)
    return torch.stack((y, y * y, x * x))


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

        Each step resamples to the next map's size; `doubling`: to twice its own size, cropped to the next map's size.
        """
        x, skip = maps[3], None
        for i in (3, 2, 1, 0):
            size = (2 * maps[i].shape[-2], 2 * maps[i].shape[-1])
            finer = (maps[i - 1].shape[-2], maps[i - 1].shape[-1]) if i else size
            x = getattr(self, f"refinenet{i + 1}")(x, skip, size if doubling else finer)[..., : finer[0], : finer[1]]
            skip = maps[i - 1]
        return x


def level_resize(index: int, channels: int) -> nn.Module:
    """Resizes level `index` of four from the patch grid to its size in the pyramid: 4, 2, 1 and 1/2 times the grid."""
    if index < 2:
        factor = 4 >> index
        return nn.ConvTranspose2d(channels, channels, factor, stride=factor)
    return nn.Identity() if index == 2 else nn.Conv2d(channels, channels, 3, stride=2, padding=1)


class _Scratch(Pyramid):
    """The pyramid and the layers stored next to it under VGGT's published keys."""

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
        by_place: bool = False,
    ) -> None:
        """fine: channels of finer image features, which are added to the first levels of the pyramid. Such a head predicts at half
        the resolution and expands each pixel to four, so its last convolutions cost a quarter. by_place: whether the last channel, the
        confidence, has a part that depends only on the place in the image: weights of `place_terms`."""
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.projects = nn.ModuleList(nn.Conv2d(dim, c, 1) for c in channels)
        self.resize_layers = nn.ModuleList(level_resize(i, c) for i, c in enumerate(channels))
        self.shuffle = 2 if fine else 1
        self.scratch = _Scratch(channels, features, outputs * self.shuffle**2, rectified)
        if fine:
            self.fine = nn.ModuleList(nn.Conv2d(c, features, 3, padding=1) for c in fine)
        self.place = nn.Parameter(torch.zeros(3)) if by_place else None

    def forward(
        self, levels: list[Tensor], grid: tuple[int, int], size: tuple[int, int], fine: Sequence[Tensor] = ()
    ) -> Tensor:
        """Four levels (frames, h*w, dim) of patch tokens on a grid (h, w) -> (frames, outputs, H, W) for size = (H, W).

        fine: maps (frames, ., 4 h, 4 w) and (frames, ., 2 h, 2 w), if the head was built with `fine`.
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
        x = F.pixel_shuffle(x, self.shuffle) if self.shuffle > 1 else x
        if self.place is None:
            return x
        added = torch.einsum("n,nhw->hw", self.place, place_terms(*x.shape[-2:], x.device)).to(x.dtype)
        return torch.cat((x[:, :-1], x[:, -1:] + added), dim=1)


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

    rotation: how many numbers represent it. convolution: whether the residual stages are stored as 1x1 convolutions. dim_in: channels
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
