"""Is a weights file better than the bundled model? Both in single passes, in the whole product, and in CPU time.

  python test/benchmark/accuracy/candidate.py FILE -o out/candidate                   against the bundled model -> metrics.json, .md in it
  python test/benchmark/accuracy/candidate.py FILE -o out/candidate --quick           fewer windows and rooms: half the time
  python test/benchmark/accuracy/candidate.py FILE --against OLD -o out/candidate     against another file
  python test/benchmark/accuracy/candidate.py FILE --side 192 -o out/candidate        the candidate with smaller images

Single passes: windows of 4 frames of 64 test rooms and of the photographs with a truth, each model at its own image size. Whole product:
`come_ros bag` with the bundle and without. Every score stands next to the best of its trivial baselines. CPU time is that of one thread
for a new keyframe, models in turn; live: a window for each keyframe, bag: one for four. Runs are kept in -o by model, so that it can be
stopped and started again; delete the folder when the code has changed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmark.accuracy.refinement import REAL, number, row
from benchmark.accuracy.tiny_stream import measured
from benchmark.ship import LARGEST_MIB
from benchmark.stamped import sha256, shared

from come_ros.backbones import load_backbone
from come_ros.backbones.checkpoint import bundled_weights, load_vggt
from come_ros.backbones.stream import Step
from come_ros.camera.preprocess import patch_grid_size
from come_ros.config import Config
from come_ros.evaluation.baselines import LINES
from come_ros.tools.demo import render_room
from come_ros.tools.train import recorded_windows
from come_ros.training.judge import Judge

MODES = ("bundle", "none")
WATCHED = ("tum_fr3_cabinet", "tum_fr1_rpy", "tum_fr3_office")
FIRST_ROOM, ROOM_FRAMES = 20_000_650, 80
TURNS, WARM, WINDOW = 12, 2, 8
OLD, NEW = "before", "candidate"

# figure -> trivial baselines, whether larger is better, decimals
PASSES: dict[str, tuple[tuple[str, ...], bool, int]] = {
    "delta": (("constant delta", "mean map delta"), True, 3),
    "abs_rel": (("constant abs_rel", "mean map abs_rel"), False, 3),
    "rotation_deg": (("no rotation_deg",), False, 2),
    "direction_deg": (tuple(LINES), False, 1),
    "length_ratio": ((), True, 3),
    "focal_error": ((), False, 3),
    "spearman": (("near spearman", "centre spearman"), True, 2),
}


def best_trivial(scores: Mapping[str, float], figure: str) -> float | None:
    """The best of a figure's trivial baselines in `scores`; None where no one is known."""
    nulls, larger, _ = PASSES[figure]
    known = [scores[n] for n in nulls if math.isfinite(scores.get(n, math.nan))]
    return (max if larger else min)(known) if known else None


# Single passes


def passes(path: str, side: int, most: int) -> dict[str, Any]:
    """Scores by source, and those of trivial baselines at the same image size. side: longer one of the images, px; 0: the model's own."""
    model = load_vggt(path).eval()
    side = side or model.native_side
    names = [str(shared() / "data" / "real" / name) for name in WATCHED]
    judge = Judge.of("test", most, recorded_windows(names, most, side, model.patch), side, model.patch)
    return {"scores": judge(model), "baselines": judge.baselines()}


def passes_table(found: Mapping[str, Any]) -> str:
    lines = ["| windows of 4 | " + " | ".join((OLD, NEW, "best trivial baseline")) + " |", "|---|---|---|---|"]
    for source, trivial in found[OLD]["baselines"].items():
        for figure, (_, _, digits) in PASSES.items():
            ours = [found[which]["scores"][source].get(figure) for which in (OLD, NEW)]
            if any(v is not None and math.isfinite(v) for v in ours):
                about = {
                    **found[NEW]["scores"][source],
                    **trivial,
                }  # trivial confidence is scored by the candidate's own errors
                cells = [number(v, digits) for v in (*ours, best_trivial(about, figure))]
                lines.append(f"| {source}, {figure} | {' | '.join(cells)} |")
    return "\n".join(lines)


# Whole product


def product(weights: str, side: int, sources: Mapping[str, Path], folder: Path, bar: Any) -> dict[str, Any]:
    """Source -> mode -> figures, with the CPU seconds of the run."""
    out: dict[str, Any] = {}
    for name, path in sources.items():
        out[name] = {}
        for mode in MODES:
            kept = folder / f"{name.replace(' ', '_')}_{mode}.json"
            if not kept.exists():
                begun = time.process_time()
                metrics = measured(
                    path, folder / "run", {"weights": weights, "input.max_side": side, "refine.mode": mode}
                )
                found = row(metrics) | {"cpu_s": time.process_time() - begun, "depth": baselines_of_depth(metrics)}
                kept.write_text(json.dumps(found))
            out[name][mode] = json.loads(kept.read_text())
            bar.update()
    return out


def baselines_of_depth(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Of depth scaled once: name -> AbsRel."""
    rows = (metrics["depth"] or {}).get("per_sequence", {})
    return {
        name: r["abs_rel"] for name, r in rows.items() if isinstance(r, dict) and "abs_rel" in r and name != "come_ros"
    }


def best_of(scores: Mapping[str, float] | None) -> float | None:
    """The best of the trivial baselines."""
    values = [v for name, v in (scores or {}).items() if name != "come_ros" and v is not None and math.isfinite(v)]
    return min(values, default=None)


FIGURES: dict[str, tuple[Callable[[Any], float | None], Callable[[Any], float | None], int]] = {
    "ATE, m": (lambda r: (r["ate"] or {}).get("come_ros"), lambda r: best_of(r["ate"]), 3),
    "rotation per step, deg": (
        lambda r: (r["rotation_median"] or {}).get("come_ros"), lambda r: best_of(r["rotation_median"]), 2,
    ),
    "translation per step, m": (lambda r: (r["step"] or {}).get("come_ros"), lambda r: best_of(r["step"]), 4),
    "AbsRel, scaled once": (lambda r: r["abs_rel_once"], lambda r: best_of(r["depth"]), 3),
    "AbsRel per frame": (lambda r: r["abs_rel"], lambda r: None, 3),
    "keyframes refused": (lambda r: r["refused"], lambda r: None, 0),
}  # fmt: skip
"""name -> of the run, of the best trivial baseline, decimals"""


def product_table(found: Mapping[str, Any]) -> str:
    lines = [
        f"| recording | figure | bundle: {OLD} | {NEW} | none: {OLD} | {NEW} | best trivial baseline |",
        "|---|---|---|---|---|---|---|",
    ]
    for source in found[OLD]:
        for name, (ours, trivial, digits) in FIGURES.items():
            runs = [found[which][source][mode] for mode in MODES for which in (OLD, NEW)]
            if any(ours(r) is not None for r in runs):
                null = [v for v in map(trivial, runs) if v is not None]
                cells = [number(v, digits) for v in (*map(ours, runs), min(null, default=None))]
                lines.append(f"| {source} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def averages(found: Mapping[str, Any]) -> list[tuple[str, str, float, int, int]]:
    """(figure, mode, candidate over before as a geometric mean, sources that got worse, sources) of errors."""
    out = []
    for name, (ours, _, digits) in FIGURES.items():
        for mode in MODES if digits else ():
            pairs = [[ours(found[which][source][mode]) for which in (NEW, OLD)] for source in found[OLD]]
            ratios = [a / b for a, b in pairs if a and b]
            if ratios:
                mean = float(np.exp(np.mean(np.log(ratios))))
                out.append((name, mode, mean, sum(r > 1 for r in ratios), len(ratios)))
    return out


def averages_table(found: Mapping[str, Any]) -> str:
    lines = [f"| {NEW} over {OLD}, geometric mean | bundle | none |", "|---|---|---|"]
    cells: dict[str, dict[str, str]] = {}
    for name, mode, mean, worse, count in averages(found):
        cells.setdefault(name, {})[mode] = f"{mean:.2f} (worse in {worse} of {count})"
    lines += [f"| {name} | {' | '.join(modes.get(m, '-') for m in MODES)} |" for name, modes in cells.items()]
    return "\n".join(lines)


# Time


def cpu_ms(files: Mapping[str, tuple[str, int]]) -> dict[str, dict[str, float]]:
    """Model -> CPU ms for a new keyframe, medians, with the frames of earlier windows in the cache."""
    import torch

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    running: dict[tuple[str, str], tuple[Any, Any, Any, int]] = {}
    for name, (path, side) in files.items():
        backbone = load_backbone(Config.from_flat({"device": "cpu", "threads": 1, "weights": path}))
        width, height = patch_grid_size(640, 480, side or backbone.native_side, backbone.patch_size)
        images = rng.integers(0, 256, (WINDOW, height, width, 3), np.uint8)
        for how, new in (("live", 1), ("bag", 4)):
            running[name, how] = (backbone, images, backbone.new_cache(), new)
    spent: dict[tuple[str, str], list[float]] = {key: [] for key in running}
    for i in tqdm(range(WARM + TURNS), desc="time", disable=None):
        for key, (backbone, images, cache, new) in running.items():
            shown = range(i * new, i * new + WINDOW)
            dense = tuple(range(WINDOW - new, WINDOW))
            begun = time.process_time()
            backbone.predict(
                images[[j % WINDOW for j in shown]], step=Step(tuple((j, "") for j in shown), cache, dense)
            )
            spent[key].append(1e3 * (time.process_time() - begun) / new)
    out: dict[str, dict[str, float]] = {name: {} for name in files}
    for (name, how), values in spent.items():
        out[name][how] = float(np.median(values[WARM:]))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", metavar="FILE", help="the candidate, as come_ros train --export writes it")
    parser.add_argument("--against", default="", metavar="FILE", help="weights to compare with (default: bundled)")
    parser.add_argument(
        "--side", type=int, default=0, help="longer side of the candidate's images, px (default: its own)"
    )
    parser.add_argument("--quick", action="store_true", help="16 windows, one room")
    parser.add_argument("-o", "--out", default="out/candidate", help="where runs are kept (default %(default)s)")
    args = parser.parse_args()
    files = {OLD: (args.against or bundled_weights(), 0), NEW: (args.weights, args.side)}
    most, rooms, out = (16, 1, Path(args.out)) if args.quick else (64, 3, Path(args.out))
    sources = {name: shared() / "data" / "real" / folder for name, folder in REAL.items()}
    for seed in range(FIRST_ROOM, FIRST_ROOM + rooms):
        sources[f"room {seed}"] = folder = out / f"room_{seed}"
        if not (folder / "metadata.yaml").exists():
            render_room(folder, seed, ROOM_FRAMES, "320x240")
    found: dict[str, Any] = {"passes": {}, "product": {}, "file": {}}
    with tqdm(total=len(files) * len(sources) * len(MODES), unit="run", disable=None) as bar:
        for which, (path, side) in files.items():
            kept = out / f"{which}_{sha256(Path(path))[:12]}{f'_{side}' if side else ''}"
            kept.mkdir(parents=True, exist_ok=True)
            scores = kept / f"passes_{most}.json"
            if not scores.exists():
                scores.write_text(json.dumps(passes(path, side, most)))
            found["passes"][which] = json.loads(scores.read_text())
            found["product"][which] = product(path, side, sources, kept, bar)
            about = f"{os.path.basename(path)}{f' at {side} px' if side else ''}"
            found["file"][which] = {"name": about, "mib": os.path.getsize(path) / 2**20}
    found["cpu_ms"] = cpu_ms(files)
    found["load"] = round(os.getloadavg()[0], 1)
    text = report(found)
    (out / "metrics.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "metrics.md").write_text(text)
    print(text)


def report(found: Mapping[str, Any]) -> str:
    about = __doc__[__doc__.index("Single passes:") : __doc__.index("Runs are kept")].replace("\n", " ").strip()
    lines = ["# A candidate for the bundled model", "", about, "", averages_table(found["product"]), ""]
    lines += [f"| | file, MiB (bar {LARGEST_MIB:g}) | CPU ms a keyframe: live | bag |", "|---|---|---|---|"]
    for which in (OLD, NEW):
        file, ms = found["file"][which], found["cpu_ms"][which]
        lines.append(f"| {which}: {file['name']} | {file['mib']:.2f} | {ms['live']:.0f} | {ms['bag']:.0f} |")
    lines += ["", f"Load {found['load']} while timed.", "", passes_table(found["passes"])]
    return "\n".join([*lines, "", product_table(found["product"]), ""])


if __name__ == "__main__":
    main()
