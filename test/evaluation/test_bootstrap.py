"""Intervals of means: seeded, and as wide as they should be."""

import numpy as np
import pytest
import scipy.stats

from come_ros.evaluation import best_share, interval, paired_difference


def test_the_same_numbers_give_the_same_interval_and_it_agrees_with_scipy() -> None:
    values = np.random.default_rng(1).normal(5, 2, 80)
    found = interval(values)
    assert found == interval(values) and found.value == pytest.approx(values.mean())
    theirs = scipy.stats.bootstrap((values,), np.mean, method="percentile", n_resamples=5000, rng=0)
    assert found.low == pytest.approx(theirs.confidence_interval.low, abs=0.05)
    assert found.high == pytest.approx(theirs.confidence_interval.high, abs=0.05)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    hits = sum(low <= 1 <= high for _, low, high in (interval(rng.normal(1, 1, 60)) for _ in range(100)))
    assert 86 <= hits <= 100


def test_windows_without_a_value_are_left_out() -> None:
    assert interval(np.array([1.0, np.nan, 3.0])).value == 2
    assert np.isnan(interval(np.array([np.nan])).low)
    assert interval(np.array([1.0, 2.0, 90.0]), median=True).value == 2


def test_pairing_takes_away_what_windows_have_in_common() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(1, 100, 50)
    ours = base + 0.5 + 0.01 * rng.standard_normal(50)
    value, low, high = paired_difference(ours, base)
    assert value == pytest.approx(0.5, abs=0.01) and 0.49 < low <= value <= high < 0.51
    assert paired_difference(ours, base, relative=True).value == pytest.approx(ours.mean() / base.mean() - 1)
    ours[0] = np.nan
    assert paired_difference(ours, base).value == pytest.approx((ours - base)[1:].mean())


def test_the_best_of_many_is_as_sure_as_it_is_ahead() -> None:
    rng = np.random.default_rng(3)
    common = rng.normal(0, 5, 60)  # of each window: hard ones are hard for all
    ahead, level = np.stack([common - 1, common]), rng.normal(0, 1, (4, 60))
    np.testing.assert_array_equal(best_share(ahead), (1, 0))
    np.testing.assert_array_equal(best_share(ahead, lower_is_better=False), (0, 1))
    shares = best_share(level - level.mean(axis=1, keepdims=True))
    assert shares.sum() == pytest.approx(1) and shares.min() > 0.1
