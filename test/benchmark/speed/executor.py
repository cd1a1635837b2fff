"""What rclpy's EventsExecutor costs and gains in the live node against its SingleThreadedExecutor: a walk, played over DDS, by turns.

    .venv-kilted/bin/python test/benchmark/speed/executor.py [--images 300] [--rounds 5] [--others 0 1]       about fifteen minutes

Run it with ROS 2 Kilted or newer (`make venv ROS=kilted`): Jazzy's EventsExecutor cannot run this node. `others`: number of busy processes
(`while True: pass`) next to the node. CPU is that of the node's process while images come in, for 1000 images. Latency is from an image
being sent to its odometry being received, in ms. ATE shows that both did the same work.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "test")]

from benchmark.speed.loops_live import rendered, spread  # noqa: E402
from benchmark.stamped import TINY, write_result  # noqa: E402

from come_ros.ros.executors import EVENTS, SINGLE  # noqa: E402
from come_ros.tools.demo import play_and_score  # noqa: E402

RESULTS = Path(__file__).with_name("results")
PARAMETERS = "/**:\n  ros__parameters:\n    executor: {}\n"
COLUMNS = ("cpu", 1), ("p50", 0), ("p95", 0), ("odometry", 0), ("used", 0), ("ate", 3)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=20_000_900)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--others", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", type=Path, default=Path("out/executor"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    bag = rendered(options.out / "bag", options.seed, options.images)
    rows: list[dict[str, Any]] = []
    for others in options.others:
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(others)]
        try:
            for _ in range(options.rounds):
                for name in (SINGLE, EVENTS):
                    rows.append(one(bag, options.out / "run", others, name))
                    print(rows[-1], flush=True)
        finally:
            for process in busy:
                process.kill()
    result = {
        "rclpy": version("rclpy"), "cores": len(os.sched_getaffinity(0)), "load_before": round(load, 2), "images": options.images,
        "rows": rows,
    }  # fmt: skip
    text = markdown(result)
    print(text)
    write_result(options.results, "executor", result, text, weights=TINY)
    return 0


def one(bag: Path, out: Path, others: int, name: str) -> dict[str, Any]:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    params = out / "params.yaml"
    params.write_text(PARAMETERS.format(name))
    metrics = play_and_score(bag, out, "executor", params=str(params))
    latency = metrics["latency_ms"]["~/odometry"]
    return {
        "others": others, "executor": name, "used": metrics["frames"]["used"], "odometry": metrics["messages"]["~/odometry"],
        "cpu": metrics["run"]["node_cpu_s"] * 1000 / metrics["frames"]["sent"], "p50": latency["p50"], "p95": latency["p95"],
        "ate": metrics["trajectory"]["ate_rmse_m"]["come_ros"],
    }  # fmt: skip


def markdown(result: dict[str, Any]) -> str:
    lines = [
        f"rclpy {result['rclpy']}, {result['cores']} cores, load before {result['load_before']}; {result['images']} images a run. "
        f"Medians of the rounds, least and most in brackets.",
        "",
        "| busy processes | executor | CPU for 1000 images, s | odometry p50, ms | p95, ms | images with odometry | images used | ATE, m |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for others in sorted({r["others"] for r in result["rows"]}):
        for name in (SINGLE, EVENTS):
            some = [r for r in result["rows"] if (r["others"], r["executor"]) == (others, name)]
            cells = [spread([r[column] for r in some], digits) for column, digits in COLUMNS]
            lines.append("| " + " | ".join([str(others), name, *cells]) + " |")
    for others in sorted({r["others"] for r in result["rows"]}):
        words = [
            difference(title, [[r[c] for r in result["rows"] if (r["others"], r["executor"]) == (others, n)] for n in (SINGLE, EVENTS)])
            for title, c in (("CPU", "cpu"), ("the 95th percentile", "p95"))
        ]  # fmt: skip
        lines += ["", f"Next to {others}: {'; '.join(words)}."]
    return "\n".join(lines) + "\n"


def difference(title: str, values: list[list[float]]) -> str:
    """In words, from the rounds of each; "within the noise" unless all rounds of one are on one side of all of the other."""
    single, events = (np.array(v) for v in values)
    apart = events.max() < single.min() or events.min() > single.max()
    change = 100 * (np.median(events) / np.median(single) - 1)
    return f"{title} {change:+.0f} % with events ({'all rounds apart' if apart else 'within the noise: the rounds overlap'})"


if __name__ == "__main__":
    sys.exit(main())
