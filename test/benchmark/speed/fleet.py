"""Throughput, overhead and memory of `come_ros fleet`, and whether it writes what `come_ros bag` writes: results/fleet.{json,md}.

    .venv/bin/python test/benchmark/speed/fleet.py [--recordings 12] [--long-frames 3000] [--only many,long] [--folder DIR] [--keep]

many: recordings (the real sequences as bags, and rendered rooms) by the command alone, then by fleets with one and with two workers.
long: recordings in 1, 2 and 4 segments, each part alone on the machine, one after the other. The time of K workers follows: finding
windows, the slowest segment, the joined run. A hundred workers are simulated from the measured times of tasks.

Needs Ray (extra `fleet`) and the recorded data ($COME_ROS_SHARED). Everything runs with one thread. Wall times mean something on a quiet
machine only; CPU times and bytes always do.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import heapq
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "test")]

from benchmark.stamped import TINY, shared, write_result  # noqa: E402

from come_ros.datasets.bag_writer import write_tum  # noqa: E402
from come_ros.datasets.tum import TumSequence  # noqa: E402
from come_ros.fleet.segments import OUTLINE, Task  # noqa: E402
from come_ros.tools import bag as tools_bag  # noqa: E402
from come_ros.tools.arguments import configuration  # noqa: E402
from come_ros.tools.demo import render_room  # noqa: E402

RESULTS, NAME = Path(__file__).with_name("results"), "fleet"
REAL = ("tum_fr1_rpy", "tum_fr3_cabinet", "tum_fr3_office", "tum_fr1_rpy_long")
LONG = "tum_fr1_rpy_long"
ROOM_SEED, ROOM_FRAMES, ROOM_SIZE = 4100, 40, "320x240"
SEGMENTS = (1, 2, 4)
COME_ROS = (sys.executable, "-m", "come_ros.tools.cli")
SET = ("--set", "threads=1", "--set", "device=cpu")
UNLIKE = (
    "overview.png",
    "fleet.json",
    "metrics.json",
    "run.yaml",
)  # pictures; compared without `timings`; run.yaml: of its own below
RECORDINGS, WORKERS = 1000, 100  # simulated


@dataclass(frozen=True)
class Spent:
    """s on the clock, s of CPU time of a process and all that it waited for, largest resident set of one of them, MB."""

    wall_s: float
    cpu_s: float
    peak_mb: float


def spend(command: Sequence[str], folder: Path, log: Path) -> Spent:
    """Runs a command. Raises RuntimeError if it fails."""
    begun = time.perf_counter()
    with open(log, "ab") as stream:
        child = subprocess.Popen(command, cwd=folder, stdout=stream, stderr=stream)
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"exit code {child.returncode}: {' '.join(command[:8])} ...; see {log}")
    return Spent(time.perf_counter() - begun, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000)


def digests(folder: Path) -> dict[str, str]:
    """Relative path -> checksum of all results; metrics.json without timings, run.yaml without the source's path."""
    out = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if name not in UNLIKE:
            out[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    metrics = json.loads((folder / "metrics.json").read_text())
    del metrics["timings"]
    out["metrics.json"] = hashlib.sha256(json.dumps(metrics).encode()).hexdigest()
    out["run.yaml"] = hashlib.sha256((folder / "run.yaml").read_bytes()).hexdigest()
    return out


def unlike(one: Path, other: Path) -> list[str]:
    """Names of results that differ."""
    a, b = digests(one), digests(other)
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


# Many recordings


def recordings(folder: Path, count: int) -> list[str]:
    """Writes bags. Returns their names, the real ones first."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for name in REAL[: min(len(REAL), count)]:
        if not (folder / name).exists():
            write_tum(folder / name, TumSequence(shared() / "data" / "real" / name))
        names.append(name)
    for i in range(count - len(names)):
        name = f"room_{ROOM_SEED + i}"
        if not (folder / name).exists():
            rendered(folder / name, ROOM_SEED + i, ROOM_FRAMES)
        names.append(name)
    return names


def rendered(bag: Path, seed: int, frames: int) -> None:
    """In a process of its own: Linux counts what this one holds as memory of the processes that it starts."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(render_room, bag, seed, frames, ROOM_SIZE).result()


def many(folder: Path, count: int) -> dict[str, Any]:
    names = recordings(folder / "bags", count)
    alone = {}
    for name in names:
        out = folder / "alone" / name
        alone[name] = spend((*COME_ROS, "bag", f"bags/{name}", "-o", str(out), *SET), folder, folder / "alone.log")
    fleets = {}
    for workers in (1, 2):
        out = folder / f"fleet_{workers}"
        fleet = ("fleet", "bags", "-o", str(out), "--workers", str(workers), "--memory-per-task", "800", *SET)
        spent = spend((*COME_ROS, *fleet), folder, folder / f"fleet_{workers}.log")
        rows = {row["name"]: row for row in json.loads((out / "fleet.json").read_text())["recordings"]}
        again = spend((*COME_ROS, *fleet), folder, folder / f"fleet_{workers}.log")
        fleets[workers] = {
            "spent": asdict(spent),
            "again": asdict(again),
            "seconds": {name: rows[name]["seconds"] for name in names},
            "peak_mb": {name: rows[name]["memory_mb"] for name in names},
            "unlike": {name: found for name in names if (found := unlike(folder / "alone" / name, out / name))},
        }
    return {"alone": {name: asdict(spent) for name, spent in alone.items()}, "fleets": fleets}


# Long recordings


def long_one(folder: Path, name: str) -> dict[str, Any]:
    """A recording alone and in segments. folder/bags/name: the recording."""
    work = folder / "long" / name
    work.mkdir(parents=True, exist_ok=True)
    source, log = f"bags/{name}", work / "log"
    single = spend((*COME_ROS, "bag", source, "-o", str(work / "single"), *SET), folder, log)
    parser = argparse.ArgumentParser()
    tools_bag.add_options(parser)
    options = parser.parse_args([*SET])
    os.chdir(folder)
    how = tools_bag.reading(source, options, configuration(options))
    out: dict[str, Any] = {"images": how.images, "single": asdict(single), "segments": {}}
    out["single"]["ate_m"] = ate(work / "single")
    module = (sys.executable, "-m", "come_ros.fleet.segments")
    for count in SEGMENTS:
        made = work / f"predictions_{count}"
        task = Task(source, how.options, how.part, how.config.to_flat(), str(made), None, count)
        windows = spend((*module, task.text()), folder, log)
        parts = [spend((*module, Task(**{**vars(task), "segment": i}).text()), folder, log) for i in range(count)]
        place = work / f"joined_{count}"
        joined = spend((*COME_ROS, "bag", source, "-o", str(place), *SET, "--predictions", str(made)), folder, log)
        out["segments"][count] = {
            "windows": asdict(windows), "parts": [asdict(part) for part in parts], "joined": asdict(joined),
            "ate_m": ate(place), "unlike": unlike(work / "single", place),
            "predictions": len(list(made.glob("*.safetensors"))), "windows_found": len(json.loads((made / OUTLINE).read_text())),
            "predictions_mb": sum(p.stat().st_size for p in made.iterdir()) / 1e6,
            "map_off_voxels": map_off(work / "single", place),
        }  # fmt: skip
    return out


def ate(folder: Path) -> float | None:
    path = json.loads((folder / "metrics.json").read_text())["trajectory"]
    return None if not path else path["ate_rmse_m"]["come_ros"]


def map_off(one: Path, other: Path) -> float:
    """Largest distance of a point of one map from the nearest of the other, in voxels."""
    from scipy.spatial import cKDTree

    from come_ros.files import read_ply

    a, b = (np.stack([read_ply(p / "map.ply")[axis] for axis in "xyz"], axis=1) for p in (one, other))
    voxel = json.loads((one / "metrics.json").read_text())["map"]["voxel"]
    far = max(float(cKDTree(y).query(x)[0].max()) for x, y in ((a, b), (b, a)))
    return far / voxel


def time_of(about: dict[str, Any], clock: str) -> float:
    """Of a recording in segments with as many workers as segments, s."""
    return about["windows"][clock] + max(part[clock] for part in about["parts"]) + about["joined"][clock]


def long(folder: Path, frames: int) -> dict[str, Any]:
    recordings(folder / "bags", 0)
    if not (folder / "bags" / LONG).exists():
        write_tum(folder / "bags" / LONG, TumSequence(shared() / "data" / "real" / LONG))
    found = {LONG: long_one(folder, LONG)}
    if frames:
        room = f"long_room_{frames}"
        if not (folder / "bags" / room).exists():
            rendered(folder / "bags" / room, ROOM_SEED + 50, frames)
        found[room] = long_one(folder, room)
    return found


# Simulated


def makespan(seconds: Sequence[float], workers: int) -> float:
    """Of tasks in that order, each by the next worker that is free, s."""
    free = [0.0] * workers
    heapq.heapify(free)
    for task in seconds:
        heapq.heappush(free, heapq.heappop(free) + task)
    return max(free)


def simulated(tasks: Sequence[float], start_s: float) -> dict[int, float]:
    """Workers -> speed-up over one worker, for RECORDINGS tasks that take times drawn at random from the measured ones, and start_s for the
    start of the fleet."""
    drawn = np.random.default_rng(0).choice(np.array(tasks), RECORDINGS)
    one = start_s + float(drawn.sum())
    return {n: one / (start_s + makespan(drawn.tolist(), n)) for n in (1, 2, 4, 10, 30, WORKERS)}


# In words


def table(found: dict[str, Any]) -> str:
    lines = [
        "# Fleet: throughput, overhead, equality",
        "",
        "Written by `python test/benchmark/speed/fleet.py`; one thread for each process.",
        "",
    ]
    if "many" in found:
        alone, fleets = found["many"]["alone"], found["many"]["fleets"]
        wall, cpu = (sum(each[c] for each in alone.values()) for c in ("wall_s", "cpu_s"))
        lines += [
            "| | wall, s | CPU, s | a recording takes longer by, s (median) | largest process, MB | with other bytes | all skipped, s |",
            "|---|---|---|---|---|---|---|",
            f"| `come_ros bag`, one after the other | {wall:.0f} | {cpu:.0f} | | {max(e['peak_mb'] for e in alone.values()):.0f} | | |",
        ]
        for workers, about in fleets.items():
            more = statistics.median(about["seconds"][name] - alone[name]["wall_s"] for name in alone)
            spent = about["spent"]
            lines.append(
                f"| fleet, {workers} workers | {spent['wall_s']:.0f} | | {more:+.2f} | "
                f"{max(about['peak_mb'].values()):.0f} | {len(about['unlike'])} of {len(alone)} | {about['again']['wall_s']:.1f} |"
            )
        one = next(iter(fleets.values()))
        start = max(0.0, one["spent"]["wall_s"] - sum(one["seconds"].values()))
        speed = simulated(list(one["seconds"].values()), start)
        lines += [
            "",
            f"CPU time of a fleet is not listed: its tasks are processes of Ray's. {start:.1f} s of a fleet are not tasks: starting "
            "Python and Ray, looking at the sources, the page.",
            "",
            f"Simulated from the times of tasks with one worker: {RECORDINGS} recordings whose times are drawn at random from these, in "
            f"one queue, each taken by the next free worker, after {start:.1f} s for the start. No other limit, such as the network or "
            "the storage that all share, is part of the model. "
            + "; ".join(f"{n} workers {value:.1f} times as fast" for n, value in speed.items() if n > 1) + ".",
            "",
        ]  # fmt: skip
    for name, about in found.get("long", {}).items():
        single = about["single"]
        lines += [
            f"## {name}, {about['images']} images", "",
            "| segments | CPU, s: windows + slowest segment + joined | speed-up, by CPU time | ATE, m | other files than alone | "
            "map off by, voxels | predictions, for windows | on disk, MB | largest process, MB |",
            "|---|---|---|---|---|---|---|---|---|",
            f"| alone | {single['cpu_s']:.0f} | 1 | {_number(single['ate_m'])} | | | | | {single['peak_mb']:.0f} |",
        ]  # fmt: skip
        for count, each in about["segments"].items():
            slowest = max(part["cpu_s"] for part in each["parts"])
            peak = max(p["peak_mb"] for p in (each["windows"], *each["parts"], each["joined"]))
            whole = time_of(each, "cpu_s")
            cells = (
                f"{each['windows']['cpu_s']:.0f} + {slowest:.0f} + {each['joined']['cpu_s']:.0f} = {whole:.0f}",
                f"{single['cpu_s'] / whole:.2f}", _number(each["ate_m"]), ", ".join(each["unlike"]) or "none",
                f"{each['map_off_voxels']:.3f}", f"{each['predictions']}, {each['windows_found']}", f"{each['predictions_mb']:.0f}",
                f"{peak:.0f}",
            )  # fmt: skip
            lines.append(f"| {count} | {' | '.join(cells)} |")
        lines.append("")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=int, default=12)
    parser.add_argument("--long-frames", type=int, default=3000, help="of the long room; 0: the real recording only")
    parser.add_argument("--only", default="", help="many or long; then nothing is written")
    parser.add_argument("--folder", type=Path, help="to work in, and to keep")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet_speed_")))
        folder = folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        found: dict[str, Any] = {}
        if options.only != "long":
            found["many"] = many(folder, options.recordings)
        if options.only != "many":
            found["long"] = long(folder, options.long_frames)
        text = table(found)
        os.chdir(ROOT)
        if not options.only:
            write_result(RESULTS, NAME, found, text, weights=TINY)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
