"""What merging during training is worth: two models go on from one checkpoint for the same time, one with Co-Me in part of the steps.

    python test/benchmark/accuracy/merge_training.py CHECKPOINT [--minutes 12] [--merge 0.45] [-o out/merge_training]

writes merge_training.json and .md into results/. CHECKPOINT is a last.pt of `come_ros train`. Both run at the same time, on
one thread each, with the same schedule. Then each is scored on the frozen test rooms, dense and merged, next to the checkpoint they began
with. Time is all that counts: with merging, a step takes less of it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from come_ros.training import tiny

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmark.stamped import TINY_COME, write_result
from come_accuracy import RESULTS, middle, score, windows

from come_ros.accelerators import CoMe, Random
from come_ros.accelerators.confidence import load_predictor, predictor_next_to
from come_ros.accelerators.random import RandomConfidence
from come_ros.backbones.checkpoint import bundled_weights
from come_ros.evaluation import paired_difference
from come_ros.tools.eval.sources import ROOMS

PREDICTOR = predictor_next_to(bundled_weights())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("-o", "--output", type=Path, default=Path("out/merge_training"))
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument(
        "--merge", type=float, default=0.45, help="share of the steps with merging (default %(default)s)"
    )
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument(
        "--side", type=int, default=0, help="longer side of the scored images, px (default: the model's own)"
    )
    parser.add_argument("--pictures", help="as for come_ros train")
    parser.add_argument("--score", action="store_true", help="only score what was trained before")
    args = parser.parse_args()
    folders = {"without merging": (args.output / "without", 0.0), "with merging": (args.output / "with", args.merge)}
    if not args.score:
        educate(args, list(folders.values()))
    models = {"before": tiny.restore(args.checkpoint)}
    models |= {name: tiny.restore(str(folder / "last.pt")) for name, (folder, _) in folders.items()}
    result = judge(args, models)
    write_result(RESULTS, "merge_training", result, markdown(result), weights=TINY_COME[1:])
    print(markdown(result))


def educate(args: argparse.Namespace, runs: list[tuple[Path, float]]) -> None:
    given = ["--start", args.checkpoint, "--minutes", str(args.minutes), "--rate", str(args.rate), "--threads", "1"]
    given += ["--predictor", PREDICTOR, "--seed", "51", "--batch", "16"]
    given += ["--pictures", args.pictures] if args.pictures else []
    command = [sys.executable, "-m", "come_ros.tools.cli", "train", *given]
    processes = [subprocess.Popen([*command, "--merge", str(share), "-o", str(folder)]) for folder, share in runs]
    codes = [process.wait() for process in processes]
    if any(codes):
        sys.exit("training failed: see above")


def judge(args: argparse.Namespace, models: dict[str, tuple[Any, dict[str, Any]]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    base: dict[str, list[dict[str, float]]] = {}
    for label, (model, state) in models.items():
        torch.manual_seed(0)
        side = args.side or model.native_side
        predictor, block = load_predictor(PREDICTOR, model.shape)
        scorer = RandomConfidence(model.shape.encoder_width)
        variants: dict[str, Any] = {}
        for group in ((2, 2), (3, 3)):
            at: dict[str, Any] = {"ratio": 0.5, "group": group}
            name = f"{group[0]}x{group[1]}, p=0.5"
            variants[f"Co-Me {name}"] = CoMe(predictor, block, **at)
            variants[f"edge vote 3, {name}"] = CoMe(predictor, block, edge_weight=3.0, **at)
            variants[f"random {name}"] = Random(scorer, block, **at)
        rows: dict[str, list[dict[str, float]]] = {"dense": []} | {name: [] for name in variants}
        for _, truth in windows([ROOMS], args.windows, side, model.patch):
            score(model, truth, variants, rows)
        base = base or rows
        trained = {"steps": state["step"], "frames": state["frames"]} if label != "before" else {}
        found[label] = trained | {"side": side, "scores": {name: summary(r, base[name]) for name, r in rows.items()}}
    return {
        "checkpoint": Path(args.checkpoint).parent.name, "minutes": args.minutes, "merge": args.merge, "rate": args.rate,
        "windows": args.windows, "models": found,
    }  # fmt: skip


def summary(rows: list[dict[str, float]], before: list[dict[str, float]]) -> dict[str, Any]:
    out: dict[str, Any] = {name: middle(name, [r[name] for r in rows]) for name in ("abs_rel", "delta", "rotation_deg")}
    change = paired_difference(*(np.array([r["abs_rel"] for r in x]) for x in (rows, before)), relative=True)
    return out | {"change": change.value, "change_95": [change.low, change.high]}


def markdown(result: dict[str, Any]) -> str:
    models = result["models"]
    lines = [
        "# Merging during training", "",
        f"Made by `python test/benchmark/accuracy/merge_training.py`: two models go on from one checkpoint ({result['checkpoint']}) for "
        f"{result['minutes']:g} minutes, one thread each, at the same time; in one, {result['merge']:.0%} of the steps merge groups (2x2 "
        f"or 3x3, p of 0.25 to 0.75; a third at random). {result['windows']} test rooms; predictor of the checkpoint. Steps, frames: "
        + "; ".join(f"{name} {m['steps']}, {m['frames']}" for name, m in models.items() if "steps" in m)
        + ". (..): change against the checkpoint, paired, 95 %.", "",
        "| AbsRel | " + " | ".join(models) + " |", "|---" * (len(models) + 1) + "|",
    ]  # fmt: skip
    for name in next(iter(models.values()))["scores"]:
        cells = []
        for label, model in models.items():
            s = model["scores"][name]
            low, high = s["change_95"]
            cells.append(f"{s['abs_rel']:.4f}" + (f" ({low:+.1%} to {high:+.1%})" if label != "before" else ""))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
