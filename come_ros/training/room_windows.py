"""Training windows of procedural rooms: endless, varied, with exact geometry.

Windows are varied on three levels: the room (datasets/rooms/rooms.py and staged.py; with photographs on its surfaces if a folder
of pictures is given), the lens (crop and zoom, which change shape and field of view), the camera (motion blur, defocus, colour,
gamma, JPEG, residual lens distortion). Geometry stays exact except for that last one, which deliberately bends images by a pixel or
two.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from ..camera.preprocess import patch_grid_size
from ..datasets.image_file import read_picture
from ..datasets.image_folder import image_files
from ..datasets.rooms import camera, raycast, rooms, splits, staged
from ..datasets.rooms.scene import Scene, make_scene
from ..datasets.rooms.textures import TEXTURE_SIZE, fill_texture
from ..errors import DatasetError
from ..files import shown
from ..types import F32, F64, U8
from .loop import in_worker, made_by_workers

RENDERED = (224, 168)  # (W, H) of the images that windows are cut from, at least; larger for models of larger images
LARGEST = 4 / 3  # longer side of a batch's images, over the model's native one
SEQUENCE = 12  # frames rendered of each room
POOL = 240  # sequences kept to draw windows from
REUSE = 1.5  # windows drawn for each frame rendered, in frames: rendering is cheap compared with training
PICTURE_SHARE = 0.3  # share of a room's textures that become photographs, if available
STAGED_SHARE = 0.4  # of rooms: with a desk or things on the floor, and a camera that watches them
SPARSE_SHARE = 0.15  # nearly empty ones
PAINTED_SHARE = 0.5  # in plain colours
SHADOW_SHARE = 0.7  # with shadows
TILTED_SHARE = 0.5  # share of the other cameras that are not level
SHARES = {1.0: 0.4, LARGEST: 0.45, 2 / 3: 0.15}  # of batches, by the longer side over the model's native one
ASPECTS = {(4, 3): 0.6, (16, 9): 0.2, (1, 1): 0.1, (3, 4): 0.1}  # of batches, by width over height


@dataclasses.dataclass(frozen=True)
class Cut:
    """How windows are cut. lengths: frames of a window -> share of the batches. sequence: frames rendered of each room. in_order: in the
    order of time, forwards or backwards; else half of the windows are in any order, so that any frame can be the reference."""

    lengths: Mapping[int, float]
    sequence: int = SEQUENCE
    in_order: bool = False

    def most(self, longest: int) -> Cut:
        """Without windows of more than `longest` frames."""
        return dataclasses.replace(self, lengths={n: share for n, share in self.lengths.items() if n <= longest})


WINDOWS = Cut({1: 0.05, 2: 0.25, 3: 0.2, 4: 0.25, 6: 0.15, 8: 0.1})
STREAMS = Cut({8: 0.3, 12: 0.4, 16: 0.3}, sequence=16, in_order=True)


class TrainingWindow(NamedTuple):
    """images (S, 3, H, W) uint8 RGB, depth (S, H, W) float32 m, camera_from_first (S, 4, 4) float32, intrinsics (3, 3) float32."""

    images: U8
    depth: F32
    camera_from_first: F32
    intrinsics: F32


def load_pictures(folder: str) -> list[U8]:
    """The pictures of a folder (not its subfolders), (H, W, 3) uint8 RGB. Raises DatasetError if there is none, or one cannot be read."""
    if not os.path.isdir(folder):
        raise DatasetError(f"{shown(folder)} is not a folder: name a folder of photographs")
    paths = image_files(Path(folder))
    if not paths:
        raise DatasetError(f"{shown(folder)} holds no pictures: name a folder of photographs")
    return [read_picture(path, upright=True).image for path in paths]


class WindowStream:
    """Endless batches of windows: render a sequence, put it into a pool, draw windows from the pool.

    A frame is used about REUSE times, each time in another window: other neighbours, another reference frame, maybe mirrored.
    """

    def __init__(
        self,
        seed: int,
        side: int = 112,
        minutes: float = 60.0,
        pictures: list[U8] | None = None,
        cut: Cut = WINDOWS,
        patch: int = 14,
    ) -> None:
        """side: the model's native longer side, px; patch: the side of its patches. minutes: training time so far, where the curriculum
        stands."""
        self.rng = np.random.default_rng(seed)
        self.side, self.patch, self.cut, self.pictures = side, patch, cut, pictures or []
        needed = patch_grid_size(4, 3, round(LARGEST * side), patch)
        self.rendered = max(RENDERED[0], needed[0]), max(RENDERED[1], needed[1])
        self.next_seed = seed * 1_000_003 % 5_000_000
        self.started = time.monotonic() - 60 * minutes
        self.pool: list[rooms.SyntheticSequence] = []

    def render(self) -> None:
        """Adds one sequence to the pool, replacing an old one when it is full."""
        rng, train = self.rng, splits.SPLIT_SEEDS["train"]
        seed = train[self.next_seed % len(train)]
        self.next_seed += 1
        scene = make_scene(seed)
        if self.pictures and rng.random() < 0.7:
            scene = hang_pictures(scene, self.pictures, rng)
        if rng.random() < SPARSE_SHARE:
            scene = clear_out(scene, rng)
        rate = float(rng.uniform(2.5, 8.0))
        poses: F64 | None = None
        if rng.random() < STAGED_SHARE:
            stage = staged.stage_desk(scene, rng) if rng.random() < 0.5 else staged.stage_floor(scene, rng)
            scene = stage.scene
            poses = staged.watching_path(stage, rng, self.cut.sequence, rate)
        if poses is None:
            poses = camera.camera_path(scene, seed, self.cut.sequence, rate)
            if rng.random() < TILTED_SHARE:
                poses = tilt(poses, rng)
        if rng.random() < PAINTED_SHARE:
            scene = staged.paint(scene, rng)
        k = scene.intrinsics(*self.rendered)
        lamp = rng.uniform(0.02, 0.15) if rng.random() < SHADOW_SHARE else 0.0
        images, depth = raycast.render(scene, poses, k, *self.rendered, lamp=lamp)
        degraded = camera.degrade(images, rng)
        sequence = rooms.SyntheticSequence(seed, degraded, depth, poses, k, np.arange(self.cut.sequence))
        if len(self.pool) < POOL:
            self.pool.append(sequence)
        else:
            self.pool[rng.integers(POOL)] = sequence

    def draw_size(self) -> tuple[int, int]:
        """(W, H) of a batch, whole patches that fit into what is rendered."""
        shares = list(SHARES)
        side = self.side * shares[self.rng.choice(len(shares), p=list(SHARES.values()))]
        aspects = list(ASPECTS)
        a, b = aspects[self.rng.choice(len(aspects), p=list(ASPECTS.values()))]
        patch = self.patch
        w, h = (max(2, round(side * x / max(a, b) / patch)) * patch for x in (a, b))
        while w > self.rendered[0] or h > self.rendered[1]:
            w, h = round(w * 0.75 / patch) * patch, round(h * 0.75 / patch) * patch
        return w, h

    def window(self, frames: int, reach: float, size: tuple[int, int] | None = None) -> TrainingWindow:
        """`frames` of one sequence at (W, H) = size; reach in (0, 1]: how far apart they may be (curriculum)."""
        rng = self.rng
        s = self.pool[rng.integers(len(self.pool))]
        span = max(frames, math.ceil(reach * self.cut.sequence))
        start = rng.integers(self.cut.sequence - span + 1)
        picked = start + rng.permutation(span)[:frames]
        forwards = rng.random() < 0.5
        if forwards or self.cut.in_order:
            picked.sort()
        if self.cut.in_order and not forwards:
            picked = picked[::-1]
        images, depth = s.images[picked], s.depth[picked]
        pose = np.linalg.inv(s.world_from_camera[picked]) @ s.world_from_camera[picked[0]]
        images, depth, k = crop(images, depth, s.intrinsics, size or patch_grid_size(4, 3, self.side, self.patch), rng)
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
        )

    def batches(self, batch_frames: int) -> Iterator[dict[str, Any]]:
        """Tensors by the names of TrainingWindow's fields, windows stacked: as many as `batch_frames` frames make."""
        import torch

        while len(self.pool) < 24:
            self.render()
        lengths, share = list(self.cut.lengths), np.array(list(self.cut.lengths.values()))
        debt = 0.0
        while True:
            frames = int(self.rng.choice(lengths, p=share / share.sum()))
            # neighbours first, then increasingly distant frames, so that matching is learned where it is easy
            minutes = (time.monotonic() - self.started) / 60
            reach = min(0.6, 0.25 + 0.35 * minutes / 25)
            size = self.draw_size()
            windows = [self.window(frames, reach, size) for _ in range(max(1, batch_frames // frames))]
            debt += len(windows) * frames / REUSE
            while debt >= self.cut.sequence:
                self.render()
                debt -= self.cut.sequence
            yield {
                n: torch.from_numpy(np.stack(x))
                for n, x in zip(TrainingWindow._fields, zip(*windows, strict=True), strict=True)
            }


def loader(
    seed: int,
    side: int,
    minutes: float,
    batch_frames: int,
    pictures: list[U8],
    workers: int = 1,
    cut: Cut = WINDOWS,
    patch: int = 14,
) -> Iterator[dict[str, Any]]:
    """Batches made by other processes, so that rendering overlaps with training."""
    from torch.utils.data import IterableDataset, get_worker_info

    class Stream(IterableDataset):
        def __iter__(self) -> Iterator[dict[str, Any]]:
            in_worker()
            info = get_worker_info()
            own = seed + 104_729 * (info.id if info else 0)
            return WindowStream(own, side, minutes, pictures, cut, patch).batches(batch_frames)

    return made_by_workers(Stream(), workers)


# ---------------------------------------------------------------------------------------------------------------- rooms
def hang_pictures(scene: Scene, pictures: list[U8], rng: np.random.Generator) -> Scene:
    """The same room with photographs in place of some of its textures."""
    textures = scene.textures.copy()
    side = TEXTURE_SIZE
    for row in np.flatnonzero(rng.random(len(textures)) < PICTURE_SHARE):
        picture = pictures[rng.integers(len(pictures))]
        shorter = min(picture.shape[:2])
        extent = int(rng.uniform(min(96, shorter), shorter))
        v, u = (int(rng.integers(n - extent + 1)) for n in picture.shape[:2])
        half = cv2.resize(picture[v : v + extent, u : u + extent], (side // 2, side // 2), interpolation=cv2.INTER_AREA)
        if rng.random() < 0.5:  # mirrored at its edges: no seam where the texture repeats
            upper = np.concatenate([half, half[:, ::-1]], axis=1)
            image = np.concatenate([upper, upper[::-1]])
        else:
            image = cv2.resize(picture[v : v + extent, u : u + extent], (side, side), interpolation=cv2.INTER_AREA)
        if rng.random() < 0.5:
            image = image.transpose(1, 0, 2)
        image = image[:, :, rng.permutation(3)] if rng.random() < 0.3 else image
        tint = rng.uniform(0.6, 1.2) * rng.uniform(0.85, 1.15, 3)
        fill_texture(textures[row], np.ascontiguousarray(image / 255.0 * tint, np.float32))
    return dataclasses.replace(scene, textures=textures)


def clear_out(scene: Scene, rng: np.random.Generator) -> Scene:
    """The same room with few or none of its objects: floors and walls fill most of the image, as in halls and corridors."""
    kept = rng.random(len(scene.shapes)) < rng.uniform(0, 0.3)
    return dataclasses.replace(scene, shapes=scene.shapes[kept], records=scene.records[kept])


def tilt(poses: F64, rng: np.random.Generator) -> F64:
    """world_from_camera (S, 4, 4) of the same path with the camera pitched, mostly down, and rolled, by the same angles all along."""
    pitch, roll = rng.normal(-0.35, 0.35), rng.normal(0, 0.25)  # rad; 20 degrees down, as handheld and on robots
    (cp, sp), (cr, sr) = ((math.cos(a), math.sin(a)) for a in (np.clip(pitch, -1.2, 0.7), np.clip(roll, -0.9, 0.9)))
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])  # OpenCV axes: x right, y down, z forward
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    tilted = poses.copy()
    tilted[:, :3, :3] = poses[:, :3, :3] @ about_x @ about_z
    return tilted


# ----------------------------------------------------------------------------------------------------------------- lens
def crop(
    images: U8, depth: F32, intrinsics: F64, size: tuple[int, int], rng: np.random.Generator
) -> tuple[U8, F32, F64]:
    """A central crop of that shape (W, H), one time in three of a narrower field of view, brought to that size.

    images (S, H, W, 3), depth (S, H, W) and intrinsics (3, 3), alike afterwards; no pixel is enlarged. Depth is taken at the nearest
    pixel: a mean over an edge would be a surface that is not there.
    """
    height, width = depth.shape[1:]
    scale = max(size[0] / width, size[1] / height)
    if rng.random() < 1 / 3:
        scale = rng.uniform(scale, max(scale, min(1.0, 1.5 * scale)))
    if scale >= 1 - 1e-6:
        scale = 1.0
    left, top = (width - size[0] / scale) / 2, (height - size[1] / scale) / 2
    u = (np.arange(size[0]) + 0.5) / scale + left - 0.5
    v = (np.arange(size[1]) + 0.5) / scale + top - 0.5
    k = intrinsics.copy()
    k[:2, :2] *= scale
    k[0, 2], k[1, 2] = (intrinsics[0, 2] + 0.5 - left) * scale - 0.5, (intrinsics[1, 2] + 0.5 - top) * scale - 0.5
    rows, columns = np.rint(v).astype(int).clip(0, height - 1), np.rint(u).astype(int).clip(0, width - 1)
    near = depth[:, rows[:, None], columns[None]]
    if scale == 1.0 and left == int(left) and top == int(top):
        return images[:, rows[:, None], columns[None]], near, k
    matrix = np.array([[1 / scale, 0, u[0]], [0, 1 / scale, v[0]]])
    blur = max(0.0, 0.45 * (1 / scale - 1))  # detail that a smaller image cannot show
    out = np.empty((len(images), size[1], size[0], 3), np.uint8)
    for i, image in enumerate(images):
        smooth = cv2.GaussianBlur(image, (0, 0), blur) if blur > 0.05 else image
        cv2.warpAffine(
            smooth, matrix, size, out[i], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE
        )
    return out, near, k


# --------------------------------------------------------------------------------------------------------------- camera
def spoil(images: U8, rng: np.random.Generator) -> U8:
    """Degrades images (S, H, W, 3) as cameras, drivers and compression do, beyond camera.degrade(); half of the windows are
    unchanged."""
    if rng.random() < 0.5:
        return images
    images = images.copy()
    height, width = images.shape[1:3]
    if rng.random() < 0.2:  # residual radial distortion after calibration
        k1 = rng.normal(0, 0.03)
        v, u = np.mgrid[:height, :width].astype(np.float32)
        x, y = (u - width / 2) / width * 2, (v - height / 2) / width * 2
        bent = 1 + np.float32(k1) * (x * x + y * y - 0.5)
        map_u, map_v = x * bent * width / 2 + width / 2, y * bent * width / 2 + height / 2
        for i, image in enumerate(images):
            images[i] = cv2.remap(image, map_u, map_v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    if rng.random() < 0.5:  # colour, of the whole window
        gray = images.mean(axis=3, keepdims=True)
        saturation = 0.0 if rng.random() < 0.2 else rng.uniform(0.4, 1.6)
        mix = gray + saturation * (images - gray)
        mix = mix * rng.uniform(0.85, 1.15, 3)
        images = (255 * (mix.clip(0, 255) / 255) ** rng.uniform(0.6, 1.6)).astype(np.uint8)
    if rng.random() < 0.2:  # overexposure, as on white desks
        images = (images * rng.uniform(1.2, 2.4)).clip(0, 255).astype(np.uint8)
    if rng.random() < 0.5:  # exposure, of each image
        gain = np.exp(rng.normal(0, 0.12, len(images)))
        images = (images * gain[:, None, None, None]).clip(0, 255).astype(np.uint8)
    blurred = rng.random()
    for i in range(len(images)):
        if blurred < 0.3:
            length = rng.uniform(0, width / 40)
            images[i] = motion_blur(images[i], length, rng.uniform(0, math.pi))
        elif blurred < 0.45:
            images[i] = cv2.GaussianBlur(images[i], (0, 0), rng.uniform(0.3, 1.2))
    if rng.random() < 0.4:
        quality = int(rng.integers(25, 90))
        for i, image in enumerate(images):
            images[i] = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 1)
    return images


def motion_blur(image: U8, length: float, angle: float) -> U8:
    """The mean of the image along a line: length in px, angle in rad."""
    if length < 1:
        return image
    n = 2 * math.ceil(length / 2) + 1
    kernel = np.zeros((n, n), np.float32)
    dx, dy = (length / 2 * f(angle) for f in (math.cos, math.sin))
    for t in np.linspace(-1, 1, 4 * n):
        kernel[round(n // 2 + t * dy), round(n // 2 + t * dx)] += 1
    return cv2.filter2D(image, -1, kernel / kernel.sum())
