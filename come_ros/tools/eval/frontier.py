"""Accuracy against latency against kept tokens, for every accelerator and the trivial baselines that each must beat: random groups,
smaller images at the same cost, and the model without the benefit of a window."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...config import Config
from ...config_text import split_name
from ...errors import Cancelled
from ...evaluation import interval
from ...types import U8
from ..bench.machine import Machine
from .measure import LOWER_IS_BETTER, Scores, thin_recovery
from .variants import DENSE, RESOLUTION, Variant, accelerated, dense, smaller, without_window

RANDOM = "random"
LIMITS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
"""shares of the dense model's trunk time, or tokens, within which the best is determined"""
LEAST_PASSES = 6
"""least passes of a variant: with fewer, the interval of a median is meaningless"""


def frontier_variants(
    backbone: Any, config: Config, height: int, width: int, wanted: Sequence[str] = ()
) -> tuple[list[Variant], dict[str, str]]:
    """The dense model; every registered accelerator and combination with all its listed settings, or `wanted`: a name with all its
    settings, or NAME:parameter=value,... with only these; and the trivial baselines. Also returns those left out, with the reason.
    Raises ConfigError or CheckpointError for requested ones."""
    from ...accelerators import COMBINATIONS
    from ...errors import CheckpointError
    from ...plugins import ACCELERATORS

    variants, left_out = [dense(backbone, config)], {}
    tried = {name: ACCELERATORS.load(name).frontier for name in ACCELERATORS.names if name not in ("none", RANDOM)}
    tried |= COMBINATIONS
    texts = [f"{name}:{setting}" if setting else name for name, settings in tried.items() for setting in settings]
    if wanted:
        texts = []
        for text in wanted:
            name, given = split_name(text)
            settings = tried.get(name) or (() if "+" in name else ACCELERATORS.load(name).frontier) or ("",)
            texts += [text] if given else [f"{name}:{setting}" if setting else name for setting in settings]
    for text in dict.fromkeys(texts):
        name = split_name(text)[0]
        if name in left_out:
            continue
        try:
            variants.append(accelerated(backbone, config, text))
        except CheckpointError as error:  # its network is missing
            if wanted:
                raise
            left_out[name] = str(error)
    by_chance = [accelerated(backbone, config, f"{RANDOM}:{setting}") for setting in ACCELERATORS.load(RANDOM).frontier]
    found = [*variants, *by_chance, *smaller(backbone, config, height, width), *without_window(backbone, config)]
    return list({v.name: v for v in found}.values()), left_out


def latencies(
    variants: list[Variant],
    images: list[U8],
    repeats: int,
    bar: Any,
    stopped: Callable[[], bool],
    limit_s: float = 60.0,
) -> dict[str, Any]:
    """Times of each variant, with a pass of the dense model before each of its passes, so that other load affects both alike.

    "of": variant -> trunk_ms and total_ms (medians), trunk_ratio and total_ratio to the dense model: {"value", "low", "high"}, median with
    its 95 % interval over passes, and passes. And what `Machine` says. limit_s: time limit per variant, after LEAST_PASSES. Raises
    Cancelled.
    """
    from ..bench.split import timed, warmed

    base = next(v for v in variants if v.family == DENSE)
    machine, out = Machine(), {}

    def one(variant: Variant, shown: U8, warm: bool = False) -> tuple[float, float]:
        if stopped():
            raise Cancelled("on request")
        model = variant.backbone.dense if variant.family == RESOLUTION else variant.backbone
        x = model.upload(variant.backbone.shrink(shown) if variant.family == RESOLUTION else shown)
        if warm:
            warmed(model, x)
        parts, _, _ = timed(model, x, model.accelerator.plan_block(len(model.model.encoder_blocks())))
        total = sum(parts.values())
        return total - parts["heads"], total

    for v in variants:
        bar.set_postfix_str(v.name)
        begun = time.monotonic()
        ours: list[tuple[float, float]] = []
        theirs: list[tuple[float, float]] = []
        for turn in range(1 + repeats):
            if turn > 1 and time.monotonic() - begun > limit_s and len(ours) >= LEAST_PASSES:
                break
            for window in images:
                pair = (one(base, window, not turn), one(v, window, not turn))
                if turn:
                    theirs.append(pair[0])
                    ours.append(pair[1])
        bar.update()
        row: dict[str, Any] = {"passes": len(ours)}
        for kind, i in (("trunk", 0), ("total", 1)):
            mine, dense_ms = (np.array([p[i] for p in passes]) for passes in (ours, theirs))
            row[f"{kind}_ms"] = float(np.median(mine))
            if v is base:
                row[f"{kind}_ratio"] = {"value": 1.0, "low": 1.0, "high": 1.0}
            else:
                row[f"{kind}_ratio"] = interval(mine / dense_ms, median=True)._asdict()
        out[v.name] = row
    return {**machine.report(), "of": out}


def against_nulls(scores: Scores, variants: list[Variant], metric: str = "abs_rel") -> dict[str, dict[str, Any]]:
    """variant -> paired difference of the metric to each trivial baseline at the same number of kept tokens ("random",
    "resolution"), over the same windows.

    Random groups of one size, and smaller images, are a curve each; between two settings it is interpolated linearly, window by window;
    beyond its ends it is undefined. Of several curves of random groups the best one at that point (by its mean) counts, as in
    practice one would choose it; "group" in "random" gives its group size.
    """
    kept = {v.name: float(np.mean(scores.values(v.name, "kept_tokens"))) for v in variants}
    lower = LOWER_IS_BETTER[metric]
    ends = [(kept[v.name], v.name) for v in variants if v.family == DENSE]
    curves: dict[str, dict[str, list[tuple[float, str]]]] = {RANDOM: {}, RESOLUTION: {}}
    for v in variants:
        kind = v.family.split()[0]
        if kind in curves:
            curves[kind].setdefault(v.family.removeprefix(kind).strip(), []).append((kept[v.name], v.name))
    out: dict[str, dict[str, Any]] = {}
    for v in variants:
        if v.trivial or v.family == DENSE:
            continue
        ours = scores.values(v.name, metric)
        for kind, of_kind in curves.items():
            there = {
                group: at
                for group, points in of_kind.items()
                if (at := _at(scores, sorted([*points, *ends]), kept[v.name], metric)) is not None
            }
            if not there:
                continue
            group = min(there, key=lambda g: np.nanmean(there[g]) * (1 if lower else -1))
            out.setdefault(v.name, {})[kind] = {**scores.difference(ours, there[group]), "group": group}
    return out


def at_the_same_time(
    scores: Scores,
    variants: list[Variant],
    times: dict[str, dict[str, Any]],
    metric: str = "abs_rel",
    kind: str = RESOLUTION,
    clock: str = "trunk_ratio",
) -> dict[str, Any]:
    """variant -> paired difference of the metric to smaller images (or, with kind RANDOM, random groups) that take the same time, as above.
    The interval of the difference covers the differences at both ends of the time's interval. clock: which time, see latencies."""
    lower = LOWER_IS_BETTER[metric]
    dense = [(times[v.name][clock]["value"], v.name) for v in variants if v.family == DENSE]
    curves: dict[str, list[tuple[float, str]]] = {}
    for v in variants:
        if v.family.split()[0] == kind:
            curves.setdefault(v.family, []).append((times[v.name][clock]["value"], v.name))

    def best(where: float) -> np.ndarray | None:
        there = [_at(scores, sorted([*curve, *dense]), where, metric) for curve in curves.values()]
        known = [values for values in there if values is not None]
        return min(known, key=lambda values: np.nanmean(values) * (1 if lower else -1), default=None)

    out = {}
    for v in variants:
        if v.trivial or v.family == DENSE:
            continue
        ratio, ours = times[v.name][clock], scores.values(v.name, metric)
        found = [
            scores.difference(ours, null) for end in ("value", "low", "high") if (null := best(ratio[end])) is not None
        ]
        if len(found) == 3:
            low, high = min(f["low"] for f in found), max(f["high"] for f in found)
            sure = all(f["sure"] for f in found) and not low <= 0 <= high
            out[v.name] = {"value": found[0]["value"], "low": low, "high": high, "sure": sure}
    return out


def winners(scores: Scores, variants: list[Variant], costs: dict[str, float], metric: str) -> list[dict[str, Any]]:
    """The best accelerator by that metric within each of LIMITS of the dense model's cost, if there is one.

    costs: variant -> share of the dense one's; for an interval, its upper end, so that noise admits no variant. For each limit:
    down_to, the smallest limit that admits the same variants; best, the accelerator with the best mean; cost, value; vs_dense and
    vs_null, paired differences to the dense and to null, the best trivial baseline within the same limit; share, see best_share;
    level, the accelerators within the limit whose paired difference to the best is not significant. verdict: whether trivial
    baselines are significantly beaten. Windows where the metric is undefined are left out.
    """
    lower, before = LOWER_IS_BETTER[metric], None
    out: list[dict[str, Any]] = []
    variants = [v for v in variants if v.name in scores.rows and v.name in costs]
    there = np.isfinite(scores.values(DENSE, metric))
    if not there.any():
        return []
    values = {v.name: np.where(there, scores.values(v.name, metric), np.nan) for v in variants}
    whole = {n: bool(np.isfinite(v[there]).all()) for n, v in values.items()}
    sign = 1 if lower else -1
    is_null = {v.name: v.trivial for v in variants}
    for limit in LIMITS:
        within = [v.name for v in variants if v.name != DENSE and costs[v.name] <= limit]
        ours, nulls = ([n for n in within if is_null[n] == wanted and whole[n]] for wanted in (False, True))
        if not ours:
            break
        if (ours, nulls) == before:
            out[-1]["down_to"] = limit
            continue
        before = (ours, nulls)
        shares = scores.best_share(np.stack([values[n][there] for n in ours]), lower)
        order = sorted(ours, key=lambda n: sign * np.nanmean(values[n]))
        best = order[0]
        row: dict[str, Any] = {
            "limit": limit, "down_to": limit, "best": best, "cost": costs[best], "value": float(np.nanmean(values[best])),
            "vs_dense": scores.difference(values[best], values[DENSE]),
            "share": float(shares[ours.index(best)]), "rivals": len(ours),
            "level": [n for n in order[1:] if not scores.difference(values[n], values[best])["sure"]],
            "null": None, "vs_null": None, "verdict": "no baseline within",
        }  # fmt: skip
        if nulls:
            null = min(nulls, key=lambda n: sign * np.nanmean(values[n]))
            apart = scores.difference(values[best], values[null])
            ahead = sign * apart["value"] < 0
            verdict = "undecided" if not apart["sure"] else "accelerator" if ahead else "baseline"
            row |= {"null": null, "vs_null": apart, "verdict": verdict}
        out.append(row)
    return out


def recoveries(scores: Scores, variants: list[Variant]) -> dict[str, Any]:
    """variant with an edge weight -> the share it recovers of the loss of the same variant without it on thin pixels; empty without
    thin structures."""
    names = {v.name for v in variants if v.name in scores.rows}
    out = {}
    for v in variants:
        words = v.name.split()
        plain = " ".join(word for word in words if not word.startswith("edge_weight="))
        if plain != v.name and {plain, v.name} <= names and "thin_recall" in scores.metrics:
            found = thin_recovery(scores, plain, v.name)
            if found is not None:
                out[v.name] = found
    return out


def _at(scores: Scores, curve: list[tuple[float, str]], where: float, metric: str) -> np.ndarray | None:
    """(windows,) of a baseline, interpolated between its settings."""
    places = [place for place, _ in curve]
    if len(curve) < 2 or not places[0] <= where <= places[-1]:
        return None
    right = int(np.clip(np.searchsorted(places, where), 1, len(curve) - 1))
    (a, low), (b, high) = curve[right - 1 : right + 1]
    share = (where - a) / (b - a) if b > a else 0.0
    return (1 - share) * scores.values(low, metric) + share * scores.values(high, metric)
