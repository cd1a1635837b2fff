"""Short runs that choose what the long run of `tiny2` does: each arm differs from the first in one thing.

All but one begin with one model, whose encoder has just learnt to imitate the earlier one's, and a new optimiser. Images are small, so that
short runs tell something: 160x112 px in place of 256x192. The rates fall to zero within each arm, since the noise of constant rates is
larger than most differences. Scores are those of the moving average on validation windows. Arms that are in OUTPUT/study.json are not run
again. Writes tiny2_study.json and .md into results/ when all of them are there.

examples:
  python test/benchmark/accuracy/tiny2_study.py --start vggt_tiny.safetensors --material DIR --watch tum_fr3_cabinet -o out/tiny2_study
  python test/benchmark/accuracy/tiny2_study.py ... --arm "as planned"      only that arm
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmark.stamped import TINY, shared, write_result

from come_ros.backbones.checkpoint import bundled_weights, load_vggt
from come_ros.backbones.vggt import VARIANTS
from come_ros.datasets.material import Material, load_material
from come_ros.tools.train import recorded_windows
from come_ros.training.judge import Judge
from come_ros.training.long_run import Plan, new_state, restore, state_from, train
from come_ros.training.parallax import Mix

RESULTS = Path(__file__).parent / "results"
SIZE = (160, 112)
MIX = Mix(pool=16, reuse=3.0, sizes={SIZE: 1.0})
STEPS = 80  # of an arm
IMITATE = 150  # steps
PLAN = Plan(steps=STEPS, imitate=0, warm_up=15, cool_down=0.6, average=0.9, validate=10**9, mix=MIX)
FIRST = "as planned"


@dataclasses.dataclass(frozen=True)
class Arm:
    """warm: begins with the earlier model's trunk and heads, after the imitation. iterations: of the camera head; 0: as many as it has."""

    plan: Plan = PLAN
    warm: bool = True
    material: bool = True
    iterations: int = 0
    seed: int = 0


def mixed(**changes: Any) -> Plan:
    return dataclasses.replace(PLAN, mix=dataclasses.replace(MIX, **changes))


def weighed(short: float = PLAN.short, **factors: float) -> Plan:
    weights = {name: weight * factors.get(name, 1.0) for name, weight in PLAN.weights.items()}
    return dataclasses.replace(PLAN, short=short, weights=weights)


ARMS = {
    FIRST: Arm(),
    "as planned, other windows": Arm(seed=1),
    "as planned, other windows again": Arm(seed=2),
    "trunk and heads from nothing": Arm(warm=False),
    "no material": Arm(material=False),
    "no least parallax": Arm(mixed(least_parallax=0.0)),
    "windows of 2 to 4 frames": Arm(mixed(lengths={2: 0.3, 3: 0.3, 4: 0.4})),
    "half of the windows of 8 and 16 frames": Arm(mixed(lengths={2: 0.2, 4: 0.3, 8: 0.3, 16: 0.2})),
    "translation by relative distance only": Arm(weighed(short=0.05, direction=0, length=0)),
    "translation weighs three times as much": Arm(weighed(direction=3, length=3, distance=3)),
    "camera head: one iteration": Arm(iterations=1),
    "twice the rates": Arm(
        dataclasses.replace(PLAN, rate=2 * PLAN.rate, trunk_rate=2 * PLAN.trunk_rate, stem_rate=2 * PLAN.stem_rate)
    ),
}


def imitating(start: str, material: Material, folder: Path) -> str:
    """The checkpoint that all warm arms begin with: made, unless it is there and complete."""
    path = folder / "last.pt"
    if not path.exists() or restore(str(path)).step < IMITATE:
        folder.mkdir(parents=True, exist_ok=True)
        earlier = load_vggt(start).eval().requires_grad_(False)
        plan = dataclasses.replace(PLAN, steps=IMITATE, imitate=IMITATE)
        train(new_state("tiny2", 0, plan, earlier), material, str(folder), earlier, lambda model: {"figure": 0.0})
    return str(path)


def run(arm: Arm, folder: Path, begin: str, material: Material, judge: Judge) -> dict[str, Any]:
    """Trains an arm, and scores it."""
    folder.mkdir(exist_ok=True)
    if arm.warm:
        state = state_from("tiny2", arm.seed, arm.plan, restore(begin).model)
    else:
        state = new_state("tiny2", arm.seed, arm.plan, None)
    for model in (state.model, state.average.model):
        model.camera_head.iterations = arm.iterations or model.camera_head.iterations
    seen = material if arm.material else Material()
    train(state, seen, str(folder), None, lambda model: {"figure": 0.0})
    about = {"steps": state.step, "frames": state.frames, "seconds": round(state.seconds)}
    return {**about, **judge(state.average.model), "without average": judge(state.model)}


FIGURES = {"delta": 3, "abs_rel": 3, "rotation_deg": 2, "direction_deg": 1, "length_ratio": 2, "spearman": 2}


def table(rows: Mapping[str, Mapping[str, Any]], sources: list[str]) -> str:
    """Arms and baselines, with the scores of each source."""
    wanted = [(source, figure) for source in sources for figure in FIGURES]
    wanted = [(s, f) for s, f in wanted if any(r.get(s, {}).get(f) == r.get(s, {}).get(f, 0) for r in rows.values())]
    heads = [f"{source}: {figure}" if figure == "delta" else figure for source, figure in wanted]
    lines = [f"| | frames | {' | '.join(heads)} |", "|" + "---|" * (len(heads) + 2)]
    for name, row in rows.items():
        cells = [_cell(row.get(source, {}).get(figure), FIGURES[figure]) for source, figure in wanted]
        lines.append(f"| {name} | {row.get('frames', '')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: float | None, digits: int) -> str:
    return "" if value is None or value != value else f"{value:.{digits}f}"


def report(rows: Mapping[str, Mapping[str, Any]]) -> str:
    trivial = rows["trivial baselines"]
    sources = [name for name in trivial if isinstance(trivial[name], dict)]
    trained = {name: row for name, row in rows.items() if name != "trivial baselines"}
    without = {FIRST + ", last step": {"frames": rows[FIRST]["frames"], **rows[FIRST]["without average"]}}
    apart = "\n".join(
        f"- {source}: "
        + ", ".join(
            f"{name} {value:.3f}" for name, value in trivial[source].items() if name != "windows" and value == value
        )
        for source in sources
    )
    windows = ", ".join(f"{trivial[source]['windows']} of {source}" for source in sources)
    return "\n".join(
        [
            "# What the long run of tiny2 does: short runs",
            "",
            f"{STEPS} steps each, images of {SIZE[0]}x{SIZE[1]} px, rates that fall to zero. Windows of 4 frames: {windows}. The rows with "
            "other windows differ from the first only in the windows that they see: differences as large as theirs mean nothing.",
            "",
            table(trained | without, sources),
            "",
            "Trivial baselines:",
            "",
            apart,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--start", metavar="FILE", required=True, help="weights of the earlier model, which is imitated"
    )
    parser.add_argument("--material", metavar="DIR", required=True)
    parser.add_argument(
        "--watch",
        action="append",
        default=[],
        metavar="DIR",
        help="recording to score on, a path or a name in the shared data",
    )
    parser.add_argument("--windows", type=int, default=24, help="of each source (default %(default)s)")
    parser.add_argument("--arm", action="append", choices=list(ARMS), help="(default: all)")
    parser.add_argument("-o", "--output", required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    out = Path(options.output)
    out.mkdir(parents=True, exist_ok=True)
    kept = out / "study.json"
    rows: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    watched = [name if Path(name).exists() else str(shared() / "data" / "real" / name) for name in options.watch]

    def judge_at(side: int, patch: int) -> Judge:
        recordings = recorded_windows(watched, options.windows, side, patch)
        return Judge.of("validation", options.windows, recordings, side, patch)

    judge = judge_at(SIZE[0], VARIANTS["tiny2"].patch)
    material = load_material(options.material)
    begin = imitating(options.start, material, out / "imitated")
    if not rows:
        rows["trivial baselines"] = judge.baselines()
        for name, model in {
            "tiny, which it begins with": load_vggt(options.start).eval(),
            "tiny2 that ships": load_vggt(bundled_weights()).eval(),
        }.items():
            rows[name] = judge_at(model.native_side, model.patch)(model)
        rows["as all but one begin"] = judge(restore(begin).model)
    for name in options.arm or ARMS:
        if name not in rows:
            rows[name] = run(ARMS[name], out / "arm", begin, material, judge)
            print(name, json.dumps(rows[name]), flush=True)
            kept.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    if all(name in rows for name in ARMS):
        write_result(RESULTS, "tiny2_study", rows, report(rows), weights=TINY)


if __name__ == "__main__":
    main()
