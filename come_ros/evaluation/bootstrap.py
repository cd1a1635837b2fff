"""Intervals of means over windows by the bootstrap (Efron 1979, percentile method), seeded: the same numbers give the same interval.

Consecutive windows of one recording are not independent: they are resampled in blocks of neighbours (Politis and Romano 1992, circular).
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
LEVEL = 95.0
LEAST = 8
"""least number of independent windows for a usable interval; with fewer it is far too narrow"""


class Interval(NamedTuple):
    """A value and the bounds of its interval."""

    value: float
    low: float
    high: float


def block_length(windows: int, independent: bool) -> int:
    """Number of neighbours that are resampled together: 1 if all windows are independent, else the cube root of their number."""
    return 1 if independent else max(1, math.ceil(windows ** (1 / 3) - 1e-9))


def interval(values: np.ndarray, median: bool = False, seed: int = 0, block: int = 1) -> Interval:
    """Mean (or median) of (n,) over windows, ignoring NaN. All NaN: NaN. block: see block_length."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return Interval(*(float("nan"),) * 3)
    of = np.median if median else np.mean
    return Interval(float(of(values)), *_bounds(of(values[_picks(len(values), seed, block)], axis=1)))


def paired_difference(
    ours: np.ndarray, base: np.ndarray, relative: bool = False, seed: int = 0, block: int = 1
) -> Interval:
    """mean(ours) - mean(base) over the same windows, resampled together; relative: divided by mean(base). Windows where either is NaN
    are left out."""
    ours, base = np.asarray(ours, np.float64), np.asarray(base, np.float64)
    both = np.isfinite(ours) & np.isfinite(base)
    ours, base = ours[both], base[both]
    if not len(ours):
        return Interval(*(float("nan"),) * 3)
    picks = _picks(len(ours), seed, block)
    a, b = ours[picks].mean(axis=1), base[picks].mean(axis=1)
    value = ours.mean() - base.mean()
    if not relative:
        return Interval(float(value), *_bounds(a - b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return Interval(float(value / base.mean()), *_bounds((a - b) / b))


def best_share(values: np.ndarray, lower_is_better: bool = True, seed: int = 0, block: int = 1) -> np.ndarray:
    """(k,) of (k, n) values of k methods on the same windows: the share of resamples in which each has the best mean. This is the
    certainty that the best of many really is the best, which the interval of one method chosen afterwards does not show. No NaN."""
    means = values[:, _picks(values.shape[1], seed, block)].mean(axis=2)
    first = np.argmin(means if lower_is_better else -means, axis=0)
    return np.bincount(first, minlength=len(values)) / RESAMPLES


@functools.lru_cache(maxsize=32)
def _picks(n: int, seed: int, block: int) -> np.ndarray:
    starts = np.random.default_rng(seed).integers(n, size=(RESAMPLES, -(-n // block)))
    return ((starts[..., None] + np.arange(block)) % n).reshape(RESAMPLES, -1)[:, :n]


def _bounds(means: np.ndarray) -> tuple[float, float]:
    outside = (100 - LEVEL) / 2
    low, high = np.percentile(means, [outside, 100 - outside])
    return float(low), float(high)
