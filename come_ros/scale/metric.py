"""The scale of a world: asks the sources, follows each, and decides what is known and which unit the odometry has."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

from ..config import Config
from ..types import Scale, SourceScale
from .decide import MODEL, MODEL_SIGMA, believed
from .depth import read_depth
from .height import HeightSource
from .odometry import OdometrySource
from .reading import Seen, Source
from .rig import read_rig
from .running import Running

log = logging.getLogger("come_ros")

WANDERING = {"depth": (0.015, 0.01), "rig": (0.015, 0.015)}
"""source -> sigma by which the model's unit moves from keyframe to keyframe as that source sees it; and of the source as such"""


def given(config: Config, metric: bool) -> Scale:
    """What is known before anything is measured. metric: whether the model's unit is the metre."""
    if config.scale.mode == "fixed":
        metres = config.scale.fixed
        return Scale(metres, 0.0, "fixed", unit=metres, in_metres=True, sources=(SourceScale("fixed", metres, 0.0),))
    if metric:
        return Scale(1.0, MODEL_SIGMA, MODEL, in_metres=True, sources=(SourceScale(MODEL, 1.0, MODEL_SIGMA),))
    return Scale()


class MetricScale:
    """now: what is known. One thread calls it, with the frames of every accepted window.

    The unit of the odometry is decided with the first window of a world, and is the metre if the scale is known by then; what is learnt
    later changes `now.metres`, and so `now.correction`, but not `now.unit`.
    """

    def __init__(self, config: Config, metric: bool) -> None:
        """config: may be replaced between windows. metric: whether the model's unit is the metre."""
        self.config, self._metric = config, metric
        self.reset()

    def reset(self) -> None:
        """A new world begins, in another unit of the model."""
        self.now = given(self.config, self._metric)
        self._begun = False
        self._told = ""
        self._sources = {name: self._source(name) for name in self.config.scale_sources}

    def _source(self, name: str) -> Source:
        if name == "odometry":
            return OdometrySource(lambda: self.config.scale.min_motion)
        if name == "depth":
            return Running(read_depth, *WANDERING[name])
        if name == "height":
            return HeightSource(self.config.scale.height)
        return Running(lambda seen: read_rig(seen, self._sources[name].log_metres), *WANDERING[name])

    @property
    def may_restart(self) -> bool:
        """Whether a new world would be in metres, as this one is not, and that is wanted."""
        return self.config.scale.restart and self.now.known and not self.now.in_metres

    def renew(self) -> Scale:
        """The published world begins again, in metres; the model's unit goes on."""
        self.now = replace(self.now, unit=self.now.metres, in_metres=True)
        return self.now

    def observe(self, seen: Seen, lost: bool = False) -> Scale:
        """The frames of one more window. lost: it shares no frame with those before, so its unit may be another one."""
        for source in self._sources.values():
            source.observe(seen, lost)
        self.now = self._decided()
        self._begun = True
        return self.now

    def _decided(self) -> Scale:
        before = self.now
        start = given(self.config, self._metric)
        if start.source == "fixed":
            return before if self._begun else start
        sources = [
            SourceScale(name, math.exp(s.log_metres), s.sigma, s.readings)
            for name, s in self._sources.items()
            if s.readings
        ]
        belief = believed([*sources, *start.sources])
        known = before.known or (belief.sigma <= self.config.scale.max_sigma)
        unit, in_metres = before.unit, before.in_metres
        if not self._begun and known:
            unit, in_metres = belief.metres, True
        if belief.conflict and belief.conflict != self._told:
            if not self._told:
                log.warning("sources of the scale disagree: %s", belief.conflict)
            self._told = belief.conflict
        if known and not before.known:
            log.info(
                "the scale is known: %.4g m per unit, sigma %.1f %%, from %s",
                belief.metres,
                100 * belief.sigma,
                belief.source,
            )
        return Scale(
            belief.metres if known else math.nan, belief.sigma if known else math.nan, belief.source if known else "none",
            max((s.stamp_ns for s in self._sources.values()), default=0), unit, in_metres,
            (*sources, *start.sources), belief.conflict, self._left_out(), known and belief.source.split("+")[0] in WANDERING,
        )  # fmt: skip

    def _left_out(self) -> tuple[tuple[str, int], ...]:
        found = [(f"{name}: {why}", n) for name, s in self._sources.items() for why, n in s.left_out.items()]
        return tuple(sorted(found))
