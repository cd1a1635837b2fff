"""The verdict on a recording: what the run knows of itself, and what its truth says where there is any."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ...verdict.judge import Errors, Verdict, against_truth, worst

BEST_WALKS = "best 5 %"  # of many random walks: chosen with the truth, so no baseline

LEAST_TURN_DEG = 0.5  # from image to image: a camera that turns less than that shows nothing by its rotation


def errors_of(metrics: Mapping[str, Any]) -> Errors:
    """From the scores of a run, as `bag` and `demo` write them."""
    path, depth = metrics.get("trajectory"), metrics.get("depth")
    out: dict[str, Any] = {}
    if path and path["ate_rmse_m"]["come_ros"] is not None:
        out["path"], out["path_baseline"] = _best(path["ate_rmse_m"])
        out["short"] = math.nan if path.get("short") is None else path["short"]
    if depth:
        out["depth"], out["depth_baseline"] = _best({name: e["abs_rel"] for name, e in depth["per_sequence"].items()})
    turn = metrics.get("rotation")
    if turn and turn["median_deg"]["no rotation"] > LEAST_TURN_DEG:
        out["turn"] = turn["median_deg"]["come_ros"] / turn["median_deg"]["no rotation"]
    return Errors(**out)


def _best(values: Mapping[str, float]) -> tuple[float, tuple[str, float]]:
    """Ours, and the best of the trivial baselines with its name."""
    others = {k: v for k, v in values.items() if k != "come_ros" and not k.startswith(BEST_WALKS) and v is not None}
    name = min(others, key=lambda k: others[k])
    return values["come_ros"], (name, others[name])


def with_truth(own: Verdict, metrics: Mapping[str, Any], extent: float) -> Verdict:
    """The run's own verdict, and what the truth says of it. extent: as in verdict.judge.Facts."""
    by_truth = against_truth(errors_of(metrics), extent)
    return own if by_truth is None else worst([own, by_truth])


def for_metrics(verdict: Verdict) -> dict[str, Any]:
    """For metrics.json; `read` reads it."""
    return {"level": verdict.level, "reasons": list(verdict.reasons), "advice": verdict.advice}


def read(found: Mapping[str, Any]) -> Verdict:
    return Verdict(found["level"], tuple(found["reasons"]), found["advice"])


def of_metrics(metrics: Mapping[str, Any]) -> Verdict:
    """Of a whole run."""
    return read(metrics["verdict"])
