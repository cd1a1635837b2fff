"""Short runs that choose what the long run of `tiny2` does: each arm differs from the first in one thing, and has the same CPU time.

All but one begin with the model of a checkpoint whose encoder has learnt to imitate the earlier one's, and a new optimiser.

examples:
  python test/benchmark/accuracy/tiny2_study.py --begin out/tiny2/last.pt --material DIR --watch tum_fr3_cabinet -o out/tiny2_study
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import torch

from come_ros.backbones.checkpoint import bundled_weights
from come_ros.datasets.material import Material, load_material
from come_ros.tools.train import recorded_windows
from come_ros.training import motion_losses
from come_ros.training.judge import Judge
from come_ros.training.long_run import Plan, earlier_model, new_state, restore, train
from come_ros.training.parallax import Mix

SMALL_POOL = Mix(pool=40)
PLAN = Plan(steps=100_000, imitate=0, warm_up=30, average=0.98, validate=10**9, mix=SMALL_POOL)
# name -> (plan, whether it begins with the earlier model's trunk and heads, module constants)
ARMS = {
    "as planned": (PLAN, True, {}),
    "trunk from nothing": (PLAN, False, {}),
    "translation relative, floor 0.05": (PLAN, True, {"SHORT": 0.05, "DIRECTION_WEIGHT": 0.0, "LENGTH_WEIGHT": 0.0}),
    "no panoramas": (dataclasses.replace(PLAN, mix=dataclasses.replace(SMALL_POOL, panoramas=0.0)), True, {}),
    "no material": (PLAN, True, {"material": None}),
    "twice the rates": (
        dataclasses.replace(PLAN, rate=2 * PLAN.rate, trunk_rate=2 * PLAN.trunk_rate, stem_rate=2 * PLAN.stem_rate),
        True,
        {},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--begin", metavar="FILE", required=True, help="checkpoint (last.pt) whose imitation is done")
    parser.add_argument("--material", metavar="DIR")
    parser.add_argument("--minutes", type=float, default=6.0, help="CPU time of each arm (default %(default)s)")
    parser.add_argument(
        "--watch", action="append", default=[], metavar="DIR", help="recording to score on; may be repeated"
    )
    parser.add_argument("--windows", type=int, default=12, help="of each source (default %(default)s)")
    parser.add_argument("--arm", action="append", choices=list(ARMS), help="(default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    out = Path(options.output)
    out.mkdir(parents=True, exist_ok=True)
    earlier = earlier_model(bundled_weights())
    material = load_material(options.material) if options.material else Material()

    def judge_at(side: int, patch: int) -> Judge:
        recordings = recorded_windows(options.watch, options.windows, side, patch)
        return Judge.of("validation", options.windows, recordings, side, patch)

    judge, old = judge_at(256, 16), judge_at(earlier.native_side, earlier.patch)
    rows = {"baselines": judge.baselines(), "tiny as shipped": old(earlier)}
    rows["as all but one begin"] = judge(restore(options.begin).model)
    for name in options.arm or ARMS:
        plan, warm, changes = ARMS[name]
        folder = out / name.replace(" ", "_")
        folder.mkdir(exist_ok=True)
        kept = {key: getattr(motion_losses, key) for key in changes if key != "material"}
        for key in kept:
            setattr(motion_losses, key, changes[key])
        state = new_state("tiny2", options.seed, plan, earlier if warm else None)
        if warm:
            held = restore(options.begin, plan)
            state.model.load_state_dict(held.model.state_dict())
            state.average.model.load_state_dict(held.model.state_dict())
        seen = Material() if "material" in changes else material
        train(state, seen, str(folder), None, judge, until_s=60 * options.minutes)
        for key, value in kept.items():
            setattr(motion_losses, key, value)
        rows[name] = {
            "steps": state.step,
            "frames": state.frames,
            "seconds": round(state.seconds),
            **judge(state.average.model),
        }
        print(name, json.dumps(rows[name]), flush=True)
        (out / "study.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
