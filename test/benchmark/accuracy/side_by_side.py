"""What a model sees: test rooms and all recordings, input, truth, the depth of two models and their errors, in one picture.

  python test/benchmark/accuracy/side_by_side.py                                 the bundled model -> results/side_by_side.md, .png
  python test/benchmark/accuracy/side_by_side.py --against OLD                   and an earlier one next to it
  python test/benchmark/accuracy/side_by_side.py --weights FILE -o out/pictures  a candidate next to the bundled model
  python test/benchmark/accuracy/side_by_side.py --rooms 8                       more rooms

Every row is one image of a window of 4, which no score has chosen: of the first test rooms, and of the middle of each recording. Depth is
scaled per window by the median ratio; without a truth, so that the window's median is 1.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmark import kept
from benchmark.accuracy.refinement import REAL
from benchmark.stamped import TINY, shared

from come_ros import progress
from come_ros.config import Config
from come_ros.evaluation.depth import depth_errors, depth_scale
from come_ros.evaluation.window import WindowTruth
from come_ros.tools.eval import _backbone
from come_ros.tools.eval.sources import ROOMS, Cut, Source
from come_ros.types import F32

IMAGES = 4
SHOWN = 1  # of them, from 0
LARGEST_ERROR = 0.5


@dataclass(frozen=True, eq=False)
class Seen:
    """One image and what a model makes of it. truth: NaN where unknown, None without any. depth: in the truth's unit, or so that the
    window's median is 1. abs_rel: of the whole window."""

    image: np.ndarray
    depth: F32
    truth: F32 | None
    abs_rel: float


def seen(backbone: Any, window: WindowTruth) -> Seen:
    depth = backbone.predict(window.images).depth
    if window.depth is None:
        return Seen(window.images[SHOWN], depth[SHOWN] / np.median(depth), None, float("nan"))
    scale = depth_scale(depth, window.depth)
    error = depth_errors(depth, window.depth, scale=scale).abs_rel
    return Seen(window.images[SHOWN], depth[SHOWN] * np.float32(scale), window.depth[SHOWN], error)


def windows(sources: Sequence[Source], rooms: int, backbone: Any) -> dict[str, WindowTruth]:
    """Name of the row -> window, at the model's image size."""
    out = {}
    for source in sources:
        if source.rendered:
            found = list(source.windows(Cut(size=IMAGES, most=rooms), backbone))
        else:
            found = list(source.windows(Cut(size=IMAGES, most=3), backbone))[1:2]
        out.update({f"{source.label} {w.index}": w for w in found})
    return out


def draw(path: Path, found: Mapping[str, Mapping[str, Seen]]) -> None:
    """found: row -> model -> Seen."""
    from come_ros.tools.report.figures import pyplot

    plt = pyplot()
    models = list(next(iter(found.values())))
    titles = ["input", "truth", *models, *(f"error of {name}" for name in models)]
    figure, axes = plt.subplots(
        len(found), len(titles), figsize=(2.9 * len(titles) + 1.2, 2.25 * len(found)), layout="constrained", squeeze=False
    )  # fmt: skip
    for row, (name, of_models) in zip(axes, found.items(), strict=True):
        last = of_models[models[-1]]
        known = last.depth if last.truth is None else last.truth
        low, high = np.nanpercentile(known, [2, 98])
        colours = {"cmap": "turbo_r", "vmin": low, "vmax": high, "interpolation": "nearest"}
        row[0].imshow(last.image)
        row[0].set_ylabel(name.replace("tum_", ""), fontsize=10)
        if last.truth is None:
            row[1].text(0.5, 0.5, "no truth", ha="center", va="center", transform=row[1].transAxes)
        else:
            row[1].imshow(last.truth, **colours)
        for i, model in enumerate(models):
            s = of_models[model]
            shown = row[2 + i].imshow(s.depth, **colours)
            if s.truth is not None:
                error = np.abs(s.depth / np.where(s.truth > 0, s.truth, np.nan) - 1)
                drawn = row[2 + len(models) + i].imshow(
                    error, cmap="magma", vmin=0, vmax=LARGEST_ERROR, interpolation="nearest"
                )
                row[2 + len(models) + i].set_xlabel(f"AbsRel of the window {s.abs_rel:.3f}", fontsize=8)
        figure.colorbar(
            shown,
            ax=row[1 + len(models)],
            pad=0.02,
            label="depth, m; red is near" if last.truth is not None else "red is near",
        )
        if last.truth is not None:
            figure.colorbar(drawn, ax=row[-1], pad=0.02, label="|depth / truth - 1|")
    for axis in axes.ravel():
        axis.set(xticks=[], yticks=[], facecolor="0.85")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10)
    figure.savefig(path, format="png", dpi=62)
    plt.close(figure)


def text_of(found: Mapping[str, Mapping[str, Seen]], about: str) -> str:
    models = list(next(iter(found.values())))
    lines = [
        "# Side by side",
        "",
        about,
        "",
        f"| AbsRel of the window | {' | '.join(models)} |",
        "|---" * (len(models) + 1) + "|",
    ]
    for name, of_models in found.items():
        cells = ("no truth" if s.truth is None else f"{s.abs_rel:.3f}" for s in of_models.values())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main(words: list[str] | None = None) -> int:
    parser = kept.arguments(__doc__, "side_by_side", against=True)
    parser.add_argument("--rooms", type=int, default=4, help="(default %(default)s)")
    parser.add_argument("--source", action="append", metavar="FOLDER", help="recordings (default: all four)")
    args = parser.parse_args(words)
    names = [ROOMS, *(args.source or [str(shared() / "data" / "real" / name) for name in REAL.values()])]
    found: dict[str, dict[str, Seen]] = {}
    for name, path in kept.compared(args).items():
        backbone = _backbone(kept.configured(path))
        there = windows([Source(each, Config()) for each in names], args.rooms, backbone)
        for row, window in progress.bar(there.items(), desc=name, unit="window"):
            found.setdefault(row, {})[name] = seen(backbone, window)
    text = text_of(found, kept.described(__doc__, "Every row"))
    return kept.finish("side_by_side", args, None, text, lambda path: draw(path, found), TINY)


if __name__ == "__main__":
    sys.exit(main())
