"""Odometry at the camera's rate: poses of all images from points."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import numpy as np
import pytest

from come_ros.config import Config
from come_ros.geometry import (
    inverse,
    project,
    rotation_angle,
    rotation_from_vector,
    transform,
)
from come_ros.tracking.odometry import HISTORY, UNKNOWN, Odometry
from come_ros.types import Frame, Landmarks, Observations

K = np.array([[300.0, 0, 159.5], [0, 300, 119.5], [0, 0, 1]])
STEP_NS = 50_000_000
POINTS = np.random.default_rng(0).uniform([-4, -2, 3], [4, 2, 7], (600, 3))


def pose_at(i: int) -> np.ndarray:
    return transform(rotation_from_vector([0.0, 0.01 * i, 0.002 * i]), [0.02 * i, 0.01 * np.sin(0.3 * i), 0.0])


class World:
    """Observations that a tracker would give, exact but for `noise` px, and landmarks that a window would find."""

    def __init__(self, config: Config | None = None, noise: float = 0.0) -> None:
        self.odometry = Odometry(config or Config())
        self.odometry._seen = self.seen
        self.noise, self.blind, self.now = np.random.default_rng(1), False, 0
        self.sigma = noise

    def seen(self, tracker: object, shutter: object, frame: Frame) -> Observations:
        pixels = project((POINTS - pose_at(self.now)[:3, 3]) @ pose_at(self.now)[:3, :3], K)
        good = ((pixels >= 0) & (pixels <= [319, 239])).all(axis=1) & (not self.blind)
        noisy = pixels[good] + self.sigma * self.noise.standard_normal((int(good.sum()), 2))
        return Observations(np.flatnonzero(good), noisy, self.odometry.world)

    def add(self, i: int) -> list:
        self.now = i
        frame = Frame(np.zeros((240, 320, 3), np.uint8), 1 + i * STEP_NS, "cam", K)
        return self.odometry.add(frame)[1]

    def landmarks(self, last: int, stamps: tuple[int, ...] | None = None, shift: float = 0.0) -> Landmarks:
        stamps = stamps or (last,)
        move = transform(np.eye(3), [shift, 0, 0])
        return Landmarks(
            np.arange(len(POINTS)), POINTS + [shift, 0, 0], np.zeros_like(POINTS), np.full(len(POINTS), 0.01),
            tuple(1 + i * STEP_NS for i in stamps), np.stack([move @ pose_at(i) for i in stamps]), "cam", K,
            np.diag(np.repeat([1e-4, 1e-5], 3)), self.odometry.world,
        )  # fmt: skip


def off(located, true: np.ndarray) -> float:
    change = inverse(true) @ located.odom_from_camera
    return float(np.linalg.norm(change[:3, 3]) + rotation_angle(change[:3, :3]))


def test_images_wait_for_the_first_landmarks_and_each_has_one_pose() -> None:
    world = World()
    assert not [p for i in range(5) for p in world.add(i)]
    world.odometry.update(world.landmarks(3))
    poses = world.odometry.located()
    for i in range(5, 30):
        poses += world.add(i)
    assert [p.frame.stamp_ns for p in poses] == [1 + i * STEP_NS for i in range(30)]
    assert max(off(p, pose_at(i)) for i, p in enumerate(poses)) < 1e-3
    assert not any(p.lost for p in poses)


def test_points_that_come_into_view_carry_on_without_a_window() -> None:
    world = World()
    world.add(0)
    few = world.landmarks(0)
    known = POINTS[:, 0] < 1.5  # what lies further to the right comes in later
    few = dataclasses.replace(
        few,
        ids=few.ids[known],
        positions=few.positions[known],
        anchors=few.anchors[known],
        log_sigma=few.log_sigma[known],
    )
    world.odometry.update(few)
    poses = [p for i in range(1, 60) for p in world.add(i)]
    assert not poses[-1].lost and off(poses[-1], pose_at(59)) < 0.1


def test_what_a_window_finds_out_later_fades_in() -> None:
    world = World()
    world.add(0)
    world.odometry.update(world.landmarks(0))
    for i in range(1, 10):
        before = world.add(i)[-1]
    world.odometry.update(world.landmarks(8, shift=0.5))  # all lies half a metre further
    after = world.add(10)[-1]
    step = np.linalg.norm(after.odom_from_camera[:3, 3] - before.odom_from_camera[:3, 3])
    assert 0.02 < step < 0.15, "no jump"
    for i in range(11, 50):
        last = world.add(i)[-1]
    assert off(last, transform(np.eye(3), [0.5, 0, 0]) @ pose_at(49)) < 0.01
    assert 0.38 < np.linalg.norm(last.twist[:3]) < 0.45, "the twist knows nothing of it"


def test_without_points_the_pose_is_lost_and_comes_back_with_the_next_window() -> None:
    world = World()
    world.add(0)
    world.odometry.update(world.landmarks(0))
    for i in range(1, 10):
        sure = world.add(i)[-1]
    world.blind = True
    lost = [world.add(i)[-1] for i in range(10, 14)]
    assert all(p.lost for p in lost) and (lost[0].twist_covariance.diagonal() == UNKNOWN).all()
    variances = [np.diag(p.covariance) for p in (sure, *lost)]
    assert (np.diff(variances, axis=0) > 0).all()
    world.blind = False
    world.add(14)
    world.odometry.update(world.landmarks(14))
    found = [world.add(i)[-1] for i in range(15, 50)][-1]
    assert not found.lost and off(found, pose_at(49)) < 0.01


@pytest.mark.parametrize("how", ["reset", "keep_pose", "ignore"])
def test_stamps_that_jump_back(how) -> None:
    world = World(Config().replace(on_time_jump=how))
    world.add(20)
    world.odometry.update(world.landmarks(20))
    last = world.add(21)[-1]
    late = world.landmarks(20)
    poses = [p for i in range(6) for p in world.add(i)]
    world.odometry.update(late)  # of the time before
    poses += world.add(6)
    if how == "keep_pose":
        assert poses and poses[0].lost and off(poses[0], last.odom_from_camera) < 0.2
    else:
        assert not poses
    assert world.odometry.world == (how == "reset")


@pytest.mark.parametrize("wrong", [1, 2])
def test_images_that_return_to_before_those_with_stamps_far_ahead_carry_on(wrong) -> None:
    """Their motion is that from the images before, not from one that was there at no known time."""
    world = World()
    world.add(0)
    world.odometry.update(world.landmarks(0))
    before = [p for i in range(1, 6) for p in world.add(i)]
    for i in range(400, 400 + wrong):  # 20 s ahead
        world.add(i)
    after = [p for i in range(6, 20) for p in world.add(i)]
    assert len(before) == 6 and len(after) == 14
    assert not any(p.lost for p in after) and max(off(p, pose_at(6 + i)) for i, p in enumerate(after)) < 0.01


def test_the_same_images_give_the_same_poses() -> None:
    runs = []
    for _ in range(2):
        world = World(noise=0.5)
        world.add(0)
        world.odometry.update(world.landmarks(0))
        runs.append([p for i in range(1, 20) for p in world.add(i)])
    for a, b in zip(*runs, strict=True):
        np.testing.assert_array_equal(a.odom_from_camera, b.odom_from_camera)
        np.testing.assert_array_equal(a.covariance, b.covariance)


@pytest.mark.slow
def test_nothing_grows_with_time() -> None:
    world = World()
    world.add(0)
    world.odometry.update(world.landmarks(0))
    o, sizes = world.odometry, []
    for i in range(1, HISTORY + 300):
        world.now = i % 50
        o.add(Frame(np.zeros((240, 320, 3), np.uint8), 1 + i * STEP_NS, "cam", K))
        sizes.append(len(o._points.ids))
    assert len(o._history) <= HISTORY and max(sizes) <= len(POINTS) and not o._pending


def test_images_that_wait_for_landmarks_are_not_kept() -> None:
    """Until the first window has landmarks, only what was seen in the images is of use: whole images would fill the memory."""
    world, images = World(), []
    for i in range(3):
        image = np.zeros((240, 320, 3), np.uint8)
        images.append(weakref.ref(image))
        world.now = i
        world.odometry.add(Frame(image, 1 + i * STEP_NS, "cam", K))
    del image
    gc.collect()
    assert len(world.odometry._pending) == 3 and [image() for image in images] == [None] * 3
