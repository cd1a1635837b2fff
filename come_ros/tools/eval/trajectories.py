"""The path of a whole recording, as the pipeline lays its windows one onto the other, against the truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from ...datasets.stamps import nearest
from ...errors import Cancelled
from ...evaluation import ate_rmse, rpe_rmse
from ...evaluation.recordings import rotation_scores, trajectory_scores
from ...pipeline import ReconstructionPipeline
from ...types import F64, Frame
from .sources import Source
from .variants import Variant


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
            tqdm(total=sequence.count, desc=f"path, {variant.name}", unit="img", disable=None) as bar,
        ):
            poses = _odometry(source, variant, _watched(sequence.iter_frames(), bar, stopped))
        stamps, known = sorted(poses), list(truth.values())
        near = nearest(stamps, list(truth))
        real = {t: known[i] for t, i in zip(stamps, near, strict=True) if i is not None}
        path = trajectory_scores(poses, real)
        if path is not None and "problem" in path:
            _fill(path, poses, real)
        out[variant.name] = {"trajectory": path, "rotation": rotation_scores(poses, real)}
    return out


def _odometry(source: Source, variant: Variant, frames: Iterator[Frame]) -> dict[int, F64]:
    """Stamp -> odom_from_camera of every used frame."""
    pipeline = ReconstructionPipeline(variant.config, variant.backbone)
    poses: dict[int, F64] = {}
    for submap in pipeline.run(frames):
        for frame, pose in zip(submap.frames, submap.odom_from_camera, strict=True):
            poses[frame.stamp_ns] = pose.copy()
    return poses


def _watched(frames: Iterator[Frame], bar: Any, stopped: Any) -> Iterator[Frame]:
    for frame in frames:
        if stopped():
            raise Cancelled("on request")
        bar.update()
        yield frame


def _fill(path: dict[str, Any], poses: dict[int, F64], real: dict[int, F64]) -> None:
    """Our own figures where evo gave none."""
    stamps = sorted(real)
    ours, truth = (np.stack([p[t] for t in stamps]) for p in (poses, real))
    path["problem"] += "; these figures are come_ros' own"
    for suffix, with_scale in (("", True), ("_se3", False)):
        path[f"ate{suffix}_rmse_m"]["come_ros"] = ate_rmse(ours, truth, with_scale)
        path[f"rpe_translation{suffix}_rmse_m"]["come_ros"], turn = rpe_rmse(ours, truth, with_scale=with_scale)
        path["rpe_rotation_rmse_deg"] = turn
