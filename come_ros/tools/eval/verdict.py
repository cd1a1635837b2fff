"""The conclusions of an evaluation in words: one sentence for each accelerator, and a comparison of the model with trivial
baselines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...evaluation.bootstrap import LEAST
from ...evaluation.window import MOTIONS
from ...verdict.judge import DOUBTFUL, UNUSABLE, USABLE, Verdict
from .measure import LOWER_IS_BETTER, Scores
from .variants import DENSE, SINGLE, Variant

BLIND = ("constant depth", "mean depth map")
QUESTIONS = (
    ("abs_rel", "depth (AbsRel)", BLIND),
    ("frame_abs_rel", "what the window adds to depth (AbsRel frame by frame)", (SINGLE,)),
    ("rotation_deg", "rotation (deg to the first image)", ("not moving", "constant motion")),
    ("step_error", "translation of a step (under the depth scale)", ("not moving", "straight line", "constant motion", MOTIONS[-1])),
    ("direction_deg", "direction of translation (deg)", ("straight line", "constant motion")),
    ("ate", "shape of the path (ATE, Sim(3))", ("straight line", MOTIONS[-1])),
)  # fmt: skip
"""metric, description, and the trivial baselines that it is compared with: the best of them counts"""
ANSWERS = BETTER, ALIKE, WORSE = "better than", "not distinguishable from", "WORSE than"
TOO_SHORT = 2.0  # a path that is off by this factor is reported


def sentences(about: dict[str, Any], variants: Sequence[Variant], timings: dict[str, Any]) -> list[str]:
    """One sentence for each accelerator: its time and error relative to the dense model. about: of one source, with its summary."""
    out = []
    for v in variants:
        found = about["summary"].get(v.name, {})
        metric = next((m for m in ("abs_rel", "rotation_deg") if m in found), None)
        if v.name == DENSE or metric is None:
            continue
        said = [_time(timings, v.name), f"{_kept(found)} of the tokens"]
        d = found[metric].get("vs_dense")
        if d is not None:
            better = (d["value"] < 0) == LOWER_IS_BETTER[metric]
            how = ("better" if better else "worse") + ", sure" if d["sure"] else "not distinguishable from dense"
            title, digits = ("AbsRel", 4) if metric == "abs_rel" else ("rotation", 2)
            said.append(f"{title} {d['value']:+.{digits}f} ({how})")
        out.append(f"{v.name}: {', '.join(filter(None, said))}.")
    return out


def _time(timings: dict[str, Any], name: str) -> str:
    row = timings.get("of", {}).get(name)
    if row is None:
        return ""
    ratio = row["total_ratio"]
    text = f"{ratio['value']:.2f} of the time ({ratio['low']:.2f} to {ratio['high']:.2f})"
    return text + (", measured on a busy machine" if timings["busy"] else "")


def _kept(found: dict[str, Any]) -> str:
    return f"{found['kept_tokens']['value']:.2f}" if "kept_tokens" in found else "1"


def answers(scores: Scores) -> list[tuple[str, str, str]]:
    """(title, how, text) of each of QUESTIONS that can be answered for the dense model on one source. how: one of ANSWERS."""
    out = []
    for metric, title, baselines in QUESTIONS:
        ours = scores.values(DENSE, metric)
        lower = LOWER_IS_BETTER[metric]
        there = [b for b in baselines if b in scores.rows and np.isfinite(scores.values(b, metric)).any()]
        if not there or not np.isfinite(ours).any():
            continue
        best = min(there, key=lambda b: np.nanmean(scores.values(b, metric)) * (1 if lower else -1))
        apart = scores.difference(ours, scores.values(best, metric))
        better = (apart["value"] < 0) == lower
        how = (BETTER if better else WORSE) if apart["sure"] else ALIKE
        means = ", ".join(f"{np.nanmean(v):.3g}" for v in (ours, scores.values(best, metric)))
        out.append((title, how, f"{title}: {how} {best} ({means})"))
    return out


def against_baselines(scores: Scores, paths: dict[str, Any] | None = None) -> list[str]:
    """For the dense model on one source: which metrics beat the trivial baselines and which do not. paths: of the whole recording,
    by variant."""
    if scores.independent < LEAST:
        return [
            f"no verdict: {len(scores.windows)} windows are worth {scores.independent} independent ones here, and with fewer than {LEAST} "
            f"an interval is meaningless; use more windows"
        ]
    out = [text for _, _, text in answers(scores)]
    length = scores.values(DENSE, "length_ratio")
    if np.isfinite(length).any():
        out.append(length_text(float(np.nanmedian(length)), "translations in a window"))
    found = (paths or {}).get(DENSE)
    path = found and found["trajectory"]
    if path and path.get("length_ratio") is not None:
        out.append(length_text(path["length_ratio"], "the path of the whole recording"))
    return out


def verdict(scores: Scores) -> Verdict:
    """The same in one line: usable where everything that could be asked is better than the best trivial baseline, unusable where
    nothing is."""
    if scores.independent < LEAST:
        return Verdict(
            DOUBTFUL,
            (f"{scores.independent} independent windows are too few, {LEAST} are needed",),
            "use more windows: --windows, a smaller --stride, or a longer recording",
        )
    found = answers(scores)
    good, bad = ([title for title, how, _ in found if (how == BETTER) is better] for better in (True, False))
    if not bad:
        return Verdict(USABLE, (f"better than all trivial baselines: {', '.join(good)}",))
    reasons = (
        f"not better than trivial baselines: {', '.join(bad)}",
        *([f"better: {', '.join(good)}"] if good else []),
    )
    return Verdict(
        DOUBTFUL if good else UNUSABLE, reasons, "take larger weights (--weights), or train on images like these"
    )


def length_text(ratio: float, what: str) -> str:
    """ratio: length over the true one, under the scale of depth."""
    if ratio <= 0:
        return f"{what}: no length at all"
    if ratio < 1 / TOO_SHORT:
        return f"{what}: {1 / ratio:.3g} times too short for the depth"
    if ratio > TOO_SHORT:
        return f"{what}: {ratio:.3g} times too long for the depth"
    return f"{what}: {ratio:.2f} of the true length"
