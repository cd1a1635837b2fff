"""A trace of the governor: a model of known cost and memory, a machine that gets busy, memory that gets short, in pretended time.

The loop is the node's: newest frames win, windows by the pipeline. Nothing here is measured: cost and memory are the formulas below.

    python test/benchmark/robustness/governor.py [--out FOLDER]     writes governor_trace.json and .png; about a minute
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmark.stamped import write_result
from fakes import PretendedTime, Seen, live_in_pretended_time, trajectory, truth_of

from come_ros.backbones.fake import FakeBackbone, Load
from come_ros.config import Config
from come_ros.governor import HOLD_S
from come_ros.pipeline import ReconstructionPipeline

TARGET_MS, SIDE, HZ = 200.0, 336, 4.0
FULL = Load(8, 252, SIDE, 0.3).tokens
PHASES = (  # what, s, slowness, free MiB
    ("alone", 30, 1.0, 4000.0),
    ("another process takes 5/6", 60, 6.0, 4000.0),
    ("alone again", 90, 1.0, 4000.0),
    ("memory is short", 40, 1.0, 700.0),
    ("memory is free again", 130, 1.0, 4000.0),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results"))
    options = parser.parse_args()
    seen, phases = simulate()
    result = summary(seen, phases)
    write_result(options.out, "governor_trace", result, draw=lambda path: draw(seen, phases, path))
    print(json.dumps(result, indent=2))
    return int(not result["ok"])


def simulate() -> tuple[list[Seen], list[tuple[str, float]]]:
    clock, rng, slowness = PretendedTime(), np.random.default_rng(0), [1.0]

    def cost(load: Load) -> float:
        """30 ms, and 130 ms for a full window, with the power 1.3 of the tokens; 5 % noise."""
        return (0.03 + slowness[0] * 0.13 * (load.tokens / FULL) ** 1.3) * float(np.exp(0.05 * rng.standard_normal()))

    backbone = FakeBackbone(
        cost=cost, needs=lambda load: 400 + 800 * load.tokens / FULL, free_mib=4000, sleep=clock.sleep
    )
    backbone.native_side = SIDE
    config = Config().replace(
        **{
            "accelerator.name": "come",
            "accelerator.ratio": 0.3,
            "keyframe.mode": "every",
            "latency_target_ms": TARGET_MS,
        }
    )
    pipeline = ReconstructionPipeline(config, backbone, clock)
    frames = truth_of(trajectory("curve", 200)).frames()
    seen: list[Seen] = []
    phases = []
    with tqdm(total=sum(seconds for _, seconds, *_ in PHASES), unit=" s", desc="pretended") as bar:
        for name, seconds, slow, free in PHASES:
            slowness[0], backbone.free_mib = slow, free
            phases.append((name, clock.now))
            for _ in range(seconds // 10):
                seen += live_in_pretended_time(pipeline, clock, frames, 10, HZ)
                bar.update(10)
    return seen, phases


def summary(seen: list[Seen], phases: list[tuple[str, float]]) -> dict:
    ends = [begin for _, begin in phases[1:]] + [seen[-1].when + 1]
    rows = []
    for (name, begin), end in zip(phases, ends, strict=True):
        part = [s for s in seen if begin <= s.when < end]
        late = [s.latency_s for s in part if s.when > end - 0.4 * (end - begin)]
        rows.append(
            {
                "phase": name,
                "windows": len(part),
                "refused": sum(not s.accepted for s in part),
                "settled_p95_ms": round(1e3 * float(np.percentile(late, 95)), 1),
                "effort_at_end": dict(zip(("ratio", "window", "side"), part[-1].effort, strict=True)),
            }
        )
    changes = [a.when for a, b in itertools.pairwise(seen) if a.effort != b.effort]
    busy = [c for c in changes if c < phases[3][1]]  # memory goes down at once, and is not held
    return {
        "target_ms": TARGET_MS,
        "camera_hz": HZ,
        "phases": rows,
        "changes_s": [round(c, 1) for c in changes],
        "least_between_changes_for_latency_s": round(float(np.diff(busy).min()), 2),
        "ok": all(r["settled_p95_ms"] <= TARGET_MS for r in rows) and bool(np.diff(busy).min() >= HOLD_S)
        and seen[-1].effort == (0.3, 8, SIDE),
    }  # fmt: skip


def draw(seen: list[Seen], phases: list[tuple[str, float]], path: Path) -> None:
    from come_ros.tools.report.figures import pyplot

    plt = pyplot()

    when = [s.when for s in seen]
    figure, axes = plt.subplots(4, 1, sharex=True, figsize=(10, 7), gridspec_kw={"height_ratios": [3, 1, 1, 1]})
    axes[0].plot(when, [1e3 * s.latency_s for s in seen], ".", ms=3, color="tab:blue", label="latency of each window")
    axes[0].axhline(TARGET_MS, color="tab:red", lw=1, label=f"target, {TARGET_MS:g} ms")
    axes[0].set(ylabel="latency, ms", yscale="log")
    axes[0].legend(loc="upper right")
    for axis, index, label in zip(axes[1:], range(3), ("merge ratio", "window", "side, px"), strict=True):
        axis.step(when, [s.effort[index] for s in seen], where="post", color="black")
        axis.set_ylabel(label)
        low, high = axis.get_ylim()
        axis.set_ylim(low - 0.15 * (high - low), high + 0.15 * (high - low))
    for name, begin in phases:
        for axis in axes:
            axis.axvline(begin, color="grey", lw=0.8, ls=":")
        axes[0].annotate(name, (begin + 1, 1.01), xycoords=("data", "axes fraction"), fontsize=8, rotation=12)
    axes[-1].set_xlabel("pretended time, s")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
