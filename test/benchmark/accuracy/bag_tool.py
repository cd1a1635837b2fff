"""`come_ros bag` with the bundled model on real sequences and rendered rooms: scores next to trivial baselines, times, repeatability.

Each recording is run twice in processes of their own. Writes results/bag_tool.json and results/bag_tool.md; recordings and pictures go
to --out.

    python test/benchmark/accuracy/bag_tool.py [DATA] [--only NAME] [--out out/bag_tool]
    python test/benchmark/accuracy/bag_tool.py --soak   1000 images, all used: memory as it goes, into results/bag_tool_soak.json

DATA is the folder of recorded data (default: data/ in $COME_ROS_SHARED, else in `shared` next to the checkout).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "test")]

from benchmark.stamped import TINY, write_result  # noqa: E402

from come_ros.datasets.bag_writer import write_tum  # noqa: E402
from come_ros.datasets.tum import TumSequence  # noqa: E402
from come_ros.tools.demo import render_room  # noqa: E402

RESULTS = Path(__file__).with_name("results")
ROOM_IMAGES, ROOM_SIZE = 200, "320x240"
SOAK_IMAGES, SOAK_STEP = 1000, 200
SOAK_VOXELS = (0.05, 10.0)  # the default, and one so large that the map is next to nothing: what remains must be flat


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("COME_ROS_SHARED") or ROOT.parent / "shared")
    parser.add_argument("data", nargs="?", type=Path, default=shared / "data")
    parser.add_argument("--only", default=None, help="this recording alone; nothing is written to the results")
    parser.add_argument("--soak", action="store_true")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of the model (default: all cores)")
    parser.add_argument("--out", type=Path, default=Path("out/bag_tool"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.soak:
        return soak(options.out, options.threads)
    results: dict[str, Any] = {}
    for name, (source, scored) in recordings(options.data / "real", options.out).items():
        if options.only in (None, name):
            results[name] = measure(name, source(), options.out / name, scored, options.threads)
            print(f"{name}\n{markdown({name: results[name]})}", flush=True)
    if options.only is None:
        write_result(RESULTS, "bag_tool", results, markdown(results), weights=TINY)
    return int(not all(r["same_bytes"] and r["exit_codes"] == [0, 0] for r in results.values()))


def recordings(real: Path, out: Path) -> dict[str, tuple[Callable[[], Path], tuple[str, ...]]]:
    """Name -> how to get it, and what it can tell (see the README.md next to each)."""
    everything = ("depth", "trajectory", "rotation")

    def bag() -> Path:
        shutil.rmtree(out / "input_bag", ignore_errors=True)
        write_tum(out / "input_bag", TumSequence(real / "tum_fr1_rpy", rectify=False))
        return out / "input_bag"

    def room(seed: int) -> Callable[[], Path]:
        return lambda: render_room(out / f"input_{seed}", seed, ROOM_IMAGES, ROOM_SIZE)

    return {
        "fr1_rpy": (lambda: real / "tum_fr1_rpy", ("depth", "rotation")),
        "fr1_rpy (bag)": (bag, ("depth", "rotation")),
        "fr3_cabinet": (lambda: real / "tum_fr3_cabinet", everything),
        "fr3_office": (lambda: real / "tum_fr3_office", ("trajectory", "rotation")),
        "room 20000548": (room(20_000_548), everything),
        "room 20000512": (room(20_000_512), everything),
    }


def measure(name: str, source: Path, out: Path, scored: tuple[str, ...], threads: int) -> dict[str, Any]:
    """Metrics of the first of two runs, and whether the second wrote the same bytes."""
    codes, sums, walls = [], [], []
    load = os.getloadavg()[0]
    for run in ("first", "second"):
        shutil.rmtree(out / run, ignore_errors=True)
        command = [sys.executable, "-m", "come_ros.tools.cli", "bag", str(source), "-o", str(out / run)]
        command += ["--set", f"threads={threads}"]
        begun = time.perf_counter()
        codes.append(subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode)
        walls.append(round(time.perf_counter() - begun, 2))
        sums.append(checksums(out / run))
    metrics = json.loads((out / "first" / "metrics.json").read_text())
    for kind in {"depth", "trajectory", "rotation"} - set(scored):
        metrics[kind] = None
    metrics["source"] = name
    return {
        **metrics,
        "exit_codes": codes,
        "wall_s": walls,
        "same_bytes": sums[0] == sums[1],
        "sha256": sums[0],
        "threads": threads or os.cpu_count(),
        "cores": os.cpu_count(),
        "load_before": round(load, 1),
    }


def checksums(out: Path) -> dict[str, str]:
    """sha256 of every result; of metrics.json without its timings."""
    found = {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
    metrics = json.loads(found["metrics.json"])
    del metrics["timings"]
    found["metrics.json"] = json.dumps(metrics).encode()
    return {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}


def markdown(results: dict[str, Any]) -> str:
    """The results as a table, a column for each recording."""
    rows: list[list[str]] = [["", *results], ["---"] * (1 + len(results))]

    def add(title: str, cell: Callable[[dict[str, Any]], str]) -> None:
        rows.append([title, *(cell(m) for m in results.values())])

    add("images read, used", lambda m: f"{m['frames']['read']}, {m['frames']['used']}")
    add("windows, refused", lambda m: f"{m['stream']['windows']}, {m['stream']['refused']}")
    for scaled, label in (("per_frame", "scaled per frame"), ("per_sequence", "scaled once")):
        for key, title in (("delta", "delta < 1.25"), ("abs_rel", "AbsRel")):
            add(
                f"depth {title}, {label}",
                lambda m, s=scaled, k=key: _beside(m["depth"] and {n: v[k] for n, v in m["depth"][s].items()}, 3),
            )
    for key, title in (("ate", "trajectory ATE RMSE"), ("rpe_translation", "translation per step (RPE) RMSE")):
        for suffix, label in (("", "Sim(3)"), ("_se3", "SE(3)")):
            add(
                f"{title} after {label}, m",
                lambda m, k=f"{key}{suffix}_rmse_m": _beside(m["trajectory"] and m["trajectory"][k], 3),
            )
    add("rotation per step, median deg", lambda m: _beside(m["rotation"] and m["rotation"]["median_deg"], 2))
    add("rotation per step, RMSE deg (RPE)", lambda m: _beside(m["rotation"] and m["rotation"]["rmse_deg"], 2))
    add("threads; other load on the cores", lambda m: f"{m['threads']}; {m['load_before']:.1f}")
    add("images per second", lambda m: f"{m['timings']['images_per_s']:.1f}")
    add(
        "model, ms per window, p50 / p95",
        lambda m: "{p50:.0f} / {p95:.0f}".format(**m["timings"]["window_ms"]["model"]),
    )
    add("whole command, s", lambda m: " and ".join(f"{s:.0f}" for s in m["wall_s"]))
    add("peak memory, MB", lambda m: f"{m['timings']['peak_memory_mb']:.0f}")
    add("output/, MB", lambda m: f"{m['bytes']['output'] / 1e6:.1f}")
    add("map.ply, kB (points)", lambda m: f"{m['bytes']['map.ply'] / 1e3:.0f} ({m['map']['points']})")
    add("two runs give the same bytes", lambda m: "yes" if m["same_bytes"] else "NO")
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _beside(values: dict[str, float | None] | None, digits: int) -> str:
    """Our value in bold, the trivial baselines behind it."""
    if not values:
        return "not scored"
    text = {k: "n/a" if v is None else f"{v:.{digits}f}" for k, v in values.items()}
    others = ", ".join(f"{k} {v}" for k, v in text.items() if k != "come_ros")
    return f"**{text['come_ros']}** ({others})"


def soak(out: Path, threads: int) -> int:
    """Memory at every SOAK_STEP images of a long bag, all of them used."""
    spawn = multiprocessing.get_context("spawn")  # a process of its own for each, so that none sees the other's memory
    bag = out / "input_soak"
    rendering = spawn.Process(target=render_room, args=(bag, 20_000_548, SOAK_IMAGES, ROOM_SIZE))
    rendering.start()
    rendering.join()
    measured = {}
    for voxel in SOAK_VOXELS:
        results = spawn.Queue()
        running = spawn.Process(target=soak_run, args=(bag, out / "soak", threads, voxel, results))
        running.start()
        measured[f"voxels of {voxel:g}"] = results.get(timeout=3000)
        running.join()
    shutil.rmtree(bag)
    print(json.dumps(measured, indent=2))
    write_result(RESULTS, "bag_tool_soak", measured)
    return max(int(m["exit_code"]) for m in measured.values())


def soak_run(bag: Path, out: Path, threads: int, voxel: float, results: Any) -> None:
    """Runs the command in this process and looks at its memory while images are read."""
    from come_ros.datasets.sequence import BagSequence
    from come_ros.tools import cli

    resident: dict[int, float] = {}
    iter_frames = BagSequence.iter_frames

    def watched(self: BagSequence) -> Iterator[Any]:
        for index, frame in enumerate(iter_frames(self), 1):
            if index % SOAK_STEP == 0 or index == 50:
                resident[index] = resident_mb()
            yield frame

    BagSequence.iter_frames = watched  # type: ignore[method-assign]
    arguments = ["--overwrite", "--set", "keyframe.mode=every", "--set", f"threads={threads}"]
    arguments += ["--set", f"map.voxel={voxel}"]
    code = cli.main(["bag", str(bag), "-o", str(out), *arguments])
    metrics = json.loads((out / "metrics.json").read_text())
    results.put(
        {
            "exit_code": code,
            "images": metrics["frames"]["read"],
            "used": metrics["frames"]["used"],
            "resident_mb_after_images": resident,
            "peak_memory_mb": metrics["timings"]["peak_memory_mb"],
            "images_per_s": metrics["timings"]["images_per_s"],
            "map_points": metrics["map"]["points"],
            "output_mb": metrics["bytes"]["output"] / 1e6,
        }
    )


def resident_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return round(int(line.split()[1]) / 1024, 1)
    return float("nan")


if __name__ == "__main__":
    sys.exit(main())
