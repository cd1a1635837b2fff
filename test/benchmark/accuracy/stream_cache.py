"""What a causal cache may give up: memory, time per frame, and how far the outputs drift from those of the whole cache.

The bundled model runs as a stream without having been trained for it: each frame reads the keys of the first frames and of the local
window, all whole (dense), or reduced as they age, or merged by Co-Me when they enter. Two rooms of the test split, 300 frames each. Next to
them the trivial baselines: random groups, and a local window that is simply shorter. Truth is the room's exact depth, scaled per frame.

python test/benchmark/accuracy/stream_cache.py [--frames 300] [--rooms 2] -> results/stream_cache.{json,md}
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmark.stamped import BUNDLED, write_result
from models import bundled_as_stream, bundled_size
from tqdm import tqdm

from come_ros.accelerators import NoAccelerator, make_accelerator
from come_ros.backbones.checkpoint import bundled_weights, load_vggt
from come_ros.backbones.stream import Step
from come_ros.backbones.torch_backbone import TorchBackbone
from come_ros.config import Config
from come_ros.config_groups import StreamParameters
from come_ros.datasets.rooms.rooms import render_sequence
from come_ros.datasets.rooms.splits import SPLIT_SEEDS
from come_ros.geometry import rotation_angle

WIDTH, HEIGHT = bundled_size(640, 480)
SCALE_FRAMES, WINDOW, WHOLE = 4, 32, 4
ENTER = ("come", "random")


def settings():
    """Name -> (accelerator or None, stream parameters)."""
    out = {"dense": (None, {})}
    out |= {f"shorter window, {n}": (None, {"window": n}) for n in (18, 10)}
    for way in ("groups", "random", "repeats", "evict"):
        for ratio in (0.5, 0.75):
            out[f"{way}, {ratio:g}"] = (None, {"reduce": way, "reduce_ratio": ratio})
    for name in ENTER:
        out[f"{name} on entry, 0.5"] = (name, {})
    out["come on entry, 0.5, then repeats, 0.5"] = ("come", {"reduce": "repeats", "reduce_ratio": 0.5})
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--rooms", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    path = bundled_weights()
    vggt = load_vggt(path)
    model = bundled_as_stream()
    rooms = [
        render_sequence(seed, args.frames, WIDTH, HEIGHT, rate_hz=5.0, threads=2)
        for seed in SPLIT_SEEDS["test"][: args.rooms]
    ]
    windowed = TorchBackbone("vggt", vggt, NoAccelerator(), device="cpu", weights=path)
    runs = settings()
    rows, dense = [], []
    with tqdm(total=len(runs) * len(rooms), unit="run") as bar:
        for name, (accelerator, parameters) in runs.items():
            stream = StreamParameters(**{"window": WINDOW, "whole": WHOLE, "group": "2x2", "most": 1000, **parameters})
            made = NoAccelerator()
            if accelerator:
                config = Config.from_flat({"accelerator.name": accelerator, "accelerator.group": "2x2"})
                made = make_accelerator(config, model.shape, path)
            backbone = TorchBackbone("lingbot", model, made, device="cpu", stream=stream)
            of_rooms = []
            for i, room in enumerate(rooms):
                run = run_stream(backbone, room.images)
                if name == "dense":
                    dense.append(run)
                of_rooms.append(compared(run, dense[i], room))
                bar.update()
            rows.append({"name": name, **{k: float(np.mean([r[k] for r in of_rooms])) for k in of_rooms[0]}})
            tqdm.write(str(rows[-1]))
    by_window = [windows_of_four(windowed, room) for room in rooms]
    result = {
        "frames": args.frames, "rooms": [room.seed for room in rooms], "image": [WIDTH, HEIGHT], "scale_frames": SCALE_FRAMES,
        "window": WINDOW, "whole": WHOLE, "absrel_windows_of_four": float(np.mean(by_window)),
        "absrel_constant": float(np.mean([constant(room) for room in rooms])), "load_before": round(load, 1),
        "load_after": round(os.getloadavg()[0], 1), "rows": rows,
    }  # fmt: skip
    write_result(Path(__file__).with_name("results"), "stream_cache", result, table(result), weights=BUNDLED)


def run_stream(backbone, images):
    """Depth, poses, MiB and CPU time of every frame."""
    cache, out = backbone.new_cache(), {"depth": [], "pose": [], "mib": [], "ms": []}
    for end in range(SCALE_FRAMES, len(images) + 1):
        shown = list(range(max(0, end - SCALE_FRAMES), end))
        names = tuple((i, "") for i in shown)
        begun = time.process_time()
        p = backbone.predict(images[shown], step=Step(names, cache))
        out["ms"].append(1e3 * (time.process_time() - begun))
        out["mib"].append(cache.mib)
        out["depth"] += list(p.depth)
        out["pose"] += list(p.window_from_camera[-len(p.depth) :])
    return out


def compared(run, dense, room):
    """Against the run with the whole cache, and against the truth."""
    depth, other = np.stack(run["depth"]), np.stack(dense["depth"])
    pose, pose_other = np.stack(run["pose"]), np.stack(dense["pose"])
    off = np.median(np.abs(depth / other - 1), axis=(1, 2))
    turned = np.rad2deg(rotation_angle(np.swapaxes(pose_other[:, :3, :3], 1, 2) @ pose[:, :3, :3]))
    far = np.linalg.norm(pose[:, :3, 3] - pose_other[:, :3, 3], axis=1) / np.median(other)
    last = slice(-100, None)
    return {
        "mib": run["mib"][-1], "ms": float(np.median(run["ms"][last])), "depth": float(off.mean()), "depth_last": float(off[last].mean()),
        "rotation": float(turned.mean()), "rotation_last": float(turned[last].mean()), "position": float(far.mean()),
        "position_last": float(far[last].mean()), "absrel": absrel(depth, room), "absrel_last": absrel(depth[last], room, last),
    }  # fmt: skip


def absrel(depth, room, part=slice(None)):
    true = room.depth[part]
    scale = np.median(true, axis=(1, 2)) / np.median(depth, axis=(1, 2))
    return float(np.mean(np.abs(scale[:, None, None] * depth / true - 1)))


def windows_of_four(backbone, room):
    """AbsRel of the newest frame of windows of four, every tenth: what the bundled model was trained for."""
    ends = range(SCALE_FRAMES, len(room.images), 10)
    depth = np.stack([backbone.predict(room.images[end - SCALE_FRAMES : end]).depth[-1] for end in ends])
    true = room.depth[[end - 1 for end in ends]]
    scale = np.median(true, axis=(1, 2)) / np.median(depth, axis=(1, 2))
    return float(np.mean(np.abs(scale[:, None, None] * depth / true - 1)))


def constant(room):
    """AbsRel of a constant depth, at its best for each frame by the median."""
    return float(np.mean(np.abs(np.median(room.depth, axis=(1, 2))[:, None, None] / room.depth - 1)))


def table(r):
    lines = [
        f"The bundled model run as a stream, untrained for it: {len(r['rooms'])} rooms of the test split, {r['frames']} frames of "
        f"{r['image'][0]}x{r['image'][1]} px at 5 Hz, {r['scale_frames']} scale frames, a local window of {r['window']} keyframes of "
        f"which the newest {r['whole']} stay whole, groups of 2x2; one thread, CPU time; load {r['load_before']} before and "
        f"{r['load_after']} after.", "",
        "Drift is the difference to the whole cache (dense): depth by the median over pixels, rotation in degrees, position in units of "
        "the median depth; each the mean over all frames, and over the last 100. AbsRel is against the truth, scaled per frame: a "
        f"constant depth has {r['absrel_constant']:.3f}, the same model in the windows of four that it was trained for "
        f"{r['absrel_windows_of_four']:.3f}.", "",
        "| cache | MiB at the end | ms per frame | depth drift (last 100) | rotation drift | position drift | AbsRel (last 100) |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {x['name']} | {x['mib']:.1f} | {x['ms']:.0f} | {x['depth']:.3f} ({x['depth_last']:.3f}) | {x['rotation']:.2f} "
        f"({x['rotation_last']:.2f}) | {x['position']:.3f} ({x['position_last']:.3f}) | {x['absrel']:.3f} ({x['absrel_last']:.3f}) |"
        for x in r["rows"]
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
