"""The tables and pictures of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...evaluation import depth_scale
from ...evaluation.bootstrap import LEAST
from .measure import LOWER_IS_BETTER, SORTED_BY_DIFFICULTY, Scores
from .variants import DENSE, Variant
from .whole_recordings import compared_table, whole_table

# metric -> (title, digits)
TITLES = {
    "abs_rel": ("depth AbsRel", 4), "frame_abs_rel": ("depth AbsRel, scaled frame by frame", 4),
    "rmse": ("depth RMSE", 3), "log_rmse": ("depth log-RMSE", 4), "delta": ("depth delta < 1.25", 4),
    "edge_abs_rel": ("depth AbsRel at edges", 4), "plain_abs_rel": ("depth AbsRel elsewhere", 4),
    "kept_abs_rel": ("depth AbsRel, kept pixels", 4),
    "kept_dense_abs_rel": ("  dense model on the same pixels", 4), "merged_abs_rel": ("depth AbsRel, merged pixels", 4),
    "merged_dense_abs_rel": ("  dense model on the same pixels", 4), "ssim": ("depth SSIM", 4),
    "thin_recall": ("thin structures, recall", 3), "thin_precision": ("thin structures, precision", 3),
    "thin_f1": ("thin structures, F1", 3), "thin_abs_rel": ("depth AbsRel, thin structures", 3),
    "rotation_deg": ("rotation to the first image, deg (median)", 2), "direction_deg": ("translation direction, deg (median)", 1),
    "auc5": ("pose AUC@5 deg", 3), "auc10": ("pose AUC@10 deg", 3), "auc30": ("pose AUC@30 deg", 3),
    "length_ratio": ("length of translation / true, under the depth scale (median)", 3),
    "step_error": ("translation of a step, under the depth scale", 4),
    "ate": ("ATE in a window, Sim(3)", 4), "rpe_translation": ("RPE translation, Sim(3)", 4), "rpe_rotation_deg": ("RPE rotation, deg", 2),
    "focal_error": ("focal length, relative", 4), "accuracy": ("points, accuracy", 4), "completeness": ("points, completeness", 4),
    "chamfer": ("points, Chamfer", 4), "normal_consistency": ("points, normal consistency", 3),
    "spearman": ("confidence, Spearman", 3), "ause": ("confidence, AUSE", 4), "ause_chance": ("  without confidence", 4),
    "ause_far": ("  with depth as uncertainty", 4), "scale": ("truth's units in one of the model's", 3), "kept_tokens": ("kept tokens", 3),
    "read_keys": ("keys read", 3),
    "to_dense": ("depth AbsRel to dense", 4),
}  # fmt: skip
POINTS_OF = {
    "abs_rel": "depth AbsRel", "edge_abs_rel": "AbsRel at depth edges", "rpe_rotation_deg": "rotation between images, deg",
    "step_error": "translation of a step", "chamfer": "points, Chamfer", "thin_f1": "F1 on thin structures",
}  # fmt: skip
"""metrics by which the frontier is ranked, and (except for edges) plotted"""
MEASURES = {
    "texture": "texture, grey levels per pixel", "depth_spread": "spread of log depth", "turn_deg": "rotation of the camera, deg",
    "parallax": "distance moved by the camera / median depth", "overlap": "share of the first image seen by the others",
}  # fmt: skip
DRAWN = ("abs_rel", "rpe_rotation_deg", "chamfer", "thin_f1")


def markdown(result: dict[str, Any]) -> str:
    """All tables of the result (as written to JSON): for each source a summary, then the tables, then the verdict."""
    width, height = result["image"]
    model, cut = result["model"], result["cut"]
    windows = ", ".join(f"{n} of {name}" for name, n in result["windows"].items())
    lines = ["# Evaluation", ""]
    for source, about in result["sources"].items():
        lines += [f"* {source}: {sentence}" for sentence in about["sentences"]]
    lines += [
        "",
        f"come_ros {result['come_ros']}: {model['backbone']}, {model['weights']} ({model['parameters']} parameters), "
        f"{model['precision']} on {model['device']}; windows: {windows}, of {cut['size']} images at {width}x{height} px. The model "
        f"is given {result['given']}. Depth is scaled by each window's median ratio; (..) are 95 % intervals over windows, bootstrap; "
        "lengths are in the truth's unit.",
    ]
    if result["stopped"]:
        lines += ["", f"**{result['stopped'].capitalize()}.**"]
    if result["parameters"]:
        lines += ["", "Parameters: " + ", ".join(f"{k}={v}" for k, v in result["parameters"].items()) + "."]
    for text in dict.fromkeys(result["about"].values()):
        lines += ["", text]
    for name, reason in result["left_out"].items():
        lines += ["", f"{name} is left out: {reason}."]
    if result["same"]:
        said = ", ".join(f"{name} (as {first})" for name, first in result["same"].items())
        lines += ["", f"Bit for bit the same as another in the first windows, and run once: {said}."]
    for source, about in result["sources"].items():
        lines += ["", f"## {source}", "", _evidence(result, source, about), ""]
        lines += _frontier_table(result, source) if result["frontier"] else _table(result, about)
        if about["by_difficulty"]:
            lines += ["", "### By difficulty", "", *_difficulty_table(about["by_difficulty"])]
        if about["whole"]:
            lines += ["", "### One scale for all windows", "", *_whole_table(about["whole"])]
        found = (result.get("trajectories") or {}).get(source)
        if found:
            size, overlap = result["path_window"]
            lines += [
                "",
                f"### The path of the whole recording (windows of {size}, overlap {overlap})",
                "",
                *_path_table(found),
            ]
        if whole := (result.get("whole") or {}).get(source):
            size, overlap = result["path_window"]
            lines += [
                "",
                f"### The whole recording, without and with the bundle (windows of {size}, overlap {overlap})",
                "",
            ]
            lines += whole_table(whole)
    if over_all := compared_table(result.get("compared") or {}):
        lines += [
            "",
            "## Whole recordings: loss against the dense model, without and with the bundle",
            "",
            *over_all,
        ]
    lines += ["", "## Verdict", ""]
    for source, about in result["sources"].items():
        lines += [f"* {source}: {sentence}" for sentence in about["against_baselines"]]
    return "\n".join(lines) + "\n"


def _evidence(result: dict[str, Any], source: str, about: dict[str, Any]) -> str:
    """The amount of evidence in the windows of a source."""
    n, independent, block = result["windows"][source], about["independent"], about["block"]
    text = f"{n} windows"
    if result["truth"][source] == "recorded":
        text += (
            f" of one recording: neighbours are similar, so they are resampled in blocks of  {block}, and count as {independent} "
            "independent ones. These results do not transfer to other places"
        )
    if independent < LEAST:
        text += f". With fewer than {LEAST} independent windows nothing is bold and there is no winner: such an interval is far too narrow"
    return text + "."


def _table(result: dict[str, Any], about: dict[str, Any]) -> list[str]:
    """One source: metrics in rows, variants in columns; then the differences to the dense model."""
    summary = about["summary"]
    names = list(summary)
    metrics = [m for m in TITLES if any(m in summary[n] for n in names)]
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for metric in metrics:
        title, digits = TITLES[metric]
        lines.append(f"| {title} | " + " | ".join(_cell(summary[n].get(metric), digits) for n in names) + " |")
    others = [n for n in result["variants"] if n != DENSE]
    if others:
        lines += ["", "### Against dense, paired", "", "| | " + " | ".join(others) + " |"]
        lines.append("|---" * (len(others) + 1) + "|")
        for metric in metrics:
            if metric in LOWER_IS_BETTER:
                cells = [_difference(summary[n].get(metric), TITLES[metric][1]) for n in others]
                lines.append(f"| {TITLES[metric][0].removesuffix(' (median)')} | {' | '.join(cells)} |")
        lines += [
            "",
            "Bold: the interval excludes zero, and there are enough windows. Differences are of means over windows.",
        ]
    return lines


def _frontier_table(result: dict[str, Any], source: str) -> list[str]:
    """One source: variants in rows."""
    about, timings = result["sources"][source], result["timings"]
    summary, times = about["summary"], timings.get("of", {})
    nulls = about["against_nulls"].get("abs_rel", {})
    later = timings.get("resolution_at_the_same_time", {}).get(source, {})
    shown = [m for m in ("frame_abs_rel", "delta", "edge_abs_rel", "thin_recall", "thin_precision", "thin_f1", "thin_abs_rel", "ssim",
                         "rotation_deg", "direction_deg", "length_ratio", "step_error", "auc30", "accuracy", "completeness", "chamfer")
             if m in summary[DENSE]]  # fmt: skip
    head = [
        "",
        "kept tokens",
        "keys read",
        "trunk, ms",
        "/ dense",
        "AbsRel",
        "- dense",
        "- random groups, as many tokens",
    ]
    head += ["- smaller images, as many tokens", "- smaller images, as long", *(TITLES[m][0] for m in shown)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, row in summary.items():
        cells = [name, _cell(row.get("kept_tokens"), 2, False), _cell(row.get("read_keys"), 2, False)]
        cells += [f"{times[name]['trunk_ms']:.1f}", _cell(times[name]["trunk_ratio"], 2)] if name in times else ["", ""]
        cells.append(_cell(row.get("abs_rel"), 4))
        cells.append(_difference(row.get("abs_rel"), 4))
        for null in ("random", "resolution"):
            found = nulls.get(name, {}).get(null)
            group = f" [{found['group']}]" if found and found["group"] else ""
            cells.append(_difference({"vs_dense": found}, 4) + group)
        cells.append(_difference({"vs_dense": later.get(name)}, 4))
        cells += [_cell(row.get(m), TITLES[m][1], False) for m in shown]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "Differences of AbsRel are paired, with 95 % intervals; negative is better, bold: the interval is on one side of zero, and there "
        "are windows enough. Random groups of one size, and smaller images, are a curve each, between two of whose settings is "
        "interpolated; of random groups the size in [] is the best at as many tokens, and counts. "
        + (f"Times: {timings['machine']}." if times else "Nothing was timed."),
    ]
    lines += _winner_tables(result, source)
    if about["recovered"]:
        lines += ["", "### Thin structures that the dense model sees (windows with recall >= 0.5)", "",
                  "| | windows | recall, dense | merged without the vote | with it | won back |", "|---|---|---|---|---|---|"]  # fmt: skip
        for name, r in about["recovered"].items():
            share = "nothing was lost" if r["recovered"] is None else f"{r['recovered']:.0%}"
            lines.append(
                f"| {name} | {r['windows']} | {r['dense']:.3f} | {r['merged']:.3f} | {r['refined']:.3f} | {share} |"
            )
    return lines


def _winner_tables(result: dict[str, Any], source: str) -> list[str]:
    """Winners: a table at equal time, one at equal tokens, and a sentence for each metric."""
    about, timings = result["sources"][source], result["timings"]
    if about["independent"] < LEAST:
        return ["", f"There is no ranking: {about['independent']} independent windows are fewer than {LEAST}."]
    lines = []
    for key, where in (("time", "trunk time"), ("tokens", "kept tokens")):
        lines += ["", f"### Who is best at equal {where}", ""]
        if key == "time" and source not in timings.get("winners", {}):
            why = timings.get("busy") or "nothing was timed"
            lines += [f"Not ranked by time: {why}. Run it again on an idle machine."]
            continue
        found: dict[str, list[dict[str, Any]]] = timings["winners"][source] if key == "time" else about["winners"]
        lines += [
            "| | at most, of dense | best accelerator | its share | value | - dense | best baseline | - it | ahead | best again in | "
            "level with it |",
            "|---" * 11 + "|",
        ]
        for metric, rows in found.items():
            title, digits = TITLES[metric]
            for row in rows:
                level = ", ".join(row["level"][:3]) + (
                    f" and {len(row['level']) - 3} more" if len(row["level"]) > 3 else ""
                )
                cells = [title, _at_most(row), row["best"], f"{row['cost']:.2f}", _number(row["value"], digits)]
                cells.append(_difference(row, digits))
                cells += [row["null"] or "", _difference({"vs_dense": row["vs_null"]}, digits), row["verdict"]]
                cells += [f"{row['share']:.0%} of {row['rivals']}", level]
                lines.append("| " + " | ".join(cells) + " |")
        lines += ["", *(_sentence(metric, rows, where) for metric, rows in found.items() if rows)]
    lines += [
        "",
        'Best: by the mean over windows. The winner was chosen on the same windows, so its figure is optimistic; "best again in" is the '
        "share of 2000 resamples in which it wins again. Level: not distinguishable from the best. A share of time is the "
        "upper end of its interval, so that no variant meets a limit by chance. Methods that only read fewer keys keep all tokens, and "
        "are ranked by time only.",
    ]
    return lines


def _at_most(row: dict[str, Any]) -> str:
    return f"{row['limit']:.1f}" + (f" to {row['down_to']:.1f}" if row["down_to"] < row["limit"] else "")


def _sentence(metric: str, rows: list[dict[str, Any]], where: str) -> str:
    """One sentence: which method wins where."""
    said: dict[str, list[str]] = {}
    for row in rows:
        what = {
            "accelerator": f"{row['best'].split()[0]} beats every trivial baseline",
            "baseline": f"{row['null']} (a trivial baseline) beats every accelerator",
            "undecided": f"{row['best'].split()[0]} is best, not distinguishable from {row['null']}",
        }.get(row["verdict"], f"{row['best'].split()[0]} is best, no trivial baseline is as cheap")
        said.setdefault(what, []).append(_at_most(row))
    return (
        f"* {TITLES[metric][0]}: "
        + "; ".join(f"{what} at {', '.join(at)}" for what, at in said.items())
        + f" of the dense {where}."
    )


def _difficulty_table(parts: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Thirds of the windows in rows; each variant's delta, AbsRel and rotation in columns."""
    variants = list(next(iter(parts.values()))[0]["errors"])
    lines = ["| windows sorted by | from | to | windows | " + " | ".join(variants) + " |"]
    lines.append("|---" * (len(variants) + 4) + "|")
    for measured, rows in parts.items():
        for row in rows:
            cells = [MEASURES[measured], _number(row["low"], 2), _number(row["high"], 2), str(row["windows"])]
            for errors in row["errors"].values():
                cells.append(", ".join(_number(errors.get(m), TITLES[m][1] - 1) for m in SORTED_BY_DIFFICULTY))
            lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", "Each cell: depth delta < 1.25, AbsRel, rotation to the first image in degrees."]


def _whole_table(whole: dict[str, Any]) -> list[str]:
    """One source: variant -> errors."""
    lines = ["| variant | AbsRel | delta < 1.25 | RMSE | log-RMSE |", "|---|---|---|---|---|"]
    for name, e in whole.items():
        cells = " | ".join(_number(e[k], d) for k, d in (("abs_rel", 4), ("delta", 4), ("rmse", 3), ("log_rmse", 4)))
        lines.append(f"| {name} | {cells} |")
    return lines


def _path_table(variants: dict[str, Any]) -> list[str]:
    """One source: variant -> its path, each figure with its trivial baselines."""
    head = ["variant", "poses", "ATE, Sim(3) (straight line; random walk, best 5 % of them; not moving)",
            "ATE, SE(3) under the depth scale", "length / true", "RPE translation (constant velocity)",
            "RPE rotation, deg (constant; none)"]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, found in variants.items():
        path, turn = found["trajectory"], found["rotation"]
        if path is None:
            lines.append(f"| {name} | fewer than 3 |" + " |" * 5)
            continue
        ate, rpe, rms = path["ate_rmse_m"], path["rpe_translation_rmse_m"], turn["rmse_deg"]
        lines.append(
            f"| {name} | {path['poses']} | {_number(ate['come_ros'], 3)} ({_number(ate['straight line'], 3)}; "
            f"{_number(ate['random walk'], 3)}, {_number(ate['best 5 % of random walks'], 3)}; {_number(ate['not moving'], 3)}) | "
            f"{_number(path.get('ate_depth_scale_rmse_m'), 3)} | {_number(path.get('length_ratio'), 3)} | "
            f"{_number(rpe['come_ros'], 3)} ({_number(rpe['constant velocity'], 3)}) | {_number(path['rpe_rotation_rmse_deg'], 2)} "
            f"({_number(rms['constant rotation'], 2)}; {_number(rms['no rotation'], 2)}) |"
        )
    return lines


def _cell(value: dict[str, Any] | None, digits: int, bounds: bool = True) -> str:
    if value is None or value["value"] is None:
        return ""
    text = _number(value["value"], digits)
    if not bounds or value["low"] == value["high"]:
        return text
    return f"{text} ({_number(value['low'], digits)} to {_number(value['high'], digits)})"


def _difference(value: dict[str, Any] | None, digits: int) -> str:
    d = (value or {}).get("vs_dense")
    if d is None or d["value"] is None:
        return ""
    text = f"{d['value']:+.{digits}f}"
    if d["sure"]:
        text = f"**{text}**"
    return f"{text} ({d['low']:+.{digits}f} to {d['high']:+.{digits}f})"


def _number(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"


def draw_plots(path: Path, result: dict[str, Any], scores: Scores, variants: Sequence[Variant]) -> None:
    """Plots the frontier of the first source, or sparsification and the errors of single windows. Raises OSError."""
    from ..report.figures import pyplot

    plt = pyplot()

    figure = _frontier_plot(plt, result, variants) if result["frontier"] else _window_plots(plt, scores, variants)
    width, height = result["image"]
    figure.suptitle(
        f"{result['model']['weights']}, {width}x{height} px, "
        + ", ".join(f"{n} windows of {name}" for name, n in result["windows"].items()),
        fontsize=11,
    )
    figure.savefig(path, format="png", dpi=85)
    plt.close(figure)


def _frontier_plot(plt: Any, result: dict[str, Any], variants: Sequence[Variant]) -> Any:
    """Accuracy against kept tokens, and against time, a pair of columns for each source; faint bars: 95 % of the paired difference to
    dense.

    Colours are accelerators, markers groups, open markers the edge weight or another rule; trivial baselines are grey.
    """
    sources, times = result["sources"], result["timings"].get("of", {})
    kinds = [m for m in DRAWN if any(m in about["summary"][DENSE] for about in sources.values())]
    figure, axes = plt.subplots(
        max(1, len(kinds)),
        2 * len(sources),
        figsize=(15 * len(sources), 4.4 * max(1, len(kinds))),
        layout="constrained",
        squeeze=False,
    )
    left = [v for v in variants if v.name in result["rows"] and v.family != DENSE]
    families = list(dict.fromkeys(v.family for v in left))
    names = list(dict.fromkeys(v.family.split()[0] for v in left if not v.trivial))
    for column, (source, about) in enumerate(sources.items()):
        summary = about["summary"]
        for row, metric in zip(axes, kinds, strict=False):
            if metric not in summary[DENSE]:
                continue
            base = summary[DENSE][metric]["value"]
            for axis, where in zip(row[2 * column : 2 * column + 2], ("kept_tokens", "trunk"), strict=True):
                for family in families:
                    name, *words = family.split()
                    points = sorted(
                        (
                            summary[v.name]["kept_tokens"]["value"]
                            if where == "kept_tokens"
                            else times[v.name]["trunk_ratio"]["value"],
                            *(summary[v.name][metric]["vs_dense"][k] for k in ("value", "low", "high")),
                        )
                        for v in left
                        if v.family == family
                        and (where == "kept_tokens" or v.name in times)
                        and "vs_dense" in summary[v.name].get(metric, {})
                    )
                    if not points:
                        continue
                    x, value, low, high = np.array(points, float).T
                    colour = f"C{names.index(name) % 10}" if name in names else {"random": "0.55"}.get(name, "k")
                    marker = "s" if "3x3" in words else "o"
                    other = any(w.startswith(("edge_weight", "rule")) for w in words)
                    spread = [value - low, high - value]
                    axis.errorbar(x, base + value, spread, fmt="none", ecolor=colour, alpha=0.25, lw=3)
                    axis.plot(x, base + value, marker + ("-" if name in names else "--"), ms=6, lw=1.4, color=colour,
                              label=family, mfc="w" if other else colour)  # fmt: skip
                axis.plot(1, base, "*", color="gold", mec="k", ms=16, label="dense", zorder=5)
                axis.axhline(base, color="k", lw=0.6)
                better = "lower is better" if LOWER_IS_BETTER[metric] else "higher is better"
                axis.set(ylabel=f"{POINTS_OF[metric]}, {better}",
                         xlabel="kept tokens / all (cheaper to the right)" if where == "kept_tokens" else
                         "trunk time / dense" + (" (busy machine)" if result["timings"].get("busy") else ""))  # fmt: skip
                axis.invert_xaxis()
                axis.grid(alpha=0.3)
        blind = {
            n: summary[n]["abs_rel"]["value"]
            for n in ("constant depth", "mean depth map")
            if "abs_rel" in summary.get(n, {})
        }
        off = ", ".join(f"{n} {v:.3f}" for n, v in blind.items())
        axes[0, 2 * column].set_title(f"{source}; dashed: trivial baselines; off the axis: {off}", fontsize=9)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=9)
    return figure


def _window_plots(plt: Any, scores: Scores, variants: Sequence[Variant]) -> Any:
    """Plots sparsification of the first two variants, and AbsRel of each window against the dense model and constant depth."""
    from ...evaluation.calibration import SHARES

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(16, 4.6), layout="constrained")
    for i, (name, curves) in enumerate(scores.curves.items()):
        left.plot(SHARES, np.nanmean([c for c, _ in curves], axis=0), f"C{i}-", lw=2, label=f"{name}: by confidence")
        left.plot(SHARES, np.nanmean([o for _, o in curves], axis=0), f"C{i}:", label=f"{name}: by the true error")
    left.axhline(1, color="0.5", ls="--", label="at random")
    left.set(
        title="sparsification", xlabel="share of pixels left out", ylabel="AbsRel of the rest / of all", ylim=(0, None)
    )
    left.legend(fontsize=8)
    dense = scores.values(DENSE, "abs_rel")
    others = [v.name for v in variants if v.name != DENSE]
    for i, name in enumerate(others):
        middle.plot(dense, scores.values(name, "abs_rel"), ".", color=f"C{i + 1}", label=name)
    right.plot(scores.values("constant depth", "abs_rel"), dense, ".", color="C0", label="dense")
    for axis, x, y in (
        (middle, "AbsRel, dense", "AbsRel, accelerated"),
        (right, "AbsRel, constant depth", "AbsRel, dense"),
    ):
        limit = np.nanmax([*axis.get_xlim(), *axis.get_ylim()]) if np.isfinite(dense).any() else 1.0
        axis.plot([0, limit], [0, limit], color="0.5", ls="--", lw=1)
        axis.set(
            xlabel=x,
            ylabel=y,
            xlim=(0, limit),
            ylim=(0, limit),
            title="each dot is a window; below the diagonal is better",
            aspect="equal",
        )
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    for axis in (left, middle, right):
        axis.grid(alpha=0.3)
    return figure


def draw_windows(path: Path, scores: Scores) -> None:
    """Draws one image of some windows: input, truth, dense, accelerated, and their difference. Raises OSError."""
    from ..report.figures import pyplot

    plt = pyplot()

    compared = [p.name for p in scores.pictures if p.other is not None and p.name not in scores.same]
    other = compared[0] if compared else ""
    columns = 5 if other else 3
    rows = max(1, len(scores.pictures))
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.3 * columns + 1.2, 2.65 * rows), layout="constrained", squeeze=False
    )
    for row, picture in zip(axes, scores.pictures, strict=False):
        frame = len(picture.truth.images) - 1
        real = None if picture.truth.depth is None else picture.truth.depth
        scale = 1.0 if real is None else depth_scale(picture.dense.depth, real)
        ours = scale * picture.dense.depth[frame]
        known = ours if real is None else real[frame]
        low, high = np.nanpercentile(known, [2, 98]) if np.isfinite(known).any() else (0.0, 1.0)
        colours = {"cmap": "turbo_r", "vmin": low, "vmax": high, "interpolation": "nearest"}
        row[0].imshow(picture.truth.images[frame])
        row[0].set_ylabel(f"{picture.truth.source} {picture.truth.index}", fontsize=9)
        if real is not None:
            row[1].imshow(known, **colours)
        drawn = row[2].imshow(ours, **colours)
        if other and picture.other is not None:
            theirs = (1.0 if real is None else depth_scale(picture.other.depth, real)) * picture.other.depth[frame]
            row[3].imshow(theirs, **colours)
            change = row[4].imshow(theirs / ours - 1, cmap="RdBu_r", vmin=-0.3, vmax=0.3, interpolation="nearest")
            if picture.other.merged is not None:
                row[4].contour(picture.other.merged[frame], [0.5], colors="k", linewidths=0.7)
            figure.colorbar(change, ax=row[4], pad=0.02)
        unit = "model units" if real is None else "units of the truth"
        figure.colorbar(drawn, ax=row[min(3, columns - 1)], pad=0.02, label=f"{unit}; red is near")
    for axis in axes.ravel():
        axis.set(xticks=[], yticks=[], facecolor="0.85")
    titles = ("input", "truth", DENSE, other, "accelerated / dense - 1\n(inside the lines: merged)")
    for axis, title in zip(axes[0], titles, strict=False):
        axis.set_title(title, fontsize=10)
    figure.savefig(path, format="png", dpi=80)
    plt.close(figure)
