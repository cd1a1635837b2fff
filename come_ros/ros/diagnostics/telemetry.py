"""Telemetry: recent events of the node, written by callbacks and worker, read by diagnostics and the summary line."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np

from ...backbones.stream import StreamUsage
from ...tracking.odometry import Located
from ...types import Alignment, Refinement
from ...verdict.evidence import Evidence

RECENT_S = 5.0
JUDGED = 100  # newest keyframes that the verdict is about


@dataclass(frozen=True)
class Rates:
    """Over the last seconds: frames in and out per second, latency and age from arrival to publication in ms (NaN: none)."""

    fps_in: float
    fps_out: float
    latency_ms_mean: float
    latency_ms_p95: float


@dataclass(frozen=True)
class PoseRates:
    """Of odometry at the camera's rate, over the last seconds: poses a second, from arrival to publication (median, p95, ms), and
    what tracking
    and locating took (median, ms). NaN: none."""

    hz: float
    latency_ms: float
    latency_ms_p95: float
    cost_ms: float


class Telemetry:
    """Plain attributes may be set from any thread; rates are kept behind a lock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._lock = threading.Lock()
        self._arrivals: deque[float] = deque(maxlen=2000)
        self._results: deque[tuple[float, float]] = deque(maxlen=500)  # (when, latency in s)
        self._poses: deque[tuple[float, float]] = deque(maxlen=2000)  # (when, latency in s)
        self._pose_costs: deque[float] = deque(maxlen=100)  # ms
        self.last_located: Located | None = None
        self.lost = 0
        self.goes_first: bool | None = (
            None  # whether tracking runs before the model, if the system permits it; None: it has no separate thread
        )
        self._troubles: dict[str, tuple[float, str]] = {}
        self.active_since: float | None = None
        self.encoding = ""
        self.converters = ""
        self.size = ""
        self.camera_info = "none received yet"
        self.known: dict[str, str] = {}  # topic of a known input besides the images -> "ok", or its problem
        self.intrinsics_source = ""
        self.resolution = ""
        self.last_stamp_ns = 0
        self.points = -1
        self.alignment: Alignment | None = None
        self.refinement = Refinement()
        self.evidence = Evidence(JUDGED)
        self.refine_ms = float("nan")
        self.kept_ratio = self.read_ratio = 1.0
        self.reused, self.saved_ms = 0.0, 0.0  # see types.Submap
        self.stream: StreamUsage | None = None
        self.resets = 0

    def arrived(self) -> None:
        """Records a received frame."""
        with self._lock:
            self._arrivals.append(self.clock())

    def published(self, latency_s: float) -> None:
        """Records a published frame, `latency_s` after the arrival of the frame that triggered its window."""
        with self._lock:
            self._results.append((self.clock(), latency_s))

    def located(self, located: Located, cost_ms: float) -> None:
        """Records the pose of the newest image and the time it took."""
        with self._lock:
            self._pose_costs.append(cost_ms)
        self.last_located = located
        self.lost += located.lost

    def told(self, latency_s: float) -> None:
        """Records a published pose, `latency_s` after the arrival of its image."""
        with self._lock:
            self._poses.append((self.clock(), latency_s))

    def pose_rates(self) -> PoseRates:
        now = self.clock()
        span = min(RECENT_S, max(0.5, now - (now if self.active_since is None else self.active_since)))
        with self._lock:
            recent = [latency for t, latency in self._poses if now - t <= span]
            costs = list(self._pose_costs) or [np.nan]
        ms = np.array(recent or [np.nan]) * 1e3
        return PoseRates(
            len(recent) / span, float(np.median(ms)), float(np.percentile(ms, 95)), float(np.median(costs))
        )

    def trouble(self, kind: str, text: str) -> None:
        """Records a failure for some seconds."""
        self._troubles[kind] = (self.clock(), text)

    def recent(self, kind: str) -> str:
        """The failure within the last seconds, or ""."""
        when, text = self._troubles.get(kind, (-np.inf, ""))
        return text if self.clock() - when < RECENT_S else ""

    def silence_s(self) -> float:
        """Seconds without a frame, counted from activation at the earliest; 0 while inactive."""
        with self._lock:
            last = self._arrivals[-1] if self._arrivals else -np.inf
        return 0.0 if self.active_since is None else self.clock() - max(last, self.active_since)

    def rates(self, over_s: float = RECENT_S) -> Rates:
        now = self.clock()
        span = min(over_s, max(0.5, now - (now if self.active_since is None else self.active_since)))
        with self._lock:
            arrivals = sum(now - t <= span for t in self._arrivals)
            latencies = [latency for t, latency in self._results if now - t <= 2 * over_s]
            results = sum(now - t <= span for t, _ in self._results)
        ms = np.array(latencies or [np.nan]) * 1e3
        return Rates(arrivals / span, results / span, float(ms.mean()), float(np.percentile(ms, 95)))


class Throttle:
    """Decides whether a message may be logged again: each key once per period."""

    def __init__(self, period_s: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.period_s, self.clock = period_s, clock
        self._last: dict[Hashable, float] = {}

    def __call__(self, key: Hashable) -> bool:
        now = self.clock()
        if now - self._last.get(key, -np.inf) < self.period_s:
            return False
        self._last[key] = now
        return True
