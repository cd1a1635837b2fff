"""What stands in a room: primitives, furniture, and how they are placed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .splits import GENERATOR_VERSION, STREAM_GEOMETRY, STREAM_TEXTURES, check_integer
from .textures import (
    _CEILINGS,
    _FLOORS,
    _MIP_OFFSETS,
    _SOLIDS,
    _WALLS,
    TEXTURE_SIZE,
    _books,
    _carpet,
    _collage,
    _mip_chain,
    _Painter,
    _window,
    printed_page,
)

BOX, SPHERE, CYLINDER = 0, 1, 2

# Columns of a primitive's float record.
_CENTRE, _ROTATION, _HALF, BOUND, _TINT, _DENSITY, _OFFSET, _SPECULAR = 0, 3, 12, 15, 16, 19, 20, 22
_RECORD = 23


@dataclass(frozen=True)
class Scene:
    """One furnished room, ready to be ray-cast.

    ``room``: (3,) float64 length along x, along y, and height, metres; x and y are centred on the origin.
    ``shapes``: (P, 3) int64 per primitive: kind (BOX, SPHERE, CYLINDER), texture row, 1 if the texture is stretched
    once over each face. ``records``: (P, 23) float64: centre (3), local_from_world rotation (9), half sizes (3; a
    cylinder's axis is its local z), bounding radius, tint (3), texels per metre, texel offset (2), specular strength.
    ``room_shapes`` (6,) int64 and ``room_records`` (6, 7) float64: texture row, and tint (3), texels per metre,
    offset (2), specular of the faces -x, +x, -y, +y, floor, ceiling.
    ``lights``: (L, 7) float64: position (3), colour (3), reach in metres. ``ambient``: (3,) float64.
    ``textures``: (T, N, 3) uint8 mip chains, gamma 2. ``horizontal_fov_deg``: of the camera that visits the room.
    """

    seed: int
    room: np.ndarray
    shapes: np.ndarray
    records: np.ndarray
    room_shapes: np.ndarray
    room_records: np.ndarray
    lights: np.ndarray
    ambient: np.ndarray
    textures: np.ndarray
    horizontal_fov_deg: float

    def clearance(self, points: np.ndarray) -> np.ndarray:
        """Signed distance (N,) float64, metres, from world points (N, 3) to the nearest surface; negative if inside."""
        points = np.asarray(points, np.float64)
        half = self.room[:2] / 2
        nearest = np.minimum((half - np.abs(points[:, :2])).min(axis=1), points[:, 2])
        nearest = np.minimum(nearest, self.room[2] - points[:, 2])
        if not len(self.shapes):
            return nearest
        rotation = self.records[:, _ROTATION : _ROTATION + 9].reshape(-1, 3, 3)
        local = np.einsum("pij,npj->npi", rotation, points[:, None] - self.records[None, :, _CENTRE : _CENTRE + 3])
        size = self.records[:, _HALF : _HALF + 3]
        excess = np.abs(local) - size
        round_excess = np.stack([np.hypot(local[..., 0], local[..., 1]) - size[:, 0], excess[..., 2]], axis=-1)
        box = np.linalg.norm(np.maximum(excess, 0), axis=-1) + np.minimum(excess.max(axis=-1), 0)
        cylinder = np.linalg.norm(np.maximum(round_excess, 0), axis=-1) + np.minimum(round_excess.max(axis=-1), 0)
        sphere = np.linalg.norm(local, axis=-1) - size[:, 0]
        kind = self.shapes[:, 0]
        distance = np.where(kind == BOX, box, np.where(kind == SPHERE, sphere, cylinder))
        return np.minimum(nearest, distance.min(axis=1))

    def intrinsics(self, width: int, height: int) -> np.ndarray:
        """Pinhole matrix (3, 3) float64 in pixels for an image of this size: square pixels, centred principal point."""
        focal = width / 2 / math.tan(math.radians(self.horizontal_fov_deg) / 2)
        return np.array([[focal, 0, width / 2 - 0.5], [0, focal, height / 2 - 0.5], [0, 0, 1.0]])


def yaw_rotation(yaw: float) -> np.ndarray:
    """local_from_world (3, 3) of something turned by yaw about z."""
    c, s = math.cos(yaw), math.sin(yaw)
    return np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])


LAY_DOWN = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])  # local z along the parent's x


class Builder:
    """Collects primitives and the textures they ask for while a room is furnished."""

    def __init__(self, geometry: np.random.Generator, textures: np.random.Generator, ceiling: float) -> None:
        self.rng = geometry
        self.ceiling = ceiling
        self.texture_rng = textures
        self.records: list[np.ndarray] = []
        self.shapes: list[tuple[int, int, int]] = []
        self.chains: list[np.ndarray] = []
        self.solids: list[int] = []
        self.taken: list[tuple[float, float, float]] = []

    def texture(self, kinds: Sequence[_Painter]) -> int:
        """Paint a new texture of one of these kinds and return its row."""
        rng = self.texture_rng
        image = kinds[int(rng.integers(len(kinds)))](rng)
        chain = np.empty((int(_MIP_OFFSETS[-1]), 3), np.uint8)
        _mip_chain(np.ascontiguousarray(image, np.float32), chain)
        self.chains.append(chain)
        return len(self.chains) - 1

    def solid(self) -> int:
        """A texture from the room's shared set of materials."""
        return self.solids[int(self.rng.integers(len(self.solids)))]

    def add(
        self, kind: int, centre: np.ndarray, half: ArrayLike, rotation: np.ndarray, texture: int, fit: bool = False
    ) -> None:
        """Add a primitive: kind, world centre (3,), half sizes (3,), local_from_world (3, 3), texture row."""
        rng = self.rng
        half = np.asarray(half, np.float64)
        if kind == BOX:
            bound = float(np.linalg.norm(half))
        elif kind == SPHERE:
            bound = float(half[0])
        else:
            bound = math.hypot(half[0], half[2])
        tint = rng.uniform(0.75, 1.15) * rng.uniform(0.9, 1.1, 3)
        record = np.empty(_RECORD)
        record[_CENTRE : _CENTRE + 3] = centre
        record[_ROTATION : _ROTATION + 9] = np.ravel(rotation)
        record[_HALF : _HALF + 3] = half
        record[BOUND] = bound + 1e-6
        record[_TINT : _TINT + 3] = tint
        record[_DENSITY] = rng.uniform(150, 350)
        record[_OFFSET : _OFFSET + 2] = rng.uniform(0, TEXTURE_SIZE, 2)
        record[_SPECULAR] = rng.uniform(0.1, 0.5) if rng.random() < 0.3 else 0.0
        self.records.append(record)
        self.shapes.append((kind, texture, int(fit)))


class Placement:
    """A spot on the floor with a heading: turns furniture-local coordinates into the world's."""

    def __init__(self, builder: Builder, x: float, y: float, yaw: float) -> None:
        self.builder, self.x, self.y, self.yaw = builder, x, y, yaw
        self.rotation = yaw_rotation(yaw)

    def centre(self, local: ArrayLike) -> np.ndarray:
        """World position (3,) of a point given in the furniture's own coordinates."""
        return self.rotation.T @ np.asarray(local, np.float64) + (self.x, self.y, 0.0)

    def box(self, local: ArrayLike, half: ArrayLike, texture: int, fit: bool = False, turn: float = 0.0) -> None:
        self.builder.add(BOX, self.centre(local), half, yaw_rotation(self.yaw + turn), texture, fit)

    def sphere(self, local: ArrayLike, radius: float, texture: int) -> None:
        self.builder.add(SPHERE, self.centre(local), (radius,) * 3, self.rotation, texture)

    def cylinder(
        self,
        local: ArrayLike,
        radius: float,
        half_length: float,
        texture: int,
        lying: bool = False,
        turn: float = 0.0,
    ) -> None:
        rotation = yaw_rotation(self.yaw + turn)
        rotation = LAY_DOWN @ rotation if lying else rotation
        self.builder.add(CYLINDER, self.centre(local), (radius, radius, half_length), rotation, texture)


def clutter(place: Placement, width: float, depth: float, top: float, count: int) -> None:
    """Small things standing on a surface of half size (width, depth) at height top."""
    builder, rng = place.builder, place.builder.rng
    for _ in range(count):
        x, y = rng.uniform(-0.8, 0.8) * width, rng.uniform(-0.7, 0.7) * depth
        kind = rng.integers(4)
        if kind == 0:
            radius = rng.uniform(0.04, 0.12)
            place.sphere((x, y, top + radius), radius, builder.solid())
        elif kind == 1:
            radius, half = rng.uniform(0.03, 0.09), rng.uniform(0.05, 0.16)
            place.cylinder((x, y, top + half), radius, half, builder.solid())
        elif kind == 2:
            radius = rng.uniform(0.03, 0.07)
            turn = rng.uniform(0, 3)
            place.cylinder((x, y, top + radius), radius, rng.uniform(0.06, 0.16), builder.solid(), True, turn)
        else:
            half = rng.uniform(0.03, 0.16, 3)
            place.box((x, y, top + half[2]), half, builder.solid(), rng.random() < 0.5, rng.uniform(0, 3))


def _cabinet(place: Placement, half: np.ndarray) -> None:
    builder, rng = place.builder, place.builder.rng
    height = rng.uniform(0.25, 1.0)
    books = rng.random() < 0.4 and height > 0.4
    texture = builder.texture((_books,)) if books else builder.solid()
    place.box((0, 0, height), (half[0], half[1], height), texture, books)
    if height < 0.65:
        clutter(place, half[0], half[1], 2 * height, int(rng.integers(0, 4)))


def _table(place: Placement, half: np.ndarray) -> None:
    builder, rng = place.builder, place.builder.rng
    height, thick, leg = rng.uniform(0.4, 0.8), rng.uniform(0.015, 0.035), rng.uniform(0.015, 0.04)
    wood = builder.solid()
    place.box((0, 0, height - thick), (half[0], half[1], thick), wood)
    leg_half = height / 2 - thick
    for x in (-1, 1):
        for y in (-1, 1):
            spot = (x * (half[0] - 2 * leg), y * (half[1] - 2 * leg), leg_half)
            if leg < 0.028:
                place.cylinder(spot, leg, leg_half, wood)
            else:
                place.box(spot, (leg, leg, leg_half), wood)
    clutter(place, half[0], half[1], height, int(rng.integers(1, 6)))


def _chair(place: Placement, half: np.ndarray) -> None:
    builder, rng = place.builder, place.builder.rng
    seat, size = rng.uniform(0.4, 0.5), 0.21
    wood, cloth = builder.solid(), builder.solid()
    place.box((0, 0, seat - 0.02), (size, size, 0.02), cloth)
    for x in (-1, 1):
        for y in (-1, 1):
            top = seat + 0.45 if y > 0 else seat - 0.04
            place.cylinder((x * (size - 0.025), y * (size - 0.025), top / 2), 0.018, top / 2, wood)
    place.box((0, size - 0.025, seat + 0.33), (size, 0.015, 0.12), cloth)


def _sofa(place: Placement, half: np.ndarray) -> None:
    builder, rng = place.builder, place.builder.rng
    cloth = builder.solid()
    seat = rng.uniform(0.18, 0.24)
    back = half[1] * 0.25
    place.box((0, 0, seat), (half[0], half[1], seat), cloth)
    place.box((0, half[1] - back, 2 * seat + 0.2), (half[0], back, 0.2), cloth)
    for x in (-1, 1):
        place.box((x * (half[0] - 0.08), -back, 2 * seat + 0.09), (0.08, half[1] - back, 0.09), cloth)
    clutter(place, half[0] * 0.6, half[1] * 0.4, 2 * seat, int(rng.integers(0, 3)))


def _barrel(place: Placement, half: np.ndarray) -> None:
    rng = place.builder.rng
    radius, height = rng.uniform(0.12, 0.3), rng.uniform(0.15, 0.6)
    place.cylinder((0, 0, height), radius, height, place.builder.solid())


def _bolster(place: Placement, half: np.ndarray) -> None:
    rng = place.builder.rng
    radius = rng.uniform(0.08, 0.25)
    place.cylinder((0, 0, radius), radius, rng.uniform(0.2, 0.7), place.builder.solid(), True)


def _ball(place: Placement, half: np.ndarray) -> None:
    radius = place.builder.rng.uniform(0.12, 0.4)
    place.sphere((0, 0, radius), radius, place.builder.solid())


def _lamp(place: Placement, half: np.ndarray) -> None:
    rng, metal = place.builder.rng, place.builder.solid()
    height = rng.uniform(1.2, 1.7)
    place.cylinder((0, 0, 0.015), 0.14, 0.015, metal)
    place.cylinder((0, 0, height / 2), rng.uniform(0.01, 0.025), height / 2, metal)
    if rng.random() < 0.5:
        place.sphere((0, 0, height + 0.1), rng.uniform(0.1, 0.18), place.builder.solid())
    else:
        place.cylinder((0, 0, height + 0.1), rng.uniform(0.12, 0.22), 0.12, place.builder.solid())


def _cartons(place: Placement, half: np.ndarray) -> None:
    rng, base = place.builder.rng, 0.0
    size = rng.uniform(0.18, 0.32, 2)
    for _ in range(int(rng.integers(1, 5))):
        high = rng.uniform(0.08, 0.22)
        turn = rng.normal(0, 0.25)
        place.box((0, 0, base + high), (size[0], size[1], high), place.builder.solid(), rng.random() < 0.5, turn)
        base += 2 * high
        size = size * rng.uniform(0.75, 1.0)


def _column(place: Placement, half: np.ndarray) -> None:
    ceiling = place.builder.ceiling
    radius = place.builder.rng.uniform(0.03, 0.2)
    place.cylinder((0, 0, ceiling / 2), radius, ceiling / 2, place.builder.solid())


# Furniture: builder, range of half widths, range of half depths (metres), may stand against a wall, weight.
_FURNITURE = (
    (_cabinet, (0.25, 0.8), (0.15, 0.32), True, 4),
    (_table, (0.35, 0.8), (0.25, 0.45), False, 4),
    (_chair, (0.22, 0.24), (0.22, 0.24), False, 3),
    (_sofa, (0.5, 1.0), (0.35, 0.45), True, 1.5),
    (_barrel, (0.3, 0.31), (0.3, 0.31), False, 1.5),
    (_bolster, (0.5, 0.6), (0.25, 0.26), False, 1),
    (_ball, (0.35, 0.4), (0.35, 0.4), False, 1.5),
    (_lamp, (0.2, 0.22), (0.2, 0.22), True, 1),
    (_cartons, (0.3, 0.35), (0.3, 0.35), True, 3),
    (_column, (0.15, 0.2), (0.15, 0.2), False, 0.7),
)


def wall_frame(room: np.ndarray, wall: int, along: float, off: float) -> tuple[float, float, float]:
    """x, y, yaw of a spot `off` metres from wall 0..3 (-x, +x, -y, +y) whose local +y points into the wall."""
    if wall == 0:
        return -room[0] / 2 + off, along, math.pi / 2
    if wall == 1:
        return room[0] / 2 - off, along, -math.pi / 2
    if wall == 2:
        return along, -room[1] / 2 + off, math.pi
    return along, room[1] / 2 - off, 0.0


def _furnish_floor(builder: Builder, room: np.ndarray) -> None:
    rng = builder.rng
    wanted = int(rng.integers(6, 17))
    budget = 0.30 * room[0] * room[1]  # floor area that may be taken, so that the camera finds room to walk
    weights = np.array([entry[4] for entry in _FURNITURE])
    for _ in range(wanted):
        build, widths, depths, at_wall, _ = _FURNITURE[int(rng.choice(len(_FURNITURE), p=weights / weights.sum()))]
        half = np.array([rng.uniform(*widths), rng.uniform(*depths)])
        reach = float(np.hypot(*half))
        if math.pi * reach**2 > budget:
            continue
        for _ in range(12):
            if at_wall and rng.random() < 0.8:
                wall = int(rng.integers(4))
                span = room[1 if wall < 2 else 0] / 2 - half[0] - 0.05
                x, y, yaw = wall_frame(room, wall, rng.uniform(-span, span), half[1] + rng.uniform(0.005, 0.06))
            else:
                x, y = (rng.uniform(-0.5, 0.5) * (room[axis] - 2 * reach - 0.1) for axis in (0, 1))
                yaw = rng.uniform(-math.pi, math.pi)
            if all(math.hypot(x - a, y - b) > 0.85 * (reach + r) for a, b, r in builder.taken):
                builder.taken.append((x, y, reach))
                budget -= math.pi * reach**2
                build(Placement(builder, x, y, yaw), half)
                break


def _furnish_walls(builder: Builder, room: np.ndarray) -> None:
    rng = builder.rng
    pictures = [builder.texture((_collage, printed_page, _window, _collage)) for _ in range(int(rng.integers(1, 4)))]
    for _ in range(int(rng.integers(3, 10))):
        wall = int(rng.integers(4))
        span = room[1 if wall < 2 else 0] / 2
        half_width, half_height = rng.uniform(0.15, 0.6), rng.uniform(0.15, 0.5)
        thick = rng.uniform(0.005, 0.03)
        limit = max(span - half_width - 0.1, 0.05)
        x, y, yaw = wall_frame(room, wall, rng.uniform(-limit, limit), thick)
        place = Placement(builder, x, y, yaw)
        height = rng.uniform(1.0, min(1.8, room[2] - half_height - 0.1))
        if rng.random() < 0.72:
            place.box(
                (0, 0, height), (half_width, thick, half_height), pictures[int(rng.integers(len(pictures)))], True
            )
        elif rng.random() < 0.7:
            depth = rng.uniform(0.08, 0.16)
            place.box((0, thick - depth, height), (half_width, depth, 0.015), builder.solid())
            x, y, _ = place.centre((0, thick - depth, 0))
            inner = Placement(builder, x, y, yaw)
            clutter(inner, half_width, depth * 0.6, height + 0.015, int(rng.integers(2, 7)))
        else:
            rail = builder.solid()
            radius = rng.uniform(0.012, 0.04)
            place.cylinder((0, thick - 0.1, height - 0.2), radius, 2 * half_width, rail, True)
            for side in (-1, 1):
                spot = (side * half_width, thick - 0.05, height - 0.2)
                place.cylinder(spot, radius * 0.6, 0.05, rail, True, math.pi / 2)
    if rng.random() < 0.5:
        half = rng.uniform(0.5, 1.2, 2)
        x, y = rng.uniform(-0.2, 0.2, 2) * room[:2]
        place = Placement(builder, x, y, rng.uniform(-0.4, 0.4))
        half = np.minimum(half, 0.25 * room[:2])
        place.box((0, 0, 0.006), (half[0], half[1], 0.006), builder.texture((_carpet,)), True)
    if rng.random() < 0.6:
        x, y = rng.uniform(-0.2, 0.2, 2) * room[:2]
        place = Placement(builder, x, y, rng.uniform(-0.4, 0.4))
        drop, radius = rng.uniform(0.1, 0.3), rng.uniform(0.08, 0.16)
        place.cylinder((0, 0, room[2] - drop / 2), 0.01, drop / 2, builder.solid())
        place.sphere((0, 0, room[2] - drop - radius), radius, builder.solid())


def make_scene(seed: int) -> Scene:
    """Build the room of a seed (an integer >= 0); the same on every call and at every image size.

    Raises ValueError for a seed that is no non-negative integer.
    """
    check_integer("seed", seed, 0, 2**63 - 1)
    seed = int(seed)
    rng = np.random.default_rng((seed, GENERATOR_VERSION, STREAM_GEOMETRY))
    room = np.array([rng.uniform(3.0, 6.0), rng.uniform(3.0, 6.0), rng.uniform(2.3, 3.2)])
    style = rng.random()
    if style < 0.12:  # corridor-like
        room[:2] = rng.permutation([rng.uniform(2.6, 3.2), rng.uniform(5.0, 8.0)])
    elif style < 0.27:  # hall
        room = np.array([rng.uniform(5.0, 8.0), rng.uniform(5.0, 8.0), rng.uniform(2.7, 3.5)])
    textures = np.random.default_rng((seed, GENERATOR_VERSION, STREAM_TEXTURES))
    builder = Builder(rng, textures, float(room[2]))

    walls = [builder.texture(_WALLS) for _ in range(int(rng.integers(1, 5)))]
    wall_rows = [walls[int(rng.integers(len(walls)))] for _ in range(4)]
    room_shapes = np.array([*wall_rows, builder.texture(_FLOORS), builder.texture(_CEILINGS)], np.int64)
    room_records = np.empty((6, 7))
    room_records[:, :3] = rng.uniform(0.8, 1.1, (6, 1)) * rng.uniform(0.92, 1.08, (6, 3))
    room_records[:, 3] = rng.uniform(70, 170, 6)
    room_records[:, 4:6] = rng.uniform(0, TEXTURE_SIZE, (6, 2))
    room_records[:, 6] = np.where(rng.random(6) < 0.2, rng.uniform(0.05, 0.25, 6), 0.0)

    builder.solids = [builder.texture(_SOLIDS) for _ in range(5)]
    _furnish_walls(builder, room)
    _furnish_floor(builder, room)

    lights = np.empty((int(rng.integers(1, 4)), 7))
    for light in lights:
        light[:2] = rng.uniform(-0.4, 0.4, 2) * room[:2]
        light[2] = room[2] * rng.uniform(0.75, 0.95)
        light[3:6] = rng.uniform(0.5, 1.3) * (1 + np.array([1, 0.2, -1]) * rng.uniform(-0.1, 0.25))
        light[6] = rng.uniform(1.2, 3.5)
    lights[:, 3:6] *= 1.6 / lights[:, 4].sum()
    ambient = rng.uniform(0.25, 0.6) * rng.uniform(0.92, 1.08, 3)
    return Scene(
        seed=seed,
        room=room,
        shapes=np.array(builder.shapes, np.int64).reshape(-1, 3),
        records=np.array(builder.records, np.float64).reshape(-1, _RECORD),
        room_shapes=room_shapes,
        room_records=room_records,
        lights=lights,
        ambient=ambient,
        textures=np.stack(builder.chains),
        horizontal_fov_deg=float(rng.uniform(50, 85)),
    )
