"""The model's benchmark: dense and accelerated in turn on the same images; rows, tables and the plot."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ... import __version__, progress
from ...errors import Cancelled, CheckpointError, ComeRosError
from ...evaluation import prediction_difference
from ...types import U8
from .memory import MB, added_by_passes
from .split import OWN, PARTS, WHOLE, count_flops, matmul_rate, timed, warmed
from .subject import DENSE, Wish, check_counts, image_size, load_images, median_p90, random_predictor, wish_of

log = logging.getLogger("come_ros")

FRAMES = [2, 4, 8, 16]
ALL = "all"
COLUMNS = (*PARTS, WHOLE)
LONG = 3  # number of the longest windows, whose exponent is given separately


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields all figures so far, after each row; the rows are in "rows". Raises ConfigError, CheckpointError, DatasetError."""
    import torch

    check_counts(options)
    counts = options.frames or FRAMES
    repeats, warm_up = options.repeats or 10, options.warm_up
    wish = wish_of(options)
    names = list(dict.fromkeys([DENSE, *_named(options.accelerator or ["come"])]))
    for name in names:
        wish.config(name)  # a wrong name is refused before anything slow
    backbone = wish.load()
    with tempfile.TemporaryDirectory() as folder:
        if wish.random:
            wish = dataclasses.replace(wish, predictor=random_predictor(Path(folder), backbone.model))
        models, left_out = {}, {}
        for name in names:
            try:
                models[name] = wish.with_accelerator(backbone, name)
            except CheckpointError as error:
                if ALL not in (options.accelerator or []):
                    raise
                left_out[name] = str(error)  # its network is missing
        width, height = image_size(options.size, backbone)
        images = load_images(options.source, max(counts), width, height)
        file = Path(folder) / "images.npy"
        np.save(file, images)
        device = torch.device(backbone.device)
        rate = matmul_rate(device, getattr(torch, backbone.description["precision"]))
        result: dict[str, Any] = {
            "come_ros": __version__,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
            **backbone.description,
            "weights": os.path.basename(backbone.description["weights"]),
            "random_weights": bool(wish.random),
            "threads": torch.get_num_threads(),
            "image": [width, height],
            "source": options.source or "a rendered room",
            "repeats": repeats,
            "warm_up": warm_up,
            "limit_s": options.limit,
            "left_out": left_out,
            "matmul_gflops": rate / 1e9,
            "load_before": os.getloadavg()[0],
            "rows": [],
            "scaling": {},
        }
        total = len(counts) * len(models) * (2 + warm_up + repeats)
        with progress.bar(total=total, desc="timing", unit="pass") as bar:
            memory: dict[str, dict[int, dict[str, float]]] = {}
            for name in models if not options.no_memory and device.type != "cuda" else ():
                bar.set_postfix_str(f"memory, {name}")
                memory[name] = _own_memory(wish, name, file, counts)
            for frames in counts:
                rows = _rows(models, images[:frames], warm_up, repeats, options, rate, bool(wish.random), bar)
                for name, row in rows.items():
                    if not options.no_memory and not row["error"]:
                        on_device = device.type == "cuda"
                        row["memory"] = (
                            _device_memory(models[name], images[:frames]) if on_device else memory[name].get(frames)
                        )
                    result["rows"].append({"frames": frames, "accelerator": name, **row})
                result["load_after"] = os.getloadavg()[0]
                result["scaling"] = scaling(result["rows"])
                yield result


def _named(accelerators: Sequence[str]) -> Iterator[str]:
    """The same, with ALL expanded."""
    from ...accelerators import COMBINATIONS, registered

    for name in accelerators:
        yield from [n for n in [*registered(), *COMBINATIONS] if n != DENSE] if name == ALL else [name]


def scaling(rows: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """accelerator -> exponent b of a line log ms = a + b log frames through the medians: of the trunk and of all, over all window lengths
    and over the LONG longest; None with fewer than two of them."""
    out: dict[str, dict[str, float | None]] = {}
    for name in dict.fromkeys(row["accelerator"] for row in rows):
        ours = sorted((r for r in rows if r["accelerator"] == name and not r["error"]), key=lambda r: r["frames"])
        frames = np.log([r["frames"] for r in ours])
        out[name] = {}
        for kind in ("trunk", "total"):
            ms = np.log([r[f"{kind}_ms"]["median"] for r in ours])
            for label, n in (("", 0), ("_long", LONG)):
                x, y = frames[-n:], ms[-n:]
                out[name][kind + label] = float(np.polyfit(x, y, 1)[0]) if len(set(x)) > 1 else None
    return out


def _rows(
    models: dict[str, Any],
    images: U8,
    warm_up: int,
    repeats: int,
    options: Any,
    rate: float,
    random: bool,
    bar: Any,
) -> dict[str, dict[str, Any]]:
    """Accelerator -> its measurements. error: why there are none, "" on success. Of options: no_flops, limit."""
    import torch

    begun = time.monotonic()

    def late() -> bool:
        return 0 < options.limit < time.monotonic() - begun

    times: dict[str, list[dict[str, float]]] = {name: [] for name in models}
    flops, predictions, errors = {}, {}, dict.fromkeys(models, "")
    blocks = {name: m.accelerator.plan_block(len(m.model.encoder_blocks())) for name, m in models.items()}
    # the dense model is split at the same place as the first accelerated one, so that the parts can be compared
    blocks[DENSE] = next((b for b in blocks.values() if b is not None), None)
    x = models[DENSE].upload(images)
    for turn in range(2 + warm_up + repeats):
        counted = turn - 2 - warm_up
        if (turn == 1 and options.no_flops) or (late() and (1 < turn < 2 + warm_up or counted > 0)):
            bar.update(len(models))
            continue
        for name, model in models.items():
            bar.update()
            bar.set_postfix_str(f"{len(images)} frames, {name}")
            if errors[name]:
                continue
            try:
                if turn == 1:  # after one plain pass, so that nothing is compiled while counting FLOPs
                    flops[name] = count_flops(model, x, blocks[name])
                    continue
                if turn == 0:
                    warmed(model, x)
                parts, out, trunk = timed(model, x, blocks[name])
                if turn == 0:
                    predictions[name] = model.download(images, out, trunk)
                elif counted >= 0:
                    times[name].append(parts)
                del out, trunk  # not kept during the next pass
            except torch.cuda.OutOfMemoryError as error:
                errors[name] = f"out of memory: {str(error).splitlines()[0]}"
            if errors[name]:
                torch.cuda.empty_cache()
    rows = {}
    for name in models:
        if errors[name]:
            rows[name] = {"error": errors[name]}
            continue
        shares = {"kept_ratio": predictions[name].kept_ratio, "read_ratio": predictions[name].read_ratio}
        row = {"error": "", **shares, **_summary(times[name], times[DENSE])}
        if name in flops:
            trunk_flops = sum(flops[name].values()) - flops[name]["heads"]
            row["gflop"] = {part: n / 1e9 for part, n in flops[name].items()}
            row["gflop_trunk"] = trunk_flops / 1e9
            row["share_of_matmul"] = trunk_flops / (1e-3 * row["trunk_ms"]["median"]) / rate
        row["difference"] = None
        if name != DENSE and not random and not errors[DENSE]:
            row["difference"] = prediction_difference(predictions[name], predictions[DENSE])
        rows[name] = row
    return rows


def _summary(passes: list[dict[str, float]], dense: list[dict[str, float]]) -> dict[str, Any]:
    """Medians and p90 of a model's passes, and ratios to the dense model's passes just before."""
    trunk, total = (np.array([of(p) for p in passes]) for of in (_trunk, _total))
    out: dict[str, Any] = {"trunk_ms": median_p90(trunk), "total_ms": median_p90(total)}
    pairs = min(len(passes), len(dense))
    for name, ours, of in (("trunk_ratio", trunk, _trunk), ("total_ratio", total, _total)):
        ratio = ours[:pairs] / np.array([of(p) for p in dense[:pairs]])
        out[name] = float(np.median(ratio)) if pairs else None
    out["parts_ms"] = {part: float(np.median([p[part] for p in passes])) for part in COLUMNS if part in passes[0]}
    out["passes"] = len(passes)
    if WHOLE in passes[0]:  # a replayed pass cannot be split
        return {**out, "own": None}
    own = np.array([sum(p[part] for part in OWN) for p in passes])
    out["own"] = {"ms": float(np.median(own)), "of_pass": float(np.median(own / total)), "of_dense": None}
    if pairs:
        out["own"]["of_dense"] = float(np.median(own[:pairs] / [_total(p) for p in dense[:pairs]]))
    return out


def _total(parts: dict[str, float]) -> float:
    return sum(parts.values())


def _trunk(parts: dict[str, float]) -> float:
    return _total(parts) - parts["heads"]


def _own_memory(wish: Wish, name: str, file: Path, frames: Sequence[int]) -> dict[int, dict[str, float]]:
    """Number of frames -> added_mb: memory of one pass on top of weights and images; peak_mb: with them. Measured in a separate
    process."""
    try:
        return added_by_passes(dataclasses.asdict(wish), name, file, frames)
    except Cancelled:
        raise
    except ComeRosError as error:  # the times are useful without it
        log.warning("%s", error)
        return {}


def _device_memory(model: Any, images: U8) -> dict[str, float] | None:
    """The same of a CUDA device; None if a pass does not fit."""
    import torch

    device = torch.device(model.device)
    x = model.upload(images)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    try:
        model.run(x)
    except torch.cuda.OutOfMemoryError:
        return None
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    return {"added_mb": (peak - before) / MB, "peak_mb": peak / MB}
