"""Windows cut from panoramas: real photographs from a camera that rotates on the spot, with exactly known rotation and without depth.

Panoramas are equirectangular: columns are the azimuth, rows the elevation. Their frame is OpenCV's: x right, y down, z at the middle.
"""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np

from ..types import F64, U8
from .image_file import decoded_file

EXPOSED = 90  # percentile of the luminance that becomes BRIGHT
BRIGHT = 0.75
GAMMA = 2.2


def load_panorama(path: str | Path) -> U8 | None:
    """(H, 2H, 3) uint8 RGB of a Radiance file, with automatic exposure; None if it cannot be read, or is not a panorama."""
    linear = decoded_file(path, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR)
    if linear is None or linear.shape[1] != 2 * linear.shape[0]:
        return None
    rgb = linear[:, :, ::-1].astype(np.float32)
    reference = float(np.percentile(rgb.mean(axis=2), EXPOSED))
    return (255 * (rgb * BRIGHT / max(reference, 1e-6)).clip(0, 1) ** (1 / GAMMA)).astype(np.uint8)


def view(panorama: U8, world_from_camera: F64, intrinsics: F64, size: tuple[int, int]) -> U8:
    """(H, W, 3): the image of a pinhole camera at the centre. world_from_camera: rotation (3, 3). size: (W, H)."""
    height, width = panorama.shape[:2]
    v, u = np.mgrid[: size[1], : size[0]]
    k = intrinsics
    rays = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones(u.shape)], axis=-1) @ world_from_camera.T
    azimuth = np.arctan2(rays[..., 0], rays[..., 2])
    elevation = np.arcsin(rays[..., 1] / np.linalg.norm(rays, axis=-1))
    column = ((azimuth / (2 * math.pi) + 0.5) * width - 0.5) % width
    row = ((elevation / math.pi + 0.5) * height - 0.5).clip(0, height - 1)
    joined = cv2.copyMakeBorder(panorama, 0, 0, 0, 1, cv2.BORDER_WRAP)  # the panorama wraps around
    return cv2.remap(joined, column.astype(np.float32), row.astype(np.float32), cv2.INTER_LINEAR)  # type: ignore[return-value]


def turning_path(rng: np.random.Generator, frames: int, field_of_view: float) -> F64:
    """world_from_camera rotations (frames, 3, 3) of a camera that looks around. With `field_of_view` (rad, horizontal),
    neighbouring frames overlap mostly, and all frames partly."""
    t = np.linspace(0, 1, frames)
    sweep = rng.uniform(0.1, 0.6) * field_of_view * rng.choice([-1, 1])
    yaw = rng.uniform(-math.pi, math.pi) + sweep * t
    pitch = rng.normal(0.1, 0.25) + rng.normal(0, 0.12) * t
    roll = rng.normal(0, 0.12) + rng.normal(0, 0.12) * t
    shake = 0.02 * rng.standard_normal((3, frames))
    return np.stack(
        [_turned(*angles) for angles in zip(yaw + shake[0], pitch + shake[1], roll + shake[2], strict=True)]
    )


def _turned(yaw: float, pitch: float, roll: float) -> F64:
    """world_from_camera: rolled about z, then tilted about x (down for positive angles), then turned about y (to the right)."""
    (cy, sy), (cp, sp), (cr, sr) = ((math.cos(a), math.sin(a)) for a in (yaw, -pitch, roll))
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1.0]])
    return about_y @ about_x @ about_z


def pinhole(field_of_view: float, size: tuple[int, int]) -> F64:
    """Intrinsics (3, 3) in pixels for a horizontal field of view in rad and (W, H) = size; pixel centres at integers."""
    focal = size[0] / 2 / math.tan(field_of_view / 2)
    return np.array([[focal, 0, size[0] / 2 - 0.5], [0, focal, size[1] / 2 - 0.5], [0, 0, 1.0]])


def panorama_window(
    panorama: U8, frames: int, size: tuple[int, int], rng: np.random.Generator
) -> tuple[U8, np.ndarray, F64, F64]:
    """images (S, H, W, 3), depth (S, H, W) float32, world_from_camera (S, 4, 4), intrinsics (3, 3).

    The depth is that of a sphere of radius 1. It only relates the pixels of different frames, which is independent of distance for
    a camera that rotates on the spot.
    """
    field_of_view = math.radians(rng.uniform(50, 90)) * min(1.0, size[0] / size[1])
    k = pinhole(field_of_view, size)
    turns = turning_path(rng, frames, field_of_view)
    images = np.stack([view(panorama, turn, k, size) for turn in turns])
    v, u = np.mgrid[: size[1], : size[0]]
    slope = np.hypot((u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1])
    depth = np.broadcast_to((1 / np.hypot(slope, 1)).astype(np.float32), (frames, size[1], size[0]))
    poses = np.tile(np.eye(4), (frames, 1, 1))
    poses[:, :3, :3] = turns
    return images, depth, poses, k


def random_view(panorama: U8, rng: np.random.Generator, side: int = 256) -> U8:
    """A picture (side, side, 3) cut from it."""
    k = pinhole(math.radians(rng.uniform(50, 80)), (side, side))
    return view(
        panorama, _turned(rng.uniform(-math.pi, math.pi), rng.normal(0, 0.2), rng.normal(0, 0.05)), k, (side, side)
    )
