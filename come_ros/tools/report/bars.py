"""A row of bars: the main errors next to those of trivial baselines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OURS = "come_ros"
BEST, BEATEN, BASELINE = "#2a9d4a", "#d1495b", "0.6"


@dataclass(frozen=True)
class Bars:
    """title: what is measured, with its unit. values: by name; OURS is one of them. larger_is_better: else smaller is."""

    title: str
    values: Mapping[str, float]
    larger_is_better: bool = False

    @property
    def best(self) -> bool:
        """Whether ours beats every baseline."""
        ours, others = self.values[OURS], [value for name, value in self.values.items() if name != OURS]
        return all(ours > value if self.larger_is_better else ours < value for value in others)


def bars_of(metrics: Mapping[str, Any]) -> list[Bars]:
    """Depth, path and rotation, as far as they were scored. metrics: of metrics.json."""
    depth, path, turn = metrics.get("depth"), metrics.get("trajectory"), metrics.get("rotation")
    rows = [
        (
            "depth: pixels within 25 % of the truth, %",
            {name: 100 * each["delta"] for name, each in depth["per_frame"].items()} if depth else {},
            True,
        ),
        ("path: ATE RMSE after the best similarity, m", path["ate_rmse_m"] if path else {}, False),
        ("rotation from image to image: median error, deg", turn["median_deg"] if turn else {}, False),
    ]
    out = []
    for title, values, larger in rows:
        known = {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}
        if OURS in known and len(known) > 1:
            out.append(Bars(f"{title} ({'more' if larger else 'less'} is better)", known, larger))
    return out


def draw_bars(axes: Sequence[Any], bars: Sequence[Bars]) -> None:
    """One chart on each of the axes: ours on top, green if it beats every baseline, red if not."""
    for axis, chart in zip(axes, bars, strict=True):
        names = [OURS, *(name for name in chart.values if name != OURS)]
        values = [chart.values[name] for name in names]
        colours = [BEST if chart.best else BEATEN, *([BASELINE] * (len(names) - 1))]
        drawn = axis.barh(range(len(names)), values, color=colours, height=0.7)
        axis.bar_label(drawn, [f"{value:.3g}" for value in values], padding=3, fontsize=10)
        axis.set_yticks(range(len(names)), names, fontsize=10)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.15 * max([*values, 1e-9]))
        axis.set_xticks([])
        axis.set_title(chart.title, fontsize=11, loc="left")
        axis.spines[["top", "right", "bottom"]].set_visible(False)
