"""Training windows chosen by their motion: enough parallax to learn translation, and enough overlap to learn anything.

Rooms and cameras as in training/room_windows.py, with photographs on the surfaces (datasets/material.py), frames further apart, some paths
without rotation; and windows cut from panoramas.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..datasets.material import Material, dress
from ..datasets.panoramas import panorama_window
from ..datasets.rooms import camera, raycast, rooms, splits, staged
from ..datasets.rooms.scene import make_scene
from ..types import F32, F64, U8
from .loop import in_worker, made_by_workers
from .room_windows import PAINTED_SHARE, SPARSE_SHARE, STAGED_SHARE, TILTED_SHARE, clear_out, crop, spoil, tilt

SEQUENCE = 16  # frames rendered of each room
RATES_HZ = (1.0, 4.0)
STRAIGHT_SHARE = 0.15  # share of paths without rotation
SHADOW_SHARE = 0.4  # which take twice the time
RENDERED = {(256, 192): 0.65, (320, 240): 0.35}  # (W, H) of the images that windows are cut from
SIZES = {(256, 192): 0.7, (256, 144): 0.12, (192, 192): 0.08, (192, 144): 0.06, (144, 192): 0.04}  # (W, H) of windows
LENGTHS = {1: 0.04, 2: 0.22, 3: 0.2, 4: 0.28, 6: 0.1, 8: 0.1, 12: 0.04, 16: 0.02}  # frames of a window
LEAST_OVERLAP = 0.2  # share of the first frame's pixels that every other frame must see
WITHOUT_SHARE = 0.1  # share of windows that may have less
TRIES = 8


class TrainingWindow(NamedTuple):
    """images (S, 3, H, W) uint8 RGB, depth (S, H, W) float32 m, camera_from_first (S, 4, 4) float32, intrinsics (3, 3) float32; measured
    () float32: 1 if the depth is measured, 0 if it only relates the pixels of different frames."""

    images: U8
    depth: F32
    camera_from_first: F32
    intrinsics: F32
    measured: F32


@dataclasses.dataclass(frozen=True)
class Mix:
    """How windows are drawn. panoramas: share of windows cut from panoramas, if the material has any. least_parallax: patches, in the
    frame with the most parallax. pool: sequences kept to draw windows from. reuse: how many times a rendered frame is used, on
    average."""

    panoramas: float = 0.15
    least_parallax: float = 0.3
    pool: int = 100
    reuse: float = 2.0
    lengths: Mapping[int, float] = dataclasses.field(default_factory=lambda: dict(LENGTHS))
    sizes: Mapping[tuple[int, int], float] = dataclasses.field(default_factory=lambda: dict(SIZES))


def motion(depth: F32, poses: F64, intrinsics: F64, every: int = 8) -> tuple[F64, F64]:
    """(parallax px, overlap), each (S,), of every frame against the first one.

    parallax: median displacement by the translation alone of the points that both see. overlap: share of the first frame's pixels
    that the other sees, within 10 % of depth. depth: (S, H, W). poses: world_from_camera (S, 4, 4). every: pixels from one sample
    to the next.
    """
    _, height, width = depth.shape
    k = intrinsics
    v, u = np.mgrid[every // 2 : height : every, every // 2 : width : every]
    z = depth[0, v, u].astype(np.float64)
    points = np.stack([(u - k[0, 2]) / k[0, 0] * z, (v - k[1, 2]) / k[1, 1] * z, z], axis=-1)
    parallax, overlap = np.zeros(len(depth)), np.ones(len(depth))
    for i, pose in enumerate(np.linalg.inv(poses) @ poses[0]):
        turned = points @ pose[:3, :3].T
        moved = turned + pose[:3, 3]
        there, before = (_project(p, k) for p in (moved, turned))
        column, row = (np.rint(there[..., axis]).astype(int) for axis in (0, 1))
        seen = (moved[..., 2] > 0.01) & (turned[..., 2] > 0.01)
        seen &= (column >= 0) & (column < width) & (row >= 0) & (row < height)
        found = depth[i, row.clip(0, height - 1), column.clip(0, width - 1)]
        seen &= np.abs(found / moved[..., 2].clip(0.01) - 1) < 0.1
        overlap[i] = seen.mean()
        parallax[i] = np.median(np.linalg.norm(there - before, axis=-1)[seen]) if seen.any() else 0.0
    return parallax, overlap


def _project(points: F64, k: F64) -> F64:
    z = points[..., 2:].clip(0.01)
    return (points[..., :2] / z) * [k[0, 0], k[1, 1]] + [k[0, 2], k[1, 2]]


class ParallaxStream:
    """Endless batches of windows: render a sequence, put it into a pool, draw windows from the pool."""

    def __init__(self, seed: int, material: Material, mix: Mix | None = None, patch: int = 16) -> None:
        self.rng = np.random.default_rng(seed)
        self.material, self.mix, self.patch = material, mix or Mix(), patch
        self.next_seed = seed * 1_000_003 % 5_000_000
        self.pool: list[rooms.SyntheticSequence] = []

    def render(self) -> None:
        """Adds one sequence to the pool, replacing an old one when it is full."""
        rng, train = self.rng, splits.SPLIT_SEEDS["train"]
        seed = train[self.next_seed % len(train)]
        self.next_seed += 1
        scene = make_scene(seed)
        if rng.random() < 0.85:
            scene = dress(scene, self.material, rng)
        if rng.random() < SPARSE_SHARE:
            scene = clear_out(scene, rng)
        rate = float(rng.uniform(*RATES_HZ))
        poses: F64 | None = None
        if rng.random() < STAGED_SHARE:
            stage = staged.stage_desk(scene, rng) if rng.random() < 0.5 else staged.stage_floor(scene, rng)
            scene = stage.scene
            poses = staged.watching_path(stage, rng, SEQUENCE, rate)
        if poses is None:
            poses = camera.camera_path(scene, seed, SEQUENCE, rate)
            if rng.random() < TILTED_SHARE:
                poses = tilt(poses, rng)
            if rng.random() < STRAIGHT_SHARE:
                poses[:, :3, :3] = poses[rng.integers(SEQUENCE), :3, :3]
        if rng.random() < PAINTED_SHARE:
            scene = staged.paint(scene, rng)
        size = _draw(RENDERED, rng)
        k = scene.intrinsics(*size)
        lamp = rng.uniform(0.02, 0.15) if rng.random() < SHADOW_SHARE else 0.0
        images, depth = raycast.render(scene, poses, k, *size, lamp=lamp)
        stamps = np.arange(SEQUENCE)
        sequence = rooms.SyntheticSequence(seed, camera.degrade(images, rng), depth, poses, k, stamps)
        if len(self.pool) < self.mix.pool:
            self.pool.append(sequence)
        else:
            self.pool[rng.integers(len(self.pool))] = sequence

    def pick(self, frames: int) -> tuple[rooms.SyntheticSequence, Any]:
        """Chooses a sequence of the pool and some of its frames: the first one overlaps with all others, and most windows contain
        motion."""
        rng, best, most = self.rng, None, -1.0
        wanted = self.mix.least_parallax if rng.random() > WITHOUT_SHARE else 0.0
        for attempt in range(TRIES):
            s = self.pool[rng.integers(len(self.pool))]
            longest = max(frames, round(SEQUENCE * 0.85**attempt))
            span = int(rng.integers(frames, longest + 1))
            start = rng.integers(SEQUENCE - span + 1)
            picked = start + rng.permutation(span)[:frames]
            if rng.random() < 0.5:
                picked.sort()  # in temporal order; otherwise in any order, so that any frame can be the reference
            parallax, overlap = motion(s.depth[picked], s.world_from_camera[picked], s.intrinsics)
            patches = parallax.max() / (self.patch * s.depth.shape[2] / 256)
            if overlap.min() >= LEAST_OVERLAP and (patches >= wanted or frames == 1):
                return s, picked
            if overlap.min() > most:
                best, most = (s, picked), overlap.min()
        assert best is not None
        return best

    def window(self, frames: int, size: tuple[int, int]) -> TrainingWindow:
        """`frames` of one sequence or panorama at (W, H) = size."""
        rng = self.rng
        measured = not self.material.panoramas or frames == 1 or rng.random() > self.mix.panoramas
        if measured:
            s, picked = self.pick(frames)
            images, depth, k = crop(s.images[picked], s.depth[picked], s.intrinsics, size, rng)
            poses = s.world_from_camera[picked]
        else:
            panorama = self.material.panoramas[rng.integers(len(self.material.panoramas))]
            images, depth, poses, k = panorama_window(panorama, frames, size, rng)
        pose = np.linalg.inv(poses) @ poses[0]
        if rng.random() < 0.5:  # mirrored: x -> -x in every camera
            images, depth = images[:, :, ::-1], depth[:, :, ::-1]
            mirror = np.diag([-1.0, 1.0, 1.0, 1.0])
            pose = mirror @ pose @ mirror
            k[0, 2] = images.shape[2] - 1 - k[0, 2]
        images = spoil(np.ascontiguousarray(images), rng)
        return TrainingWindow(
            np.ascontiguousarray(images.transpose(0, 3, 1, 2)),
            np.ascontiguousarray(depth),
            pose.astype(np.float32),
            k.astype(np.float32),
            np.float32(measured),  # type: ignore[arg-type]
        )

    def batches(self, batch_frames: int, begin: int = 24) -> Iterator[dict[str, Any]]:
        """Tensors by the fields of TrainingWindow, windows stacked: as many as `batch_frames` frames make. begin: sequences rendered
        before the first batch."""
        import torch

        while len(self.pool) < min(begin, self.mix.pool):
            self.render()
        debt = 0.0
        while True:
            frames, size = _draw(self.mix.lengths, self.rng), _draw(self.mix.sizes, self.rng)
            windows = [self.window(frames, size) for _ in range(max(1, batch_frames // frames))]
            debt += len(windows) * frames / self.mix.reuse
            while debt >= SEQUENCE:
                self.render()
                debt -= SEQUENCE
            yield {
                n: torch.from_numpy(np.stack(x))
                for n, x in zip(TrainingWindow._fields, zip(*windows, strict=True), strict=True)
            }


def loader(
    seed: int, material: Material, mix: Mix, patch: int, batch_frames: int, workers: int = 1
) -> Iterator[dict[str, Any]]:
    """Endless batches. One worker runs in this process, so all work shares one thread; several run as processes that divide the
    pool, so that rendering keeps up with a GPU."""
    if workers <= 1:
        return ParallaxStream(seed, material, mix, patch).batches(batch_frames)
    from torch.utils.data import IterableDataset, get_worker_info

    class Stream(IterableDataset):
        def __iter__(self) -> Iterator[dict[str, Any]]:
            in_worker()
            info = get_worker_info()
            assert info is not None
            share = dataclasses.replace(mix, pool=max(4, mix.pool // workers))
            own = ParallaxStream(seed + 104_729 * info.id, material, share, patch)
            return own.batches(batch_frames, begin=max(4, 24 // workers))

    return made_by_workers(Stream(), workers)


def _draw(shares: Mapping[Any, float], rng: np.random.Generator) -> Any:
    keys, p = list(shares), np.array(list(shares.values()))
    return keys[rng.choice(len(keys), p=p / p.sum())]
