"""Landmarks of a window from its depth alone: the depth of the newest keyframe that sees a tracked point places it."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..camera.preprocess import CropResize, uncrop_intrinsics
from ..types import F64, I64, Landmarks, Submap
from .resection import Rays

DEPTH_SIGMA = 0.2  # of the network's log depth at a pixel, relative to its neighbours


def landmarks_of(submap: Submap, plans: list[CropResize], covariance: F64) -> Landmarks | None:
    """Landmarks of the first camera's frames in `submap`; None if none of them was tracked. plans: the crop of each frame. covariance:
    (6, 6) of the last pose."""
    first = [i for i, frame in enumerate(submap.frames) if frame.camera == submap.frames[0].camera]
    first = [i for i in first if submap.frames[i].observations is not None]
    if not first:
        return None
    ids, positions, anchors = [], [], []
    for i in first:
        seen, pose, depth, plan, k = (
            submap.frames[i].observations, submap.odom_from_camera[i], submap.depth[i], plans[i], submap.intrinsics[i],
        )  # fmt: skip
        assert seen is not None
        pixels = (seen.pixels + 0.5 - [plan.left, plan.top]) * plan.scale - 0.5
        x, y = np.rint(pixels).astype(np.int64).T
        inside = (x >= 0) & (y >= 0) & (x < depth.shape[1]) & (y < depth.shape[0])
        z = np.full(len(seen), np.nan)
        z[inside] = depth[y[inside], x[inside]]
        good = np.isfinite(z)
        steady = (seen.steady + 0.5 - [plan.left, plan.top]) * plan.scale - 0.5
        rays = np.column_stack([(steady - k[:2, 2]) / k[[0, 1], [0, 1]], np.ones(len(steady))])[good]
        ids.append(seen.ids[good])
        positions.append((rays * z[good, None]) @ pose[:3, :3].T + pose[:3, 3])
        anchors.append(np.tile(pose[:3, 3], (len(rays), 1)))
    # the newest keyframe's view of each point
    every: I64 = np.concatenate(ids)
    unique, from_the_end = np.unique(every[::-1], return_index=True)
    rows = len(every) - 1 - from_the_end
    last = submap.frames[first[-1]]
    k = (
        last.intrinsics
        if last.intrinsics is not None
        else uncrop_intrinsics(submap.intrinsics[first[-1]], plans[first[-1]])
    )
    assert last.observations is not None
    return Landmarks(
        unique, np.concatenate(positions)[rows], np.concatenate(anchors)[rows], np.full(len(unique), DEPTH_SIGMA),
        tuple(submap.frames[i].stamp_ns for i in first), submap.odom_from_camera[first], last.camera, k, covariance,
        last.observations.world,
    )  # fmt: skip


def with_known(landmarks: Landmarks, ids: I64, rays: Rays, origin: F64, metres: float) -> Landmarks:
    """`landmarks` with the positions that the bundle found: `ids` (m,), ascending, along `rays` in the aligner's frame. origin: (4, 4)
    pose of that frame in the odometry frame. metres: length of its unit."""
    if not len(ids):
        return landmarks

    def placed(points: F64) -> F64:
        return metres * points @ origin[:3, :3].T + origin[:3, 3]

    other = ~np.isin(landmarks.ids, ids)
    every = np.concatenate([landmarks.ids[other], ids])
    order = np.argsort(every)
    return dataclasses.replace(
        landmarks,
        ids=every[order],
        positions=np.concatenate([landmarks.positions[other], placed(rays.positions())])[order],
        anchors=np.concatenate([landmarks.anchors[other], placed(rays.anchors)])[order],
        log_sigma=np.concatenate([landmarks.log_sigma[other], np.sqrt(rays.variance)])[order],
    )
