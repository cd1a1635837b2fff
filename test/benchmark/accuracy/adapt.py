"""What `come_ros adapt` is worth: each recording's first part teaches, its last part scores the weights before and after.

  python test/benchmark/accuracy/adapt.py [--steps N] [--only NAME ...]      -> results/adapt.json, .md

fr3_cabinet (first half, second half), fr1_rpy and a rendered room (two thirds, one third), all with their truth, which is used for the
scores only. What the weights have forgotten: 16 windows of validation rooms, and windows of the recordings that did not teach. Settings
were chosen on fr3_cabinet and another room. One thread; results are written after each recording.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmark.stamped import TINY, shared, write_result

from come_ros.backbones.checkpoint import bundled_weights, load_vggt
from come_ros.evaluation.baselines import LINES
from come_ros.tools import cli
from come_ros.tools.adapt import SCORES, STEPS, WEIGHTS
from come_ros.tools.demo import render_room
from come_ros.tools.report.adapted import report
from come_ros.tools.train import recorded_windows
from come_ros.training.judge import Judge

RESULTS = Path(__file__).parent / "results"
ROOM_SEED, ROOM_FRAMES = 20_000_750, 150
ELSEWHERE = 16  # windows of rooms, and of each recording at most
OTHERS = ("tum_fr3_cabinet", "tum_fr1_rpy", "tum_fr3_office")
RECORDINGS = {"tum_fr3_cabinet": 0.5, "tum_fr1_rpy": 1 / 3, "room": 1 / 3}
"""name -> share that is held out"""
FORGOTTEN = {
    "abs_rel": ("constant abs_rel", "mean map abs_rel"), "rotation_deg": ("no rotation_deg",),
    "direction_deg": tuple(LINES),
}  # fmt: skip
"""figure -> trivial baselines; smaller is better"""


def adapted(name: str, steps: int, out: Path) -> dict[str, Any]:
    """The result of one run, and the scores elsewhere; empty if no step was good enough to be kept."""
    source = (
        render_room(out / "room", ROOM_SEED, ROOM_FRAMES, "320x240")
        if name == "room"
        else shared() / "data" / "real" / name
    )
    folder = out / f"adapted_{name}"
    words = ["adapt", "--source", str(source), "-o", str(folder), "--overwrite", "--held", str(RECORDINGS[name])]
    words += ["--steps", str(steps), "--minutes", "120", "--set", "threads=1", "--set", "device=cpu"]
    if cli.main(words):
        return {}
    result: dict[str, Any] = json.loads((folder / SCORES).read_text())
    result["weights"] = Path(result["weights"]).name  # not where they lie on this machine
    models = {"before": load_vggt(bundled_weights()), "after": load_vggt(str(folder / WEIGHTS))}
    side, patch = models["before"].native_side, models["before"].patch
    others = [str(shared() / "data" / "real" / other) for other in OTHERS if other != name]
    judge = Judge.of("validation", ELSEWHERE, recorded_windows(others, ELSEWHERE, side, patch), side, patch)
    result["elsewhere"] = {which: judge(model) for which, model in models.items()}
    result["elsewhere"]["trivial"] = judge.baselines()
    return result


def text(found: dict[str, Any]) -> str:
    lines = ["# Adapted to a recording: before and after", ""]
    lines.append("Held-out parts; the truth is used for scores only. Each recording and each run is one sample.")
    for name, result in found.items():
        lines += ["", f"## {name}", ""]
        if not result:
            lines.append("No step was good enough to be kept: nothing was written.")
            continue
        lines += [
            report(result),
            "",
            "Elsewhere:",
            "",
            "| | before | after | best trivial baseline |",
            "|---|---|---|---|",
        ]
        before, after, trivial = (result["elsewhere"][which] for which in ("before", "after", "trivial"))
        for source in trivial:
            for key, nulls in FORGOTTEN.items():
                if key in before[source]:
                    best = min(trivial[source].get(n, math.nan) for n in nulls)
                    lines.append(
                        f"| {source}: {key} | {before[source][key]:.3f} | {after[source][key]:.3f} | {best:.3f} |"
                    )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--only", nargs="+", choices=list(RECORDINGS), default=list(RECORDINGS), metavar="NAME")
    parser.add_argument(
        "-o", "--out", default="out/adapt", help="where everything else is written (default %(default)s)"
    )
    args = parser.parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    for name in args.only:
        found[name] = adapted(name, args.steps, out)
        write_result(RESULTS, "adapt", found, text(found), weights=TINY)
    print(text(found))


if __name__ == "__main__":
    main()
