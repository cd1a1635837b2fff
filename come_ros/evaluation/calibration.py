"""Whether confidence predicts error: sparsification, AUSE and rank correlation.

Ilg et al., ECCV 2018: the least confident share of the pixels is left out and the error of the rest plotted; the oracle leaves out the
largest errors. AUSE is the area between the two curves, both divided by the error of all pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SHARES = np.linspace(0, 0.95, 20)


@dataclass(frozen=True, eq=False)
class Calibration:
    """curve, oracle: (K,) mean error of the pixels that are left, by share left out (SHARES), divided by that of all.

    ause: area between them, 0 is perfect. chance: the same area for uninformative confidence (a flat curve). spearman: rank
    correlation of confidence and -error, 1 is perfect, 0 nothing, NaN if either is constant.
    """

    curve: np.ndarray
    oracle: np.ndarray
    ause: float
    chance: float
    spearman: float


def calibration(confidence: np.ndarray, error: np.ndarray, shares: np.ndarray = SHARES) -> Calibration:
    """Computed from arrays of one shape, on pixels where both are finite. Pixels of equal confidence count with their mean error."""
    good = np.isfinite(confidence) & np.isfinite(error)
    c, e = np.asarray(confidence, np.float64)[good], np.asarray(error, np.float64)[good]
    if not len(e) or not e.mean() > 0:
        nothing = np.full(len(shares), np.nan)
        return Calibration(nothing, nothing, float("nan"), float("nan"), float("nan"))
    _, tie, count = np.unique(c, return_inverse=True, return_counts=True)
    expected = (np.bincount(tie, e) / count)[tie]
    curve = _curve(expected[np.argsort(-c, kind="stable")], shares)
    oracle = _curve(np.sort(e), shares)
    span = shares[-1] - shares[0]
    return Calibration(
        curve, oracle, _area(curve - oracle, shares) / span, _area(1 - oracle, shares) / span, spearman(c, -e)
    )


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation of (n,) and (n,) (Spearman 1904), ties by their mean rank; NaN if either is constant."""
    x, y = mean_ranks(a), mean_ranks(b)
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm > 0 else float("nan")


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """(n,) ranks from 0, equal values share the mean of theirs."""
    _, tie, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count + 1) / 2)[tie]


def _curve(error_best_first: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Mean error of what is kept when each share is left out from the end, divided by that of all."""
    n = len(error_best_first)
    kept = np.maximum(1, np.rint((1 - shares) * n).astype(int))
    return np.cumsum(error_best_first)[kept - 1] / kept / error_best_first.mean()


def _area(curve: np.ndarray, x: np.ndarray) -> float:
    """Trapezoidal rule."""
    return float(((curve[1:] + curve[:-1]) / 2 * np.diff(x)).sum())
