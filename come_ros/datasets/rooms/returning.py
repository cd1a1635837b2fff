"""Walks that come back, and a corridor whose doors are all alike: what loops are measured on. None of this touches the frozen splits."""

from __future__ import annotations

import math

import numpy as np

from ... import geometry
from ...types import F64
from .camera import CLEARANCE_M, camera_path, degrade, wave
from .raycast import render
from .rooms import SyntheticSequence
from .scene import BOX, Builder, Placement, Scene, make_scene
from .splits import EPOCH_NS, GENERATOR_VERSION, check_integer
from .textures import TEXTURE_SIZE, printed_page

STREAM_RETURN, STREAM_CORRIDOR = 100, 101  # independent of those of the frozen splits
SWAY_M, TURN = 0.06, math.radians(3.0)  # how far the way back lies from the way out
DOOR_SPACING_M = 2.0


def returning_path(scene: Scene, seed: int, frames: int, rate_hz: float) -> F64:
    """world_from_camera (frames, 4, 4): the first half of the path of camera_path, then back to its start, by a hand that sways on its
    own. Raises ValueError as camera_path does."""
    out = (frames + 1) // 2
    there = camera_path(scene, seed, out, rate_hz)
    back = there[::-1][: frames - out].copy()
    rng = np.random.default_rng((seed, GENERATOR_VERSION, STREAM_RETURN))
    sway = [wave(rng, 2, 2, 6) for _ in range(6)]
    t = np.arange(len(back)) / rate_hz
    slow = np.minimum(1.0, t)[:, None]  # it begins where the way out ends
    shift = SWAY_M * slow * np.stack([f(t) for f in sway[:3]], axis=1)
    turn = TURN * slow * np.stack([f(t) for f in sway[3:]], axis=1)
    moved = back @ geometry.transform(geometry.rotation_from_vector(turn), shift)
    good = scene.clearance(moved[:, :3, 3]) > CLEARANCE_M / 2
    return np.concatenate([there, np.where(good[:, None, None], moved, back)])


def returning_room(
    seed: int, frames: int, width: int = 320, height: int = 240, rate_hz: float = 10.0, threads: int = 1
) -> SyntheticSequence:
    """The room of `seed`, seen on a walk that comes back. Equal arguments give equal arrays. Raises ValueError."""
    check_integer("frames", frames, 4, 100_000)
    scene = make_scene(seed)
    return _seen(scene, seed, returning_path(scene, seed, frames, rate_hz), width, height, rate_hz, threads)


def corridor(seed: int, doors: int = 8) -> Scene:
    """A straight corridor along x with `doors` doors on either side, DOOR_SPACING_M apart, and no detail that tells one from another:
    doors, signs and wall paper repeat exactly under the same light; only walls are a little lighter here than there, in large patches."""
    check_integer("doors", doors, 2, 100)
    rng = np.random.default_rng((seed, GENERATOR_VERSION, STREAM_CORRIDOR))
    base = make_scene(seed)
    room = np.array([(doors + 4) * DOOR_SPACING_M, 2.2, 2.6])
    builder = Builder(rng, rng, float(room[2]))
    builder.chains = list(base.textures)
    page, leaf = builder.texture((printed_page,)), builder.texture((printed_page,))
    wood, metal = (int(v) for v in rng.choice(np.unique(base.shapes[:, 1]), 2))
    pattern: list[tuple[np.ndarray, tuple[int, int, int]]] = []
    for side in (1, -1):
        place = Placement(builder, 0.0, side * room[1] / 2, 0.0 if side > 0 else math.pi)
        place.box((0, 0, 1.0), (0.45, 0.03, 1.0), wood, True)
        place.box((0, -0.035, 1.45), (0.2, 0.01, 0.28), page, True)
        place.box((0.75, -0.01, 1.5), (0.18, 0.02, 0.25), leaf, True)
        place.box((0.38, -0.06, 1.0), (0.05, 0.03, 0.02), metal)
        pattern = list(zip(builder.records, builder.shapes, strict=True))
    records, shapes = [], []
    for i in range(doors):
        for record, shape in pattern:
            copy = record.copy()
            copy[0] += (i - (doors - 1) / 2) * DOOR_SPACING_M
            records.append(copy)
            shapes.append(shape)
    assert all(shape[0] == BOX for shape in shapes)
    faces = base.room_records.copy()
    faces[:, 3] = TEXTURE_SIZE / DOOR_SPACING_M  # texels per metre: walls repeat with the doors
    return Scene(
        seed, room, np.array(shapes, np.int64), np.array(records), base.room_shapes, faces, np.empty((0, 7)),
        np.full(3, 0.9), np.stack(builder.chains), base.horizontal_fov_deg,
    )  # fmt: skip


def corridor_walk(
    seed: int, frames: int, doors: int = 8, width: int = 320, height: int = 240, rate_hz: float = 10.0, threads: int = 1
) -> SyntheticSequence:
    """Sideways along one wall of `corridor`, past all of its doors, once. Equal arguments give equal arrays. Raises ValueError."""
    check_integer("frames", frames, 4, 100_000)
    scene = corridor(seed, doors)
    rng = np.random.default_rng((seed, GENERATOR_VERSION, STREAM_CORRIDOR + 1))
    t = np.arange(frames) / rate_hz
    sway = [wave(rng, 2, 2, 6)(t) for _ in range(4)]
    x = np.linspace(-0.5, 0.5, frames) * (doors - 1) * DOOR_SPACING_M + 0.05 * sway[0]
    centre = np.stack([x, -0.55 + 0.05 * sway[1], 1.35 + 0.03 * sway[2]], axis=1)
    yaw = math.pi / 2 + math.radians(6) * sway[3]
    forward = np.stack([np.cos(yaw), np.sin(yaw), np.zeros(frames)], axis=1)
    right = np.stack([np.sin(yaw), -np.cos(yaw), np.zeros(frames)], axis=1)
    turn = np.stack([right, np.tile([0.0, 0.0, -1.0], (frames, 1)), forward], axis=2)
    return _seen(scene, seed, geometry.transform(turn, centre), width, height, rate_hz, threads)


def _seen(
    scene: Scene, seed: int, poses: F64, width: int, height: int, rate_hz: float, threads: int
) -> SyntheticSequence:
    intrinsics = scene.intrinsics(width, height)
    images, depth = render(scene, poses, intrinsics, width, height, threads)
    images = degrade(images, np.random.default_rng((seed, GENERATOR_VERSION, STREAM_RETURN + 2)))
    stamps = EPOCH_NS + np.rint(np.arange(len(poses)) * 1e9 / rate_hz).astype(np.int64)
    return SyntheticSequence(seed, images, depth, poses, intrinsics, stamps)
