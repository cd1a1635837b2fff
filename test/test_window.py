import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from come_ros.types import Frame
from come_ros.window import MAX_GAP_NS, SlidingWindow

IMAGE = np.zeros((8, 10, 3), np.uint8)


def frame(stamp, camera="c", image=IMAGE):
    return Frame(image, stamp, camera)


def stamps(window):
    return [f.stamp_ns for f in window.frames]


def test_offline_windows_overlap_by_as_many_as_asked():
    window = SlidingWindow(4, 2)
    for i in range(4):
        assert window.take(4) is None
        window.push(frame(i))
    assert window.room == 0
    with pytest.raises(ValueError, match="take it first"):
        window.push(frame(9))
    first = window.take(4)
    assert stamps(first) == [0, 1, 2, 3] and first.new == 4
    window.commit(first)
    assert window.room == 2
    window.push(frame(4))
    assert window.take(2) is None and window.fresh == 1
    window.push(frame(5))
    second = window.take(2)
    assert stamps(second) == [2, 3, 4, 5] and second.new == 2 and len(second) == 4


def test_live_windows_reach_back_as_far_as_they_can():
    window = SlidingWindow(4, 1)
    for i in range(6):
        window.push(frame(i))
        taken = window.take(1)
        assert stamps(taken) == list(range(max(0, i - 3), i + 1)) and taken.new == 1
        window.commit(taken)


def test_a_window_given_up_is_not_shared():
    window = SlidingWindow(4, 2)
    window.push(frame(0))
    window.commit(window.take(1))
    window.push(frame(1))
    window.take(1)
    window.push(frame(2))
    assert stamps(window.take(1)) == [0, 2]


@pytest.mark.parametrize(
    "other",
    [frame(7, camera="d"), frame(7, image=np.zeros((9, 10, 3), np.uint8)), frame(MAX_GAP_NS + 9)],
    ids=["camera", "size", "pause"],
)
def test_no_window_spans_a_break(other):
    window = SlidingWindow(6, 2)
    window.push(frame(0))
    window.commit(window.take(1))
    for f in (frame(1), frame(2), other):
        window.push(f)
    assert stamps(window.take(6)) == [0, 1, 2]  # does not wait: nothing can join it
    assert window.take(6) is None  # the part after the break does
    assert stamps(window.take(1)) == [other.stamp_ns]


def test_smaller_sizes_take_effect_without_losing_frames():
    window = SlidingWindow(8, 2)
    for i in range(8):
        window.push(frame(i))
    window.resize(3, 2)
    assert window.room == 0
    seen = []
    while (taken := window.take(1)) is not None:
        assert len(taken) <= 3
        window.commit(taken)
        seen += stamps(taken)[-taken.new :]
    assert seen == list(range(8))
    with pytest.raises(ValueError, match="overlap"):
        window.resize(2, 2)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 9), st.data())
def test_every_keyframe_is_new_exactly_once_and_windows_stay_in_bounds(size, data):
    window = SlidingWindow(size, data.draw(st.integers(1, size - 1)))
    pushed, new = 0, []
    for least, commit in data.draw(st.lists(st.tuples(st.integers(1, size), st.booleans()), max_size=30)):
        if window.room:
            window.push(frame(pushed))
            pushed += 1
        taken = window.take(least)
        assert 0 <= window.room <= size
        if taken is not None:
            assert 1 <= len(taken) <= size and taken.new >= 1 and stamps(taken) == sorted(set(stamps(taken)))
            new += stamps(taken)[-taken.new :]
            if commit:
                window.commit(taken)
    assert new == list(range(len(new))) and len(new) + window.fresh == pushed


def test_forget_keeps_what_is_fresh_and_reset_nothing():
    window = SlidingWindow(4, 2)
    window.push(frame(0))
    window.commit(window.take(1))
    window.push(frame(1))
    window.forget()
    assert stamps(window.take(1)) == [1]
    window.push(frame(2))
    window.reset()
    assert window.fresh == 0 and window.take(1) is None


def test_after_a_break_there_is_room_for_a_whole_window():
    window = SlidingWindow(4, 2)
    for i in range(4):
        window.push(frame(i))
    window.commit(window.take(4))
    assert window.room == 2 and window.started
    window.push(frame(MAX_GAP_NS + 9))
    assert window.room == 3 and not window.started
    taken = window.take(1)
    window.commit(taken)
    window.push(frame(MAX_GAP_NS + 10))
    assert stamps(window.take(1)) == [MAX_GAP_NS + 9, MAX_GAP_NS + 10]
