"""VGGT-1B on a GPU, measured from the machine's ceilings up: what it can do, the best dense model on it, and what token reduction gains.

  PYTHONPATH=. python3 test/benchmark/speed/gpu.py --minutes 9 --out "$OUT"    as many rows as fit, the most important first; call it again
  PYTHONPATH=. python3 test/benchmark/speed/gpu.py --device cpu --only predicted    what it should take, without a GPU
  PYTHONPATH=. python3 test/benchmark/speed/gpu.py --report               table and plot of what was measured (no GPU needed)
  PYTHONPATH=. python3 test/benchmark/speed/gpu.py --device cpu --tiny    the dry run: the same code on a small model, figures mean nothing

Figures go to gpu.json in --out after every row; rows that are there (or in results/gpu.json) are not measured again, unless
--again. A row that fails is written with its error, and the next one begins. Weights are random: times and memory hold, and the error
against fp32; depth and poses mean nothing. Times are medians of passes in turn, by the device's own clock, after a warm-up; `total_ms` is
images on the device to results there, `predict_ms` images in host memory to results there.

`predicted` is no measurement: the FLOPs of a pass, told from its shapes on torch's meta device, over the rates below (or over the
measured ceilings, where there are some), and the fewest bytes that must move between the matrix products.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmark.stamped import write_result

from come_ros.accelerators import CoMe, NoAccelerator
from come_ros.accelerators.confidence import ConfidencePredictor, default_block
from come_ros.accelerators.pace_networks import make_networks, save_networks
from come_ros.backbones.device import DeviceClock
from come_ros.backbones.torch_backbone import TorchBackbone
from come_ros.backbones.vggt import VARIANTS, VGGT
from come_ros.config import Config
from come_ros.kernels import attention, choose, compiled, merge_layout, merge_tokens, reference, restore_tokens
from come_ros.pipeline import ReconstructionPipeline
from come_ros.tools.bench.split import PARTS, count_flops, matmul_rate, timed
from come_ros.tools.bench.stream import rows_of
from come_ros.tools.bench.subject import DENSE, Wish, median_p90, random_predictor
from come_ros.types import Frame

RESULTS = Path(__file__).parent / "results"
COME = "come:ratio=0.5,group=3x3"
SPECIAL, GROUP = 5, (3, 3)
# H100 SXM, to predict with until the ceilings were measured: bf16 products, attention at head dim 64, copy (bytes read and written)
NOMINAL = {"matmul_tflops": 800.0, "attention_tflops": 550.0, "copy_gb_s": 3000.0}
BARS = [  # what, row, field, at most or at least, bar
    ("dense, 1 frame, ms", "pass 504x504 1", "none", "ms", 25.0),
    ("dense, 32 frames, ms", "pass 504x504 32", "none", "ms", 650.0),
    ("Co-Me, 32 frames, ms", "pass 504x504 32", COME, "ms", 320.0),
    ("Co-Me, 128 frames, ms", "pass 504x504 128", COME, "ms", 2400.0),
    ("Co-Me over dense, 32 frames", "pass 504x504 32", COME, "gain", 1.85),
    ("Co-Me over dense, 128 frames", "pass 504x504 128", COME, "gain", 2.35),
    ("Co-Me over dense, 512 frames", "pass 504x504 512", COME, "gain", 2.6),
    ("Co-Me, 32 frames, share of its gain by FLOPs", "pass 504x504 32", COME, "share_of_ideal_gain", 0.85),
    ("dense, 32 frames, share of the ceilings", "pass 504x504 32", "none", "share_of_ceilings", 0.65),
    ("Co-Me, 32 frames, share of the ceilings", "pass 504x504 32", COME, "share_of_ceilings", 0.65),
    (
        "stream, window 16, Co-Me, new frame only, over dense again",
        "stream 16",
        f"{COME}, kept, new frame only",
        "gain",
        2.7,
    ),
]


@dataclasses.dataclass
class Scale:
    """What is measured: the real thing, or its dry run."""

    variant: str = "1b"
    size: tuple[int, int] = (504, 504)
    other_size: tuple[int, int] = (518, 392)
    frames: tuple[int, ...] = (32, 1, 8, 128, 512, 64, 16, 4, 2, 256)
    other_frames: tuple[int, ...] = (32, 8, 1, 128)
    sweep_frames: tuple[int, ...] = (32, 8)
    windows: tuple[int, ...] = (16, 8, 32, 4)
    long: tuple[int, ...] = (32, 128, 512, 1000)
    lengths: tuple[int, ...] = (41632, 10408, 1301, 4096, 104080, 166528, 208160)  # frames of 1301 tokens, and others
    tune_frames: tuple[int, ...] = (32, 1, 8)
    kernel_frames: tuple[int, ...] = (32, 128)
    predictor_frames: tuple[int, ...] = (32, 128)
    matmul: int = 8192
    copy_bytes: int = 2**32
    seconds: float = 6.0  # of passes for one figure
    most_repeats: int = 20
    seed: int = 0

    @classmethod
    def tiny(cls) -> Scale:
        few = (2, 1)
        return cls(
            "tiny", (84, 84), (84, 56), few, (1,), (2,), (3,), (2,), (130,), (1,), (1,), (1,), 64, 2**16, seconds=0.02, most_repeats=2
        )  # fmt: skip

    def grid(self, size: tuple[int, int] | None = None) -> tuple[int, int]:
        width, height = size or self.size
        return height // 14, width // 14


class Bench:
    """Everything that rows share, made when it is first asked for."""

    def __init__(self, scale: Scale, device: str, rows: dict[str, Any]) -> None:
        self.scale, self.rows = scale, rows
        self.device = torch.device(device)
        self.cuda = self.device.type == "cuda"
        self.clock = DeviceClock(self.device)
        self.dtype = torch.bfloat16 if self.cuda else torch.float32
        self.folder = Path(tempfile.mkdtemp())
        self._backbones: dict[tuple[str, ...], TorchBackbone] = {}
        self._flops: dict[tuple[float, tuple[int, int]], dict[str, tuple[float, float]]] = {}
        self.wish = Wish(random=scale.variant, device=device)

    def backbone(self, attention: str = "auto", heads: str = "fp32", optimize: str = "none") -> TorchBackbone:
        """The dense model, run that way. One is held at a time."""
        key = attention, heads, optimize
        if key not in self._backbones:
            self._backbones.clear()
            self.free()
            wish = dataclasses.replace(self.wish, attention=attention, heads_precision=heads, optimize=optimize)
            self._backbones[key] = wish.load()
        return self._backbones[key]

    def best(self) -> TorchBackbone:
        """By the way that the tuning rows found fastest."""
        return self.backbone(**best_way(self.rows))

    def config(self, name: str) -> Config:
        """What `model` makes it from."""
        return self.wish.config(name)

    def model(self, name: str, backbone: TorchBackbone | None = None) -> TorchBackbone:
        """Accelerated as a name and parameters say."""
        backbone = backbone or self.best()
        if not (self.folder / "predictor.safetensors").exists():
            random_predictor(self.folder, backbone.model)
        wish = dataclasses.replace(self.wish, predictor=str(self.folder / "predictor.safetensors"))
        if "pace" in name:
            path = str(self.folder / "pace.safetensors")
            torch.manual_seed(self.scale.seed)
            save_networks(path, *make_networks(backbone.model.shape, 256))
            name += f"{',' if ':' in name else ':'}pace={path}"
        return wish.with_accelerator(backbone, name)

    def images(self, frames: int, size: tuple[int, int] | None = None) -> np.ndarray:
        """(frames, H, W, 3) of noise in blocks of a few pixels: never zeros, on which devices run faster."""
        width, height = size or self.scale.size
        rng = np.random.default_rng(self.scale.seed)
        coarse = rng.integers(0, 256, (frames, -(-height // 7), -(-width // 7), 3), np.uint8)
        return np.ascontiguousarray(coarse.repeat(7, axis=1).repeat(7, axis=2)[:, :height, :width])

    def flops(self, ratio: float, frames: int, size: tuple[int, int]) -> dict[str, float]:
        """By part, dense (ratio 0) or Co-Me. A pass over S frames takes a S + b S^2: told from one and two frames."""
        if (ratio, size) not in self._flops:
            sizes = VARIANTS[self.scale.variant]
            block = default_block(sizes.encoder_depth)
            with torch.device("meta"):
                network = VGGT(sizes).eval().requires_grad_(False)
                guess = ConfidencePredictor(sizes.dim, 128 if sizes.dim > 512 else 32).eval().requires_grad_(False)
            accelerator = CoMe(guess, block, ratio=ratio, group=GROUP, kernels="torch") if ratio else NoAccelerator()
            shapes = Shapes(network, accelerator)
            one, two = (
                count_flops(shapes, torch.empty(1, n, 3, size[1], size[0], device="meta"), block) for n in (1, 2)
            )
            self._flops[ratio, size] = {
                part: (2 * one[part] - two[part] / 2, two[part] / 2 - one[part]) for part in one
            }
        return {part: a * frames + b * frames**2 for part, (a, b) in self._flops[ratio, size].items()}

    def free(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def times(self, calls: dict[str, Callable[[], Any]], repeats: int = 0) -> dict[str, list[float]]:
        """Milliseconds of each call, in turn, after a warm-up that is long enough for graphs to be recorded."""
        ms: dict[str, list[float]] = {name: [] for name in calls}
        warm_up, spent = (3, 0.0) if repeats != 1 else (1, 0.0)
        for turn in range(warm_up + (repeats or self.scale.most_repeats)):
            for name, call in calls.items():
                self.clock.synchronize()
                begin = self.clock.read()
                call()
                took = self.clock.between(begin, self.clock.read())
                if turn >= warm_up:
                    ms[name].append(took)
                    spent += took / 1e3
            if turn >= warm_up + 2 and spent > self.scale.seconds:
                break
        return ms

    def peak_mb(self, call: Callable[[], Any]) -> tuple[float | None, Any]:
        """Of device memory during a call, with the weights; and what it returned."""
        if not self.cuda:
            return None, call()
        self.clock.synchronize()
        torch.cuda.reset_peak_memory_stats(self.device)
        result = call()
        self.clock.synchronize()
        return torch.cuda.max_memory_allocated(self.device) / 1e6, result


def summary(ms: list[float]) -> dict[str, Any]:
    return {**median_p90(ms), "repeats": len(ms)}


# 1. Ceilings


def copy_ceiling(b: Bench) -> dict[str, Any]:
    """GB/s of a copy within the device, bytes read and bytes written."""
    size = min(b.scale.copy_bytes, torch.cuda.mem_get_info(b.device)[0] // 4) if b.cuda else b.scale.copy_bytes
    x = torch.randint(0, 255, (size,), dtype=torch.uint8, device=b.device)
    y = torch.empty_like(x)
    ms = b.times({"copy": lambda: y.copy_(x)})["copy"]
    return {"copy_gb_s": 2 * size / min(ms) / 1e6, "ms": summary(ms)}


def matmul_ceiling(b: Bench) -> dict[str, Any]:
    return {"matmul_tflops": matmul_rate(b.device, b.dtype, b.scale.matmul) / 1e12}


def attention_ceiling(b: Bench, length: int) -> dict[str, Any]:
    """TFLOP/s of each kernel at head dim 64, 16 heads; error of the fastest to fp32 on the same inputs, some of the queries."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = (torch.randn(1, 16, length, 64, device=b.device, dtype=b.dtype) for _ in range(3))
    kernels = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
    }
    out: dict[str, Any] = {"length": length, "tflops": {}, "errors": {}}
    some = q[:, :, :256].float()
    want = ((some @ k.float().transpose(2, 3)) / 8).softmax(-1) @ v.float()
    for name, kernel in kernels.items() if b.cuda else [("flash", SDPBackend.FLASH_ATTENTION)]:
        try:
            with sdpa_kernel(kernel):
                call = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)  # noqa: E731
                out["errors"][name] = relative(call()[:, :, :256], want)
                ms = b.times({name: call})[name]
            out["tflops"][name] = 4 * 16 * 64 * length**2 / statistics.median(ms) / 1e9
        except RuntimeError as error:
            out["tflops"][name] = None
            out[f"{name}_error"] = str(error).splitlines()[0]
    return out


# 2, 3. The model: the best way to run it, then dense and Co-Me in turn


def tune(b: Bench, frames: int, heads: str, optimize: str) -> dict[str, Any]:
    backbone = b.backbone("auto", heads, optimize)
    x = backbone.upload(b.images(frames))
    return {
        "ms": summary(b.times({"run": lambda: backbone.run(x)})["run"]),
        "attention": backbone.description["attention"],
    }


def best_way(rows: dict[str, Any]) -> dict[str, str]:
    """Of those that were tried at all of the same frames, that of the lowest product of times; as the package comes, if none was."""
    tried: dict[tuple[str, str], list[float]] = {}
    for key, row in rows.items():
        if key.startswith("tune ") and not row["error"]:
            _, _, heads, optimize = key.split()
            tried.setdefault((heads, optimize), []).append(row["ms"]["median"])
    if not tried:
        return {"attention": "auto", "heads": "fp32", "optimize": "none"}
    most = max(map(len, tried.values()))
    heads, optimize = min((way for way in tried if len(tried[way]) == most), key=lambda way: math.prod(tried[way]))
    return {"attention": "auto", "heads": heads, "optimize": optimize}


def passes(b: Bench, names: list[str], frames: int, size: tuple[int, int]) -> dict[str, Any]:
    """Dense and accelerated in turn. What does not fit into memory is noted, the others go on."""
    models: dict[str, TorchBackbone] = {}
    out: dict[str, Any] = {"frames": frames, "size": list(size), "way": best_way(b.rows), "models": {}}
    for name in names:
        models[name] = b.model(name)
    x = models[names[0]].upload(b.images(frames, size))
    for name in list(models):
        try:
            peak_mb, trunk = b.peak_mb(lambda name=name: models[name].run(x)[1])
            row: dict[str, Any] = {"peak_mb": peak_mb, "kept_ratio": models[name].accelerator.kept_ratio(trunk.plan)}
            del trunk
            out["models"][name] = row
        except RuntimeError as error:
            out["models"][name] = {"error": str(error).splitlines()[0]}
            del models[name]
            b.free()
    ms = b.times({name: (lambda m=m: m.run(x)) for name, m in models.items()}, 1 if frames >= 512 else 0)
    for name in models:
        row = out["models"][name]
        row["total_ms"] = summary(ms[name])
        if DENSE in ms:
            row["gain"] = statistics.median(dense / ours for dense, ours in zip(ms[DENSE], ms[name], strict=True))
        row["predicted"] = ideal = prediction(b, name, frames, size)
        if ideal is None:
            continue
        row["share_of_ceilings"] = ideal["flops_ms"] / row["total_ms"]["median"]
        dense = prediction(b, DENSE, frames, size)
        if DENSE in ms and dense is not None:
            row["ideal_gain"] = dense["flops_ms"] / ideal["flops_ms"]
            row["share_of_ideal_gain"] = row["gain"] / row["ideal_gain"]
    for model in models.values():
        model.free_memory()
    return out


def numbers(b: Bench, name: str, way: dict[str, str]) -> dict[str, Any]:
    """Relative error of each output against fp32 throughout, on the same images and, for Co-Me, as it merges by itself."""
    frames = min(4, b.scale.frames[0])
    images = b.images(frames)
    ours = b.model(name, b.backbone(**way))
    got = {k: v.float().clone() for k, v in ours.run(ours.upload(images))[0].items()}
    plan = ours.run(ours.upload(images))[1].plan
    exact = dataclasses.replace(b.wish, precision="fp32").load()
    theirs = b.model(name, exact)
    with full_precision():
        out, trunk = theirs.run(theirs.upload(images))
    errors = {k: relative(got[k], v) for k, v in out.items() if v.is_floating_point()}
    row: dict[str, Any] = {"frames": frames, "way": way, "relative_error": errors}
    if hasattr(plan, "merged"):
        row["same_groups"] = float((plan.merged == trunk.plan.merged).float().mean())
    return row


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """fp32 means fp32: no TF32 in products and convolutions."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    """Norm of the difference over that of what is wanted; inf if anything is not finite."""
    error = float((got.double() - want.double()).norm() / want.double().norm().clamp_min(1e-30))
    return error if math.isfinite(error) else math.inf


def profile(b: Bench, name: str, frames: int) -> dict[str, Any]:
    """Milliseconds by part, run block by block (a graph has no parts), and the kernels that took longest in one pass."""
    way = best_way(b.rows)
    backbone = b.model(name, b.backbone(**{**way, "optimize": "none"}))
    x = backbone.upload(b.images(frames))
    block = b.model(COME, b.backbone(**{**way, "optimize": "none"})).accelerator.plan_block(
        len(backbone.model.encoder_blocks())
    )
    timed(backbone, x, block)
    runs = [timed(backbone, x, block)[0] for _ in range(3)]
    row: dict[str, Any] = {
        "frames": frames,
        "parts_ms": {part: statistics.median(r[part] for r in runs) for part in PARTS},
    }
    if b.cuda:
        from torch.profiler import ProfilerActivity
        from torch.profiler import profile as traced

        best = b.model(name)
        for _ in range(4):
            best.run(x)
        with traced(activities=[ProfilerActivity.CUDA]) as trace:
            best.run(x)
            b.clock.synchronize()
        events = sorted(trace.key_averages(), key=lambda e: -e.self_device_time_total)[:25]
        row["kernels_ms"] = {f"{e.key[:90]} x{e.count}": e.self_device_time_total / 1e3 for e in events}
    return row


# 4. Streaming


def stream(b: Bench, window: int) -> dict[str, Any]:
    models = {DENSE: b.model(DENSE), COME: b.model(COME)}
    repeats = 8 if b.cuda else 1
    rows = rows_of(
        models, b.images(window + 4 + repeats), window, repeats, warm_up=3
    )  # three: until graphs are recorded
    for model in models.values():
        model.free_memory()
    return {"models": {f"{r['accelerator']}, {r['mode']}": {**r, "gain": r["ratio"]} for r in rows}}


# 6. Kernels alone


def kernel(b: Bench, operation: str, frames: int, dtype: torch.dtype) -> dict[str, Any]:
    """merge or restore at the model's sizes: us, one call as a node of a CUDA graph; eager_us, one from Python; twin_us, torch's own
    operations in a graph; gb_s: the fewest bytes that must move (each input read once, each output written once)."""
    way = "cupy" if b.cuda else "torch"
    choose(way, b.device)
    grid, width = b.scale.grid(), 1024 if b.cuda else 64
    patches, groups = grid[0] * grid[1], (grid[0] // 3) * (grid[1] // 3)
    k = groups // 2
    length = patches - 8 * k
    token = width * dtype.itemsize
    moved = frames * ((2 * SPECIAL + patches + length) * token + 8 * (length if operation == "merge" else patches))

    def example() -> tuple[torch.Tensor, ...]:
        x = torch.randn(frames, SPECIAL + patches, width, device=b.device).to(dtype)
        merged = torch.rand(frames, groups, device=b.device).argsort(1) < k
        return (x, *merge_layout(merged, grid, GROUP, length, way))

    # together more than any cache holds
    sets = [example() for _ in range(max(2, -(-512 * 2**20 // moved)) if b.cuda else 1)]

    def call(given: tuple[torch.Tensor, ...], kernels: str) -> Callable[[], torch.Tensor]:
        x, source, rev = given
        if operation == "merge":
            return lambda: merge_tokens(x, source, SPECIAL, grid, GROUP, kernels)
        short = merge_tokens(x, source, SPECIAL, grid, GROUP, way)
        return lambda: restore_tokens(short, rev, SPECIAL, kernels)

    calls = [call(given, way) for given in sets]
    error = kernel_error(operation, sets[0], calls[0](), grid)
    if not error < 2 * torch.finfo(dtype).eps:  # NaN never passes
        raise RuntimeError(f"{operation} in {dtype}: relative error {error}; nothing is timed that is wrong")
    seconds = graph_time(b, calls)
    return {
        "frames": frames,
        "dtype": str(dtype).removeprefix("torch."),
        "us": 1e6 * seconds,
        "eager_us": 1e3 * statistics.median(b.times({"": lambda: [call() for call in calls]})[""]) / len(calls),
        "twin_us": 1e6 * graph_time(b, [call(given, "torch") for given in sets]),
        "gb_s": moved / seconds / 1e9,
        "relative_error": error,
    }


def kernel_error(operation: str, given: tuple[torch.Tensor, ...], got: torch.Tensor, grid: tuple[int, int]) -> float:
    """Of a few rows against float64 on the CPU."""
    x, source, rev = (t[:4].cpu() for t in given)
    members, _ = reference.group_members(grid, GROUP, torch.device("cpu"))
    means = x[:, SPECIAL:][:, members.flatten()].unflatten(1, members.shape).double().mean(2)
    want = torch.cat((x[:, SPECIAL:].double(), means), 1).gather(1, source[..., None].expand(-1, -1, x.shape[2]))
    if operation == "restore":
        want = want.gather(1, rev[..., None].expand(-1, -1, x.shape[2]))
    return relative(got[:4].cpu(), torch.cat((x[:, :SPECIAL].double(), want), 1))


def graph_time(b: Bench, calls: list[Callable[[], Any]]) -> float:
    """Seconds a call, median, replayed from a CUDA graph of all calls: without the gaps between launches."""
    if not b.cuda:
        return statistics.median(b.times({"": calls[0]})[""]) / 1e3
    for call in calls:
        call()
    b.clock.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call() for call in calls]  # outputs stay apart, as the inputs do
    seconds = statistics.median(b.times({"": graph.replay}, 25)[""]) / len(calls) / 1e3
    del kept
    return seconds


def weighted(b: Bench, frames: int) -> dict[str, Any]:
    """Attention over the frames of a window merged by half, each way, next to plain attention of that length; checked against fp32."""
    (h, w), heads = b.scale.grid(), 16 if b.cuda else 2
    groups = (h // 3) * (w // 3)
    tail = groups // 2
    length = SPECIAL + h * w - 8 * tail
    weight = torch.ones(1, frames, length, device=b.device)
    weight[:, :, -tail:] = 9
    q, k, v = (torch.randn(1, heads, frames * length, 64, device=b.device, dtype=b.dtype) for _ in range(3))
    keys = attention.KeyWeights(weight, frames, tail, 9.0)
    some = q[:, :, :128].float()
    logits = some @ k.float().transpose(2, 3) / 8 + keys.log(torch.float32)
    want = logits.softmax(-1) @ v.float()
    ways = ("two_calls", "flex", "channel") if b.cuda else ("two_calls", "masked")
    out: dict[str, Any] = {"frames": frames, "keys": frames * length, "ms": {}, "errors": {}}
    context = b.best()._kernel_context
    calls = {"plain": lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)}
    calls |= {way: (lambda way=way: attention.weighted_attention(q, k, v, keys, way)) for way in ways}
    with torch.inference_mode(), context():
        for name in ways:
            out["errors"][name] = relative(calls[name]()[:, :, :128], want)
        for name, ms in b.times(calls).items():
            out["ms"][name] = statistics.median(ms)
    out["tflops"] = {name: 4 * heads * 64 * (frames * length) ** 2 / ms / 1e9 for name, ms in out["ms"].items()}
    return out


def predictor(b: Bench, frames: int) -> dict[str, Any]:
    """The confidence predictor on the tokens of a window."""
    h, w = b.scale.grid()
    width = VARIANTS[b.scale.variant].dim
    x = torch.randn(1, frames, h, w, width, device=b.device)
    out = {}
    for scope in ("window", "frame", "pooled"):
        torch.manual_seed(b.scale.seed)
        network = ConfidencePredictor(width, 128 if width > 512 else 32, scope=scope).to(b.device).eval()
        with torch.inference_mode(), torch.autocast(b.device.type, torch.bfloat16, enabled=b.cuda):
            out[scope] = statistics.median(b.times({"": lambda network=network: network(x)})[""])
    return {"frames": frames, "ms": out}


def tests(b: Bench) -> dict[str, Any]:
    """The kernels' tests and those of recorded models on this device; then the kernels' under compute-sanitizer, where there is one."""
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]

    def last(words: list[str]) -> str:
        try:
            done = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, timeout=240)
        except subprocess.TimeoutExpired:
            return "longer than 240 s"
        return f"exit code {done.returncode}: " + " | ".join((done.stdout + done.stderr).strip().splitlines()[-3:])

    row = {"tests": last([*command, "test/kernels/test_gpu.py", "test/backbones/test_device_paths.py"])}
    if shutil.which("compute-sanitizer"):
        some = "twins and (64 or 33) or anywhere or positions"
        row["sanitizer"] = last(
            ["compute-sanitizer", "--error-exitcode", "9", *command, "test/kernels/test_gpu.py", "-k", some]
        )
    return row


# 7. From host memory to host memory


def whole(b: Bench, name: str, window: int) -> dict[str, Any]:
    """predict_ms: images in host memory to results there; pipeline_ms: a camera frame to its submap, one new frame a window."""
    model = b.model(name)
    images = b.images(window + 24 if b.cuda else window + 4)
    predict: list[float] = []
    for i in range(13 if b.cuda else 4):
        begun = time.perf_counter()
        model.predict(images[:window])
        predict += [1e3 * (time.perf_counter() - begun)] if i >= 3 else []
    flat = {"window.size": window, "window.overlap": window - 1, "keyframe.mode": "every", "window.anchors": 1}
    config = b.config(name).replace(**flat, **{"input.max_side": max(112, b.scale.size[0])})
    pipeline, steps, parts = ReconstructionPipeline(config, model), [], []
    for i, image in enumerate(images):
        pipeline.add_frame(Frame(image, (i + 1) * 100_000_000))
        taken = pipeline.take_window(window if i < window else 1)
        if taken is None:
            continue
        begun = time.perf_counter()
        submap = pipeline.reconstruct(taken)
        # random weights give poses that may be refused, and windows then start again
        if len(taken) == window and taken.new == 1:
            steps.append(1e3 * (time.perf_counter() - begun))
            parts.append(submap.timings_ms)
    model.free_memory()

    def told(ms: list[float]) -> dict[str, float] | None:
        return {"p50": float(np.median(ms)), "p95": float(np.percentile(ms, 95)), "n": len(ms)} if ms else None

    return {
        "window": window,
        "predict_ms": told(predict),
        "pipeline_ms": told(steps[3:] or steps),
        "stages_ms": {k: float(np.median([p[k] for p in parts])) for k in parts[0]} if parts else None,
    }


# What the passes should take


class Shapes:
    """A model on the meta device, as far as count_flops wants it: shapes and no values."""

    def __init__(self, model: VGGT, accelerator: Any) -> None:
        self.model, self.accelerator = model, accelerator

    def accelerated(self, accelerator: Any) -> Shapes:
        return Shapes(self.model, accelerator)

    def run(self, x: torch.Tensor, check: Callable[[], None]) -> Any:
        with torch.no_grad():
            trunk = self.model.run_trunk(x, self.accelerator, check)
            check()
            return self.model.decode(trunk, (x.shape[-2], x.shape[-1]), ("camera", "depth"), check), trunk


def prediction(b: Bench, name: str, frames: int, size: tuple[int, int]) -> dict[str, Any] | None:
    """No measurement. tflop: of the pass, by part, attention told apart. flops_ms: those over the ceilings. bytes_ms: what moves between
    matrix products and attention when everything there is fused, over the copy ceiling. Only for dense and Co-Me."""
    if name not in (DENSE, COME) and not name.startswith("come:ratio="):
        return None
    ratio = 0.0 if name == DENSE else float(name.split("ratio=")[1].split(",")[0])
    sizes = VARIANTS[b.scale.variant]
    block = default_block(sizes.encoder_depth)
    h, w = b.scale.grid(size)
    groups = (h // 3) * (w // 3)
    patches = h * w - 8 * int(ratio * groups + 1e-9)
    total = b.flops(ratio, frames, size)
    # of that attention: 4 N L C a block, over a frame or over all of them
    dense, short, c = SPECIAL + h * w, SPECIAL + patches, sizes.dim
    first = block + 1
    attended = (
        4
        * c
        * frames
        * (first * dense**2 + (sizes.encoder_depth - first) * short**2 + sizes.depth * (1 + frames) * short**2)
    )
    rate = ceilings(b.rows)
    heads = total["heads"]
    products = sum(total.values()) - attended
    flops_ms = products / rate["matmul_tflops"] / 1e9 + attended / rate["attention_tflops"] / 1e9
    # a token in one block, bf16 but for the stream: stream 8 C in, 8 C out; two norms 4 C; q, k, v 6 C read and written; attention's
    # output 2 C; GELU on 4 C channels, read and written
    blocks = first * dense + (sizes.encoder_depth - first + 2 * sizes.depth) * short
    moved = frames * blocks * c * (16 + 4 + 12 + 2 + 16)
    return {
        "tflop": {part: n / 1e12 for part, n in total.items()},
        "tflop_attention": attended / 1e12,
        "tflop_total": sum(total.values()) / 1e12,
        "tflop_heads": heads / 1e12,
        "gb": moved / 1e9,
        "flops_ms": flops_ms,
        "bytes_ms": moved / rate["copy_gb_s"] / 1e6,
        "rates": rate,
    }


def ceilings(rows: dict[str, Any]) -> dict[str, Any]:
    """Measured, or else NOMINAL; `of` says which."""
    found: dict[str, Any] = dict(NOMINAL)
    of = dict.fromkeys(found, "nominal H100")
    for key in ("copy", "matmul"):
        row = rows.get(f"ceiling {key}")
        if row and not row["error"]:
            name = next(n for n in found if n in row)
            found[name], of[name] = row[name], "measured"
    rows_of_attention = (r for key, r in rows.items() if key.startswith("ceiling attention") and not r["error"])
    rates = [rate for row in rows_of_attention for rate in row["tflops"].values() if rate]
    if rates:
        found["attention_tflops"], of["attention_tflops"] = max(rates), "measured"
    return {**found, "of": of}


def predict_all(b: Bench) -> dict[str, Any]:
    """For all frames that are asked for, dense and Co-Me."""
    out = {}
    for frames in sorted(b.scale.frames):
        for name in (DENSE, COME):
            out[f"{name} {frames}"] = prediction(b, name, frames, b.scale.size)
    return out


# The plan


def plan(b: Bench) -> dict[str, Callable[[], dict[str, Any]]]:
    """Every row, the most important first."""
    s = b.scale
    width, height = s.size
    rows: dict[str, Callable[[], dict[str, Any]]] = {
        "predicted": lambda: predict_all(b),
        "ceiling copy": lambda: copy_ceiling(b),
        "ceiling matmul": lambda: matmul_ceiling(b),
    }
    for n in s.lengths[:2]:
        rows[f"ceiling attention {n}"] = lambda n=n: attention_ceiling(b, n)
    for heads in ("fp32", "bf16"):  # a model is loaded for each way
        for optimize in ("none", "graph", "compile") if b.cuda else ("none",):
            for frames in s.tune_frames:
                rows[f"tune {frames} {heads} {optimize}"] = lambda f=frames, h=heads, o=optimize: tune(b, f, h, o)
    for name in (DENSE, COME):
        rows[f"numbers {name}"] = lambda name=name: numbers(b, name, best_way(b.rows))
    for frames in s.frames[:5]:
        rows[f"pass {width}x{height} {frames}"] = lambda f=frames: passes(b, [DENSE, COME], f, s.size)
    for frames in s.sweep_frames[:1]:
        rows[f"profile {frames} {COME}"] = lambda f=frames: profile(b, COME, f)
        rows[f"profile {frames} {DENSE}"] = lambda f=frames: profile(b, DENSE, f)
    for window in s.windows:
        rows[f"stream {window}"] = lambda w=window: stream(b, w)
    for frames in s.kernel_frames:
        for operation in ("merge", "restore"):
            rows[f"kernel {operation} {frames} {str(b.dtype)[6:]}"] = lambda f=frames, o=operation: kernel(
                b, o, f, b.dtype
            )
    for frames in s.predictor_frames:
        rows[f"kernel attention {frames}"] = lambda f=frames: weighted(b, f)
        rows[f"kernel predictor {frames}"] = lambda f=frames: predictor(b, f)
    if b.cuda:
        rows["tests"] = lambda: tests(b)
    for name in (DENSE, COME):
        rows[f"whole {name}"] = lambda name=name: whole(b, name, 8 if b.cuda else 2)
    for frames in s.frames[5:]:
        rows[f"pass {width}x{height} {frames}"] = lambda f=frames: passes(b, [DENSE, COME], f, s.size)
    other = f"{s.other_size[0]}x{s.other_size[1]}"
    for frames in s.other_frames:
        # 37x28 patches: whole groups, and edges
        rows[f"pass {other} {frames}"] = lambda f=frames: passes(b, [DENSE, COME], f, s.other_size)
    for frames in s.sweep_frames:
        for ratio in (0.25, 0.75, 0.9):
            name = f"come:ratio={ratio},group=3x3"
            rows[f"sweep {frames} {ratio}"] = lambda f=frames, n=name: passes(b, [DENSE, n], f, s.size)
    hunting = "good_token_hunting:frames=25,stride=3"
    others = ["tome:ratio=0.5", hunting, "pace:ratio=0.6", "fast:ratio=0.9", "temporal:ratio=0.75"]
    others += [f"come+{hunting}", f"pace+{hunting},ratio=0.6"]
    for frames in s.long:
        for name in others:
            # dense with each, so that gains are of the same minute; at 1000 frames only by themselves
            names = [DENSE, name] if frames < 512 else [name]
            rows[f"other {frames} {name}"] = lambda f=frames, n=names: passes(b, n, f, s.size)
    for n in s.lengths[2:]:
        rows[f"ceiling attention {n}"] = lambda n=n: attention_ceiling(b, n)
    for dtype in (torch.float32, torch.float16) if b.cuda else ():
        for operation in ("merge", "restore"):
            key = f"kernel {operation} 32 {str(dtype)[6:]}"
            rows[key] = lambda o=operation, d=dtype: kernel(b, o, 32, d)
    return rows


def machine(b: Bench) -> dict[str, Any]:
    about: dict[str, Any] = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }
    about["device"] = torch.cuda.get_device_name(b.device) if b.cuda else f"cpu, {platform.machine()}"
    about["variant"] = b.scale.variant
    if b.cuda:
        about["cudnn"] = torch.backends.cudnn.version()
        about["memory_gb"] = torch.cuda.get_device_properties(b.device).total_memory / 1e9
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        with contextlib.suppress(OSError, subprocess.SubprocessError, IndexError):
            about["driver"] = subprocess.run(
                command, capture_output=True, text=True, timeout=30, check=True
            ).stdout.split()[0]
        with contextlib.suppress(ImportError):
            import cupy

            about["cupy"] = cupy.__version__
        if choose("auto", b.device) == "cupy":
            index = b.device.index or 0
            about["registers"] = {name: compiled._function(name, index).num_regs for name in compiled.KERNELS}
    return about


def measure(b: Bench, path: Path, minutes: float, only: list[str], again: bool) -> None:
    """Row after row, until the time is up."""
    begun = time.monotonic()
    result = {"machine": machine(b), "rows": b.rows}
    for key, row in plan(b).items():
        if only and not any(word in key for word in only):
            continue
        if key in b.rows and not again and key != "predicted":
            continue
        left = 60 * minutes - (time.monotonic() - begun)
        if left < 20 and minutes > 0:
            print(f"the time is up before {key!r}: call it again for the rest")
            break
        started, error, figures = time.monotonic(), "", {}
        try:
            figures = row()
        except Exception as failure:  # the rest is worth having all the same
            error = f"{type(failure).__name__}: {(str(failure).splitlines() or [''])[0]}"
        b.rows[key] = {"error": error, "seconds": round(time.monotonic() - started, 2), **figures}
        write(path, result)
        b.free()
        print(f"{key}: {error or brief(figures)} ({b.rows[key]['seconds']} s)", flush=True)


def brief(figures: dict[str, Any]) -> str:
    """One line of a row."""
    if "models" in figures:
        told = []
        for name, row in figures["models"].items():
            ms = row.get("total_ms") or row.get("step_ms")
            told.append(
                f"{name} "
                + (f"{ms['median']:.1f} ms, gain {row.get('gain') or math.nan:.2f}" if ms else row.get("error", "?"))
            )
        return "; ".join(told)
    return json.dumps({k: v for k, v in figures.items() if not isinstance(v, dict) or len(v) < 8}, default=str)[:300]


def write(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


# The report


def report(result: dict[str, Any]) -> str:
    """All figures as Markdown."""
    rows, about = result["rows"], result["machine"]
    lines = ["# VGGT on a GPU", "", ", ".join(f"{k} {v}" for k, v in about.items() if not isinstance(v, dict)), ""]
    if about["device"].startswith("cpu"):
        what = (
            "No GPU: predictions only"
            if set(rows) == {"predicted"}
            else "A dry run on a CPU: nothing here says anything of a GPU"
        )
        lines += [f"**{what}.**", ""]
    rate = ceilings(rows)
    lines += ["Ceilings: " + ", ".join(f"{k} {rate[k]:.0f} ({rate['of'][k]})" for k in NOMINAL) + ".", ""]
    lines += ["Way: " + ", ".join(f"{k} {v}" for k, v in best_way(rows).items()) + ".", ""]
    predicted = rows.get("predicted", {})
    heads = "| model, frames | TFLOP | of that attention | ms by FLOPs | ms by bytes between | together |"
    lines += ["## Predicted, not measured", "", heads, "|---" * 6 + "|"]
    for key, p in predicted.items():
        if isinstance(p, dict):
            both = p["flops_ms"] + p["bytes_ms"]
            lines.append(
                f"| {key} | {p['tflop_total']:.3g} | {p['tflop_attention']:.3g} | {p['flops_ms']:.1f} | {p['bytes_ms']:.1f} | {both:.1f} |"
            )
    lines += ["", "## Bars", "", "| | measured | predicted by FLOPs | bar | |", "|---" * 5 + "|"]
    for what, key, model, field, bar in BARS:
        row = rows.get(key, {}).get("models", {}).get(model, {})
        value = row.get("total_ms", {}).get("median") if field == "ms" else row.get(field)
        reached = (
            "not measured"
            if value is None
            else "reached"
            if (value <= bar if field == "ms" else value >= bar)
            else "missed"
        )
        ideal = predicted_bar(predicted, key, model, field)
        lines.append(
            f"| {what} | {'' if value is None else f'{value:.3g}'} | {'' if ideal is None else f'{ideal:.3g}'} | {bar:g} | {reached} |"
        )
    lines += [
        "",
        "## Passes",
        "",
        "| row | model | ms (p90) | of n | gain | ideal gain | share of ceilings | peak, MB | kept |",
        "|---" * 9 + "|",
    ]
    for key, row in rows.items():
        for name, m in row.get("models", {}).items():
            ms = m.get("total_ms") or m.get("step_ms")
            if not ms:
                lines.append(f"| {key} | {name} | {m.get('error', '')} | | | | | | |")
                continue
            cells = [f"{ms['median']:.1f} ({ms['p90']:.1f})", str(ms.get("repeats", ""))]
            cells += [f"{m[k]:.2f}" if m.get(k) else "" for k in ("gain", "ideal_gain", "share_of_ceilings")]
            cells += [f"{m['peak_mb']:.0f}" if m.get("peak_mb") else "", f"{m['kept_ratio']:.0%}"]
            lines.append(f"| {key} | {name} | " + " | ".join(cells) + " |")
    lines += ["", "## All other rows", ""]
    for key, row in rows.items():
        if "models" not in row and key != "predicted":
            lines.append(
                f"- {key}: {row['error'] or json.dumps({k: v for k, v in row.items() if k not in ('error', 'seconds')})}"
            )
    return "\n".join(lines) + "\n"


def predicted_bar(predicted: dict[str, Any], key: str, model: str, field: str) -> float | None:
    """What FLOPs alone allow, for a bar on a pass."""
    frames = key.split()[-1]
    dense, ours = predicted.get(f"{DENSE} {frames}"), predicted.get(f"{model} {frames}")
    if not dense or not ours or not key.startswith("pass"):
        return None
    return {"ms": ours["flops_ms"], "gain": dense["flops_ms"] / ours["flops_ms"]}.get(field)


def draw(path: Path, result: dict[str, Any]) -> None:
    """Latency against frames, next to what FLOPs predict; and one new frame in sliding windows."""
    from come_ros.tools.report.figures import pyplot

    plt = pyplot()

    rows = result["rows"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.8), layout="constrained")
    for i, name in enumerate((DENSE, COME)):
        label = "dense" if name == DENSE else "Co-Me"
        found = sorted(
            (r["frames"], r["models"][name]["total_ms"]["median"])
            for key, r in rows.items()
            if key.startswith("pass")
            and "total_ms" in r.get("models", {}).get(name, {})
            and r["size"][0] == r["size"][1]
        )
        ideal = sorted(
            (int(key.split()[-1]), p["flops_ms"])
            for key, p in rows.get("predicted", {}).items()
            if key.startswith(f"{name} ")
        )
        if found:
            left.plot(*zip(*found, strict=True), "o-", color=f"C{i}", label=f"{label}, measured")
        if ideal:
            left.plot(
                *zip(*ideal, strict=True), ":", color=f"C{i}", label=f"{label}, predicted by FLOPs (not measured)"
            )
    left.set(xscale="log", yscale="log", xlabel="frames of a window", ylabel="ms, images to results on the device")
    left.legend(fontsize=8)
    left.grid(alpha=0.3, which="both")
    windows = [r for key, r in rows.items() if key.startswith("stream") and "models" in r]
    windows.sort(key=lambda r: next(iter(r["models"].values()))["window"])
    for i, name in enumerate(windows[0]["models"] if windows else []):
        steps = [(r["models"][name]["window"], r["models"][name]["step_ms"]["median"]) for r in windows]
        label = name.replace(DENSE, "dense", 1).replace(COME, "Co-Me")
        right.plot(*zip(*steps, strict=True), "o-", color=f"C{i // 4}", alpha=1 - 0.2 * (i % 4), label=label)
    right.set(xlabel="window", ylabel="ms a new frame, host memory to host memory", title="sliding windows")
    if windows:
        right.legend(fontsize=8)
    right.grid(alpha=0.3)
    figure.suptitle(f"{result['machine']['device']}, VGGT {result['machine']['variant']}")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=0, help="begin no row after so many (0: no limit)")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, metavar="FOLDER", help="gpu.json, gpu.md and gpu.png go here"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="rows with one of these in their name")
    parser.add_argument("--again", action="store_true", help="measure again what is there")
    parser.add_argument("--report", action="store_true", help="measure nothing, write gpu.md and gpu.png again")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="a small model: to try the script")
    parser.add_argument("--list", action="store_true", help="show the rows, measure nothing")
    args = parser.parse_args(words)
    path = args.out / "gpu.json"
    earlier = next(
        (p for p in (path, RESULTS / "gpu.json") if p.is_file() and not (args.tiny and p.parent == RESULTS)), None
    )
    before = json.loads(earlier.read_text(encoding="utf-8")) if earlier else None
    if args.tiny and args.out == RESULTS:
        parser.error("--tiny is a dry run, and does not belong among the results: give --out FOLDER")
    if args.report:
        if before is None:
            parser.error(f"there is no {path}: measure first")
        (args.out / "gpu.md").write_text(report(before), encoding="utf-8")
        draw(args.out / "gpu.png", before)
        print(report(before))
        return
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("no usable CUDA device here: --device cpu --tiny is the dry run")
    if args.device.startswith("cpu") and not args.tiny and args.only != ["predicted"]:
        parser.error("VGGT-1B on a CPU takes minutes a pass: add --tiny; or --only predicted, which runs no pass")
    device = f"cuda:{torch.cuda.current_device()}" if args.device == "cuda" else args.device
    b = Bench(Scale.tiny() if args.tiny else Scale(), device, {})
    if args.list:
        print("\n".join(plan(b)))
        return
    if before is not None and before["machine"]["device"] == machine(b)["device"]:
        b.rows.update(before["rows"])
    elif before is not None:
        print(f"{earlier} is of another device ({before['machine']['device']}): measured again, not mixed")
    measure(b, path, args.minutes, args.only, args.again)
    result = {"machine": machine(b), "rows": b.rows}
    write_result(args.out, "gpu", result, report(result), lambda path: draw(path, result))


if __name__ == "__main__":
    main()
