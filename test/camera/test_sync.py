"""Sets of several cameras: whatever comes, in whatever order, every image is in one set, or dropped, or waits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from come_ros.camera.sync import TIME_JUMP_NS, SetMatcher

MS = 1_000_000
stamps = st.lists(st.integers(0, 400), max_size=12, unique=True).map(sorted)


def merged(streams: list[list[int]], seed: int) -> list[tuple[int, int]]:
    """(camera, stamp) in an order of arrival that keeps each camera's own."""
    rng = np.random.default_rng(seed)
    left = [list(s) for s in streams]
    order = []
    while any(left):
        camera = int(rng.choice([i for i, s in enumerate(left) if s]))
        order.append((camera, left[camera].pop(0)))
    return order


def run(matcher: SetMatcher, order: list[tuple[int, int]]) -> tuple[list[tuple[int, ...]], int]:
    sets, dropped = [], 0
    for camera, stamp in order:
        found = matcher.put(camera, stamp, stamp)
        sets += found.sets
        dropped += found.dropped
    return sets, dropped


@given(st.lists(stamps, min_size=1, max_size=4), st.integers(0, 60), st.integers(0, 9), st.integers(0, 9))
def test_sets_are_whole_close_in_order_and_nothing_is_lost(streams, slop, seed, other_seed) -> None:
    matcher = SetMatcher(len(streams), slop, waiting=99)
    sets, dropped = run(matcher, merged(streams, seed))
    for found in sets:
        assert len(found) == len(streams) and max(found) - min(found) <= slop
        assert all(stamp in stream for stamp, stream in zip(found, streams, strict=True))
    for before, after in itertools.pairwise(sets):
        assert all(a < b for a, b in zip(before, after, strict=True)), "in order, and each item once"
    assert len(sets) * len(streams) + dropped + matcher.clear() == sum(map(len, streams))
    assert run(SetMatcher(len(streams), slop, waiting=99), merged(streams, other_seed))[0] == sets, "in any order"


@given(stamps, stamps, st.integers(0, 60))
def test_no_other_choice_makes_more_sets(left, right, slop) -> None:
    sets, _ = run(SetMatcher(2, slop, waiting=99), merged([left, right], 0))
    # the most pairs that keep the order: longest common subsequence where "common" means close
    best = np.zeros((len(left) + 1, len(right) + 1), int)
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            best[i + 1, j + 1] = max(best[i, j + 1], best[i + 1, j], best[i, j] + (abs(a - b) <= slop))
    assert len(sets) == best[-1, -1]


@given(st.integers(1, 5), st.integers(0, 2**32 - 1), st.floats(0, 0.3))
def test_cameras_in_step_lose_only_what_a_lost_message_tears_apart(cameras, seed, loss) -> None:
    rng = np.random.default_rng(seed)
    period, slop, ticks = 33 * MS, 10 * MS, 30
    there = rng.random((ticks, cameras)) >= loss
    jitter = rng.integers(0, slop + 1, (ticks, cameras))
    streams = [[t * period + int(jitter[t, c]) for t in range(ticks) if there[t, c]] for c in range(cameras)]
    matcher = SetMatcher(cameras, slop, waiting=99)
    sets, dropped = run(matcher, merged(streams, seed % 1000))
    assert len(sets) == int(there.all(axis=1).sum())
    assert dropped + matcher.clear() == int(there[~there.all(axis=1)].sum())


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-50, 500)), max_size=60), st.integers(1, 5))
def test_whatever_the_stamps_all_is_counted_and_bounded(puts, waiting) -> None:
    matcher = SetMatcher(3, 20 * MS, waiting)
    total = 0
    for i, (camera, ms) in enumerate(puts, start=1):
        found = matcher.put(camera, ms * MS, ms)
        total += 3 * len(found.sets) + found.dropped
        assert 0 <= i - total <= 3 * waiting
    assert total + matcher.clear() == len(puts) and matcher.clear() == 0


def test_a_late_image_is_dropped_and_a_jump_back_start_again() -> None:
    matcher = SetMatcher(2, 20 * MS)
    start = 10 * TIME_JUMP_NS
    assert matcher.put(0, start, "a") == ([], 0)
    assert matcher.put(0, start, "again") == ([], 1) == matcher.put(0, start - TIME_JUMP_NS, "late")
    assert matcher.put(0, 5, "b") == ([], 1), "what waited from before the jump is gone"
    assert matcher.put(1, 7, "c") == ([("b", "c")], 0)


def test_a_silent_camera_is_named_and_the_others_do_not_pile_up() -> None:
    matcher = SetMatcher(3, 20 * MS, waiting=4)
    assert matcher.missing() == []
    dropped = sum(matcher.put(camera, i * 33 * MS, i).dropped for i in range(20) for camera in (0, 2))
    assert dropped == 2 * 16 and matcher.missing() == [1] and matcher.clear() == 8


def test_what_cannot_be_matched_is_refused() -> None:
    for arguments in ((0, 1), (2, -1), (2, 1, 0)):
        with pytest.raises(ValueError, match="cannot match"):
            SetMatcher(*arguments)
