"""What is believed of what the sources say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from ..config_groups import SCALE_SOURCES
from ..types import Scale, SourceScale

MODEL, MAP = "model", "map"
TRUST = (*SCALE_SOURCES, MODEL)
"""names of sources, the most trusted first"""
MODEL_SIGMA = 0.2  # of the logarithm: what metric models are off by as published, 16 to 25 %
DISAGREE = 3.0  # sigmas
# Of the logarithm, for a session that was just located in a map. In three rooms .08 was enough for 90 % of the sessions at two sigmas, in
# eight others for 70 %: two of these look at plain walls, where the maps are bent. .2 holds 86 % there.
MAP_SIGMA = 0.2


class Belief(NamedTuple):
    """metres: per unit of the model, NaN if no source says anything. sigma: of its logarithm. source: the names of those that agree, joined
    by +. conflict: see types.Scale."""

    metres: float
    sigma: float
    source: str
    conflict: str


def believed(sources: Sequence[SourceScale]) -> Belief:
    """The mean, by their variances, of all sources that agree with the most trusted one; the others are reported."""
    ranked = sorted(sources, key=lambda s: TRUST.index(s.name))
    if not ranked:
        return Belief(math.nan, math.nan, "none", "")
    agreeing, conflicts = [ranked[0]], []
    for source in ranked[1:]:
        off = math.log(source.metres / ranked[0].metres)
        sigmas = abs(off) / math.hypot(source.sigma, ranked[0].sigma)
        if sigmas > DISAGREE:
            conflicts.append(
                f"{source.name} says {source.metres:.3g} m per unit, {ranked[0].name} {ranked[0].metres:.3g}: a factor of "
                f"{math.exp(abs(off)):.2f}, {sigmas:.0f} sigmas; {ranked[0].name} is believed"
            )
        else:
            agreeing.append(source)
    weights = [s.sigma**-2 for s in agreeing]
    mean = sum(w * math.log(s.metres) for w, s in zip(weights, agreeing, strict=True)) / sum(weights)
    return Belief(math.exp(mean), sum(weights) ** -0.5, "+".join(s.name for s in agreeing), "; ".join(conflicts))


def by_map(scale: Scale, metres: float, sigma: float) -> Scale:
    """`scale`, which is unknown, with what the saved map says in which the session is located. metres: per unit of the odometry. sigma: of
    the logarithm of the map's own metres, NaN if it does not say."""
    own = sigma if math.isfinite(sigma) else 0.0
    said = SourceScale(MAP, metres * scale.unit, math.hypot(own, MAP_SIGMA))
    return replace(scale, metres=said.metres, sigma=said.sigma, source=MAP, sources=(*scale.sources, said))
