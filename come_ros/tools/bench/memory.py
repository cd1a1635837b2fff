"""Memory that a pass of a model adds to a fresh process, on the CPU. This module is also that process: `python -m
come_ros.tools.bench.memory` reads its task from standard input.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import ComeRosError
from .. import resident

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
        peak = resident.peak()
        print(json.dumps({"added_mb": (peak - before) / MB, "peak_mb": peak / MB}), flush=True)


def _reset_peak() -> float:
    """Returns the resident bytes and resets the kernel's peak, where possible (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # memory freed by the warm-up
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return resident.now()


if __name__ == "__main__":
    main()
