"""Overlapping windows of keyframes: each fresh keyframe is reconstructed once; reconstructed ones link the next window to the
previous."""

from __future__ import annotations

from .types import Frame, Window

# After a longer pause between keyframes a new window starts: the views before and after need not overlap.
MAX_GAP_NS = 5_000_000_000
# Stamps that go back by more than this are a jump (a bag that loops, a clock that was set); by less, a late frame.
TIME_JUMP_NS = 100_000_000


class SlidingWindow:
    """Keeps the fresh keyframes, and the used ones (already reconstructed) that can be shared with the next window.

    A window never spans a change of camera, image size or encoding or a pause of more than MAX_GAP_NS: it ends before the change,
    and the one after it begins without shared frames.
    """

    def __init__(self, size: int, overlap: int) -> None:
        """`size`: most keyframes in a window. `overlap`: least number of them shared with the previous window."""
        self.resize(size, overlap)
        self._fresh: list[Frame] = []
        self._used: list[Frame] = []

    def resize(self, size: int, overlap: int) -> None:
        """Changes the sizes from the next window on. Raises ValueError unless 0 <= overlap < size."""
        if not 0 <= overlap < size:
            raise ValueError(f"overlap is {overlap}, but must lie in 0 .. size - 1 ({size - 1})")
        self.size, self.overlap = size, overlap

    @property
    def fresh(self) -> int:
        """Number of keyframes that no window has taken yet."""
        return len(self._fresh)

    @property
    def started(self) -> bool:
        """Whether there are reconstructed keyframes for the next window to share."""
        return bool(self._shareable())

    @property
    def room(self) -> int:
        """Number of fresh keyframes that still fit into the next window."""
        return max(0, self._most_new() - self.fresh)

    def push(self, frame: Frame) -> None:
        """Adds a keyframe. Raises ValueError if there is no room: take a window first."""
        if self.room == 0:
            raise ValueError(f"the window of {self.size} is full with {self.fresh} fresh keyframes: take it first")
        self._fresh.append(frame)

    def take(self, least_new: int) -> Window | None:
        """As many used keyframes as fit and the fresh ones, oldest first; None if fewer than `least_new` are fresh.

        Frames before a change of camera, size or encoding or a pause do not wait for `least_new`: no more can join them.
        """
        shareable = self._shareable()
        frames = self._fresh[: self._most_new()]
        whole = next((i for i in range(1, len(frames)) if not _continues(frames[i - 1], frames[i])), None)
        if not frames or (whole is None and len(frames) < least_new):
            return None
        frames = frames[:whole]
        del self._fresh[: len(frames)]
        fit = self.size - len(frames)
        return Window((*shareable[-fit:], *frames) if fit else tuple(frames), len(frames))

    def give_up_oldest(self) -> Frame | None:
        """Makes room: the oldest fresh keyframe is taken out and returned, None if there is none."""
        return self._fresh.pop(0) if self._fresh else None

    def commit(self, window: Window) -> None:
        """Marks the frames of `window` as reconstructed: the last ones can be shared from now on."""
        new = window.frames[len(window) - window.new :]
        before = self._used if not self._used or _continues(self._used[-1], new[0]) else []
        self._used = [*before, *new][-(self.size - 1) :]

    def forget(self) -> None:
        """The next window shares nothing; fresh keyframes stay."""
        self._used.clear()

    def reset(self) -> None:
        """As new."""
        self._fresh.clear()
        self._used.clear()

    def _most_new(self) -> int:
        return self.size - min(self.overlap, len(self._shareable()))

    def _shareable(self) -> list[Frame]:
        """The used keyframes, unless the oldest fresh one does not continue them."""
        broken = self._used and self._fresh and not _continues(self._used[-1], self._fresh[0])
        return [] if broken else self._used


def trimmed(window: Window, size: int, overlap: int) -> Window:
    """The newest frames of `window`, at most `size` in all; up to `overlap` of them (more if they fit) are shared with the window
    before. Raises ValueError unless 0 <= overlap < size."""
    if not 0 <= overlap < size:
        raise ValueError(f"overlap is {overlap}, but must lie in 0 .. size - 1 ({size - 1})")
    old, new = window.frames[: len(window) - window.new], window.frames[len(window) - window.new :]
    new = new[-(size - min(overlap, len(old))) :]
    fit = size - len(new)
    return Window((*old[-fit:], *new) if fit else new, len(new))


def _continues(before: Frame, after: Frame) -> bool:
    return (
        before.camera == after.camera
        and before.image.shape == after.image.shape
        and before.encoding == after.encoding
        and 0 <= after.stamp_ns - before.stamp_ns <= MAX_GAP_NS
    )
