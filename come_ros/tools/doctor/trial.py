"""Memory of a window on this machine: python -m come_ros.tools.doctor.trial CONFIG, with CONFIG as JSON of dotted names.

Prints one line of JSON: base_mib, frame_mib (a window of n frames needs base + n frame), seconds (of one window of window.size), size,
device, free_mib (on a GPU), stream_mib (what a causal backbone keeps at most); or error.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np

from ...camera.preprocess import image_plan
from ...config import Config
from ...errors import ComeRosError
from .. import resident

FEW, MANY = 2, 10
MIB = 2**20


def main(argv: list[str] | None = None) -> int:
    config = Config.from_flat(json.loads((sys.argv[1:] if argv is None else argv)[0]))
    try:
        result = measure(config)
    except ComeRosError as error:
        result = {"error": str(error), "fix": "see the end of that line"}
    except Exception as error:
        result = {"error": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"}
    print(json.dumps(result))
    return int("error" in result)


def measure(config: Config) -> dict[str, Any]:
    """Runs two passes over grey 4:3 images. On a CPU the peak of this process's memory is measured, so it must do nothing else."""
    from ...backbones import load_backbone
    from ...backbones.stream import Step

    before = _peak_mib("cpu")
    backbone = load_backbone(config)
    side = config.input.max_side or backbone.native_side
    plan = image_plan(backbone, 4 * side, 3 * side, side)
    peaks = []
    for frames in (FEW, MANY):
        backbone.predict(np.full((frames, plan.height, plan.width, 3), 128, np.uint8))
        peaks.append(_peak_mib(backbone.device))
    window = np.full((config.window.size, plan.height, plan.width, 3), 128, np.uint8)
    begun = time.perf_counter()
    backbone.predict(window)  # the passes before were its warm-up
    seconds = time.perf_counter() - begun
    frame = max(0.1, (peaks[1] - peaks[0]) / (MANY - FEW))
    memory = backbone.memory()
    start = 0.0 if memory is not None else before
    out = {
        "base_mib": max(0.0, peaks[0] - FEW * frame - start),
        "frame_mib": frame,
        "seconds": seconds,
        "size": f"{plan.width}x{plan.height}",
        "device": backbone.device,
    }
    if backbone.causal:
        cache = backbone.new_cache()
        backbone.predict(window, step=Step(tuple((i, "") for i in range(len(window))), cache))
        assert cache.usage is not None
        out["stream_mib"] = cache.usage.most_mib
    if memory is not None:  # memory held by this process counts as free: the node will use it instead
        out["free_mib"] = memory.free + peaks[1]
    return out


def _peak_mib(device: str) -> float:
    if device.startswith("cuda"):
        import torch

        return float(torch.cuda.max_memory_reserved(device)) / MIB
    return resident.peak() / MIB


if __name__ == "__main__":
    sys.exit(main())
