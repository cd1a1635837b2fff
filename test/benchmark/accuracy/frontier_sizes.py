"""Where does token reduction pay? Every reducer at p = 0.5, for windows of 8, 16 and 24 images of three sizes, on the frozen test rooms.

  python test/benchmark/accuracy/frontier_sizes.py                               all cells -> results/frontier_sizes.json, .md, .png
  python test/benchmark/accuracy/frontier_sizes.py --cell 8:192 --cell 16:192    only these: images in a window, their longer side in px
  python test/benchmark/accuracy/frontier_sizes.py --long                        frame groups and shifted grids, windows of 16 to 48 images
                                                                                 -> results/long_windows.json, .md
  python test/benchmark/accuracy/frontier_sizes.py --cell 16:256 --windows 32    more windows of a cell
  python test/benchmark/accuracy/frontier_sizes.py --weights FILE -o out/x       weights that do not ship: results are written into out/x

Windows and variants are run in turn: each window by all variants, which begin with another one in every window. The time is the CPU
time of the very passes that are scored, over that of the dense model on the same window, so that other work on the machine matters
little. The whole pass counts, with its heads, since that is what a user waits for; the trunk's share stands next to it. Two trivial
baselines can win: random groups, and smaller images. Each is a curve of error over time, and a reducer is compared with it at its own
time; there is no comparison where that is not below the dense model's time. "As many": random groups with as many tokens, which does not
apply to what keeps all tokens. Depth is scaled per window by the median, rotation is a median; intervals are 95 %, bootstrap over
windows, paired. Windows are kept in --out, so that it can be stopped and started again.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmark import kept

from come_ros import progress
from come_ros.config import Config
from come_ros.config_text import split_name
from come_ros.datasets.rooms.rooms import render_sequence
from come_ros.datasets.rooms.splits import SPLIT_SEEDS, TEST_RATE_HZ
from come_ros.evaluation import ate_rmse, depth_errors, interval, paired_difference, relative_pose_errors
from come_ros.evaluation.bootstrap import LEAST
from come_ros.evaluation.window import WindowTruth
from come_ros.tools.bench.split import Split, Watched
from come_ros.tools.eval import _backbone
from come_ros.tools.eval.frontier import RANDOM, against_nulls, at_the_same_time
from come_ros.tools.eval.measure import MEDIANS, Scores
from come_ros.tools.eval.sources import ROOMS
from come_ros.tools.eval.variants import DENSE, RESOLUTION, SmallerImages, Variant
from come_ros.types import Prediction


class Cell(NamedTuple):
    """images: of a window. side: longer side of the images, px. windows: how many."""

    images: int
    side: int
    windows: int

    @property
    def name(self) -> str:
        return f"{self.images}:{self.side}"


CELLS = (
    Cell(8, 192, 32), Cell(16, 192, 24), Cell(24, 192, 8),
    Cell(8, 256, 12), Cell(16, 256, 16), Cell(24, 256, 8),
    Cell(8, 384, 8), Cell(16, 384, 8), Cell(24, 384, 8),
)  # fmt: skip
"""fewer windows where a pass takes longer: 30 minutes of one core in all, or 80 of a slow one; 8 are the fewest that give an interval"""
LONG = (Cell(16, 192, 12), Cell(32, 192, 8), Cell(48, 192, 8))

REDUCERS = (
    "come:ratio=0.5,group=2x2", "come:ratio=0.5,group=2x2,edge_weight=3",
    "come:ratio=0.5,group=3x3", "come:ratio=0.5,group=3x3,edge_weight=3",
    "tome:ratio=0.5", "good_token_hunting:ratio=0.5", "pace:ratio=0.5", "subscene:ratio=0.5", "regime:ratio=0.5",
    "come+good_token_hunting:ratio=0.5,group=2x2,edge_weight=3",
    "random:ratio=0.5,group=2x2", "random:ratio=0.75,group=2x2", "random:ratio=0.5,group=3x3",
)  # fmt: skip
SHRUNK = (0.8, 0.6, 0.4)
"""shares of the patches; the nearest of the sizes that keep the proportions"""
OWN = {
    **{f"subscene:ratio={r}": [f"subscene:ratio={r},subscenes={by}" for by in ("time", "random")] for r in (0.5, 0.75)},
    **{f"regime:ratio={r},stride=2": [f"regime:ratio={r},stride=2,phases=same"] for r in (0.5, 1.0)},
}
"""what is made for long windows -> the same without the idea: its own baselines"""
NEEDS = {"come": "come", "good_token_hunting": "layer plan", "pace": "pace"}
GROUPS = (("layer plan",), ("pace",), ("come", "layer plan"))
"""what is run in turn depends on these files next to the weights: if one of them changes, the rows of the others are kept"""
FIGURES = ("abs_rel", "delta", "rotation_deg", "ate")
CLOCKS = ("trunk", "total")
Row = dict[str, dict[str, float]]
"""of one window, by variant"""


# Measuring


def size_of(backbone: Any, config: Config) -> tuple[int, int]:
    """(W, H) of the images, of cameras of 640x480."""
    width, height = backbone.image_size(640, 480, config.input.max_side)
    return width, height


def room(seed: int, images: int, width: int, height: int) -> WindowTruth:
    s = render_sequence(seed, images, width, height, rate_hz=TEST_RATE_HZ)
    return WindowTruth(ROOMS, seed, s.images, s.depth, s.world_from_camera, s.intrinsics)


def run(variant: Variant, window: WindowTruth) -> tuple[Prediction, dict[str, float]]:
    """One pass, and the CPU time that this process spent on it, ms: "total", and "trunk" without the heads."""
    split = Split(time.process_time, lambda begin, end: 1e3 * (end - begin))
    small = isinstance(variant.backbone, SmallerImages)
    model = variant.backbone.dense if small else variant.backbone
    watched = model.accelerated(Watched(model.accelerator, split))
    if small:
        patch, (height, width) = model.patch_size, variant.backbone.size
        watched = SmallerImages(watched, height // patch, width // patch)

    def check() -> bool:
        split.check()
        return False

    begun = time.process_time()
    prediction = dataclasses.replace(variant, backbone=watched).predict(window, check)
    total = 1e3 * (time.process_time() - begun)
    split.finish()
    return prediction, {"trunk": total - split.parts()["heads"], "total": total}


def scored(prediction: Prediction, truth: WindowTruth) -> dict[str, float]:
    assert truth.depth is not None and truth.world_from_camera is not None
    depth = depth_errors(prediction.depth, truth.depth)
    rotation, _, _ = relative_pose_errors(prediction.window_from_camera, truth.world_from_camera)
    return {
        "kept_tokens": prediction.kept_ratio,
        "read_keys": prediction.read_ratio,
        "abs_rel": depth.abs_rel,
        "delta": depth.delta,
        "rotation_deg": float(np.median(rotation)),
        "ate": ate_rmse(prediction.window_from_camera, truth.world_from_camera),
    }


def groups_of(variants: Mapping[str, Variant]) -> dict[tuple[str, ...], list[Variant]]:
    """networks that they need, one of GROUPS -> variants that are run in turn, the dense model first. variants: by their texts."""
    dense_ = variants[DENSE]
    out: dict[tuple[str, ...], list[Variant]] = {}
    for text, v in variants.items():
        needs = {NEEDS[name] for name in split_name(text)[0].split("+") if name in NEEDS}
        if v is not dense_:
            out.setdefault(next(g for g in GROUPS if needs <= set(g)), [dense_]).append(v)
    return out


def measured(
    cell: Cell, variants: Mapping[str, Variant], store: Callable[..., kept.Kept], bar: Any
) -> tuple[list[Row], set[str]]:
    """Window by window: variant -> its figures, times, and the shares of the dense model's; and at which commits. store: (networks, names
    of variants) -> where their rows are kept."""
    groups = groups_of(variants)
    stores = {needs: store(needs, [v.name for v in some]) for needs, some in groups.items()}
    width, height = size_of(variants[DENSE].backbone, variants[DENSE].config)

    @functools.lru_cache(maxsize=1)
    def truth(i: int) -> WindowTruth:
        return room(SPLIT_SEEDS["test"][i], cell.images, width, height)

    def in_turn(some: Sequence[Variant], i: int) -> Row:
        found: Row = {}
        for v in [*some[i % len(some) :], *some[: i % len(some)]]:
            bar.set_postfix_str(f"{cell.name} {v.name}")
            prediction, times = run(v, truth(i))
            found[v.name] = scored(prediction, truth(i)) | times
        for row in found.values():
            row.update({f"{c}_share": row[c] / found[DENSE][c] for c in CLOCKS})
        return {v.name: found[v.name] for v in some}

    rows: list[Row] = []
    for i in range(cell.windows):
        rows.append({})
        for needs, some in groups.items():
            rows[-1] = stores[needs].get(str(i), lambda i=i, some=some: in_turn(some, i)) | rows[-1]
        bar.update()
    commits = {commit for each in stores.values() for commit in each.commits}
    return [{v.name: row[v.name] for v in variants.values()} for row in rows], commits


# Comparing


def compared(rows: Sequence[Row], variants: Sequence[Variant]) -> dict[str, Any]:
    """variant -> "figures" over windows; "share", of the dense model's time, {"value", "low", "high"} for each of CLOCKS;
    "vs_dense", paired relative difference of AbsRel; "random as many", "random", "resolution": paired differences of AbsRel over the dense
    model's AbsRel to the trivial baselines, at as many tokens and at the same time; {} where there is none."""
    scores = Scores(
        {v.name: [dict(row[v.name]) for row in rows] for v in variants}, [(ROOMS, i) for i in range(len(rows))]
    )
    times: dict[str, dict[str, Any]] = {}
    for v in variants:
        shares = {c: scores.values(v.name, f"{c}_share") for c in CLOCKS}
        times[v.name] = {f"{c}_ratio": interval(shares[c], median=True)._asdict() for c in CLOCKS}
    level = float(scores.values(DENSE, "abs_rel").mean())
    as_long = {
        kind: at_the_same_time(scores, list(variants), times, kind=kind, clock="total_ratio")
        for kind in (RANDOM, RESOLUTION)
    }
    as_many = against_nulls(scores, list(variants))
    out: dict[str, Any] = {}
    for v in variants:
        merges = float(scores.values(v.name, "kept_tokens").mean()) < 1
        out[v.name] = {
            "trivial": v.trivial,
            "figures": {
                f: float((np.nanmedian if f in MEDIANS else np.nanmean)(scores.values(v.name, f)))
                for f in (*FIGURES, "kept_tokens", "read_keys", *CLOCKS)
            },
            "share": {c: times[v.name][f"{c}_ratio"] for c in CLOCKS},
            "vs_dense": {}
            if v.family == DENSE
            else relative(scores.values(v.name, "abs_rel"), scores.values(DENSE, "abs_rel")),
            "random as many": over(as_many.get(v.name, {}).get(RANDOM), level) if merges else {},
            **{kind: over(found.get(v.name), level) for kind, found in as_long.items()},
        }
    return out


def relative(ours: np.ndarray, base: np.ndarray) -> dict[str, Any]:
    """Paired difference over the base's mean."""
    found = paired_difference(ours, base, relative=True)
    return {**found._asdict(), "sure": (found.low > 0 or found.high < 0) and len(ours) >= LEAST}


def over(difference: Mapping[str, Any] | None, level: float) -> dict[str, Any]:
    """A difference in shares of `level`."""
    if difference is None:
        return {}
    return {**{k: difference[k] / level for k in ("value", "low", "high")}, "sure": bool(difference["sure"])}


def standing(found: Mapping[str, Any]) -> str:
    """Of a paired difference of errors."""
    if not found:
        return "no faster"
    return "level" if not found["sure"] else "better" if found["value"] < 0 else "worse"


# Tables


def text_of(
    cells: Mapping[str, Mapping[str, Any]], about: str, left_out: Mapping[str, str], commits: Iterable[str]
) -> str:
    lines = ["# Where token reduction pays: windows of 8 to 24 images of three sizes", "", about, ""]
    names = list(
        dict.fromkeys(
            n for c in cells.values() for n, row in c["variants"].items() if not row["trivial"] and n != DENSE
        )
    )
    head = [f"{c['cell'][0]} of {c['image'][0]}x{c['image'][1]}" for c in cells.values()]
    lines += [
        "Time of the whole pass over dense, AbsRel over dense; then against random groups, and smaller images, that take as long:",
        "",
    ]
    lines += [f"| | {' | '.join(head)} | beats both in |", "|---" * (len(head) + 2) + "|"]
    for name in names:
        rows = [c["variants"].get(name) for c in cells.values()]
        won = sum(r is not None and all(standing(r[k]) == "better" for k in (RANDOM, RESOLUTION)) for r in rows)
        lines.append(f"| {name} | {' | '.join(map(cell_text, rows))} | {won} of {sum(r is not None for r in rows)} |")
    lines += ["", "better, worse: the 95 % interval of the paired difference excludes 0; level: it does not; no faster: its time is not "
              "below that of the dense model, or below that of all settings of the baseline."]  # fmt: skip
    for c in cells.values():
        (images, _, _), (width, height) = c["cell"], c["image"]
        lines += ["", f"## {images} images of {width}x{height}, {c['windows']} windows", "", *cell_table(c["variants"])]
    lines += [f"\nLeft out: {name} ({reason})" for name, reason in left_out.items()]
    return "\n".join([*lines, "", f"Measured at {', '.join(sorted(commits))}.", ""])


def cell_text(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    time_share = row["share"]["total"]["value"]
    return f"{time_share:.2f}, {row['vs_dense']['value']:+.1%}; {standing(row[RANDOM])}, {standing(row[RESOLUTION])}"


def cell_table(variants: Mapping[str, Any]) -> list[str]:
    head = ["", "tokens", "keys", "ms", "/ dense", "trunk / dense", "AbsRel", "over dense", "over random groups, as many",
            "as long", "over smaller images, as long", "delta", "rotation, deg", "ATE, Sim(3)"]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, row in variants.items():
        f, share = row["figures"], row["share"]
        cells = [
            f"{name}{' *' if row['trivial'] else ''}",
            f"{f['kept_tokens']:.2f}",
            f"{f['read_keys']:.2f}",
            f"{f['total']:.0f}",
        ]
        cells += [between(share["total"], "{:.2f}"), between(share["trunk"], "{:.2f}"), f"{f['abs_rel']:.4f}"]
        cells += [between(row[k], "{:+.1%}") for k in ("vs_dense", "random as many", RANDOM, RESOLUTION)]
        cells += [f"{f['delta']:.3f}", f"{f['rotation_deg']:.2f}", f"{f['ate']:.4f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return [
        *lines,
        "",
        "*: a trivial baseline. Differences of AbsRel are shares of the dense model's; negative is better, bold: sure.",
    ]


def between(found: Mapping[str, Any], form: str) -> str:
    if not found:
        return ""
    value, low, high = (form.format(found[k]) for k in ("value", "low", "high"))
    value = f"**{value}**" if found.get("sure") else value
    return value if found["low"] == found["high"] else f"{value} ({low} to {high})"


def own_of(rows: Sequence[Row], names: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """variant -> its own baseline -> paired differences to it: relative of AbsRel and ATE, absolute of the rotation."""
    out: dict[str, Any] = {}
    for name, baselines in names.items():
        for base in baselines:
            pairs = {f: [np.array([row[n][f] for row in rows]) for n in (name, base)] for f in FIGURES}
            turn = paired_difference(*pairs["rotation_deg"])
            sure = bool(turn.low > 0 or turn.high < 0) and len(rows) >= LEAST
            out.setdefault(name, {})[base] = {
                **{f: relative(*pairs[f]) for f in ("abs_rel", "ate")}, "rotation_deg": {**turn._asdict(), "sure": sure},
            }  # fmt: skip
    return out


def long_text(cells: Mapping[str, Mapping[str, Any]], about: str, commits: Iterable[str]) -> str:
    lines = ["# Long windows: frame groups and shifted grids against the same without their idea", "", about, ""]
    lines += ["`subscene` groups frames by their looks; its baselines group consecutive frames, or frames at random. `regime` shifts its "
              "grid from frame to frame; its baseline does not."]  # fmt: skip
    for c in cells.values():
        (images, _, _), (width, height) = c["cell"], c["image"]
        lines += ["", f"## {images} images of {width}x{height}, {c['windows']} windows", ""]
        lines += [
            "| | its own baseline | AbsRel over it | rotation, deg, more than it | ATE over it |",
            "|---|---|---|---|---|",
        ]
        for name, baselines in c["own"].items():
            for base, d in baselines.items():
                cells_ = [
                    between(d[f], form)
                    for f, form in (("abs_rel", "{:+.1%}"), ("rotation_deg", "{:+.2f}"), ("ate", "{:+.1%}"))
                ]
                lines.append(f"| {name} | {base} | {' | '.join(cells_)} |")
        lines += ["", *cell_table(c["variants"])]
    return "\n".join([*lines, "", f"Measured at {', '.join(sorted(commits))}.", ""])


def draw(path: Path, cells: Mapping[str, Mapping[str, Any]]) -> None:
    """Error over dense against time over dense, a panel for each cell."""
    from come_ros.tools.report.figures import pyplot

    plt = pyplot()
    columns = min(3, len(cells))
    rows = -(-len(cells) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5.2 * columns, 4.2 * rows), layout="constrained", squeeze=False)
    for axis in axes.ravel()[len(cells) :]:
        axis.set_axis_off()
    names = list(dict.fromkeys(n for c in cells.values() for n in c["variants"] if n != DENSE))
    for axis, c in zip(axes.ravel(), cells.values(), strict=False):
        curves: dict[str, list[tuple[float, float]]] = {}
        for i, name in enumerate(names):
            row = c["variants"].get(name)
            if row is None:
                continue
            x, y = row["share"]["total"]["value"], 100 * row["vs_dense"]["value"]
            if row["trivial"]:
                family = (
                    "smaller images" if name.startswith(RESOLUTION) else f"random groups {name.split('group=')[-1]}"
                )
                curves.setdefault(family, [(1.0, 0.0)]).append((x, y))
                continue
            low, high = (100 * row["vs_dense"][k] for k in ("low", "high"))
            marker = "os^Dv<>pPX*"[i % 11]
            axis.errorbar(
                x, y, [[y - low], [high - y]], fmt=marker, color=f"C{i % 10}", ms=7, alpha=0.9, elinewidth=1, label=name
            )
        for style, (family, points) in zip(("--", "-.", ":"), sorted(curves.items(), reverse=True), strict=False):
            axis.plot(*zip(*sorted(points), strict=True), f"k{style}", lw=1.2, marker=".", label=f"{family} (trivial)")
        (images, _, _), (width, height) = c["cell"], c["image"]
        axis.set(title=f"{images} images of {width}x{height}, {c['windows']} windows", xlabel="CPU time of a pass / dense",
                 ylabel="AbsRel more than dense, %")  # fmt: skip
        axis.axhline(0, color="0.6", lw=0.8)
        axis.grid(alpha=0.3)
    handles: dict[str, Any] = {}
    for axis in axes.ravel()[: len(cells)]:
        handles.update(dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True)))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, fontsize=9)
    figure.savefig(path, format="png", dpi=80)
    plt.close(figure)


def chosen(cells: Sequence[Cell], wanted: Sequence[str], windows: int) -> list[Cell]:
    """Those of --cell, each with its number of windows or --windows. Raises ValueError."""
    known = {c.name: c for c in cells}
    out = []
    for text in wanted or known:
        images, _, side = text.partition(":")
        cell = known.get(text) or Cell(int(images), int(side), LEAST)
        out.append(cell._replace(windows=windows or cell.windows))
    return out


def main(words: list[str] | None = None) -> int:
    parser = kept.arguments(__doc__, "frontier_sizes")
    parser.add_argument(
        "--cell", action="append", default=[], metavar="IMAGES:SIDE", help="may be repeated (default: all)"
    )
    parser.add_argument("--long", action="store_true", help="subscene and regime against their own baselines")
    parser.add_argument(
        "--windows", type=int, default=0, help="of each cell (default: as many as the table in the program says)"
    )
    args = parser.parse_args(words)
    own = {name: list(baselines) for name, baselines in OWN.items()} if args.long else {}
    wanted = [*own, *(b for each in own.values() for b in each)] if args.long else list(REDUCERS)
    wanted = list(
        dict.fromkeys([*wanted, *(("random:ratio=0.5,group=2x2", "random:ratio=0.75,group=2x2") if args.long else ())])
    )
    cells = chosen(LONG if args.long else CELLS, args.cell, args.windows)
    found: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    commits: set[str] = set()
    with progress.bar(total=sum(c.windows for c in cells), desc="windows", unit="window") as bar:
        for cell in cells:
            config = kept.configured(args.weights, **{"input.max_side": cell.side})
            by_text, left = kept.variants(_backbone(config), config, wanted, SHRUNK)
            variants, left_out = list(by_text.values()), left_out | left

            def store(needs: tuple[str, ...], names: list[str], cell: Cell = cell) -> kept.Kept:
                return kept.Kept(args.out, f"rooms_{cell.images}_{cell.side}", args.weights, names, needs)

            rows, at = measured(cell, by_text, store, bar)
            commits |= at
            names = {text: v.name for text, v in by_text.items()}
            found[cell.name] = {
                "cell": list(cell), "image": list(size_of(variants[0].backbone, variants[0].config)), "windows": len(rows),
                "variants": compared(rows, variants),
                **({"own": own_of(rows, {names[n]: [names[b] for b in some] for n, some in own.items()})} if own else {}),
            }  # fmt: skip
    about = kept.described(__doc__, "Windows and variants", "Windows are kept")
    if args.long:
        name, text, picture = "long_windows", long_text(found, about, commits), None
    else:
        name, text, picture = "frontier_sizes", text_of(found, about, left_out, commits), lambda path: draw(path, found)
    return kept.finish(name, args, {"cells": found, "left_out": left_out}, text, picture)


if __name__ == "__main__":
    sys.exit(main())
