"""Twist and variances of odometry, against motions written down by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from come_ros.config import Config
from come_ros.geometry import compose, rotation_from_vector, transform, vector_from_rotation
from come_ros.outputs.motion import UNKNOWN, MotionEstimator
from come_ros.types import Alignment, Frame, Submap

METRES = Config().replace(**{"scale.mode": "fixed"})


def submap(poses, stamps, camera="cam", **alignment) -> Submap:
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
    )


def test_twist_is_that_of_the_motion_seen_from_the_camera():
    # the camera turns about its y by 0.2 rad/s and runs along its own z at 1.5 m/s; 0.1 s between the frames
    start = transform(rotation_from_vector([0.3, -0.8, 0.5]), [4.0, -2.0, 1.0])
    turn = rotation_from_vector([0.0, 0.02, 0.0])
    step = transform(turn, turn @ [0.0, 0.0, 0.15])
    motions = MotionEstimator()
    window = submap([start, compose(start, step)], [10**18, 10**18 + 10**8])
    first, second = (motions.step(window, row, METRES) for row in range(2))
    assert not first.twist.any() and np.all(first.twist_variance == UNKNOWN)
    np.testing.assert_allclose(second.twist, [0, 0, 1.5, 0, 0.2, 0], atol=1e-9)
    assert np.all((second.twist_variance > 0) & (second.twist_variance < UNKNOWN))


def test_variances_are_the_floor_and_what_the_alignment_left_over():
    residuals = {"rotation_residual": 0.1, "translation_residual": 0.02, "depth_residual": 0.03}
    window = submap([np.eye(4)], [1], **residuals)
    known = MotionEstimator().step(window, 0, METRES).pose_variance
    np.testing.assert_allclose(known, [0.01 + (3 * 0.05) ** 2] * 3 + [0.001 + 0.01] * 3)
    unknown = MotionEstimator().step(window, 0, Config()).pose_variance
    np.testing.assert_allclose(unknown, [UNKNOWN] * 3 + [0.001 + 0.01] * 3)


def test_what_was_only_carried_over_is_unknown():
    motions = MotionEstimator()
    assert motions.step(submap([np.eye(4)], [1], shared=0), 0, METRES).pose_variance[0] < 1, (
        "the first window starts the world"
    )
    carried = motions.step(submap([np.eye(4)], [10**9], shared=0), 0, METRES)
    assert np.all(carried.pose_variance == UNKNOWN) and np.all(carried.twist_variance == UNKNOWN)


@pytest.mark.parametrize(("stamp", "camera"), [(5, "cam"), (10, "cam"), (20, "other")])
def test_no_twist_across_a_jump_of_time_or_another_camera(stamp, camera):
    motions = MotionEstimator()
    motions.step(submap([np.eye(4)], [10]), 0, METRES)
    after = motions.step(submap([np.eye(4)], [stamp], camera), 0, METRES)
    assert not after.twist.any() and np.all(after.twist_variance == UNKNOWN)


@given(st.lists(st.floats(-1.7, 1.7), min_size=3, max_size=3))
def test_a_rotation_vector_comes_back(vector):
    np.testing.assert_allclose(vector_from_rotation(rotation_from_vector(vector)), vector, atol=1e-7)
