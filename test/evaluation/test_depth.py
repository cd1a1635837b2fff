"""Metrics against cases worked out by hand."""

import numpy as np
import pytest

from come_ros.evaluation import (
    RatioHistogram,
    depth_errors,
    depth_scale,
    depth_ssim,
    edges,
    relative_pose_errors,
    rotation_error_deg,
    ssim,
)


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


def test_rmse_and_log_rmse_by_hand() -> None:
    truth = np.array([1.0, 2.0, 4.0, np.nan])
    e = depth_errors(np.array([2.0, 2.0, np.nan, 9.0]), truth, scale=1.0)
    assert e.rmse == pytest.approx(np.sqrt((1 + 0 + 16) / 3))  # what is missing counts as a depth of zero
    assert e.log_rmse == pytest.approx(np.sqrt((np.log(2) ** 2 + 0 + 1) / 3))
    assert e.abs_rel == pytest.approx((1 + 0 + 1) / 3) and e.delta == pytest.approx(1 / 3)
    # the whole's scale may be given to a part
    part = depth_errors(np.array([2.0, 2.0, 8.0]), truth[:3], np.array([True, False, False]), scale=0.5)
    assert part.abs_rel == 0 and part.pixels == 1


@pytest.mark.parametrize("seed", range(3))
def test_a_histogram_also_gives_rmse(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.5, 6.0, (4, 30, 40))
    depth = 7 * truth * np.exp(0.3 * rng.standard_normal(truth.shape))
    depth[rng.random(truth.shape) < 0.03] = -1
    histogram = RatioHistogram()
    for row in zip(depth, truth, strict=True):
        histogram.add(*row)
    exact, found = depth_errors(depth, truth), histogram.errors()
    assert found.rmse == pytest.approx(exact.rmse, rel=1e-3)
    assert found.log_rmse == pytest.approx(exact.log_rmse, rel=1e-3)


def test_the_scale_is_the_median_ratio() -> None:
    assert depth_scale(np.array([1.0, 1.0, 1.0, np.nan, 1.0]), np.array([2.0, 3.0, 9.0, 5.0, np.inf])) == 3
    assert np.isnan(depth_scale(np.zeros(3), np.ones(3)))


def test_edges_are_where_depth_steps() -> None:
    truth = np.full((1, 9, 12), 2.0)
    truth[:, :, 6:] = 2.3
    truth[:, 4, 1] = np.nan  # unknown is no step
    found = edges(truth, ratio=1.1, reach=2)
    assert found[:, :, 4:8].all() and not found[:, :, :4].any() and not found[:, :, 8:].any()
    assert not edges(truth, ratio=1.2).any()


def naive_ssim(a, b, data_range):
    """Window by window, with numpy's own weighted covariance."""
    g = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weights = np.outer(g, g).ravel()
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    out = []
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            x, y = (m[i : i + 11, j : j + 11].ravel() for m in (a, b))
            cov = np.cov(x, y, aweights=weights, ddof=0)
            mx, my = (np.average(v, weights=weights) for v in (x, y))
            out.append(
                (2 * mx * my + c1) * (2 * cov[0, 1] + c2) / ((mx**2 + my**2 + c1) * (cov[0, 0] + cov[1, 1] + c2))
            )
    return np.mean(out)


def test_ssim_agrees_with_a_slow_independent_one() -> None:
    rng = np.random.default_rng(0)
    a = rng.uniform(0, 3, (19, 24))
    b = a + 0.5 * rng.standard_normal(a.shape)
    assert ssim(a, b, 3.0) == pytest.approx(naive_ssim(a, b, 3.0), abs=1e-10)
    assert ssim(a, a, 3.0) == pytest.approx(1)


def test_ssim_agrees_with_scikit_image() -> None:
    rng = np.random.default_rng(0)
    a = rng.uniform(0, 3, (19, 24))
    b = a + 0.5 * rng.standard_normal(a.shape)
    # of scikit-image 0.26.0: structural_similarity(a, b, data_range=3.0, gaussian_weights=True, use_sample_covariance=False)
    assert ssim(a, b, 3.0) == pytest.approx(0.8633172474755401, abs=1e-6)


def test_maps_that_ssim_cannot_compare_are_refused() -> None:
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(np.ones((10, 20)), np.ones((10, 20)), 1.0)
    with pytest.raises(ValueError, match="one shape"):
        ssim(np.ones((20, 20)), np.ones((20, 21)), 1.0)


def test_depth_ssim_sees_a_lost_object_and_not_the_scale() -> None:
    truth = np.full((2, 30, 40), 4.0)
    truth[:, 10:20, 18:22] = 1.5
    truth[:, 0, 0] = np.nan
    assert depth_ssim(0.2 * truth, truth, 5.0) == pytest.approx(1)
    flat = np.full(truth.shape, 4.0)
    assert depth_ssim(flat, truth, 1.0) < 0.8
    assert np.isnan(depth_ssim(flat, np.full(truth.shape, np.nan), 1.0))
