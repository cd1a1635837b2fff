"""The benchmark of the verdict: what it counts as an error, how it chooses limits, and that its halves share no panorama."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")

from benchmark.robustness import verdict
from benchmark.robustness.verdict_cases import HALVES, OF_PANORAMAS, TEST, TUNE, cases, different

from come_ros.verdict import judge as rules
from come_ros.verdict.judge import DOUBTFUL, UNUSABLE, USABLE, Facts


def row(worth: str, agreement: float | None, confidence: float | None = 5.0, held: float = 1.0) -> dict[str, Any]:
    """As it is kept: what is unknown is None."""
    facts = dataclasses.asdict(Facts(keyframes=40, compared=1.0, extent=0.5, held=held))
    known = {k: None if v != v else v for k, v in facts.items()}
    return {"worth": worth, "facts": {**known, "agreement": agreement, "confidence": confidence}}


def test_what_is_kept_is_judged_by_the_limits_of_today(monkeypatch: pytest.MonkeyPatch) -> None:
    one = row(verdict.GOOD, 0.7)
    assert verdict.judged(one)["level"] == USABLE
    assert verdict.judged({**one, "level": UNUSABLE})["level"] == USABLE
    monkeypatch.setattr(rules, "AGREES", 0.8)
    assert verdict.judged(one)["level"] == DOUBTFUL


def test_trying_a_limit_leaves_it_as_it_was() -> None:
    before, rows = rules.AGREES, [row(verdict.GOOD, 0.7)]
    assert [r["level"] for r in verdict.with_limit(rows, "AGREES", 0.8)] == [DOUBTFUL]
    assert before == rules.AGREES and all(hasattr(rules, name) for name in verdict.LIMITS)
    assert f"| AGREES **{before:g}** | 0 | 0 | 0 | 0 |" in verdict.limits(rows)


def test_a_trivial_judge_gets_the_best_limit_there_is() -> None:
    rows = [row(verdict.GOOD, a) for a in (0.6, 0.8, 0.9)] + [row(verdict.WORTHLESS, a) for a in (0.1, 0.2, None)]
    limit = verdict.chosen_limit(rows, "agreement")
    assert 0.2 < limit < 0.6
    found = verdict.errors(verdict.by_one_number(rows, "agreement", limit))
    assert (
        found["false usable"] == found["false unusable"] == 0 and found[verdict.GOOD] == found[verdict.WORTHLESS] == 3
    )


def test_errors_of_all_judges_stand_side_by_side() -> None:
    halves = {
        TUNE: {"room 0": row(verdict.GOOD, 0.9, 9.0), "street, every 1 m": row(verdict.WORTHLESS, 0.9, 1.0)},
        TEST: {"room 0": row(verdict.GOOD, 0.9, 9.0), "street, every 1 m": row(verdict.WORTHLESS, 0.1, 8.0)},
    }
    judged = {half: {n: verdict.judged(r) for n, r in rows.items()} for half, rows in halves.items()}
    lines = verdict.comparison(judged).splitlines()
    assert any(line.startswith("| verdict | 1 of 1 | 0 of 1 | 0 | 0 of 1 | 0 of 1 |") for line in lines)
    assert any(line.startswith("| always usable | 1 of 1 | 0 of 1 | 0 | 1 of 1 |") for line in lines)
    assert any(line.startswith("| confidence alone, at least 5 | 0 of 1 | 0 of 1 | 0 | 1 of 1 |") for line in lines)
    assert any(line.startswith("| verdict, without the panoramas | 0 of 0 | 0 of 1 | 0 | 0 of 0 |") for line in lines)


def test_a_panorama_of_two_names_is_in_one_half(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [cv2.resize(rng.random((8, 16, 3), np.float32), (128, 64)) for _ in range(3)]
    for name, picture in zip(("a", "b", "c/a again", "d"), (*pictures[:2], pictures[0], pictures[2]), strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        assert cv2.imwrite(str(tmp_path / f"{name}.hdr"), picture)
    assert [path.name for path in different(tmp_path)] == ["a.hdr", "b.hdr", "d.hdr"]


def test_what_is_made_of_panoramas_is_known_by_its_name(tmp_path: Path) -> None:
    for half in HALVES:
        of_panoramas = cases(half, tmp_path, tmp_path).keys() - cases(half, tmp_path, None).keys()
        assert of_panoramas == {name for name in cases(half, tmp_path, tmp_path) if name.startswith(OF_PANORAMAS)}
