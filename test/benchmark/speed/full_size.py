"""Instantiate a published model at full size with random weights and run two frames: keys, parameters, time, memory.

python test/benchmark/speed/full_size.py mapanything [--variant v1] [--size 518x392] -> results/mapanything_v1_1_<device>.json
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmark.stamped import write_result

from come_ros.accelerators import NoAccelerator
from come_ros.backbones.checkpoint import MODELS
from come_ros.backbones.stream import Step
from come_ros.backbones.torch_backbone import TorchBackbone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone", choices=sorted(MODELS))
    parser.add_argument("--variant", default="", help="of its VARIANTS (default: the first, the published one)")
    parser.add_argument("--size", default="", help="WxH, px (default: what the model makes of 640x480)")
    parser.add_argument("--frames", type=int, default=2)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    torch.manual_seed(0)
    load = os.getloadavg()[0]
    kind = MODELS[args.backbone]
    variants = importlib.import_module(kind.__module__).VARIANTS
    variant = args.variant or next(iter(variants))
    started = time.perf_counter()
    with torch.device("meta"):
        model = kind(variants[variant])
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in (*model.parameters(), *model.buffers()):
            parameter.uniform_(-0.02, 0.02)
    built = time.perf_counter() - started
    keys = len(model.state_dict())
    parameters = sum(p.numel() for p in model.parameters())
    backbone = TorchBackbone(args.backbone, model, NoAccelerator(), device=args.device, weights="random")
    width, height = (
        (int(n) for n in args.size.split("x")) if args.size else model.image_size(640, 480, model.native_side)
    )
    images = np.random.default_rng(0).integers(0, 256, (args.frames, height, width, 3), np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    prediction = backbone.predict(images)
    seconds = time.perf_counter() - started
    assert prediction.depth.shape == images.shape[:3] and np.isfinite(prediction.depth).all()

    stream = one_more(backbone, images) if backbone.causal else {}

    result = {
        "variant": variant,
        "keys": keys,
        "parameters": parameters,
        "frames": args.frames,
        "image": [width, height],
        "build_s": round(built, 2),
        "forward_s": round(seconds, 2),
        "rss_with_weights_gib": round(before / 2**20, 2),
        "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        **stream,
        "device": backbone.description,
        "threads": torch.get_num_threads(),
        "load_before": round(load, 1),
        "load_after": round(os.getloadavg()[0], 1),
        "machine": platform.machine(),
        "torch": torch.__version__,
    }
    print(json.dumps(result, indent=2))
    name = f"{args.backbone}_{variant}" if variant != args.backbone else variant
    write_result(Path(__file__).with_name("results"), f"{name}_{backbone.device.split(':')[0]}", result)


def one_more(backbone, images):
    """A stream that begins with the images, and one more frame in it: its time, and what is kept."""
    cache = backbone.new_cache()
    seconds = []
    for shown in (range(len(images)), range(1, len(images) + 1)):
        names = tuple((i, "camera") for i in shown)
        started = time.perf_counter()
        prediction = backbone.predict(images[[i % len(images) for i in shown]], step=Step(names, cache))
        seconds.append(round(time.perf_counter() - started, 2))
        assert np.isfinite(prediction.depth).all()
    usage = cache.usage
    return {
        "stream_begins_s": seconds[0],
        "stream_one_more_frame_s": seconds[1],
        "stream_kept_frames": usage.frames,
        "stream_mib": round(usage.mib, 1),
        "stream_most_mib": round(usage.most_mib, 1),
    }


if __name__ == "__main__":
    main()
