"""Accuracy against latency against kept tokens, for every accelerator and two trivial baselines that each of them must beat: groups
merged at random, and smaller images at the same cost."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...config import Config
from ...evaluation import best_share, paired_difference
from ...types import U8
from .measure import LOWER_IS_BETTER, Scores, thin_recovery
from .variants import DENSE, RESOLUTION, Variant, accelerated, dense, smaller

RANDOM = "random"
LIMITS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
"""shares of the dense model's trunk time, or tokens, within which the best is looked for"""


def frontier_variants(backbone: Any, config: Config, height: int, width: int) -> tuple[list[Variant], dict[str, str]]:
    """The dense model, every registered accelerator and combination with all settings that are listed for it, smaller images; and which
    were left out, with the reason."""
    from ...accelerators import COMBINATIONS, registered
    from ...errors import CheckpointError

    variants, left_out = [dense(backbone, config)], {}
    tried = {name: kind.frontier for name, kind in registered().items() if name != "none"} | COMBINATIONS
    for name, settings in tried.items():
        try:
            variants += [accelerated(backbone, config, f"{name}:{setting}") for setting in settings]
        except CheckpointError as error:  # its own network is missing
            left_out[name] = str(error)
    return [*variants, *smaller(backbone, config, height, width)], left_out


def latencies(variants: list[Variant], images: list[U8], repeats: int, bar: Any) -> dict[str, dict[str, float]]:
    """Median trunk milliseconds of each variant ("trunk_ms"), and of its ratio to the dense pass just before ("trunk_ratio"): all in turn,
    so that what else the machine does hits all of them."""
    from ..bench.split import timed, warmed

    passes: dict[str, list[float]] = {v.name: [] for v in variants}
    for turn in range(1 + repeats):
        for window in images:
            for v in variants:
                model = v.backbone.dense if v.family == RESOLUTION else v.backbone
                shown = v.backbone.shrink(window) if v.family == RESOLUTION else window
                block = model.accelerator.plan_block(len(model.model.encoder_blocks()))
                x = model.upload(shown)
                if not turn:
                    warmed(model, x)
                parts, _, _ = timed(model, x, block)
                if turn:
                    passes[v.name].append(sum(parts.values()) - parts["heads"])
            bar.update()
    base = np.array(passes[DENSE])
    return {
        name: {"trunk_ms": float(np.median(ms)), "trunk_ratio": float(np.median(np.array(ms) / base))}
        for name, ms in passes.items()
    }


def against_nulls(scores: Scores, variants: list[Variant], metric: str = "abs_rel") -> dict[str, dict[str, Any]]:
    """variant -> paired difference of the metric to each trivial baseline at as many kept tokens ("random", "resolution"), over the same
    windows; between two settings of a baseline it is interpolated linearly, window by window; not beyond its ends."""
    kept = {v.name: float(np.mean(scores.values(v.name, "kept_tokens"))) for v in variants}
    curves = {
        family: sorted(
            ((kept[v.name], v.name) for v in variants if v.family.split()[0] == family or v.family == DENSE),
            key=lambda point: point[0],
        )
        for family in (RANDOM, RESOLUTION)
    }
    out: dict[str, dict[str, Any]] = {}
    for v in variants:
        ours = scores.values(v.name, metric)
        for family, curve in curves.items():
            if v.family in (DENSE, RESOLUTION) or v.family.split()[0] == family:
                continue
            base = _same_groups(v, variants) if family == RANDOM else None
            null = scores.values(base, metric) if base else _at(scores, curve, kept[v.name], metric)
            if null is not None:
                out.setdefault(v.name, {})[family] = paired_difference(ours, null)._asdict()
    return out


def at_the_same_time(
    scores: Scores, variants: list[Variant], times: dict[str, dict[str, float]], metric: str = "abs_rel"
) -> dict[str, Any]:
    """variant -> paired difference of the metric to smaller images whose trunk takes as long, as above."""
    curve = sorted((times[v.name]["trunk_ratio"], v.name) for v in variants if v.family in (DENSE, RESOLUTION))
    out = {}
    for v in variants:
        if v.family in (DENSE, RESOLUTION):
            continue
        null = _at(scores, curve, times[v.name]["trunk_ratio"], metric)
        if null is not None:
            out[v.name] = paired_difference(scores.values(v.name, metric), null)._asdict()
    return out


def winners(
    scores: Scores, variants: list[Variant], costs: dict[str, float], metric: str, seed: int = 0
) -> list[dict[str, Any]]:
    """Who is best by that metric within each of LIMITS of the dense model's cost, as far as somebody is.

    costs: variant -> share of the dense one's. Of each limit: down_to, the least one within which there are just the same; best, the
    accelerator with the best mean; cost, value; vs_dense and vs_null, paired differences to the dense and to null, the best null
    model within the same limit; share, see best_share; level, the accelerators within the limit whose paired difference to the
    best has zero in its interval. verdict: who is ahead of trivial baselines beyond doubt. Windows where the metric has no meaning are
    left out.
    """
    lower, out, before = LOWER_IS_BETTER[metric], [], None
    there = np.isfinite(scores.values(DENSE, metric))
    if not there.any():
        return []
    values = {v.name: scores.values(v.name, metric)[there] for v in variants}
    base = values[DENSE]
    is_null = {v.name: v.family.split()[0] in (RANDOM, RESOLUTION) for v in variants}
    for limit in LIMITS:
        within = [v.name for v in variants if v.name != DENSE and costs[v.name] <= limit]
        ours, nulls = (
            [n for n in within if is_null[n] == wanted and np.isfinite(values[n]).all()] for wanted in (False, True)
        )
        if not ours:
            break
        if (ours, nulls) == before:
            out[-1]["down_to"] = limit
            continue
        before = (ours, nulls)
        shares = best_share(np.stack([values[n] for n in ours]), lower, seed)
        order = sorted(ours, key=lambda n: values[n].mean() if lower else -values[n].mean())
        best = order[0]
        row: dict[str, Any] = {
            "limit": limit, "down_to": limit, "best": best, "cost": costs[best], "value": float(values[best].mean()),
            "vs_dense": paired_difference(values[best], base, seed=seed)._asdict(),
            "share": float(shares[ours.index(best)]), "rivals": len(ours),
            "level": [n for n in order[1:] if _undecided(values[n], values[best], seed)],
            "null": None, "vs_null": None, "verdict": "no trivial baseline within",
        }  # fmt: skip
        if nulls:
            null = min(nulls, key=lambda n: values[n].mean() if lower else -values[n].mean())
            apart = paired_difference(values[best], values[null], seed=seed)
            ahead = apart.high < 0 if lower else apart.low > 0
            behind = apart.low > 0 if lower else apart.high < 0
            verdict = "accelerator" if ahead else "baseline" if behind else "undecided"
            row |= {"null": null, "vs_null": apart._asdict(), "verdict": verdict}
        out.append(row)
    return out


def _undecided(a: np.ndarray, b: np.ndarray, seed: int) -> bool:
    apart = paired_difference(a, b, seed=seed)
    return apart.low <= 0 <= apart.high


def recoveries(scores: Scores, variants: list[Variant]) -> dict[str, Any]:
    """variant with an edge vote -> what it wins back of what the same without loses on thin pixels; empty without thin structures."""
    names = {v.name for v in variants}
    out = {}
    for v in variants:
        words = v.name.split()
        plain = " ".join(word for word in words if not word.startswith("edge_weight="))
        if plain != v.name and plain in names and "thin_recall" in scores.metrics:
            found = thin_recovery(scores, plain, v.name)
            if found is not None:
                out[v.name] = found
    return out


def _same_groups(variant: Variant, variants: list[Variant]) -> str | None:
    """The random variant that merges as many groups of the same size, if there is one."""
    wanted = {word for word in variant.name.split() if word.startswith(("ratio=", "group="))}
    for v in variants:
        words = set(v.name.split())
        if v.family.split()[0] == RANDOM and words - {RANDOM} == wanted and wanted:
            return v.name
    return None


def _at(scores: Scores, curve: list[tuple[float, str]], where: float, metric: str) -> np.ndarray | None:
    """(windows,) of a trivial baseline between its settings."""
    places = [place for place, _ in curve]
    if len(curve) < 2 or not places[0] <= where <= places[-1]:
        return None
    right = int(np.clip(np.searchsorted(places, where), 1, len(curve) - 1))
    (a, low), (b, high) = curve[right - 1 : right + 1]
    share = (where - a) / (b - a) if b > a else 0.0
    return (1 - share) * scores.values(low, metric) + share * scores.values(high, metric)
