"""Scores every variant and the trivial baselines on every window, and summarises each source with intervals."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import Cancelled
from ...evaluation import RatioHistogram, best_share, block_length, interval, paired_difference
from ...evaluation.bootstrap import LEAST
from ...evaluation.difficulty import difficulty
from ...evaluation.window import (
    TruePath,
    WindowTruth,
    motion_baselines,
    null_predictions,
    score_window,
    window_calibration,
)
from ...types import Prediction
from .sources import RENDERED
from .variants import DENSE, Variant

MEDIANS = ("rotation_deg", "direction_deg", "length_ratio")  # median over windows as well: some are far off
LOWER_IS_BETTER = {
    "abs_rel": True, "frame_abs_rel": True, "delta": False, "rmse": True, "log_rmse": True, "edge_abs_rel": True,
    "plain_abs_rel": True, "edge_delta": False, "ssim": False,
    "rotation_deg": True, "direction_deg": True, "auc5": False, "auc10": False, "auc30": False, "ate": True,
    "rpe_translation": True, "step_error": True,
    "rpe_rotation_deg": True, "focal_error": True, "accuracy": True, "completeness": True, "chamfer": True,
    "normal_consistency": False, "ause": True, "spearman": False, "thin_precision": False, "thin_recall": False, "thin_f1": False,
    "thin_abs_rel": True,
}  # fmt: skip
SORTED_BY_DIFFICULTY = ("delta", "abs_rel", "rotation_deg")
PICTURES = 4
LEAST_LOST = 0.01  # least recall that must be lost: a share of less is meaningless
ALIKE = 2  # windows after which a variant that equals another bit for bit is not run any further
SEEN_WELL = 0.5  # recall on thin pixels: windows where the dense model has less are not used


@dataclass(frozen=True, eq=False)
class Picture:
    """A window to be drawn, with the predictions of the dense model and of the first other variant. name: of the latter."""

    truth: WindowTruth
    dense: Prediction
    other: Prediction | None
    name: str


@dataclass(eq=False)
class Scores:
    """rows: variant -> its errors, window by window. windows: (source, index) of each. whole: source -> variant -> errors under one
    scale. difficulty: measures of each window. paths: true camera paths. curves: variant -> sparsification curves, window by
    window. pictures: some windows, evenly spread. same: variant -> an earlier one with identical predictions. stopped: whether it
    was stopped before the last window."""

    rows: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    windows: list[tuple[str, int]] = field(default_factory=list)
    whole: dict[str, dict[str, RatioHistogram]] = field(default_factory=dict)
    difficulty: list[dict[str, float]] = field(default_factory=list)
    paths: list[TruePath] = field(default_factory=list)
    curves: dict[str, list[tuple[np.ndarray, np.ndarray]]] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)
    same: dict[str, str] = field(default_factory=dict)
    stopped: bool = False
    size: tuple[int, int] = (0, 0)
    """(width, height) of the model's images"""
    images: int = 0
    seed: int = 0
    """of the bootstrap"""

    def values(self, variant: str, metric: str) -> np.ndarray:
        """(windows,), NaN where undefined."""
        return np.array([row.get(metric, np.nan) for row in self.rows[variant]])

    @property
    def metrics(self) -> list[str]:
        """All metrics measured on any window."""
        return list(dict.fromkeys(name for rows in self.rows.values() for row in rows for name in row))

    @property
    def sources(self) -> list[str]:
        """The sources of the windows, in order."""
        return list(dict.fromkeys(source for source, _ in self.windows))

    def of(self, source: str) -> Scores:
        """The scores of one source. Sources are never mixed, because results do not transfer between them."""
        at = [i for i, (name, _) in enumerate(self.windows) if name == source]
        if len(at) == len(self.windows):
            return self
        return Scores(
            {name: [rows[i] for i in at] for name, rows in self.rows.items()},
            [self.windows[i] for i in at],
            {name: whole for name, whole in self.whole.items() if name == source},
            [self.difficulty[i] for i in at],
            [self.paths[i] for i in at],
            same=self.same, stopped=self.stopped, size=self.size, images=self.images, seed=self.seed,
        )  # fmt: skip

    @property
    def rendered(self) -> bool:
        """Whether every window is a different place; the windows of a recording are neighbours."""
        return all(source in RENDERED for source, _ in self.windows)

    @property
    def block(self) -> int:
        """Neighbouring windows that are resampled together."""
        return block_length(len(self.windows), self.rendered)

    @property
    def independent(self) -> int:
        """The number of independent windows."""
        return len(self.windows) // self.block

    def interval(self, variant: str, metric: str) -> dict[str, float]:
        """Mean or median of a metric, with its interval."""
        found = interval(self.values(variant, metric), metric in MEDIANS, self.seed, self.block)
        return found._asdict()

    def difference(self, ours: np.ndarray, base: np.ndarray) -> dict[str, Any]:
        """Paired difference of (windows,) of a metric, as of paired_difference. sure: its interval excludes zero and there are
        enough windows."""
        found = paired_difference(ours, base, seed=self.seed, block=self.block)
        there = int((np.isfinite(ours) & np.isfinite(base)).sum()) // self.block
        return {**found._asdict(), "sure": bool((found.low > 0 or found.high < 0) and there >= LEAST)}

    def best_share(self, values: np.ndarray, lower_is_better: bool) -> np.ndarray:
        """See evaluation.best_share."""
        return best_share(values, lower_is_better, self.seed, self.block)


def measure(
    windows: Iterable[WindowTruth],
    variants: Sequence[Variant],
    expected: int,
    bar: Any,
    stopped: Any,
    quick: bool = False,
    seed: int = 0,
) -> Scores:
    """Scores the variants, the first of which is the dense model, and the trivial baselines that run no model. expected: greatest
    number of windows. bar: updated once per window. stopped: polled, also within a pass; windows completed by then are kept. quick:
    see score_window. Raises Cancelled if there is none."""
    scores = Scores(seed=seed)
    shown = set(np.linspace(0, max(0, expected - 1), PICTURES + 2).round().astype(int)[1:-1].tolist())
    said_so_far: dict[str, list[bytes]] = {}
    for number, truth in enumerate(windows):
        left = [v for v in variants if v.name not in scores.same]
        try:
            said = {}
            for v in left:
                if stopped():
                    raise Cancelled("on request")
                said[v.name] = v.predict(truth, stopped)
            dense, made = said[DENSE], {**said, **null_predictions(truth.images)}
            rows = {}
            for name, prediction in made.items():
                if stopped():
                    raise Cancelled("on request")
                rows[name] = score_window(prediction, truth, dense if name in said and name != DENSE else None, quick)
        except Cancelled:
            if not scores.windows:
                raise
            scores.stopped = True
            break
        if number < ALIKE:
            for name, prediction in said.items():
                said_so_far.setdefault(name, []).append(_digest(prediction))
        for name, prediction in made.items():
            scores.rows.setdefault(name, []).append(rows[name])
            if truth.depth is not None:
                whole = scores.whole.setdefault(truth.source, {}).setdefault(name, RatioHistogram())
                whole.add(prediction.depth, truth.depth)
        for name in [] if quick else list(said)[:2]:
            trust = window_calibration(said[name], truth)
            if trust is not None:
                scores.curves.setdefault(name, []).append((trust.curve, trust.oracle))
        if number in shown:
            name = variants[1].name if len(variants) > 1 else ""
            scores.pictures.append(Picture(truth, dense, said.get(name), name))
        scores.difficulty.append({} if quick else difficulty(truth))
        scores.windows.append((truth.source, truth.index))
        scores.paths.append(TruePath(truth.world_from_camera, truth.least_baseline))
        scores.size = (truth.images.shape[2], truth.images.shape[1])
        scores.images = len(truth.images)
        if number == ALIKE - 1:
            _leave_out_alike(scores, said_so_far)
        bar.update()
    if stopped():
        if not scores.windows:
            raise Cancelled("on request")
        scores.stopped = scores.stopped or len(scores.windows) < expected
    for source in scores.sources:
        at = [i for i, (name, _) in enumerate(scores.windows) if name == source]
        for name, moved in motion_baselines([scores.paths[i] for i in at], seed).items():
            whole_run = scores.rows.setdefault(name, [{} for _ in scores.windows])
            for i, row in zip(at, moved, strict=True):
                whole_run[i] = row
    return scores


def _digest(prediction: Prediction) -> bytes:
    """A digest that differs for predictions that differ in any bit."""
    digest = hashlib.sha256()
    for array in (prediction.depth, prediction.confidence, prediction.window_from_camera, prediction.intrinsics):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()


def _leave_out_alike(scores: Scores, said: dict[str, list[bytes]]) -> None:
    """Drops variants whose settings change nothing here (a grid that no layer reads, a cap)."""
    first: dict[tuple[bytes, ...], str] = {}
    for name, digests in said.items():
        earlier = first.setdefault(tuple(digests), name)
        if earlier != name:
            scores.same[name] = earlier
            del scores.rows[name]
            for whole in scores.whole.values():
                whole.pop(name, None)


def summary(scores: Scores) -> dict[str, Any]:
    """Of one source: variant -> metric -> {"value", "low", "high"} with the 95 % interval over windows, and "vs_dense": the paired
    difference (of means), see Scores.difference. Metrics without any value are left out."""
    out: dict[str, Any] = {}
    for variant in scores.rows:
        mine: dict[str, Any] = {}
        for metric in scores.metrics:
            values = scores.values(variant, metric)
            if not np.isfinite(values).any():
                continue
            mine[metric] = scores.interval(variant, metric)
            if metric in LOWER_IS_BETTER and variant != DENSE:
                base = scores.values(DENSE, metric)
                if np.isfinite(base).any():
                    mine[metric]["vs_dense"] = scores.difference(values, base)
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
    "errors": variant -> metric -> value, as in the summary. Measures known for fewer than `parts` x `least` windows are left out."""
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
    """Mean or median over some windows, as in the summary."""
    found = {}
    for metric in SORTED_BY_DIFFICULTY:
        values = scores.values(variant, metric)[windows]
        if np.isfinite(values).any():
            found[metric] = float(np.nanmedian(values) if metric in MEDIANS else np.nanmean(values))
    return found


def thin_recovery(scores: Scores, merged: str, refined: str) -> dict[str, float] | None:
    """For windows where the dense recall on thin pixels is SEEN_WELL or more: their number, the recalls, and the share of the loss
    of `merged` that `refined` recovers (NaN if less than LEAST_LOST is lost). None if there is no such window."""
    dense, ours, better = (scores.values(name, "thin_recall") for name in (DENSE, merged, refined))
    there = np.isfinite(dense) & (dense >= SEEN_WELL)
    if not there.any():
        return None
    d, m, r = (float(v[there].mean()) for v in (dense, ours, better))
    return {
        "windows": int(there.sum()), "dense": d, "merged": m, "refined": r,
        "recovered": (r - m) / (d - m) if d - m >= LEAST_LOST else float("nan"),
    }  # fmt: skip
