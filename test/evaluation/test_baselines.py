"""Trivial baselines of paths: each is what it says, and wins where it should."""

import numpy as np
import pytest
from fakes import trajectory

from come_ros import geometry
from come_ros.evaluation.baselines import (
    ate_baselines,
    best_motion,
    constant_motion,
    random_walks,
    straight_line,
)
from come_ros.evaluation.poses import ate_rmse, rotation_error_deg


def test_a_straight_path_is_a_straight_line_and_a_curve_is_not():
    found = ate_baselines(trajectory("line", 20))
    assert (
        found["straight line"] < 1e-6 < found["best 5 % of random walks"] < found["random walk"] < found["not moving"]
    )
    curve = ate_baselines(trajectory("curve", 80))
    assert 0 < curve["straight line"] < curve["not moving"]


def test_not_moving_is_the_worst_that_any_alignment_leaves():
    truth = trajectory("curve", 30)
    rng = np.random.default_rng(0)
    worst = ate_baselines(truth)["not moving"]
    for _ in range(20):
        path = np.tile(np.eye(4), (30, 1, 1))
        path[:, :3, 3] = rng.normal(size=(30, 3))
        assert ate_rmse(path, truth) <= worst * (1 + 1e-9)


def test_the_best_constant_motion_of_a_constant_motion_is_itself():
    step = geometry.transform(geometry.rotation_from_vector([0.05, -0.1, 0.02]), [0.1, 0.02, 0.3])
    paths = [constant_motion(6, step), geometry.transform(np.eye(3), [4, 5, 6]) @ constant_motion(4, step)]
    found = best_motion(paths)
    np.testing.assert_allclose(found.step, step, atol=1e-9)
    assert found.length == pytest.approx(np.linalg.norm(step[:3, 3]))
    assert rotation_error_deg(found.step[:3, :3], step[:3, :3]) < 1e-5
    line = best_motion([straight_line(5, (0, 0, 1), 0.4)])
    np.testing.assert_allclose(line.direction, [0, 0, 1], atol=1e-12)
    assert line.length == pytest.approx(0.4)
    with pytest.raises(ValueError, match="no path has two poses"):
        best_motion([np.eye(4)[None]])


def test_walks_have_the_length_that_was_asked_for_and_are_the_same_again():
    walks = random_walks(50, length=0.3, walks=200, seed=1)
    steps = np.linalg.norm(np.diff(walks[:, :, :3, 3], axis=1), axis=2)
    assert np.sqrt((steps**2).mean()) == pytest.approx(0.3, rel=0.05)
    assert np.array_equal(walks, random_walks(50, length=0.3, walks=200, seed=1))
