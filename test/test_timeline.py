"""One wrong stamp is an outlier; a jump is what later images confirm."""

from __future__ import annotations

import numpy as np
import pytest

from come_ros.timeline import CONFIRMATIONS, MOST_TOLD, Place, Timeline, settled
from come_ros.types import Frame

S = 1_000_000_000
HOUR = 3600 * S
IMAGE = np.zeros((1, 1, 3), np.uint8)


def regular(count: int = 12, hz: float = 10.0, start: int = HOUR) -> list[int]:
    return [start + round(i * S / hz) for i in range(count)]


def kept(stamps: list[int]) -> tuple[list[int], int]:
    """Stamps that `settled` lets through, and how many it drops."""
    dropped: list[int] = []
    out = [f.stamp_ns for f in settled((Frame(IMAGE, t) for t in stamps), dropped.append)]
    return out, sum(dropped)


@pytest.mark.parametrize("off", [HOUR, -HOUR, 20 * S, -20 * S, -S // 2])
@pytest.mark.parametrize("at", [4, 11])
def test_one_outlier_is_left_out(off: int, at: int) -> None:
    stamps = regular()
    stamps[at] += off
    out, dropped = kept(stamps)
    if off > 0 and at == 11:  # the last one: nothing says that it is not a pause
        assert out == stamps and not dropped
    else:
        assert out == stamps[:at] + stamps[at + 1 :] and dropped == 1


@pytest.mark.parametrize("hz", [2.0, 5.0])
def test_two_images_that_changed_places_cost_one(hz: float) -> None:
    stamps = regular(hz=hz)
    stamps[6], stamps[7] = stamps[7], stamps[6]
    out, dropped = kept(stamps)
    assert dropped == 1 and out == sorted(out) and len(out) == 11


def test_a_clock_that_goes_ahead_and_back_for_some_images_keeps_its_world() -> None:
    ahead = [t + (0 if i in (18, 19, 30, 31) or i < 3 else 4_400_000_000) for i, t in enumerate(regular(40, 15.0))]
    out, dropped = kept(ahead)
    assert dropped == 4 and out == sorted(out) and len(out) == 36


@pytest.mark.parametrize("back", [1.0, 100.0, 7200.0])
def test_a_jump_is_believed_and_no_image_of_it_is_lost(back: float) -> None:
    stamps = regular() + regular(start=HOUR - round(back * S))
    assert kept(stamps) == (stamps, 0)


def test_pauses_are_believed_even_one_after_the_other() -> None:
    stamps = regular(4) + regular(4, start=HOUR + 60 * S) + [HOUR + 100 * S, HOUR + 200 * S, HOUR + 300 * S]
    assert kept(stamps) == (stamps, 0)


def test_live_nothing_is_held_back() -> None:
    line = Timeline()
    stamps = regular(5) + regular(5, start=1000 * S)
    places = [line.place(t) for t in stamps]
    assert places == [Place.NEXT] * 5 + [Place.SUSPECT] * (CONFIRMATIONS - 1) + [Place.JUMP] + [Place.NEXT] * 2
    assert line.jumped_to_ns == 1000 * S
    assert line.place(stamps[-1]) is Place.LATE
    assert [line.place(t) for t in (2000 * S, stamps[-1] + S // 10)] == [Place.NEXT, Place.RETURN]


def test_only_some_outliers_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert kept(regular(200)[::-1])[1] > 100
    assert len(caplog.records) == MOST_TOLD and "more of them are not listed" in caplog.records[-1].getMessage()
