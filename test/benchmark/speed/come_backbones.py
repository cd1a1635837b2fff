"""Co-Me against dense on every backbone, at a size that a CPU runs: patches kept, time, and how far depth is from the dense model's as
less is merged. Random weights and a random predictor: what they say of time holds, accuracy they cannot tell.

python test/benchmark/speed/come_backbones.py [--frames 8] [--repeats 5] -> results/come_backbones.{json,md}
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
from benchmark.stamped import write_result
from models import tiny

from come_ros.accelerators import CoMe, NoAccelerator
from come_ros.accelerators.confidence import ConfidencePredictor, default_block
from come_ros.backbones.checkpoint import MODELS
from come_ros.backbones.torch_backbone import TorchBackbone

WIDTH, HEADS, ENCODER, TRUNK = 192, 3, 8, 16  # blocks
COMMON = {"image_side": 252, "native_side": 252, "dim": WIDTH}
SIZES = {
    "vggt": {
        "encoder_depth": ENCODER, "encoder_heads": HEADS, "depth": TRUNK // 2, "heads": HEADS, "taps": (1, 3, 5, 7),
        "camera_heads": HEADS, "features": 64, "channels": (48, 96, 192, 192),
    },
    "lingbot": {  # the frames with which a stream begins
        "encoder_depth": ENCODER, "encoder_heads": HEADS, "depth": TRUNK // 2, "heads": HEADS, "taps": (1, 3, 5, 7),
        "camera_heads": HEADS, "features": 64, "channels": (48, 96, 192, 192), "rope_split": (20, 22, 22),
    },
    "mapanything": {
        "encoder_depth": ENCODER, "encoder_heads": HEADS, "trunk_dim": WIDTH, "depth": TRUNK, "heads": HEADS, "taps": (5, 9),
        "features": 64, "channels": (48, 96, 192, 192),
    },
    "pi3": {
        "encoder_depth": ENCODER, "encoder_heads": HEADS, "depth": TRUNK, "heads": HEADS, "head_dim": WIDTH,
        "head_heads": HEADS, "head_depth": 2, "map_out": WIDTH, "camera_out": 96,
    },
    "da3": {
        "depth": ENCODER + TRUNK, "alternate": ENCODER, "heads": HEADS, "taps": (1, 3, 5, 7), "features": 64,
        "channels": (48, 96, 192, 192),
    },
}  # fmt: skip
RATIOS = (0.9, 0.5, 0.25, 0.1, 0.05, 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    images = np.random.default_rng(0).integers(0, 256, (args.frames, 168, 252, 3), np.uint8)  # 12 x 18 patches
    rows = []
    load = os.getloadavg()[0]
    for name in sorted(MODELS):
        model = tiny(name, std=0.08, **COMMON, **SIZES[name])
        block = default_block(len(model.encoder_blocks()))
        predictor = ConfidencePredictor(WIDTH, 64).eval().requires_grad_(False)
        dense = TorchBackbone(name, model, NoAccelerator(), device="cpu")
        merging = {ratio: dense.accelerated(CoMe(predictor, block, ratio=ratio)) for ratio in RATIOS}
        reference = dense.predict(images)  # also warms up
        for ratio, backbone in merging.items():
            got = backbone.predict(images)
            times = {True: [], False: []}
            for _ in range(args.repeats):
                for is_dense, b in ((True, dense), (False, backbone)):  # in turn: the machine may be busy
                    start = time.perf_counter()
                    b.predict(images)
                    times[is_dense].append(time.perf_counter() - start)
            share = np.median(np.array(times[False]) / np.array(times[True]))
            error = np.abs(np.log(got.depth / reference.depth))[(got.depth > 0) & (reference.depth > 0)]
            rows.append(
                {
                    "backbone": name, "ratio": ratio, "kept": round(got.kept_ratio, 4), "time_ratio": round(float(share), 3),
                    "dense_ms": round(1e3 * float(np.median(times[True])), 1), "log_depth_error": float(error.mean()),
                }
            )  # fmt: skip
            print(rows[-1])
    result = {
        "frames": args.frames, "image": [252, 168], "width": WIDTH, "blocks": [ENCODER, TRUNK], "threads": torch.get_num_threads(),
        "load_before": round(load, 1), "load_after": round(os.getloadavg()[0], 1), "rows": rows,
    }  # fmt: skip
    write_result(Path(__file__).with_name("results"), "come_backbones", result, table(result))


def table(result: dict) -> str:
    lines = [
        f"Co-Me, 3x3, on every backbone at width {WIDTH}, {ENCODER} encoder and {TRUNK} trunk blocks; {result['frames']} frames of "
        f"{result['image'][0]}x{result['image'][1]} px, random weights, {result['threads']} threads, load "
        f"{result['load_before']} before and {result['load_after']} after.",
        *(["", "**The machine was busy: times are noise.**"] if result["load_after"] > 1.5 * result["threads"] else []),
        "",
        "| backbone | merged share | patches kept | time / dense | dense ms | mean abs. log depth ratio to dense |",
        "|---|---|---|---|---|---|",
    ]
    for r in result["rows"]:
        lines.append(
            f"| {r['backbone']} | {r['ratio']:g} | {r['kept']:.1%} | {r['time_ratio']:.2f} | {r['dense_ms']:.0f} "
            f"| {r['log_depth_error']:.2g} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
