"""Losses of geometry models and their targets: ground truth in the model's convention, correspondence between frames.

Shapes: B scenes, S frames, h x w = n patches, H x W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones.cameras import quaternion_from_rotation

ROTATION_WEIGHT = 3.0  # of the quaternion in the camera loss: at 10 degrees it differs from the identity by 0.09 only
TRANSLATION_WEIGHT = 0.5  # of the translation, relative to its length: an absolute L1 is smallest at no motion at all
SHORTEST = 0.05  # least translation, in scene scales, relative to which errors are measured


def targets(batch: dict[str, Tensor], scale_frames: int | None = None) -> dict[str, Tensor]:
    """Ground truth in the model's convention, scale normalised (VGGT 3.4): relative to the first camera, mean distance of all
    points = 1; scale_frames: of those of so many first frames, since a causal model has not seen the others yet.

    depth (B, S, H, W), points (B, S, H, W, 3), encoding (B, S, 9), all fp32.
    """
    depth, pose, k = batch["depth"], batch["camera_from_first"], batch["intrinsics"]
    _, s, h, w = depth.shape
    v, u = (x.to(depth) for x in torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))
    f, c = k[:, None, None, None, 0, 0], k[:, None, None, None, :2, 2]
    x, y = (u - c[..., 0]) * depth / f, (v - c[..., 1]) * depth / f
    camera = torch.stack((x, y, depth), dim=-1)  # (B, S, H, W, 3)
    rt = pose[..., :3, :3].transpose(-1, -2)  # first_from_camera rotation
    points = torch.einsum("bsij,bshwj->bshwi", rt, camera - pose[:, :, None, None, :3, 3])
    scale = points[:, :scale_frames].norm(dim=-1).mean(dim=(1, 2, 3))  # (B,)
    t = pose[..., :3, 3] / scale[:, None, None]
    fov = torch.stack((2 * torch.atan(h / 2 / k[:, 1, 1]), 2 * torch.atan(w / 2 / k[:, 0, 0])), dim=-1)
    encoding = torch.cat((t, quaternion_from_rotation(pose[..., :3, :3]), fov[:, None].expand(-1, s, -1)), dim=-1)
    return {
        "depth": depth / scale[:, None, None, None],
        "points": points / scale[:, None, None, None, None],
        "encoding": encoding,
        "camera": camera / scale[:, None, None, None, None],
        "scale": scale,
    }


def camera_loss(encodings: Tensor, want: Tensor) -> Tensor:
    """L1 of every refinement step's pose encoding, later steps weighing more (VGGT 3.4; weights 0.6^(last - step)).

    Unlike VGGT's, a translation's error is relative to its length. Encodings (B, S, 7 or more): translation, quaternion, others.
    """
    n = len(encodings)
    weight = want.new_ones(want.shape) / 9
    weight[..., 3:7] *= ROTATION_WEIGHT
    length = want[..., :3].norm(dim=-1, keepdim=True).clamp_min(SHORTEST)
    weight[..., :3] *= TRANSLATION_WEIGHT / length
    errors = [((e - want).abs().clamp_max(10) * weight).sum(-1).mean() for e in encodings]
    return torch.stack([0.6 ** (n - 1 - i) * e for i, e in enumerate(errors)]).sum()


def dense_loss(error: Tensor, confidence: Tensor, gradient: Tensor) -> Tensor:
    """Confidence-weighted error with gradient term (VGGT eq. 3; Kendall & Gal 2017): c e + c |grad e| - 0.2 log c, e clamped."""
    return (confidence * (error.clamp_max(4) + gradient)).mean() - 0.2 * confidence.log().mean()


def spatial_gradient(x: Tensor) -> Tensor:
    """|dx| + |dy| of (B, S, H, W), zero at the far border."""
    return F.pad((x[..., 1:] - x[..., :-1]).abs(), (0, 1)) + F.pad((x[..., 1:, :] - x[..., :-1, :]).abs(), (0, 0, 0, 1))


def patch_centres(x: Tensor, patch: int) -> Tensor:
    """(B, S, H, W, ...) -> its values at patch centres, (B, S, h*w, ...)."""
    return x[:, :, patch // 2 :: patch, patch // 2 :: patch].flatten(2, 3)


def correspondence(want: dict[str, Tensor], batch: dict[str, Tensor], patch: int) -> tuple[Tensor, Tensor]:
    """Index (B, S-1, n) of the first frame's patch that sees the same as each patch of the other frames, and a mask of where it is
    known."""
    b, _, height, width = batch["depth"].shape
    h, w = height // patch, width // patch
    p = patch_centres(want["points"], patch)[:, 1:]  # in the first camera
    k = batch["intrinsics"][:, None, None]
    z = p[..., 2].clamp_min(1e-3)
    u = p[..., 0] / z * k[..., 0, 0] + k[..., 0, 2]
    v = p[..., 1] / z * k[..., 1, 1] + k[..., 1, 2]
    col, row = ((u + 0.5) / patch).floor().long(), ((v + 0.5) / patch).floor().long()
    inside = (p[..., 2] > 0.01) & (col >= 0) & (col < w) & (row >= 0) & (row < h)
    target = row.clamp(0, h - 1) * w + col.clamp(0, w - 1)
    # the depth seen by the first camera there
    seen = patch_centres(want["depth"], patch)[:, 0].gather(1, target.view(b, -1)).view_as(z)
    return target, inside & ((z / seen - 1).abs() < 0.15)


def choice_loss(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy of logits (B, m, n) against target (B, m) where valid (B, m)."""
    loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none") * valid.flatten()
    return loss.sum() / valid.sum().clamp_min(1)


def matching_loss(descriptors: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """InfoNCE: each patch's descriptor (B, S, n, c) must be most similar to that of the first frame's patch that sees the same
    (auxiliary).

    A transformer of this size does not learn correspondence from the pose loss alone within 40 thousand windows (measured); with
    this loss it does.
    """
    f = F.normalize(descriptors, dim=-1)
    logits = torch.einsum("bmc,bnc->bmn", f[:, 1:].flatten(1, 2), f[:, 0]) / 0.07
    return choice_loss(logits, target.flatten(1), valid.flatten(1))


def attention_loss(
    watched: list[tuple[Tensor, Tensor]],
    frames: int,
    special: int,
    target: Tensor,
    valid: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """The first head of some global blocks must look at the matching patch of the first frame (auxiliary).

    Without it the blocks ignore the matches that the descriptors already contain: after 23 thousand frames no rotation was learned
    (measured). watched: queries (B, heads, S T, d) of each block, and keys, which may be followed by tokens of the scene. mask: (S T,
    S T) bool, which token reads which; None for all.
    """
    hidden = None
    if mask is not None:
        hidden = ~mask.unflatten(0, (frames, -1))[1:, special:].flatten(0, 1)
    total = target.new_zeros((), dtype=torch.float32)
    for q, k in watched:
        b, _, n, d = q.shape
        queries = q[:, 0].view(b, frames, n // frames, d)[:, 1:, special:].flatten(1, 2)
        # over all tokens of all frames, as in the block itself
        logits = queries @ k[:, 0].transpose(1, 2) / d**0.5
        if hidden is not None:
            logits = logits.masked_fill(hidden, float("-inf"))
        total = total + choice_loss(logits, special + target.flatten(1), valid.flatten(1))
    return total / len(watched)


def ray_loss(rays: nn.ModuleList, levels: list[Tensor], want: dict[str, Tensor], patch: int) -> Tensor:
    """Mean error of each of `rays`, applied to its level (B, S, n, c): the direction of the patch's point, in the first camera."""
    direction = F.normalize(patch_centres(want["points"], patch), dim=-1)
    return torch.stack([(p(x) - direction).abs().mean() for p, x in zip(rays, levels, strict=True)]).mean()
