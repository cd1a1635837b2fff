"""What the bundle and the tracks are worth: `come_ros bag` on recordings and rendered rooms, with refine.mode bundle and none.

python test/benchmark/accuracy/refinement.py [--rooms 16] -> results/refinement.json, .md

Trivial baselines stand next to each score. Rooms have seeds from FIRST_ROOM on, which no training and no test split uses.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmark.stamped import TINY, write_result

from come_ros.tools.demo import SEED, render_room

ROOT = Path(__file__).resolve().parents[3]
RESULTS = Path(__file__).parent / "results"
RECORDINGS = ("tum_fr3_office", "tum_fr1_rpy", "tum_fr1_rpy_long", "tum_fr3_cabinet")
MODES = ("bundle", "none")
FIRST_ROOM, ROOM_FRAMES = 20_000_600, 120


def measured(source: Path, out: Path, mode: str) -> dict[str, Any]:
    """metrics.json of one run."""
    command = [
        sys.executable,
        "-m",
        "come_ros.tools.cli",
        "bag",
        str(source),
        "-o",
        str(out),
        "--overwrite",
        "--no-bag",
    ]
    subprocess.run(
        [*command, "--set", f"refine.mode={mode}", "--set", "threads=1"],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True,
    )  # fmt: skip
    return json.loads((out / "metrics.json").read_text())


def row(metrics: dict[str, Any]) -> dict[str, Any]:
    """The figures of a run that the table shows. Lengths in metres, angles in degrees."""
    path, turns, depth = metrics["trajectory"] or {}, metrics["rotation"] or {}, metrics["depth"] or {}
    refinement = metrics.get("refinement") or {}
    return {
        "used": metrics["frames"]["used"],
        "read": metrics["frames"]["read"],
        "refused": metrics["stream"]["refused"],
        "poses": path.get("poses"),
        "length": path.get("length_m"),
        "ate": path.get("ate_rmse_m"),
        "step": path.get("rpe_translation_rmse_m"),
        "rotation_median": turns.get("median_deg"),
        "rotation_rmse": turns.get("rmse_deg"),
        "abs_rel_once": depth.get("per_sequence", {}).get("come_ros", {}).get("abs_rel"),
        "abs_rel": depth.get("per_frame", {}).get("come_ros", {}).get("abs_rel"),
        "delta": depth.get("per_frame", {}).get("come_ros", {}).get("delta"),
        "refined": refinement.get("refined"),
        "lost": (metrics.get("odometry") or {}).get("lost"),
    }


def number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def table(rows: dict[str, dict[str, dict[str, Any]]]) -> str:
    """One line for each recording and mode."""
    head = [
        "recording", "mode", "used of read", "refused windows", "refined", "ATE, m", "straight line", "random walk",
        "translation per step, m", "constant velocity", "rotation per step, median / RMSE", "no rotation",
        "AbsRel per frame / once", "delta per frame",
    ]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, modes in rows.items():
        for mode, r in modes.items():
            ate, step, turn = r["ate"] or {}, r["step"] or {}, r["rotation_median"] or {}
            cells = [
                name, mode, f"{r['used']} of {r['read']}", str(r["refused"]), number(r["refined"], 2),
                f"**{number(ate.get('come_ros'))}**", number(ate.get("straight line")), number(ate.get("random walk")),
                f"**{number(step.get('come_ros'))}**", number(step.get("constant velocity")),
                f"**{number(turn.get('come_ros'), 2)}** / {number((r['rotation_rmse'] or {}).get('come_ros'), 2)}",
                number(turn.get("no rotation"), 2), f"{number(r['abs_rel'])} / {number(r['abs_rel_once'])}", number(r["delta"]),
            ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summary(rooms: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Of the rooms, in a few lines."""
    lines = []
    for mode in MODES:
        shares = [r[mode]["ate"]["come_ros"] / r[mode]["length"] for r in rooms.values() if r[mode]["ate"]["come_ros"]]
        good = f"{sum(s < 0.05 for s in shares)} of {len(rooms)} rooms"
        lines.append(f"{mode}: ATE below 5 % of the path in {good}, median {100 * np.median(shares):.2f} %")
    line = [r["bundle"]["ate"]["straight line"] / r["bundle"]["length"] for r in rooms.values()]
    lines.append(
        f"straight line: in {sum(s < 0.05 for s in line)} of {len(rooms)}, median {100 * np.median(line):.2f} %"
    )
    return "\n".join(f"- {text}" for text in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", type=int, default=16, help="rendered rooms (default %(default)s)")
    parser.add_argument("--shared", default=os.environ.get("COME_ROS_SHARED", str(ROOT.parent / "shared")))
    parser.add_argument("-o", "--out", default="out/refinement")
    args = parser.parse_args()
    out = Path(args.out)
    real = {name.removeprefix("tum_"): Path(args.shared, "data", "real", name) for name in RECORDINGS}
    seeds = {"demo's room": (SEED, 200)} | {
        f"room {FIRST_ROOM + i}": (FIRST_ROOM + i, ROOM_FRAMES) for i in range(args.rooms)
    }
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for name in tqdm([*real, *seeds], unit="recording"):
        folder = out / name.replace(" ", "_").replace("'", "")
        folder.mkdir(parents=True, exist_ok=True)
        source = real.get(name) or render_room(folder / "input", *seeds[name], "320x240")
        rows[name] = {mode: row(measured(source, folder / mode, mode)) for mode in MODES}
    rooms = {name: modes for name, modes in rows.items() if name.startswith("room ")}
    text = f"{table(rows)}\n\n{summary(rooms) if rooms else ''}\n"
    write_result(RESULTS, "refinement", rows, text, weights=TINY)
    print(text)


if __name__ == "__main__":
    main()
