"""What makes a window hard? Scores of test rooms by what their truth says of them, two models side by side next to trivial baselines.

  python test/benchmark/accuracy/by_difficulty.py                               the bundled model -> results/by_difficulty.json, .md, .png
  python test/benchmark/accuracy/by_difficulty.py --against OLD                 and an earlier one next to it
  python test/benchmark/accuracy/by_difficulty.py --weights FILE -o out/hard    a candidate next to the bundled model

Windows of 4 images of test rooms are sorted by parallax, turn, overlap, spread of depth and texture (see evaluation/difficulty.py)
and cut in thirds. Other windows of the same rooms have 2, 8 and 16 images. Each model has its own image size. The trivial baselines: the
better one of a constant depth and the mean depth map of training rooms, no rotation, the best straight line along an axis of the camera.
Depth is scaled per window by the median ratio and averaged over windows; rotation to the first image and the direction of translations are
medians over images. "Sure": the 95 % interval (bootstrap over windows, paired) of the difference in AbsRel of the two models excludes 0.
Windows are kept in --out, so that it can be stopped and started again.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmark import kept
from benchmark.accuracy.candidate import PASSES, best_trivial
from benchmark.stamped import TINY

from come_ros import progress
from come_ros.backbones.checkpoint import load_vggt
from come_ros.backbones.vggt import VGGT
from come_ros.camera.preprocess import patch_grid_size
from come_ros.datasets.rooms.rooms import render_sequence
from come_ros.datasets.rooms.splits import SPLIT_SEEDS, TEST_RATE_HZ
from come_ros.evaluation import paired_difference
from come_ros.evaluation.bootstrap import LEAST
from come_ros.evaluation.difficulty import difficulty
from come_ros.evaluation.window import WindowTruth
from come_ros.tools.eval.report import MEASURES
from come_ros.training.judge import summary, trivial_scores, window_scores

IMAGES, PARTS = 4, 3
OTHER_LENGTHS = (2, 8, 16)
FIGURES = ("delta", "abs_rel", "rotation_deg", "direction_deg", "length_ratio")
TITLES = {"delta": "delta < 1.25", "abs_rel": "AbsRel", "rotation_deg": "rotation, deg", "direction_deg": "direction, deg",
          "length_ratio": "length / true"}  # fmt: skip
TRIVIAL = "best trivial baseline"


def measured(weights: str, count: int, images: int, out: Path) -> tuple[list[Any], set[str]]:
    """Window by window: "scores" and "trivial" as of judge.py, "difficulty"; and at which commits."""
    model = load_vggt(weights).eval()
    width, height = patch_grid_size(640, 480, model.native_side, model.patch)
    store = kept.Kept(out, f"rooms_{images}", weights, networks=())
    about = f"{Path(weights).stem}, {images} images"
    rows = [
        store.get(str(i), lambda i=i: row_of(model, SPLIT_SEEDS["test"][i], images, width, height))
        for i in progress.bar(range(count), desc=about, unit="window")
    ]
    return rows, store.commits


def row_of(model: VGGT, seed: int, images: int, width: int, height: int) -> dict[str, Any]:
    s = render_sequence(seed, images, width, height, rate_hz=TEST_RATE_HZ)
    truth = WindowTruth("rooms", seed, s.images, s.depth, s.world_from_camera, s.intrinsics)
    found = {"scores": window_scores(model, truth), "trivial": trivial_scores(truth)}
    return {
        **{of: {name: [float(v) for v in values] for name, values in row.items()} for of, row in found.items()},
        "difficulty": difficulty(truth),
    }


def part_of(models: Mapping[str, Sequence[Any]], chosen: Sequence[int]) -> dict[str, Any]:
    """Some windows: "scores": model, or TRIVIAL -> figure; "vs_before": paired difference of AbsRel of the last model to the first."""
    names = list(models)
    rows = {name: [models[name][i] for i in chosen] for name in names}
    scores = {name: summary([row["scores"] for row in some]) for name, some in rows.items()}
    trivial = summary([row["trivial"] for row in rows[names[-1]]])
    best = {figure: value for figure in FIGURES if (value := best_trivial(trivial, figure)) is not None}
    out: dict[str, Any] = {"windows": len(chosen), "scores": {**scores, TRIVIAL: best}}
    if len(names) > 1:
        first, last = (np.array([row["scores"]["abs_rel"][0] for row in rows[n]]) for n in (names[0], names[-1]))
        found = paired_difference(last, first, relative=True)
        out["vs_before"] = {**found._asdict(), "sure": bool(found.low > 0 or found.high < 0) and len(chosen) >= LEAST}
    return out


def by_measure(models: Mapping[str, Sequence[Any]]) -> dict[str, list[dict[str, Any]]]:
    """measure of difficulty -> thirds of the windows by it, ascending, see part_of, each with its range. The last model's images count."""
    rows = models[list(models)[-1]]
    out: dict[str, list[dict[str, Any]]] = {}
    for name in MEASURES:
        values = np.array([row["difficulty"].get(name, np.nan) for row in rows])
        order = np.argsort(values, kind="stable")[: int(np.isfinite(values).sum())]
        for chosen in np.array_split(order, PARTS):
            if len(chosen):
                ends = {"low": float(values[chosen[0]]), "high": float(values[chosen[-1]])}
                out.setdefault(name, []).append({**ends, **part_of(models, chosen.tolist())})
    return out


def table(rows: Sequence[tuple[str, Mapping[str, Any]]], names: Sequence[str]) -> list[str]:
    """Each cell: the models in order, then the best trivial baseline."""
    lines = [
        f"| {' / '.join((*names, TRIVIAL))} | windows | {' | '.join(TITLES[f] for f in FIGURES)} | AbsRel over the first |"
    ]
    lines.append("|---" * (len(FIGURES) + 3) + "|")
    for title, row in rows:
        cells = [title, str(row["windows"])]
        for figure in FIGURES:
            digits = PASSES[figure][2]
            values = [row["scores"][name].get(figure) for name in (*names, TRIVIAL)]
            cells.append(" / ".join("-" if v is None or not np.isfinite(v) else f"{v:.{digits}f}" for v in values))
        d = row.get("vs_before")
        text = (
            ""
            if d is None
            else f"{d['value']:+.1%} ({d['low']:+.1%} to {d['high']:+.1%}){', sure' if d['sure'] else ''}"
        )
        lines.append("| " + " | ".join([*cells, text]) + " |")
    return lines


def text_of(found: Mapping[str, Any], about: str, commits: Sequence[str]) -> str:
    names = found["models"]
    lines = ["# Scores by difficulty", "", about, "", "## All, and by number of images", ""]
    lines += table([(f"{images} images", row) for images, row in found["lengths"].items()], names)
    for measure, parts in found["by"].items():
        lines += ["", f"## By {MEASURES[measure]}", ""]
        lines += table([(f"{part['low']:.2f} to {part['high']:.2f}", part) for part in parts], names)
    return "\n".join([*lines, "", f"Measured at {', '.join(sorted(set(commits)))}.", ""])


def draw(path: Path, found: Mapping[str, Any]) -> None:
    """A panel for each measure and figure: models and the trivial baseline over the thirds."""
    from come_ros.tools.report.figures import pyplot

    plt = pyplot()
    shown = ("abs_rel", "rotation_deg", "direction_deg")
    groups = {
        MEASURES[m]: [(f"{p['low']:.2g} to\n{p['high']:.2g}", p) for p in parts] for m, parts in found["by"].items()
    }
    groups["images in a window"] = [
        (str(n), row) for n, row in sorted(found["lengths"].items(), key=lambda each: int(each[0]))
    ]
    figure, axes = plt.subplots(
        len(shown), len(groups), figsize=(3.1 * len(groups), 3 * len(shown)), layout="constrained", squeeze=False, sharey="row"
    )  # fmt: skip
    names = [*found["models"], TRIVIAL]
    for column, (title, parts) in enumerate(groups.items()):
        for row, metric in zip(axes, shown, strict=True):
            axis = row[column]
            for i, name in enumerate(names):
                values = [part["scores"][name].get(metric, np.nan) for _, part in parts]
                axis.plot(range(len(parts)), values, "k--" if name == TRIVIAL else f"C{i}o-", label=name)
            axis.set_xticks(range(len(parts)), [text for text, _ in parts], fontsize=7)
            axis.grid(alpha=0.3)
        axes[0, column].set_title(title, fontsize=9)
    for row, metric in zip(axes, shown, strict=True):
        row[0].set_ylim(bottom=0)
        row[0].set_ylabel(f"{TITLES[metric]}, lower is better", fontsize=9)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names))
    figure.savefig(path, format="png", dpi=80)
    plt.close(figure)


def main(words: list[str] | None = None) -> int:
    parser = kept.arguments(__doc__, "by_difficulty", against=True)
    parser.add_argument("--windows", type=int, default=96, help="of 4 images (default %(default)s)")
    parser.add_argument("--others", type=int, default=32, help="of 2, 8 and 16 images each (default %(default)s)")
    args = parser.parse_args(words)
    paths = kept.compared(args)
    commits: list[str] = []
    lengths: dict[int, dict[str, list[Any]]] = {}
    for images, count in {IMAGES: args.windows, **dict.fromkeys(OTHER_LENGTHS, args.others)}.items():
        for name, path in paths.items():
            rows, at = measured(path, count, images, args.out)
            lengths.setdefault(images, {})[name] = rows
            commits += at
    found = {
        "models": list(paths),
        "lengths": {
            str(images): part_of(models, range(len(next(iter(models.values()))))) for images, models in lengths.items()
        },
        "by": by_measure(lengths[IMAGES]),
    }
    text = text_of(found, kept.described(__doc__, "Windows of 4", "Windows are"), commits)
    return kept.finish("by_difficulty", args, found, text, lambda path: draw(path, found), TINY)


if __name__ == "__main__":
    sys.exit(main())
