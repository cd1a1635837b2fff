"""Sparsification by hand, rank correlation against scipy."""

import numpy as np
import pytest
import scipy.stats

from come_ros.evaluation import calibration, spearman


def test_sparsification_by_hand() -> None:
    error, confidence = np.array([4.0, 1, 2, 1]), np.array([3.0, 1, 2, 4])  # least sure first: errors 1, 2, 4, 1
    c = calibration(confidence, error, np.array([0, 0.25, 0.5, 0.75]))
    assert c.curve * 2 == pytest.approx([2, 7 / 3, 5 / 2, 1])
    assert c.oracle * 2 == pytest.approx([2, 4 / 3, 1, 1])
    gaps = np.array([0, 0.5, 0.75, 0])
    assert c.ause == pytest.approx((gaps[1:] + gaps[:-1]).sum() / 2 / 3)
    assert c.chance == pytest.approx(((0 + 1 / 3) + (1 / 3 + 0.5) + (0.5 + 0.5)) / 2 / 3)


def test_perfect_useless_and_wrong_confidence() -> None:
    error = np.random.default_rng(0).exponential(1.0, 2000)
    assert calibration(-error, error).ause == pytest.approx(0, abs=1e-12)
    assert calibration(-error, error).spearman == pytest.approx(1)
    flat = calibration(np.ones(2000), error)
    assert flat.ause == pytest.approx(flat.chance) and np.isnan(flat.spearman)  # ties say nothing
    wrong = calibration(error, error)
    assert wrong.ause > flat.chance > 0.3 and wrong.spearman == pytest.approx(-1)


def test_pixels_without_truth_do_not_count() -> None:
    error, confidence = np.array([1.0, np.nan, 2, 3]), np.array([3.0, 9, 2, 1])
    assert calibration(confidence, error).ause == pytest.approx(0)
    assert np.isnan(calibration(confidence, np.full(4, np.nan)).ause)
    assert np.isnan(calibration(confidence, np.zeros(4)).ause)  # nothing is wrong: nothing to tell


@pytest.mark.parametrize("seed", range(3))
def test_rank_correlation_agrees_with_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 12, 200).astype(float)  # many ties
    b = a + rng.standard_normal(200) * 5
    assert spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic)
