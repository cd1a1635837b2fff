"""The hand-held camera in a room: its path, and its photometric flaws."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numba import njit

from .raycast import cast_rays
from .scene import Scene
from .splits import GENERATOR_VERSION, STREAM_PATH, check_integer, check_real

CLEARANCE_M = 0.30  # camera centre to any surface; keeps z-depth above 0.1 m at every field of view in use


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
    check_integer("frames", frames, 1, 100_000)
    check_real("rate_hz", rate_hz, 0.05, 1000.0)
    check_real("motion", motion, 0.0, 10.0)
    if not isinstance(rng, np.random.Generator):
        check_integer("rng", rng, 0, 2**63 - 1)
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
        _, depth = cast_rays(scene, probe, intrinsics, 16, 12, 1, 1, False)
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
