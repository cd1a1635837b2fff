"""How a long training run went, as a picture: validation scores over the images seen, next to an earlier model and trivial baselines.

  python test/benchmark/accuracy/training_curve.py out/tiny2/log.json --against OLD       -> results/training_curve.json, .md, .png
  python test/benchmark/accuracy/training_curve.py LOG --weights FILE -o out/curve        of weights that do not ship
  python test/benchmark/accuracy/training_curve.py LOG --watch FOLDER --watch FOLDER      the recordings that the run watched

LOG is the log.json of `come_ros train --variant tiny2`: every 500 steps the moving average of the weights is scored on validation rooms
and on the watched recordings, which choose the checkpoint and are no test. The earlier model is scored on the same windows at its own
image size.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmark import kept
from benchmark.accuracy.candidate import PASSES, best_trivial
from benchmark.stamped import TINY, shared

from come_ros.backbones.checkpoint import load_vggt
from come_ros.errors import DatasetError
from come_ros.tools.train import recorded_windows
from come_ros.training.judge import Judge

WATCHED = ("tum_fr3_cabinet", "tum_fr1_rpy")
PANELS = {
    "abs_rel": "depth, AbsRel (lower is better)",
    "delta": "depth, share of pixels within 25 % (higher is better)",
    "rotation_deg": "rotation to the first image, deg (lower is better)",
    "direction_deg": "direction of translation, deg (lower is better)",
    "length_ratio": "length of translation / true one (1 is right)",
    "spearman": "rank correlation of confidence with error (higher is better)",
}
LOSSES = {
    "depth": "depth", "points": "points", "turn": "rotation", "direction": "direction of translation", "length": "length of translation",
    "flow": "correspondence", "ray": "rays",
}  # fmt: skip


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a log, in the order of the steps. Raises DatasetError."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return sorted((row for row in rows if row.get("scores")), key=lambda row: row["step"])
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise DatasetError(
            f"{path} is no log.json of come_ros train ({error!r}): name the one in its -o folder"
        ) from error


def judged(path: str, windows: int, watch: Sequence[str]) -> dict[str, Any]:
    model = load_vggt(path).eval()
    recordings = recorded_windows(list(watch), windows, model.native_side, model.patch)
    judge = Judge.of("validation", windows, recordings, model.native_side, model.patch)
    return {"scores": judge(model), "baselines": judge.baselines()}


def text_of(found: Mapping[str, Any], about: str, commits: Sequence[str]) -> str:
    lines = ["# The training run", "", about]
    last, first = found["log"][-1], found["log"][0]
    hours = last["seconds"] / 3600
    lines += ["", f"{last['step']} steps, {last['frames'] / 1e3:.0f} k images, {hours:.1f} hours of one core in all."]
    for source in last["scores"]:
        if source == "figure":
            continue
        windows = last["scores"][source]["windows"]
        lines += ["", f"## {source}, {windows} windows", "",
                  f"| | at {first['frames'] / 1e3:.0f} k images | best of all | at the end | {found['earlier']} | best trivial baseline |",
                  "|---|---|---|---|---|---|"]  # fmt: skip
        for figure, title in PANELS.items():
            _, larger, digits = PASSES[figure]
            values = [row["scores"][source].get(figure) for row in found["log"]]
            known = [v for v in values if v is not None and np.isfinite(v)]
            if known:
                best = (
                    min(known, key=lambda v: abs(v - 1))
                    if figure == "length_ratio"
                    else (max if larger else min)(known)
                )
                before = found["before"][source].get(figure)
                cells = (values[0], best, values[-1], before, best_trivial(found["baselines"][source], figure))
                shown = ("-" if v is None or not np.isfinite(v) else f"{v:.{digits}f}" for v in cells)
                lines.append(f"| {title.partition(' (')[0]} | {' | '.join(shown)} |")
    return "\n".join([*lines, "", f"Scored at {', '.join(sorted(set(commits)))}.", ""])


def draw(path: Path, found: Mapping[str, Any]) -> None:
    from come_ros.tools.report.figures import pyplot

    plt = pyplot()
    figure, axes = plt.subplots(2, 4, figsize=(21, 9), layout="constrained")
    log = found["log"]
    seen = [row["frames"] / 1e3 for row in log]
    sources = [name for name in log[-1]["scores"] if name != "figure"]
    flat = axes.ravel()
    for axis, (metric, title) in zip(flat, PANELS.items(), strict=False):
        for i, source in enumerate(sources):
            values = [np.nan if (v := row["scores"][source].get(metric)) is None else v for row in log]
            if not np.isfinite(values).any():
                continue
            axis.plot(seen, values, f"C{i}o-", lw=2, ms=4)
            before, trivial = found["before"][source].get(metric), best_trivial(found["baselines"][source], metric)
            for level, style in ((before, ":"), (trivial, "--")):
                if level is not None and np.isfinite(level):
                    axis.axhline(level, color=f"C{i}", ls=style, lw=1.4)
        axis.set(title=title, xlabel="images seen in training, thousands", xlim=(0, None))
        axis.grid(alpha=0.3)
    losses = flat[len(PANELS)]
    for i, (name, title) in enumerate(LOSSES.items()):
        values = [row.get(name, np.nan) for row in log]
        losses.plot(seen, values, f"C{i}-", label=title)
    losses.set(
        title="losses on the training images, mean of 500 steps",
        xlabel="images seen in training, thousands",
        yscale="log",
    )
    losses.legend(fontsize=8, ncols=2)
    losses.grid(alpha=0.3)
    legend = flat[len(PANELS) + 1]
    legend.set_axis_off()
    for i, source in enumerate(sources):
        legend.plot(
            [], [], f"C{i}o-", lw=2, label=f"{source.replace('tum_', '')}: the model in training (moving average)"
        )
    legend.plot([], [], "k:", label=f"in the same colours: {found['earlier']}, the earlier model")
    legend.plot(
        [],
        [],
        "k--",
        label="in the same colours: best baseline without a model\n(constant or mean depth; no rotation; straight line)",
    )
    legend.legend(loc="center", fontsize=11, frameon=False)
    last = log[-1]
    figure.suptitle(
        f"{found['name']}: {last['step']} steps, {last['frames'] / 1e3:.0f} k images, {last['seconds'] / 3600:.1f} hours of one core"
    )
    figure.savefig(path, format="png", dpi=75)
    plt.close(figure)


def main(words: list[str] | None = None) -> int:
    parser = kept.arguments(__doc__, "training_curve", against=True)
    parser.add_argument("log", type=Path, metavar="LOG")
    parser.add_argument("--watch", action="append", metavar="FOLDER", help="(default: fr3_cabinet and fr1_rpy)")
    parser.add_argument("--windows", type=int, default=24, help="of each source, as the run had (default %(default)s)")
    args = parser.parse_args(words)
    watch = args.watch or [str(shared() / "data" / "real" / name) for name in WATCHED]
    paths = list(kept.compared(args).values())
    log, about = read(args.log), [*map(str, watch), str(args.windows)]
    stores = [kept.Kept(args.out, "judged", path, about, networks=()) for path in paths]
    earlier, own = (
        store.get("scores", lambda path=path: judged(path, args.windows, watch))
        for store, path in ((stores[0], paths[0]), (stores[-1], paths[-1]))
    )
    found = {
        "name": Path(paths[-1]).stem, "earlier": Path(paths[0]).stem, "log": log, "before": earlier["scores"],
        "baselines": own["baselines"], "now": own["scores"],
    }  # fmt: skip
    text = text_of(found, kept.described(__doc__, "LOG is"), [c for s in stores for c in s.commits])
    return kept.finish("training_curve", args, found, text, lambda path: draw(path, found), TINY)


if __name__ == "__main__":
    sys.exit(main())
