"""A walk once round a furnished room, back to its start and a little further: what the demo shows. Nothing here touches the frozen splits.

A person who films a room walks round in it and looks ahead and across, at the furniture along the other walls: the camera is turned to
the inside. Turned to the outside, a third of the views would be bare walls from near by.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from ... import geometry
from ...types import F64
from .camera import CLEARANCE_M, wave
from .raycast import cast_rays
from .scene import Scene, make_scene
from .splits import GENERATOR_VERSION, check_integer, check_real

STREAM_TOUR = 110  # independent of those of the frozen splits
LENGTH_M = (5.0, 9.0)  # of the way round
ROUNDS = 1.06  # the last part of the way is the first part again
INWARDS = math.radians(60)  # from the direction of the walk
ATTEMPTS = 400
FURNITURE, LEAST_FURNITURE = 0.25, 0.05  # share of the pixels: mean of all views, and of each view
DEPTH_M = (1.0, 4.0)  # median of each view
PROBE = (32, 24)  # px
VIEWS = 24


def tour_path(scene: Scene, seed: int, frames: int, rate_hz: float) -> F64:
    """world_from_camera (frames, 4, 4): once round, by a hand that sways, at a constant speed. The camera keeps CLEARANCE_M from every
    surface. Equal arguments give equal arrays. Raises ValueError where no such walk of LENGTH_M fits between the furniture."""
    check_integer("frames", frames, 4, 100_000)
    check_real("rate_hz", rate_hz, 0.05, 1000.0)
    rng = np.random.default_rng((seed, GENERATOR_VERSION, STREAM_TOUR))
    share = np.linspace(0, ROUNDS, frames)
    for _ in range(ATTEMPTS):
        half = rng.uniform(0.5, 2.0, 2)
        free = np.maximum(scene.room[:2] / 2 - CLEARANCE_M - half, 0)
        centre = rng.uniform(-free, free)
        height, direction, start = rng.uniform(1.2, 1.6), rng.choice([-1, 1]), rng.uniform(0, 2 * math.pi)
        place, heading, length = _round(half, share, direction, start)
        sway = [wave(rng, 2, 2, 6)(np.arange(frames) / rate_hz) for _ in range(6)]
        if not LENGTH_M[0] <= length <= LENGTH_M[1]:
            continue
        places = np.column_stack([centre + place, np.full(frames, height)]) + 0.03 * np.stack(sway[:3], axis=1)
        if scene.clearance(places).min() < CLEARANCE_M:
            continue
        yaw = heading + direction * INWARDS + math.radians(8) * sway[3]
        pitch = math.radians(-14) + math.radians(5) * sway[4]
        return geometry.transform(_looking(yaw, pitch, math.radians(2) * sway[5]), places)
    raise ValueError(
        f"room {scene.seed} has no space for a walk of {LENGTH_M[0]:g} to {LENGTH_M[1]:g} m round it: use another seed"
    )


def _round(half: F64, share: F64, direction: int, start: float) -> tuple[F64, F64, float]:
    """Places (n, 2) on an ellipse with those half axes at equal distances, the directions (n,) of the walk there, and the way round."""
    angle = start + direction * np.linspace(0, 2 * math.pi, 721)
    ring = half * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    way = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(ring, axis=0), axis=1))])
    at = np.interp((share % 1.0) * way[-1], way, angle)
    along = direction * half * np.stack([-np.sin(at), np.cos(at)], axis=1)
    return half * np.stack([np.cos(at), np.sin(at)], axis=1), np.arctan2(along[:, 1], along[:, 0]), float(way[-1])


def _looking(yaw: F64, pitch: F64, roll: F64) -> F64:
    """world_from_camera rotations (n, 3, 3), optical axes."""
    cy, sy, cp, sp, cr, sr = (f(a) for a in (yaw, pitch, roll) for f in (np.cos, np.sin))
    forward = np.stack([cy * cp, sy * cp, sp], axis=1)
    level = np.stack([sy, -cy, np.zeros_like(cy)], axis=1)
    down = np.cross(forward, level)
    right = cr[:, None] * level + sr[:, None] * down
    return np.stack([right, -sr[:, None] * level + cr[:, None] * down, forward], axis=2)


def is_furnished(scene: Scene, poses: F64) -> bool:
    """Whether every view shows some furniture, all views show enough of it, and what they show lies at a distance at which it can be made
    out. It looks at the geometry only, at none of what anybody makes of it."""
    width, height = PROBE
    some, k = poses[np.linspace(0, len(poses) - 1, VIEWS).astype(int)], scene.intrinsics(*PROBE)
    empty = dataclasses.replace(scene, shapes=scene.shapes[:0], records=scene.records[:0])
    depth, bare = (cast_rays(room, some, k, width, height, 1, 1, False)[1] for room in (scene, empty))
    share = (depth < bare - 0.02).mean(axis=(1, 2))
    middle = np.median(depth.reshape(len(some), -1), axis=1)
    return bool(
        share.mean() >= FURNITURE
        and share.min() >= LEAST_FURNITURE
        and (middle >= DEPTH_M[0]).all()
        and (middle <= DEPTH_M[1]).all()
    )


def first_toured(seeds: Iterable[int], frames: int, rate_hz: float) -> int:
    """The first of the seeds whose room has space for a tour that `is_furnished`. Raises ValueError if there is none."""
    for seed in seeds:
        scene = make_scene(seed)
        try:
            poses = tour_path(scene, seed, frames, rate_hz)
        except ValueError:
            continue
        if is_furnished(scene, poses):
            return seed
    raise ValueError("no room of these has space for a walk that sees its furniture")
