"""The motions of a camera and of something that moves by itself: which points follow which."""

import numpy as np
import pytest

from come_ros.geometry import inverse, project, rotation_angle, rotation_from_vector, transform
from come_ros.refinement.motions import Motions, even_weights, together, two_motions
from come_ros.tracking.resection import Rays
from come_ros.types import F64

K = np.array([[400.0, 0, 320], [0, 400.0, 240], [0, 0, 1]])
SHAPE = (480, 640, 3)
SIGMA = 1.0
UNKNOWN = np.diag([1.0] * 3 + [0.1] * 3)
CAMERA = transform(rotation_from_vector([0.0, 0.05, 0.01]), [0.1, 0.02, 0.05])
OBJECT = transform(
    rotation_from_vector([0.0, 0.0, 0.05]), [0.0, 0.35, 0.0]
)  # the same step as the object's points show it


def scene(share: float, count: int = 200, seed: int = 0) -> tuple[Rays, F64, np.ndarray]:
    """`count` points at hardly known distances of 2 to 4, of which `share`, at the left, moved by themselves."""
    rng = np.random.default_rng(seed)
    pixels = rng.uniform((20, 20), (620, 460), (count, 2))
    rays = np.concatenate([(pixels - K[:2, 2]) / 400, np.ones((count, 1))], axis=1)
    points = rays * rng.uniform(2, 4, (count, 1))
    moved = pixels[:, 0] < np.quantile(pixels[:, 0], share)
    seen = np.where(moved[:, None], *(project((points - p[:3, 3]) @ p[:3, :3], K) for p in (OBJECT, CAMERA)))
    distance = np.linalg.norm(points, axis=1)
    unsure = np.log(distance) + rng.normal(0, 0.05, count)
    found = Rays(np.zeros((count, 3)), points / distance[:, None], unsure, np.full(count, 0.1**2))
    return found, seen + rng.normal(0, 0.3, (count, 2)), moved


def motions(share: float, predicted: F64 = CAMERA, sigma: float = 0.3) -> tuple[Motions | None, np.ndarray]:
    points, pixels, moved = scene(share)
    prior = np.diag([sigma**2] * 3 + [(0.3 * sigma) ** 2] * 3)
    return two_motions(points, pixels, K, SIGMA, SHAPE, np.eye(4), [(predicted, prior)], UNKNOWN), moved


def off(found: Motions | None, true: F64) -> float:
    assert found is not None
    step = inverse(true) @ found.pose
    return float(rotation_angle(step[:3, :3]) + np.linalg.norm(step[:3, 3]))


def test_one_motion_is_not_split() -> None:
    found, _ = motions(0.0)
    assert found is None


def test_forty_percent_that_move_together_are_found() -> None:
    found, moved = motions(0.4)
    assert off(found, CAMERA) < 0.03
    assert (found.moving == moved).mean() > 0.95
    assert not (found.moving & found.fits).any()


@pytest.mark.parametrize(("predicted", "true"), [(CAMERA, CAMERA), (OBJECT, OBJECT)], ids=["camera", "object"])
def test_where_both_are_seen_by_many_points_the_prediction_decides(predicted: F64, true: F64) -> None:
    found, _ = motions(0.5, predicted, 0.05)
    assert off(found, true) < 0.05


def test_a_small_thing_is_not_the_camera_whatever_the_prediction() -> None:
    found, moved = motions(0.15, OBJECT, 0.05)
    assert off(found, CAMERA) < 0.03
    assert found is not None and found.moving[moved].mean() > 0.9


def test_points_without_a_common_motion_are_outliers_not_a_second_motion() -> None:
    points, pixels, _ = scene(0.0)
    rng = np.random.default_rng(1)
    pixels[:90] += rng.uniform(-60, 60, (90, 2))
    assert two_motions(points, pixels, K, SIGMA, SHAPE, CAMERA, [(CAMERA, UNKNOWN)], UNKNOWN) is None


def test_few_points_tell_nothing() -> None:
    points, pixels, _ = scene(0.4, count=19)
    assert two_motions(points, pixels, K, SIGMA, SHAPE, CAMERA, [(CAMERA, UNKNOWN)], UNKNOWN) is None


def test_cells_count_alike_however_many_points_they_hold() -> None:
    pixels = np.array([[10.0, 10.0]] * 9 + [[500.0, 400.0]])
    weights = even_weights(pixels, SHAPE)
    assert weights.sum() == pytest.approx(1)
    assert weights[-1] == pytest.approx(0.5)


@pytest.mark.parametrize("moved_before", [False, True])
def test_scattered_points_are_a_second_motion_only_where_something_moved_before(moved_before: bool) -> None:
    """As on a nearly plain wall, where bad tracks lie all over the image, and as what is left of a thing whose other tracks are known."""
    points, pixels, _ = scene(0.0)
    bad = np.arange(len(pixels)) % 20 < 9
    pixels[bad] = project((points.positions()[bad] - OBJECT[:3, 3]) @ OBJECT[:3, :3], K)
    found = two_motions(points, pixels, K, SIGMA, SHAPE, CAMERA, [(CAMERA, UNKNOWN)], UNKNOWN, moved_before)
    assert (found is not None) == moved_before


def test_together_is_the_share_of_neighbours_with_the_same_motion() -> None:
    pixels = np.stack(np.meshgrid(np.arange(20.0), np.arange(20.0)), axis=-1).reshape(-1, 2)
    left, spread = pixels[:, 0] < 8, np.arange(len(pixels)) % 3 == 0
    assert together(pixels, left, ~left) > 0.9
    assert together(pixels, spread, ~spread) < 0.5
    assert together(pixels, left, np.zeros_like(left)) == 1.0
    assert together(pixels, left & (pixels[:, 1] < 1) & (pixels[:, 0] < 3), np.zeros_like(left)) == 0.0
    assert together(pixels, np.zeros_like(left), left) == 0.0
