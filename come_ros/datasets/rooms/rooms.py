"""Procedural textured indoor rooms with exact depth and poses, ray-cast on the CPU.

A scene, the path of a hand-held camera through it and the photometric flaws of that camera are fully determined by
``(seed, GENERATOR_VERSION)``. Frames: the world has z up, x and y horizontal, metres, origin on the floor in the middle
of the room; cameras follow OpenCV (x right, y down, z forward), pixel centres lie at integers.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

GENERATOR_VERSION: int = 1
SPLIT_SEEDS = {
    "train": range(10_000_000),
    "validation": range(10_000_000, 10_001_000),
    "test": range(20_000_000, 20_001_000),
}
TEST_SPLIT_SHA256 = "b6acff912feb74b3aee9557cc0f3b7796f1e07bde8124d3d700b5516c9945ff4"
TEST_RATE_HZ = 3.0

EPOCH_NS = 1_700_000_000_000_000_000
CLEARANCE_M = 0.30  # camera centre to any surface; keeps z-depth above 0.1 m at every field of view in use

# Independent random streams of one seed: a change in how one is consumed leaves the others as they were.
STREAM_GEOMETRY, STREAM_TEXTURES, STREAM_PATH, STREAM_PHOTOMETRIC = range(4)

BOX, SPHERE, CYLINDER = 0, 1, 2

TEXTURE_SIZE = 256
MIP_LEVELS = 7  # 256 ... 4
_MIP_OFFSETS = np.cumsum([0] + [(TEXTURE_SIZE >> level) ** 2 for level in range(MIP_LEVELS)]).astype(np.int64)

# Columns of a primitive's float record.
_CENTRE, _ROTATION, _HALF, BOUND, _TINT, _DENSITY, _OFFSET, _SPECULAR = 0, 3, 12, 15, 16, 19, 20, 22
_RECORD = 23
_TILE = 16  # pixels; primitives are culled once per tile


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


@functools.lru_cache(maxsize=1)
def _noise_bank() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Periodic fields shared by every scene: clouds (8, N, N), grain (4, N, N) in 0..1, cells (4, N, N) int ids."""
    rng = np.random.default_rng((GENERATOR_VERSION, 12345))
    n = TEXTURE_SIZE
    frequency = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None]) * n
    frequency[0, 0] = 1.0

    def field(slope: float) -> np.ndarray:
        spectrum = np.fft.rfft2(rng.standard_normal((n, n))) * frequency**-slope
        spectrum[0, 0] = 0
        values = np.fft.irfft2(spectrum, s=(n, n))
        return (0.5 + 0.5 * np.tanh(0.8 * values / values.std())).astype(np.float32)

    clouds = np.stack([field(slope) for slope in (1.1, 1.25, 1.4, 1.5, 1.6, 1.75, 1.9, 2.0)])
    grain = np.stack([field(slope) for slope in (0.2, 0.5, 0.7, 0.9)])
    cells = []
    axis = np.arange(n, dtype=np.float32)
    for count in (60, 150, 350, 700):
        best, ids = np.full((n, n), np.inf, np.float32), np.zeros((n, n), np.int64)
        for index, (x, y) in enumerate(rng.uniform(0, n, (count, 2)).astype(np.float32)):
            dx, dy = np.abs(axis - x), np.abs(axis - y)
            squared = (np.minimum(dx, n - dx) ** 2)[None] + (np.minimum(dy, n - dy) ** 2)[:, None]
            closer = squared < best
            best[closer], ids[closer] = squared[closer], index
        cells.append(ids)
    return clouds, grain, np.stack(cells)


def _shifted(field: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A bank field seen at a random offset, possibly mirrored or transposed."""
    field = np.roll(field, tuple(rng.integers(0, TEXTURE_SIZE, 2)), (0, 1))
    field = field.T if rng.random() < 0.5 else field
    return field[::-1] if rng.random() < 0.5 else field


def _cloud(rng: np.random.Generator) -> np.ndarray:
    return _shifted(_noise_bank()[0][rng.integers(8)], rng)


def _grain(rng: np.random.Generator) -> np.ndarray:
    return _shifted(_noise_bank()[1][rng.integers(4)], rng)


def _colour(rng: np.random.Generator, low: float = 0.15, high: float = 0.95) -> np.ndarray:
    """A colour (3,) float32 with furniture-like saturation: mostly muted, at times vivid."""
    value = rng.uniform(low, high)
    saturation = rng.beta(1.3, 2.2)
    hue = rng.uniform(0, 6) if rng.random() < 0.5 else rng.normal(0.55, 0.35) % 6
    wheel = [min(max(abs((hue + shift) % 6 - 3) - 1, 0.0), 1.0) for shift in (0, 4, 2)]
    return np.array([value * (1 - saturation + saturation * weight) for weight in wheel], np.float32)


def _ramp(values: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Map values in 0..1 to colours (K, 3) by linear interpolation, through a table for speed."""
    table = np.stack(
        [np.interp(np.linspace(0, 1, 256), np.linspace(0, 1, len(colours)), colours[:, c]) for c in range(3)], axis=1
    ).astype(np.float32)
    return np.take(table, np.clip(values * 255, 0, 255).astype(np.uint8), axis=0)


def _palette(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.stack([_colour(rng) for _ in range(count)])


_V, _U = np.mgrid[:TEXTURE_SIZE, :TEXTURE_SIZE]


def _plaster(rng: np.random.Generator) -> np.ndarray:
    base = _colour(rng, 0.6, 0.95)
    return (
        base
        * (1 + rng.uniform(0.02, 0.10) * (_grain(rng) - 0.5) + rng.uniform(0, 0.12) * (_cloud(rng) - 0.5))[..., None]
    )


def _stucco(rng: np.random.Generator) -> np.ndarray:
    return _ramp(0.55 * _cloud(rng) + 0.45 * _grain(rng), _palette(rng, int(rng.integers(2, 5))))


def _marble(rng: np.random.Generator) -> np.ndarray:
    vein = 0.5 + 0.5 * np.sin(rng.uniform(12, 40) * _cloud(rng) + rng.uniform(0, 6))
    return _ramp(0.75 * vein + 0.25 * _grain(rng), _palette(rng, int(rng.integers(2, 5))))


def _planks(rng: np.random.Generator) -> np.ndarray:
    rows, columns = int(rng.choice([8, 16, 16, 32])), int(rng.choice([1, 2, 4]))
    pitch, length = TEXTURE_SIZE // rows, TEXTURE_SIZE // columns
    row = _V // pitch
    shift = rng.integers(0, TEXTURE_SIZE, rows)[row]
    column = ((_U + shift) % TEXTURE_SIZE) // length
    start = rng.integers(0, TEXTURE_SIZE, (rows, columns))[row, column]
    stretch = int(rng.choice([4, 8, 16]))
    grain = _grain(rng)[(_V * 3 + start) % TEXTURE_SIZE, ((_U + start) // stretch) % TEXTURE_SIZE]
    ring = _cloud(rng)[(_V + start) % TEXTURE_SIZE, ((_U + start) // 4) % TEXTURE_SIZE]
    wood = 0.5 * (0.5 + 0.5 * np.sin(rng.uniform(15, 35) * ring)) + 0.5 * grain
    image = _ramp(wood, _colour(rng, 0.25, 0.9) * np.array([[0.55], [0.8], [1.0]], np.float32))
    image = image * rng.uniform(0.6, 1.1, (rows, columns)).astype(np.float32)[row, column][..., None]
    gap = (_V % pitch == 0) | ((_U + shift) % length == 0)
    image[gap] *= 0.35
    return image


def _tiles(rng: np.random.Generator) -> np.ndarray:
    count = int(rng.choice([4, 8, 8, 16]))
    pitch = TEXTURE_SIZE // count
    colours = _palette(rng, int(rng.integers(2, 6)))
    if rng.random() < 0.4:
        choice = np.add.outer(np.arange(count), np.arange(count)) % len(colours)
    else:
        choice = rng.integers(0, len(colours), (count, count))
    light = rng.uniform(0.7, 1.15, (count, count)).astype(np.float32)
    image = colours[choice[_V // pitch, _U // pitch]] * light[_V // pitch, _U // pitch][..., None]
    image = image * (0.65 + 0.45 * _grain(rng) + 0.25 * (_cloud(rng) - 0.5))[..., None]
    grout = (_V % pitch < 2) | (_U % pitch < 2)
    image[grout] = _colour(rng) * (0.7 + 0.4 * _grain(rng)[grout])[:, None]
    return image


def _bricks(rng: np.random.Generator) -> np.ndarray:
    rows = int(rng.choice([16, 32]))
    pitch = TEXTURE_SIZE // rows
    length = 4 * pitch if rng.random() < 0.5 else 2 * pitch
    row = _V // pitch
    along = (_U + (row % 2) * (length // 2)) % TEXTURE_SIZE
    light = rng.uniform(0.45, 1.1, (rows, TEXTURE_SIZE // length)).astype(np.float32)[row, along // length]
    image = _ramp(0.5 * _grain(rng) + 0.5 * _cloud(rng), _palette(rng, 2) * np.array([1, 0.85, 0.75], np.float32))
    image = image * light[..., None]
    mortar = (_V % pitch < 2) | (along % length < 2)
    image[mortar] = _colour(rng, 0.5, 0.9) * (0.6 + 0.5 * _grain(rng)[mortar])[:, None]
    return image


def _stripes(rng: np.random.Generator) -> np.ndarray:
    edges = np.sort(rng.choice(np.arange(2, TEXTURE_SIZE, 4), int(rng.integers(6, 28)), replace=False))
    band = np.searchsorted(edges, np.arange(TEXTURE_SIZE), side="right")
    colours = _palette(rng, int(rng.integers(2, 6)))[rng.integers(0, 2, len(edges) + 1)]
    return colours[band][None] * (0.75 + 0.35 * _grain(rng) + 0.2 * (_cloud(rng) - 0.5))[..., None]


def _terrazzo(rng: np.random.Generator) -> np.ndarray:
    ids = _shifted(_noise_bank()[2][rng.integers(4)], rng)
    colours = _palette(rng, int(rng.integers(3, 8)))
    image = colours[rng.integers(0, len(colours), int(ids.max()) + 1)][ids]
    if rng.random() < 0.6:
        image = np.where((_cloud(rng) < rng.uniform(0.3, 0.6))[..., None], _colour(rng, 0.5, 0.9), image)
    return image * (0.75 + 0.4 * _grain(rng))[..., None]


def _carpet(rng: np.random.Generator) -> np.ndarray:
    """Mirror-symmetric motifs in borders, as on a woven rug."""
    quarter = np.digitize(_cloud(rng)[:128, :128] * 0.6 + _grain(rng)[:128, :128] * 0.4, [0.35, 0.45, 0.55, 0.65])
    colours = _palette(rng, 5)
    mirrored = np.block([[quarter, quarter[:, ::-1]], [quarter[::-1], quarter[::-1, ::-1]]])
    image = colours[mirrored]
    edge = np.minimum(np.minimum(_U, 255 - _U), np.minimum(_V, 255 - _V))
    border = (edge > 8) & (edge < int(rng.integers(16, 40)))
    image[border] = colours[((_U // 8 + _V // 8) % 3)[border]]
    return image * (0.7 + 0.5 * _noise_bank()[1][0])[..., None]


def _weave(rng: np.random.Generator) -> np.ndarray:
    across, along = rng.choice([8, 16, 32], 2)
    cloth = 0.5 + 0.25 * np.sin(2 * np.pi * across * _U / TEXTURE_SIZE) * np.sin(2 * np.pi * along * _V / TEXTURE_SIZE)
    return _ramp(0.4 * cloth + 0.35 * _cloud(rng) + 0.25 * _grain(rng), _palette(rng, 3))


def _rings(rng: np.random.Generator) -> np.ndarray:
    centre = rng.uniform(60, 196, 2)
    radius = np.hypot(_U - centre[0], _V - centre[1]) / 128 + 0.25 * _cloud(rng)
    wood = 0.5 + 0.5 * np.sin(radius * rng.uniform(30, 80))
    return _ramp(0.7 * wood + 0.3 * _grain(rng), _colour(rng, 0.4, 0.9) * np.array([[0.5], [1.0]], np.float32))


def _glyphs(rng: np.random.Generator, image: np.ndarray, box: tuple[int, int, int, int], ink: np.ndarray) -> None:
    """Print rows of letter-like marks of random size into a region (u0, v0, u1, v1) of the image."""
    u0, v0, u1, v1 = box
    cell = int(rng.choice([2, 3, 4]))
    rows, columns = (v1 - v0) // cell, (u1 - u0) // cell
    if rows < 4 or columns < 4:
        return
    marks = rng.random((rows, columns)) < 0.55
    marks[:, 3::4] = False
    marks[4::5] = False
    marks &= (
        rng.random((rows // 5 + 1, columns // 4 + 1))[np.arange(rows)[:, None] // 5, np.arange(columns) // 4] < 0.85
    )
    mask = marks.repeat(cell, 0).repeat(cell, 1)
    image[v0 : v0 + mask.shape[0], u0 : u0 + mask.shape[1]][mask] = ink


def _collage(rng: np.random.Generator) -> np.ndarray:
    """Poster: a background with quads, discs and print over many scales."""
    n = TEXTURE_SIZE
    image = _ramp(_cloud(rng), _palette(rng, 3)).copy()
    for _ in range(int(rng.integers(8, 30))):
        size = np.exp(rng.uniform(np.log(8), np.log(120), 2)).astype(int)
        u0, v0 = int(rng.integers(0, n - size[0])), int(rng.integers(0, n - size[1]))
        region = image[v0 : v0 + size[1], u0 : u0 + size[0]]
        colour = _colour(rng)
        if rng.random() < 0.4:
            v, u = np.ogrid[-1 : 1 : size[1] * 1j, -1 : 1 : size[0] * 1j]
            region[u * u + v * v < 1] = colour
        else:
            region[:] = colour
        if rng.random() < 0.35:
            _glyphs(rng, image, (u0, v0, u0 + int(size[0]), v0 + int(size[1])), _colour(rng, 0.0, 1.0))
    return image * (0.85 + 0.25 * _grain(rng))[..., None]


def printed_page(rng: np.random.Generator) -> np.ndarray:
    """A page, notice board or label: mostly print."""
    image = np.broadcast_to(_colour(rng, 0.6, 0.98), (TEXTURE_SIZE, TEXTURE_SIZE, 3)).copy()
    for v in range(8, 248, 60):
        for u in range(8, 248, 80):
            if rng.random() < 0.25:
                image[v : v + 56, u : u + 74] = _ramp(_cloud(rng)[:56, :74], _palette(rng, 4))[: 248 - v, : 248 - u]
            else:
                _glyphs(rng, image, (u, v, min(u + 74, 250), min(v + 56, 250)), _colour(rng, 0.0, 0.4))
    return image * (0.9 + 0.15 * _grain(rng))[..., None]


def _books(rng: np.random.Generator) -> np.ndarray:
    """Shelves of book spines, dark above them."""
    shelves = int(rng.integers(2, 6))
    image = np.full((TEXTURE_SIZE, TEXTURE_SIZE, 3), 0.08, np.float32)
    board = _colour(rng, 0.3, 0.8)
    bounds = np.linspace(0, TEXTURE_SIZE, shelves + 1).astype(int)
    for top, bottom in itertools.pairwise(bounds):
        u = 6
        while u < 246:
            thick = int(rng.integers(4, 16))
            high = int((bottom - top - 6) * rng.uniform(0.6, 0.98))
            spine = image[bottom - 4 - high : bottom - 4, u : min(u + thick - 1, 250)]
            if rng.random() < 0.94 and spine.size:
                spine[:] = _colour(rng)
                if rng.random() < 0.6:
                    a = int(rng.uniform(0.1, 0.7) * high)
                    spine[a : a + int(rng.integers(2, 12)), 1:-1] = _colour(rng, 0.0, 1.0)
            u += thick
        image[bottom - 4 : bottom] = board
    image[:, :5] = board
    image[:, 251:] = board
    return image * (0.85 + 0.25 * _grain(rng))[..., None]


def _window(rng: np.random.Generator) -> np.ndarray:
    """A window: frame, and bright sky over foliage behind it."""
    sky = np.linspace(1.0, 0.8, TEXTURE_SIZE)[:, None, None] * np.array([0.85, 0.93, 1.0])
    green = _ramp(0.5 * _cloud(rng) + 0.5 * _grain(rng), _colour(rng, 0.3, 0.7) * np.array([[0.4], [1.1]]))
    horizon = 90 + 120 * (_cloud(rng)[128][None] - 0.3)
    image = np.where((horizon < _V)[..., None], green, sky).astype(np.float32)
    frame = (np.minimum(_U, 255 - _U) < 9) | (np.minimum(_V, 255 - _V) < 9)
    frame |= (np.abs(_U - 128) < 5) | ((np.abs(_V - 90) < 4) & (rng.random() < 0.5))
    image[frame] = _colour(rng, 0.5, 0.95)
    return image


_Painter = Callable[[np.random.Generator], np.ndarray]  # -> image (TEXTURE_SIZE, TEXTURE_SIZE, 3), gamma 2
_FLOORS = (_planks, _planks, _tiles, _terrazzo, _marble, _carpet, _weave, _stucco)
_WALLS = (_plaster, _stucco, _stucco, _bricks, _stripes, _planks, _terrazzo, _marble, _tiles, _collage)
_CEILINGS = (_plaster, _plaster, _planks, _tiles, _stucco)
_SOLIDS = (_rings, _planks, _stucco, _marble, _weave, _collage, printed_page, _terrazzo, _stripes, _tiles, _plaster)


@njit(cache=True, nogil=True, error_model="numpy")
def _mip_chain(image: np.ndarray, out: np.ndarray) -> None:
    """Fill out (N, 3) uint8 with box-filtered levels of image (size, size, 3) float32 in 0..1 (gamma 2)."""
    size = image.shape[0]
    level = np.empty((size, size, 3), np.float32)
    for v in range(size):
        for u in range(size):
            for c in range(3):
                level[v, u, c] = min(max(image[v, u, c], 0.0), 1.0)
    start = 0
    while start < out.shape[0]:
        for v in range(size):
            for u in range(size):
                for c in range(3):
                    out[start + v * size + u, c] = np.uint8(level[v, u, c] * 255.0 + 0.5)
        start += size * size
        size //= 2
        for v in range(size):
            for u in range(size):
                for c in range(3):
                    level[v, u, c] = 0.25 * (
                        level[2 * v, 2 * u, c]
                        + level[2 * v, 2 * u + 1, c]
                        + level[2 * v + 1, 2 * u, c]
                        + level[2 * v + 1, 2 * u + 1, c]
                    )


def fill_texture(chain: np.ndarray, image: np.ndarray) -> None:
    """Put an image (TEXTURE_SIZE, TEXTURE_SIZE, 3) float32 in 0..1 into a row (N, 3) uint8 of Scene.textures."""
    _mip_chain(image, chain)


def _yaw_rotation(yaw: float) -> np.ndarray:
    """local_from_world (3, 3) of something turned by yaw about z."""
    c, s = math.cos(yaw), math.sin(yaw)
    return np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])


_LAY_DOWN = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])  # local z along the parent's x


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
        self.rotation = _yaw_rotation(yaw)

    def centre(self, local: ArrayLike) -> np.ndarray:
        """World position (3,) of a point given in the furniture's own coordinates."""
        return self.rotation.T @ np.asarray(local, np.float64) + (self.x, self.y, 0.0)

    def box(self, local: ArrayLike, half: ArrayLike, texture: int, fit: bool = False, turn: float = 0.0) -> None:
        self.builder.add(BOX, self.centre(local), half, _yaw_rotation(self.yaw + turn), texture, fit)

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
        rotation = _yaw_rotation(self.yaw + turn)
        rotation = _LAY_DOWN @ rotation if lying else rotation
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
    _check_integer("seed", seed, 0, 2**63 - 1)
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


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def _bilinear(textures, row, u, v, level):
    """Bilinear, wrapped lookup in one mip level at texel coordinates (u, v) of level 0; returns r, g, b in 0..255."""
    shift = 8 - level
    mask = (1 << shift) - 1
    start = 87381 - ((1 << (2 * shift + 2)) - 1) // 3  # texels of the larger levels: a geometric series
    scale = 1.0 / (1 << level)
    x, y = u * scale - 0.5, v * scale - 0.5
    fx, fy = math.floor(x), math.floor(y)
    x0, y0 = int(fx) & mask, int(fy) & mask
    x1, y1 = (x0 + 1) & mask, (y0 + 1) & mask
    ax, ay = x - fx, y - fy
    i, j = start + (y0 << shift), start + (y1 << shift)
    p, q, s, t = i + x0, i + x1, j + x0, j + x1
    w11 = ax * ay
    w01, w10 = ax - w11, ay - w11
    w00 = 1.0 - ax - w10
    r = w00 * textures[row, p, 0] + w01 * textures[row, q, 0] + w10 * textures[row, s, 0] + w11 * textures[row, t, 0]
    g = w00 * textures[row, p, 1] + w01 * textures[row, q, 1] + w10 * textures[row, s, 1] + w11 * textures[row, t, 1]
    b = w00 * textures[row, p, 2] + w01 * textures[row, q, 2] + w10 * textures[row, s, 2] + w11 * textures[row, t, 2]
    return r, g, b


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def _sample(textures, row, u, v, lod):
    """Trilinear, wrapped texture lookup at texel coordinates (u, v) of level 0; returns r, g, b in 0..255."""
    level = int(lod)
    blend = lod - level
    # Close to a level, that level alone will do; the blend ramps over the middle 60 % between two levels.
    blend = min(max(1.6667 * (blend - 0.2), 0.0), 1.0)
    r, g, b = 0.0, 0.0, 0.0
    if blend < 1.0:
        r, g, b = _bilinear(textures, row, u, v, level)
    if blend > 0.0:
        r1, g1, b1 = _bilinear(textures, row, u, v, level + 1)
        r, g, b = r + blend * (r1 - r), g + blend * (g1 - g), b + blend * (b1 - b)
    return r, g, b


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def _macro(macro, u, v):
    """Bilinear, wrapped lookup in the slow noise field; returns 0..1."""
    fx, fy = math.floor(u), math.floor(v)
    mask = macro.shape[0] - 1
    x0, y0 = int(fx) & mask, int(fy) & mask
    x1, y1 = (x0 + 1) & mask, (y0 + 1) & mask
    ax, ay = u - fx, v - fy
    return (macro[y0, x0] * (1 - ax) + macro[y0, x1] * ax) * (1 - ay) + (
        macro[y1, x0] * (1 - ax) + macro[y1, x1] * ax
    ) * ay


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def _intersect(kind, rec, ox, oy, oz, dx, dy, dz, best):
    """Nearest ray parameter in (1e-6, best) at which the local ray enters the primitive, or best if there is none."""
    hx, hy, hz = rec[12], rec[13], rec[14]
    if kind == 0:
        near, far = -1e30, 1e30
        for axis in range(3):
            if axis == 0:
                o, d, h = ox, dx, hx
            elif axis == 1:
                o, d, h = oy, dy, hy
            else:
                o, d, h = oz, dz, hz
            if abs(d) < 1e-12:
                if abs(o) > h:
                    return best
                continue
            inverse = 1.0 / d
            t0, t1 = (-h - o) * inverse, (h - o) * inverse
            if t0 > t1:
                t0, t1 = t1, t0
            near, far = max(near, t0), min(far, t1)
            if near > far:
                return best
        return near if 1e-6 < near < best else best
    if kind == 1:
        a = dx * dx + dy * dy + dz * dz
        b = ox * dx + oy * dy + oz * dz
        disc = b * b - a * (ox * ox + oy * oy + oz * oz - hx * hx)
        if disc <= 0.0:
            return best
        t = (-b - math.sqrt(disc)) / a
        return t if 1e-6 < t < best else best
    a = dx * dx + dy * dy
    b = ox * dx + oy * dy
    c = ox * ox + oy * oy - hx * hx
    if a > 1e-14:
        disc = b * b - a * c
        if disc <= 0.0:
            return best
        t = (-b - math.sqrt(disc)) / a
        if abs(oz + t * dz) <= hz:
            return t if 1e-6 < t < best else best
    if abs(dz) > 1e-12:  # only the cap that faces the origin can be entered
        t = ((hz if oz > 0 else -hz) - oz) / dz
        x, y = ox + t * dx, oy + t * dy
        if abs(oz) > hz and x * x + y * y <= hx * hx:
            return t if 1e-6 < t < best else best
    return best


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def _is_dark(px, py, pz, wx, wy, wz, far, itself, shapes, records):
    """Whether a primitive other than `itself` stands between a point and the light at distance `far`, in direction (wx, wy, wz)."""
    for i in range(records.shape[0]):
        if i == itself:
            continue
        rec = records[i]
        cx, cy, cz = rec[0] - px, rec[1] - py, rec[2] - pz
        b = (cx * wx + cy * wy + cz * wz) / far
        if b < -rec[15] or b > far + rec[15] or cx * cx + cy * cy + cz * cz - b * b > rec[15] * rec[15]:
            continue
        ox = -(rec[3] * cx + rec[4] * cy + rec[5] * cz)
        oy = -(rec[6] * cx + rec[7] * cy + rec[8] * cz)
        oz = -(rec[9] * cx + rec[10] * cy + rec[11] * cz)
        lx = rec[3] * wx + rec[4] * wy + rec[5] * wz
        ly = rec[6] * wx + rec[7] * wy + rec[8] * wz
        lz = rec[9] * wx + rec[10] * wy + rec[11] * wz
        if _intersect(shapes[i, 0], rec, ox, oy, oz, lx, ly, lz, 0.999) < 0.999:
            return True
    return False


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def _shade(
    index, t, ox, oy, oz, dx, dy, dz, focal, room, shapes, records, room_shapes, room_records, lights, ambient,
    textures, macro, lamp, colour,
):  # fmt: skip
    """Add to colour (3,), linear light, what a ray sees at t on primitive `index`, or on room face -1 - index. lamp: radius of the
    lights, metres, for shadows; 0 for none."""
    px, py, pz = ox + t * dx, oy + t * dy, oz + t * dz
    if index < 0:
        face = -1 - index
        nx, ny, nz = 0.0, 0.0, 0.0
        if face < 2:
            nx = 1.0 if face == 0 else -1.0
            u, v = py, -pz
        elif face < 4:
            ny = 1.0 if face == 2 else -1.0
            u, v = px, -pz
        else:
            nz = 1.0 if face == 4 else -1.0
            u, v = px, py
        row = room_shapes[face]
        tr, tg, tb = room_records[face, 0], room_records[face, 1], room_records[face, 2]
        su = sv = room_records[face, 3]
        bu, bv = room_records[face, 4], room_records[face, 5]
        gloss = room_records[face, 6]
    else:
        rec = records[index]
        kind = shapes[index, 0]
        row = shapes[index, 1]
        fit = shapes[index, 2] == 1
        rx, ry, rz = px - rec[0], py - rec[1], pz - rec[2]
        lx = rec[3] * rx + rec[4] * ry + rec[5] * rz
        ly = rec[6] * rx + rec[7] * ry + rec[8] * rz
        lz = rec[9] * rx + rec[10] * ry + rec[11] * rz
        hx, hy, hz = rec[12], rec[13], rec[14]
        mx, my, mz = 0.0, 0.0, 0.0
        eu, ev = 1.0, 1.0
        if kind == 0:
            ex, ey, ez = abs(lx) - hx, abs(ly) - hy, abs(lz) - hz
            if ex > ey and ex > ez:
                mx = 1.0 if lx > 0 else -1.0
                u, v, eu, ev = ly * mx, -lz, hy, hz
            elif ey > ez:
                my = 1.0 if ly > 0 else -1.0
                u, v, eu, ev = -lx * my, -lz, hx, hz
            else:
                mz = 1.0 if lz > 0 else -1.0
                u, v, eu, ev = lx, -ly, hx, hy
        elif kind == 1:
            mx, my, mz = lx / hx, ly / hx, lz / hx
            u, v = math.atan2(ly, lx) * hx, -math.asin(min(max(mz, -1.0), 1.0)) * hx
            eu, ev = math.pi * hx, 0.5 * math.pi * hx
        elif abs(abs(lz) - hz) < 1e-6 and lx * lx + ly * ly < hx * hx * 0.999999:
            mz = 1.0 if lz > 0 else -1.0
            u, v, eu, ev = lx, -ly, hx, hx
        else:
            mx, my = lx / hx, ly / hx
            u, v = math.atan2(ly, lx) * hx, -lz
            eu, ev = math.pi * hx, hz
        nx = rec[3] * mx + rec[6] * my + rec[9] * mz
        ny = rec[4] * mx + rec[7] * my + rec[10] * mz
        nz = rec[5] * mx + rec[8] * my + rec[11] * mz
        tr, tg, tb = rec[16], rec[17], rec[18]
        su = sv = rec[19]
        bu, bv = rec[20], rec[21]
        if fit:
            su, sv = 128.0 / eu, 128.0 / ev
            bu, bv = 128.0, 128.0
        gloss = rec[22]
    length = math.sqrt(dx * dx + dy * dy + dz * dz)
    facing = abs(nx * dx + ny * dy + nz * dz) / length
    # The footprint of a pixel grows as 1/cos along one direction only; its geometric mean keeps grazing views crisp.
    footprint = t / focal * math.sqrt(su * sv / max(facing, 0.05))
    lod = 0.0 if footprint <= 1.0 else min(math.log2(footprint), 5.99)
    r, g, b = _sample(textures, row, u * su + bu, v * sv + bv, lod)
    slow = 0.70 + 0.6 * _macro(macro, u * 21.0 + bu, v * 21.0 + bv)  # breaks the repetition of wrapped textures
    r, g, b = r * r * tr * slow, g * g * tg * slow, b * b * tb * slow

    floor = pz / 0.18
    shade = 1.0 - 0.35 / (1.0 + floor * floor)
    if index < 0:
        for axis in range(2):
            if (axis == 0 and nx == 0.0) or (axis == 1 and ny == 0.0):
                edge = (room[axis] * 0.5 - abs(px if axis == 0 else py)) / 0.15
                shade *= 1.0 - 0.3 / (1.0 + edge * edge)
        if nz == 1.0:
            shade = shade / 0.65
        if nz == 0.0:
            edge = (room[2] - pz) / 0.15
            shade *= 1.0 - 0.3 / (1.0 + edge * edge)
    er, eg, eb = ambient[0], ambient[1], ambient[2]
    sky = 0.8 + 0.2 * nz
    er, eg, eb = er * sky, eg * sky, eb * sky
    shine = 0.0
    for k in range(lights.shape[0]):
        wx, wy, wz = lights[k, 0] - px, lights[k, 1] - py, lights[k, 2] - pz
        far = math.sqrt(wx * wx + wy * wy + wz * wz) + 1e-9
        cosine = (nx * wx + ny * wy + nz * wz) / far
        if cosine <= 0.0:
            continue
        if lamp > 0.0:  # one ray to some point of the light: where it is half hidden, pixels differ, as grain
            spread = math.sin(px * 12989.8 + py * 78233.0 + pz * 37719.0 + k) * 43758.5
            angle = 2.0 * math.pi * (spread - math.floor(spread))
            jx, jy = wx + lamp * math.cos(angle), wy + lamp * math.sin(angle)
            if _is_dark(px, py, pz, jx, jy, wz, math.sqrt(jx * jx + jy * jy + wz * wz), index, shapes, records):
                continue
        ratio = far / lights[k, 6]
        fall = cosine / (1.0 + ratio * ratio)
        er += lights[k, 3] * fall
        eg += lights[k, 4] * fall
        eb += lights[k, 5] * fall
        if gloss > 0.0:
            along = 2.0 * (nx * dx + ny * dy + nz * dz) / length
            mirror = (dx / length - along * nx) * wx + (dy / length - along * ny) * wy + (dz / length - along * nz) * wz
            mirror /= far
            if mirror > 0.0:
                m2 = mirror * mirror
                m8 = m2 * m2 * m2 * m2
                shine += gloss * m8 * m8 * m8 / (1.0 + ratio * ratio)
    norm = shade * 1.7 / 65025.0
    colour[0] += r * er * norm + shine
    colour[1] += g * eg * norm + shine
    colour[2] += b * eb * norm + shine


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def _trace(ox, oy, oz, dx, dy, dz, room, shapes, records, local_origin, near, tile, tile_count, length):
    """First hit of a ray from inside the room: parameter t and primitive index (or -1 - face)."""
    best, index = 1e30, -1
    if dx != 0.0:
        t = ((room[0] * 0.5 if dx > 0 else -room[0] * 0.5) - ox) / dx
        if t < best:
            best, index = t, -2 if dx > 0 else -1
    if dy != 0.0:
        t = ((room[1] * 0.5 if dy > 0 else -room[1] * 0.5) - oy) / dy
        if t < best:
            best, index = t, -4 if dy > 0 else -3
    if dz != 0.0:
        t = ((room[2] if dz > 0 else 0.0) - oz) / dz
        if t < best:
            best, index = t, -6 if dz > 0 else -5
    for k in range(tile_count):
        i = tile[k]
        if near[i] > best * length:  # sorted by distance: nothing further can be nearer
            break
        rec = records[i]
        cx, cy, cz = rec[0] - ox, rec[1] - oy, rec[2] - oz
        b = cx * dx + cy * dy + cz * dz
        if b * b < (cx * cx + cy * cy + cz * cz - rec[15] * rec[15]) * length * length:
            continue
        lx = rec[3] * dx + rec[4] * dy + rec[5] * dz
        ly = rec[6] * dx + rec[7] * dy + rec[8] * dz
        lz = rec[9] * dx + rec[10] * dy + rec[11] * dz
        t = _intersect(shapes[i, 0], rec, local_origin[i, 0], local_origin[i, 1], local_origin[i, 2], lx, ly, lz, best)
        if t < best:
            best, index = t, i
    return best, index


@njit(cache=True, parallel=False, nogil=True, error_model="numpy")
def _render_frame(
    pose, fx, fy, cx, cy, supersample, room, shapes, records, room_shapes, room_records, lights, ambient, textures,
    macro, lamp, with_colour, image, depth,
):  # fmt: skip
    """Ray-cast one frame into image (H, W, 3) uint8 and depth (H, W) float32."""
    height, width = depth.shape
    count = records.shape[0]
    ox, oy, oz = pose[0, 3], pose[1, 3], pose[2, 3]
    local_origin = np.empty((count, 3))
    near = np.empty(count)
    far = np.empty(count)
    for i in range(count):
        rx, ry, rz = ox - records[i, 0], oy - records[i, 1], oz - records[i, 2]
        for axis in range(3):
            k = 3 + 3 * axis
            local_origin[i, axis] = records[i, k] * rx + records[i, k + 1] * ry + records[i, k + 2] * rz
        far[i] = math.sqrt(rx * rx + ry * ry + rz * rz)
        near[i] = far[i] - records[i, 15]
    order = np.argsort(near, kind="mergesort")
    tile = np.empty(count, np.int64)
    colour = np.zeros(3)
    rays = 1 if supersample == 1 or not with_colour else 1 + supersample * supersample
    for top in range(0, height, _TILE):
        bottom = min(top + _TILE, height)
        for left in range(0, width, _TILE):
            right = min(left + _TILE, width)
            # Cone around the tile: axis through its centre, wide enough for its corners (a pixel of slack each side).
            ax, ay = ((left + right - 1) * 0.5 - cx) / fx, ((top + bottom - 1) * 0.5 - cy) / fy
            norm = math.sqrt(ax * ax + ay * ay + 1.0)
            cone = 1.0
            for corner in range(4):
                qx = ((left - 1 if corner % 2 == 0 else right) - cx) / fx
                qy = ((top - 1 if corner < 2 else bottom) - cy) / fy
                cone = min(cone, (ax * qx + ay * qy + 1.0) / (norm * math.sqrt(qx * qx + qy * qy + 1.0)))
            cone_angle = math.acos(min(cone, 1.0))
            vx = (pose[0, 0] * ax + pose[0, 1] * ay + pose[0, 2]) / norm
            vy = (pose[1, 0] * ax + pose[1, 1] * ay + pose[1, 2]) / norm
            vz = (pose[2, 0] * ax + pose[2, 1] * ay + pose[2, 2]) / norm
            tile_count = 0
            for k in range(count):
                i = order[k]
                if near[i] > 0.0:
                    along = vx * (records[i, 0] - ox) + vy * (records[i, 1] - oy) + vz * (records[i, 2] - oz)
                    limit = cone_angle + math.asin(min(records[i, 15] / far[i], 1.0))
                    if limit < math.pi and along < far[i] * math.cos(limit) - 1e-9:
                        continue
                tile[tile_count] = i
                tile_count += 1
            for row in range(top, bottom):
                for column in range(left, right):
                    colour[:] = 0.0
                    # One ray serves both when there is no supersampling; otherwise ray 0 gives depth, the rest colour.
                    for ray in range(rays):
                        qx, qy = column - cx, row - cy
                        if ray > 0:
                            qx += ((ray - 1) % supersample + 0.5) / supersample - 0.5
                            qy += ((ray - 1) // supersample + 0.5) / supersample - 0.5
                        qx, qy = qx / fx, qy / fy
                        # With camera z = 1 along the ray, the ray parameter is the z-depth itself.
                        dx = pose[0, 0] * qx + pose[0, 1] * qy + pose[0, 2]
                        dy = pose[1, 0] * qx + pose[1, 1] * qy + pose[1, 2]
                        dz = pose[2, 0] * qx + pose[2, 1] * qy + pose[2, 2]
                        length = math.sqrt(dx * dx + dy * dy + dz * dz)
                        t, index = _trace(
                            ox, oy, oz, dx, dy, dz, room, shapes, records, local_origin, near, tile, tile_count, length
                        )
                        if ray == 0:
                            depth[row, column] = t
                        if with_colour and (ray > 0 or rays == 1):
                            _shade(
                                index, t, ox, oy, oz, dx, dy, dz, fx * supersample, room, shapes, records, room_shapes,
                                room_records, lights, ambient, textures, macro, lamp, colour,
                            )  # fmt: skip
                    if not with_colour:
                        continue
                    for channel in range(3):
                        light = colour[channel] / (supersample * supersample)
                        light = light * (1.0 + 0.15 * light) / (1.0 + 0.6 * light)  # soft shoulder before clipping
                        image[row, column, channel] = np.uint8(min(math.sqrt(light) * 255.0 + 0.5, 255.0))


def _cast(
    scene: Scene,
    poses: np.ndarray,
    intrinsics: np.ndarray,
    width: int,
    height: int,
    threads: int,
    supersample: int,
    with_colour: bool,
    lamp: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """render() without its checks; depth only, and cheaper, where with_colour is false."""
    frames = len(poses)
    images = np.zeros((frames, height, width, 3) if with_colour else (frames, 1, 1, 3), np.uint8)
    depth = np.empty((frames, height, width), np.float32)
    fx, fy, cx, cy = (float(intrinsics[i]) for i in ((0, 0), (1, 1), (0, 2), (1, 2)))
    macro = _noise_bank()[0][5]

    def one(k: int) -> None:
        _render_frame(
            poses[k], fx, fy, cx, cy, supersample, scene.room, scene.shapes, scene.records, scene.room_shapes,
            scene.room_records, scene.lights, scene.ambient, scene.textures, macro, lamp, with_colour, images[k], depth[k],
        )  # fmt: skip

    if threads == 1 or frames == 1:
        for k in range(frames):
            one(k)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(one, range(frames)))
    return images, depth


def render(
    scene: Scene,
    world_from_camera: np.ndarray,
    intrinsics: np.ndarray,
    width: int,
    height: int,
    threads: int = 1,
    supersample: int = 1,
    lamp: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Ray-cast frames of a scene.

    world_from_camera: (S, 4, 4), every centre inside the room. intrinsics: (3, 3) pixels, pixel centres at integers.
    threads: frames rendered at the same time. supersample: rays per pixel along each axis, for colour only. lamp: radius
    of the lights in metres, which then throw shadows, soft as they are wide; 0 for no shadows, as the frozen splits have it.
    Returns images (S, H, W, 3) uint8 RGB without sensor effects, and depth (S, H, W) float32 z-depth in metres through
    each pixel's centre. Raises ValueError on wrong shapes, sizes out of range, or a camera outside the room.
    """
    for name, value, low, high in (
        ("width", width, 8, 4096),
        ("height", height, 8, 4096),
        ("threads", threads, 1, 256),
        ("supersample", supersample, 1, 8),
    ):
        _check_integer(name, value, low, high)
    _check_real("lamp", lamp, 0.0, 10.0)
    poses = np.ascontiguousarray(world_from_camera, np.float64)
    if poses.ndim != 3 or poses.shape[1:] != (4, 4):
        raise ValueError(f"world_from_camera has shape {poses.shape}; it must be (S, 4, 4): stack one matrix per frame")
    intrinsics = np.asarray(intrinsics, np.float64)
    if intrinsics.shape != (3, 3):
        raise ValueError(f"intrinsics has shape {intrinsics.shape}; it must be (3, 3): pass scene.intrinsics(w, h)")
    centres = poses[:, :3, 3]
    inside = (
        (np.abs(centres[:, :2]) < scene.room[:2] / 2).all(1) & (centres[:, 2] > 0) & (centres[:, 2] < scene.room[2])
    )
    if not inside.all():
        k = int(np.argmin(inside))
        raise ValueError(
            f"world_from_camera[{k}] has its centre at {centres[k].tolist()}, outside the room of size "
            f"{scene.room.tolist()} centred on x = y = 0 with z from 0 up: move the camera inside"
        )
    return _cast(scene, poses, intrinsics, int(width), int(height), int(threads), int(supersample), True, float(lamp))


def wave(rng: np.random.Generator, count: int, low_s: float, high_s: float) -> Callable[[np.ndarray], np.ndarray]:
    """Random unit-amplitude sum of sinusoids with periods in low_s..high_s; a function of time arrays."""
    periods = rng.uniform(low_s, high_s, count)
    phases = rng.uniform(0, 2 * np.pi, count)
    weights = rng.uniform(0.4, 1.0, count)
    weights = weights / weights.sum()
    return lambda t: (weights * np.sin(2 * np.pi * t[:, None] / periods + phases)).sum(axis=1)


def _draw_path(rng: np.random.Generator, centre: np.ndarray, shrink: float) -> Callable[[np.ndarray], np.ndarray]:
    """One candidate path: a function from times (T,) in seconds to world_from_camera (T, 4, 4)."""
    speed = rng.uniform(0.25, 0.75)
    period = rng.uniform(7, 14)
    reach = shrink * speed * period / (2 * np.pi) * 1.4
    walk = [wave(rng, 2, 0.7 * period, 1.5 * period) for _ in range(2)]
    bob = wave(rng, 2, 3, 8)
    shake = [wave(rng, 2, 0.6, 1.5) for _ in range(6)]
    rate, sweep = np.radians(rng.uniform(18, 42)), np.radians(rng.uniform(45, 150))
    yaw0, phase = rng.uniform(-np.pi, np.pi), rng.uniform(0, 2 * np.pi)
    pitch0 = np.radians(rng.uniform(-22, 1))
    pitch_wave, roll_wave = wave(rng, 2, 4, 9), wave(rng, 2, 3, 8)
    pitch_size, roll_size = np.radians(rng.uniform(3, 11)), np.radians(rng.uniform(0.5, 5))
    jitter = np.radians(rng.uniform(0.1, 0.6))
    lift = shrink * rng.uniform(0.05, 0.25)

    def path(t: np.ndarray) -> np.ndarray:
        # A triangle wave with rounded turns: the yaw rate stays near `rate` most of the time.
        yaw = yaw0 + sweep * 2 / np.pi * np.arcsin(0.96 * np.sin(rate * np.pi / (2 * 0.96 * sweep) * t + phase))
        yaw = yaw + 2 * jitter * shake[0](t)
        pitch = pitch0 + pitch_size * pitch_wave(t) + jitter * shake[1](t)
        roll = roll_size * roll_wave(t) + jitter * shake[2](t)
        position = centre + np.stack([reach * walk[0](t), reach * walk[1](t), lift * bob(t)], axis=1)
        position = position + shrink * 0.006 * np.stack([shake[k](t) for k in (3, 4, 5)], axis=1)
        cy, sy, cp, sp, cr, sr = (f(a) for a in (yaw, pitch, roll) for f in (np.cos, np.sin))
        forward = np.stack([cy * cp, sy * cp, sp], axis=1)
        level = np.stack([sy, -cy, np.zeros_like(cy)], axis=1)
        down = np.cross(forward, level)
        poses = np.zeros((len(t), 4, 4))
        poses[:, :3, 0] = cr[:, None] * level + sr[:, None] * down
        poses[:, :3, 1] = -sr[:, None] * level + cr[:, None] * down
        poses[:, :3, 2] = forward
        poses[:, :3, 3] = position
        poses[:, 3, 3] = 1
        return poses

    return path


def camera_path(
    scene: Scene, rng: np.random.Generator | int, frames: int, rate_hz: float = 3.0, motion: float = 1.0
) -> np.ndarray:
    """A smooth hand-held path through the free space of a scene.

    rng: a generator, or a seed. frames: number of poses. rate_hz: poses per second. motion: scales speed (0.2-0.8 m/s
    at 1) and rotation rate, by slowing time along the path. Returns world_from_camera (frames, 4, 4) float64; the
    camera keeps CLEARANCE_M from every surface. Raises ValueError on arguments out of range, and where the room has no
    free spot at all.
    """
    _check_integer("frames", frames, 1, 100_000)
    _check_real("rate_hz", rate_hz, 0.05, 1000.0)
    _check_real("motion", motion, 0.0, 10.0)
    if not isinstance(rng, np.random.Generator):
        _check_integer("rng", rng, 0, 2**63 - 1)
        rng = np.random.default_rng((int(rng), GENERATOR_VERSION, STREAM_PATH))
    times = np.arange(frames) * (motion / rate_hz)
    dense = np.linspace(0, times[-1], min(max(2, int(times[-1] * 15) + 2), 2000))

    top = min(2.0, scene.room[2] - 0.4)
    spots = rng.uniform([-0.5, -0.5, 0], [0.5, 0.5, 1], (400, 3)) * [*(scene.room[:2] - 0.7), top - 0.7] + [0, 0, 0.7]
    room_there = scene.clearance(spots)
    if room_there.max() < CLEARANCE_M + 0.02:
        raise ValueError(f"scene {scene.seed} leaves the camera {room_there.max():.2f} m of space: use another seed")
    spots = spots[room_there >= max(min(0.55, np.sort(room_there)[-20]), CLEARANCE_M + 0.02)]
    intrinsics = scene.intrinsics(16, 12)
    best, best_cost, shrink = None, np.inf, 1.0
    for attempt in range(400):
        if attempt % 12 == 11:
            shrink *= 0.8
        path = _draw_path(rng, spots[int(rng.integers(len(spots)))], shrink)
        sampled = path(dense)
        if scene.clearance(sampled[:, :3, 3]).min() < CLEARANCE_M:
            continue
        probe = sampled[np.linspace(0, len(sampled) - 1, 4).astype(int)]
        _, depth = _cast(scene, probe, intrinsics, 16, 12, 1, 1, False)
        middle = np.median(depth.reshape(4, -1), axis=1)
        close = (depth < 0.5).mean(axis=(1, 2)).max()
        low, high = np.quantile(depth.reshape(4, -1), [0.1, 0.9], axis=1)
        flat = np.maximum(1.6 - high / low, 0).max()  # a bare wall seen head-on teaches little
        cost = np.maximum(1.2 - middle, 0).max() + np.maximum(middle - 4.0, 0).max() + 2 * max(close - 0.1, 0.0) + flat
        if cost < best_cost:
            best, best_cost = path, cost
        if cost == 0 or (best is not None and attempt >= 60):
            break
    if best is None:
        raise ValueError(f"scene {scene.seed} has no collision-free path over {frames} frames: use another seed")
    return best(times)


@njit(cache=True, nogil=True, error_model="numpy")
def _degrade_frame(image, gain, falloff, blur, encode, shot, read, noise, start, out):
    """Vignetting, gain, 3-tap blur, signal-dependent noise and tone curve of one frame, in linear light."""
    height, width = image.shape[:2]
    linear = np.empty((height, width, 3), np.float32)
    cx, cy = 0.5 * (width - 1), 0.5 * (height - 1)
    scale = 1.0 / (cx * cx + cy * cy)
    for v in range(height):
        for u in range(width):
            dim = 1.0 - falloff * ((u - cx) * (u - cx) + (v - cy) * (v - cy)) * scale
            for c in range(3):
                value = image[v, u, c] / 255.0
                linear[v, u, c] = value * value * gain[c] * dim  # render() encodes with gamma 2
    row = np.empty((height, width, 3), np.float32)
    keep = 1.0 - 2.0 * blur
    for v in range(height):
        for u in range(width):
            a, b = max(u - 1, 0), min(u + 1, width - 1)
            for c in range(3):
                row[v, u, c] = keep * linear[v, u, c] + blur * (linear[v, a, c] + linear[v, b, c])
    last = encode.shape[0] - 1
    position = start
    for v in range(height):
        a, b = max(v - 1, 0), min(v + 1, height - 1)
        for u in range(width):
            for c in range(3):
                value = keep * row[v, u, c] + blur * (row[a, u, c] + row[b, u, c])
                value += noise[position] * math.sqrt(read * read + shot * max(value, 0.0))
                position += 1
                if position == noise.shape[0]:
                    position = 0
                out[v, u, c] = encode[int(min(max(value, 0.0), 1.0) * last)]


def degrade(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A camera's photometric flaws: exposure, white balance, vignetting, blur, noise, tone curve, fixed per sequence
    but for slight drift of exposure and blur between frames.

    images: (S, H, W, 3) uint8 RGB from render(). Returns the same shape and dtype. Raises ValueError otherwise.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise ValueError(f"images is {images.dtype} {images.shape}; it must be uint8 (S, H, W, 3): pass render()'s")
    # Auto exposure: bring the mean of linear light to a random target, so that dark rooms stay usable.
    level = np.square(images[:, ::4, ::4].astype(np.float32) / 255).mean()
    exposure = np.clip(rng.uniform(0.13, 0.32) / max(float(level), 1e-3), 0.3, 4.0)
    balance = np.exp(rng.normal(0, 0.07, 3))
    gamma = 1 / rng.uniform(1.9, 2.4)
    contrast = rng.uniform(-0.15, 0.25)
    x = np.linspace(0, 1, 4096) ** gamma
    x = x + contrast * (x * x * (3 - 2 * x) - x)
    encode = np.rint(255 * x).astype(np.uint8)
    falloff, blur0 = rng.uniform(0, 0.4), rng.uniform(0, 0.16)
    read, shot = rng.uniform(0.001, 0.008), rng.uniform(0.0001, 0.0012)
    # One draw of noise, read by each frame from its own starting point, costs an eighth of fresh noise per frame.
    noise = rng.standard_normal(images[0].size, np.float32)
    out = np.empty_like(images)
    for k, image in enumerate(images):
        gain = exposure * balance * np.exp(rng.normal(0, 0.03))
        blur = float(np.clip(blur0 + rng.normal(0, 0.02), 0, 0.2))
        start = int(rng.integers(image.size))
        _degrade_frame(image, gain, falloff, blur, encode, shot, read, noise, start, out[k])
    return out


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
    _check_integer("width", width, 8, 4096)
    _check_integer("height", height, 8, 4096)
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
    _check_integer("count", count, 1, len(SPLIT_SEEDS["test"]))
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


def _check_integer(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; it must be an integer from {low} to {high}: pass one in that range")


def _check_real(name: str, value: object, low: float, high: float) -> None:
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not number or not low <= value <= high:  # type: ignore[operator]
        raise ValueError(f"{name} is {value!r}; it must be a number from {low:g} to {high:g}: pass one in that range")
