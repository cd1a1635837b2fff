"""Procedural textured indoor rooms with exact depth and poses, ray-cast on the CPU.

A scene, the path of a hand-held camera through it and the photometric flaws of that camera are fully determined by
``(seed, GENERATOR_VERSION)``. Frames: the world has z up, x and y horizontal, metres, origin on the floor in the middle
of the room; cameras follow OpenCV (x right, y down, z forward), pixel centres lie at integers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from .camera import camera_path, degrade
from .raycast import render
from .scene import make_scene
from .splits import EPOCH_NS, GENERATOR_VERSION, SPLIT_SEEDS, STREAM_PHOTOMETRIC, TEST_RATE_HZ, check_integer


@dataclass(frozen=True)
class SyntheticSequence:
    """A rendered sequence with exact geometry.

    Fields: ``seed``; ``images`` (S, H, W, 3) uint8 RGB; ``depth`` (S, H, W) float32 z-depth in metres, finite, > 0.1;
    ``world_from_camera`` (S, 4, 4) float64; ``intrinsics`` (3, 3) float64 in pixels, pixel centres at integers;
    ``stamps_ns`` (S,) int64.
    """

    seed: int
    images: np.ndarray
    depth: np.ndarray
    world_from_camera: np.ndarray
    intrinsics: np.ndarray
    stamps_ns: np.ndarray


def render_sequence(
    seed: int,
    frames: int = 8,
    width: int = 224,
    height: int = 168,
    rate_hz: float = 3.0,
    motion: float = 1.0,
    photometric: bool = True,
    threads: int = 1,
) -> SyntheticSequence:
    """Render a seed's camera path through a seed's room; equal arguments give equal arrays.

    frames: number of images. width, height: pixels, 8 to 4096. rate_hz: images per second. motion: 0 (still) to 10,
    scales speed and rotation rate. photometric: apply degrade(). threads: frames rendered at the same time.
    Raises ValueError on an argument out of range.
    """
    check_integer("width", width, 8, 4096)
    check_integer("height", height, 8, 4096)
    scene = make_scene(seed)
    poses = camera_path(scene, int(seed), frames, rate_hz, motion)
    intrinsics = scene.intrinsics(width, height)
    images, depth = render(scene, poses, intrinsics, width, height, threads)
    if photometric:
        images = degrade(images, np.random.default_rng((int(seed), GENERATOR_VERSION, STREAM_PHOTOMETRIC)))
    stamps = EPOCH_NS + np.rint(np.arange(frames) * 1e9 / rate_hz).astype(np.int64)
    return SyntheticSequence(int(seed), images, depth, poses, intrinsics, stamps)


def test_windows(count: int = 64, frames: int = 4, width: int = 224, height: int = 168) -> Iterator[SyntheticSequence]:
    """The frozen test split: the first `count` seeds of SPLIT_SEEDS["test"], at TEST_RATE_HZ and normal motion.

    Raises ValueError on an argument out of range.
    """
    check_integer("count", count, 1, len(SPLIT_SEEDS["test"]))
    for seed in SPLIT_SEEDS["test"][:count]:
        yield render_sequence(seed, frames, width, height, rate_hz=TEST_RATE_HZ)


test_windows.__test__ = False  # type: ignore[attr-defined]  # its name is no request to pytest


def depth_fingerprint(sequences: Iterable[SyntheticSequence]) -> str:
    """SHA-256 (hex) over the depth of sequences in whole millimetres, so that last-bit differences do not matter."""
    digest = hashlib.sha256()
    for sequence in sequences:
        digest.update(np.rint(sequence.depth * 1000).astype("<u2").tobytes())
    return digest.hexdigest()


def rotation_deg(world_from_a: np.ndarray, world_from_b: np.ndarray) -> float:
    """Angle in degrees between the orientations of two transforms (4, 4)."""
    trace = float(np.sum(world_from_a[:3, :3] * world_from_b[:3, :3]))
    return math.degrees(math.acos(min(max((trace - 1) / 2, -1.0), 1.0)))


def overlap(sequence: SyntheticSequence, a: int, b: int) -> float:
    """Fraction of frame a's pixels whose surface point frame b sees too: in its image and not hidden (5 % of depth)."""
    fx, fy, cx, cy = (sequence.intrinsics[i] for i in ((0, 0), (1, 1), (0, 2), (1, 2)))
    height, width = sequence.depth.shape[1:]
    v, u = np.mgrid[:height, :width]
    z = sequence.depth[a].astype(np.float64)
    points = np.stack([(u - cx) / fx * z, (v - cy) / fy * z, z], axis=-1)
    b_from_a = np.linalg.inv(sequence.world_from_camera[b]) @ sequence.world_from_camera[a]
    points = points @ b_from_a[:3, :3].T + b_from_a[:3, 3]
    ahead = points[..., 2] > 1e-3
    depth = np.where(ahead, points[..., 2], 1.0)
    u, v = np.rint(points[..., 0] / depth * fx + cx), np.rint(points[..., 1] / depth * fy + cy)
    seen = ahead & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    there = sequence.depth[b][v[seen].astype(int), u[seen].astype(int)]
    return float((np.abs(there - depth[seen]) < 0.05 * there).sum() / seen.size)
