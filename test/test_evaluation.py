"""Metrics against cases worked out by hand."""

import numpy as np
import pytest

from come_ros.evaluation import RatioHistogram, depth_errors, relative_pose_errors, rotation_error_deg


def rotation_z(deg):
    c, s = np.cos(np.radians(deg)), np.sin(np.radians(deg))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def pose(deg, t):
    p = np.eye(4)
    p[:3, :3], p[:3, 3] = rotation_z(deg), t
    return p


def test_scale_is_free_and_a_perfect_map_has_no_error():
    truth = np.array([[1.0, 2.0], [4.0, 8.0]])
    e = depth_errors(truth * 3.7, truth)
    assert e.abs_rel == pytest.approx(0, abs=1e-12) and e.delta == 1 and e.pixels == 4


def test_hand_worked_errors():
    # ratios truth / depth are 1, 2, 2, 4: median 2; scaled estimates over truth: 2, 1, 1, 0.5
    e = depth_errors(np.ones(4), np.array([1.0, 2.0, 2.0, 4.0]))
    assert e.abs_rel == pytest.approx((1 + 0 + 0 + 0.5) / 4) and e.delta == 0.5


def test_a_planted_five_percent_error_on_half_of_the_pixels_is_found():
    truth = np.full(1001, 2.0)
    depth = truth.copy()
    depth[:500] *= 1.05
    assert depth_errors(depth, truth).abs_rel == pytest.approx(0.05 * 500 / 1001)


def test_unknown_truth_does_not_count_and_missing_estimates_count_as_wrong():
    truth = np.array([1.0, np.nan, 0.0, 2.0, 2.0])
    e = depth_errors(np.array([1.0, 5.0, 5.0, 2.0, np.nan]), truth)
    assert e.pixels == 3 and e.delta == pytest.approx(2 / 3) and e.abs_rel == pytest.approx(1 / 3)
    assert np.isnan(depth_errors(np.full(5, np.nan), truth).abs_rel)


def test_rotation_and_direction():
    assert rotation_error_deg(rotation_z(10), rotation_z(12.5)) == pytest.approx(2.5)
    truth = np.stack([pose(0, [0, 0, 0]), pose(30, [1, 0, 0]), pose(60, [0.001, 0, 0])])
    moved = pose(77, [3, 2, 1]) @ truth  # another world frame changes nothing
    moved[:, :3, 3] *= 5  # nor does scale: the world origin is a camera's
    rotation, direction, identity = relative_pose_errors(moved, truth)
    assert rotation == pytest.approx([0, 0], abs=1e-5) and identity == pytest.approx([30, 60])
    assert direction[0] == pytest.approx(0, abs=1e-4) and np.isnan(direction[1])
    off = truth.copy()
    off[1] = pose(32, [0, 1, 0])
    rotation, direction, _ = relative_pose_errors(off, truth)
    assert rotation[0] == pytest.approx(2) and direction[0] == pytest.approx(90)


def test_a_histogram_of_ratios_gives_the_errors_of_all_pixels_at_once() -> None:
    rng = np.random.default_rng(3)
    truth = rng.uniform(0.5, 6.0, (5, 40, 50))
    depth = truth * np.exp(0.2 * rng.standard_normal(truth.shape)) / 3
    depth[rng.random(truth.shape) < 0.05] = np.nan
    truth[rng.random(truth.shape) < 0.1] = 0
    mask = rng.random(truth.shape) < 0.7
    histogram = RatioHistogram()
    for row in zip(depth, truth, mask, strict=True):
        histogram.add(*row)
    exact, found = depth_errors(depth, truth, mask), histogram.errors()
    assert found.pixels == exact.pixels
    assert found.abs_rel == pytest.approx(exact.abs_rel, abs=2e-5)
    assert found.delta == pytest.approx(exact.delta, abs=2e-4)
    assert np.isnan(RatioHistogram().errors().abs_rel)
