"""Each source of metres against a scene whose unit is known, and what it leaves out."""

from __future__ import annotations

import itertools
from dataclasses import replace

import cv2
import numpy as np
import pytest
from fakes import room_depth, trajectory, truth_of

from come_ros import geometry
from come_ros.camera.preprocess import cover
from come_ros.scale.depth import implausible, read_depth
from come_ros.scale.height import HeightSource
from come_ros.scale.odometry import MOST_SLIPPING, OdometrySource
from come_ros.scale.reading import Reading, Readings, Seen
from come_ros.scale.rig import read_rig
from come_ros.scale.running import AGREE, Running
from come_ros.types import Frame

UNIT = 2.5  # metres in a unit of the model
UP = np.array([0.0, 0.0, 1.0])


def seen_of(truth, rows, frames=None, unit=UNIT, noise=0.0, **more) -> Seen:
    """What a perfect model with that unit predicts for some frames of a truth; noise: of its log depth, by blocks of the image."""
    frames = [truth.frames(True)[i] for i in rows] if frames is None else frames
    depth = truth.depth[list(rows)] / np.float32(unit)
    if noise:
        rng = np.random.default_rng(0)
        blocks = noise * rng.standard_normal((len(depth), 4, 5)).astype(np.float32)
        depth = depth * np.stack([np.exp(cv2.resize(b, depth.shape[:0:-1])) for b in blocks])
    poses = truth.world_from_camera[list(rows)].copy()
    poses[:, :3, 3] /= unit
    height, width = depth.shape[1:]
    plans = [cover(f.image.shape[1], f.image.shape[0], width, height) for f in frames]
    k = np.tile(truth.intrinsics, (len(frames), 1, 1))
    return Seen(frames, plans, depth.astype(np.float32), k, poses, UP, **more)


# depth


def sparse(depth: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """`depth` at a share of its pixels, 0 elsewhere."""
    keep = np.random.default_rng(seed).random(depth.shape) < share
    return np.where(keep, depth, 0).astype(np.float32)


def test_one_percent_of_the_depth_pixels_is_enough() -> None:
    truth = truth_of(trajectory("curve", 4), 120, 160, 140.0)
    frames = [
        replace(f, depth=sparse(d, 0.01, i)) for i, (f, d) in enumerate(zip(truth.frames(), truth.depth, strict=True))
    ]
    found = read_depth(seen_of(truth, range(4), frames, noise=0.1))
    assert len(found.readings) == 4 and not found.left_out
    off = np.array([r.log_metres for r in found.readings]) - np.log(UNIT)
    assert np.abs(off).max() < 0.08 and all(0.005 < r.sigma < 0.1 for r in found.readings)
    assert np.mean(np.abs(off) < 2 * np.array([r.sigma for r in found.readings])) >= 0.75


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: None, "no depth"),
        (lambda d: np.rint(1000 * d), "depth not in metres"),
        (lambda d: 1000 * d, "depth not in metres"),
        (lambda d: d / 1000, "depth not in metres"),
        (lambda d: np.full_like(d, np.nan), "no depth"),
        (lambda d: np.full_like(d, -1), "no depth"),
        (lambda d: sparse(d, 0.002), "too few pixels"),
        (lambda d: d[:, : d.shape[1] // 2], "depth of another shape"),
    ],
)
def test_depth_that_cannot_be_used_is_counted(change, reason) -> None:
    truth = truth_of(trajectory("static", 1), 56, 70, 60.0)
    depth = change(truth.depth[0])
    frame = replace(truth.frames()[0], depth=None if depth is None else depth.astype(np.float32))
    found = read_depth(seen_of(truth, [0], [frame]))
    assert not found.readings and found.left_out == {reason: 1}


def test_depth_of_another_size_is_the_same_depth() -> None:
    truth = truth_of(trajectory("static", 1), 56, 70, 60.0)
    frame = replace(truth.frames()[0], depth=cv2.resize(truth.depth[0], (140, 112), interpolation=cv2.INTER_NEAREST))
    (reading,) = read_depth(seen_of(truth, [0], [frame])).readings
    assert reading.log_metres == pytest.approx(np.log(UNIT), abs=0.01)


def test_whole_metres_nearby_are_metres() -> None:
    assert implausible(np.tile(np.float32([1, 2, 3, 4, 5]), (5, 1))) == ""


# another odometry


def driven(frames: int = 60, step: float = 0.08):
    """A truth on a curve through the room, and the other odometry's poses, exact."""
    truth = truth_of(trajectory("curve", frames, step), 56, 70, 60.0)
    world = geometry.transform(geometry.rotation_from_vector([0, 0, 1.0]), [5.0, -3.0, 0.0])
    return truth, world @ truth.world_from_camera


def noisy(poses: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """Odometry whose steps err by a share of their length, independently."""
    rng = np.random.default_rng(seed)
    out = [poses[0]]
    for before, now in itertools.pairwise(poses):
        step = geometry.inverse(before) @ now
        step[:3, 3] *= 1 + share * rng.standard_normal()
        out.append(out[-1] @ step)
    return np.stack(out)


def followed(
    truth, wheels, source: OdometrySource | None = None, window: int = 4, camera_noise: float = 0.0
) -> OdometrySource:
    source = source or OdometrySource(lambda: 0.3)
    rng = np.random.default_rng(3)
    for start in range(0, len(truth), window):
        rows = range(start, min(start + window, len(truth)))
        frames = [replace(truth.frames()[i], world_from_camera=None if wheels[i] is None else wheels[i]) for i in rows]
        seen = seen_of(truth, rows, frames)
        seen.poses[:, :3, 3] += camera_noise * rng.standard_normal((len(rows), 3))
        source.observe(seen)
    return source


@pytest.mark.parametrize("seed", range(5))
def test_odometry_with_two_percent_of_noise_tells_the_unit_within_three(seed) -> None:
    truth, wheels = driven()
    source = followed(truth, noisy(wheels, 0.02, seed), camera_noise=0.005)
    off = source.log_metres - np.log(UNIT)
    assert abs(off) < 0.03 and abs(off) < 2 * source.sigma < 0.1
    assert source.readings > 5 and source.stamp_ns == truth.stamps_ns[-1]


def test_wheels_that_slip_for_a_while_do_not_change_the_unit() -> None:
    truth, wheels = driven()
    slipping = wheels.copy()
    slipping[30:, :3, 3] += [1.0, 0.5, 0.0]  # a metre within one keyframe
    slipping[45:, :3, 3] -= [0.6, 0.9, 0.0]
    source = followed(truth, slipping)
    assert source.log_metres == pytest.approx(np.log(UNIT), abs=0.01)
    assert 2 <= source.left_out["slip or jump"] <= 10


def test_an_odometry_that_begins_with_a_lie_is_believed_once_it_tells_the_truth() -> None:
    truth, wheels = driven(100)
    lying = wheels.copy()
    lying[:12, :3, 3] = wheels[12, :3, 3] + 3 * (wheels[:12, :3, 3] - wheels[12, :3, 3])
    assert followed(truth, lying).log_metres == pytest.approx(np.log(UNIT), abs=0.02)
    source = OdometrySource(lambda: 0.3)
    source._reference = np.log(4 * UNIT)  # so wrong that all that follows looks like slip
    assert followed(truth, wheels, source).log_metres == pytest.approx(np.log(UNIT), abs=0.02)
    assert source.left_out["slip or jump"] > MOST_SLIPPING


def test_a_standing_robot_tells_nothing_and_is_counted() -> None:
    truth = truth_of(trajectory("static", 12), 56, 70, 60.0)
    source = followed(truth, truth.world_from_camera)
    assert np.isnan(source.log_metres) and source.readings == 0 and source.left_out == {"standing": 11}
    turning = truth_of(trajectory("rotation", 12), 56, 70, 60.0)
    source = followed(turning, turning.world_from_camera)
    assert np.isnan(source.log_metres) and not source.left_out


def test_odometry_that_is_missing_or_not_finite_is_counted() -> None:
    truth, wheels = driven(20)
    broken = list(wheels)
    broken[3] = None
    broken[7] = np.full((4, 4), np.nan)
    broken[8] = wheels[8] @ np.diag([1, 1, 2.0, 1])  # no rotation
    source = followed(truth, broken)
    assert source.left_out == {"no odometry": 1, "odometry not finite": 2}
    assert source.log_metres == pytest.approx(np.log(UNIT), abs=0.01)


def test_what_is_known_ages_and_a_break_in_the_chain_is_doubt() -> None:
    truth, wheels = driven()
    source = followed(truth, wheels)
    fresh = source.sigma
    followed(truth, [None] * len(truth), source)
    aged = source.sigma
    source.observe(seen_of(truth, [0]), lost=True)
    assert fresh < aged < 0.1 < source.sigma and source.log_metres == pytest.approx(np.log(UNIT), abs=0.01)


# a rig


def rig_seen(
    baseline: float, z: float = 3.0, unit: float = UNIT, focal: float = 260.0, extrinsics=None, texture: bool = True
) -> Seen:
    """Two cameras side by side before a wall at depth z, in metres."""
    height, width = 240, 320
    rng = np.random.default_rng(0)
    wall = cv2.resize(
        rng.integers(0, 255, (60, 90), dtype=np.uint8), (width + 120, height), interpolation=cv2.INTER_CUBIC
    )
    if not texture:
        wall[:] = 90
    k = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    shift = focal * baseline / z
    images = []
    for s in (0.0, shift):
        warp = np.float32([[1, 0, -(60 + s)], [0, 1, 0]])
        gray = cv2.warpAffine(wall, warp, (width, height), flags=cv2.INTER_CUBIC)
        images.append(np.repeat(gray[..., None], 3, axis=2))
    places = extrinsics or [geometry.transform(np.eye(3), [x, 0, 0]) for x in (0.0, baseline)]
    frames = [
        Frame(image, 1, name, k, base_from_camera=place)
        for image, name, place in zip(images, ("left", "right"), places, strict=True)
    ]
    depth = np.full((2, 126, 168), z / unit, np.float32)
    plans = [cover(width, height, 168, 126)] * 2
    poses = np.stack([np.eye(4) if p is None else p for p in places])
    model = np.tile(k, (2, 1, 1))
    return Seen(frames, plans, depth, model, poses, UP, cameras=2)


@pytest.mark.parametrize("known", [np.nan, np.log(UNIT), np.log(1.3 * UNIT)])
@pytest.mark.parametrize("baseline", [0.1, 0.3])
def test_a_rig_triangulates_the_unit(baseline, known) -> None:
    found = read_rig(rig_seen(baseline), known)
    (reading,) = found.readings
    assert reading.log_metres == pytest.approx(np.log(UNIT), abs=0.02) and 0 < reading.common < 0.1


def test_cameras_of_different_size_and_focal_length_are_a_rig_as_well() -> None:
    seen = rig_seen(0.1)
    left, right = seen.frames
    k = right.intrinsics.copy()
    k[:2, 2] += 0.5
    k[:2] *= 1.25
    k[:2, 2] -= 0.5
    larger = np.asarray(cv2.resize(right.image, (400, 300), interpolation=cv2.INTER_CUBIC))
    (reading,) = read_rig(
        replace(seen, frames=[left, replace(right, image=larger, intrinsics=k)]), np.log(UNIT)
    ).readings
    assert reading.log_metres == pytest.approx(np.log(UNIT), abs=0.04)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda: rig_seen(0.1, extrinsics=[np.eye(4), np.eye(4)]), "cameras at the same place"),
        (lambda: rig_seen(0.1, extrinsics=[np.eye(4), None]), "extrinsics unknown"),
        (lambda: rig_seen(0.1, texture=False), "no texture"),
        (lambda: rig_seen(0.004), "too far for the baseline"),
        (lambda: rig_seen(0.1, extrinsics=[np.eye(4), geometry.transform(geometry.rotation_from_vector([0, 2.0, 0]), [0.1, 0, 0])]),
         "no common view"),
    ],
)  # fmt: skip
def test_a_rig_that_tells_nothing_says_why(made, reason) -> None:
    found = read_rig(made(), np.nan)
    assert not found.readings and found.left_out == {reason: 1}


# the floor


def walking(height: float, pitch: float, count: int = 12, floor_z: float = -1.5, noise: float = 0.03):
    """A camera at that height over the floor of the box room, looking down by `pitch`, rad."""
    poses = []
    for i in range(count):
        down = geometry.rotation_from_vector([0, pitch, 0])
        turn = geometry.rotation_from_vector([0, 0, 0.1 * i]) @ down @ geometry.BODY_FROM_OPTICAL[:3, :3]
        poses.append(geometry.transform(turn, [-2 + 0.1 * i, 0.1, floor_z + height]))
    return truth_of(np.stack(poses), 96, 128, 110.0)


def floor_source(truth, height: float, level: bool = True, noise: float = 0.03) -> HeightSource:
    source = HeightSource(height)
    for start in range(0, len(truth), 4):
        rows = range(start, start + 4)
        source.observe(seen_of(truth, rows, noise=noise, level=level))
    return source


@pytest.mark.parametrize("level", [True, False])
@pytest.mark.parametrize(("height", "pitch"), [(1.2, 0.3), (0.5, 0.2), (1.5, 0.6)])
def test_the_height_over_the_floor_tells_the_unit(height, pitch, level) -> None:
    source = floor_source(walking(height, pitch), height, level)
    off = source.log_metres - np.log(UNIT)
    assert abs(off) < 0.08 and abs(off) < 2 * source.sigma and source.readings == 3


def test_the_height_is_that_of_the_first_of_several_cameras() -> None:
    low, high = walking(0.5, 0.2, 4), walking(1.5, 0.6, 4)
    one, two = (seen_of(truth, range(4)) for truth in (low, high))
    both = {
        name: np.stack([getattr(s, name) for s in (one, two)], axis=1).reshape(8, *getattr(one, name).shape[1:])
        for name in ("depth", "intrinsics", "poses")
    }
    together, alone = HeightSource(0.5), HeightSource(0.5)
    frames, plans = ([getattr(s, n)[i] for i in range(4) for s in (one, two)] for n in ("frames", "plans"))
    together.observe(Seen(frames, plans, up=UP, level=True, cameras=2, **both))
    alone.observe(replace(one, level=True))
    assert alone.readings == 1 and together.log_metres == pytest.approx(alone.log_metres, abs=1e-9)


def test_a_floor_leans_where_the_first_camera_was_not_level() -> None:
    truth = walking(1.2, 0.3)
    tilted = geometry.transform(geometry.rotation_from_vector([0, np.deg2rad(10), 0]), np.zeros(3))
    source = HeightSource(1.2)
    for start in range(0, len(truth), 4):
        seen = seen_of(truth, range(start, start + 4), noise=0.03)
        source.observe(replace(seen, poses=tilted @ seen.poses))
    assert abs(source.log_metres - np.log(UNIT)) < min(0.15, 2 * source.sigma)


def test_without_a_floor_in_sight_there_is_no_unit() -> None:
    truth = walking(1.2, -0.7)  # looks up
    source = floor_source(truth, 1.2)
    assert np.isnan(source.log_metres) and source.left_out == {"no floor in sight": 12}


def test_a_table_in_one_window_is_no_floor_once_the_floor_is_seen() -> None:
    low, high = walking(0.4, 0.5, 4), walking(1.2, 0.4)
    source = HeightSource(1.2)
    source.observe(seen_of(low, range(4), level=True))  # 0.4 m above a plane: a table
    assert abs(source.log_metres - np.log(UNIT)) > 0.5
    for start in range(0, len(high), 4):
        source.observe(seen_of(high, range(start, start + 4), level=True))
    assert source.log_metres == pytest.approx(np.log(UNIT), abs=0.05)


# the running estimate


def running(values, sigma: float = 0.03, drift: float = 0.01) -> Running:
    source = Running(lambda seen: Readings(), drift, 0.0)
    for i, value in enumerate(values):
        source._variance += 4 * drift**2
        source.add([Reading(i + 1, float(value), sigma)])
    return source


def test_a_unit_that_wanders_is_followed_within_its_sigma() -> None:
    inside = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        level = np.cumsum(0.02 * rng.standard_normal(40))
        source = running(level + 0.03 * rng.standard_normal(40))
        inside.append(abs(source.log_metres - level[-1]) < 2 * source.sigma)
        assert 0.01 < source.sigma < 0.03
    assert np.mean(inside) >= 0.9


def test_single_lies_count_little_and_many_that_agree_are_the_truth() -> None:
    assert abs(running([0.0] * 20 + [1.0]).log_metres) < 0.1
    assert running([1.0] * 2 + [0.0] * AGREE).log_metres == pytest.approx(0.0, abs=0.1)
    assert running([1.0] + [0.0] * 12).log_metres == pytest.approx(0.0, abs=0.1)


def test_what_all_readings_share_never_averages_out() -> None:
    source = Running(lambda seen: Readings(), 0.001, 0.02)
    for i in range(200):
        source.add([Reading(i + 1, 0.0, 0.01, common=0.04)])
    assert source.sigma > np.hypot(0.02, 0.04)


def test_room_depth_is_what_the_floor_tests_rely_on() -> None:
    pose = walking(1.2, 0.3, 1).world_from_camera[0]
    k = np.array([[110.0, 0, 63.5], [0, 110.0, 47.5], [0, 0, 1]])
    points = geometry.apply(pose, geometry.unproject(room_depth(pose, k, 96, 128).astype(np.float64), k))
    assert points[..., 2].min() == pytest.approx(-1.5, abs=1e-5)
