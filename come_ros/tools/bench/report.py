"""Tables and plot of the model's benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...files import whole_file
from .model import COLUMNS, LONG
from .split import OWN
from .subject import DENSE


def report(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    width, height = result["image"]
    lines = [
        "# The model, dense and accelerated", "",
        f"come_ros {result['come_ros']}: {result['backbone']}, {result['weights']} ({result['parameters']} parameters), "
        f"{result['precision']} on {result['device']} "
        f"({result['machine']}, {result['threads']} threads), {result['attention']}; {width}x{height} px, {result['source']}; "
        f"{result['repeats']} passes each, in turn; large matrix products reach {result['matmul_gflops']:.0f} GFLOP/s; "
        f"load {result['load_before']:.1f} before, {result['load_after']:.1f} after.",
        "",
    ]  # fmt: skip
    if result["random_weights"]:
        lines += [
            "Random weights: the choice of merged patches, and so any difference to the dense model, is meaningless.",
            "",
        ]
    lines += [
        "| frames | accelerator | kept tokens | keys read | trunk, ms (p90) | / dense | with heads, ms (p90) | / dense | memory, MB | "
        "trunk, GFLOP | of matmul | depth AbsRel to dense | rotation, deg |",
        "|---" * 13 + "|",
    ]
    parts = [
        "",
        "Median ms by part:",
        "",
        "| frames | accelerator | " + " | ".join(COLUMNS) + " |",
        "|---" * (2 + len(COLUMNS)) + "|",
    ]
    for row in result["rows"]:
        head = f"| {row['frames']} | {row['accelerator']} | "
        if row["error"]:
            lines.append(head + row["error"] + " |" * 11)
            continue
        difference = row["difference"] or {}
        cells = [
            f"{row['kept_ratio']:.0%}",
            f"{row['read_ratio']:.0%}",
            *_times(row, "trunk"),
            *_times(row, "total"),
            f"{row['memory']['added_mb']:.0f}" if row.get("memory") else "",
            f"{row['gflop_trunk']:.3g}" if "gflop_trunk" in row else "",
            f"{row['share_of_matmul']:.0%}" if "share_of_matmul" in row else "",
            f"{difference['depth_abs_rel']:.4f}" if difference else "",
            f"{difference['rot_deg']:.2f}" if difference else "",
        ]
        lines.append(head + " | ".join(cells) + " |")
        ms = row["parts_ms"]
        parts.append(head + " | ".join(f"{ms[part]:.2f}" if part in ms else "" for part in COLUMNS) + " |")
    lines += parts
    for name, reason in result["left_out"].items():
        lines += ["", f"{name} is left out: {reason}."]
    return "\n".join(lines + _own_table(result) + _scaling_table(result))


def _own_table(result: dict[str, Any]) -> list[str]:
    """Overhead of each accelerator (rows) as a share of its pass, by window length (columns)."""
    rows = {(row["accelerator"], row["frames"]): row for row in result["rows"] if not row["error"]}
    names = list(dict.fromkeys(name for name, _ in rows if name != DENSE))
    if not names:
        return []
    counts = sorted({frames for _, frames in rows})
    lines = ["", f"Own steps ({', '.join(OWN)}), share of its own pass (of the dense pass), both with heads:", ""]
    lines += ["| accelerator | " + " | ".join(f"{n} frames" for n in counts) + " |", "|---" * (1 + len(counts)) + "|"]
    for name in names:
        cells = []
        for n in counts:
            own = rows.get((name, n), {}).get("own")
            of_dense = "" if not own or own["of_dense"] is None else f" ({own['of_dense']:.1%})"
            cells.append(f"{own['of_pass']:.1%}{of_dense}" if own else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _scaling_table(result: dict[str, Any]) -> list[str]:
    """Trunk ms and peak memory by accelerator (rows) and window length (columns); and the exponents."""
    rows = {(row["accelerator"], row["frames"]): row for row in result["rows"] if not row["error"]}
    counts = sorted({frames for _, frames in rows})
    if len(counts) < 3:
        return []
    lines = ["", "Trunk, ms / MB that a pass adds (kept tokens), by frames; exponents, fitted in logarithms: over all lengths, and "
             f"over the longest {LONG}:", "",
             "| accelerator | " + " | ".join(str(n) for n in counts) + f" | exponent | {counts[-LONG:][0]} to {counts[-1]} | with heads |",
             "|---" * (4 + len(counts)) + "|"]  # fmt: skip
    for name, fit in result["scaling"].items():
        cells = []
        for n in counts:
            row = rows.get((name, n))
            memory = f" / {row['memory']['added_mb']:.0f}" if row and row.get("memory") else ""
            cells.append(f"{row['trunk_ms']['median']:.0f}{memory} ({row['kept_ratio']:.0%})" if row else "")
        fits = ["" if fit[k] is None else f"{fit[k]:.2f}" for k in ("trunk", "trunk_long", "total_long")]
        lines.append(f"| {_label(name)} | " + " | ".join(cells + fits) + " |")
    return lines


def _times(row: dict[str, Any], name: str) -> tuple[str, str]:
    ms, ratio = row[f"{name}_ms"], row[f"{name}_ratio"]
    return f"{ms['median']:.1f} ({ms['p90']:.1f})", "" if ratio is None else f"{ratio:.2f}"


def _label(accelerator: str) -> str:
    return "dense" if accelerator == DENSE else accelerator


def draw(path: Path, result: dict[str, Any]) -> None:
    """Plots latency of the trunk and of the whole pass against frames, and the parts of the longest window's. Raises OutputError."""
    from ..report.figures import pyplot

    plt = pyplot()
    from matplotlib.ticker import LogLocator, ScalarFormatter

    rows = [row for row in result["rows"] if not row["error"]]
    names = list(dict.fromkeys(row["accelerator"] for row in rows))
    many = len(names) > 4  # then the trunk only, for readability
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.8 + 0.2 * len(names)), layout="constrained")
    below = {"fontsize": 8, "loc": "upper center", "bbox_to_anchor": (0.5, -0.13)}
    for i, name in enumerate(names):
        ours = [row for row in rows if row["accelerator"] == name]
        frames = [row["frames"] for row in ours]
        power = result["scaling"].get(name, {}).get("trunk_long")
        for kind, style in (("trunk", "-"), ("total", ":"))[: 1 if many else 2]:
            median, p90 = (np.array([row[f"{kind}_ms"][k] for row in ours]) for k in ("median", "p90"))
            label = f"{_label(name)}, {'trunk' if kind == 'trunk' else 'with heads'}"
            if many:
                label = _label(name) + ("" if power is None else f" ~ frames^{power:.2f}")
            left.errorbar(
                frames, median, [0 * p90, p90 - median], fmt=f"{'os^v'[i // 10 % 4]}{style}", color="k" if name == DENSE else f"C{i}",
                label=label, capsize=3, ms=5,
            )  # fmt: skip
    left.set(xscale="log", yscale="log", xlabel="frames of a window", ylabel="ms, median; bar to p90",
             title=f"trunk; exponent over the longest {LONG}" if many else "")  # fmt: skip
    counts = sorted({row["frames"] for row in rows})
    left.set_xticks(counts, [str(n) for n in counts])
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_major_formatter(ScalarFormatter())
    left.minorticks_off()
    left.grid(alpha=0.3, which="both")
    left.legend(**below, ncols=2)

    longest = [row for row in rows if row["frames"] == max(counts, default=0)]
    labels = [_label(row["accelerator"]).replace(":", "\n").replace(",", "\n") for row in longest]
    begin = np.zeros(len(longest))
    for i, part in enumerate(COLUMNS):
        ms = np.array([row["parts_ms"].get(part, 0.0) for row in longest])
        right.barh(labels, ms, left=begin, label=part, color=plt.get_cmap("tab10")(i))
        begin += ms
    right.invert_yaxis()
    right.set(xlabel="ms, median of each part", title=f"{max(counts, default=0)} frames")
    right.legend(**below, ncols=3)
    width, height = result["image"]
    figure.suptitle(
        f"{result['backbone']}, {result['weights']}, {width}x{height} px, {result['precision']}, {result['device']}"
    )
    with whole_file(path) as stream:
        figure.savefig(stream, dpi=90, format="png")
    plt.close(figure)
