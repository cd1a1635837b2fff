"""Cost of one new frame in a sliding window: recomputing everything, or reusing the encoder's output for shared frames."""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ... import __version__, progress
from ...backbones.stream import Step
from ...errors import ConfigError
from ...types import U8, Prediction
from .subject import DENSE, check_counts, image_size, load_images, median_p90, random_predictor, wish_of

WINDOWS = [4, 8, 16, 32]
# mode -> the frames of a window for which depth is computed, None for all
MODES: dict[str, Callable[[int], tuple[int, ...] | None]] = {
    "whole": lambda window: None,
    "kept": lambda window: None,
    "kept, one anchor": lambda window: (window - 2, window - 1),
    "kept, new frame only": lambda window: (window - 1,),
}


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All figures so far, after each window's size; the rows are in "rows". Raises ConfigError, CheckpointError, DatasetError."""
    import torch

    check_counts(options)
    windows, repeats, warm_up = options.frames or WINDOWS, options.repeats or 10, options.warm_up
    if min(windows) < 2:
        raise ConfigError(
            f"--frames is {windows}, but a sliding window has 2 frames or more: one is new, the others are shared"
        )
    wish = wish_of(options)
    names = list(dict.fromkeys([DENSE, *(options.accelerator or ["come"])]))
    for name in names:
        wish.config(name)  # a wrong word is refused before anything slow
    backbone = wish.load()
    with tempfile.TemporaryDirectory() as folder:
        if wish.random:
            wish = dataclasses.replace(wish, predictor=random_predictor(Path(folder), backbone.model))
        models = {name: wish.with_accelerator(backbone, name) for name in names}
    width, height = image_size(options.size, backbone)
    images = load_images(options.source, max(windows) + warm_up + repeats, width, height)
    result: dict[str, Any] = {
        "come_ros": __version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        **backbone.description,
        "weights": os.path.basename(backbone.description["weights"]),
        "threads": torch.get_num_threads(),
        "image": [width, height],
        "repeats": repeats,
        "load_before": os.getloadavg()[0],
        "rows": [],
    }
    for window in progress.bar(windows, desc="timing", unit="window"):
        result["rows"] += rows_of(models, images, window, repeats, warm_up)
        result["load_after"] = os.getloadavg()[0]
        yield result


def rows_of(
    models: Mapping[str, Any],
    images: U8,
    window: int,
    repeats: int,
    warm_up: int = 2,
    modes: Sequence[str] = tuple(MODES),
) -> list[dict[str, Any]]:
    """One row for each model and mode, all of them in turn on the same windows, of `window` of the images (N, H, W, 3), each one image on.

    step_ms: from images to results in host memory. reused: share of the window's frames that did not go through the encoder;
    saved_ms: see types.Prediction. ratio: of the dense model computed again to this row, median of the steps; None without one.
    """
    caches = {(name, mode): models[name].new_cache() for name in models for mode in modes}
    ms: dict[tuple[str, str], list[float]] = {key: [] for key in caches}
    last: dict[tuple[str, str], Prediction] = {}
    for turn in range(1 + warm_up + repeats):
        shown = images[turn : turn + window]
        names = tuple((i, "camera") for i in range(turn, turn + window))
        for (name, mode), cache in caches.items():
            step = None if mode == "whole" else Step(names, cache, MODES[mode](window))
            begun = time.perf_counter()
            prediction = models[name].predict(shown, step=step)
            if turn > warm_up:  # the first one fills the cache
                ms[name, mode].append(1e3 * (time.perf_counter() - begun))
            last[name, mode] = prediction
    dense = np.array(ms.get((DENSE, "whole"), []))
    rows = []
    for (name, mode), taken in ms.items():
        prediction = last[name, mode]
        rows.append(
            {
                "window": window,
                "accelerator": name,
                "mode": mode,
                "step_ms": median_p90(taken),
                "reused": prediction.reused / window,
                "saved_ms": prediction.saved_ms,
                "kept_ratio": prediction.kept_ratio,
                "ratio": float(np.median(dense / np.array(taken))) if len(dense) else None,
            }
        )
    return rows


def report(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    width, height = result["image"]
    lines = [
        "# One new frame in a sliding window", "",
        f"come_ros {result['come_ros']}: {result['backbone']}, {result['weights']} ({result['parameters']} parameters), "
        f"{result['precision']} on {result['device']} ({result['machine']}, {result['threads']} threads); {width}x{height} px; "
        f"{result['repeats']} steps each, in turn; load {result['load_before']:.1f} before, {result['load_after']:.1f} after.", "",
        "whole: the whole window is computed each time. kept: the encoder runs on the new frame only. One anchor: the dense "
        "heads also run only on it and on one shared frame, which carries the scale (`window.anchors`). New frame only: enough for a "
        "metric model.", "",
        "| window | accelerator | | images to results, ms (p90) | speed-up over dense, whole | encoder reused | encoder saved, ms |",
        "|---" * 7 + "|",
    ]  # fmt: skip
    for row in result["rows"]:
        head = (
            f"| {row['window']} | {'dense' if row['accelerator'] == DENSE else row['accelerator']} | {row['mode']} | "
        )
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        lines.append(
            head + f"{row['step_ms']['median']:.1f} ({row['step_ms']['p90']:.1f}) | {ratio} | "
            f"{row['reused']:.0%} | {row['saved_ms']:.1f} |"
        )
    return "\n".join(lines)
