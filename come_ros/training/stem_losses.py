"""The loss of a model with a stem for one batch: terms of motion_losses.py and losses.py, from one pass; and the imitation of an earlier
encoder."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..accelerators import Accelerator, NoAccelerator
from ..backbones.vggt import VGGT, inverse_log
from .loop import bf16_pays
from .losses import attention_loss, correspondence, matching_loss, ray_loss, targets
from .motion_losses import SHORT, depth_loss, flow_loss, flow_targets, likelihood_loss, motion_loss
from .recipes import of_frames, some_frames
from .tiny import WATCHED_BLOCKS

SHORT_SEQUENCE = 800  # tokens: longer ones take too much memory without a fused kernel


class Watch(Accelerator):
    """Dense attention; seen: queries and keys of the global blocks that attention_loss watches."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor]] = []

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: Any, layer: Any) -> Tensor:
        if layer.part == "global" and layer.index in WATCHED_BLOCKS:
            self.seen.append((q, k))
        if q.dtype == torch.bfloat16 and q.device.type == "cpu" and k.shape[2] <= SHORT_SEQUENCE:
            # in the backward pass, two matrix products in bf16 take half the time of the CPU's fused kernel
            return (q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)).softmax(-1) @ v
        return super().attend(q, k, v, plan, layer)


def losses(
    model: VGGT, probe: nn.ModuleDict, batch: dict[str, Tensor], fading: bool = True, short: float = SHORT
) -> dict[str, Tensor]:
    """Each term of the loss for one batch, unweighted but for what motion_loss weighs. fading: whether to include losses that fade
    out. short: see motion_loss."""
    watch = Watch()
    images = batch["images"].float() / 255
    s, size = images.shape[1], (images.shape[3], images.shape[4])
    want, measured = targets(batch), batch["measured"]
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16_pays(images.device)):
        trunk = model.run_trunk(images, watch)
        encodings = model.camera_head(trunk.levels[model.taps[-1]][:, :, 0]).float()
        rows = some_frames(s, images.device)
        some = rows[: (len(rows) + 1) // 2]  # points are an auxiliary output: fewer frames are enough
        depth_raw = model.run_dense_head(model.depth_head, of_frames(trunk, rows), size, lambda: None, chunk=64).float()
        point_raw = model.run_dense_head(model.point_head, of_frames(trunk, some), size, lambda: None, chunk=64).float()
        levels = [trunk.levels[i][:, :, trunk.special :] for i in model.taps]
        terms = motion_loss(encodings, want["encoding"], short)
        zero = encodings.new_zeros(())
        terms |= {"ray": ray_loss(probe["rays"], levels, want, model.patch)}
        if s > 1:
            terms["flow"] = flow_loss(probe["flow"], levels, *flow_targets(want, batch["intrinsics"], model.patch))
        if s > 1 and fading:
            target, valid = correspondence(want, batch, model.patch)
            single = levels[0][..., : levels[0].shape[-1] // 2]  # of the first frame block
            terms["match"] = matching_loss(probe["match"](single).float(), target, valid)
            terms["attention"] = attention_loss(
                [(q.float(), k.float()) for q, k in watch.seen], s, trunk.special, target, valid
            )
    depth, error = depth_loss(depth_raw[:, :, 0], want["depth"][:, rows])
    point_error = (inverse_log(point_raw[:, :, :3].clamp(-6, 6)).movedim(2, -1) - want["points"][:, some]).norm(dim=-1)
    dense = {
        "depth": depth,
        "depth sure": likelihood_loss(depth_raw[:, :, 1], error),
        "points": point_error.clamp_max(4).mean((1, 2, 3)),
        "points sure": likelihood_loss(point_raw[:, :, 3], point_error),
    }
    count = measured.sum().clamp_min(1)
    return (
        dict.fromkeys(("flow", "match", "attention"), zero)
        | terms
        | {n: (x * measured).sum() / count for n, x in dense.items()}
    )


def imitation_loss(model: VGGT, earlier: VGGT, images: Tensor) -> Tensor:
    """How far the encoder's patch tokens are from an earlier encoder's, which sees the same patches at its own patch size."""
    b, s, _, height, width = images.shape
    size = height // model.patch * earlier.patch, width // model.patch * earlier.patch
    small = F.interpolate(images.flatten(0, 1), size=size, mode="bilinear", antialias=True).unflatten(0, (b, s))
    with torch.no_grad():
        want = earlier.encoder_output(earlier.encode(small, NoAccelerator()).tokens, None).x.float()
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16_pays(images.device)):
        found = model.encoder_output(model.encode(images, NoAccelerator()).tokens, None).x.float()
    return F.smooth_l1_loss(found, want)
