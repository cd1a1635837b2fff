"""Is the bundled model worth more as a stream? `come_ros bag` with it as a window and as a causal model, in rooms and on recordings.

  python test/benchmark/accuracy/tiny_stream.py                          all runs -> results/tiny_stream.json, .md
  python test/benchmark/accuracy/tiny_stream.py --rooms 8                more rooms of the test split
  python test/benchmark/accuracy/tiny_stream.py --trained FILE           and weights that were fine-tuned for it (come_ros train)
  python test/benchmark/accuracy/tiny_stream.py --only time              only measure the time again

The windowed model sees 8 keyframes, the causal one (backbone: lingbot with the bundled weights) each keyframe once and reads what it
kept of earlier ones: 8 scale frames and the newest 64, as by default, or (short) the newest 8, and the stream begins again after 16. That
was chosen in validation rooms; rooms here are of the test split. Runs are kept in --out by commit, so that it can be stopped and started
again. Depth is scaled per frame by the median. Time is CPU time of one
thread for a new keyframe with all else warm, forms in turn; live: a window for each keyframe, bag: one for four.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmark.accuracy.refinement import number, row
from benchmark.stamped import TINY, git, shared, write_result
from models import bundled_size

from come_ros.tools import cli
from come_ros.tools.demo import render_room

RESULTS = Path(__file__).parent / "results"
RECORDINGS = ("tum_fr3_cabinet", "tum_fr1_rpy", "tum_fr3_office")
FIRST_ROOM, ROOM_FRAMES = 20_000_650, 80
MODES = ("none", "bundle")
WINDOWED, LIVE = "windowed", "windowed, live"
TURNS, WARM = 18, 3  # of the short stream, 9 make a cycle
SIZE = bundled_size(640, 480)
NULLS = ("straight line", "random walk")


def forms(trained: str) -> dict[str, dict[str, Any]]:
    """Name -> parameters."""
    out: dict[str, dict[str, Any]] = {WINDOWED: {}}
    short = {"backbone": "lingbot", "stream.window": 8, "stream.most": 16}  # chosen in validation rooms
    out |= {"causal": {"backbone": "lingbot"}, "causal, short": short}
    if trained:
        out["causal, short, trained"] = {**short, "weights": trained}
    return out


# Accuracy


def measured(source: Path, out: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """metrics.json of one run, in this process: 40 starts of an interpreter would take as long as the runs."""
    words = ["bag", str(source), "-o", str(out), "--overwrite", "--no-bag"]
    for name, value in {"threads": 1, "device": "cpu", **parameters}.items():
        words += ["--set", f"{name}={value}"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        code = cli.main(words)
    if code:
        raise RuntimeError(f"exit code {code} of come_ros {' '.join(words)}: {said.getvalue()[-2000:]}")
    found: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return found


def figures(metrics: dict[str, Any]) -> dict[str, Any]:
    depth = (metrics["depth"] or {}).get("per_frame", {})
    return {**row(metrics), "constant": depth.get("constant depth")}


# Time


def times(all_forms: dict[str, dict[str, Any]]) -> dict[str, float]:
    """CPU ms for a new keyframe, mean over turns, since some of them begin a stream."""
    import torch

    from come_ros.backbones import load_backbone
    from come_ros.backbones.stream import Step
    from come_ros.config import Config

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (200, SIZE[1], SIZE[0], 3), np.uint8)
    running = {}
    for name, parameters in {LIVE: {}, **all_forms}.items():
        backbone = load_backbone(Config.from_flat({"device": "cpu", "threads": 1, **parameters}))
        # causal: as many frames before as the local window holds, and a trajectory behind it
        running[name] = [backbone, backbone.new_cache(), 4 if name == WINDOWED else 1, 0]

    def turn(name: str) -> float:
        backbone, cache, new, done = running[name]
        shown = range(max(0, done - 8 + new), done + new) if done else range(8)
        dense = tuple(range(len(shown) - new, len(shown)))
        begun = time.process_time()
        backbone.predict(images[list(shown)], step=Step(tuple((i, "") for i in shown), cache, dense))
        spent = time.process_time() - begun
        running[name][3] = shown[-1] + 1
        return 1e3 * spent / new

    for name, (backbone, *_) in running.items():
        ahead = 8 + backbone.stream.window if backbone.causal else WARM
        for _ in tqdm(range(ahead), desc=f"warm up: {name}", disable=None):
            turn(name)
    spent: dict[str, list[float]] = {name: [] for name in running}
    for _ in tqdm(range(TURNS), desc="time", disable=None):
        for name in running:
            spent[name].append(turn(name))
    return {name: float(np.mean(values)) for name, values in spent.items()}


# Tables


def table(rows: dict[str, dict[str, dict[str, Any]]]) -> str:
    head = [
        "recording", "model", "AbsRel (constant)", "delta (constant)", "AbsRel once", "ATE, m: bundle", "ATE, m: none",
        "straight line", "random walk", "step, m: bundle / none", "rotation, deg: bundle / none (no rotation)", "refused: bundle / none",
    ]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for source, runs in rows.items():
        for name in dict.fromkeys(key.rpartition("/")[0] for key in runs):
            none, bundle = (runs[f"{name}/{mode}"] for mode in MODES)
            constant, ate = none["constant"] or {}, bundle["ate"] or {}

            def both(key: str, digits: int, none: Any = none, bundle: Any = bundle) -> str:
                return " / ".join(number((r[key] or {}).get("come_ros"), digits) for r in (bundle, none))

            cells = [
                source, name, f"{number(none['abs_rel'])} ({number(constant.get('abs_rel'))})",
                f"{number(none['delta'])} ({number(constant.get('delta'))})", number(none["abs_rel_once"]),
                f"**{number(ate.get('come_ros'))}**", number((none["ate"] or {}).get("come_ros")),
                *(number(ate.get(null)) for null in NULLS), both("step", 4),
                f"{both('rotation_median', 2)} ({number((none['rotation_median'] or {}).get('no rotation'), 2)})",
                f"{bundle['refused']} / {none['refused']}",
            ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def averages(rows: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Ratios to the windowed model, geometric means over sources."""
    names = [n for n in dict.fromkeys(k.rpartition("/")[0] for runs in rows.values() for k in runs) if n != WINDOWED]
    what = {
        "AbsRel per frame": ("none", lambda r: r["abs_rel"]),
        "AbsRel once": ("none", lambda r: r["abs_rel_once"]),
        "ATE with the bundle": ("bundle", lambda r: (r["ate"] or {}).get("come_ros")),
        "ATE without": ("none", lambda r: (r["ate"] or {}).get("come_ros")),
        "rotation per step without": ("none", lambda r: (r["rotation_median"] or {}).get("come_ros")),
    }
    lines = ["| over the windowed model | " + " | ".join(names) + " |", "|" + "---|" * (1 + len(names))]
    for title, (mode, of) in what.items():
        cells = []
        for name in names:
            pairs = [(of(runs[f"{name}/{mode}"]), of(runs[f"{WINDOWED}/{mode}"])) for runs in rows.values()]
            ratios = [a / b for a, b in pairs if a and b]
            worse = f"; worse in {sum(r > 1 for r in ratios)} of {len(ratios)}" if ratios else ""
            cells.append(f"{np.exp(np.mean(np.log(ratios))):.2f}{worse}" if ratios else "-")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", type=int, default=4, help="rooms of the test split (default %(default)s)")
    parser.add_argument("--trained", default="", metavar="FILE", help="weights fine-tuned as a stream")
    parser.add_argument(
        "--only", choices=["accuracy", "time"], help="measure this alone, and take the other from the result"
    )
    parser.add_argument("-o", "--out", default="out/tiny_stream", help="where runs are kept (default %(default)s)")
    args = parser.parse_args()
    kept = RESULTS / "tiny_stream.json"
    before = json.loads(kept.read_text()) if args.only else {}
    out, all_forms = Path(args.out, git("rev-parse", "--short=12", "HEAD")), forms(args.trained)
    if args.only == "time":
        rows = before["rows"]
    else:
        rows = {}
        names = [*RECORDINGS, *(f"room_{FIRST_ROOM + i}" for i in range(args.rooms))]
        with tqdm(total=len(names) * len(all_forms) * len(MODES), unit="run") as bar:
            for source in names:
                rows[source] = of_source(source, out, all_forms, bar)
    load = os.getloadavg()[0]
    if args.only == "accuracy":
        clock, load = before["cpu_ms"], before["load"]
    else:
        clock = times(all_forms)
    text = [
        "The bundled model as a window of 8 keyframes and as a stream" + ("." if args.trained else ", untrained for it."),
        " ".join(__doc__.partition("The windowed model")[1:]).replace("\n", " ").strip(), "", averages(rows), "",
        f"| model | CPU ms for a keyframe of {SIZE[0]}x{SIZE[1]} px, one thread, load {load:.1f} |", "|---|---|",
        *(f"| {name} | {ms:.0f} |" for name, ms in clock.items()), "", table(rows),
    ]  # fmt: skip
    result = {"rows": rows, "cpu_ms": clock, "load": round(load, 1)}
    write_result(RESULTS, "tiny_stream", result, "\n".join(text) + "\n", weights=TINY)
    print("\n".join(text))


def of_source(source: str, out: Path, all_forms: dict[str, dict[str, Any]], bar: Any) -> dict[str, Any]:
    """Form and mode -> figures; those that --out holds are not measured again."""
    folder, runs = out / source, {}
    folder.mkdir(parents=True, exist_ok=True)
    path = shared() / "data" / "real" / source
    for name, parameters in all_forms.items():
        for mode in MODES:
            done = folder / f"{name.replace(', ', '_').replace(' ', '_')}_{mode}.json"
            if not done.exists():
                if source not in RECORDINGS:
                    path = folder / "input"
                    if not (path / "metadata.yaml").exists():
                        render_room(path, int(source.rpartition("_")[2]), ROOM_FRAMES, "320x240")
                found = figures(measured(path, folder / "run", {**parameters, "refine.mode": mode}))
                done.write_text(json.dumps(found))
            runs[f"{name}/{mode}"] = json.loads(done.read_text())
            bar.update()
    return runs


if __name__ == "__main__":
    main()
