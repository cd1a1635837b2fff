"""Twist and variances of odometry, against motions written down by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from come_ros.config import Config
from come_ros.geometry import inverse, rotation_from_vector, transform, vector_from_rotation
from come_ros.outputs.motion import UNKNOWN, MotionEstimator, motion_of
from come_ros.tracking.drift import NETWORK_MOVE, NETWORK_TURN, Drift, by_network
from come_ros.tracking.odometry import Located
from come_ros.types import NO_SCALE, Alignment, Frame, Scale, Submap

CONFIG = Config()
KNOWN = Scale(1.0, 0.0, "fixed", in_metres=True)


def submap(poses, stamps, camera="cam", scale=KNOWN, **alignment) -> Submap:
    n = len(poses)
    values = {"shared": 2, "scale": 1.0, **alignment}
    return Submap(
        frames=tuple(Frame(np.zeros((2, 2, 3), np.uint8), s, camera) for s in stamps),
        images=np.zeros((n, 2, 2, 3), np.uint8),
        depth=np.full((n, 2, 2), 3.0, np.float32),
        confidence=np.ones((n, 2, 2), np.float32),
        intrinsics=np.tile(np.eye(3), (n, 1, 1)),
        odom_from_camera=np.stack(poses),
        alignment=Alignment(accepted=True, **values),
        scale=scale,
    )


def test_twist_is_that_of_the_motion_seen_from_the_camera():
    # the camera turns about its y by 0.2 rad/s and runs along its own z at 1.5 m/s; 0.1 s between the frames
    start = transform(rotation_from_vector([0.3, -0.8, 0.5]), [4.0, -2.0, 1.0])
    turn = rotation_from_vector([0.0, 0.02, 0.0])
    step = transform(turn, turn @ [0.0, 0.0, 0.15])
    motions = MotionEstimator()
    window = submap([start, start @ step], [10**18, 10**18 + 10**8])
    first, second = (motions.step(window, row, CONFIG) for row in range(2))
    assert not first.twist.any() and np.all(first.twist_variance == UNKNOWN)
    np.testing.assert_allclose(second.twist, [0, 0, 1.5, 0, 0.2, 0], atol=1e-9)
    assert np.all((second.twist_variance > 0) & (second.twist_variance < UNKNOWN))


def test_variances_are_what_a_window_adds_and_no_less_than_the_floor():
    residuals = {"rotation_residual": 0.1, "translation_residual": 0.02, "depth_residual": 0.03}
    window = submap([np.eye(4)], [1], **residuals)
    position, rotation = 9 * (NETWORK_MOVE**2 + 0.05**2), NETWORK_TURN**2 + 0.1**2
    known = MotionEstimator().step(window, 0, CONFIG).pose_variance
    np.testing.assert_allclose(known, [position] * 3 + [rotation] * 3)
    unknown = MotionEstimator().step(dataclasses.replace(window, scale=NO_SCALE), 0, CONFIG).pose_variance
    np.testing.assert_allclose(unknown, [UNKNOWN] * 3 + [rotation] * 3)
    floored = CONFIG.replace(**{"cov.position_floor": 2.0, "cov.rotation_floor": 3.0})
    np.testing.assert_allclose(MotionEstimator().step(window, 0, floored).pose_variance, [2.0] * 3 + [3.0] * 3)


def test_since_the_world_began_variances_only_grow():
    drift, before = Drift(), np.zeros(6)
    for i in range(10):
        window = submap([transform(np.eye(3), [0.1 * i, 0, 0])], [i + 1])
        covariance = drift.add(window.odom_from_camera, by_network(window.alignment, 3.0))
        window = dataclasses.replace(window, covariance=covariance)
        now = MotionEstimator().step(window, 0, CONFIG).pose_variance
        assert (now > before).all()
        before = now
    assert np.rad2deg(np.sqrt(before[5])) > 20, "ten windows of the network alone"


def test_a_located_image_tells_of_the_robot_and_nothing_of_unknown_lengths():
    mount = transform(rotation_from_vector([0.1, 0.2, -0.3]), [0.5, 0.0, 0.2])
    frame = dataclasses.replace(submap([np.eye(4)], [7]).frames[0], base="base_link", base_from_camera=mount)
    pose = transform(rotation_from_vector([0.0, 0.3, 0.0]), [1.0, 2.0, 3.0])
    step = np.array([0.1, 0.0, 0.0, 0.0, 0.0, 0.2])
    spread = np.diag([0.01, 0.02, 0.03, 1e-4, 2e-4, 3e-4])
    located = Located(frame, pose, spread, step, spread, 100, 90, 0.3, False, KNOWN)
    motion = motion_of(located, CONFIG)
    np.testing.assert_allclose(motion.odom_from_child, pose @ inverse(mount))
    # the twist of the base, carried on for a moment, moves the camera as its own twist does
    dt = 1e-5
    for twist, body, start in ((step, np.eye(4), pose), (motion.twist, mount, pose @ inverse(mount))):
        moved = start @ transform(rotation_from_vector(dt * twist[3:]), dt * twist[:3]) @ body
        np.testing.assert_allclose(
            moved, pose @ transform(rotation_from_vector(dt * step[3:]), dt * step[:3]), atol=1e-9
        )
    assert np.linalg.eigvalsh(motion.pose_covariance).min() > 0 and motion.child == "base_link"
    unknown = motion_of(dataclasses.replace(located, scale=NO_SCALE), CONFIG)
    assert (unknown.pose_variance[:3] == UNKNOWN).all() and (unknown.pose_variance[3:] < 1).all()
    assert not unknown.pose_covariance[:3, 3:].any()


def test_an_unsure_unit_is_an_error_along_the_way_and_along_the_velocity():
    unsure = Scale(1.0, 0.1, "depth", in_metres=True)
    frame = submap([np.eye(4)], [7]).frames[0]
    pose = transform(np.eye(3), [3.0, 0.0, -4.0])
    step, small = np.array([0.0, 2.0, 0.0, 0.0, 0.0, 0.0]), 1e-4 * np.eye(6)
    motion = motion_of(Located(frame, pose, small, step, small, 100, 90, 0.3, False, unsure), CONFIG)
    np.testing.assert_allclose(motion.pose_covariance[:3, :3], small[:3, :3] + 0.01 * np.outer([3, 0, -4], [3, 0, -4]))
    np.testing.assert_allclose(np.diag(motion.twist_covariance)[:3], [1e-4, 1e-4 + 0.04, 1e-4])
    wrong = Scale(1.2, 0.1, "depth", in_metres=True)  # as is known now, but not when the world began
    learnt = motion_of(Located(frame, pose, small, step, small, 100, 90, 0.3, False, wrong), CONFIG)
    assert learnt.pose_covariance[0, 0] == pytest.approx(1e-4 + 9 * (0.01 + np.log(1.2) ** 2))
    row = MotionEstimator().step(submap([pose], [1], scale=unsure), 0, CONFIG)
    assert row.pose_variance[0] > 0.09 and row.pose_variance[1] < row.pose_variance[0]
    lost = MotionEstimator().step(submap([pose], [1], scale=NO_SCALE), 0, CONFIG)
    assert (lost.pose_variance[:3] == UNKNOWN).all() and (lost.pose_variance[3:] < 1).all()


def test_what_was_only_carried_over_is_unknown():
    motions = MotionEstimator()
    assert motions.step(submap([np.eye(4)], [1], shared=0), 0, CONFIG).pose_variance[0] < 1, (
        "the first window starts the world"
    )
    carried = motions.step(submap([np.eye(4)], [10**9], shared=0), 0, CONFIG)
    assert np.all(carried.pose_variance == UNKNOWN) and np.all(carried.twist_variance == UNKNOWN)


@pytest.mark.parametrize(("stamp", "camera"), [(5, "cam"), (10, "cam"), (20, "other")])
def test_no_twist_across_a_jump_of_time_or_another_camera(stamp, camera):
    motions = MotionEstimator()
    motions.step(submap([np.eye(4)], [10]), 0, CONFIG)
    after = motions.step(submap([np.eye(4)], [stamp], camera), 0, CONFIG)
    assert not after.twist.any() and np.all(after.twist_variance == UNKNOWN)


@given(st.lists(st.floats(-1.7, 1.7), min_size=3, max_size=3))
def test_a_rotation_vector_comes_back(vector):
    np.testing.assert_allclose(vector_from_rotation(rotation_from_vector(vector)), vector, atol=1e-7)
