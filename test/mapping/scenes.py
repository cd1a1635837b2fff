"""Views of a scene made of points, whose descriptors are random: what a mapper sees, without images and models."""

from __future__ import annotations

import numpy as np

from come_ros import geometry
from come_ros.mapping.view import View
from come_ros.types import F64, Alignment, Frame, Refinement, Submap

FOCAL, WIDTH, HEIGHT = 300.0, 320, 240


class Scene:
    """points: (n, 3) in the world. descriptors: (n, 128) uint8. Equal descriptors look alike."""

    def __init__(self, points: F64, descriptors: np.ndarray) -> None:
        self.points, self.descriptors = points, descriptors

    def view(self, world_from_camera: F64, unit: float = 1.0, seed: int = 0) -> View:
        """unit: lengths of the view per length of the world."""
        rng = np.random.default_rng(seed)
        there = geometry.apply(geometry.inverse(world_from_camera), self.points)
        z = there[:, 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            rays = there[:, :2] / z[:, None]
        seen = (z > 0.3) & (z < 8) & (np.abs(rays) * FOCAL < [WIDTH / 2, HEIGHT / 2]).all(axis=1)
        rays = rays[seen] + rng.normal(0, 0.3 / FOCAL, (np.count_nonzero(seen), 2))
        depth = unit * z[seen] * np.exp(rng.normal(0, 0.02, len(rays)))
        descriptors = self.descriptors[seen]
        place = descriptors.astype(np.float32).mean(axis=0) if len(rays) else np.zeros(128, np.float32)
        usual = float(np.median(depth)) if len(rays) else 1.0
        return View(
            rays.astype(np.float32), depth.astype(np.float32), descriptors, FOCAL, usual,
            place / max(float(np.linalg.norm(place)), 1e-9),
        )  # fmt: skip


def wall(length: float = 24.0, per_metre: int = 40, period: float | None = None, seed: int = 0) -> Scene:
    """A rough wall along x, at y = 2. period: it repeats after so many metres, to the last detail."""
    rng = np.random.default_rng(seed)
    span = length if period is None else period
    n = int(per_metre * span)
    points = np.stack([rng.uniform(0, span, n), 2 + rng.uniform(-0.5, 0.5, n), rng.uniform(-1, 1, n)], axis=1)
    descriptors = rng.gamma(0.3, 40, (n, 128)).clip(0, 255).astype(np.uint8)
    if period is not None:
        times = int(length / period)
        points = np.concatenate([points + [i * period, 0, 0] for i in range(times)])
        descriptors = np.tile(descriptors, (times, 1))
    return Scene(points, descriptors)


def along(x: F64, turn: float = 0.0) -> F64:
    """(N, 4, 4) world_from_camera of cameras that look at the wall from those places x (N,)."""
    yaw = geometry.rotation_from_vector(np.outer(np.full(len(x), turn), [0.0, 0.0, 1.0]))
    place = np.stack([x, np.zeros(len(x)), np.zeros(len(x))], axis=1)
    looking = geometry.rotation_from_vector([0.0, 0.0, np.pi / 2]) @ geometry.BODY_FROM_OPTICAL[:3, :3]
    return geometry.transform(yaw @ looking, place)


def drifting(poses: F64, seed: int = 0, turn: float = 0.004, way: float = 0.004) -> F64:
    """`poses` (N, 4, 4) as an odometry has them whose every step errs by so much, rad and metres."""
    rng = np.random.default_rng(seed)
    steps = geometry.inverse(poses[:-1]) @ poses[1:]
    noise = geometry.transform(
        geometry.rotation_from_vector(rng.normal(0, turn, (len(steps), 3))), rng.normal(0, way, (len(steps), 3))
    )
    out = [poses[0]]
    for step in steps @ noise:
        out.append(out[-1] @ step)
    return np.stack(out)


def submap_of(stamp_ns: int, pose: F64, depth: float = 2.0) -> Submap:
    """One keyframe, refined, at that pose of the odometry."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    k = np.array([[FOCAL / 20, 0, 7.5], [0, FOCAL / 20, 5.5], [0, 0, 1]])
    return Submap(
        (Frame(image, stamp_ns),), image[None, ::20, ::20], np.full((1, 12, 16), depth, np.float32), np.ones((1, 12, 16), np.float32),
        k[None], pose[None], Alignment(True, 4, 1.0), refinement=Refinement(refined=1.0),
    )  # fmt: skip
