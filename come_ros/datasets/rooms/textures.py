"""Procedural textures of the rooms: plaster, wood, tiles, carpets, books, printed pages, and their mip levels."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import numpy as np
from numba import njit

from .splits import GENERATOR_VERSION

TEXTURE_SIZE = 256
MIP_LEVELS = 7  # 256 ... 4
_MIP_OFFSETS = np.cumsum([0] + [(TEXTURE_SIZE >> level) ** 2 for level in range(MIP_LEVELS)]).astype(np.int64)


@functools.lru_cache(maxsize=1)
def noise_bank() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
    return _shifted(noise_bank()[0][rng.integers(8)], rng)


def _grain(rng: np.random.Generator) -> np.ndarray:
    return _shifted(noise_bank()[1][rng.integers(4)], rng)


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
    ids = _shifted(noise_bank()[2][rng.integers(4)], rng)
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
    return image * (0.7 + 0.5 * noise_bank()[1][0])[..., None]


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
