"""Instantiate the published VGGT-1B size with random weights and run two frames: keys, parameters, time, memory.

python test/benchmark/vggt_1b.py [--side 518] -> test/benchmark/results/vggt_1b_<device>.json
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from pathlib import Path

import numpy as np
import torch

from come_ros.accelerators import NoAccelerator
from come_ros.backbones.base import TorchBackbone
from come_ros.backbones.vggt import VARIANTS, VGGT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=518)
    parser.add_argument("--frames", type=int, default=2)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()

    torch.manual_seed(0)
    started = time.perf_counter()
    with torch.device("meta"):
        model = VGGT(VARIANTS["1b"])
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.02, 0.02)
    built = time.perf_counter() - started
    backbone = TorchBackbone("vggt", model, NoAccelerator(), device=args.device, weights="random")
    images = np.random.default_rng(0).integers(0, 256, (args.frames, args.side, args.side, 3), np.uint8)
    started = time.perf_counter()
    prediction = backbone.predict(images)
    seconds = time.perf_counter() - started
    assert prediction.depth.shape == images.shape[:3] and np.isfinite(prediction.depth).all()

    result = {
        "keys": len(model.state_dict()),
        "parameters": sum(p.numel() for p in model.parameters()),
        "frames": args.frames,
        "side": args.side,
        "build_s": round(built, 2),
        "forward_s": round(seconds, 2),
        "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "device": backbone.description,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
    }
    print(json.dumps(result, indent=2))
    path = Path(__file__).parent / "results" / f"vggt_1b_{backbone.device.split(':')[0]}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
