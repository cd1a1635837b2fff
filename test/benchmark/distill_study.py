"""Co-Me's choices, one at a time: students of one teacher, trained on the very same batches, then judged by the depth they leave.

Compared: ranking against MSE loss (two seeds each: first weights and drawn pairs), the encoder block that is read, who attends to whom.
The first student is the reference. Writes the predictors into --output, and distill_study.json, .md and .png into results/.

  python test/benchmark/distill_study.py -o out/study               teach all (about 40 minutes on one core), then judge
  python test/benchmark/distill_study.py -o out/study --judge       judge those in out/study
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
from come_accuracy import errors, summary

from come_ros.accelerators import CoMe, NoAccelerator
from come_ros.accelerators.come import merged_patches
from come_ros.accelerators.confidence import load_predictor, save_predictor
from come_ros.backbones.checkpoint import bundled_weights, load_vggt
from come_ros.datasets.synthetic import test_windows
from come_ros.tools.distill import RoomWindows, Student, agreement, draw_batch, rate_at, teach

RESULTS = Path(__file__).parent / "results"
# name -> block, loss, scope, seed
STUDENTS = {
    "ranking, block 1, window, seed 0": (1, "ranking", "window", 0),
    "ranking, block 1, window, seed 1": (1, "ranking", "window", 1),
    "mse, block 1, window, seed 0": (1, "mse", "window", 0),
    "mse, block 1, window, seed 1": (1, "mse", "window", 1),
    "ranking, block 0, window, seed 0": (0, "ranking", "window", 0),
    "ranking, block 2, window, seed 0": (2, "ranking", "window", 0),
    "ranking, block 3, window, seed 0": (3, "ranking", "window", 0),
    "ranking, block 1, frame, seed 0": (1, "ranking", "frame", 0),
    "ranking, block 1, pooled, seed 0": (1, "ranking", "pooled", 0),
}
EVERY = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16, help="frames in a step")
    parser.add_argument("--windows", type=int, default=64, help="of the test split")
    parser.add_argument("--judge", action="store_true")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    model = load_vggt(bundled_weights()).eval().requires_grad_(False)
    if not args.judge:
        educate(model, args)
    judge(model, args)


def educate(model: Any, args: argparse.Namespace) -> None:
    args.output.mkdir(parents=True, exist_ok=True)
    data, rng = RoomWindows(0, model.native_side), np.random.default_rng(0)
    students = {name: Student(model, b, loss, scope, 32, seed) for name, (b, loss, scope, seed) in STUDENTS.items()}
    blocks = sorted({s.block for s in students.values()}, key=lambda b: (b != 1, b))
    held = [teach(model, torch.from_numpy(w)[None], blocks) for w in data.validation()]
    log: dict[str, list[dict[str, float]]] = {name: [] for name in students}
    for step in tqdm(range(args.steps), desc="teaching", unit="step"):
        tokens, wanted = teach(model, torch.from_numpy(draw_batch(data, rng, args.batch)), blocks)
        for student in students.values():
            torch.manual_seed(1000 * student.seed + step)  # of the pairs
            student.learn(tokens, wanted, rate_at(step, args.steps))
        if (step + 1) % EVERY == 0 or step + 1 == args.steps:
            for name, student in students.items():
                log[name].append({"step": step + 1, **agreement(student, held)})
            (args.output / "log.json").write_text(json.dumps(log, indent=1))
    for i, (name, student) in enumerate(students.items()):
        about = {"licence": "Apache-2.0", "made_by": "test/benchmark/distill_study.py", "student": name}
        save_predictor(str(args.output / f"{i}.safetensors"), student.predictor, student.block, about)


def judge(model: Any, args: argparse.Namespace) -> None:
    """Depth error of Co-Me with each of them on the test split at 3x3, p = 0.5, beside the reference's ablations."""
    variants = {}
    for i, name in enumerate(STUDENTS):
        predictor, block = load_predictor(str(args.output / f"{i}.safetensors"), model)
        variants[name] = CoMe(predictor, block)
    rows: dict[str, list[dict[str, float]]] = {"dense": []} | {name: [] for name in variants}
    side = model.native_side
    for s in tqdm(list(test_windows(args.windows, width=side, height=side * 3 // 4)), desc="judging"):
        images = torch.from_numpy(s.images).permute(0, 3, 1, 2)[None].float() / 255
        with torch.inference_mode():
            dense, _ = model(images, NoAccelerator(), ("camera", "depth"))
            rows["dense"].append(errors(dense, s, None, None))
            for name, accelerator in variants.items():
                out, trunk = model(images, accelerator, ("camera", "depth"))
                kept = ~merged_patches(trunk.plan).repeat_interleave(14, 1).repeat_interleave(14, 2).numpy()
                rows[name].append(errors(out, s, kept, dense))
    log = json.loads((args.output / "log.json").read_text())
    result = {name: summary(r, rows["dense"]) | (log[name][-1] if name in log else {}) for name, r in rows.items()}
    settings = {name: getattr(args, name) for name in ("steps", "batch", "windows")}
    (RESULTS / "distill_study.json").write_text(json.dumps({**settings, "rows": result, "log": log}, indent=1) + "\n")
    text = table(result)
    (RESULTS / "distill_study.md").write_text(text)
    draw(log, RESULTS / "distill_study.png")
    print(text)


def table(result: dict[str, Any]) -> str:
    lines = [
        "| student | rank correlation | mask IoU | AbsRel | worse than dense (95 %) |",
        "|---|---|---|---|---|",
        f"| (dense) | | | {result['dense']['abs_rel']:.4f} | |",
    ]
    for name, r in result.items():
        if name != "dense":
            low, high = r["worse_than_dense_95"]
            worse = f"{r['worse_than_dense']:+.1%} ({low:+.1%} to {high:+.1%})"
            lines.append(f"| {name} | {r['spearman']:.3f} | {r['mask_iou']:.3f} | {r['abs_rel']:.4f} | {worse} |")
    return "\n".join(lines) + "\n"


def draw(log: dict[str, list[dict[str, float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

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
