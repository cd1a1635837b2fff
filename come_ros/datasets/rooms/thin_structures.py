"""The rooms with poles, wires, chair legs and fences put into the camera's view, and the same view without them.

Thin structures are what token reduction loses first. Room, path and flaws of the camera are those of the seed in `synthetic`, which
this module only adds to; the structures have a random stream of their own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from . import camera, raycast, splits, textures
from .rooms import SyntheticSequence
from .scene import CYLINDER, Scene, make_scene
from .splits import GENERATOR_VERSION, SPLIT_SEEDS, TEST_RATE_HZ

STREAM_STRUCTURES = 17  # of a seed's random streams; splits.py has 0 to 3
KINDS = ("poles", "wires", "legs", "fence")
LEAST_AWAY_M = 0.6  # structure to camera
WIDTH_RAD = (0.006, 0.06)  # angle under which a structure is seen: at 70 degrees over 168 px, 0.7 to 7, half a patch


@dataclass(frozen=True)
class ThinSequence:
    """A rendered window with thin structures. kind: which of KINDS. background: (S, H, W) float32, the depth without them."""

    kind: str
    sequence: SyntheticSequence
    background: np.ndarray

    @property
    def thin(self) -> np.ndarray:
        """(S, H, W) bool: pixels whose centre sees a structure."""
        return self.sequence.depth < self.background - 1e-4


def thin_windows(
    count: int = 64, frames: int = 4, width: int = 224, height: int = 168, split: str = "test"
) -> Iterator[ThinSequence]:
    """The first `count` seeds of a split of SPLIT_SEEDS, the kinds of structure in turn. Raises ValueError on an argument out of range."""
    seeds = SPLIT_SEEDS[split]
    if not 1 <= count <= len(seeds):
        raise ValueError(f"count is {count}; it must be an integer from 1 to {len(seeds)}: pass one in that range")
    for i, seed in enumerate(seeds[:count]):
        yield render_thin(seed, KINDS[i % len(KINDS)], frames, width, height)


def render_thin(seed: int, kind: str, frames: int = 4, width: int = 224, height: int = 168) -> ThinSequence:
    """A seed's window as `rooms.render_sequence` has it, with structures of one kind in view. Equal arguments give equal arrays;
    another size shows the same scene. Raises ValueError on an argument out of range."""
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(KINDS)}")
    scene = make_scene(seed)
    poses = camera.camera_path(scene, int(seed), frames, TEST_RATE_HZ)
    intrinsics = scene.intrinsics(width, height)
    _, background = raycast.render(scene, poses, intrinsics, width, height)
    furnished = add_structures(scene, poses, kind)
    images, depth = raycast.render(furnished, poses, intrinsics, width, height)
    rng = np.random.default_rng((int(seed), GENERATOR_VERSION, splits.STREAM_PHOTOMETRIC))
    stamps = splits.EPOCH_NS + np.rint(np.arange(frames) * 1e9 / TEST_RATE_HZ).astype(np.int64)
    images = camera.degrade(images, rng)
    return ThinSequence(kind, SyntheticSequence(int(seed), images, depth, poses, intrinsics, stamps), background)


def add_structures(scene: Scene, world_from_camera: np.ndarray, kind: str) -> Scene:
    """`scene` with structures of `kind` in front of what the cameras (S, 4, 4) see, none nearer to one than LEAST_AWAY_M."""
    rng = np.random.default_rng((scene.seed, GENERATOR_VERSION, STREAM_STRUCTURES, KINDS.index(kind)))
    builder = _Structures(scene, world_from_camera, rng)
    wanted = {"poles": 4, "wires": 5, "legs": 5, "fence": 1}[kind]
    for _ in range(60 * wanted):
        if builder.made == wanted:
            break
        getattr(builder, kind)()
    if not builder.records:
        return scene
    return dataclasses.replace(
        scene,
        shapes=np.concatenate([scene.shapes, np.array(builder.shapes, np.int64).reshape(-1, 3)]),
        records=np.concatenate([scene.records, np.array(builder.records)]),
    )


class _Structures:
    """Cylinders (and what they are made of) at places that a camera sees. made: how many structures found a place."""

    def __init__(self, scene: Scene, poses: np.ndarray, rng: np.random.Generator) -> None:
        self.scene, self.poses, self.rng = scene, poses, rng
        self.records: list[np.ndarray] = []
        self.shapes: list[tuple[int, int, int]] = []
        self.made = 0
        k = scene.intrinsics(64, 48)
        self._intrinsics, (_, self._depth) = k, raycast.render(scene, poses, k, 64, 48)

    def poles(self) -> None:
        """From the floor to the ceiling."""
        x, y, _, away = self._spot()
        self._add([([x, y, 0.0], [x, y, self.scene.room[2]])], self._radius(away))  # type: ignore[list-item]

    def wires(self) -> None:
        """Slanting through the room, three quarters of them thinner than a pole, on the way to a wall on both ends."""
        x, y, z, away = self._spot()
        yaw, slope = self.rng.uniform(0, math.pi), self.rng.normal(0, 0.15)
        half = self.rng.uniform(0.5, 1.5)
        step = half * np.array([math.cos(yaw), math.sin(yaw), slope])
        middle = np.array([x, y, z])
        self._add([(middle - step, middle + step)], 0.5 * self._radius(away))

    def legs(self) -> None:
        """Four legs with stretchers, as of a stool without its seat."""
        x, y, z, away = self._spot()
        height, half = max(0.35, min(z + 0.1, 0.9)), self.rng.uniform(0.12, 0.22)
        yaw = self.rng.uniform(0, math.pi)
        c, s = math.cos(yaw), math.sin(yaw)
        feet = [
            np.array([x + half * (a * c - b * s), y + half * (a * s + b * c), 0.0])
            for a, b in ((1, 1), (1, -1), (-1, -1), (-1, 1))
        ]
        up = np.array([0, 0, height])
        rods = [(foot, foot + up) for foot in feet]
        rods += [(feet[i] + 0.9 * up, feet[(i + 1) % 4] + 0.9 * up) for i in range(4)]
        self._add(rods, self._radius(away))

    def fence(self) -> None:
        """A row of bars between two rails, across the view."""
        x, y, z, away = self._spot()
        yaw = self.rng.uniform(0, math.pi)
        along = np.array([math.cos(yaw), math.sin(yaw), 0.0])
        bars, pitch = int(self.rng.integers(7, 13)), self.rng.uniform(0.08, 0.16)
        height = min(max(0.8, z + 0.3), self.scene.room[2] - 0.3)
        middle = np.array([x, y, 0.0])
        up = np.array([0, 0, height])
        feet = [middle + (i - (bars - 1) / 2) * pitch * along for i in range(bars)]
        rods = [(foot, foot + up) for foot in feet]
        rods += [(feet[0] + h * up, feet[-1] + h * up) for h in (0.1, 0.98)]
        self._add(rods, 0.7 * self._radius(away))

    def _spot(self) -> tuple[float, float, float, float]:
        """World point on the ray of a pixel, between the camera and what it sees, and its distance."""
        frame = int(self.rng.integers(len(self.poses)))
        u, v = self.rng.uniform(6, 58), self.rng.uniform(8, 40)
        k, far = self._intrinsics, float(self._depth[frame, int(v), int(u)])
        z = self.rng.uniform(0.35, 0.75) * far
        local = np.array([(u - k[0, 2]) / k[0, 0] * z, (v - k[1, 2]) / k[1, 1] * z, z])
        world = self.poses[frame, :3, :3] @ local + self.poses[frame, :3, 3]
        return float(world[0]), float(world[1]), float(world[2]), float(np.linalg.norm(local))

    def _radius(self, away: float) -> float:
        low, high = np.log(WIDTH_RAD)
        return away * math.exp(self.rng.uniform(low, high)) / 2

    def _add(self, rods: list[tuple[np.ndarray, np.ndarray]], radius: float) -> None:
        """All rods from end to end, if none comes near a camera and all lie inside the room."""
        ends = np.array(rods, np.float64)
        inside = (np.abs(ends[..., :2]) <= self.scene.room[:2] / 2).all() and (ends[..., 2] >= 0).all()
        if not inside or (ends[..., 2] > self.scene.room[2]).any():
            return
        for a, b in ends:
            if _distance(self.poses[:, :3, 3], a, b).min() < LEAST_AWAY_M:
                return
        texture = int(self.rng.integers(len(self.scene.textures)))
        tint = self.rng.uniform(0.3, 1.3) * self.rng.uniform(0.9, 1.1, 3)
        for a, b in ends:
            self.records.append(_rod(a, b, radius, tint, self.rng))
            self.shapes.append((CYLINDER, texture, 0))
        self.made += 1


def _rod(a: np.ndarray, b: np.ndarray, radius: float, tint: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Record of a cylinder from a to b: see scene.Scene.records."""
    axis = (b - a) / np.linalg.norm(b - a)
    side = np.cross(axis, [1.0, 0, 0] if abs(axis[0]) < 0.9 else [0, 1.0, 0])
    side /= np.linalg.norm(side)
    half = float(np.linalg.norm(b - a)) / 2
    rotation = np.stack([side, np.cross(axis, side), axis])  # local_from_world
    offset = rng.uniform(0, textures.TEXTURE_SIZE, 2)
    values = [*(a + b) / 2, *rotation.ravel(), radius, radius, half, math.hypot(radius, half) + 1e-6]
    return np.array([*values, *tint, rng.uniform(150, 350), *offset, 0.0])


def _distance(points: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N,) from points (N, 3) to the segment from a to b."""
    t = np.clip((points - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
    return np.linalg.norm(points - (a + t[:, None] * (b - a)), axis=1)
