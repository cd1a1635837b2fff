"""Validation scores of a training run: rendered rooms of a frozen split, and recordings with true depth or poses.

Each is compared with trivial baselines that do not use the images: constant depth, the mean depth map, no rotation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..accelerators import Accelerator, NoAccelerator
from ..backbones.model import GeometryModel
from ..backbones.vggt import VGGT
from ..camera.preprocess import plan_resize
from ..datasets.rooms.rooms import render_sequence
from ..datasets.rooms.splits import SPLIT_SEEDS, TEST_RATE_HZ
from ..evaluation import depth_errors, relative_pose_errors
from ..evaluation.baselines import LINES
from ..evaluation.calibration import calibration
from ..evaluation.depth import depth_scale
from ..evaluation.window import WindowTruth, mean_depth

FRAMES = 4
LEAST_BASELINE = 0.05  # of the window's median depth: the direction and length of shorter translations are not scored
SAMPLED = 7  # stride of the pixels used for the rank correlation


@dataclasses.dataclass(frozen=True, eq=False)
class Judge:
    """judge(model) -> scores by source. windows: of each source; created once, at the model's native size."""

    windows: dict[str, list[WindowTruth]]

    @classmethod
    def of(
        cls, split: str, count: int, recordings: Mapping[str, list[WindowTruth]], side: int = 256, patch: int = 16
    ) -> Judge:
        """`count` windows of a frozen split of rooms, and windows of recordings by their names, all for that native side and patch."""
        plan = plan_resize(640, 480, side, patch)
        rooms = [_room(seed, plan.width, plan.height) for seed in SPLIT_SEEDS[split][:count]]
        return cls({"rooms": rooms, **recordings})

    def __call__(self, model: VGGT) -> dict[str, Any]:
        """Source -> scores of the model; and their sum in one number, `figure`, larger is better."""
        was_training = model.training
        model.eval()
        scores: dict[str, Any] = {
            name: summary([window_scores(model, w) for w in some]) for name, some in self.windows.items()
        }
        model.train(was_training)
        rooms = scores["rooms"]
        deltas = [s["delta"] for s in scores.values() if "delta" in s]
        figure = np.mean(deltas) - rooms["rotation_deg"] / 30 - rooms["direction_deg"] / 180
        return {"figure": round(float(figure), 4), **scores}

    def baselines(self) -> dict[str, Any]:
        """Source -> scores of the trivial baselines."""
        return {name: summary([trivial_scores(w) for w in some]) for name, some in self.windows.items()}


def _room(seed: int, width: int, height: int) -> WindowTruth:
    s = render_sequence(seed, FRAMES, width, height, rate_hz=TEST_RATE_HZ)
    return WindowTruth("rooms", seed, s.images, s.depth, s.world_from_camera, s.intrinsics)


def window_scores(
    model: GeometryModel, truth: WindowTruth, accelerator: Accelerator | None = None
) -> dict[str, Sequence[float]]:
    """Figures of one window by name, some with a value for each frame; those of `trivial_confidence` are among them, since they are about
    the errors of this model. accelerator: None for the dense model."""
    images = torch.from_numpy(truth.images).to(next(model.parameters()).device).permute(0, 3, 1, 2)[None].float() / 255
    with torch.inference_mode():
        out, _ = model(images, accelerator or NoAccelerator(), ("camera", "depth"))
    depth = out["depth"][0].float().cpu().numpy()
    row: dict[str, Sequence[float]] = {}
    scale = None
    if truth.depth is not None:
        scale = depth_scale(depth, truth.depth)
        e = depth_errors(depth, truth.depth, scale=scale)
        row |= {"delta": [e.delta], "abs_rel": [e.abs_rel]}
        known = np.isfinite(truth.depth) & (truth.depth > 0)
        off = np.where(known, np.abs(depth * scale / np.where(known, truth.depth, 1) - 1), np.nan)
        some = np.s_[:, ::SAMPLED, ::SAMPLED]
        trusted = {"": out["depth_conf"][0].float().cpu().numpy(), **trivial_confidence(depth)}
        row |= {f"{name}spearman": [calibration(c[some], off[some]).spearman] for name, c in trusted.items()}
    if truth.world_from_camera is not None:
        poses = out["world_from_camera"][0].double().cpu().numpy()
        row |= _pose_scores(poses, truth, scale)
    if truth.intrinsics is not None:
        row["focal_error"] = list(np.abs(out["intrinsics"][0, :, 0, 0].cpu().numpy() / truth.intrinsics[0, 0] - 1))
    return row


def trivial_confidence(depth: np.ndarray) -> dict[str, np.ndarray]:
    """Confidence (S, H, W) that knows nothing of errors, by the prefix of its figures: what is near is right; what is near the centre of
    the image is right. depth: (S, H, W) as estimated."""
    height, width = depth.shape[1:]
    y, x = ((np.arange(n) + 0.5) / n - 0.5 for n in (height, width))
    return {"near ": -depth, "centre ": np.broadcast_to(-np.hypot(y[:, None], x), depth.shape)}


def _pose_scores(poses: np.ndarray, truth: WindowTruth, scale: float | None) -> dict[str, Sequence[float]]:
    """scale: true lengths over ours, by the depth; None where that is unknown."""
    real = truth.world_from_camera
    assert real is not None
    rotation, direction, _ = relative_pose_errors(poses, real)
    row: dict[str, Sequence[float]] = {"rotation_deg": list(rotation)}
    if truth.depth is None or scale is None:
        return {**row, "direction_deg": list(direction)}
    true_length, length = (np.linalg.norm((np.linalg.inv(p[0]) @ p)[1:, :3, 3], axis=1) for p in (real, poses))
    far = true_length > LEAST_BASELINE * np.nanmedian(np.where(truth.depth > 0, truth.depth, np.nan))
    return {**row, "direction_deg": list(direction[far]), "length_ratio": list(scale * length[far] / true_length[far])}


def trivial_scores(truth: WindowTruth) -> dict[str, Sequence[float]]:
    """The same of what does not look at the images."""
    row: dict[str, Sequence[float]] = {}
    if truth.depth is not None:
        mean = np.broadcast_to(mean_depth(truth.depth.shape[1:]), truth.depth.shape)
        for name, depth in (("constant", np.ones_like(truth.depth)), ("mean map", mean)):
            e = depth_errors(depth, truth.depth)
            row |= {f"{name} delta": [e.delta], f"{name} abs_rel": [e.abs_rel]}
    if truth.world_from_camera is not None:
        _, _, still = relative_pose_errors(np.tile(np.eye(4), (len(truth.images), 1, 1)), truth.world_from_camera)
        row["no rotation_deg"] = list(still)
        row |= _fixed_direction(truth.world_from_camera)
    return row


def _fixed_direction(poses: np.ndarray) -> dict[str, Sequence[float]]:
    """A straight line along each axis of the first camera, in either direction; compare with the best one."""
    moved = (np.linalg.inv(poses[0]) @ poses)[1:, :3, 3]
    unit = moved / np.linalg.norm(moved, axis=1, keepdims=True).clip(1e-9)
    return {name: list(np.degrees(np.arccos((unit @ way).clip(-1, 1)))) for name, way in LINES.items()}


def summary(rows: list[dict[str, Sequence[float]]]) -> dict[str, float]:
    """Means of depth figures, medians of all others."""
    names = dict.fromkeys(name for row in rows for name in row)
    out = {}
    for name in names:
        values = np.concatenate([np.asarray(row.get(name, []), np.float64) for row in rows])
        middle = np.nanmean if name.endswith(("delta", "abs_rel", "spearman")) else np.nanmedian
        out[name] = round(float(middle(values)), 4) if np.isfinite(values).any() else float("nan")
    return {**out, "windows": len(rows)}
