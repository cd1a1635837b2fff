"""Whether a machine is idle enough for meaningful timings."""

from __future__ import annotations

import os
import platform
import time
from typing import Any

MOST_OTHERS = 0.25  # cores that other processes may use meanwhile


class Machine:
    """Load by other processes since this object was created. begin: restarts the measurement."""

    def __init__(self) -> None:
        self.cores = os.cpu_count() or 1
        self.load_before = os.getloadavg()[0]
        self._begun = self._read()

    def _read(self) -> tuple[float, float, float] | None:
        """(seconds, busy seconds of all cores, busy seconds of this process and its children); None where that is unknown."""
        try:
            import psutil
        except ImportError:
            return None
        times = psutil.cpu_times()
        busy = sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)
        own = os.times()
        return time.monotonic(), busy, own.user + own.system + own.children_user + own.children_system

    def report(self) -> dict[str, Any]:
        """machine: description. busy: why timings are unreliable, "" if they are reliable. others_cores: cores used by other
        processes, None if unknown."""
        now, load = self._read(), os.getloadavg()[0]
        others = None
        if now is not None and self._begun is not None and now[0] > self._begun[0]:
            seconds, busy, own = (b - a for a, b in zip(self._begun, now, strict=True))
            others = max(0.0, (busy - own) / seconds)
        about = f"{platform.machine()}, {self.cores} cores, load {self.load_before:.1f} before, {load:.1f} after"
        why = ""
        if others is not None:
            about += f", other processes took {others:.1f} of them"
            if others > MOST_OTHERS:
                why = f"other processes took {others:.1f} of {self.cores} cores meanwhile"
        elif self.load_before > self.cores:  # includes this process's own work, so it is only the second choice
            why = f"the load was {self.load_before:.1f} on {self.cores} cores"
        return {
            "machine": about,
            "busy": why,
            "others_cores": others,
            "load_before": self.load_before,
            "load_after": load,
        }
