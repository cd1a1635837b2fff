"""Loops: what closing them is worth on paths that return, and whether any is closed where there is none.

    python test/benchmark/accuracy/loops.py [DATA] [--only returns|false|time] [--out out/loops]

Returns: eight rooms of the test split, walked there and back (300 images), fr3_office with its images reversed and appended, fr1_rpy_long;
`come_ros bag` on each, its trajectory in the map next to odometry's. False: 64 pairs of different rooms, the corridor of equal doors, real
recordings of different places against each other; every pair of views is compared as the map would. Time: the graph and the map at 200
keyframes. Nothing here was tuned on these. DATA is the folder of recorded data (default: data/ in $COME_ROS_SHARED, else in `shared`
next to the checkout). Writes results/loops.json and results/loops.md; with --only nothing is written there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "test")]

from benchmark.stamped import TINY, write_result  # noqa: E402

from come_ros import geometry  # noqa: E402
from come_ros.datasets.bag_writer import BagWriter  # noqa: E402
from come_ros.datasets.rooms.returning import corridor_walk, returning_room  # noqa: E402
from come_ros.datasets.rooms.rooms import SyntheticSequence, test_windows  # noqa: E402
from come_ros.datasets.tum import TumSequence, read_trajectory  # noqa: E402
from come_ros.mapping.graph import Edges, Similarities, optimise, root_information  # noqa: E402
from come_ros.mapping.loops import compare  # noqa: E402
from come_ros.mapping.mapper import Corrections  # noqa: E402
from come_ros.mapping.view import View, view_of  # noqa: E402
from come_ros.outputs.cloud import POINT_DTYPE  # noqa: E402
from come_ros.outputs.following_map import FollowingMap, rebuilt  # noqa: E402
from come_ros.types import Frame  # noqa: E402

RESULTS = Path(__file__).with_name("results")
ROOMS, IMAGES, PAIRS = range(20_000_900, 20_000_908), 300, 64
STEP_NS = 1_000_000_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("COME_ROS_SHARED") or ROOT.parent / "shared")
    parser.add_argument("data", nargs="?", type=Path, default=shared / "data")
    parser.add_argument("--only", choices=("returns", "false", "time"), default=None)
    parser.add_argument("--out", type=Path, default=Path("out/loops"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    real = options.data / "real"
    parts = {"returns": lambda: returns(real, options.out), "false": lambda: false(real), "time": times}
    results = {name: part() for name, part in parts.items() if options.only in (None, name)}
    print(json.dumps({k: v for k, v in results.items() if k != "returns"}, indent=1))
    text = markdown(results)
    print(text)
    if options.only is None:
        write_result(RESULTS, "loops", results, text, weights=TINY)
    return 0


def returns(real: Path, out: Path) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for seed in ROOMS:
        bag = out / f"room_{seed}"
        if not bag.exists():
            write_room(bag, returning_room(seed, IMAGES))
        rows[f"room {seed}"] = scored(bag, out)
    office = out / "office_and_back"
    if not office.exists():
        write_doubled(office, real / "tum_fr3_office")
    rows["fr3_office and back"] = scored(office, out)
    rows["fr1_rpy_long"] = scored(real / "tum_fr1_rpy_long", out)
    corridor = out / "corridor"
    if not corridor.exists():
        write_room(corridor, corridor_walk(5, 180))
    rows["corridor of equal doors"] = scored(corridor, out)
    return rows


def scored(source: Path, out: Path) -> dict[str, Any]:
    folder = out / f"out_{source.name}"
    command = ["bag", str(source), "-o", str(folder), "--no-bag", "--overwrite", "--set", "threads=1"]
    subprocess.run(
        [sys.executable, "-m", "come_ros.tools.cli", *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
    )
    m = json.loads((folder / "metrics.json").read_text())
    loops, before = m["loops"], m["trajectory"]
    after = loops.get("trajectory") or before
    row = {
        "ate_m": {
            "map": after["ate_rmse_m"]["come_ros"], "odometry": before["ate_rmse_m"]["come_ros"],
            "not moving": before["ate_rmse_m"]["not moving"],
        },
        "end_share": {name: loops["end_point"][name]["share"] for name in ("map", "odometry")},
        "length_m": before["length_m"], "keyframes": loops["keyframes"], "offered": loops["offered"],
        "accepted": loops["accepted"], "refused": loops["refused"],
    }  # fmt: skip
    print(source.name, json.dumps(row), flush=True)
    return row


def write_room(bag: Path, s: SyntheticSequence) -> None:
    part = bag.with_suffix(".part")
    with BagWriter(part) as writer:
        for i, image in enumerate(s.images):
            writer.write(
                Frame(image, int(s.stamps_ns[i]), "camera_optical_frame", s.intrinsics),
                s.depth[i],
                s.world_from_camera[i],
            )
    part.rename(bag)


def write_doubled(bag: Path, folder: Path) -> None:
    """The images of a recording, then the same in reverse, a little darker and with noise of their own."""
    frames = list(TumSequence(folder).iter_frames())
    poses = read_trajectory(folder / "groundtruth.txt")
    stamps = np.array(sorted(poses))
    rng = np.random.default_rng(1)
    part = bag.with_suffix(".part")
    with BagWriter(part) as writer:
        for i, frame in enumerate([*frames, *frames[-2::-1]]):
            pose = poses[int(stamps[np.abs(stamps - frame.stamp_ns).argmin()])]
            image = frame.image
            if i >= len(frames):
                noisy = 0.9 * image.astype(np.float32) + rng.normal(0, 4, image.shape)
                image = np.clip(noisy, 0, 255).astype(np.uint8)
            stamp = frames[0].stamp_ns + i * STEP_NS
            writer.write(dataclasses.replace(frame, image=image, stamp_ns=stamp, depth=None), None, pose)
    part.rename(bag)


def false(real: Path) -> dict[str, Any]:
    """How many pairs of views of different places are taken for one."""
    of_rooms = [views_of(s.images, s.depth, s.intrinsics) for s in test_windows(2 * PAIRS)]
    pairs = list(zip(of_rooms[:PAIRS], of_rooms[PAIRS:], strict=True))
    out = {"rooms": counted(pairs)}
    recorded = {name: recorded_views(real / f"tum_{name}") for name in ("fr1_rpy", "fr3_cabinet", "fr3_office")}
    names = list(recorded)
    out["recordings"] = counted([(recorded[a], recorded[b]) for i, a in enumerate(names) for b in names[i + 1 :]])
    walk = corridor_walk(5, 24)
    out["corridor, by looks alone"] = counted([(views_of(walk.images, walk.depth, walk.intrinsics),) * 2], apart=2)
    return out


def views_of(images: np.ndarray, depth: np.ndarray, intrinsics: np.ndarray) -> list[View]:
    return [view_of(image, d, intrinsics, None) for image, d in zip(images, depth, strict=True)]


def recorded_views(folder: Path) -> list[View]:
    """With a depth of 2 m everywhere: recordings without depth are taken for flat, which makes resections fit more easily, not less."""
    out = []
    for i, frame in enumerate(TumSequence(folder).iter_frames()):
        if i % 4 == 0 and frame.intrinsics is not None:
            out.append(view_of(frame.image, np.full(frame.image.shape[:2], 2.0, np.float32), frame.intrinsics, None))
    return out


def counted(pairs: list[tuple[list[View], ...]], apart: int = 0) -> dict[str, int]:
    compared = accepted = 0
    for first, second in pairs:
        for i, a in enumerate(first):
            for j, b in enumerate(second):
                if abs(i - j) >= apart:
                    compared += 1
                    accepted += not compare(a, b).reason
    return {"pairs": len(pairs), "compared": compared, "taken for one place": accepted}


def times(count: int = 200) -> dict[str, float]:
    """ms of CPU time: solving a graph of `count` keyframes with 15 loops, and building a map of their points again."""
    rng = np.random.default_rng(0)
    angle = np.linspace(0, 4 * np.pi, count)
    turn = geometry.rotation_from_vector(np.outer(angle, [0.0, 0.0, 1.0]))
    real = Similarities.of(geometry.transform(turn, 3 * np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)))
    first, second = np.arange(count - 1), np.arange(1, count)
    steps = real.at(first).inverse().after(real.at(second))
    steps = dataclasses.replace(steps, translation=steps.translation + rng.normal(0, 0.02, (count - 1, 3)))
    nodes = real.at(slice(1))
    for i in range(count - 1):
        nodes = nodes.joined(nodes.at([i]).after(steps.at([i])))
    edges = Edges(
        first, second, steps, np.tile(root_information(0.01, 0.02, 0.01), (count - 1, 1, 1)), np.zeros(count - 1, bool)
    )
    for i in range(0, 90, 6):
        j = i + count // 2
        z = real.at([i]).inverse().after(real.at([j]))
        edges = edges.joined(Edges.one(i, j, z, root_information(0.005, 0.02, 0.02), True))
    fixed = np.arange(count) == 0
    out = {}
    for name, free in (("graph, Sim(3)", True), ("graph, SE(3)", False)):
        optimise(nodes, edges, fixed, free)
        begun = time.process_time()
        optimise(nodes, edges, fixed, free)
        out[f"{name}, ms"] = 1e3 * (time.process_time() - begun)
    world_map = FollowingMap(0.05, 2_000_000, True)
    for i in range(count):
        points = np.ones(168 * 126, POINT_DTYPE)
        for axis, name in enumerate("xyz"):  # a wall of 3 m x 3 m, somewhere else for each frame
            points[name] = (rng.uniform(-1.5, 1.5, len(points)) if axis else 0.0) + real.translation[i, axis]
        world_map.add(points, (0, i), Corrections.none())
    now = Corrections(np.arange(count), real, 1)
    chunks = world_map.chunks()
    begun = time.process_time()
    new = rebuilt(chunks, now, world_map.voxel, world_map.max_points)
    out["map, ms"] = 1e3 * (time.process_time() - begun)
    out["map, points"], out["map, points of frames"] = len(new), sum(len(c.weight) for _, c in chunks)
    return out


def markdown(results: dict[str, Any]) -> str:
    lines = []
    if "returns" in results:
        lines += [
            "| recording | ATE in the map, m | of odometry | not moving | end of the path off, of its length: map | odometry "
            "| keyframes | loops closed, of views compared |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name, r in results["returns"].items():
            ate, end = r["ate_m"], r["end_share"]
            lines.append(
                f"| {name} | {ate['map']:.4f} | {ate['odometry']:.4f} | {ate['not moving']:.3f} | {end['map']:.2%} | "
                f"{end['odometry']:.2%} | {r['keyframes']} | {r['accepted']} of {r['offered']} |"
            )
    if "false" in results:
        lines += ["", "| different places | pairs | views compared | taken for one place |", "|---|---|---|---|"]
        for name, r in results["false"].items():
            lines.append(f"| {name} | {r['pairs']} | {r['compared']} | {r['taken for one place']} |")
    if "time" in results:
        lines += ["", "| at 200 keyframes | |", "|---|---|"]
        lines += [f"| {name} | {value:.0f} |" for name, value in results["time"].items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
