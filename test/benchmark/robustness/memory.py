"""Memory of the live node over half an hour of images at 10 Hz, with a map and loops: results/memory.{json,md,png}.

    python test/benchmark/robustness/memory.py [--minutes 30] [--set map.max_keyframes=300] [--out FOLDER]

A camera walks through a rendered room and back, again and again, over DDS. Sampled every ten seconds: resident memory of the node and of
its process for the map, and how much the map holds. What grows is bounded by parameters: map.max_keyframes, map.max_points and
path_max_size; poses that ~/save_map writes by MAX_POSES of outputs/world.py. Memory hardly depends on what else the machine does, but
on a busy one fewer images are used: the table says how many.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "test")]

from benchmark.robustness.soak import START_TIMEOUT_S, Soak, held  # noqa: E402
from benchmark.stamped import TINY, write_result  # noqa: E402

from come_ros.config import Config  # noqa: E402
from come_ros.datasets.rooms.returning import returning_room  # noqa: E402
from come_ros.ros.programs.live import Processes, live_environment  # noqa: E402

RESULTS = Path(__file__).with_name("results")
SEED, IMAGES, HZ, EVERY_S = 20_000_901, 300, 10.0, 10.0
LATE = 1 / 3  # of the run, at its end, in which growth is measured
SHOWN_MIN = (1, 2, 5, 10, 15, 20, 25, 30, 45, 60)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the node")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    given = {"map.enabled": "true", **dict(word.split("=", 1) for word in options.set)}
    with tempfile.TemporaryDirectory() as folder:
        environment = live_environment(Path(folder))
        os.environ.update(environment)  # before this process meets DDS
        frames = list(returning_room(SEED, IMAGES).images)
        with Processes(environment, Path(folder)) as processes:
            words = [word for name, value in given.items() for word in ("-p", f"{name}:={value}")]
            node = processes.start("node", "come_ros.ros.main", "--ros-args", *words)
            soak = Soak(node, frames, HZ, sample_s=np.inf)
            try:
                rows = sampled(soak, node.pid, 60 * options.minutes)
            finally:
                soak.close()
            node.stop(signal.SIGINT)
    result = summary(rows, given, soak)
    text = markdown(result)
    write_result(options.out, "memory", result, text, lambda path: draw(rows, path), weights=TINY)
    print(text)
    return 0


def sampled(soak: Soak, pid: int, seconds: float) -> list[dict[str, Any]]:
    """One row every EVERY_S."""
    soak.until(lambda: soak.state == "active", START_TIMEOUT_S, "the node to become active")
    begun, rows = time.monotonic(), []
    soak.bar.total = round(seconds)
    while (now := time.monotonic() - begun) < seconds:
        soak.feed(EVERY_S)
        output = soak._status.get("come: output", {})
        row = {
            "s": time.monotonic() - begun,
            "node_mib": held(pid)[0],
            "aside_mib": children(pid),
            "used": soak.totals().get("used", 0),
        }
        names = (("keyframes", "map_keyframes"), ("loops", "loops_closed"))
        rows.append(row | {name: int(output[key]) for name, key in names if key in output})
        soak.bar.update(round(time.monotonic() - begun - now))
    return rows


def children(pid: int) -> float:
    """Resident memory of the processes that it started, MiB."""
    return sum(c.memory_info().rss for c in psutil.Process(pid).children(recursive=True)) / 2**20


def summary(rows: list[dict[str, Any]], given: dict[str, str], soak: Soak) -> dict[str, Any]:
    late = [r for r in rows if r["s"] >= rows[-1]["s"] * (1 - LATE)]
    config = Config()
    return {
        "parameters": {**given, "defaults": {"map.max_keyframes": config.map.max_keyframes, "map.max_points": config.map.max_points,
                                             "path_max_size": config.path_max_size}},
        "minutes": rows[-1]["s"] / 60, "sent": soak.sent, "counts": soak.totals(),
        "growth_mib_per_min": {k: growth(late, k) for k in ("node_mib", "aside_mib")},
        "most_mib": {k: max(r[k] for r in rows) for k in ("node_mib", "aside_mib")}, "rows": rows,
    }  # fmt: skip


def growth(rows: list[dict[str, Any]], name: str) -> list[float]:
    """MiB/min, and its standard error."""
    t, value = np.array([(r["s"] / 60, r[name]) for r in rows]).T
    (rate, _), covariance = np.polyfit(t, value, 1, cov=True)
    return [float(rate), float(np.sqrt(covariance[0, 0]))]


def markdown(result: dict[str, Any]) -> str:
    rows = result["rows"]
    defaults = ", ".join(f"{k} {v}" for k, v in result["parameters"]["defaults"].items())
    others = ", ".join(f"{k} {v}" for k, v in result["parameters"].items() if k != "defaults")
    seconds = np.array([r["s"] for r in rows])
    shown = [rows[int(np.abs(seconds - 60 * m).argmin())] for m in SHOWN_MIN if m <= result["minutes"] + 0.2]
    lines = [
        f"{result['minutes']:.0f} minutes, images of 320x240 at {HZ:.0f} Hz: {result['sent']} sent, {result['counts']['used']} used. "
        f"Given: {others}. Defaults: {defaults}.", "",
        "| minutes | node, MiB | its process for the map, MiB | images used | keyframes of the map | loops closed |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {r['s'] / 60:.0f} | {r['node_mib']:.0f} | {r['aside_mib']:.0f} | {r['used']} | {r.get('keyframes', '')} | "
        f"{r.get('loops', '')} |"
        for r in shown
    ]
    node, aside = (result["growth_mib_per_min"][k] for k in ("node_mib", "aside_mib"))
    lines += [
        "", f"Growth in the last third: the node {node[0]:.2f} +- {node[1]:.2f} MiB/min, its process {aside[0]:.2f} +- {aside[1]:.2f}. At "
        f"most {result['most_mib']['node_mib']:.0f} and {result['most_mib']['aside_mib']:.0f} MiB.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    from come_ros.tools.report.figures import pyplot

    plt = pyplot()
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(9, 6))
    minutes = [r["s"] / 60 for r in rows]
    for name, label in (("node_mib", "node"), ("aside_mib", "its process for the map")):
        above.plot(minutes, [r[name] for r in rows], label=label)
    above.set(ylabel="resident memory, MiB", ylim=(0, None))
    below.plot(minutes, [r.get("keyframes", np.nan) for r in rows], color="tab:green", label="keyframes of the map")
    below.set(xlabel="minutes", ylabel="number", ylim=(0, None))
    for axis in (above, below):
        axis.legend()
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
