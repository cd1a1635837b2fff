"""Co-Me's choices in one table, from what come_accuracy.py (at the model's own size and with --side 224) and distill_study.py wrote.

    python test/benchmark/accuracy/ablations.py        writes come_ablations.md into results/

Every cell: how much larger AbsRel is than the dense model's, and its 95 % interval over windows.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmark.stamped import weights_of, write_result

RESULTS = Path(__file__).with_name("results")
VARIANTS = {
    "Co-Me: its predictor, averaging, log n bias, fused, a budget for each frame": "come",
    "random groups": "random",
    "the teacher's own confidence as the mask": "teacher's mask",
    "edge vote of weight 1": "edge vote 1",
    "edge vote of weight 3": "edge vote 3",
    "edges alone, no confidence": "edges alone",
    "without the bias": "no bias",
    "the middle patch instead of the mean": "pick one",
    "merged around each module (per_layer)": "per_layer",
    "one budget for the window": "window budget",
}


def main() -> None:
    sizes = [read("come_accuracy"), read("come_accuracy_224")]
    columns = [(f"{source}, {size['side']} px, {group}", size["sources"][source], group)
               for size in sizes for source in size["sources"] for group in ("2x2", "3x3")]  # fmt: skip
    lines = ["# Co-Me's choices, one at a time", "",
             "Made by `python test/benchmark/accuracy/ablations.py`: AbsRel against the dense model's at p = 0.5 (95 % over windows).", "",
             "| | " + " | ".join(name for name, *_ in columns) + " |", "|---" * (len(columns) + 1) + "|",
             "| dense, AbsRel | " + " | ".join(f"{rows['dense']['abs_rel']:.4f}" for _, rows, _ in columns) + " |",
             "| kept tokens | " + " | ".join(f"{rows[f'come p=0.5 {g}']['kept_tokens']:.0%}" for _, rows, g in columns) + " |"]  # fmt: skip
    for title, variant in VARIANTS.items():
        lines.append(f"| {title} | " + " | ".join(cell(rows[f"{variant} p=0.5 {g}"]) for _, rows, g in columns) + " |")
    study = read("distill_study")
    lines += ["", f"## What the predictor is taught with, and where it reads ({study['steps']} steps each, 3x3)", "",
              "| loss, block, attention, seed | rank correlation | overlap of masks | " + " | ".join(study["windows"]) + " |",
              "|---" * (3 + len(study["windows"])) + "|"]  # fmt: skip
    for name, first in next(iter(study["sources"].values())).items():
        if name != "dense":
            cells = " | ".join(cell(rows[name]) for rows in study["sources"].values())
            lines.append(f"| {name} | {first['spearman']:.3f} | {first['mask_iou']:.3f} | {cells} |")
    text = "\n".join(lines) + "\n"
    sources = ("come_accuracy", "come_accuracy_224", "distill_study")
    write_result(RESULTS, "come_ablations", text=text, weights=weights_of(RESULTS, sources))
    print(text)


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def cell(row: dict[str, Any]) -> str:
    low, high = row["worse_than_dense_95"]
    return f"{row['worse_than_dense']:+.1%} ({low:+.1%} to {high:+.1%})"


if __name__ == "__main__":
    main()
