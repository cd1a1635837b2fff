"""Stands in for `come_ros bag` in tests: python -m commands WHAT SOURCE [NUMBER] -o OUT, which takes a tenth of a second."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def metrics(source: str) -> dict[str, Any]:
    """What the overview reads of metrics.json; the error of the path is the number in the name of the source, m."""
    error = float(Path(source).name.rpartition("_")[2]) if "_" in Path(source).name else 1.0
    return {
        "source": source,
        "frames": {"read": 10, "used": 9},
        "timings": {"images_per_s": 5.0, "peak_memory_mb": 400.0},
        "verdict": {"level": "usable" if error < 5 else "unusable", "reasons": ["because"], "advice": ""},
        "trajectory": {"ate_rmse_m": {"come_ros": error, "not moving": 10.0, "best 5 % of random walks": 0.1}},
    }


def main() -> int:
    """WHAT: good, damaged (results, then exit code 1), wrong, full, killed, hangs, touches (writes into SOURCE), flaky (killed the first
    NUMBER times); or bag: what the name of SOURCE begins with."""
    what, source, *more = sys.argv[1:]
    out = Path(more[-1])
    if what == "bag":
        what = Path(source).name.partition("_")[0]
    print(f"working on {source}")
    if what == "flaky":
        tries = Path(source).parent / f"{Path(source).name}.tries"
        done = int(tries.read_text()) if tries.exists() else 0
        tries.write_text(str(done + 1))
        what = "killed" if done < int(more[0]) else "good"
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "hangs":
        time.sleep(60)
    if what == "full":
        print(f"come_ros bag: cannot write to {out}: {os.strerror(errno.ENOSPC)}: free some", file=sys.stderr)
        return 1
    if what == "wrong":
        print("come_ros bag: nothing to read: give something else", file=sys.stderr)
        print("100%| 3/3", file=sys.stderr)
        return 1
    out.mkdir(parents=True)
    (out / "map.ply").write_text(os.environ.get("OMP_NUM_THREADS", "none"))
    (out / "words").write_text(" ".join(more[:-2]))
    (out / "metrics.json").write_text(json.dumps(metrics(source)))
    if what == "damaged":
        print("come_ros bag: half of it cannot be read", file=sys.stderr)
        return 1
    if what == "touches":
        Path(source, "more.txt").write_text("written meanwhile")
    return 0


if __name__ == "__main__":
    sys.exit(main())
