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


@dataclass(frozen=True, eq=False)
class Comparison:
    """One window by the accelerated and by the dense model. stamps_ns: of its frames. ms, dense_ms: duration of each pass."""

    stamps_ns: tuple[int, ...]
    ours: Prediction
    dense: Prediction
    ms: float
    dense_ms: float


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

    def measure(self, repeats: int = 3, stop: Callable[[], bool] | None = None) -> dict[str, float] | None:
        """Gain and cost of the accelerator on the last window.

        speedup (median time dense / accelerated), kept_ratio, read_ratio, ms, dense_ms, frames, and prediction_difference. None if
        there was no window yet. Slow: 2 (repeats + 1) passes. Raises Cancelled.
        """
        timed = [c for c in (self.compare(stop) for _ in range(max(1, repeats))) if c is not None]
        if not timed:
            return None
        first = timed[0]
        ms, dense_ms = (float(np.median([getattr(c, name) for c in timed])) for name in ("ms", "dense_ms"))
        ours = {"speedup": dense_ms / ms, "ms": ms, "dense_ms": dense_ms, "frames": len(first.ours.images)}
        ours |= {"kept_ratio": first.ours.kept_ratio, "read_ratio": first.ours.read_ratio}
        return {**ours, **prediction_difference(first.ours, first.dense)}
