"""Thin structures: pixels that choose between the structure and what is behind it."""

import numpy as np
import pytest

from come_ros.evaluation import thin_errors


def pole():
    """(truth, background) (1, 20, 40): a pole two pixels wide at 1 m before a wall at 4 m."""
    background = np.full((1, 20, 40), 4.0)
    truth = background.copy()
    truth[:, :, 20:22] = 1.0
    return truth, background


def test_a_perfect_map_and_a_map_without_the_pole() -> None:
    truth, background = pole()
    e = thin_errors(truth / 3, truth, background, 3.0)
    assert (e.precision, e.recall, e.f1, e.abs_rel, e.pixels) == (1, 1, 1, pytest.approx(0), 40)
    lost = thin_errors(background, truth, background, 1.0)
    assert (lost.precision, lost.recall, lost.f1) == (0, 0, 0) and lost.abs_rel == pytest.approx(3)


def test_a_pole_that_is_too_wide_costs_precision_only() -> None:
    truth, background = pole()
    wide = background.copy()
    wide[:, :, 18:24] = 1.0
    e = thin_errors(wide, truth, background, 1.0)
    assert e.recall == 1 and e.precision == pytest.approx(1 / 3) and e.f1 == pytest.approx(0.5)


def test_half_a_pole_and_the_middle_in_log_depth() -> None:
    truth, background = pole()
    half = background.copy()
    half[:, :10, 20:22] = 1.9  # nearer to 1 than to 4 in log depth: below 2
    half[:, 10:, 20:22] = 2.1
    e = thin_errors(half, truth, background, 1.0)
    assert e.recall == pytest.approx(0.5) and e.precision == 1
    assert e.abs_rel == pytest.approx((0.9 + 1.1) / 2)


def test_far_pixels_small_steps_and_missing_estimates() -> None:
    truth, background = pole()
    said = truth.copy()
    said[:, :, :5] = 1.0  # far from the pole: none of its business
    assert thin_errors(said, truth, background, 1.0).precision == 1
    said = truth.copy()
    said[:, :5, 20] = np.nan
    assert thin_errors(said, truth, background, 1.0).recall == pytest.approx(35 / 40)
    none = thin_errors(truth, background * 0.95, background, 1.0)
    assert none.pixels == 0 and np.isnan(none.recall)
