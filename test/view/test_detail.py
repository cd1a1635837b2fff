"""Levels of detail follow the time of a browser's frames: fewer points while a slow one turns, more while it rests."""

from __future__ import annotations

import numpy as np
import pytest

from come_ros.view.detail import (
    FIRST_LEVEL,
    FIRST_POINTS,
    GROWTH,
    MOST_STILL_S,
    REST_S,
    STILL_S,
    TURN_POINTS,
    TURN_S,
    Detail,
    shares_of,
)

MANY = 2_000_000


def turn(detail: Detail, start_s: float, point_s: float, frames: int = 30) -> float:
    """Reports of a browser that takes so long for each point. Returns the time of the last."""
    now = start_s
    for _ in range(frames):
        detail.reported(1, now)
        now += max(0.016, point_s * detail.points)
    return now


@pytest.mark.parametrize("points", [1, FIRST_LEVEL, FIRST_LEVEL + 1, MANY])
def test_levels_grow_and_hold_all_points(points: int) -> None:
    bounds = shares_of(points) * points
    assert bounds[0] == 0 and bounds[-1] == points and (np.diff(bounds) > 0).all()
    np.testing.assert_allclose(bounds[1:-1], FIRST_LEVEL * float(GROWTH) ** np.arange(len(bounds) - 2))
    assert Detail(points).points <= max(FIRST_POINTS, FIRST_LEVEL)


def test_a_slow_browser_draws_what_it_has_time_for() -> None:
    detail, point_s = Detail(MANY), 4e-6
    assert not detail.reported(1, 0.0), "it has only opened the page"
    assert detail.points > TURN_S / point_s
    end = turn(detail, 1.0, point_s)
    assert detail.turning and detail.points <= TURN_S / point_s
    assert not detail.rested(end + STILL_S / 4)
    assert detail.rested(end + STILL_S) and not detail.turning
    assert TURN_S / point_s < detail.points <= REST_S / point_s, "more at rest, but not all"
    assert detail.reported(1, end + 2) and detail.points <= TURN_S / point_s, "it is known to be slow"


def test_between_slow_frames_the_view_is_not_at_rest() -> None:
    """Else all points would be back before the next frame, and every frame would be slow."""
    detail, now = Detail(300_000), 0.0
    for _ in range(4):  # frames of 3 s, each with two reports
        detail.reported(1, now)
        detail.reported(1, now + 0.02)
        now += 3.0
    detail.reported(1, now)
    assert detail.turning and not detail.rested(now + 3.0) and detail.points == FIRST_LEVEL
    assert detail.rested(now + MOST_STILL_S + 0.1) and not detail.turning
    assert FIRST_LEVEL < detail.points <= TURN_POINTS, "few points of a slow browser, but enough to see by"


def test_a_quick_browser_draws_all_at_rest_and_more_from_turn_to_turn() -> None:
    detail, now, turned = Detail(MANY), 0.0, []
    for _ in range(4):
        now = turn(detail, now, 1e-9)
        turned.append(detail.points)
        detail.rested(now + STILL_S)
        assert detail.points == MANY
        now += 10
    assert turned == sorted(turned) and turned[0] <= FIRST_POINTS and turned[-1] == MANY
    assert not detail.reported(1, now + 1), "all are drawn: nothing changes when it turns"


def test_a_pause_of_the_hand_is_not_taken_for_a_slow_frame() -> None:
    detail, turned = Detail(MANY), set()
    for start in (0.0, 1.5, 4.0, 5.0):
        for i in range(10):
            detail.reported(1, start + 0.02 * i)
            turned.add(detail.points)
    assert turned == {Detail(MANY).points, 80_000}


def test_a_small_cloud_has_one_level() -> None:
    detail = Detail(1000)
    turn(detail, 0.0, 1e-3)
    assert detail.points == 1000 and not detail.rested(1e9)
    assert Detail(0).points == 0
