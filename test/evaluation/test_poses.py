"""Pose errors against hand-worked cases and against evo, which is run as a command."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from come_ros import geometry
from come_ros.evaluation import ate_rmse, pair_pose_errors, pose_auc, relative_pose_errors, rpe_rmse
from come_ros.evaluation.recordings import trajectory_scores
from come_ros.files import write_tum


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
def test_ate_and_rpe_agree_with_evo(tmp_path: Path) -> None:
    truth, estimate = walk(0, noise=0.2, turn_deg=3.0)
    stamps = range(0, len(truth) * 100_000_000, 100_000_000)
    ours, real = (dict(zip(stamps, poses, strict=True)) for poses in (estimate, truth))
    scores = trajectory_scores(ours, real)
    assert scores is not None
    write_tum(tmp_path / "estimate.tum", ours)
    write_tum(tmp_path / "truth.tum", real)
    pairs = ("--delta", "1", "--delta_unit", "f")
    for mine, command, *options in (
        (scores["ate_rmse_m"]["come_ros"], "evo_ape", "-as"),
        (scores["ate_se3_rmse_m"]["come_ros"], "evo_ape", "-a"),
        (scores["rpe_translation_rmse_m"]["come_ros"], "evo_rpe", "-as", "-r", "trans_part", *pairs),
        (scores["rpe_translation_se3_rmse_m"]["come_ros"], "evo_rpe", "-a", "-r", "trans_part", *pairs),
        (scores["rpe_rotation_rmse_deg"], "evo_rpe", "-r", "angle_deg", *pairs),
    ):
        assert mine == pytest.approx(rmse_by_evo(tmp_path, command, *options), rel=1e-4), (command, *options)


def rmse_by_evo(folder: Path, command: str, *options: str) -> float:
    """evo is GPL, and therefore run, not imported."""
    sibling = Path(sys.executable).with_name(command)
    program = str(sibling) if sibling.is_file() else shutil.which(command)
    if program is None:
        pytest.skip(f"{command} is not installed: pip install '.[test]'")
    results = folder / "results.zip"
    results.unlink(missing_ok=True)
    done = subprocess.run(
        [program, "tum", folder / "truth.tum", folder / "estimate.tum", *options, "--no_warnings", "--save_results", results],
        env={**os.environ, "HOME": str(folder), "MPLBACKEND": "Agg"}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert results.is_file(), done.stdout + done.stderr
    with zipfile.ZipFile(results) as archive:
        return float(json.loads(archive.read("stats.json"))["rmse"])


@pytest.mark.parametrize("still", [False, True])
def test_a_straight_path_is_scored(still: bool) -> None:
    """Its alignment is not unique about the line, and that of a camera that did not move not at all: figures are finite all the same."""
    truth = np.tile(np.eye(4), (10, 1, 1))
    truth[:, 0, 3] = np.arange(10)
    estimate = np.tile(np.eye(4), (10, 1, 1)) if still else truth.copy()
    scores = trajectory_scores(dict(enumerate(estimate)), dict(enumerate(truth)))
    assert scores is not None
    expected = np.sqrt(np.mean((truth[:, 0, 3] - 4.5) ** 2)) if still else 0
    assert scores["ate_rmse_m"]["come_ros"] == pytest.approx(expected, abs=1e-6)
    assert np.isfinite([scores["rpe_translation_rmse_m"]["come_ros"], scores["rpe_rotation_rmse_deg"]]).all()


def test_not_moving_has_the_spread_of_the_truth_as_its_error() -> None:
    truth, _ = walk(3)
    still = np.tile(np.eye(4), (len(truth), 1, 1))
    spread = truth[:, :3, 3] - truth[:, :3, 3].mean(axis=0)
    assert ate_rmse(still, truth) == pytest.approx(np.sqrt((spread**2).sum(axis=1).mean()))
    exact = geometry.transform_poses(3.0, np.eye(3), np.ones(3), truth)
    assert ate_rmse(exact, truth) == pytest.approx(0, abs=1e-9) and rpe_rmse(exact, truth)[0] < 1e-9
