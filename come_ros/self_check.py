"""How far the accelerated model is from the dense one."""

from __future__ import annotations

import dataclasses

from .types import Prediction


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """One window by the accelerated and by the dense model. stamps_ns: of its frames. ms, dense_ms: what each pass took."""

    stamps_ns: tuple[int, ...]
    ours: Prediction
    dense: Prediction
    ms: float
    dense_ms: float
