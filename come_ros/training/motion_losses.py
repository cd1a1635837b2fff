"""Losses of the model with a stem: motion that must not collapse, depth up to the window's scale, confidence as a likelihood.

They use the targets of losses.py. Shapes: B scenes, S frames, h x w = n patches, H x W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .losses import ROTATION_WEIGHT, patch_centres, spatial_gradient

SHORT = 0.2  # scene scales: below this length, the error of a translation is relative to this, not to its length, unless told otherwise
UNSURE = 0.1  # scene scales: the directions of shorter translations weigh less
SOFT = 0.02  # scene scales: keeps direction and log length smooth around zero motion
DIRECTION_WEIGHT, LENGTH_WEIGHT, DISTANCE_WEIGHT = 0.15, 0.05, 0.1
REFINEMENT_DECAY = 0.6  # VGGT 3.4: weight of a refinement over that of the next
OUTLIER = 2.0  # limit of errors in the likelihood, so that one wrong pixel does not dominate


def motion_loss(encodings: Tensor, want: Tensor, short: float = SHORT) -> dict[str, Tensor]:
    """Terms of pose encodings (iterations, B, S, 9) against the truth (B, S, 9), weighted: turn (quaternion and field of view, all
    frames); direction, length and distance of the translation (all frames but the first). short: in scene scales; the distance is
    relative to the translation, or to this where it is shorter.

    While the direction is unknown, a relative L1 of the translation alone has its minimum at zero motion. Here zero motion costs as
    much as a wrong direction, and the gradient is largest there.
    """
    n = len(encodings)
    decay = encodings.new_tensor([REFINEMENT_DECAY ** (n - 1 - i) for i in range(n)])
    off = (encodings - want).abs().clamp_max(10)
    turn = (ROTATION_WEIGHT * off[..., 3:7].sum(-1) + off[..., 7:].sum(-1)).mean((1, 2)) / 9
    terms = {"turn": (decay * turn).sum()}
    if want.shape[1] == 1:
        zero = encodings.new_zeros(())
        return {**terms, "direction": zero, "length": zero, "distance": zero}
    t, true = encodings[:, :, 1:, :3], want[:, 1:, :3]
    length, true_length = t.square().sum(-1), true.norm(dim=-1)
    length = (length + SOFT**2).sqrt()
    sure = (true_length / UNSURE).clamp_max(1)
    cosine = (t * true).sum(-1) / (length * true_length.clamp_min(1e-6))
    ratio = length.log() - (true_length.square() + SOFT**2).sqrt().log()
    apart = (t - true).abs().sum(-1) / true_length.clamp_min(short)
    return {
        **terms,
        "direction": DIRECTION_WEIGHT * (decay * (sure * (1 - cosine)).mean((1, 2))).sum(),
        "length": LENGTH_WEIGHT * (decay * (sure * F.smooth_l1_loss(ratio, torch.zeros_like(ratio), reduction="none")).mean((1, 2))).sum(),
        "distance": DISTANCE_WEIGHT * (decay * apart.mean((1, 2))).sum(),
    }  # fmt: skip


def depth_loss(log_depth: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """(loss (B,), absolute error (B, S, H, W)) of the log depth (B, S, H, W) against true depth: error about the window's mean error,
    half of that mean, and gradients of the error over 1, 2 and 4 pixels."""
    off = log_depth - truth.clamp_min(1e-3).log()
    mean = off.mean((1, 2, 3), keepdim=True)
    loss = (off - mean).abs().mean((1, 2, 3)) + 0.5 * mean.flatten().abs()
    for every in (1, 2, 4):
        loss = loss + 0.5 * spatial_gradient(off[..., ::every, ::every]).mean((1, 2, 3))
    return loss, (off - mean).abs()


def likelihood_loss(sureness: Tensor, error: Tensor) -> Tensor:
    """Negative log likelihood of absolute errors under a Laplace distribution of scale exp(-sureness), up to a constant.

    The error is detached: confidence learns from it without affecting the estimate. All (B, S, H, W) -> (B,).
    """
    x = sureness.clamp(-4, 8)
    return (error.detach().clamp_max(OUTLIER) * x.exp() - x).mean((1, 2, 3))


def flow_targets(want: dict[str, Tensor], intrinsics: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """Position in the first image of the centre of each patch of frames 1.., relative to its own position, in patches (B, S-1, n,
    2); and whether it is in the image and near enough to be regressed (B, S-1, n). Occlusion does not matter: geometry is known."""
    p = patch_centres(want["points"], patch)[:, 1:]
    height, width = want["depth"].shape[2:]
    k = intrinsics[:, None, None]
    z = p[..., 2].clamp_min(1e-3)
    u = p[..., 0] / z * k[..., 0, 0] + k[..., 0, 2]
    v = p[..., 1] / z * k[..., 1, 1] + k[..., 1, 2]
    rows, columns = (torch.arange(n // patch, device=p.device) * patch + patch // 2 for n in (height, width))
    own_v, own_u = torch.meshgrid(rows, columns, indexing="ij")
    offset = torch.stack((u - own_u.flatten(), v - own_v.flatten()), dim=-1) / patch
    inside = (p[..., 2] > 0.01) & (u > -patch) & (u < width + patch) & (v > -patch) & (v < height + patch)
    return offset, inside


def flow_loss(heads: nn.ModuleList, levels: list[Tensor], offset: Tensor, inside: Tensor) -> Tensor:
    """Huber error (patches) of each of `heads`, applied to its level (B, S, n, c): the offset within the first image, more precise
    than a patch, as the parallax of most windows is smaller than that."""
    weight = inside.unsqueeze(-1).float()
    errors = []
    for head, level in zip(heads, levels, strict=True):
        found = head(level[:, 1:]).float()
        errors.append(
            (F.smooth_l1_loss(found, offset, beta=0.2, reduction="none") * weight).sum()
            / (2 * weight.sum()).clamp_min(1)
        )
    return torch.stack(errors).mean()
