"""Pose errors against hand-worked cases and against evo, which is run as a command."""

import itertools

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from come_ros import geometry
from come_ros.evaluation import ate_rmse, pair_pose_errors, pose_auc, relative_pose_errors, rpe_rmse
from come_ros.evaluation.recordings import trajectory_scores


def walk(seed, n=20, noise=0.0, turn_deg=0.0):
    """(truth, estimate) (n, 4, 4): the estimate in another world, at another scale, with noise."""
    rng = np.random.default_rng(seed)
    truth = geometry.transform(
        Rotation.from_rotvec(np.cumsum(0.1 * rng.standard_normal((n, 3)), axis=0)).as_matrix(),
        np.cumsum(0.3 * rng.standard_normal((n, 3)), axis=0),
    )
    moved = truth.copy()
    moved[:, :3, 3] += noise * rng.standard_normal((n, 3))
    moved[:, :3, :3] = (
        moved[:, :3, :3] @ Rotation.from_rotvec(np.radians(turn_deg) * rng.standard_normal((n, 3))).as_matrix()
    )
    world = Rotation.from_rotvec([0.3, -1, 2]).as_matrix()
    return truth, geometry.transform_poses(0.4, world, np.array([3.0, -2, 1]), moved)


def test_auc_by_hand() -> None:
    rotation, direction = np.array([0.0, 1.0, 2.0, 40.0]), np.array([0.0, 4.0, np.nan, 1.0])
    # the worse of the two: 0, 4, 2 (no baseline: rotation alone), 40
    assert pose_auc(rotation, direction, 5) == pytest.approx((1 + 0.2 + 0.6 + 0) / 4)
    assert pose_auc(rotation, direction, 10) == pytest.approx((1 + 0.6 + 0.8 + 0) / 4)
    assert np.isnan(pose_auc(np.empty(0), np.empty(0), 5))


def test_auc_is_the_area_under_the_curve_of_recall() -> None:
    rng = np.random.default_rng(0)
    errors = rng.exponential(8.0, 50)
    t = np.linspace(0, 10, 20_001)
    recall = (errors[None] < t[:, None]).mean(axis=1)
    area = float(((recall[1:] + recall[:-1]) / 2 * np.diff(t)).sum()) / 10
    assert pose_auc(errors, np.zeros(50), 10) == pytest.approx(area, abs=1e-3)


def test_a_planted_rotation_of_two_degrees_is_found_in_every_pair_it_touches() -> None:
    truth, estimate = walk(1, n=4)
    estimate[2, :3, :3] = estimate[2, :3, :3] @ Rotation.from_rotvec(np.radians([0, 2, 0])).as_matrix()
    rotation, _ = pair_pose_errors(estimate, truth)
    assert rotation == pytest.approx([0, 2, 0, 2, 0, 2], abs=1e-5)
    assert relative_pose_errors(estimate, truth)[0] == pytest.approx([0, 2, 0], abs=1e-5)


@pytest.mark.slow
def test_ate_and_rpe_agree_with_evo() -> None:
    truth, estimate = walk(0, noise=0.2, turn_deg=3.0)
    evo = trajectory_scores(dict(enumerate(estimate)), dict(enumerate(truth)))
    assert "problem" not in evo, evo
    assert ate_rmse(estimate, truth) == pytest.approx(evo["ate_rmse_m"]["come_ros"], rel=1e-5)
    assert ate_rmse(estimate, truth, with_scale=False) == pytest.approx(evo["ate_se3_rmse_m"]["come_ros"], rel=1e-5)
    translation, rotation = rpe_rmse(estimate, truth)
    assert translation == pytest.approx(evo["rpe_translation_rmse_m"]["come_ros"], rel=1e-4)
    assert rotation == pytest.approx(evo["rpe_rotation_rmse_deg"], rel=1e-4)
    assert rpe_rmse(estimate, truth, with_scale=False)[0] == pytest.approx(
        evo["rpe_translation_se3_rmse_m"]["come_ros"], rel=1e-4
    )


@pytest.mark.parametrize("after", [0, 8], ids=["before", "while evo runs"])
def test_after_a_signal_the_figures_are_our_own(after: int) -> None:
    truth, estimate = walk(0, noise=0.2, turn_deg=3.0)
    asked = itertools.count()
    scores = trajectory_scores(dict(enumerate(estimate)), dict(enumerate(truth)), stopped=lambda: next(asked) >= after)
    assert scores["problem"] == "evo, which takes seconds, is left out after a signal; these figures are come_ros' own"
    assert ate_rmse(estimate, truth) == scores["ate_rmse_m"]["come_ros"]
    assert rpe_rmse(estimate, truth)[1] == scores["rpe_rotation_rmse_deg"]


def test_not_moving_has_the_spread_of_the_truth_as_its_error() -> None:
    truth, _ = walk(3)
    still = np.tile(np.eye(4), (len(truth), 1, 1))
    spread = truth[:, :3, 3] - truth[:, :3, 3].mean(axis=0)
    assert ate_rmse(still, truth) == pytest.approx(np.sqrt((spread**2).sum(axis=1).mean()))
    exact = geometry.transform_poses(3.0, np.eye(3), np.ones(3), truth)
    assert ate_rmse(exact, truth) == pytest.approx(0, abs=1e-9) and rpe_rmse(exact, truth)[0] < 1e-9
