"""Compile the kernels of token merging on this machine's GPU, check them, time them against a device copy.

python test/benchmark/kernels_gpu.py [--quick] -> test/benchmark/results/kernels_gpu.json, written anew after every row

A row: us, one call as a node of a CUDA graph; eager_us, one call from Python; gb_s, the fewest bytes that must move (every input read
once, every output written once) over us; share, of the rate of a device copy (bytes read and written); twin_us, the torch twin in
a graph; error, relative to the twin in float64.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from come_ros.kernels import choose, compiled, merge_layout, merge_tokens, reference, restore_tokens

RESULTS = Path(__file__).parent / "results" / "kernels_gpu.json"
GRID, GROUP, SPECIAL, WIDTH, RATIO = (36, 36), (3, 3), 5, 1024, 0.5
PATCHES, GROUPS, SIZE = 1296, 144, 9
K = int(RATIO * GROUPS)
LENGTH = PATCHES - K * (SIZE - 1)
# most important first: should the time run out, these are there
ROWS = [
    (operation, frames, dtype)
    for dtype, many in ((torch.bfloat16, (32, 256, 128, 64)), (torch.float32, (32, 256)), (torch.float16, (32,)))
    for frames in many
    for operation in ("merge", "restore")
]
BEYOND_CACHE = 512 * 2**20  # bytes that the inputs of one round take together, so that none is found in a cache


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the first four rows only")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no usable CUDA device: this benchmark needs one")

    device = torch.device("cuda", torch.cuda.current_device())
    started = time.perf_counter()
    choose("cupy", device)
    import cupy

    result = {
        "gpu": torch.cuda.get_device_name(device),
        "driver": _driver(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cupy": cupy.__version__,
        "compile_s": round(time.perf_counter() - started, 2),
        "registers": {name: compiled._function(name, device.index).num_regs for name in compiled.KERNELS},
        "shape": {"grid": GRID, "group": GROUP, "special": SPECIAL, "width": WIDTH, "ratio": RATIO},
        "copy_gb_s": round(copy_rate(device), 1),
        "rows": [],
    }
    write(result)
    for operation, frames, dtype in ROWS[: 4 if args.quick else None]:
        row = measure(operation, frames, dtype, device)
        row["share"] = round(row["gb_s"] / result["copy_gb_s"], 3)
        result["rows"].append(row)
        write(result)
        print(json.dumps(row), flush=True)
    result["layout"] = measure_layout(device)
    write(result)
    print(json.dumps(result["layout"]))


def write(result: dict) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):  # a Jetson has none
        return "unknown"


def copy_rate(device: torch.device) -> float:
    """GB/s of a copy within the device, bytes read and bytes written."""
    size = min(2**30, torch.cuda.mem_get_info(device)[0] // 4)
    a = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2 * size / graph_time([lambda: b.copy_(a)]) / 1e9


def example(frames: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, ...]:
    """x, source, rev of random tokens and a random choice of groups."""
    x = torch.randn(frames, SPECIAL + PATCHES, WIDTH, device=device).to(dtype)
    merged = torch.rand(frames, GROUPS, device=device).argsort(1) < K
    return (x, *merge_layout(merged, GRID, GROUP, LENGTH, "cupy"))


def measure(operation: str, frames: int, dtype: torch.dtype, device: torch.device) -> dict:
    """Checks one operation at one size against its twin, then times it."""
    token = WIDTH * dtype.itemsize
    moved = frames * ((2 * SPECIAL + PATCHES + LENGTH) * token + 8 * (LENGTH if operation == "merge" else PATCHES))
    sets = [example(frames, dtype, device) for _ in range(max(2, -(-BEYOND_CACHE // moved)))]

    def call(given: tuple[torch.Tensor, ...], kernels: str) -> Callable[[], torch.Tensor]:
        x, source, rev = given
        if operation == "merge":
            return lambda: merge_tokens(x, source, SPECIAL, GRID, GROUP, kernels)
        short = merge_tokens(x, source, SPECIAL, GRID, GROUP, "cupy")
        return lambda: restore_tokens(short, rev, SPECIAL, kernels)

    calls = [call(given, "cupy") for given in sets]
    error = check(operation, sets[0], calls[0]())
    seconds = graph_time(calls)
    return {
        "operation": operation,
        "frames": frames,
        "dtype": str(dtype).removeprefix("torch."),
        "us": round(1e6 * seconds, 2),
        "eager_us": round(1e6 * eager_time(calls), 2),
        "twin_us": round(1e6 * graph_time([call(given, "torch") for given in sets]), 2),
        "mb": round(moved / 1e6, 1),
        "gb_s": round(moved / seconds / 1e9, 1),
        "error": error,
    }


def check(operation: str, given: tuple[torch.Tensor, ...], got: torch.Tensor) -> float:
    """Relative error of a few rows against float64 on the CPU; ends the run if it is no rounding error."""
    x, source, rev = (t[:4].cpu() for t in given)
    members, _ = reference.group_members(GRID, GROUP, torch.device("cpu"))
    means = x[:, SPECIAL:][:, members.flatten()].unflatten(1, members.shape).double().mean(2)
    pool = torch.cat((x[:, SPECIAL:].double(), means), 1)
    want = pool.gather(1, source[..., None].expand(-1, -1, WIDTH))
    if operation == "restore":
        want = want.gather(1, rev[..., None].expand(-1, -1, WIDTH))
    want = torch.cat((x[:, :SPECIAL].double(), want), 1)
    error = float((got[:4].cpu().double() - want).norm() / want.norm())
    if not error < 2 * torch.finfo(x.dtype).eps:  # NaN never passes
        sys.exit(f"{operation} in {x.dtype}: relative error {error}; nothing is timed that is wrong")
    return error


def graph_time(calls: list[Callable[[], object]], repeats: int = 25) -> float:
    """Seconds a call, median, replayed from a CUDA graph of all calls: without the gaps between launches."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call() for call in calls]  # outputs stay apart, as the inputs do
    seconds = statistics.median(_between(graph.replay) for _ in range(repeats)) / len(calls)
    del kept, graph
    return seconds


def eager_time(calls: list[Callable[[], object]], repeats: int = 25) -> float:
    """Seconds a call, median, called from Python one after another."""

    def all_of_them() -> None:
        for call in calls:
            call()

    return statistics.median(_between(all_of_them) for _ in range(repeats)) / len(calls)


def _between(action: Callable[[], object]) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    action()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def measure_layout(device: torch.device) -> dict:
    """The prefix sums of 256 frames: once a window, so it only must not stand out."""
    merged = torch.rand(256, GROUPS, device=device).argsort(1) < K
    seconds = {
        way: graph_time([lambda w=way: merge_layout(merged, GRID, GROUP, LENGTH, w)]) for way in ("cupy", "torch")
    }
    return {"frames": 256, "us": round(1e6 * seconds["cupy"], 2), "twin_us": round(1e6 * seconds["torch"], 2)}


if __name__ == "__main__":
    main()
