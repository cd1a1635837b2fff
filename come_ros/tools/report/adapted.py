"""What `come_ros adapt` reports: scores before and after as a table, the verdict, the card of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ...evaluation.baselines import LINES

LEVEL = 0.02  # mean change of the errors, relative, below which it is none
HARM = 0.10  # an error that grows by more than this is named in the verdict


class Row(NamedTuple):
    """One figure of one recording. trivial: of the best trivial baseline, NaN where there is none. error: what is compared, smaller is
    better; None where larger is better or the figure does not decide."""

    title: str
    before: float
    after: float
    trivial: float
    digits: int
    decides: bool = False


WINDOWS = (
    # key, title, digits, trivial baselines, whether it decides
    ("abs_rel", "depth AbsRel", 3, ("constant abs_rel", "mean map abs_rel"), True),
    ("delta", "depth delta < 1.25 (larger is better)", 3, ("constant delta", "mean map delta"), False),
    ("rotation_deg", "rotation, deg", 2, ("no rotation_deg",), True),
    ("direction_deg", "direction of motion, deg", 1, tuple(LINES), True),
    ("length_ratio", "length of motion over the true one (1 is best)", 2, (), False),
    ("focal_error", "focal length, relative error", 3, (), False),
)
MERGED = (("abs_rel", "depth AbsRel", 3), ("rotation_deg", "rotation, deg", 2))
WHOLE = (
    ("ate", "ATE, Sim(3)", 4, ("straight line", "random walk (best 5 %)"), "ate"),
    ("rotation_deg", "rotation of a step, deg", 2, ("no motion", "constant velocity"), "rotation_deg"),
    ("abs_rel_once", "depth AbsRel, scaled once", 3, ("constant depth", "mean depth map"), "abs_rel_once"),
    ("delta_once", "depth delta < 1.25, scaled once (larger is better)", 3, (), ""),
    ("refined", "share of keyframes that the bundle vouches for (larger is better)", 2, (), ""),
)


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _best(values: list[float], larger: bool) -> float:
    known = [v for v in values if math.isfinite(v)]
    return float("nan") if not known else max(known) if larger else min(known)


def rows_of(scores: Mapping[str, Any]) -> Iterator[Row]:
    """All figures of one recording. The truth decides where there is any, else the agreement with the bundle."""
    for kind, title in (("windows", "windows of 4, truth"), ("agreement", "windows of 4, bundle")):
        found: Mapping[str, Any] = scores.get(kind) or {}
        for key, name, digits, nulls, decides in WINDOWS if found else ():
            before, after = (_number(found[which].get(key)) for which in ("before", "after"))
            trivial = _best([_number(found["trivial"].get(n)) for n in nulls], key == "delta")
            if math.isfinite(before) or math.isfinite(after):
                first = kind == "windows" or not scores.get("windows")
                yield Row(f"{title}: {name}", before, after, trivial, digits, decides and first)
    merged: Mapping[str, Any] = scores.get("merged") or {}
    for key, name, digits in MERGED if merged else ():
        old, new, by_chance = (_number(merged[which].get(key)) for which in ("before", "after", "trivial"))
        if math.isfinite(new):
            yield Row(
                f"Co-Me at .5, new weights, predictor before and after, random groups: {name}",
                old,
                new,
                by_chance,
                digits,
            )
    for mode, found in (scores.get("whole") or {}).items():
        for key, name, digits, nulls, of in WHOLE:
            before, after = (_number(found[which].get(key)) for which in ("before", "after"))
            rows = [scores["baselines"].get(n, {}) for n in nulls]
            if math.isfinite(before) or math.isfinite(after):
                yield Row(
                    f"whole, {mode}: {name}",
                    before,
                    after,
                    _best([_number(r.get(of)) for r in rows], False),
                    digits,
                    bool(of),
                )


def verdict(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """level: "better", "mixed" (on average better), "worse", "alike" or "unknown". change: geometric mean of the deciding errors after over
    before, minus 1. worse: deciding errors that grew by more than HARM."""
    ratios: dict[str, float] = {}
    for label, found in scores.items():
        for row in rows_of(found):
            if row.decides and row.before > 0 and math.isfinite(row.after):
                ratios[f"{label}, {row.title}"] = max(row.after, 1e-9) / row.before
    if not ratios:
        return {"level": "unknown", "change": None, "worse": [], "figures": 0}
    change = math.exp(sum(map(math.log, ratios.values())) / len(ratios)) - 1
    level = "alike" if abs(change) < LEVEL else "better" if change < 0 else "worse"
    harmed = [f"{name} {ratio - 1:+.0%}" for name, ratio in ratios.items() if ratio > 1 + HARM]
    if level == "better" and harmed:
        level = "mixed"
    return {"level": level, "change": round(change, 4), "worse": harmed, "figures": len(ratios)}


def verdict_line(about: Mapping[str, Any]) -> str:
    """In words."""
    if about["level"] == "unknown":
        return "verdict: unknown: the held-out part has neither truth nor keyframes that the bundle vouches for"
    words = {
        "better": "better than",
        "mixed": "on average better than",
        "worse": "worse than",
        "alike": "no better than",
    }
    how = words[about["level"]]
    line = f"verdict: {how} the weights before on the held-out part: {about['figures']} errors change by {about['change']:+.0%} (mean)"
    return line + (f"; but worse: {'; '.join(about['worse'])}" if about["worse"] else "")


def _text(value: float, digits: int) -> str:
    return "" if not math.isfinite(value) else f"{value:.{digits}f}"


def table(scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """As Markdown."""
    lines = ["| held-out part | before | after | best trivial baseline |", "|---|---|---|---|"]
    for label, found in scores.items():
        for row in rows_of(found):
            cells = [_text(v, row.digits) for v in (row.before, row.after, row.trivial)]
            lines.append(f"| {label}, {row.title} | {' | '.join(cells)} |")
    return lines


def _about(result: Mapping[str, Any]) -> str:
    k = result["keyframes"]
    p = result.get("predictor")
    sure = (
        f"; Co-Me's predictor: rank correlation with the new confidence on the validation keyframes {p['before']:.3f} before, "
        f"{p['after']:.3f} after, the better one is kept"
        if p
        else ""
    )
    return (
        f"step {result['best_step']} of {result['steps']} is kept ({result['ended']}); {result['cpu_seconds']:.0f} s of CPU, "
        f"{result['seconds']:.0f} s in all; {k['learned_from']} keyframes taught, {k['validation']} validated, the bundle does not vouch "
        f"for {k['left_out']}, and {k['gap']} are the gap before the held-out part{sure}"
    )


def report(result: Mapping[str, Any]) -> str:
    return "\n".join([*table(result["scores"]), "", _about(result), verdict_line(result["verdict"])])


def card(result: Mapping[str, Any]) -> str:
    """The model card, as Markdown."""
    o, start = result["options"], result["start"]
    sources = " ".join(f"--source {s}" for s in o["source"])
    code = f" at commit {result['commit']}" if result["commit"] else ""
    return "\n".join(
        [
            "# Adapted weights",
            "",
            f"Made by come_ros {result['come_ros']}{code} from {start['file']} (fingerprint {start['fingerprint']}):",
            "",
            f"    come_ros adapt {sources} --held {o['held']:.3g} --steps {o['steps']} --minutes {o['minutes']:g} --seed {o['seed']}",
            "",
            f"- {_about(result)}.",
            "- No labels were used. The encoder's blocks are unchanged, and so is the point head, which the pipeline does not use.",
            "- Licence: that of the weights before; Apache-2.0 for those that ship with come_ros. The recording's own terms apply as well.",
            "- They are for this camera and place: elsewhere they may be worse than the weights before.",
            *(
                ["- come_weights.safetensors is Co-Me's predictor for them, trained further on their confidence."]
                if result.get("predictor")
                else []
            ),
            "",
            verdict_line(result["verdict"]),
            "",
            *table(result["scores"]),
            "",
            "Windows: single passes of the network. Truth decides where there is any; the bundle is that of the weights before, which "
            "favours them. Whole: the pipeline on the whole held-out part, without (none) and with the bundle.",
            "",
        ]
    )
