"""Co-Me's choices, one at a time: students of one teacher, trained on the very same batches, then judged by the depth they leave.

Compared: ranking against MSE loss (two seeds each: first weights and drawn pairs), the encoder block that is read, who attends to whom.
The first student is the reference. Writes the predictors into --output, and distill_study.json, .md and .png into results/. Judged on the
frozen test rooms, and on any recording with depth that is named.

  python test/benchmark/accuracy/distill_study.py -o out/study   teach all (about 40 minutes on one core), then judge
  python test/benchmark/accuracy/distill_study.py -o out/study --judge --source FOLDER     judge those in out/study
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmark.stamped import TINY, write_result
from come_accuracy import score, summary, windows

from come_ros.accelerators import CoMe
from come_ros.accelerators.confidence import default_block, load_predictor, save_predictor
from come_ros.backbones.checkpoint import bundled_weights, load_vggt
from come_ros.tools.distill import rate_at
from come_ros.tools.eval.sources import ROOMS
from come_ros.training.data import RoomWindows, draw_batch
from come_ros.training.predictor import Student, agreement, teach

RESULTS = Path(__file__).parent / "results"
EVERY = 100


def students_of(model: Any) -> dict[str, tuple[int, str, str, int]]:
    """Name -> block, loss, scope, seed."""
    depth = len(model.encoder_blocks())
    usual = default_block(depth)
    choices = [(usual, loss, "window", seed) for loss in ("ranking", "mse") for seed in (0, 1)]
    choices += [(block, "ranking", "window", 0) for block in range(depth) if block != usual]
    choices += [(usual, "ranking", scope, 0) for scope in ("frame", "pooled")]
    return {
        f"{loss}, block {block}, {scope}, seed {seed}": (block, loss, scope, seed)
        for block, loss, scope, seed in choices
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16, help="frames in a step")
    parser.add_argument("--windows", type=int, default=64, help="of the test split, and of each source")
    parser.add_argument(
        "--source", action="append", default=[], help="recording with depth to be judged on as well; may be repeated"
    )
    parser.add_argument("--judge", action="store_true")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    model = load_vggt(bundled_weights()).eval().requires_grad_(False)
    if not args.judge:
        educate(model, args)
    judge(model, args)


def educate(model: Any, args: argparse.Namespace) -> None:
    args.output.mkdir(parents=True, exist_ok=True)
    data, rng = RoomWindows(0, model.native_side, model.patch), np.random.default_rng(0)
    students = {
        name: Student.new(model, b, loss, scope, 32, seed)
        for name, (b, loss, scope, seed) in students_of(model).items()
    }
    usual = default_block(len(model.encoder_blocks()))
    blocks = sorted({s.block for s in students.values()}, key=lambda b: (b != usual, b))
    held = [teach(model, torch.from_numpy(w)[None], blocks) for w in data.validation()]
    log: dict[str, list[dict[str, float]]] = {name: [] for name in students}
    for step in tqdm(range(args.steps), desc="teaching", unit="step"):
        tokens, wanted = teach(model, torch.from_numpy(draw_batch(data, rng, args.batch)), blocks)
        for student in students.values():
            torch.manual_seed(1000 * student.seed + step)  # of the pairs
            student.learn(tokens, wanted, rate_at(step, args.steps))
        if (step + 1) % EVERY == 0 or step + 1 == args.steps:
            for name, student in students.items():
                log[name].append({"step": step + 1, **agreement(student.predictor, student.block, held)})
            (args.output / "log.json").write_text(json.dumps(log, indent=1))
    for i, (name, student) in enumerate(students.items()):
        about = {"licence": "Apache-2.0", "made_by": "test/benchmark/accuracy/distill_study.py", "student": name}
        save_predictor(str(args.output / f"{i}.safetensors"), student.predictor, student.block, about)


def judge(model: Any, args: argparse.Namespace) -> None:
    """Depth error of Co-Me with each of them at its default group and ratio."""
    variants = {}
    for i, name in enumerate(students_of(model)):
        predictor, block = load_predictor(str(args.output / f"{i}.safetensors"), model.shape)
        variants[name] = CoMe(predictor, block)
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for label, truth in windows([ROOMS, *args.source], args.windows, model.native_side, model.patch):
        rows = found.setdefault(label, {"dense": []} | {name: [] for name in variants})
        score(model, truth, variants, rows)
    log = json.loads((args.output / "log.json").read_text())
    result = {
        label: {name: summary(r, rows["dense"]) | (log[name][-1] if name in log else {}) for name, r in rows.items()}
        for label, rows in found.items()
    }
    settings = {"steps": max(e["step"] for entries in log.values() for e in entries), "batch": args.batch}
    settings["windows"] = {label: len(rows["dense"]) for label, rows in found.items()}
    text = f"{settings['steps']} steps of {settings['batch']} frames.\n\n" + table(result)
    data = {**settings, "sources": result, "log": log}
    write_result(RESULTS, "distill_study", data, text, lambda path: draw(log, path), weights=TINY)
    print(text)


def table(result: dict[str, Any]) -> str:
    """Agreement with the teacher in validation rooms; of each source AbsRel, and how much worse than dense."""
    heads = [f"{label}: AbsRel, worse than dense (95 %)" for label in result]
    lines = ["| student | rank correlation | mask IoU | " + " | ".join(heads) + " |", "|---" * (3 + len(heads)) + "|"]
    lines.append("| (dense) | | | " + " | ".join(f"{rows['dense']['abs_rel']:.4f}" for rows in result.values()) + " |")
    for name, first in next(iter(result.values())).items():
        if name == "dense":
            continue
        cells = [name, f"{first['spearman']:.3f}", f"{first['mask_iou']:.3f}"]
        for rows in result.values():
            r = rows[name]
            low, high = r["worse_than_dense_95"]
            cells.append(f"{r['abs_rel']:.4f}, {r['worse_than_dense']:+.1%} ({low:+.1%} to {high:+.1%})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(log: dict[str, list[dict[str, float]]], path: Path) -> None:
    from come_ros.tools.report.figures import pyplot

    plt = pyplot()

    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for axis, key, title in zip(
        axes, ("spearman", "mask_iou"), ("rank correlation", "mask IoU, 3x3, 50 %"), strict=True
    ):
        for name, entries in log.items():
            axis.plot([e["step"] for e in entries], [e[key] for e in entries], label=name)
        axis.set(title=title + " with the teacher, validation rooms", xlabel="step")
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=7)
    figure.savefig(path, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    main()
