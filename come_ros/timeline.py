"""Classifies stamps: next, late, outlier, or a jump that later images confirm.

One image with a wrong stamp must not end a world. A stamp far back is accepted once CONFIRMATIONS images in a row follow it; images
after a long pause are revoked if the following ones continue from before the pause.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from enum import Enum

from .types import Frame
from .window import MAX_GAP_NS, TIME_JUMP_NS

log = logging.getLogger("come_ros")

CONFIRMATIONS = 3


class Place(Enum):
    """Class of a stamp: NEXT; LATE; SUSPECT (far back and not yet confirmed); JUMP (back, confirmed); or RETURN to before a pause,
    which makes the images after the pause outliers."""

    NEXT = "next"
    LATE = "late"
    SUSPECT = "suspect"
    JUMP = "jump"
    RETURN = "return"


class Timeline:
    """Classifies one stamp after the other. last_ns: of the last accepted image, None before the first. jumped_to_ns: of the first
    image after the last jump."""

    def __init__(self, confirmations: int = CONFIRMATIONS) -> None:
        """confirmations: images in a row, including the first, that confirm a jump; 1 accepts every jump at once."""
        self.confirmations = confirmations
        self.reset()

    def reset(self) -> None:
        """As new."""
        self.last_ns: int | None = None
        self.jumped_to_ns = 0
        self._suspects: list[int] = []
        self._before_pause_ns: int | None = None
        self._since_pause = 0

    @property
    def after_pause(self) -> int:
        """Number of images accepted since the last pause, while they may still be outliers; else 0."""
        return self._since_pause if self._before_pause_ns is not None else 0

    @property
    def suspects(self) -> int:
        """Number of images in a row that lie far back, unconfirmed."""
        return len(self._suspects)

    def place(self, stamp_ns: int) -> Place:
        """Classifies a stamp; the next one is compared with it if it is accepted."""
        last = self.last_ns
        if last is None or stamp_ns > last:
            self._suspects.clear()
            self._note_pause(last, stamp_ns)
            self.last_ns = stamp_ns
            return Place.NEXT
        if stamp_ns >= last - TIME_JUMP_NS:
            return Place.LATE
        if self._before_pause_ns is not None and stamp_ns > self._before_pause_ns:
            return self._taken(stamp_ns, Place.RETURN)
        if self._suspects and not 0 < stamp_ns - self._suspects[-1] <= MAX_GAP_NS:
            self._suspects.clear()
        self._suspects.append(stamp_ns)
        if len(self._suspects) >= self.confirmations:
            self.jumped_to_ns = self._suspects[0]
            return self._taken(stamp_ns, Place.JUMP)
        return Place.SUSPECT

    def _note_pause(self, last: int | None, stamp_ns: int) -> None:
        if last is not None and stamp_ns - last > MAX_GAP_NS:
            self._before_pause_ns, self._since_pause = last, 1
        elif self._before_pause_ns is not None:
            self._since_pause += 1
            if self._since_pause > CONFIRMATIONS:
                self._before_pause_ns = None

    def _taken(self, stamp_ns: int, place: Place) -> Place:
        self.last_ns, self._before_pause_ns = stamp_ns, None
        self._suspects.clear()
        return place


MOST_TOLD = 5  # outliers that are logged individually


def settled(frames: Iterable[Frame], drop: Callable[[int], object]) -> Iterator[Frame]:
    """`frames` of a recording without outliers in time: frames whose stamp is not confirmed by the next ones are left out and
    logged, and their number is passed to `drop`. A few frames are held back until that is known."""
    line = Timeline()
    back: list[Frame] = []  # suspects
    ahead: list[Frame] = []  # after a pause
    told = 0

    def leave_out(held: list[Frame], where: str) -> None:
        nonlocal told
        if held:
            told += 1
            if told <= MOST_TOLD:
                more = "; more of them are not listed" if told == MOST_TOLD else ""
                log.warning(
                    "%d image%s with stamps far %s (%d.%09d s) left out: those that follow do not confirm them%s",
                    len(held), "" if len(held) == 1 else "s", where, *divmod(held[0].stamp_ns, 1_000_000_000), more,
                )  # fmt: skip
            drop(len(held))
            held.clear()

    for frame in frames:
        place = line.place(frame.stamp_ns)
        if place is Place.SUSPECT:
            if line.suspects == 1:  # it does not go on from those before
                leave_out(back, "back")
            back.append(frame)
            continue
        if place is Place.JUMP:
            yield from ahead
            yield from back
            ahead.clear()
            back.clear()
        elif place is Place.RETURN:
            leave_out(ahead, "ahead")
        elif place is Place.NEXT:
            leave_out(back, "back")
            if line.after_pause == 1:  # another pause: the images after the previous one are accepted
                yield from ahead
                ahead.clear()
            if line.after_pause:
                ahead.append(frame)
                continue
            yield from ahead
            ahead.clear()
        yield frame
    yield from ahead
    leave_out(back, "back")
