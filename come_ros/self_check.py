"""Compares the accelerated model with the dense one, in output and speed, on the window that a pipeline has just reconstructed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .evaluation import prediction_difference
from .pipeline import ReconstructionPipeline
from .types import Prediction

LEAST_PASSES, MOST_PASSES = 3, 12  # of each model
STEADY = 0.1  # spread of the speed-ups, relative


@dataclass(frozen=True, eq=False)
class Comparison:
    """One window by the accelerated and by the dense model. stamps_ns: of its frames. ms, dense_ms: duration of each pass."""

    stamps_ns: tuple[int, ...]
    ours: Prediction
    dense: Prediction
    ms: float
    dense_ms: float


class Speedups:
    """Ratios of times of passes taken in turn, dense / accelerated. values: of each pair."""

    def __init__(self) -> None:
        self.values: list[float] = []

    @property
    def spread(self) -> float:
        """How far they lie from their median: half of the middle half's width, relative; NaN with fewer than LEAST_PASSES."""
        if len(self.values) < LEAST_PASSES:
            return float("nan")
        low, median, high = np.percentile(self.values, [25, 50, 75])
        return float((high - low) / 2 / median)

    @property
    def steady(self) -> bool:
        """Whether their median says something."""
        return self.spread <= STEADY

    def unsettled(self, most: int) -> bool:
        """Whether another pair would help, with at most so many."""
        return len(self.values) < most and not self.steady

    def result(self) -> dict[str, Any]:
        return {"spread": self.spread, "passes": len(self.values), "steady": self.steady}


class SelfCheck:
    """Runs the last window of `pipeline` again without changing its state. Call it in the pipeline's thread."""

    def __init__(self, pipeline: ReconstructionPipeline) -> None:
        self._pipeline = pipeline
        self._warm_for: Any = None  # (model, shape of its images) of the last comparison

    def compare(self, stop: Callable[[], bool] | None = None) -> Comparison | None:
        """Runs the last window by the accelerated and then by the dense model; None if there was no window yet. For a new input
        shape both first run untimed until they have warmed up. Raises Cancelled."""
        given = self._pipeline.last_input
        if given is None:
            return None
        ours = self._pipeline.backbone
        models = ours, ours.dense()
        if self._warm_for != (ours, given.images.shape):
            # with CUDA graphs the first pass of a form runs step by step, and the second one is recorded
            for _ in range(1 if ours.description.get("optimize", "none") == "none" else 2):
                for model in models:
                    model.predict(given.images, stop, given.known)
            self._warm_for = ours, given.images.shape
        made: list[Prediction] = []
        ms: list[float] = []
        for model in models:
            begun = time.perf_counter()
            made.append(model.predict(given.images, stop, given.known))
            ms.append(1e3 * (time.perf_counter() - begun))
        return Comparison(given.stamps_ns, made[0], made[1], ms[0], ms[1])

    def measure(self, most: int = MOST_PASSES, stop: Callable[[], bool] | None = None) -> dict[str, Any] | None:
        """Gain and cost of the accelerator on the last window.

        speedup (median time dense / accelerated), its spread over so many `passes` of each model, whether it is `steady`, kept_ratio,
        read_ratio, ms, dense_ms, frames, and prediction_difference. None if there was no window yet. Slow: repeated until the speed-up
        is steady, `most` times at most. Raises Cancelled.
        """
        timed: list[Comparison] = []
        speedups = Speedups()
        while speedups.unsettled(most):
            both = self.compare(stop)
            if both is None:
                return None
            timed.append(both)
            speedups.values.append(both.dense_ms / both.ms)
        first = timed[0]
        ms, dense_ms = (float(np.median([getattr(c, name) for c in timed])) for name in ("ms", "dense_ms"))
        ours: dict[str, Any] = {"speedup": dense_ms / ms, **speedups.result(), "ms": ms, "dense_ms": dense_ms}
        ours["frames"] = len(first.ours.images)
        ours |= {"kept_ratio": first.ours.kept_ratio, "read_ratio": first.ours.read_ratio}
        return {**ours, **prediction_difference(first.ours, first.dense)}
