"""The accelerated model next to the dense one, window by window of a recording: figures and a picture."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import Cancelled
from ...evaluation import depth_scale, prediction_difference
from ...files import whole_file
from ...outputs.topics import darkened
from ...pipeline import ReconstructionPipeline
from ...self_check import MOST_PASSES, STEADY, SelfCheck, Speedups
from ...types import F32, U8
from .picture import Evenly, evenly


@dataclass(frozen=True, eq=False)
class Pair:
    """The newest frame of a window by both. image, overlay: (H, W, 3), the second dark where tokens were merged. dense, ours: (H, W)
    depth, ours scaled to dense as for the error."""

    stamp_ns: int
    image: U8
    overlay: U8
    dense: F32
    ours: F32


class Comparisons:
    """All comparisons of a run; nothing of a window is kept but its figures, and a few frames for the picture.

    seconds: what they have cost so far.
    """

    def __init__(self, pipeline: ReconstructionPipeline) -> None:
        self.seconds = 0.0
        self._check = SelfCheck(pipeline)
        self._values: dict[str, list[float]] = {}
        self._speedups = Speedups()
        self._pairs = Evenly()

    def add(self, stop: Callable[[], bool] | None = None) -> None:
        """Runs the pipeline's last window again, by both models. A stop leaves it out."""
        begun = time.perf_counter()
        try:
            if not self._values:
                self._check.compare(stop)  # the dense model has not run yet: its first pass is slow
            both = self._check.compare(stop)
        except Cancelled:
            return
        finally:
            self.seconds += time.perf_counter() - begun
        if both is None:
            return
        ours, dense = both.ours, both.dense
        found = {"speedup": both.dense_ms / both.ms, "ms": both.ms, "dense_ms": both.dense_ms}
        found |= {"kept_ratio": ours.kept_ratio, "read_ratio": ours.read_ratio, **prediction_difference(ours, dense)}
        for name, value in found.items():
            self._values.setdefault(name, []).append(value)
        self._speedups.values.append(found["speedup"])
        scale = np.float32(depth_scale(ours.depth, dense.depth))
        overlay = ours.images[-1] if ours.merged is None else darkened(ours.images[-1], ours.merged[-1])
        self._pairs.offer(Pair(both.stamps_ns[-1], ours.images[-1], overlay, dense.depth[-1], scale * ours.depth[-1]))

    def settle(self, stop: Callable[[], bool] | None = None) -> None:
        """Where the speed-ups of few windows differ too much, the last window is timed again until they do not, or often enough. A stop
        ends that."""
        begun = time.perf_counter()
        try:
            while self._speedups.values and self._speedups.unsettled(MOST_PASSES):
                both = self._check.compare(stop)
                if both is None:
                    return
                self._speedups.values.append(both.dense_ms / both.ms)
        except Cancelled:
            return
        finally:
            self.seconds += time.perf_counter() - begun

    def result(self) -> dict[str, Any]:
        """Median and p90 over windows of what does not depend on the machine. Empty if there was no window."""
        return self._of("kept_ratio", "read_ratio", "depth_abs_rel", "rot_deg", "trans_rel")

    def timings(self) -> dict[str, Any]:
        """The same of what does; the speed-up with its spread, and whether it is steady, over all passes."""
        found = self._of("speedup", "ms", "dense_ms")
        if found:
            values = self._speedups.values
            found["speedup"] = {f"p{q}": float(np.percentile(values, q)) for q in (50, 90)} | self._speedups.result()
        return found

    def _of(self, *names: str) -> dict[str, Any]:
        if not self._values:
            return {}
        both = {n: {f"p{q}": float(np.nanpercentile(self._values[n], q)) for q in (50, 90)} for n in names}
        return {"windows": len(self._values["ms"]), **both}

    def draw(self, path: Path, title: str) -> None:
        """Image, both depths, their difference and what was merged, of some windows, as PNG. Needs at least one window."""
        from .figures import pyplot

        plt = pyplot()

        start_ns = self._pairs.kept[0].stamp_ns
        pairs = [self._pairs.kept[i] for i in evenly(len(self._pairs.kept))]
        height, width = pairs[0].image.shape[:2]
        size = (15, 1.2 + len(pairs) * (0.4 + 2.5 * height / width))
        figure, axes = plt.subplots(len(pairs), 5, figsize=size, dpi=80, layout="constrained", squeeze=False)
        for row, pair in zip(axes, pairs, strict=True):
            with np.errstate(invalid="ignore", divide="ignore"):
                error = np.abs(pair.ours / pair.dense - 1)
            low, high = np.nanpercentile(pair.dense, [2, 98])
            colours = {"cmap": "turbo_r", "vmin": low, "vmax": high, "interpolation": "nearest"}
            row[0].imshow(pair.image)
            row[0].set_ylabel(f"{(pair.stamp_ns - start_ns) * 1e-9:+.1f} s")
            row[1].imshow(pair.dense, **colours)
            drawn = row[2].imshow(pair.ours, **colours)
            figure.colorbar(drawn, ax=[row[1], row[2]], pad=0.01, label="depth, model units")
            off = row[3].imshow(error, cmap="magma", vmin=0, vmax=max(1e-6, float(np.nanpercentile(error, 98))))
            figure.colorbar(off, ax=row[3], pad=0.02, label="relative")
            row[3].set_title(f"mean {np.nanmean(error):.3f}", fontsize=9)
            row[4].imshow(pair.overlay)
            if pair.overlay is pair.image:
                row[4].set_title("nothing", fontsize=9)
            for axis in row:
                axis.set(xticks=[], yticks=[])
        for axis, name in zip(axes[0], ("image", "dense", "accelerated", "difference", "dark: merged"), strict=True):
            axis.set_title(f"{name}\n{axis.get_title()}".rstrip(), fontsize=10)
        figure.suptitle(title.replace("; ", ";\n"), fontsize=11)
        with whole_file(path) as stream:
            figure.savefig(stream, format="png")
        plt.close(figure)


def comparison_text(metrics: dict[str, Any]) -> str:
    """The figures in one line."""
    found, took = metrics["compare"], metrics["timings"]["compare"]
    if not found:
        return "no window was compared"

    def both(values: dict[str, float], form: str, unit: str = "") -> str:
        return f"{values['p50']:{form}}{unit} (p90 {values['p90']:{form}})"

    speedup = took["speedup"]
    unsure = (
        ""
        if speedup["steady"]
        else f", NOT STEADY: {speedup['passes']} passes differ by {spread_text(speedup['spread'])}, more than {STEADY:.0%}: other "
        "programs use the machine, or there are too few windows; repeat it on an idle one"
    )
    return (
        f"{found['windows']} windows, accelerated against dense, medians: speed-up {both(speedup, '.2f', 'x')}{unsure}, "
        f"{100 * found['kept_ratio']['p50']:.0f} % of the tokens kept and {100 * found['read_ratio']['p50']:.0f} % of the keys read; "
        f"depth AbsRel {both(found['depth_abs_rel'], '.3f')}, rotation "
        f"{both(found['rot_deg'], '.2f', ' deg')}, translation {both(found['trans_rel'], '.3f')} of the median depth"
    )


def spread_text(spread: float) -> str:
    """For people."""
    return f"{spread:.0%}" if np.isfinite(spread) else "nobody knows how much"
