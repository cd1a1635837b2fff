"""Governor: limits the cost of a window, so that results come in time and fit into memory.

Three knobs: the accelerator's merge ratio, the window, the resolution of the model's images. Two things change them:

- Latency. With a target, each knob is turned in turn (ratio, then window, then resolution) while results come too late, and back in the
  opposite order while there is room. One knob is turned at a time and at most every HOLD_S. There is room if the expected latency
  after the step back is below MARGIN of the target; the measured cost of each step is remembered and used from then on.
- Memory. After a window that does not fit, it goes one step down a separate ladder at once, and one step up after CLEAN_S without a failure
  (twice as long each time that a step up fails at once).

The configured values are never exceeded; the cheaper of the two applies. Whether a higher ratio makes a pass faster depends on the
accelerator, the window and the machine, so it is tried: if MOST_UNPAID steps in a row have almost no effect, the ratio returns to
the configured value and is no longer changed.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from .config import Config

HOLD_S = 5.0  # between two changes for latency
MARGIN = 0.85  # share of the target that the expected latency after a step back may reach
FEW, MANY = 3, 20  # windows from which the median, and the 95th percentile, are computed
CLEAN_S, LONGEST_CLEAN_S = 60.0, 960.0

MOST_RATIO, RATIO_STEP = 0.8, 0.1
LEAST_WINDOW, WINDOW_STEP = 3, 0.75
MOST_INTERVAL = 100  # of stream.keyframe_interval
LEAST_SIDE, LEAST_SIDE_SHARE, SIDE_STEP = 112, 0.4, 0.85
OOM_RATIO, OOM_SIDE = 0.75, 392
# A change of latency between these two is ignored; above, the machine got busy
NO_GAIN, MOST_UNPAID = (0.9, 1.03), 2
# Share of a pass that merging saves (embedding, heads and everything around the model remain): initial guess until measured, and the limit.
MERGEABLE, MOST_MERGEABLE = 0.6, 0.95


class Effort(NamedTuple):
    """What one window costs. ratio: accelerator.ratio. window: keyframes, of a causal backbone those of its local window. side: longer
    side of the model's images, px."""

    ratio: float
    window: int
    side: int

    def tokens(self, mergeable: float = MERGEABLE) -> float:
        """Proportional to the tokens that a pass processes, if merging saves that share of it."""
        return self.window * self.side**2 * (1 - mergeable * self.ratio)

    def and_at_most(self, other: Effort) -> Effort:
        """The cheaper of both, for each knob."""
        return Effort(max(self.ratio, other.ratio), min(self.window, other.window), min(self.side, other.side))


class State(NamedTuple):
    """For diagnostics. level: steps taken for latency, of `levels`. ladder_step: steps taken for memory, of `ladder_steps`.

    limited: results are late although all knobs are at their limits. oom_count: windows that did not fit. exhausted: the last
    window did not fit although it was the cheapest possible. size: keyframes of the next window.
    """

    effort: Effort
    level: int
    levels: int
    limited: bool
    ladder_step: int
    ladder_steps: int
    oom_count: int
    exhausted: bool
    size: int


class Governor:
    """Given events (`observe`, `out_of_memory`, `fitted`), it sets the limits of the next window (`apply`). Must be called from one
    thread."""

    def __init__(
        self,
        config: Config,
        native_side: int,
        patch: int,
        clock: Callable[[], float] = time.monotonic,
        causal: bool = False,
    ) -> None:
        """native_side: of the model's images, px, where config.input.max_side is 0. patch: sides are multiples of it. causal: the
        backbone runs new frames only, so the window knob is `stream.window`."""
        self.native_side, self.patch, self.clock, self.causal = native_side, patch, clock, causal
        self.oom_count = 0
        self._all: deque[float] = deque(maxlen=2 * MANY)  # latencies since the last change
        self._whole: deque[float] = deque(maxlen=2 * MANY)  # those of whole windows
        self._skip, self._limited, self._turned_at = True, False, -math.inf
        self._before: tuple[int, float] | None = None  # level and latency before the last change
        self._growth: dict[int, float] = {}  # of the latency, for the step back from that level
        self._base: tuple[Effort, bool] | None = None
        self._unpaid = 0  # steps of the ratio in a row without effect
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Changes the parameters. If the configured cost changes, control restarts from there."""
        before, self.config = getattr(self, "config", config), config
        steerable = _ratio_counts(config)
        window = config.stream.window if self.causal else config.window.size
        base = Effort(config.accelerator.ratio, window, config.input.max_side or self.native_side)
        dropped = before.latency_target_ms > 0 and config.latency_target_ms <= 0
        if (base, steerable) == self._base and self.target_s > 0 and not dropped:
            return
        if (base, steerable) != self._base:
            self._base = base, steerable
            self.levels = tuple(levels(base, self.patch, steerable))
            self.ladder = tuple(ladder(base, self.patch, steerable))
            self.step, self._exhausted = 0, False
            self._growth.clear()
            self._unpaid = 0
            self._clean_s, self._clean_since, self._tried_up = CLEAN_S, self.clock(), False
        self.level = 0
        self._turned(-math.inf)

    @property
    def effort(self) -> Effort:
        return self._effort(self.level)

    @property
    def size(self) -> int:
        """Keyframes of the next window."""
        size, window = self.config.window.size, self.effort.window
        if not self.causal:
            return window
        return min(size, window) if window < self.levels[0].window else size

    @property
    def state(self) -> State:
        return State(
            self.effort, self.level, len(self.levels) - 1, self._limited,
            self.step, len(self.ladder) - 1, self.oom_count, self._exhausted, self.size,
        )  # fmt: skip

    def apply(self) -> Config:
        """The configuration for the next window; the given one itself if no knob is changed."""
        ratio, window, side = self.effort
        config = self.config
        if self.effort == self.levels[0]:
            return config
        changes: dict[str, float] = {"accelerator.ratio": ratio, "window.size": self.size}
        if self.causal:
            # with every n-th frame kept, a shorter local window covers the same time
            longer = round(config.stream.window / window)
            interval = min(MOST_INTERVAL, config.stream.keyframe_interval * longer)
            changes |= {"stream.window": window, "stream.keyframe_interval": interval}
        if self.size < config.window.size:
            changes["window.overlap"] = min(config.window.shared, max(1, self.size // 2))
        if side < self.levels[0].side:
            changes["input.max_side"] = side
        return config.replace(**changes)

    # Latency

    @property
    def target_s(self) -> float:
        """What results may take, 0 for as long as they will: latency_target_ms, and max_data_age where later ones are dropped."""
        return min((s for s in (self.config.latency_target_ms * 1e-3, self._most_age_s) if s > 0), default=0.0)

    @property
    def _most_age_s(self) -> float:
        return self.config.max_data_age if self.config.backpressure == "latest" else 0.0

    def _too_old(self, age_s: float, target_s: float) -> bool:
        """A result came too late to be published: the next window costs less at once, or else nothing may ever be published."""
        if self._skip and self.level > 0:  # the first one after a step may have waited for the one before
            self._skip = False
            return False
        self._all.append(age_s)
        return self._down(age_s, target_s)

    def observe(self, latency_s: float, frames: int) -> bool:
        """A window of `frames` came out `latency_s` after the frame that triggered it came in. Whether a knob was turned."""
        target_s = self.target_s
        if target_s <= 0 or not math.isfinite(latency_s):
            return False
        if 0 < self._most_age_s < latency_s:
            return self._too_old(latency_s, target_s)
        if self._skip:  # the first window after a change is slower: new shapes, refilled windows
            self._skip = False
            return False
        self._all.append(latency_s)
        if (
            self.causal or frames >= self.effort.window
        ):  # smaller windows are cheaper and do not show how much room there is
            self._whole.append(latency_s)
        if len(self._all) < FEW:
            return False
        self._learn()
        if self._unpaid >= MOST_UNPAID:
            return self._give_up_ratio()
        if self.clock() - self._turned_at < HOLD_S:
            return False
        usual = _percentile(self._all, 95 if len(self._all) >= MANY else 50)
        if usual > target_s:
            return self._down(usual, target_s)
        self._limited = False
        return self._up(target_s) if self.level > 0 and len(self._whole) > FEW else False

    def _down(self, usual: float, target_s: float) -> bool:
        """Changes one knob, as far as the target requires if time is proportional to the tokens."""
        start, found = self.effort, self.level
        for level in range(self.level + 1, len(self.levels)):
            there = self._effort(level)
            if sum(a != b for a, b in zip(start, there, strict=True)) > 1:
                break  # the next knob is changed only if this one was not enough
            found = level
            if usual * there.tokens() / start.tokens() <= MARGIN * target_s:
                break
        self._limited = found == self.level
        return self._go(found)

    def _up(self, target_s: float) -> bool:
        growth = self._growth.get(self.level, self._dearer(self.level - 1, self.level, MERGEABLE))
        if _percentile(self._whole, 95) * growth > MARGIN * target_s:
            return False
        return self._go(self.level - 1)

    def _dearer(self, dear: int, cheap: int, mergeable: float) -> float:
        """Ratio of the durations at level `dear` and now, if time grows with the square of the tokens, as in attention."""
        return (self._effort(dear).tokens(mergeable) / self._effort(cheap).tokens(mergeable)) ** 2

    def _learn(self) -> None:
        """Records the effect of the last change on the latency, divided among its steps."""
        if self._before is None:
            return
        (level, before), now = self._before, _percentile(self._all, 50)
        self._before = None
        if min(before, now) <= 0:
            return
        dear, cheap = sorted((level, self.level))
        growth = before / now if level == dear else now / before
        (ratio, *rest), (higher, *others) = self.levels[dear], self.levels[cheap]
        if ratio != higher and rest == others:
            low, high = NO_GAIN
            self._unpaid = self._unpaid + cheap - dear if low < growth < high else 0
        if growth > self._dearer(
            dear, cheap, MOST_MERGEABLE
        ):  # no step has such an effect: the load of the machine changed
            return
        whole = self._dearer(dear, cheap, MERGEABLE)
        for step in range(dear + 1, cheap + 1):
            part = self._dearer(step - 1, step, MERGEABLE)
            share = math.log(part) / math.log(whole) if whole > 1 else 1 / (cheap - dear)
            self._growth[step] = max(growth, 1.0) ** share

    def _give_up_ratio(self) -> bool:
        """Stops changing the ratio, which does not make this accelerator faster here: window and resolution remain."""
        assert self._base is not None
        base, self._unpaid = self._base[0], 0
        self.levels = tuple(levels(base, self.patch, steerable=False))
        self.level = 0
        self._growth.clear()
        self._turned(self.clock())
        return True

    def _effort(self, level: int) -> Effort:
        return self.levels[level].and_at_most(self.ladder[self.step])

    def _go(self, level: int) -> bool:
        if level == self.level:
            return False
        before = self.level, _percentile(self._all, 50)
        self.level = level
        self._turned(self.clock())
        self._before = before
        return True

    def _turned(self, when: float) -> None:
        self._all.clear()
        self._whole.clear()
        self._skip, self._limited, self._before, self._turned_at = True, False, None, when

    # Memory

    def out_of_memory(self, frames: int) -> bool:
        """Records that a window of `frames` did not fit. Returns whether to try a cheaper one."""
        self.oom_count += 1
        if self._tried_up:
            soon = self.clock() - self._clean_since < self._clean_s
            self._clean_s = min(2 * self._clean_s, LONGEST_CLEAN_S) if soon else CLEAN_S
        self._tried_up, self._clean_since = False, self.clock()
        before, window = self.effort, self._of(frames)
        while self.config.oom.policy == "ladder" and self.step < len(self.ladder) - 1:
            self.step += 1
            if self._of(frames) != window:  # else it was no larger anyhow
                break
        if self.effort != before:
            self._laddered()
        self._exhausted = self._of(frames) == window
        return not self._exhausted

    def _of(self, frames: int) -> Effort:
        """Of a window of so many frames, now."""
        return self.effort if self.causal else self.effort._replace(window=min(frames, self.effort.window))

    def fitted(self) -> bool:
        """Records that a window fitted into memory. Returns whether to try a more expensive one."""
        self._exhausted = False
        if self.step == 0 or self.clock() - self._clean_since < self._clean_s:
            return False
        self.step -= 1
        self._tried_up, self._clean_since = True, self.clock()
        self._laddered()
        return True

    def _laddered(self) -> None:
        """Updates the levels and the steps between them."""
        self._growth.clear()
        self._turned(self.clock())


def levels(base: Effort, patch: int, steerable: bool) -> Iterator[Effort]:
    """`base`, then ever cheaper ones for latency: all ratios, then all windows, then all sides. steerable: the ratio has an effect."""
    now = base
    yield now
    while steerable and now.ratio < MOST_RATIO - 1e-9:
        now = now._replace(ratio=round(min(MOST_RATIO, now.ratio + RATIO_STEP), 6))
        yield now
    while now.window > LEAST_WINDOW:
        now = now._replace(window=max(LEAST_WINDOW, min(now.window - 1, round(now.window * WINDOW_STEP))))
        yield now
    least = max(LEAST_SIDE, round(LEAST_SIDE_SHARE * base.side))
    while (side := _multiple(min(now.side - 1, now.side * SIDE_STEP), patch)) >= least:
        now = now._replace(side=side)
        yield now


def ladder(base: Effort, patch: int, steerable: bool) -> Iterator[Effort]:
    """`base`, then what to try where memory ends: half the window, a smaller image, a higher ratio, two frames."""
    now = base
    yield now
    side = _multiple(OOM_SIDE if base.side > OOM_SIDE else base.side * 0.75, patch)
    for wanted in (
        {"window": max(2, base.window // 2)},
        {"side": max(side, min(base.side, LEAST_SIDE))},
        {"ratio": max(base.ratio, OOM_RATIO) if steerable else base.ratio},
        {"window": 2},
    ):
        after = now._replace(**wanted)
        if after != now:
            yield after
        now = after


def _ratio_counts(config: Config) -> bool:
    """Whether accelerator.ratio changes anything: with accelerator.frames, good_token_hunting by itself does not look at it."""
    how = config.accelerator
    return how.name != "none" and not (how.name == "good_token_hunting" and how.frames > 0)


def _percentile(values: Iterable[float], percent: float) -> float:
    """The value that so many percent of `values` do not exceed; never between two of them, so one outlier does not affect it."""
    ordered = sorted(values)
    return ordered[int(percent / 100 * (len(ordered) - 1))]


def _multiple(side: float, patch: int) -> int:
    """The largest multiple of `patch` up to `side`."""
    return patch * int(side / patch + 1e-9)
