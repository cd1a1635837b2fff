"""The verdict: each reason by itself, one line, and the worst of several."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from come_ros.verdict.judge import (
    DOUBTFUL,
    LEVELS,
    UNUSABLE,
    USABLE,
    Errors,
    Facts,
    Verdict,
    against_truth,
    judge,
    worst,
)

GOOD = Facts(
    keyframes=40, agreement=0.9, agreed=1.0, compared=1.0, extent=0.4, held=1.0, landmarks=400, confidence=5.0, lost=0.0,
    refused=0.0, left_out=0.0, loops=2, drift=0.01,
)  # fmt: skip


def test_a_good_run_is_usable_and_says_why() -> None:
    verdict = judge(GOOD)
    assert verdict.level == USABLE and verdict.line.startswith(
        "usable: images look as the result predicts (agreement 0.90 of 1); "
    )
    assert "hold 100% of the keyframes" in verdict.line and "2 loops closed" in verdict.line and not verdict.advice


@pytest.mark.parametrize(
    ("change", "level", "text"),
    [
        ({"keyframes": 2}, DOUBTFUL, "too few"),
        ({"agreement": 0.0}, UNUSABLE, "do not look as the result predicts"),
        (
            {"agreement": 0.0, "extent": 0.01},
            UNUSABLE,
            "the camera hardly moves (0.01 of the depth)",
        ),
        ({"agreement": 0.2}, UNUSABLE, "do not look as the result predicts"),
        ({"agreement": 0.4}, DOUBTFUL, "points that were followed hold the path, but depth between them is off"),
        ({"agreement": 0.4, "held": 0.9}, UNUSABLE, "do not look as the result predicts"),
        ({"agreed": 0.5}, DOUBTFUL, "hold the path"),
        ({"agreed": 0.5, "held": 0.9}, UNUSABLE, "50% of the images"),
        ({"agreed": 0.5, "held": math.nan}, UNUSABLE, "50% of the images"),
        ({"agreement": 0.55, "held": 0.9}, DOUBTFUL, "hardly look as the result predicts"),
        ({"agreement": 0.55, "held": 0.8}, UNUSABLE, "hold only 80% of the keyframes"),
        ({"compared": 0.1}, DOUBTFUL, "dark, blank or out of focus"),
        ({"compared": 0.1, "held": 0.0}, UNUSABLE, "dark, blank or out of focus"),
        ({"held": 0.2}, UNUSABLE, "20% of the keyframes"),
        ({"held": 0.7}, DOUBTFUL, "70% of the keyframes"),
        ({"lost": 0.5}, DOUBTFUL, "50% of the images"),
        ({"refused": 0.5}, DOUBTFUL, "refused"),
        ({"left_out": 0.5}, DOUBTFUL, "could not be used"),
        ({"drift": 0.3}, DOUBTFUL, "30% of the way"),
        ({"extent": 0.01}, DOUBTFUL, "nothing confirms it"),
    ],
)
def test_each_fault_has_its_level_its_reason_and_its_advice(change: dict[str, float], level: str, text: str) -> None:
    verdict = judge(replace(GOOD, **change))
    assert verdict.level == level and text in verdict.line and verdict.advice
    assert "\n" not in verdict.line and "Next: " in verdict.line
    assert all("; " not in reason for reason in verdict.reasons), "reasons are joined and split by it"


def test_what_is_unknown_is_no_reason() -> None:
    unknown = Facts(keyframes=10)
    assert judge(unknown).level == USABLE
    assert all(math.isnan(v) for k, v in vars(unknown).items() if k not in ("keyframes", "loops"))


def test_the_worst_of_several_counts_with_its_reasons_only() -> None:
    some = [
        Verdict(USABLE, ("fine",)),
        Verdict(UNUSABLE, ("bad",)),
        Verdict(DOUBTFUL, ("so so",)),
        Verdict(UNUSABLE, ("worse",), "run"),
    ]
    assert worst(some) == Verdict(UNUSABLE, ("bad", "worse"), "run")
    assert [worst([Verdict(a, ()), Verdict(b, ())]).level for a, b in itertools.pairwise(LEVELS)] == [
        DOUBTFUL,
        UNUSABLE,
    ]


@pytest.mark.parametrize(
    ("errors", "extent", "level"),
    [
        (Errors(), 0.5, None),
        (Errors(0.1, ("straight line", 0.5)), 0.5, USABLE),
        (Errors(0.3, ("straight line", 0.5)), 0.5, DOUBTFUL),
        (Errors(0.5, ("straight line", 0.5)), 0.5, UNUSABLE),
        (Errors(0.5, ("straight line", 0.5)), 0.01, DOUBTFUL),
        (Errors(0.5, ("straight line", 0.5), turn=0.1), 0.5, DOUBTFUL),
        (Errors(0.5, ("straight line", 0.5), turn=0.9), 0.5, UNUSABLE),
        (Errors(depth=0.2, depth_baseline=("constant depth", 0.3)), 0.5, USABLE),
        (Errors(depth=0.3, depth_baseline=("constant depth", 0.3)), 0.5, DOUBTFUL),
        (Errors(0.1, ("straight line", 0.5), short=39.0), 0.5, DOUBTFUL),
        (Errors(0.1, ("straight line", 0.5), short=0.1), 0.5, DOUBTFUL),
        (Errors(0.1, ("straight line", 0.5), 0.3, ("constant depth", 0.2)), 0.5, DOUBTFUL),
        (Errors(0.0, ("not moving", 0.0)), 0.0, None),
    ],
)
def test_truth_is_compared_with_the_best_trivial_baseline(errors: Errors, extent: float, level: str | None) -> None:
    verdict = against_truth(errors, extent)
    assert (verdict and verdict.level) == level
    assert verdict is None or verdict.reasons
