"""Rooms set up for training on what furnished rooms lack: a desk full of small things, a few things on a bare floor, walls and furniture
of one colour each; and a camera that looks at something from near by, going round it or turning on the spot.

Photographs of real places differ from `rooms` in just this: surfaces are plain, things are small and close, cameras look down and
roll. None of this touches the frozen splits.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from ...types import F64
from . import camera
from .scene import BOUND, Builder, Placement, Scene, clutter, wall_frame
from .textures import printed_page

LEAST_CLEARANCE_M = 0.2  # camera centre to any surface
ATTEMPTS = 40
BLACK = 40  # of 255, gamma 2: 2 % of the light


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """A room and what there is to look at in it: target (3,) in world coordinates, its extent in metres."""

    scene: Scene
    target: F64
    extent: float


def stage_desk(scene: Scene, rng: np.random.Generator) -> Stage:
    """The same room with a desk full of small things in it, and little else near."""
    builder = _begin(scene, rng)
    half = np.array([rng.uniform(0.5, 1.1), rng.uniform(0.3, 0.55)])
    height, thick = rng.uniform(0.6, 0.85), rng.uniform(0.01, 0.03)
    x, y, yaw = _spot(scene, rng, half)
    place = Placement(builder, x, y, yaw)
    wood = builder.solid()
    place.box((0, 0, height - thick), (*half, thick), wood)
    if rng.random() < 0.7:
        for i in (-1, 1):
            for j in (-1, 1):
                place.box(
                    (i * (half[0] - 0.05), j * (half[1] - 0.05), height / 2 - thick),
                    (0.025, 0.025, height / 2 - thick),
                    wood,
                )
    else:
        place.box((0, 0, height / 2 - thick), (half[0] - 0.1, half[1] - 0.1, height / 2 - thick), builder.solid())
    paper = builder.texture((printed_page,))
    for _ in range(int(rng.integers(0, 9))):  # sheets, books, keyboards
        size = (rng.uniform(0.06, 0.24), rng.uniform(0.05, 0.16), rng.choice([0.001, 0.008, 0.015, 0.03]))
        at = (rng.uniform(-0.9, 0.9) * half[0], rng.uniform(-0.9, 0.9) * half[1], height + size[2])
        row = paper if rng.random() < 0.4 else builder.solid()
        place.box(at, size, row, row == paper, rng.normal(0, 0.5))
    dark = _black(builder)
    for _ in range(int(rng.integers(0, 3))):  # screens on a foot
        at, turn = (rng.uniform(-0.7, 0.7) * half[0], rng.uniform(0, 0.8) * half[1]), rng.normal(0, 0.3)  # type: ignore[assignment]
        black, size = (
            (dark if rng.random() < 0.7 else builder.solid()),
            (rng.uniform(0.16, 0.32), rng.uniform(0.01, 0.03), rng.uniform(0.1, 0.2)),
        )
        place.cylinder((*at, height + 0.01), 0.1, 0.01, black)
        place.box((*at, height + 0.06), (0.02, 0.015, 0.06), black, turn=turn)
        place.box((*at, height + 0.1 + size[2]), size, black, turn=turn)
    clutter(place, half[0], half[1], height, int(rng.integers(2, 18)))
    near = place.centre((0, 0, 0))[:2]
    return Stage(_end(scene, builder, near, float(half[0]) + 0.3, rng), np.array([*near, height]), float(half[0]))


def stage_floor(scene: Scene, rng: np.random.Generator) -> Stage:
    """The same room, mostly emptied, with one to five plain things standing close together on its floor."""
    builder = _begin(scene, rng)
    x, y, yaw = _spot(scene, rng, np.array([0.8, 0.8]))
    place, high = Placement(builder, x, y, yaw), 0.0
    for i in range(int(rng.integers(1, 6))):
        spread = 0.0 if i == 0 else 0.9
        at = rng.uniform(-spread, spread, 2)
        size = np.exp(rng.uniform(math.log(0.08), math.log(0.45), 3))
        turn, kind = rng.uniform(-3, 3), rng.random()
        if kind < 0.65:
            place.box((*at, size[2]), size, builder.solid(), rng.random() < 0.5, turn)
        elif kind < 0.85:
            place.cylinder((*at, size[2]), min(size[0], 0.3), size[2], builder.solid())
        else:
            place.sphere((*at, size[0]), size[0], builder.solid())
        high = max(high, size[2])
        if rng.random() < 0.3:
            clutter(Placement(builder, *place.centre((*at, 0))[:2], yaw + turn), size[0], size[1], 2 * size[2], 2)  # type: ignore[call-arg]
    near = place.centre((0, 0, 0))[:2]
    return Stage(_end(scene, builder, near, 1.3, rng), np.array([*near, high]), 0.7)


def _black(builder: Builder) -> int:
    """Row of a texture like dark plastic, which paint() leaves dark."""
    chain = np.full_like(builder.chains[0], BLACK)
    builder.chains.append(chain)
    return len(builder.chains) - 1


def _begin(scene: Scene, rng: np.random.Generator) -> Builder:
    builder = Builder(rng, rng, float(scene.room[2]))
    builder.chains = list(scene.textures)
    builder.solids = sorted({int(row) for row in scene.shapes[:, 1]}) or [0]
    return builder


def _spot(scene: Scene, rng: np.random.Generator, half: F64) -> tuple[float, float, float]:
    """x, y, yaw of something of that half size, with room to go round it, or for a third of them near a wall."""
    if rng.random() < 1 / 3:
        wall = int(rng.integers(4))
        span = max(scene.room[1 if wall < 2 else 0] / 2 - half[0] - 0.1, 0.0)
        return wall_frame(scene.room, wall, rng.uniform(-span, span), half[1] + rng.uniform(0.02, 0.3))
    x, y = rng.uniform(-0.15, 0.15, 2) * scene.room[:2]
    return float(x), float(y), float(rng.uniform(-math.pi, math.pi))


def _end(scene: Scene, builder: Builder, near: F64, reach: float, rng: np.random.Generator) -> Scene:
    """`scene` with what was built, and with what stood within `reach` of `near` and most of the rest taken away."""
    away = np.linalg.norm(scene.records[:, :2] - near, axis=1) - scene.records[:, BOUND] > reach
    kept = away & (rng.random(len(away)) < rng.choice([0.0, 0.3, 0.8]))
    return dataclasses.replace(
        scene,
        shapes=np.concatenate([scene.shapes[kept], np.array(builder.shapes, np.int64).reshape(-1, 3)]),
        records=np.concatenate([scene.records[kept], np.array(builder.records)]),
        textures=np.stack(builder.chains),
    )


def paint(scene: Scene, rng: np.random.Generator) -> Scene:
    """The same room in plain colours: walls, ceiling and floor mostly light and grey, things of any colour, with little texture left."""
    textures, of_room = scene.textures.copy(), set(scene.room_shapes.tolist())
    spared = rng.uniform(0, 0.4)
    for row in range(len(textures)):
        if rng.random() < spared:
            continue
        texture = textures[row].astype(np.float32)
        if texture.max() <= BLACK:
            continue
        if row in of_room and rng.random() < 0.8:
            colour = rng.uniform(120, 245) * rng.uniform(0.93, 1.07, 3)
        elif rng.random() < 0.5:
            colour = rng.uniform(10, 240) * rng.uniform(0.9, 1.1, 3)
        else:
            colour = rng.uniform(10, 230, 3)
        left = rng.uniform(0.0, 0.2) if rng.random() < 0.8 else rng.uniform(0.2, 0.6)
        textures[row] = (colour + left * (texture - texture.mean(axis=0))).clip(0, 255).astype(np.uint8)
    return dataclasses.replace(scene, textures=textures)


def watching_path(stage: Stage, rng: np.random.Generator, frames: int, rate_hz: float) -> F64 | None:
    """world_from_camera (frames, 4, 4) of a hand-held camera that keeps looking towards the target: going round it, or, two times in
    five, turning and rolling on the spot. It keeps LEAST_CLEARANCE_M from every surface; None if no such path was found."""
    t = np.arange(frames) / rate_hz
    for attempt in range(ATTEMPTS):
        shrink = 0.97**attempt
        distance = shrink * (0.5 + stage.extent * rng.uniform(0.5, 2.5))
        azimuth, height = rng.uniform(-math.pi, math.pi), math.radians(rng.uniform(8, 65))
        turning = rng.random() < 0.4
        step = 0.02 if turning else 1.0
        sway = [camera.wave(rng, 2, 3, 9) for _ in range(8)]
        around = azimuth + step * (math.radians(rng.uniform(-30, 30)) * t + 0.25 * sway[0](t))
        up = np.clip(height + 0.15 * step * sway[1](t), 0.05, 1.35)
        r = distance * (1 + 0.2 * step * sway[2](t))
        offset = np.stack([np.cos(around) * np.cos(up), np.sin(around) * np.cos(up), np.sin(up)], axis=1) * r[:, None]
        centres = stage.target + offset
        inside = (np.abs(centres[:, :2]) < stage.scene.room[:2] / 2).all() and centres[:, 2].max() < stage.scene.room[2]
        if not inside or stage.scene.clearance(centres).min() < LEAST_CLEARANCE_M:
            continue
        wander = (0.45 if turning else 0.2) * distance * np.stack([f(t) for f in sway[3:6]], axis=1)
        aim = stage.target + rng.uniform(-0.3, 0.3, 3) * stage.extent * [1, 1, 0.5] + wander
        forward = aim - centres
        forward /= np.linalg.norm(forward, axis=1, keepdims=True)
        level = np.cross(forward, [0.0, 0.0, 1.0])
        sine = np.linalg.norm(level, axis=1, keepdims=True)
        if sine.min() < 0.1:  # straight down: no side is up
            continue
        level /= sine
        down = np.cross(forward, level)
        roll = rng.normal(0, 0.3 if turning else 0.15) + (0.5 if turning else 0.1) * sway[6](t)
        c, s = np.cos(roll)[:, None], np.sin(roll)[:, None]
        poses = np.tile(np.eye(4), (frames, 1, 1))
        poses[:, :3, 0], poses[:, :3, 1], poses[:, :3, 2] = c * level + s * down, c * down - s * level, forward
        poses[:, :3, 3] = centres
        return poses
    return None
