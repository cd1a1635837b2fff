"""All errors of one window: what is planted is found, and only that."""

import dataclasses

import numpy as np
import pytest
from fakes import truth_of
from scipy.spatial.transform import Rotation

from come_ros import geometry
from come_ros.evaluation.window import WindowTruth, null_predictions, score_window, window_calibration
from come_ros.types import Prediction


@pytest.fixture(scope="module")
def window():
    """A window (WindowTruth) and its perfect prediction, at another scale and in another frame."""
    rng = np.random.default_rng(0)
    poses = geometry.transform(
        Rotation.from_rotvec(0.2 * rng.standard_normal((4, 3))).as_matrix(), 0.4 * rng.standard_normal((4, 3))
    )
    t = truth_of(poses)
    truth = WindowTruth("box", 0, t.images, t.depth, poses, t.intrinsics)
    gauge = geometry.transform_poses(0.25, np.eye(3), np.zeros(3), geometry.inverse(poses[0]) @ poses)
    perfect = Prediction(t.images, 0.25 * t.depth, np.ones_like(t.depth), gauge, np.tile(t.intrinsics, (4, 1, 1)))
    return truth, perfect


def test_a_perfect_prediction_has_no_error(window) -> None:
    truth, perfect = window
    row = score_window(perfect, truth)
    zero = ("abs_rel", "rmse", "log_rmse", "rotation_deg", "direction_deg", "rpe_rotation_deg", "rpe_translation", "ate",
            "focal_error", "accuracy", "completeness", "chamfer")  # fmt: skip
    one = ("delta", "kept_delta", "auc5", "auc10", "auc30", "normal_consistency", "ssim", "kept_tokens")
    for name in zero:
        assert row[name] == pytest.approx(0, abs=1e-4), name
    for name in one:
        assert row[name] == pytest.approx(1, abs=1e-4), name
    assert row["scale"] == pytest.approx(4) and np.isnan(row["merged_abs_rel"])


def test_a_planted_depth_error_of_five_percent_is_found(window) -> None:
    truth, perfect = window
    depth = perfect.depth.copy()
    depth[1] *= 1.05  # one of four frames
    row = score_window(dataclasses.replace(perfect, depth=depth), truth)
    assert row["abs_rel"] == pytest.approx(0.05 / 4, rel=1e-3) and row["delta"] == 1
    assert row["chamfer"] > 1e-3 and row["rotation_deg"] < 1e-3
    # of all frames alike it is the scale, which is told
    row = score_window(dataclasses.replace(perfect, depth=1.05 * perfect.depth), truth)
    assert row["scale"] == pytest.approx(4 / 1.05) and row["abs_rel"] < 1e-6
    # but then depth and motion disagree, and the cloud is off
    assert row["chamfer"] > 1e-3


def test_a_planted_rotation_of_two_degrees_is_found(window) -> None:
    truth, perfect = window
    poses = perfect.window_from_camera.copy()
    poses[1:, :3, :3] = poses[1:, :3, :3] @ Rotation.from_rotvec(np.radians([2, 0, 0])).as_matrix()
    row = score_window(dataclasses.replace(perfect, window_from_camera=poses), truth)
    assert row["rotation_deg"] == pytest.approx(2, abs=1e-3) and row["abs_rel"] < 1e-6
    assert row["auc5"] < 0.9 and row["chamfer"] > 1e-3
    assert row["rpe_rotation_deg"] > 1


def test_wrong_intrinsics_are_found(window) -> None:
    truth, perfect = window
    k = perfect.intrinsics.copy()
    k[:, :2, :2] *= 1.1
    row = score_window(dataclasses.replace(perfect, intrinsics=k), truth)
    assert row["focal_error"] == pytest.approx(0.1) and row["chamfer"] > 1e-3 and row["abs_rel"] < 1e-6


def test_kept_and_merged_pixels_are_told_apart(window) -> None:
    truth, perfect = window
    merged = np.zeros(perfect.depth.shape, bool)
    merged[:, :14, :14] = True
    depth = perfect.depth.copy()
    depth[merged] *= 1.2
    row = score_window(dataclasses.replace(perfect, depth=depth, merged=merged, kept_ratio=0.9), truth, perfect)
    assert row["merged_abs_rel"] == pytest.approx(0.2, rel=1e-3) and row["kept_abs_rel"] == pytest.approx(0, abs=1e-5)
    assert row["merged_dense_abs_rel"] == pytest.approx(0, abs=1e-5) and row["kept_tokens"] == 0.9
    assert row["to_dense"] == pytest.approx(0.2 * merged.mean(), rel=1e-2)


def test_confidence_is_scored_by_the_errors_it_should_tell(window) -> None:
    truth, perfect = window
    depth = perfect.depth * np.exp(0.3 * np.random.default_rng(0).standard_normal(perfect.depth.shape))
    depth = depth.astype(np.float32)
    scale = np.median(truth.depth / depth)
    error = np.abs(scale * depth / truth.depth - 1)
    knows = dataclasses.replace(perfect, depth=depth, confidence=1 / error)
    assert score_window(knows, truth)["ause"] == pytest.approx(0, abs=1e-3)
    row = score_window(dataclasses.replace(perfect, depth=depth), truth)
    assert row["ause"] == pytest.approx(row["ause_chance"]) and np.isnan(row["spearman"])
    assert window_calibration(knows, truth).spearman == pytest.approx(1)


def test_what_is_not_known_is_not_scored(window) -> None:
    truth, perfect = window
    depth_only = dataclasses.replace(truth, world_from_camera=None, intrinsics=None)
    assert not {"rotation_deg", "ate", "focal_error", "chamfer", "thin_recall"} & set(score_window(perfect, depth_only))
    poses_only = dataclasses.replace(truth, depth=None)
    row = score_window(perfect, poses_only)
    assert "abs_rel" not in row and row["rotation_deg"] < 1e-3 and window_calibration(perfect, poses_only) is None


def test_trivial_baselines_are_scored_like_any_other(window) -> None:
    truth, _ = window
    nulls = null_predictions(truth.images)
    rows = {name: score_window(p, truth) for name, p in nulls.items()}
    steps = geometry.inverse(truth.world_from_camera[0]) @ truth.world_from_camera[1:]
    turned = np.degrees(geometry.rotation_angle(steps[:, :3, :3]))
    for name in ("constant depth", "mean depth map"):
        assert rows[name]["rotation_deg"] == pytest.approx(np.median(turned), abs=1e-3)
        assert rows[name]["direction_deg"] == pytest.approx(90) and rows[name]["abs_rel"] > 0.05
    ratio = truth.depth / np.median(truth.depth)
    assert rows["constant depth"]["abs_rel"] == pytest.approx(np.mean(np.abs(1 / ratio - 1)), rel=1e-4)
