"""Thread governor: adapts the number of CPU threads of the live node's model to the load of the machine."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple

from .threads import Cores, usable_threads, use

TRIAL = 3  # passes of a trial with another number of threads
MARGIN = 1.05  # a larger ratio of times counts as slower
WORSE = 1.5  # a larger ratio means that the load has changed, so a number may be tried again at once
SPARE = 0.8  # idle cores required for each additional thread
# Time until more threads are tried when cores are idle, or fewer again; and until more are tried although no core is idle.
# Doubled after each failure, up to the second number.
HOLD_S, LONGEST_HOLD_S = 5.0, 160.0
BLIND_HOLD_S, LONGEST_BLIND_HOLD_S = 60.0, 960.0
KINDS = 64  # kinds of windows whose time is remembered
MEASURE_S = 3.0  # limit of the measurement


def choices(most: int) -> tuple[int, ...]:
    """Numbers of threads to choose from, ascending: powers of two, and all."""
    return tuple(sorted({*(2**i for i in range(most.bit_length()) if 2**i <= most), most}))


def measured_cost(
    run: Callable[[int], None],
    numbers: tuple[int, ...],
    budget_s: float = MEASURE_S,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[int, float]:
    """Seconds of a pass with each of `numbers` threads: the better of two after a warm-up.

    run: one pass with a number of threads. If measuring would take longer than `budget_s`, the cost is assumed to be inversely
    proportional.
    """
    cost: dict[int, float] = {}
    begun = clock()
    for n in sorted(numbers, reverse=True):
        took = []
        for _ in range(3):
            start = clock()
            run(n)
            took.append(clock() - start)
            if not cost and 3 * len(numbers) * min(took) > budget_s:
                return {n: 1 / n for n in numbers}
        cost[n] = min(took[1:])
        if clock() - begun > 2 * budget_s:  # another process needs the machine now
            return {m: cost.get(m, cost[n] * n / m) for m in numbers}
    return cost


class ThreadState(NamedTuple):
    """For diagnostics. slowdown: duration of passes relative to an idle machine; 1 until that is known."""

    threads: int
    most: int
    slowdown: float


class ThreadGovernor:
    """Given the duration of each pass (`observe`), it sets how many threads the next one may use (`threads`). Must be called from
    one thread.

    If two passes in a row take longer than fewer threads would on an idle machine, fewer are tried at once. More are tried after
    cores have been idle for a while; both are tried occasionally when no core is idle. A trial is kept if its next TRIAL passes are
    faster; otherwise it is reverted and not repeated for a time that doubles.
    """

    def __init__(self, cost: Mapping[int, float], clock: Callable[[], float] = time.monotonic) -> None:
        """cost: s, duration of a pass with each number of threads, measured once. Only ratios matter."""
        self.numbers = tuple(sorted(cost))
        least = cost[self.numbers[0]]
        self._cost = {n: cost[n] / least for n in self.numbers}  # on an idle machine, relative to the fewest threads
        best = min(self._cost.values())
        self._index = next(i for i, n in enumerate(self.numbers) if self._cost[n] <= MARGIN * best)
        self.clock = clock
        self._alone: dict[Hashable, float] = {}  # kind of window -> s, with the fewest threads on an idle machine
        self._recent: deque[float] = deque(maxlen=TRIAL)  # prices: times relative to that
        self._price_before = min(self._cost.values())  # the last change
        self._skip = False  # the first pass after a change starts or ends threads
        self._trial: tuple[int, float] | None = None  # the number of threads before a trial, and its price
        self._idle_since: float | None = None
        self._changed_at = clock()
        self._up_hold_s, self._blind_hold_s, self._down_hold_s = HOLD_S, BLIND_HOLD_S, HOLD_S
        self._raised_at = self._down_after = -math.inf
        self._refused_price = math.inf  # prices at which fewer threads did not help

    @property
    def threads(self) -> int:
        return self.numbers[self._index]

    @property
    def state(self) -> ThreadState:
        price = statistics.median(self._recent or [self._price_before])
        return ThreadState(self.threads, self.numbers[-1], max(1.0, price / min(self._cost.values())))

    def observe(self, seconds: float, kind: Hashable, spare: float) -> bool:
        """Records the duration of a pass. kind: key shared by passes of equal cost. spare: idle cores recently. Returns whether
        `threads` changed."""
        if self._skip:
            self._skip = False
            return False
        self._recent.append(self._price(seconds, kind))
        now = self.clock()
        if self._trial is not None:
            return len(self._recent) == TRIAL and self._judge(*self._trial, now)
        if self._idle_since is None or spare < SPARE * (self._after() - self.threads) or self._after() == self.threads:
            self._idle_since = now
        if self._index > 0 and len(self._recent) >= 2 and (self._too_slow(now) or self._may_shrink(spare, now)):
            return self._try(self._index - 1, now)
        if self._index < len(self.numbers) - 1 and len(self._recent) == TRIAL and self._may_grow(now):
            return self._try(self._index + 1, now)
        return False

    def _after(self) -> int:
        """The next number up."""
        return self.numbers[min(self._index + 1, len(self.numbers) - 1)]

    def _price(self, seconds: float, kind: Hashable) -> float:
        alone = min(seconds / self._cost[self.threads], self._alone.pop(kind, math.inf))
        self._alone[kind] = alone  # last again
        if len(self._alone) > KINDS:
            del self._alone[next(iter(self._alone))]
        return seconds / alone

    def _too_slow(self, now: float) -> bool:
        worst, *_ = sorted(list(self._recent)[-2:])  # both of them
        if worst <= MARGIN * self._cost[self.numbers[self._index - 1]]:
            return False
        return now >= self._down_after or worst > WORSE * self._refused_price

    def _may_shrink(self, spare: float, now: float) -> bool:
        """Without an idle core, the usual time may be that of a machine that has been busy from the start."""
        return spare < 1 - SPARE and len(self._recent) == TRIAL and now - self._changed_at >= self._down_hold_s

    def _may_grow(self, now: float) -> bool:
        idle = self._idle_since is not None and now - self._idle_since >= self._up_hold_s
        return now - self._changed_at >= (self._up_hold_s if idle else self._blind_hold_s)

    def _try(self, index: int, now: float) -> bool:
        self._trial = self._index, statistics.median(self._recent)
        self._go(index, now)
        return True

    def _judge(self, before: int, price: float, now: float) -> bool:
        """Ends a trial. Returns whether it is reverted."""
        found, grew = statistics.median(self._recent), self._index > before
        self._trial = None
        if grew:
            if found * MARGIN <= price:
                self._raised_at, self._refused_price, self._down_after = now, math.inf, -math.inf
                return False
            self._up_hold_s = min(2 * self._up_hold_s, LONGEST_HOLD_S)
            self._blind_hold_s = min(2 * self._blind_hold_s, LONGEST_BLIND_HOLD_S)
        elif found <= price:
            # the time until more threads are tried depends on how long this number was useful
            soon = now - self._raised_at < 2 * self._up_hold_s
            self._up_hold_s = min(2 * self._up_hold_s, LONGEST_HOLD_S) if soon else HOLD_S
            self._blind_hold_s, self._down_hold_s = BLIND_HOLD_S, HOLD_S
            return False
        else:
            self._down_after, self._refused_price = now + self._down_hold_s, price
            self._down_hold_s = min(2 * self._down_hold_s, LONGEST_BLIND_HOLD_S)
        self._go(before, now)
        return True

    def _go(self, index: int, now: float) -> None:
        self._index, self._changed_at, self._idle_since = index, now, None
        self._price_before = statistics.median(self._recent)
        self._recent.clear()
        self._skip = True


class LiveThreads:
    """Applies a ThreadGovernor: the thread that creates it runs the passes, with the number of threads set for them."""

    def __init__(self, run: Callable[[int], object], frames: int, most: int | None = None) -> None:
        """run: one pass of the model over so many frames. frames: of the usual window. most: threads, by default all."""
        numbers = choices(most or usable_threads())
        begun = time.perf_counter()
        run(1)
        seconds = frames * (time.perf_counter() - begun) * 3 * len(numbers)

        def one_pass(threads: int) -> None:
            use(threads)
            run(frames)

        cost = {n: 1 / n for n in numbers} if seconds > 2 * MEASURE_S else measured_cost(one_pass, numbers)
        self.governor, self._cores = ThreadGovernor(cost), Cores()
        use(self.governor.threads)

    def passed(self, seconds: float, kind: Hashable) -> None:
        """See ThreadGovernor.observe."""
        if self.governor.observe(seconds, kind, self._cores.spare()):
            use(self.governor.threads)
