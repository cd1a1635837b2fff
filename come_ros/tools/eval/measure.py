"""Every variant on every window, next to trivial baselines; and the summary with intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import Cancelled
from ...evaluation import RatioHistogram, interval, paired_difference
from ...evaluation.difficulty import difficulty
from ...evaluation.window import WindowTruth, null_predictions, score_window, window_calibration
from ...types import Prediction
from .variants import DENSE, Variant

MEDIANS = ("rotation_deg", "direction_deg")  # over windows as well: some are far off
LOWER_IS_BETTER = {
    "abs_rel": True, "delta": False, "rmse": True, "log_rmse": True, "edge_abs_rel": True,
    "plain_abs_rel": True, "edge_delta": False, "ssim": False,
    "rotation_deg": True, "direction_deg": True, "auc5": False, "auc10": False, "auc30": False, "ate": True, "rpe_translation": True,
    "rpe_rotation_deg": True, "focal_error": True, "accuracy": True, "completeness": True, "chamfer": True,
    "normal_consistency": False, "ause": True, "spearman": False, "thin_precision": False, "thin_recall": False, "thin_f1": False,
    "thin_abs_rel": True,
}  # fmt: skip
SORTED_BY_DIFFICULTY = ("delta", "abs_rel", "rotation_deg")
PICTURES = 4
LEAST_LOST = 0.01  # of that recall: a share of less says nothing
SEEN_WELL = 0.5  # recall on thin pixels: of windows where the dense model has less, there is little to lose


@dataclass(frozen=True, eq=False)
class Picture:
    """A window to be drawn: what the dense model and the first accelerated one say of it."""

    truth: WindowTruth
    dense: Prediction
    other: Prediction | None


@dataclass(eq=False)
class Scores:
    """rows: variant -> its errors, window by window. windows: (source, index) of each. whole: source -> variant -> errors under one
    scale. difficulty: measures of each window. curves: variant -> sparsification curves, window by
    window. pictures: some windows, evenly spread."""

    rows: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    windows: list[tuple[str, int]] = field(default_factory=list)
    whole: dict[str, dict[str, RatioHistogram]] = field(default_factory=dict)
    difficulty: list[dict[str, float]] = field(default_factory=list)
    curves: dict[str, list[tuple[np.ndarray, np.ndarray]]] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)
    """(width, height) of the model's images"""
    images: int = 0

    def values(self, variant: str, metric: str) -> np.ndarray:
        """(windows,) NaN where it has no meaning."""
        return np.array([row.get(metric, np.nan) for row in self.rows[variant]])

    @property
    def metrics(self) -> list[str]:
        """All that was measured of any window."""
        return list(dict.fromkeys(name for rows in self.rows.values() for row in rows for name in row))


def measure(
    windows: Iterable[WindowTruth],
    variants: Sequence[Variant],
    expected: int,
    bar: Any,
    stopped: Any,
    quick: bool = False,
) -> Scores:
    """Scores the variants, the first of which is the dense model, and the trivial baselines. expected: windows there will be, at most. bar:
    updated once a window. stopped: polled. quick: see score_window. Raises Cancelled."""
    scores = Scores()
    shown = set(np.linspace(0, max(0, expected - 1), PICTURES + 2).round().astype(int)[1:-1].tolist())
    for number, truth in enumerate(windows):
        if stopped():
            raise Cancelled("on request")
        said = {v.name: v.predict(truth.images) for v in variants}
        dense = said[DENSE]
        for name, prediction in {**said, **null_predictions(truth.images)}.items():
            base = dense if name in said and name != DENSE else None
            scores.rows.setdefault(name, []).append(score_window(prediction, truth, base, quick))
            if truth.depth is not None:
                whole = scores.whole.setdefault(truth.source, {}).setdefault(name, RatioHistogram())
                whole.add(prediction.depth, truth.depth)
        for name in [] if quick else list(said)[:2]:
            trust = window_calibration(said[name], truth)
            if trust is not None:
                scores.curves.setdefault(name, []).append((trust.curve, trust.oracle))
        if number in shown:
            scores.pictures.append(Picture(truth, dense, said[variants[1].name] if len(variants) > 1 else None))
        scores.difficulty.append({} if quick else difficulty(truth))
        scores.windows.append((truth.source, truth.index))
        scores.size = (truth.images.shape[2], truth.images.shape[1])
        scores.images = len(truth.images)
        bar.update()
    return scores


def summary(scores: Scores, seed: int = 0) -> dict[str, Any]:
    """variant -> metric -> {"value", "low", "high"} with the 95 % interval over windows, and "vs_dense": the same of the paired difference
    (of means). Metrics without any value are left out."""
    out: dict[str, Any] = {}
    for variant in scores.rows:
        mine: dict[str, Any] = {}
        for metric in scores.metrics:
            values = scores.values(variant, metric)
            if not np.isfinite(values).any():
                continue
            mine[metric] = interval(values, metric in MEDIANS, seed)._asdict()
            if metric in LOWER_IS_BETTER and variant != DENSE:
                base = scores.values(DENSE, metric)
                mine[metric]["vs_dense"] = paired_difference(values, base, seed=seed)._asdict()
        out[variant] = mine
    return out


def sequences(scores: Scores) -> dict[str, dict[str, dict[str, float]]]:
    """source -> variant -> depth errors of all its windows under one scale."""
    return {
        source: {
            name: {"abs_rel": e.abs_rel, "delta": e.delta, "rmse": e.rmse, "log_rmse": e.log_rmse}
            for name, e in ((name, histogram.errors()) for name, histogram in whole.items())
        }
        for source, whole in scores.whole.items()
    }


def by_difficulty(scores: Scores, parts: int = 3, least: int = 4) -> dict[str, list[dict[str, Any]]]:
    """measure of difficulty -> the windows in `parts` equal parts by it, ascending: its range ("low", "high"), how many windows, and
    "errors": variant -> metric -> value, as in the summary. Measures known of fewer than `parts` x `least` windows are left out."""
    out: dict[str, list[dict[str, Any]]] = {}
    for measured in dict.fromkeys(name for row in scores.difficulty for name in row):
        values = np.array([row.get(measured, np.nan) for row in scores.difficulty])
        order = np.argsort(values, kind="stable")[: np.isfinite(values).sum()]
        if len(order) < parts * least:
            continue
        out[measured] = [
            {
                "low": float(values[part[0]]), "high": float(values[part[-1]]), "windows": len(part),
                "errors": {variant: _errors(scores, variant, part) for variant in scores.rows},
            }
            for part in np.array_split(order, parts)
        ]  # fmt: skip
    return out


def _errors(scores: Scores, variant: str, windows: np.ndarray) -> dict[str, float]:
    """Of some windows: mean or median, as in the summary."""
    found = {}
    for metric in SORTED_BY_DIFFICULTY:
        values = scores.values(variant, metric)[windows]
        if np.isfinite(values).any():
            found[metric] = float(np.nanmedian(values) if metric in MEDIANS else np.nanmean(values))
    return found


def thin_recovery(scores: Scores, merged: str, refined: str) -> dict[str, float] | None:
    """Of windows where the dense recall on thin pixels is SEEN_WELL or more: how many, the recalls, and the share of what `merged` loses
    that `refined` wins back (NaN if less than LEAST_LOST is lost). None if there is no such window."""
    dense, ours, better = (scores.values(name, "thin_recall") for name in (DENSE, merged, refined))
    there = np.isfinite(dense) & (dense >= SEEN_WELL)
    if not there.any():
        return None
    d, m, r = (float(v[there].mean()) for v in (dense, ours, better))
    return {
        "windows": int(there.sum()), "dense": d, "merged": m, "refined": r,
        "recovered": (r - m) / (d - m) if d - m >= LEAST_LOST else float("nan"),
    }  # fmt: skip
