"""Does a model see poles, wires, legs and fences, and what does merging cost there? Two models side by side, each at its own image size.

  python test/benchmark/accuracy/thin.py                               the bundled model -> results/thin.json, .md, .png
  python test/benchmark/accuracy/thin.py --against OLD                 and an earlier one next to it
  python test/benchmark/accuracy/thin.py --weights FILE -o out/thin    a candidate next to the bundled model

Windows of 4 images of test rooms with thin structures in view. Around them (1/24 of the image's width) each pixel is classified as
structure or background by the nearer of the two true depths, in log depth. To shift the whole map trades recall against precision, so a
recall says something only at a precision: the tables have the largest recall at a precision of at least that of a constant depth, and at
others; precision where all is called structure is the least there can be. The mean precision over all recalls needs no choice. Merged:
p = 0.5, without and with an edge vote of weight 3, and random groups. "Recovered": the share of what merging loses that the edge vote
brings back. Counts are pooled over windows, intervals are 95 %, bootstrap over windows. Depth is scaled per window by the median.
Windows are kept in --out, so that it can be stopped and started again.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmark import kept
from benchmark.stamped import TINY_COME

from come_ros import progress
from come_ros.datasets.rooms.splits import SPLIT_SEEDS
from come_ros.datasets.rooms.thin_structures import KINDS, render_thin
from come_ros.evaluation.depth import depth_scale
from come_ros.evaluation.thin import ThinMargins, thin_margins, thin_pixels
from come_ros.evaluation.window import WindowTruth, null_predictions
from come_ros.tools.eval import _backbone
from come_ros.tools.eval.variants import DENSE
from come_ros.types import F32

IMAGES = 4
RING = 1 / 24  # of the image's width
SHIFTS = np.linspace(-2, 2, 801)
"""of the whole map, in log depth"""
CONSTANT = "constant depth"
LOSSES = {
    f"{group} groups": (f"come:ratio=0.5,group={group}", f"come:ratio=0.5,group={group},edge_weight=3") for group in ("2x2", "3x3")
}  # fmt: skip
"""merged without and with the edge vote"""
VARIANTS = (
    *(text for pair in LOSSES.values() for text in pair),
    *(f"random:ratio=0.5,group={g}" for g in ("2x2", "3x3")),
)
PRECISIONS = (0.3, 0.5)
MEAN, AS_CONSTANT, ERROR = "mean precision", "recall as precise as a constant", "AbsRel on thin pixels"
MEASURES = (MEAN, AS_CONSTANT, *(f"recall at precision {p}" for p in PRECISIONS), ERROR)
LARGER_IS_BETTER = {measure: measure != ERROR for measure in MEASURES}
WON_BACK = (MEAN, AS_CONSTANT, ERROR)
RESAMPLES = 500


# Measuring


def counted(margins: ThinMargins) -> dict[str, list[int]]:
    """How many pixels become structure with each of SHIFTS, and after all of them."""
    return {
        name: np.bincount(np.searchsorted(SHIFTS, values, side="right"), minlength=len(SHIFTS) + 1).tolist()
        for name, values in (("structure", margins.structure), ("ring", margins.ring))
    }


def row_of(depth: F32, truth: WindowTruth) -> dict[str, Any]:
    """Counts, and the sum of relative errors on thin pixels."""
    assert truth.depth is not None and truth.background is not None
    scale = depth_scale(depth, truth.depth)
    margins = thin_margins(depth, truth.depth, truth.background, scale, max(1, round(RING * truth.depth.shape[2])))
    thin = thin_pixels(truth.depth, truth.background)
    return {**counted(margins), "error": float(np.abs(depth[thin] * scale / truth.depth[thin] - 1).sum())}


def measured(weights: str, windows: int, out: Path) -> dict[str, Any]:
    """ "rows": window by window, variant -> counts; "image": [W, H]; "left_out"."""
    config = kept.configured(weights)
    backbone = _backbone(config)
    variants, left_out = kept.variants(backbone, config, VARIANTS)
    width, height = backbone.image_size(640, 480, backbone.native_side)

    def of_window(i: int) -> dict[str, Any]:
        t = render_thin(SPLIT_SEEDS["test"][i], KINDS[i % len(KINDS)], IMAGES, width, height)
        s = t.sequence
        truth = WindowTruth("thin", i, s.images, s.depth, s.world_from_camera, s.intrinsics, t.background)
        found = {name: row_of(v.predict(truth).depth, truth) for name, v in variants.items()}
        return found | {name: row_of(p.depth, truth) for name, p in null_predictions(s.images).items()}

    store = kept.Kept(out, "thin", weights, variants, ("come",))
    stem = Path(weights).stem
    rows = [store.get(str(i), lambda i=i: of_window(i)) for i in progress.bar(range(windows), desc=stem, unit="window")]
    return {"rows": rows, "image": [width, height], "left_out": left_out, "commits": sorted(store.commits)}


# Figures


@dataclasses.dataclass(frozen=True, eq=False)
class Counts:
    """Of all windows, by variant. structure, ring: (windows, shifts + 1) int64. error: (windows,)."""

    structure: dict[str, np.ndarray]
    ring: dict[str, np.ndarray]
    error: dict[str, np.ndarray]

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> Counts:
        return cls(
            *({n: np.array([row[n][what] for row in rows]) for n in rows[0]} for what in ("structure", "ring", "error"))
        )

    def curve(self, variant: str, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(recall, precision) with each of SHIFTS and with all called structure, of these windows together."""
        right, wrong = (np.cumsum(of[variant][windows].sum(axis=0)) for of in (self.structure, self.ring))
        with np.errstate(invalid="ignore", divide="ignore"):
            return right / right[-1], np.where(right + wrong > 0, right / (right + wrong), np.nan)

    def figures(self, windows: np.ndarray) -> dict[str, dict[str, float]]:
        """variant -> see MEASURES; and recall and precision as they are, without a shift."""
        at = int(np.searchsorted(SHIFTS, -1e-9))  # of no shift
        least = float(self.curve(CONSTANT, windows)[1][at])
        out = {}
        for variant in self.structure:
            recall, precision = self.curve(variant, windows)
            steps = np.diff(recall, prepend=0.0)
            known = steps > 0
            out[variant] = {
                MEAN: float((steps[known] * precision[known]).sum()),
                AS_CONSTANT: recall_at(recall, precision, least),
                **{f"recall at precision {p}": recall_at(recall, precision, p) for p in PRECISIONS},
                ERROR: float(self.error[variant][windows].sum() / self.structure[variant][windows].sum()),
                "recall": float(recall[at]), "precision": float(precision[at]), "least precision": float(precision[-1]),
            }  # fmt: skip
        return out


def recall_at(recall: np.ndarray, precision: np.ndarray, least: float) -> float:
    """The largest recall with a precision of at least `least`; 0 if there is none."""
    there = precision >= least
    return float(recall[there].max()) if there.any() else 0.0


def recovered(figures: Mapping[str, Mapping[str, float]], merged: str, voted: str, measure: str) -> float:
    """The share of the loss of `merged` that `voted` does not have; NaN if nothing is lost."""
    sign = 1 if LARGER_IS_BETTER[measure] else -1
    d, m, v = (sign * figures[name][measure] for name in (DENSE, merged, voted))
    return (v - m) / (d - m) if d > m else float("nan")


def analysed(found: Mapping[str, Any], seed: int = 0) -> dict[str, Any]:
    """All figures of one model, those of the dense model and what is recovered with intervals by the bootstrap over windows."""
    counts, n = Counts.of(found["rows"]), len(found["rows"])
    rng = np.random.default_rng(seed)
    whole = counts.figures(np.arange(n))
    samples = [counts.figures(rng.integers(n, size=n)) for _ in range(RESAMPLES)]
    pairs = {name: pair for name, pair in LOSSES.items() if set(pair) <= whole.keys()}
    return {
        "image": found["image"], "windows": n, "variants": whole, "left_out": found["left_out"],
        "dense": {m: bounds(whole[DENSE][m], [s[DENSE][m] for s in samples]) for m in MEASURES},
        "recovered": {
            name: {m: bounds(recovered(whole, *pair, m), [recovered(s, *pair, m) for s in samples]) for m in WON_BACK}
            for name, pair in pairs.items()
        },
    }  # fmt: skip


def bounds(value: float, samples: Sequence[float]) -> dict[str, float]:
    """95 %, of the samples in which the figure is defined."""
    known = [s for s in samples if np.isfinite(s)]
    low, high = np.percentile(known, [2.5, 97.5]) if known else (np.nan, np.nan)
    return {"value": value, "low": float(low), "high": float(high)}


def text_of(models: Mapping[str, Any], about: str, commits: Sequence[str]) -> str:
    lines = ["# Thin structures", "", about]
    for name, model in models.items():
        width, height = model["image"]
        lines += ["", f"## {name}, {width}x{height} px, {model['windows']} windows", ""]
        lines += [
            f"| | {' | '.join(MEASURES)} | recall, precision without a shift |",
            "|---" * (len(MEASURES) + 2) + "|",
        ]
        for variant, row in model["variants"].items():
            d = model["dense"] if variant == DENSE else {}
            cells = [f"{row[m]:.3f}" + (f" ({d[m]['low']:.3f} to {d[m]['high']:.3f})" if d else "") for m in MEASURES]
            lines.append(f"| {variant} | {' | '.join(cells)} | {row['recall']:.3f}, {row['precision']:.3f} |")
        lines += ["", f"Precision where all is called structure: {model['variants'][DENSE]['least precision']:.3f}."]
        if model["recovered"]:
            lines += ["", f"| recovered by the edge vote, by | {' | '.join(model['recovered'])} |",
                      "|---" * (len(model["recovered"]) + 1) + "|"]  # fmt: skip
            for m in WON_BACK:
                lines.append(f"| {m} | {' | '.join(share(shares[m]) for shares in model['recovered'].values())} |")
        lines += [f"\nLeft out: {text} ({reason})" for text, reason in model["left_out"].items()]
    return "\n".join([*lines, "", f"Measured at {', '.join(sorted(set(commits)))}.", ""])


def share(found: Mapping[str, float]) -> str:
    if not np.isfinite(found["value"]):
        return "nothing is lost"
    return f"{found['value']:.0%} ({found['low']:.0%} to {found['high']:.0%})"


def draw(path: Path, found: Mapping[str, Any]) -> None:
    """Precision against recall, a panel for each model."""
    from come_ros.tools.report.figures import pyplot

    plt = pyplot()
    figure, axes = plt.subplots(
        1, len(found), figsize=(6.4 * len(found), 5.4), layout="constrained", squeeze=False, sharey=True
    )
    for axis, (name, model) in zip(axes[0], found.items(), strict=True):
        counts = Counts.of(model["rows"])
        for variant in counts.structure:
            recall, precision = counts.curve(variant, np.arange(len(model["rows"])))
            trivial = variant.startswith(("random", "constant", "mean"))
            axis.plot(recall, precision, "--" if trivial else "-", lw=2.2 if variant == DENSE else 1.3, label=variant)
        axis.set(title=f"{name}, {model['image'][0]}x{model['image'][1]} px", xlabel="recall of thin pixels", ylabel="precision",
                 xlim=(0, 1), ylim=(0, 1))  # fmt: skip
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    figure.savefig(path, format="png", dpi=80)
    plt.close(figure)


def main(words: list[str] | None = None) -> int:
    parser = kept.arguments(__doc__, "thin", against=True)
    parser.add_argument("--windows", type=int, default=64, help="(default %(default)s)")
    args = parser.parse_args(words)
    found = {name: measured(path, args.windows, args.out) for name, path in kept.compared(args).items()}
    models = {name: analysed(model) for name, model in found.items()}
    about = kept.described(__doc__, "Windows of 4", "Windows are")
    text = text_of(models, about, [c for model in found.values() for c in model["commits"]])
    return kept.finish("thin", args, {"models": models}, text, lambda path: draw(path, found), TINY_COME)


if __name__ == "__main__":
    sys.exit(main())
