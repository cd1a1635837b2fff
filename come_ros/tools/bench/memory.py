"""How much a pass of a model adds to the memory of a fresh process, on the CPU. Also that process itself:
`python -m come_ros.tools.bench.memory`, which reads what to do from its standard input.
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
    """Number of frames -> added_mb: growth of the peak resident set over what was there before; peak_mb: that peak. Both 10^6 bytes.

    One process makes all passes, from short to long; free memory is given back, and the peak measured again, before each. model: see
    model.Wish. images: .npy file (S, H, W, 3) uint8, of which the first ones are used. Raises ComeRosError if that fails; where
    memory ends, so do the rows.
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
            f"measuring the memory of {ordered[0]} frames failed ({last}): is there enough? --no-memory leaves it out"
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
    one.run(one.upload(images[:1]))  # what is made once: code, threads, tables
    for frames in request["frames"]:
        x = one.upload(images[:frames])
        before = _reset_peak()
        one.run(x)
        peak = _status("VmHWM") or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"added_mb": (peak - before) / MB, "peak_mb": peak / MB}), flush=True)


def _reset_peak() -> float:
    """Bytes resident now; from here on the kernel measures the peak again, where it can (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what the warm-up has freed
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS") or 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _status(name: str) -> float:
    """Bytes, 0 if the system does not tell."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return 0.0
    return 1024.0 * int(found[1]) if found else 0.0


if __name__ == "__main__":
    main()
