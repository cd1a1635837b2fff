"""How well each source tells metres: come_ros with depth at 1 % of the pixels, odometry with 2 % noise, a rig of 0.1 m, a known height.

  python test/benchmark/accuracy/scale.py                 run what this commit has not run yet -> results/scale.json, .md
  python test/benchmark/accuracy/scale.py --rooms 4       fewer rendered rooms
  python test/benchmark/accuracy/scale.py fr3_cabinet     only this recording, or rooms (as in the tables)

The bundled model has no unit. "now" is the error of the estimate against the scale of the depth of the same window, at every window from
the first known one on (median); "end" is the error of the last estimate against the scale of the whole run: of depth, or of the path for
odometry. "map" is the error of the lengths of the map after the drift of scale is taken out: of depth as the map has it, keyframe by
keyframe (median), and of the scale of trajectory_map. Depth and rig follow the drift of the model's unit: the bar, and whether the last
error lies within two of the sigmas that are published, is about "now"; odometry and height are means over the run: it is about "end".
Trivial baselines: the first window's median depth is taken to be 2.5 m; the mean scale of all other rooms (of their depth, or path).
Rooms have seeds that nothing was tuned on (20000860 on); what was tuned on: rooms 20000820 to 827 and fr3_cabinet. Rooms have true
intrinsics, at 320x240 and 10 Hz; the camera's mounting is known (the first one's attitude), as on a robot. A rig needs a second image, so
there is none of fr3_cabinet. Odometry: each step's length errs by 2 % of it, independently.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmark.stamped import TINY, git, shared, write_result

from come_ros import geometry
from come_ros.camera.preprocess import in_model_pixels
from come_ros.config import Config
from come_ros.datasets.rooms.camera import degrade
from come_ros.datasets.rooms.raycast import render
from come_ros.datasets.rooms.rooms import render_sequence
from come_ros.datasets.rooms.scene import make_scene
from come_ros.datasets.sequence import open_sequence
from come_ros.datasets.stamps import matched
from come_ros.mapping.follow import in_map
from come_ros.mapping.mapper import Mapper
from come_ros.pipeline import ReconstructionPipeline
from come_ros.types import F32, F64, Frame, Submap

RESULTS = Path(__file__).parent / "results"
SOURCES = "depth", "odometry", "rig", "height"
MEANS = "odometry", "height"  # sources that tell the scale of the whole run, not that of a window
BARS = {"depth": 0.03, "odometry": 0.03, "rig": 0.05, "height": 0.08}
CABINET = "fr3_cabinet"
FIRST_ROOM, FRAMES, RATE_HZ = 20_000_860, 100, 10.0
SHARE, WHEEL_NOISE, BASELINE_M = 0.01, 0.02, 0.1
ASSUMED_M = 2.5


class Truth(NamedTuple):
    frames: list[Frame]
    depth: dict[int, F32]
    poses: dict[int, F64]
    seed: int | None


def room(seed: int) -> Truth:
    q = render_sequence(seed, FRAMES, 320, 240, RATE_HZ)
    stamps = [int(t) for t in q.stamps_ns]
    frames = [Frame(image, t, "cam", q.intrinsics) for image, t in zip(q.images, stamps, strict=True)]
    return Truth(
        frames,
        dict(zip(stamps, q.depth, strict=True)),
        dict(zip(stamps, q.world_from_camera, strict=True)),
        seed,
    )


def cabinet() -> Truth:
    folder = shared() / "data" / "real" / "tum_fr3_cabinet"
    with open_sequence(folder) as sequence, open_sequence(folder) as again:
        frames, depth, poses = list(sequence.iter_frames()), dict(again.iter_depth()), sequence.truth()
    stamps = [f.stamp_ns for f in frames]
    return Truth(frames, matched(stamps, depth), matched(stamps, poses), None)


def equipped(truth: Truth, source: str) -> tuple[list[Frame], dict[str, Any]]:
    """The frames of a robot that has that source, and the parameters to use it."""
    rng = np.random.default_rng(truth.seed or 0)
    flat: dict[str, Any] = {"scale.mode": source}
    first = truth.poses[min(truth.poses)]
    level = geometry.transform(first[:3, :3], np.zeros(3))  # the camera's attitude on a robot that stands at its place
    frames = [dataclasses.replace(f, base="base", base_from_camera=level) for f in truth.frames]
    if source == "depth":
        keep = {t: np.where(rng.random(d.shape) < SHARE, d, np.nan).astype(np.float32) for t, d in truth.depth.items()}
        frames = [dataclasses.replace(f, depth=keep.get(f.stamp_ns)) for f in frames]
    elif source == "odometry":
        wheels: dict[int, F64] = {}
        last = None
        for t in sorted(truth.poses):
            if last is None:
                wheels[t] = truth.poses[t]
            else:
                step = geometry.inverse(truth.poses[last]) @ truth.poses[t]
                step[:3, 3] *= 1 + WHEEL_NOISE * rng.standard_normal()
                wheels[t] = wheels[last] @ step
            last = t
        frames = [dataclasses.replace(f, world_from_camera=wheels.get(f.stamp_ns)) for f in frames]
    elif source == "height":
        flat["scale.height"] = float(np.mean([p[2, 3] for p in truth.poses.values()]))
    else:
        flat["cameras"] = "left+right"
        frames = with_second_camera(truth, frames, level)
    return frames, flat


def with_second_camera(truth: Truth, frames: list[Frame], level: F64) -> list[Frame]:
    """The same rooms seen from BASELINE_M to the right as well, with noise of its own."""
    assert truth.seed is not None
    scene, right = make_scene(truth.seed), geometry.transform(np.eye(3), [BASELINE_M, 0, 0])
    poses = np.stack([truth.poses[f.stamp_ns] @ right for f in frames])
    k = frames[0].intrinsics
    height, width = frames[0].image.shape[:2]
    images, _ = render(scene, poses, k, width, height, 1)
    images = degrade(images, np.random.default_rng((truth.seed, 1)))
    out = []
    for f, image in zip(frames, images, strict=True):
        other = Frame(image, f.stamp_ns, "right", k, base="base", base_from_camera=level @ right)
        out.append(dataclasses.replace(f, camera="left", others=(other,)))
    return out


def measured(truth: Truth, source: str) -> dict[str, Any]:
    """The errors of one run, as logarithms."""
    frames, flat = equipped(truth, source)
    config = Config.from_flat({**flat, "device": "cpu", "threads": 1})
    pipeline = ReconstructionPipeline(config)
    mapper = Mapper(False, config.map.max_keyframes, loops=False)
    stamps: list[int] = []
    poses: list[F64] = []
    local: list[float] = []  # log metres per unit of the odometry, by the depth of each keyframe
    windows: list[dict[str, float]] = []
    assumed = None
    scale = pipeline.scale
    for submap in pipeline.run(iter(frames)):
        found = [logs for row in leading(submap) if (logs := by_depth(submap, row, truth.depth)) is not None]
        for row in leading(submap):
            mapper.add(submap, row)
            stamps.append(submap.frames[row].stamp_ns)
            poses.append(submap.odom_from_camera[row])
            value = by_depth(submap, row, truth.depth)
            local.append(np.nan if value is None else value)
        if not len(submap):
            continue
        scale = submap.scale
        if assumed is None:
            depth = submap.depth[0]
            assumed = float(np.log(ASSUMED_M / np.median(depth[np.isfinite(depth)])))
        if scale.known and found:
            windows.append({"error": float(np.log(scale.correction) - np.median(found)), "sigma": scale.sigma})
    by_path = path_scale(stamps, np.stack(poses), truth)
    whole = float(np.nanmedian(local))
    true = by_path if source == "odometry" else whole
    unit = float(np.log(scale.unit))
    out: dict[str, Any] = {
        "known": scale.known, "sigma": scale.sigma if scale.known else None, "left_out": dict(scale.left_out),
        "by_depth": whole + unit, "by_path": by_path + unit, "drift": float(np.nanstd(local)),
        # metres in a unit of the odometry, if the first depth were that
        "assumed": float(assumed if assumed is not None else np.nan) - true, "in_metres": scale.in_metres,
    }  # fmt: skip
    if scale.known:
        correction = float(np.log(scale.correction))
        maps = (
            mapper.corrections.map_from_odom.log_scale
            if mapper.corrections.version
            else np.zeros(len(mapper.keyframes))
        )
        kept = dict(zip(mapper.corrections.stamps_ns.tolist(), maps, strict=True))
        of_map = [
            correction + kept[t] - value
            for t, value in zip(stamps, local, strict=True)
            if t in kept and np.isfinite(value)
        ]
        moved = in_map(np.array(stamps, np.int64), np.stack(poses), mapper.corrections)
        out |= {
            "end": correction - true,
            "now": float(np.median([abs(w["error"]) for w in windows])) if windows else None,
            "last": windows[-1]["error"] if windows else None,
            "map_depth": float(np.median(np.abs(of_map))) if of_map else None,
            "map_path": correction - path_scale(stamps, moved, truth),
        }  # fmt: skip
    return out


def leading(submap: Submap) -> range:
    """Rows of the first camera."""
    cameras = 1 + len(submap.frames[0].others) if len(submap) else 1
    return range(0, len(submap), cameras)


def by_depth(submap: Submap, row: int, depth: Mapping[int, F32]) -> float | None:
    """Log of the metres per unit of the odometry, by all pixels of a keyframe's true depth; None if there is none. depth: by stamp."""
    real = depth.get(submap.frames[row].stamp_ns)
    if real is None:
        return None
    ours = submap.depth[row]
    real = in_model_pixels(real, ours.shape)
    good = np.isfinite(real) & (real > 0) & np.isfinite(ours)
    return float(np.median(np.log(real[good] / ours[good]))) if good.any() else None


def path_scale(stamps: list[int], poses: F64, truth: Truth) -> float:
    """Log of the truth's units in one of ours."""
    both = [(p[:3, 3], truth.poses[t][:3, 3]) for t, p in zip(stamps, poses, strict=True) if t in truth.poses]
    ours, real = (np.stack(x) for x in zip(*both, strict=True))
    return float(np.log(geometry.umeyama(ours, real)[0]))


# Tables


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def table(rows: dict[str, dict[str, Any]]) -> str:
    """One line for each source: medians and worst of the rooms, and the cabinet."""
    head = (
        "source", "runs known", "now, rooms", "end, rooms", "worst end", "map: depth", "map: path", "within 2 sigma", "median sigma",
        CABINET + ": now / end / map", "2.5 m assumed, rooms", "mean of others", "bar", "",
    )  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for source in SOURCES:
        mine = {name: r[source] for name, r in rows.items() if source in r}
        rooms = {name: r for name, r in mine.items() if name != CABINET}
        known = [r for r in rooms.values() if r["known"]]
        every = [r for r in mine.values() if r["known"]]
        if not known:
            lines.append(f"| {source} | 0 of {len(rooms)} |" + " - |" * (len(head) - 2))
            continue

        def middle(key: str, of: list[dict[str, Any]] = known) -> float:
            return float(np.median([abs(r[key]) for r in of if r[key] is not None]))

        kind = "by_path" if source == "odometry" else "by_depth"
        truths = np.array([r[kind] for r in rooms.values()])
        others = [abs(t - (truths.sum() - t) / max(1, len(truths) - 1)) for t in truths]
        last = "end" if source in MEANS else "last"
        inside = sum(r[last] is not None and abs(r[last]) < 2 * r["sigma"] for r in every) / len(every)
        shown = mine.get(CABINET)
        of_cabinet = "-" if not shown else "unknown" if not shown["known"] else " / ".join(
            percent(abs(shown[k])) for k in ("now", "end", "map_depth")
        )  # fmt: skip
        key = "end" if source in MEANS else "now"
        reached = middle(key) <= BARS[source] and (not shown or (shown["known"] and abs(shown[key]) <= BARS[source]))
        lines.append(
            f"| {source} | {len(known)} of {len(rooms)} | {percent(middle('now'))} | {percent(middle('end'))} | "
            f"{percent(max(abs(r['end']) for r in known))} | {percent(middle('map_depth'))} | {percent(middle('map_path'))} | "
            f"{inside:.0%} | {percent(middle('sigma'))} | {of_cabinet} | {percent(middle('assumed', list(rooms.values())))} | "
            f"{percent(float(np.median(others)))} | {100 * BARS[source]:.0f} %, 90 % | "
            f"{'reached' if reached and inside >= 0.9 else 'MISSED'} |"
        )
    return "\n".join(lines)


def each(rows: dict[str, dict[str, Any]]) -> str:
    """One line for each run."""
    lines = [
        "| recording | source | end | sigma | now | map: depth / path | drift of scale | left out |",
        "|" + "---|" * 8,
    ]
    for name, sources in rows.items():
        for source, r in sources.items():
            left_out = ", ".join(f"{n} {why.partition(': ')[2]}" for why, n in r["left_out"].items()) or "-"
            if not r["known"]:
                lines.append(f"| {name} | {source} | unknown | - | - | - | {percent(r['drift'])} | {left_out} |")
                continue
            lines.append(
                f"| {name} | {source} | {100 * r['end']:+.1f} % | {percent(r['sigma'])} | {percent(r['now'])} | "
                f"{percent(r['map_depth'])} / {percent(abs(r['map_path']))} | {percent(r['drift'])} | {left_out} |"
            )
    return "\n".join(lines)


def runs(rooms: int) -> Iterator[tuple[str, Callable[[], Truth], tuple[str, ...]]]:
    yield CABINET, cabinet, tuple(s for s in SOURCES if s != "rig")
    for i in range(rooms):
        seed = FIRST_ROOM + i
        yield f"room {seed}", lambda seed=seed: room(seed), SOURCES  # type: ignore[misc]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"{CABINET}, rooms (default: both)")
    parser.add_argument("--rooms", type=int, default=10, help="rendered rooms (default %(default)s)")
    parser.add_argument("--again", action="store_true", help="run again what this commit has run already")
    parser.add_argument("-o", "--out", default="out/scale", help="where runs are kept (default %(default)s)")
    args = parser.parse_args()
    if unknown := set(args.names) - {CABINET, "rooms"}:
        parser.error(f"there is no {', '.join(sorted(unknown))}: choose {CABINET} or rooms")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    out = Path(args.out, git("rev-parse", "--short=12", "HEAD"))
    out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, Any]] = {}
    for name, made, sources in tqdm(list(runs(args.rooms)), unit="recording", disable=None):
        wanted = not args.names or (name if name == CABINET else "rooms") in args.names
        truth = None
        for source in sources:
            kept = out / f"{name.replace(' ', '_')}_{source}.json"
            if wanted and (args.again or not kept.exists()):
                truth = truth or made()
                kept.write_text(json.dumps(measured(truth, source)))
            if kept.exists():
                rows.setdefault(name, {})[source] = json.loads(kept.read_text())
    about = " ".join(__doc__[__doc__.index("The bundled model") :].split())
    text = f"# Metric scale\n\n{about}\n\n{table(rows)}\n\n{each(rows)}\n"
    write_result(RESULTS, "scale", {"rows": rows}, text, weights=TINY)
    print(text)


if __name__ == "__main__":
    main()
