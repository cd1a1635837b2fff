"""Resident memory of this process, in bytes."""

from __future__ import annotations

import re
import resource
from pathlib import Path


def now() -> float:
    """What it holds; its peak where the system does not say."""
    return _status("VmRSS") or _most()


def peak() -> float:
    """The most that it held."""
    return _status("VmHWM") or _most()


def _most() -> float:
    """Not below what the process held that started this one: Linux passes that on, which is why it comes second."""
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _status(name: str) -> float:
    """Bytes, 0 if the system does not report it."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return 0.0
    return 1024.0 * float(found[1]) if found else 0.0
