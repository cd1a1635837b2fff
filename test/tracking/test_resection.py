"""Resection: exact poses from exact points, and what is left of them with outliers, unsure distances and few points."""

import numpy as np
import pytest

from come_ros.geometry import inverse, rotation_angle, rotation_from_vector, skew, transform
from come_ros.tracking.resection import Rays, resect, turn_between, two_views, view

K = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
NOTHING_EXPECTED = np.diag(np.repeat([100.0, 4.0], 3) ** 2)


def scene(count=100, sigma=1e-6, seed=0, flat=False):
    random = np.random.default_rng(seed)
    depth = np.full(count, 4.0) if flat else random.uniform(2, 8, count)
    pixels = random.uniform([20, 20], [620, 460], (count, 2))
    points = np.column_stack([(pixels - K[:2, 2]) / K[[0, 1], [0, 1]], np.ones(count)]) * depth[:, None]
    distance = np.linalg.norm(points, axis=1)
    return Rays(np.zeros((count, 3)), points / distance[:, None], np.log(distance), np.full(count, sigma**2))


def off(fit, true):
    change = inverse(true) @ fit.world_from_camera
    return float(rotation_angle(change[:3, :3])), float(np.linalg.norm(change[:3, 3]))


TRUE = transform(rotation_from_vector([0.05, -0.08, 0.03]), [0.3, -0.1, 0.2])


@pytest.mark.parametrize("flat", [False, True])
def test_exact_points_give_the_exact_pose(flat):
    points = scene(flat=flat)
    fit = resect(points, view(points, TRUE, K).pixels, K, 0.5, np.eye(4), NOTHING_EXPECTED)
    assert max(off(fit, TRUE)) < 1e-4 and fit.inliers.all()
    assert np.abs(fit.world_from_camera[:3, :3].T @ fit.world_from_camera[:3, :3] - np.eye(3)).max() < 1e-12


def test_jacobians_by_finite_differences():
    points, step = scene(20), 1e-6
    seen = view(points, TRUE, K)
    farther = view(points._replace(log_distance=points.log_distance + step), TRUE, K)
    np.testing.assert_allclose((farther.pixels - seen.pixels) / step, seen.by_distance, rtol=1e-3, atol=1e-3)
    by_world = seen.by_point @ TRUE[:3, :3].T
    by_pose = np.concatenate([-by_world, by_world @ skew(seen.away)], axis=2)
    for i in range(6):
        change = np.eye(6)[i] * step
        moved = transform(rotation_from_vector(change[3:]) @ TRUE[:3, :3], TRUE[:3, 3] + change[:3])
        np.testing.assert_allclose(
            (view(points, moved, K).pixels - seen.pixels) / step, by_pose[:, :, i], rtol=1e-3, atol=2e-2
        )


def test_forty_percent_of_outliers_are_found():
    points, random = scene(200), np.random.default_rng(1)
    pixels = view(points, TRUE, K).pixels + random.normal(0, 0.5, (200, 2))
    pixels[:80] = random.uniform([0, 0], [640, 480], (80, 2))
    fit = resect(points, pixels, K, 0.5, np.eye(4), NOTHING_EXPECTED)
    rotation, translation = off(fit, TRUE)
    assert rotation < np.deg2rad(0.2) and translation < 0.02
    assert fit.inliers[80:].mean() > 0.97 and fit.inliers[:80].mean() < 0.1


def test_unsure_distances_hardly_matter_where_the_camera_only_turns():
    points, random = scene(100, sigma=0.3), np.random.default_rng(2)
    turned = transform(rotation_from_vector([0.02, 0.1, 0.0]), np.zeros(3))
    pixels = view(points, turned, K).pixels
    wrong = points._replace(log_distance=points.log_distance + random.normal(0, 0.3, 100))
    few_moves = np.diag(np.repeat([0.05, 1.0], 3) ** 2)
    assert off(resect(wrong, pixels, K, 0.5, np.eye(4), few_moves), turned)[0] < np.deg2rad(0.3)


def test_the_covariance_tells_the_scatter_of_poses():
    points, normalised = scene(60), []
    exact = view(points, TRUE, K).pixels
    for seed in range(60):
        noise = np.random.default_rng(seed).normal(0, 0.5, (60, 2))
        fit = resect(points, exact + noise, K, 0.5, TRUE, NOTHING_EXPECTED)
        change = fit.world_from_camera @ inverse(TRUE)
        turn = np.array([change[2, 1], change[0, 2], change[1, 0]])
        error = np.concatenate([fit.world_from_camera[:3, 3] - TRUE[:3, 3], turn])
        normalised.append(error @ np.linalg.solve(fit.covariance, error) / 6)
    assert 0.5 < np.median(normalised) < 2.0


@pytest.mark.parametrize("count", [0, 1, 3])
def test_with_few_points_what_is_expected_counts(count):
    points = scene(max(count, 1)).__class__(*(a[:count] for a in scene(4)))
    expected = np.diag(np.repeat([0.01, 0.01], 3) ** 2)
    fit = resect(points, view(points, TRUE, K).pixels + 1.0, K, 0.5, TRUE, expected)
    assert np.isfinite(fit.world_from_camera).all() and np.isfinite(fit.covariance).all()
    assert max(off(fit, TRUE)) < 0.05


def test_directions_tell_a_turn_with_a_third_of_outliers():
    random = np.random.default_rng(0)
    now = scene(120).directions
    before = now @ TRUE[:3, :3].T
    before[:40] = random.permutation(before[:40])
    assert rotation_angle(TRUE[:3, :3].T @ turn_between(before, now)) < np.deg2rad(0.2)


def test_two_views_tell_a_pose_whatever_the_depths_and_its_length_by_their_median():
    points, random = scene(200), np.random.default_rng(2)
    here = points.positions()
    there = (here - TRUE[:3, 3]) @ TRUE[:3, :3]
    depth = here[:, 2] * np.exp(random.normal(0, 0.3, 200))
    depth[:20] = np.nan
    now = there[:, :2] / there[:, 2:]
    now[:40] = random.permutation(now[:40])
    found = two_views(here[:, :2] / here[:, 2:], now, depth, 2e-3)
    change = inverse(TRUE) @ found
    assert rotation_angle(change[:3, :3]) < np.deg2rad(0.3)
    assert np.linalg.norm(change[:3, 3]) < 0.15 * np.linalg.norm(TRUE[:3, 3])


def test_two_views_that_tell_nothing_give_no_pose():
    assert two_views(np.zeros((3, 2)), np.zeros((3, 2)), np.ones(3), 1e-3) is None
    still = np.random.default_rng(0).uniform(-0.5, 0.5, (50, 2))
    found = two_views(still, still, np.full(50, 2.0), 1e-3)
    assert found is None or np.isfinite(found).all()
