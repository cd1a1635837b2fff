"""Memory that a pass of a model adds to a fresh process, on the CPU. This module is also that process: `python -m
come_ros.tools.bench.memory` reads its task from standard input.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import ComeRosError

MB = 1e6


def added_by_passes(
    model: dict[str, Any], accelerator: str, images: Path, frames: Sequence[int]
) -> dict[int, dict[str, float]]:
    """Number of frames -> added_mb: growth of the peak resident set; peak_mb: that peak. Both 10^6 bytes.

    One process runs all passes, from short to long; before each, free memory is returned and the peak is reset. model: see
    model.Wish. images: .npy file (S, H, W, 3) uint8, of which the first ones are used. Raises ComeRosError if that fails; rows that
    do not fit into memory are missing.
    """
    ordered = sorted(set(frames))
    request = json.dumps({"model": model, "accelerator": accelerator, "images": str(images), "frames": ordered})
    package = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH", ""))))
    done = subprocess.run(
        [sys.executable, "-m", __name__], input=request, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )  # fmt: skip
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not rows:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ComeRosError(
            f"measuring the memory of {ordered[0]} frames failed ({last}): check the free memory, or skip this with --no-memory"
        )
    return dict(zip(ordered, rows, strict=False))


def main() -> None:
    import numpy as np

    from .subject import Wish

    request = json.load(sys.stdin)
    wish = Wish(**request["model"])
    backbone = wish.load()
    one = wish.with_accelerator(backbone, request["accelerator"])
    images = np.load(request["images"], mmap_mode="r")
    one.run(one.upload(images[:1]))  # created once: code, threads, tables
    for frames in request["frames"]:
        x = one.upload(images[:frames])
        before = _reset_peak()
        one.run(x)
        peak = _status("VmHWM") or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"added_mb": (peak - before) / MB, "peak_mb": peak / MB}), flush=True)


def _reset_peak() -> float:
    """Returns the resident bytes and resets the kernel's peak, where possible (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # memory freed by the warm-up
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS") or 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _status(name: str) -> float:
    """Bytes, 0 if the system does not report it."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return 0.0
    return 1024.0 * int(found[1]) if found else 0.0


if __name__ == "__main__":
    main()
