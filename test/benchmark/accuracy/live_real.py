"""The real sequences through the live node: each becomes a bag, is played over DDS in real time, recorded and scored.

Writes results/live_real.json and results/live_real.md; pictures and recordings go to --out.

    python test/benchmark/accuracy/live_real.py [DATA] [--weights FILE] [--params FILE] [--out out/live_real]

DATA is the folder of recorded data (default: data/ in $COME_ROS_SHARED, else in `shared` next to the checkout).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "test")]

from benchmark.stamped import TINY, write_result  # noqa: E402

from come_ros.datasets.bag_writer import write_tum  # noqa: E402
from come_ros.datasets.tum import TumSequence  # noqa: E402
from come_ros.tools.demo import play_and_score, sound  # noqa: E402
from come_ros.tools.report.tables import table  # noqa: E402

RESULTS = Path(__file__).with_name("results")
# what each recording can tell: see the README.md next to it
SEQUENCES = {
    "tum_fr1_rpy": ("depth", "rotation"),
    "tum_fr3_cabinet": ("depth", "trajectory", "rotation"),
    "tum_fr3_office": ("trajectory", "rotation"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("COME_ROS_SHARED") or ROOT.parent / "shared")
    parser.add_argument("data", nargs="?", type=Path, default=shared / "data")
    parser.add_argument("--weights", default=None)
    parser.add_argument("--params", default=None)
    parser.add_argument("--out", type=Path, default=Path("out/live_real"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for name, scored in SEQUENCES.items():
        out = options.out / name
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        write_tum(out / "input", TumSequence(options.data / "real" / name, rectify=False))
        metrics = play_and_score(out / "input", out, name, weights=options.weights, params=options.params)
        for kind in ("depth", "trajectory", "rotation"):
            if kind not in scored:
                metrics[kind] = None
        metrics["bag"] = name
        results[name] = metrics
        print(f"\n{name}\n{table(metrics)}")
    weights = () if options.weights else TINY
    write_result(options.results, "live_real", results, markdown(results), weights=weights)
    return int(not all(sound(m) for m in results.values()))


def markdown(results: dict[str, Any]) -> str:
    """The results as a table, a column for each sequence."""
    rows: list[list[str]] = [["", *results], ["---"] * (1 + len(results))]

    def add(title: str, cell: Any) -> None:
        rows.append([title, *(cell(m) for m in results.values())])

    frames = [m["frames"] for m in results.values()]
    add("images sent / received", lambda m: f"{m['frames']['sent']} / {m['frames']['received']}")
    add("used / pending", lambda m: f"{m['frames']['used']} / {m['frames']['pending']}")
    for reason in frames[0]["dropped"]:
        if any(f["dropped"][reason] for f in frames):
            add(f"dropped: {reason}", lambda m, r=reason: str(m["frames"]["dropped"][r]))
    for topic in results[next(iter(results))]["messages"]:
        add(f"messages `{topic}`", lambda m, t=topic: str(m["messages"][t]))
    for topic in ("~/odometry", "~/points"):
        add(f"latency `{topic}`, p50 / p95 ms", lambda m, t=topic: _latency(m["latency_ms"][t]))
    add(
        "true depth's pixels published, scored", lambda m: f"{100 * m['depth']['coverage']:.0f} %" if m["depth"] else ""
    )
    add("mean depth map taken from", lambda m: m["depth"]["mean_depth_map"] if m["depth"] else "")
    for scaled, label in (("per_frame", "scaled per frame"), ("per_sequence", "scaled once")):
        for key, title in (("abs_rel", "AbsRel"), ("delta", "delta < 1.25")):
            add(
                f"depth {title}, {label}",
                lambda m, s=scaled, k=key: _beside(m["depth"] and {n: v[k] for n, v in m["depth"][s].items()}, 3),
            )
    add("trajectory ATE RMSE after Sim(3), m", lambda m: _beside(m["trajectory"] and m["trajectory"]["ate_rmse_m"], 3))
    add("rotation per step, median deg", lambda m: _beside(m["rotation"] and m["rotation"]["median_deg"], 2))
    add("rotation per step, RMSE deg (RPE)", lambda m: _beside(m["rotation"] and m["rotation"]["rmse_deg"], 2))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _latency(values: dict[str, float] | None) -> str:
    return "n/a" if values is None else f"{values['p50']:.0f} / {values['p95']:.0f}"


def _beside(values: dict[str, float | None] | None, digits: int) -> str:
    """Our value in bold, the trivial baselines behind it."""
    if not values:
        return "not scored"
    text = {k: "n/a" if v is None else f"{v:.{digits}f}" for k, v in values.items()}
    others = ", ".join(f"{k} {v}" for k, v in text.items() if k != "come_ros")
    return f"**{text['come_ros']}** ({others})"


if __name__ == "__main__":
    sys.exit(main())
