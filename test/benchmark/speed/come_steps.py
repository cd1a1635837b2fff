"""What Co-Me's own steps cost, each alone, next to the whole pass: predictor (each scope), plan, merge and restore.

python test/benchmark/speed/come_steps.py [--frames 32 64 128] [--repeats 10] [--threads 1]
python test/benchmark/speed/come_steps.py --variant 1b --random-weights --device cuda --size 504x504
-> results/come_steps_{cpu,cuda}.json and .md

Merge and restore are all such calls of one pass, noted while it ran and made again on the same tokens. All is timed in turn, after a
warm-up. The predictors of the other scopes have random weights and the same sizes, which is all that their cost depends on.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmark.stamped import write_result

from come_ros.accelerators.confidence import SCOPES, ConfidencePredictor
from come_ros.backbones.device import DeviceClock
from come_ros.tools.bench import MODELS
from come_ros.tools.bench.subject import image_size, random_predictor, wish_of

RESULTS = Path(__file__).parent / "results"
WARM_UP = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--backbone", choices=MODELS, default="vggt")
    parser.add_argument("--variant")
    parser.add_argument("--weights", default="")
    parser.add_argument("--random-weights", action="store_true")
    parser.add_argument("--accelerator", default="come", help="with its parameters, as for come_ros bench")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--size", default=None, metavar="WxH")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    wish = wish_of(args)
    dense = wish.load()
    if wish.random:
        with tempfile.TemporaryDirectory() as folder:
            wish = dataclasses.replace(wish, predictor=random_predictor(Path(folder), dense.model))
            accelerated = wish.with_accelerator(dense, args.accelerator)
    else:
        accelerated = wish.with_accelerator(dense, args.accelerator)
    size = image_size(args.size, dense)
    result: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        **dense.description,
        "weights": os.path.basename(dense.description["weights"]),
        "threads": torch.get_num_threads(),
        "image": size,
        "accelerator": args.accelerator,
        "repeats": args.repeats,
        "load_before": os.getloadavg()[0],
        "rows": [],
    }
    name = f"come_steps_{dense.device.partition(':')[0]}"
    for frames in args.frames:
        result["rows"].append({"frames": frames, **measure(dense, accelerated, size, frames, args.repeats)})
        result["load_after"] = os.getloadavg()[0]
        write_result(RESULTS, name, result, table(result))
        print(f"{frames} frames done", flush=True)
    print(table(result))


class Noted:
    """An accelerator whose calls are noted, to be made again one by one."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        self.calls: dict[str, list[tuple[Any, ...]]] = {"plan": [], "compress": [], "restore": []}

    def __getattr__(self, name: str) -> Any:
        if name not in self.calls:
            return getattr(self._accelerator, name)

        def noted(*args: Any) -> Any:
            self.calls[name].append(args)
            return getattr(self._accelerator, name)(*args)

        return noted

    def again(self, name: str) -> None:
        for args in self.calls[name]:
            getattr(self._accelerator, name)(*args)


def measure(dense: Any, accelerated: Any, size: tuple[int, int], frames: int, repeats: int) -> dict[str, Any]:
    """Median ms of every step and of the whole passes."""
    device, dtype = torch.device(dense.device), getattr(torch, dense.description["precision"])
    x = dense.upload(np.random.default_rng(0).integers(0, 256, (frames, size[1], size[0], 3), np.uint8))
    noted = Noted(accelerated.accelerator)
    _, trunk = accelerated.accelerated(noted).run(x)
    if trunk.plan is None:
        raise SystemExit(f"{size[0]}x{size[1]} px hold no group to merge: give a larger --size")
    ((features,),) = noted.calls["plan"]
    patches = features.x[:, :, features.special :].unflatten(2, features.grid)
    predictors = {s: predictor_like(noted.predictor, s).to(device) for s in SCOPES}
    steps: dict[str, Any] = {f"predictor, {s}": functools.partial(p, patches) for s, p in predictors.items()}
    steps["plan with its predictor"] = functools.partial(noted.again, "plan")
    steps["merge"] = functools.partial(noted.again, "compress")
    steps["restore"] = functools.partial(noted.again, "restore")
    steps["dense pass"] = functools.partial(dense.run, x)
    steps["accelerated pass"] = functools.partial(accelerated.run, x)

    clock = DeviceClock(device)
    ms: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(WARM_UP + repeats):
        for name, step in steps.items():
            # the passes choose their precision themselves; the steps run as within them
            mixed = dtype != torch.float32 and not name.endswith("pass")
            with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=mixed):
                clock.synchronize()
                begin = clock.read()
                step()
                end = clock.read()
                clock.synchronize()
            if turn >= WARM_UP:
                ms[name].append(clock.between(begin, end))
    return {
        "kept_ratio": noted.kept_ratio(trunk.plan),
        "calls": {name: len(calls) for name, calls in noted.calls.items()},
        "ms": {name: float(np.median(values)) for name, values in ms.items()},
    }


def predictor_like(predictor: ConfidencePredictor, scope: str) -> ConfidencePredictor:
    """Of the same sizes, in another scope, with random weights."""
    torch.manual_seed(0)
    return ConfidencePredictor(predictor.width, predictor.dim, scope=scope, registers=predictor.registers).eval()


def table(result: dict[str, Any]) -> str:
    """Markdown: ms, and the share of the dense pass."""
    width, height = result["image"]
    names = [name for name in result["rows"][0]["ms"] if not name.endswith("pass")]
    lines = [
        "# What Co-Me's own steps cost", "",
        f"`test/benchmark/speed/come_steps.py`: {result['backbone']} {result['weights']}, {width}x{height} px, {result['precision']} on "
        f"{result['device']} ({result['machine']}, {result['threads']} threads), {result['accelerator']}, median ms of "
        f"{result['repeats']} passes and share of the dense pass; load {result['load_before']:.1f} before, "
        f"{result['load_after']:.1f} after.", "",
        f"| frames | dense pass | accelerated pass | {' | '.join(names)} | merge + restore |",
        "|---" * (4 + len(names)) + "|",
    ]  # fmt: skip
    for row in result["rows"]:
        ms = row["ms"]
        cells = [ms[name] for name in names] + [ms["merge"] + ms["restore"]]
        shares = [f"{value:.2f} ({value / ms['dense pass']:.2%})" for value in cells]
        whole = [f"{ms[f'{name} pass']:.1f}" for name in ("dense", "accelerated")]
        lines.append(f"| {row['frames']} | {' | '.join(whole + shares)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
