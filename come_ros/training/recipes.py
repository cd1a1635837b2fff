"""Training recipes per backbone: initial values, where its tokens are, the losses of its heads.

`recipe_for(name)` gives a backbone's; a backbone without one cannot be trained here. Shapes as in losses.py.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..accelerators import Accelerator
from ..backbones.cameras import invert_rigid, rigid, rotation_from_quaternion, world_points
from ..backbones.layers import PatchEncoder
from ..backbones.lingbot import LingBot
from ..backbones.mapanything import MapAnything, unit
from ..backbones.model import KnownTensors, Trunk
from ..backbones.vggt import VGGT, inverse_log
from ..errors import ConfigError
from ..evaluation.rooms import score
from .losses import camera_loss, dense_loss, spatial_gradient
from .room_windows import STREAMS, WINDOWS, Cut
from .whole_stream import WholePass

Batch = dict[str, Tensor]


def recipe_for(backbone: str) -> Recipe:
    """Raises ConfigError if there is none."""
    if backbone not in RECIPES:
        raise ConfigError(
            f"backbone is {backbone!r}, but only {', '.join(RECIPES)} can be trained here: take one of them"
        )
    return RECIPES[backbone]()


class Recipe:
    """weights: of the terms that head_losses gives. helping: of the auxiliary losses, which fade out. windows: those it learns from.
    merges: whether some steps may merge tokens."""

    weights: ClassVar[dict[str, float]]
    helping: ClassVar[dict[str, float]] = {"match": 0.5, "attention": 0.5, "ray": 4.0}
    windows: ClassVar[Cut] = WINDOWS
    merges: ClassVar[bool] = True

    def encoder(self, model: Any) -> PatchEncoder:
        raise NotImplementedError

    def initialise(self, model: Any) -> None:
        """Initial values of the parts after the encoder, where they differ from tiny.initialise's."""

    def prepare(self, model: Any) -> None:
        """Freezes what does not learn."""

    def run_trunk(self, model: Any, images: Tensor, accelerator: Accelerator, known: KnownTensors | None) -> Trunk:
        return model.run_trunk(images, accelerator, known=known)

    def score(self, model: Any, split: str, count: int) -> dict[str, Any]:
        """Scores on a frozen split of rooms, see evaluation.rooms."""
        return score(model, split, count)

    def watched_tokens(self, model: Any, trunk: Trunk) -> tuple[Tensor, list[Tensor]]:
        """Patch tokens (B, S, n, c) before frames attend to each other, and of the levels after."""
        raise NotImplementedError

    def known(self, batch: Batch) -> KnownTensors | None:
        """Known inputs besides the images of a training batch, drawn at random."""
        return None

    def head_losses(self, model: Any, trunk: Trunk, want: Batch, size: tuple[int, int]) -> dict[str, Tensor]:
        """The unweighted loss terms of the heads applied to `trunk`, for images of (H, W) = size; want: losses.targets."""
        raise NotImplementedError

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the terms of head_losses."""
        return torch.stack([weight * terms[name] for name, weight in self.weights.items()]).sum()


def some_frames(frames: int, device: torch.device) -> Tensor:
    """Half of them: dense heads process frames separately, and half of the frames train as fast per second as all."""
    return torch.randperm(frames, device=device)[: max(1, frames // 2)]


def of_frames(trunk: Trunk, rows: Tensor) -> Trunk:
    """The heads' input for some frames."""
    return trunk._replace(
        levels={i: t[:, rows] for i, t in trunk.levels.items()}, fine=tuple(t[:, rows] for t in trunk.fine)
    )


class VGGTRecipe(Recipe):
    weights: ClassVar[dict[str, float]] = {"camera": 5.0, "depth": 1.0, "points": 1.0}

    def encoder(self, model: VGGT) -> PatchEncoder:
        return model.aggregator.patch_embed

    def initialise(self, model: VGGT) -> None:
        a = model.aggregator
        for token in (a.camera_token, a.register_token):
            nn.init.normal_(token, std=0.1)
        # the first estimate is the identity at a 60 degree field of view; a random start gets stuck in 180 degree flips
        last = model.camera_head.pose_branch.fc2
        last.weight.mul_(0.1)
        last.bias.copy_(torch.tensor([0, 0, 0, 0, 0, 0, 1.0, 0.85, 1.05]) / model.camera_head.iterations)

    def watched_tokens(self, model: VGGT, trunk: Trunk) -> tuple[Tensor, list[Tensor]]:
        levels = [trunk.levels[i][:, :, trunk.special :] for i in model.taps]
        return levels[0][..., : levels[0].shape[-1] // 2], levels  # of the first frame block, the first half

    def head_losses(self, model: VGGT, trunk: Trunk, want: Batch, size: tuple[int, int]) -> dict[str, Tensor]:
        """Camera, depth and points: the published terms."""
        camera = self.camera_term(model, trunk, want)
        rows = some_frames(want["depth"].shape[1], want["depth"].device)
        depth = self.depth_term(model, trunk, want, size, rows)
        part, size = of_frames(trunk, rows), (size[0] // 2, size[1] // 2)
        point_raw = model.run_dense_head(model.point_head, part, size, lambda: None, chunk=64)
        point_error = inverse_log(point_raw[:, :, :3].clamp(-6, 6)).movedim(2, -1) - want["points"][:, rows, ::2, ::2]
        gradient = torch.stack([spatial_gradient(point_error[..., i]) for i in range(3)]).sum(0)
        points = dense_loss(point_error.norm(dim=-1), 1 + point_raw[:, :, 3].clamp_max(8).exp(), gradient)
        return {"camera": camera, "depth": depth, "points": points}

    def camera_term(self, model: VGGT, trunk: Trunk, want: Batch) -> Tensor:
        return camera_loss(model.camera_head(trunk.levels[model.taps[-1]][:, :, 0], trunk.stream), want["encoding"])

    def depth_term(self, model: VGGT, trunk: Trunk, want: Batch, size: tuple[int, int], rows: Tensor) -> Tensor:
        """Of some frames, at half the resolution."""
        half = (size[0] // 2, size[1] // 2)
        raw = model.run_dense_head(model.depth_head, of_frames(trunk, rows), half, lambda: None, chunk=64)
        # in logarithms: the scores are relative errors, and the head's exp makes the raw channel the log depth
        log_error = raw[:, :, 0] - want["depth"][:, rows, ::2, ::2].clamp_min(1e-3).log()
        return dense_loss(log_error.abs(), 1 + raw[:, :, 1].clamp_max(8).exp(), spatial_gradient(log_error))


class LingBotRecipe(VGGTRecipe):
    """A causal model that continues from one that saw windows. It learns from whole streams, each with scale frames and a local window of
    its own size. The encoder, which sees single frames in both forms, stays as it is, and no point head is needed.
    """

    weights: ClassVar[dict[str, float]] = {"camera": 5.0, "depth": 1.0}
    helping: ClassVar[dict[str, float]] = {"attention": 0.5}
    windows: ClassVar[Cut] = STREAMS
    merges: ClassVar[bool] = False
    scale_frames: ClassVar[tuple[int, ...]] = (4, 8)
    local: ClassVar[tuple[int, ...]] = (4, 8, 16)

    def prepare(self, model: LingBot) -> None:
        self.encoder(model).requires_grad_(False)

    def run_trunk(self, model: LingBot, images: Tensor, accelerator: Accelerator, known: KnownTensors | None) -> Trunk:
        frames = images.shape[1]
        scale, local = (choices[int(torch.randint(len(choices), ()))] for choices in (self.scale_frames, self.local))
        return model.run_trunk(images, accelerator, stream=WholePass(frames, min(scale, frames // 2), local))

    def score(self, model: LingBot, split: str, count: int) -> dict[str, Any]:
        """On streams of 16 frames, which begin with 4 and have a local window of 8."""
        return score(model, split, count, frames=16, stream=lambda frames: WholePass(frames, 4, 8))

    def head_losses(self, model: LingBot, trunk: Trunk, want: Batch, size: tuple[int, int]) -> dict[str, Tensor]:
        return {
            "camera": self.camera_term(model, trunk, want),
            "depth": self.depth_term(model, trunk, want, size, some_frames(trunk.stream.frames, want["depth"].device)),
        }


class MapAnythingRecipe(Recipe):
    """The factored losses of MapAnything 3.3: rays, depth along them, poses, points, metric scale, mask; lengths but the last up to
    scale.

    As for VGGT, and unlike the paper: depth in logarithms with its gradients, translation relative to its length, rotation weighted,
    camera terms weighted as VGGT's four refinements together.
    """

    weights: ClassVar[dict[str, float]] = {
        "camera": 10.0, "depth": 1.0, "points": 1.0, "rays": 4.0, "scale": 0.5, "mask": 0.1
    }  # fmt: skip
    known_share = (
        0.5  # share of windows with known inputs; 0.9 in the paper, whose model is not evaluated on images alone
    )
    each_share = 0.5  # of those, for each of intrinsics, depth, poses
    frame_share, metric_share = 0.95, 0.95
    sparse_share, left_share = 0.5, 0.1  # of depth maps that are sparse, and of their pixels that are left

    def encoder(self, model: MapAnything) -> PatchEncoder:
        return model.encoder["model"]  # type: ignore[return-value]

    def initialise(self, model: MapAnything) -> None:
        nn.init.normal_(model.scale_token, std=0.1)
        # first estimates as VGGT's: rays ahead, no motion; and a room's size
        starts = {
            model.dense_head[1].conv2[-1]: [0.0, 0.0, 1.0, 0.0, 0.0, 0.0],
            model.pose_head.fc_t: [0.0, 0.0, 0.0],
            model.pose_head.fc_rot: [0.0, 0.0, 0.0, 1.0],
            model.scale_head.output_proj: [math.log(3)],
        }
        for layer, bias in starts.items():
            layer.weight.mul_(0.1)
            layer.bias.copy_(torch.tensor(bias))
        for (
            module
        ) in model.modules():  # known inputs start with small weights: they are noise until their encoders are trained
            if hasattr(module, "norm_layer"):
                nn.init.constant_(module.norm_layer.weight, 0.3)

    def watched_tokens(self, model: MapAnything, trunk: Trunk) -> tuple[Tensor, list[Tensor]]:
        first, *levels = (trunk.levels[i][:, :, trunk.special :] for i in model.taps)
        return first, levels

    def known(self, batch: Batch) -> KnownTensors | None:
        """MapAnything 3.2: some of intrinsics, depth (dense or sparse), poses, of some frames, in metres or not."""
        depth, pose = batch["depth"], batch["camera_from_first"]
        b, s = depth.shape[:2]

        def lot(share: float, *shape: int) -> Tensor:
            return torch.rand(b, *shape, device=depth.device) < share

        some = lot(self.known_share, 1)
        has_depth, has_rays, has_pose = (some & lot(self.each_share, 1) & lot(self.frame_share, s) for _ in range(3))
        if not (has_depth | has_rays | has_pose).any():
            return None
        kept = lot(1 - self.sparse_share, 1, 1, 1) | lot(self.left_share, *depth.shape[1:])
        nan = torch.tensor(math.nan, device=depth.device)
        return KnownTensors(
            torch.where((has_rays | has_depth)[..., None, None], batch["intrinsics"][:, None], nan),
            torch.where(has_depth[..., None, None] & kept, depth, nan),
            torch.where(has_pose[..., None, None], invert_rigid(pose), nan),
            lot(self.metric_share, 1).expand(b, s),
        )

    def head_losses(self, model: MapAnything, trunk: Trunk, want: Batch, size: tuple[int, int]) -> dict[str, Tensor]:
        levels = model.head_levels(trunk)
        translation, quat = model.run_pose_head(levels)
        rows = some_frames(quat.shape[1], quat.device)
        half = (size[0] // 2, size[1] // 2)
        raw = model.run_dense_head([x[:, rows] for x in levels], trunk.grid, half, lambda: None, chunk=64)
        rays, log_depth = unit(raw[:, :, :3].movedim(2, -1)), raw[:, :, 3].clamp(-8, 8)
        poses = rigid(rotation_from_quaternion(quat), translation)[:, rows]
        points = world_points(poses, rays * log_depth.exp()[..., None])

        # the truth: poses are VGGT's inverted
        encoding = want["encoding"]
        true_quat = encoding[..., 3:7] * encoding.new_tensor([-1.0, -1.0, -1.0, 1.0])
        true_translation = -(rotation_from_quaternion(true_quat) @ encoding[..., :3, None])[..., 0]
        camera, true_points = (want[name][:, rows, ::2, ::2] for name in ("camera", "points"))
        true_depth = camera.norm(dim=-1).clamp_min(1e-3)

        # both sides about their own mean distance (3.3)
        z, true_z = points.norm(dim=-1).mean((1, 2, 3)), true_points.norm(dim=-1).mean((1, 2, 3))  # (B,)
        log_error = (log_depth - true_depth.log()) - (z / true_z).log()[:, None, None, None]
        found, truth = points / z.view(-1, 1, 1, 1, 1), true_points / true_z.view(-1, 1, 1, 1, 1)
        point_error = (shrink(found) - shrink(truth)).norm(dim=-1)
        pose = torch.cat((translation / z[:, None, None], quat), dim=-1)
        true_pose = torch.cat((true_translation / true_z[:, None, None], true_quat), dim=-1)
        metres = (true_z * want["scale"]).log()
        return {
            "camera": camera_loss(pose[None], true_pose),
            "depth": (log_error.abs() + spatial_gradient(log_error)).mean(),
            "points": dense_loss(point_error, 1 + raw[:, :, 4].clamp_max(8).exp(), torch.zeros_like(point_error)),
            "rays": (rays - unit(camera)).norm(dim=-1).mean(),
            "scale": (model.run_scale_head(trunk) + z.detach().log() - metres).abs().mean(),
            "mask": F.softplus(-raw[:, :, 5]).mean(),  # everything in these rooms has a depth
        }


def shrink(x: Tensor) -> Tensor:
    """x / |x| log(1 + |x|) of vectors in the last axis: the f_log of MapAnything 3.3."""
    length = x.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    return x * (length.log1p() / length)


RECIPES: dict[str, type[Recipe]] = {"vggt": VGGTRecipe, "lingbot": LingBotRecipe, "mapanything": MapAnythingRecipe}
