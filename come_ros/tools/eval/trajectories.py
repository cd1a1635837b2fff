"""Scores the path of a whole recording from the pipeline, with its windows aligned, against the truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ... import progress
from ...camera.preprocess import in_model_pixels
from ...datasets.stamps import matched, nearest
from ...errors import Cancelled
from ...evaluation import depth_scale
from ...evaluation.recordings import rotation_scores, trajectory_scores
from ...pipeline import ReconstructionPipeline
from ...types import F32, F64, Frame
from .sources import Source
from .variants import Variant

EVERY = 4  # stride of the pixels from which the scale of depth is computed


def trajectories(source: Source, variants: Sequence[Variant], stopped: Any) -> dict[str, Any]:
    """variant -> {"trajectory": see scores.trajectory_scores, "rotation": see scores.rotation_scores}, with keyframes and windows as the
    configuration has them; empty if no path is known. Raises Cancelled, DatasetError."""
    with source.open() as sequence:
        truth = source.truth(sequence)
    if len(truth) < 3:
        return {}
    out = {}
    for variant in variants:
        with (
            source.open() as sequence,
            progress.bar(total=sequence.count, desc=f"path, {variant.name}", unit="img") as bar,
        ):
            poses, depth = _odometry(variant, _watched(sequence.iter_frames(), bar, stopped), stopped)
        real = matched(sorted(poses), truth)
        path = trajectory_scores(poses, real, _depth_scale(source, depth))
        out[variant.name] = {"trajectory": path, "rotation": rotation_scores(poses, real)}
    return out


def _odometry(variant: Variant, frames: Iterator[Frame], stopped: Any) -> tuple[dict[int, F64], dict[int, F32]]:
    """Stamp -> odom_from_camera of every used frame, and its depth at every EVERY-th pixel. Raises Cancelled."""
    pipeline = ReconstructionPipeline(variant.config, variant.backbone)
    poses: dict[int, F64] = {}
    depth: dict[int, F32] = {}
    for submap in pipeline.run(frames, stopped):
        for frame, pose, pixels in zip(submap.frames, submap.odom_from_camera, submap.depth, strict=True):
            poses[frame.stamp_ns], depth[frame.stamp_ns] = pose.copy(), pixels[::EVERY, ::EVERY].copy()
    return poses, depth


def _depth_scale(source: Source, depth: dict[int, F32]) -> float | None:
    """The truth's units in one of the path's, as depth has it: the median over frames, None if none has true depth."""
    stamps, scales = sorted(depth), []
    with source.open() as sequence:
        for stamp, metres in sequence.iter_depth():
            (i,) = nearest([stamp], stamps) if stamps else (None,)
            if i is not None:
                ours = depth[stamps[i]]
                scales.append(depth_scale(ours, in_model_pixels(metres, ours.shape)))
    known = [s for s in scales if np.isfinite(s)]
    return float(np.median(known)) if known else None


def _watched(frames: Iterator[Frame], bar: Any, stopped: Any) -> Iterator[Frame]:
    for frame in frames:
        if stopped():
            raise Cancelled("on request")
        bar.update()
        yield frame
