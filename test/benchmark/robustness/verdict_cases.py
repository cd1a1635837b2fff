"""Sequences on which the verdict is measured: good ones, worthless ones, and what lies between. Two halves that share no room, no recording
and no panorama: on TUNE the limits of come_ros/verdict/judge.py were chosen, TEST was only scored."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from come_ros.datasets.panoramas import load_panorama, pinhole, turning_path, view
from come_ros.datasets.rooms import raycast, staged
from come_ros.datasets.rooms.camera import degrade
from come_ros.datasets.rooms.returning import returning_room
from come_ros.datasets.rooms.rooms import SyntheticSequence, render_sequence
from come_ros.datasets.rooms.scene import make_scene
from come_ros.datasets.sequence import open_sequence
from come_ros.datasets.stamps import matched, nearest
from come_ros.types import F32, F64, I64, U8

TUNE, TEST = HALVES = "tune", "test"
FIRST_ROOM = {TUNE: 20_000_910, TEST: 20_000_960}  # no training, no test split and no other benchmark uses these seeds
SIZE = (320, 240)
EPOCH_NS = 1_700_000_000_000_000_000
FIELD_OF_VIEW = math.radians(65)
OF_PANORAMAS = ("looking", "unrelated", "still camera, pictures", "street")
"""how the names of cases begin that are made of panoramas"""
THUMBNAIL = (64, 32)  # px
SAME = 0.98  # correlation of two thumbnails of one panorama; of others it is 0.93 at most in the training's material


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """images: (H, W, 3) each. poses: world_from_camera (S, 4, 4), NaN where unknown. depth: (H, W) each, m. intrinsics: (3, 3), None if the
    camera is uncalibrated. photographs: without times, so each is used. worthless: whatever comes of it, as there is no scene."""

    images: Sequence[U8]
    stamps_ns: I64
    poses: F64 | None = None
    depth: Sequence[F32 | None] | None = None
    intrinsics: F64 | None = None
    photographs: bool = False
    worthless: bool = False

    def at(self, rows: Sequence[int] | np.ndarray) -> Case:
        """The case with these images, in this order, at the times of the first ones."""
        return dataclasses.replace(
            self,
            images=[self.images[i] for i in rows],
            stamps_ns=self.stamps_ns[: len(rows)],
            poses=None if self.poses is None else self.poses[rows],
            depth=None if self.depth is None else [self.depth[i] for i in rows],
        )

    def seen(self, change: Callable[[U8], U8]) -> Case:
        """The case with changed images."""
        return dataclasses.replace(self, images=[np.ascontiguousarray(change(image)) for image in self.images])

    def as_photographs(self) -> Case:
        return dataclasses.replace(self, photographs=True, intrinsics=None)


def cases(half: str, recordings: Path, panoramas: Path | None) -> dict[str, Callable[[], Case]]:
    """Name -> how it is made. recordings: folder of the TUM sequences. panoramas: folder with Radiance files, None leaves out what is made
    of them."""
    first = FIRST_ROOM[half]
    out: dict[str, Callable[[], Case]] = {}

    def add(name: str, count: int, make: Callable[[int], Case]) -> None:
        for i in range(count):
            out[f"{name} {i}" if count > 1 else name] = lambda i=i: make(i)  # type: ignore[misc]

    add("room", 6, lambda i: room(first + i))
    add("room, slowly", 2, lambda i: room(first + 6 + i, 80, 10.0, 0.6))
    add("room at 2 Hz", 3, lambda i: room(first + 8 + i, 40, 2.0))
    add("room in photographs", 3, lambda i: room(first + 11 + i, 30, 1.5).as_photographs())
    add("room, there and back", 3, lambda i: rendered(returning_room(first + 14 + i, 70, *SIZE, 8.0)))
    add("desk", 3, lambda i: watched(first + 17 + i, staged.stage_desk))
    add("bare floor", 3, lambda i: watched(first + 20 + i, staged.stage_floor))
    add("room, uncalibrated", 2, lambda i: dataclasses.replace(room(first + 23 + i), intrinsics=None))
    add("photographs 2.5 s apart", 3, lambda i: room(first + 25 + i, 29, 0.4).as_photographs())
    add("photographs 5 s apart", 2, lambda i: room(first + 28 + i, 29, 0.2).as_photographs())
    add("shuffled room", 3, lambda i: shuffled(room(first + i, 60, 2.0), i))
    add("noise", 1, lambda i: nothing(lambda rng: rng.integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8)))
    add(
        "coarse noise",
        1,
        lambda i: nothing(lambda rng: cv2.resize(rng.integers(0, 256, (15, 20, 3), dtype=np.uint8), SIZE)),
    )
    add("grey", 1, lambda i: nothing(lambda rng: np.full((*SIZE[::-1], 3), rng.integers(118, 121), np.uint8)))
    add("dark", 1, lambda i: nothing(lambda rng: rng.poisson(2.0, (*SIZE[::-1], 3)).astype(np.uint8)))
    add("still camera", 2, lambda i: still(first + 30 + i))
    add("still camera, a film on a screen", 1, lambda i: film(first + 33))
    add("out of focus", 2, lambda i: room(first + i).seen(lambda im: cv2.GaussianBlur(im, (0, 0), (5, 10)[i])))
    add("mirrored floor", 2, lambda i: room(first + 2 + i).seen(mirrored))
    add("upside down", 2, lambda i: turned(room(first + 4 + i), 2))
    add("on its side", 2, lambda i: turned(room(first + i), 1))
    if panoramas is not None:

        def mine() -> tuple[Path, ...]:
            return different(panoramas)[HALVES.index(half) :: 2]

        add("looking around", 3, lambda i: looking_around(mine()[3 * i], first + i))
        add(
            "looking far around",
            2,
            lambda i: looking_around(mine()[3 * i + 1], first + i, 29, far=True).as_photographs(),
        )
        add("unrelated photographs", 2, lambda i: unrelated(mine(), first + i))
        add("still camera, pictures on a screen", 1, lambda i: screen(first + 32, unrelated(mine(), first, 20).images))
        for i, step in enumerate((1.0, 3.0, 6.0, 10.0)):
            add(f"street, every {step:g} m", 1, lambda _, i=i, step=step: street(mine()[i], first + i, step))  # type: ignore[misc]
    if half == TUNE:
        add("fr3_cabinet", 1, lambda i: recorded(recordings / "tum_fr3_cabinet"))
        add("fr1_rpy", 1, lambda i: recorded(recordings / "tum_fr1_rpy"))
        add("fr1_rpy_long, begin", 1, lambda i: recorded(recordings / "tum_fr1_rpy_long", range(120)))
        add("shuffled fr3_office", 1, lambda i: worthless(shuffled(recorded(recordings / "tum_fr3_office"), 1)))
    else:
        add("fr3_office", 1, lambda i: recorded(recordings / "tum_fr3_office"))
        add("fr1_rpy_long, end", 1, lambda i: recorded(recordings / "tum_fr1_rpy_long", range(200, 320)))
        add("shuffled fr3_cabinet", 1, lambda i: worthless(shuffled(recorded(recordings / "tum_fr3_cabinet"), 1)))
        add(
            "two recordings in turn",
            1,
            lambda i: mixed(*(recorded(recordings / f"tum_{n}") for n in ("fr1_rpy", "fr3_cabinet"))),
        )
    return out


# Rooms


def rendered(s: SyntheticSequence) -> Case:
    return Case(list(s.images), np.asarray(s.stamps_ns), s.world_from_camera, list(s.depth), s.intrinsics)


def room(seed: int, frames: int = 56, rate_hz: float = 5.0, motion: float = 1.0) -> Case:
    """A walk through a furnished room."""
    return rendered(render_sequence(seed, frames, *SIZE, rate_hz, motion))


def watched(seed: int, stage: Callable[..., staged.Stage], frames: int = 45) -> Case:
    """A camera that goes round something, or turns on the spot."""
    rng = np.random.default_rng((seed, 77))
    while True:
        set_up = stage(make_scene(seed), rng)
        poses = staged.watching_path(set_up, rng, frames, 5.0)
        if poses is not None:
            break
    k = set_up.scene.intrinsics(*SIZE)
    images, depth = raycast.render(set_up.scene, poses, k, *SIZE, 1)
    return Case(list(degrade(images, rng)), stamps(frames), poses, list(depth), k)


def still(seed: int, frames: int = 45) -> Case:
    """A camera that stands still, with noise."""
    one, rng = room(seed, 2), np.random.default_rng(seed)
    noisy = [
        np.clip(one.images[0] + rng.normal(0, 3, one.images[0].shape), 0, 255).astype(np.uint8) for _ in range(frames)
    ]
    assert one.poses is not None and one.depth is not None
    return Case(
        noisy, stamps(frames), np.repeat(one.poses[:1], frames, axis=0), [one.depth[0]] * frames, one.intrinsics
    )


def screen(seed: int, pictures: Sequence[U8], frames: int = 45, every: int = 3) -> Case:
    """A camera that stands still before a screen with another picture every `every` images."""
    one = still(seed, frames)
    images = []
    for i, image in enumerate(one.images):
        images.append(image.copy())
        images[-1][15:225, 20:300] = cv2.resize(pictures[i // every % len(pictures)], (280, 210))
    return dataclasses.replace(one, images=images, depth=None, worthless=True)


def film(seed: int, frames: int = 45) -> Case:
    """A camera that stands still before a screen with the film of one that walks."""
    return screen(seed, room(seed + 1, frames).images, frames, 1)


def mirrored(image: U8) -> U8:
    """The lower third shows the part above it upside down, as a polished floor does."""
    out, edge = image.copy(), 2 * len(image) // 3
    out[edge:] = (0.9 * image[2 * edge - len(image) : edge][::-1]).astype(np.uint8)
    return out


def turned(case: Case, quarters: int) -> Case:
    """A camera mounted turned by quarters of a circle, uncalibrated."""
    c, s = (round(f(quarters * math.pi / 2)) for f in (math.cos, math.sin))
    roll = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    assert case.poses is not None and case.depth is not None
    turn = case.seen(lambda image: np.rot90(image, quarters))
    depth = [None if d is None else np.rot90(d, quarters) for d in case.depth]
    return dataclasses.replace(turn, poses=case.poses @ roll, depth=depth, intrinsics=None)


# What is no scene, or not in order


def shuffled(case: Case, seed: int) -> Case:
    return case.at(np.random.default_rng(seed).permutation(len(case.images)))


def worthless(case: Case) -> Case:
    return dataclasses.replace(case, poses=None, depth=None, worthless=True)


def nothing(image: Callable[[np.random.Generator], U8], frames: int = 40) -> Case:
    return Case([image(np.random.default_rng(i)) for i in range(frames)], stamps(frames), worthless=True)


def mixed(a: Case, b: Case, frames: int = 30) -> Case:
    images = [image for pair in zip(a.images, b.images, strict=False) for image in pair][:frames]
    return Case(images, stamps(frames), photographs=True, worthless=True)


# Photographs from panoramas


def looking_around(path: Path, seed: int, frames: int = 45, far: bool = False) -> Case:
    """A camera that turns on the spot. far: by about 50 degrees from image to image."""
    picture, rng, k = panorama(path), np.random.default_rng(seed), pinhole(FIELD_OF_VIEW, SIZE)
    if far:
        turns = np.stack(
            [heading(i * math.radians(50) + rng.normal(0, 0.2), rng.normal(0, 0.1)) for i in range(frames)]
        )
    else:
        turns = turning_path(rng, frames, FIELD_OF_VIEW)
    poses = np.tile(np.eye(4), (frames, 1, 1))
    poses[:, :3, :3] = turns
    return Case([view(picture, turn, k, SIZE) for turn in turns], stamps(frames), poses, None, k)


def unrelated(paths: Sequence[Path], seed: int, frames: int = 29) -> Case:
    """Each photograph of another place."""
    rng, images = np.random.default_rng(seed), []
    for i in range(frames):
        k = pinhole(math.radians(rng.uniform(50, 80)), SIZE)
        images.append(
            view(panorama(paths[i % len(paths)]), heading(rng.uniform(-math.pi, math.pi), rng.normal(0, 0.2)), k, SIZE)
        )
    return Case(images, stamps(frames), photographs=True, worthless=True)


def street(path: Path, seed: int, step: float, frames: int = 29) -> Case:
    """Photographs `step` m apart along a street: two rows of houses, 8 m wide each and set back differently, a road and a sky, with the
    textures of a panorama. A likeness of what people take with a phone, not of any place."""
    picture, rng, k = panorama(path), np.random.default_rng(seed), pinhole(FIELD_OF_VIEW, SIZE)
    height, width = picture.shape[:2]
    facades = [p[height // 3 : height // 2 + height // 8] for p in (picture, np.roll(picture, width // 3, axis=1))]
    road, half_width, roof, eye = picture[-height // 4 :], 6.0, 9.0, 1.6
    v, u = np.mgrid[: SIZE[1], : SIZE[0]]
    rays = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones(u.shape)], axis=-1)
    set_back = rng.integers(0, 3, 400) / 2  # of each house, m
    images, poses, depths, along = [], [], [], 0.0
    for _ in range(frames):
        along += step * rng.uniform(0.7, 1.3)
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = heading(rng.normal(0, 0.25), rng.normal(0.03, 0.05)), (rng.normal(0, 0.8), 0, along)
        ways, (x, _, z) = rays @ pose[:3, :3].T, pose[:3, 3]
        azimuth = np.arctan2(ways[..., 0], ways[..., 2])
        elevation = np.minimum(np.arcsin(ways[..., 1] / np.linalg.norm(ways, axis=-1)), -0.02)
        row, column = (elevation / math.pi + 0.5) * height, (azimuth / (2 * math.pi) + 0.5) * width
        image = picture[row.astype(int).clip(0, height - 1), column.astype(int) % width].copy()
        depth = np.full(u.shape, np.inf)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            t = eye / ways[..., 1]
            on = (t > 0) & (t < 200) & (np.abs(x + t * ways[..., 0]) < half_width + 2)
            there = np.abs(x + t[on] * ways[on][:, 0]), z + t[on] * ways[on][:, 2]
            image[on] = road[(there[0] * len(road) / 9).astype(int) % len(road), (there[1] * 40).astype(int) % width]
            depth[on] = t[on]
            for side, facade in zip((-1, 1), facades, strict=True):
                for back in np.unique(set_back):
                    t = (side * (half_width + back) - x) / ways[..., 0]
                    up, far = eye - t * ways[..., 1], z + t * ways[..., 2]
                    on = (t > 0) & (t < depth) & (up > 0) & (up < roof)
                    on &= set_back[(np.where(on, far, 0) / 8).astype(int) % len(set_back)] == back
                    scale = len(facade) / roof
                    image[on] = facade[
                        ((roof - up[on]) * scale).astype(int).clip(0, len(facade) - 1),
                        (far[on] * scale).astype(int) % width,
                    ]
                    depth[on] = t[on]
        images.append(cv2.GaussianBlur(image, (3, 3), 0))
        poses.append(pose)
        depths.append(np.where(np.isfinite(depth), depth, np.nan).astype(np.float32))
    return Case(images, stamps(frames), np.stack(poses), depths, None, photographs=True)


def panorama(path: Path) -> U8:
    """Raises FileNotFoundError."""
    picture = load_panorama(path)
    if picture is None:
        raise FileNotFoundError(f"{path} is no panorama: give a folder of equirectangular Radiance files (.hdr)")
    return picture


@functools.cache
def different(folder: Path) -> tuple[Path, ...]:
    """The panoramas in a folder, sorted; of those that show the same under several names the first, so that halves share none."""
    out: list[Path] = []
    seen = np.empty((0, THUMBNAIL[0] * THUMBNAIL[1]))
    for path in sorted(folder.rglob("*.hdr")):
        small = cv2.resize(panorama(path), THUMBNAIL, interpolation=cv2.INTER_AREA).mean(axis=2).ravel()
        small = (small - small.mean()) / small.std() / math.sqrt(small.size)
        if (seen @ small < SAME).all():
            seen = np.vstack([seen, small])
            out.append(path)
    return tuple(out)


def heading(yaw: float, tilt: float) -> F64:
    """(3, 3) world_from_camera of a camera turned to the right, then tilted down."""
    (cy, sy), (ct, st) = ((math.cos(a), math.sin(a)) for a in (yaw, -tilt))
    return np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]]) @ np.array([[1, 0, 0], [0, ct, -st], [0, st, ct]])


# Recordings


def recorded(folder: Path, part: range | None = None) -> Case:
    with open_sequence(folder) as sequence:
        frames, truth, depths = list(sequence.iter_frames()), sequence.truth(), dict(sequence.iter_depth())
    frames = [frames[i] for i in part] if part is not None else frames
    times = [frame.stamp_ns for frame in frames]
    real, known = matched(times, truth), sorted(depths)
    return Case(
        [frame.image for frame in frames],
        np.array(times),
        np.stack([real.get(t, np.full((4, 4), np.nan)) for t in times]),
        [None if i is None else depths[known[i]] for i in nearest(times, known)] if known else None,
        frames[0].intrinsics,
    )


def stamps(frames: int, rate_hz: float = 5.0) -> I64:
    return np.asarray(EPOCH_NS + np.arange(frames) * round(1e9 / rate_hz), np.int64)
