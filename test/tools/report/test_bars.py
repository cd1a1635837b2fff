"""The row of bars in the picture: which errors it shows, and whether ours beats the baselines."""

from __future__ import annotations

import math

import pytest

from come_ros.tools.report.bars import BEATEN, BEST, Bars, bars_of, draw_bars

DEPTH = {"per_frame": {"come_ros": {"delta": 0.9}, "constant depth": {"delta": 0.7}}}


def test_only_what_was_scored_is_shown() -> None:
    assert bars_of({"depth": None, "trajectory": None, "rotation": None}) == bars_of({}) == []
    path = {"ate_rmse_m": {"come_ros": None, "not moving": 1.0}}
    (depth,) = bars_of(
        {"depth": DEPTH, "trajectory": path, "rotation": {"median_deg": {"come_ros": math.nan, "none": 1.0}}}
    )
    assert (
        depth.values == {"come_ros": pytest.approx(90), "constant depth": pytest.approx(70)}
        and "more is better" in depth.title
    )


def test_ours_is_best_only_if_it_beats_every_baseline() -> None:
    assert Bars("path", {"come_ros": 0.1, "a": 0.2, "b": 0.3}).best
    assert not Bars("path", {"come_ros": 0.2, "a": 0.2}).best
    assert Bars("depth", {"come_ros": 0.9, "a": 0.2}, larger_is_better=True).best


@pytest.mark.slow
def test_the_colour_says_so() -> None:
    from come_ros.tools.report.figures import pyplot

    plt = pyplot()
    charts = [Bars("path", {"a": 0.2, "come_ros": 0.1}), Bars("path", {"come_ros": 0.3, "a": 0.2})]
    figure, axes = plt.subplots(1, 2)
    draw_bars(axes, charts)
    from matplotlib.colors import to_hex

    assert [to_hex(axis.patches[0].get_facecolor()) for axis in axes] == [BEST, BEATEN]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["come_ros", "a"]
    plt.close(figure)
