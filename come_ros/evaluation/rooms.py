"""Scores of a model on a split of the procedural rooms, next to trivial baselines."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..tokens import StreamPass


def score(
    model: Any,
    split: str,
    count: int,
    given: tuple[str, ...] = (),
    frames: int = 4,
    stream: Callable[[int], StreamPass] | None = None,
) -> dict[str, Any]:
    """Scores on `count` windows of `frames` frames of a frozen split, next to three trivial baselines that do not use the images:
    one depth for all pixels, the training rooms' mean depth map, no rotation. Depth is scaled per window by the median ratio;
    scale_error, of metric models only, is the |logarithm| of that ratio. focal_error: |f / f* - 1|.

    given: what the model is given besides the images, see GeometryModel.inputs; of depth one pixel in ten. stream: the pass of a causal
    model over so many frames; None lets them see each other.
    """
    import torch

    from ..accelerators import NoAccelerator
    from . import depth_errors, relative_pose_errors
    from .depth import depth_scale

    width, height = model.native_side, model.native_side * 3 // 4
    average = mean_depth_map(width, height)
    device = next(model.parameters()).device
    rows: dict[str, list[float]] = {}
    model.eval()
    for s in split_windows(split, count, width, height, frames):
        with torch.inference_mode():
            images = torch.from_numpy(s.images).to(device).permute(0, 3, 1, 2)[None].float() / 255
            known = _truth(s, given, device) if given else None
            more = {} if stream is None else {"stream": stream(frames)}
            out, _ = model(images, NoAccelerator(), ("camera", "depth"), known=known, **more)
        estimates = {
            "": out["depth"][0].cpu().numpy(),
            "constant ": np.ones_like(s.depth),
            "mean map ": np.broadcast_to(average, s.depth.shape),
        }
        for name, depth in estimates.items():
            e = depth_errors(depth, s.depth)
            rows.setdefault(name + "abs_rel", []).append(e.abs_rel)
            rows.setdefault(name + "delta", []).append(e.delta)
        rotation, direction, identity = relative_pose_errors(
            out["world_from_camera"][0].double().cpu().numpy(), s.world_from_camera
        )
        rows.setdefault("rotation_deg", []).extend(rotation)
        rows.setdefault("identity rotation_deg", []).extend(identity)
        rows.setdefault("direction_deg", []).extend(direction)
        focal = out["intrinsics"][0, :, 0, 0].cpu().numpy() / s.intrinsics[0, 0]
        rows.setdefault("focal_error", []).extend(np.abs(focal - 1))
        if model.metric:
            rows.setdefault("scale_error", []).append(abs(np.log(depth_scale(estimates[""], s.depth))))
    model.train()
    means = [k for k in rows if k.endswith(("abs_rel", "delta"))]
    result = {k: round(float(np.mean(v) if k in means else np.nanmedian(v)), 4) for k, v in rows.items()}
    return {"split": split, "windows": count, "frames": frames, **result}


@functools.lru_cache(maxsize=2)
def split_windows(split: str, count: int, width: int, height: int, frames: int = 4) -> list[Any]:
    from ..datasets.rooms.rooms import render_sequence
    from ..datasets.rooms.splits import SPLIT_SEEDS, TEST_RATE_HZ

    seeds = SPLIT_SEEDS[split][:count]
    return [render_sequence(seed, frames=frames, width=width, height=height, rate_hz=TEST_RATE_HZ) for seed in seeds]


def _truth(s: Any, given: tuple[str, ...], device: Any) -> Any:
    """KnownTensors of a rendered sequence, with what is `given`."""
    import torch

    from ..backbones.model import KnownTensors
    from ..types import Known

    known = Known.nothing(*s.depth.shape)
    if "intrinsics" in given:
        known.intrinsics[:] = s.intrinsics
    if "poses" in given:
        known.world_from_camera[:] = s.world_from_camera
    if "depth" in given:
        some = np.random.default_rng(s.seed).random(s.depth.shape) < 0.1
        known.depth[some] = s.depth[some]
    arrays = (known.intrinsics, known.depth, known.world_from_camera)
    metric = torch.ones(1, len(known.depth), dtype=torch.bool, device=device)
    return KnownTensors(*(torch.from_numpy(a)[None].float().to(device) for a in arrays), metric)  # type: ignore[call-arg]


@functools.lru_cache(maxsize=1)
def mean_depth_map(width: int, height: int, count: int = 64) -> np.ndarray:
    """(H, W) geometric mean depth of training rooms, each frame scaled to median 1: a prediction made without the image."""
    from ..datasets.rooms.rooms import render_sequence
    from ..datasets.rooms.splits import SPLIT_SEEDS, TEST_RATE_HZ

    logs = []
    for seed in SPLIT_SEEDS["train"][-count:]:
        depth = render_sequence(
            seed, frames=2, width=width, height=height, rate_hz=TEST_RATE_HZ, photometric=False
        ).depth
        logs.append(np.log(depth / np.median(depth, axis=(1, 2), keepdims=True)).mean(axis=0))
    return np.exp(np.mean(logs, axis=0))
