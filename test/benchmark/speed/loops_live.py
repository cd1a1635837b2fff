"""What the search for loops costs the live node: a walk that comes back, played over DDS with and without it, by turns.

    python test/benchmark/speed/loops_live.py [--seed 20000900] [--images 300] [--rounds 3] [--others 0 1]       about eight minutes

`others`: number of busy processes (`while True: pass`) next to the node. Latency is from an image being sent to its odometry being
received, in ms. ATE is that of the keyframes in the odometry's frame, which loops do not change; it is there to show that both did the same
work.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "test")]

from benchmark.stamped import TINY, write_result  # noqa: E402

from come_ros.datasets.bag_writer import BagWriter  # noqa: E402
from come_ros.datasets.rooms.returning import returning_room  # noqa: E402
from come_ros.tools.demo import play_and_score  # noqa: E402
from come_ros.types import Frame  # noqa: E402

RESULTS = Path(__file__).with_name("results")
PARAMETERS = "/**:\n  ros__parameters:\n    map.enabled: true\n    loop.enabled: {}\n"
COLUMNS = ("p50", 0), ("p95", 0), ("odometry", 0), ("used", 0), ("closed", 0), ("ate", 3)
MOST_ADDED_MS = 5.0  # bar of issue 17, of the 95th percentile


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=20_000_900)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--others", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", type=Path, default=Path("out/loops_live"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    bag = rendered(options.out / "bag", options.seed, options.images)
    rows = []
    for others in options.others:
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(others)]
        try:
            for _ in range(options.rounds):
                rows += [one(bag, options.out / "run", others, loops) for loops in (False, True)]
                print(rows[-2], rows[-1], sep="\n", flush=True)
        finally:
            for process in busy:
                process.kill()
    result = {"cores": len(os.sched_getaffinity(0)), "load_before": round(load, 2), "rows": rows}
    text = markdown(result)
    print(text)
    write_result(options.results, "loops_live", result, text, weights=TINY)
    return 0


def rendered(bag: Path, seed: int, images: int) -> Path:
    shutil.rmtree(bag, ignore_errors=True)
    bag.parent.mkdir(parents=True, exist_ok=True)
    room = returning_room(seed, images)
    with BagWriter(bag) as writer:
        for i, stamp in enumerate(room.stamps_ns):
            frame = Frame(room.images[i], int(stamp), "camera_optical_frame", room.intrinsics)
            writer.write(frame, room.depth[i], room.world_from_camera[i])
    return bag


def one(bag: Path, out: Path, others: int, loops: bool) -> dict[str, Any]:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    params = out / "params.yaml"
    params.write_text(PARAMETERS.format(str(loops).lower()))
    metrics = play_and_score(bag, out, "loops", params=str(params))
    closed = re.findall(r"loop closed: (\d+) so far, between (\d+) keyframes", (out / "node.log").read_text())
    latency = metrics["latency_ms"]["~/odometry"]
    return {
        "others": others, "loops": loops, "used": metrics["frames"]["used"], "odometry": metrics["messages"]["~/odometry"],
        "p50": latency["p50"], "p95": latency["p95"], "closed": int(closed[-1][0]) if closed else 0,
        "keyframes": int(closed[-1][1]) if closed else 0, "ate": metrics["trajectory"]["ate_rmse_m"]["come_ros"],
    }  # fmt: skip


def markdown(result: dict[str, Any]) -> str:
    lines = [
        f"{result['cores']} cores, load before {result['load_before']}. Medians of the rounds, least and most in brackets.",
        "",
        "| busy processes | loops | odometry p50, ms | p95, ms | images with odometry | images used | loops closed | ATE, m |",
        "|---|---|---|---|---|---|---|---|",
    ]
    medians: dict[tuple[int, bool], float] = {}
    for others in sorted({r["others"] for r in result["rows"]}):
        for loops in (False, True):
            some = [r for r in result["rows"] if (r["others"], r["loops"]) == (others, loops)]
            medians[others, loops] = float(np.median([r["p95"] for r in some]))
            cells = [spread([r[name] for r in some], digits) for name, digits in COLUMNS]
            lines.append("| " + " | ".join([str(others), "yes" if loops else "no", *cells]) + " |")
    for others in sorted({o for o, _ in medians}):
        added = medians[others, True] - medians[others, False]
        verdict = "reached" if added <= MOST_ADDED_MS else "MISSED"
        lines += [
            "",
            f"Next to {others}: {added:+.0f} ms at the 95th percentile (bar {MOST_ADDED_MS:.0f} ms: {verdict})",
        ]
    return "\n".join(lines) + "\n"


def spread(values: list[float], digits: int) -> str:
    return f"{np.median(values):.{digits}f} ({min(values):.{digits}f} .. {max(values):.{digits}f})"


if __name__ == "__main__":
    sys.exit(main())
