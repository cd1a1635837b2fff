"""A small MapAnything against a small VGGT: of one size, from one trained encoder, on the same batches for as many steps.

Both are trained at the same time, a process each, on streams of windows that are equal bit for bit, interrupted or not; the schedule
and the auxiliary losses are those of `come_ros train`. Scored on the frozen splits next to models without eyes; MapAnything also with
what it can be told.

python test/benchmark/accuracy/tiny_backbones.py -o out/tiny_backbones [--steps 400] -> results/tiny_backbones.{json,md}
An interrupted run goes on where it stood; with as many steps done as asked for, it only scores. A step of one model takes a second of
one core; for a verdict take --steps 2000 or more.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from come_ros.evaluation import rooms
from come_ros.training import tiny

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmark.stamped import TINY, write_result

from come_ros.backbones.checkpoint import bundled_weights
from come_ros.datasets.rooms.rooms import render_sequence
from come_ros.datasets.rooms.splits import SPLIT_SEEDS, TEST_RATE_HZ
from come_ros.training.recipes import recipe_for
from come_ros.training.room_windows import loader

RESULTS = Path(__file__).parent / "results"
WARM_UP_STEPS, CHUNK = 50, 200
BACKBONES = ("vggt", "mapanything")
GIVEN = {
    "images": (),
    "intrinsics": ("intrinsics",),
    "intrinsics, sparse depth": ("intrinsics", "depth"),
    "poses": ("poses",),
    "all of them": ("intrinsics", "depth", "poses"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=16, help="frames in a step")
    parser.add_argument("--side", type=int, default=112, help="longer side of the images, px")
    parser.add_argument("--seed", type=int, default=0, help="of starting values and windows")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--windows", type=int, default=64, help="of each split to score")
    parser.add_argument("--threads", type=int, default=1, help="of each of the two processes")
    parser.add_argument("--score", action="store_true", help="only score the checkpoints as they stand")
    args = parser.parse_args()
    if not args.score:
        educate(args)
    judge(args)


def educate(args: argparse.Namespace) -> None:
    processes = [multiprocessing.Process(target=teach, args=(i, args)) for i in range(len(BACKBONES))]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        sys.exit("training failed: see above")


class Run:
    """One model in training, and its checkpoint, which `come_ros train -o FOLDER` can score, export and go on with."""

    def __init__(self, backbone: str, args: argparse.Namespace) -> None:
        self.path = args.output / backbone / "last.pt"
        self.model, self.recipe = tiny.make_model(backbone, "tiny", args.side), recipe_for(backbone)
        tiny.initialise(self.model, self.recipe, args.seed)
        self.probe = tiny.make_probe(self.model)
        tiny.begin_encoder(bundled_weights(), self.model)
        self.optimiser = tiny.make_optimiser(self.model, self.probe)
        self.state: dict[str, Any] = {"backbone": backbone, "variant": "tiny", "step": 0, "frames": 0, "seconds": 0.0}
        self.state |= {"seed": args.seed, "minutes": 0.0, "resumed": [], "log": []}
        self.mean: dict[str, float] = {}
        if self.path.exists():
            saved = torch.load(self.path, weights_only=True)
            for name in ("model", "probe", "optimiser"):
                getattr(self, name).load_state_dict(saved.pop(name))
            self.state = saved
            self.state["resumed"].append(saved["step"])

    def learn(self, batch: dict[str, Any], args: argparse.Namespace) -> None:
        step, started = self.state["step"], time.process_time()
        torch.manual_seed(args.seed * 1_000_003 + step)  # the same frames for the dense heads of both
        done = step / args.steps
        rate = tiny.rate_at(args.rate, step, done, WARM_UP_STEPS)
        terms = tiny.learn(self.model, self.recipe, self.probe, self.optimiser, batch, rate, done)
        for name, value in terms.items():
            if value:
                self.mean[name] = 0.97 * self.mean.get(name, value) + 0.03 * value
        self.state["step"] += 1
        self.state["frames"] += batch["depth"].shape[0] * batch["depth"].shape[1]
        self.state["seconds"] += time.process_time() - started

    def save(self) -> None:
        self.state["log"].append({n: self.state[n] for n in ("step", "seconds", "frames")} | self.mean)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        parts = {name: getattr(self, name).state_dict() for name in ("model", "probe", "optimiser")}
        torch.save(self.state | parts, f"{self.path}.part")
        os.replace(f"{self.path}.part", self.path)


def teach(index: int, args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    run = Run(BACKBONES[index], args)
    first = run.state["step"]
    if first >= args.steps:
        return
    stream = windows(first, args)
    for step in tqdm(
        range(first, args.steps), desc=BACKBONES[index], initial=first, total=args.steps, position=index, unit="step"
    ):
        run.learn(next(stream), args)
        if (step + 1) % 20 == 0 or step + 1 == args.steps:
            run.save()


def windows(step: int, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The batches of the run from `step` on: a new stream every CHUNK steps, so that little must be rendered again to go on."""
    for chunk in itertools.count(step // CHUNK):
        # as wide as they come from the start: the encoder has practised
        stream = loader(args.seed + 7919 * chunk, args.side, 60.0, args.batch, [])
        yield from itertools.islice(stream, max(0, step - chunk * CHUNK), CHUNK)


def judge(args: argparse.Namespace) -> None:
    """Scores of both models as they stand; for MapAnything also with true geometry given."""
    torch.set_num_threads(args.threads)
    rows, about = [], {}
    for name in BACKBONES:
        model, state = tiny.restore(str(args.output / name / "last.pt"))
        seen = ("step", "frames", "seconds", "seed", "resumed")
        about[name] = {"parameters": sum(p.numel() for p in model.parameters())} | {key: state[key] for key in seen}
        for split in ("validation", "test"):
            for told, given in GIVEN.items():
                if model.inputs.issuperset(given):
                    rows.append({"backbone": name, "given": told} | rooms.score(model, split, args.windows, given))
                    print(rows[-1])
    result = {
        "steps": args.steps,
        "side": args.side,
        "batch": args.batch,
        "rate": args.rate,
        "models": about,
        "null": null(args),
        "rows": rows,
    }
    text = table(result)
    write_result(RESULTS, "tiny_backbones", result, text, weights=TINY)
    print(text)


def null(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Errors of who says the training rooms' typical median depth, in metres, and focal length, in image widths, of every window."""

    def measure(seeds: Iterable[int]) -> Any:
        size = {"width": args.side, "height": args.side * 3 // 4, "rate_hz": TEST_RATE_HZ}
        scenes = [render_sequence(seed, frames=4, photometric=False, **size) for seed in seeds]
        return np.log([[np.median(s.depth), s.intrinsics[0, 0] / args.side] for s in scenes])

    typical = measure(SPLIT_SEEDS["train"][-64:]).mean(axis=0)
    out = {}
    for split in ("validation", "test"):
        depth, focal = np.median(np.abs(measure(SPLIT_SEEDS[split][: args.windows]) - typical), axis=0)
        out[split] = {"scale_error": round(float(depth), 4), "focal_error": round(float(np.expm1(focal)), 4)}
    return out


def table(result: dict[str, Any]) -> str:
    models = result["models"]
    sizes = ", ".join(f"{name} {m['parameters'] / 1e6:.3f} M" for name, m in models.items())
    steps = ", ".join(f"{name} {m['step']} of {result['steps']} steps" for name, m in models.items())
    vggt = models["vggt"]
    lines = [
        f"Equal size ({sizes}), one trained encoder, the same {vggt['frames']} frames ({steps}, batch of {result['batch']}), images around "
        f"{result['side']} px; peak rate {result['rate']:g}. Depth scaled per window by the median ratio; pose, focal and scale: medians.",
        *(["", "**The run is not over: its learning rate is still high.**"] if vggt["step"] < result["steps"] else []),
        "",
        "| split | model | given | AbsRel | delta < 1.25 | rotation deg | direction deg | focal error | scale error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for split in ("validation", "test"):
        rows = [r for r in result["rows"] if r["split"] == split]
        for r in rows:
            scale = f"{np.expm1(r['scale_error']):.1%}" if "scale_error" in r else "not metric"
            lines.append(
                f"| {split} | {r['backbone']} | {r['given']} | {r['abs_rel']:.3f} | {r['delta']:.3f} | {r['rotation_deg']:.2f} "
                f"| {r['direction_deg']:.0f} | {r['focal_error']:.1%} | {scale} |"
            )
        r, typical = rows[0], result["null"][split]
        lines += [
            f"| {split} | mean depth map, no rotation | | {r['mean map abs_rel']:.3f} | {r['mean map delta']:.3f} "
            f"| {r['identity rotation_deg']:.2f} | 90 | {typical['focal_error']:.1%} | {np.expm1(typical['scale_error']):.1%} |",
            f"| {split} | constant depth | | {r['constant abs_rel']:.3f} | {r['constant delta']:.3f} | | | | |",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
