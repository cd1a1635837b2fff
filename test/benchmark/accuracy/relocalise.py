"""Relocalisation: a session that starts anywhere in a saved map finds itself there, and in no other map.

    python test/benchmark/accuracy/relocalise.py [DATA] [--only rooms|recording] [--seeds 20000900 ...] [--out FOLDER]

Rooms: eight rooms of the test split are mapped on a walk there (150 images), and sessions of 2 s start every 2 s on the way back, where the
camera sways on its own. Recording: fr1_rpy_long is mapped from its even images; sessions of 2 s start every second, of its odd images. A
harder form: mapped from its first half, sessions of the second half. Each session is also given maps of other places. Everything goes
through the pipeline and the bundled model as in `come_ros bag`. Nothing was tuned on the rooms. Two faults were found and corrected on
the recording, so it is no test; and its reference is the map itself.

Right: less than 0.3 m and 10 degrees from the truth (rooms, the map aligned with the truth by its own keyframes), or less than 0.15 scene
depths and 10 degrees from where the map itself has the camera at that time (the recording, whose camera hardly moves; in the harder form
from a map of all images).
Trivial baseline: the pose of the saved keyframe whose place descriptor is most alike, without geometry; it never refuses.
DATA is the folder of recorded data (default: data/ in $COME_ROS_SHARED, else in `shared` next to the checkout). Writes
results/relocalise.json and results/relocalise.md; with --only or --seeds nothing is written there.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "test")]

from benchmark.accuracy.scale import by_depth  # noqa: E402
from benchmark.stamped import TINY, write_result  # noqa: E402

from come_ros import geometry  # noqa: E402
from come_ros.config import Config  # noqa: E402
from come_ros.datasets.rooms.returning import returning_room  # noqa: E402
from come_ros.datasets.tum import TumSequence  # noqa: E402
from come_ros.mapping.follow import in_map  # noqa: E402
from come_ros.mapping.mapper import Mapper  # noqa: E402
from come_ros.mapping.saved_map import SavedMap  # noqa: E402
from come_ros.pipeline import ReconstructionPipeline  # noqa: E402
from come_ros.types import F32, F64, Frame, Submap  # noqa: E402

RESULTS = Path(__file__).with_name("results")
ROOMS, IMAGES, RATE_HZ = range(20_000_900, 20_000_908), 300, 10.0
SESSION_S, MOST_WRONG_MAPS = 2.0, 3
NEAR_M, NEAR_DEPTHS, NEAR_RAD = 0.3, 0.15, np.deg2rad(10.0)
NANO, MOST_GAP_NS = 1_000_000_000, 300_000_000


class Map(NamedTuple):
    """A saved map. truth: (4, 4) with a scale, world_from_map; None where errors are told in its own frame. place: of the world."""

    name: str
    place: str
    saved: SavedMap
    truth: F64 | None


class Session(NamedTuple):
    """Two seconds of images, as the pipeline has them. real: world_from_camera, or map_from_camera, by stamp. depth: true, by stamp."""

    map: str
    place: str
    submaps: list[Submap]
    seconds: list[float]  # of the images that were read for each submap
    real: dict[int, F64]
    depth: dict[int, F32]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("COME_ROS_SHARED") or ROOT.parent / "shared")
    parser.add_argument("data", nargs="?", type=Path, default=shared / "data")
    parser.add_argument("--only", choices=("rooms", "recording"), default=None)
    parser.add_argument("--seeds", type=int, nargs="*", default=list(ROOMS))
    parser.add_argument("--out", type=Path, default=None, help="write the results of --only or --seeds here")
    options = parser.parse_args()
    pipelines = Pipelines()
    maps: list[Map] = []
    sessions: list[Session] = []
    if options.only != "recording":
        for seed in options.seeds:
            add_room(seed, pipelines, maps, sessions)
    if options.only != "rooms":
        add_recording(options.data / "real" / "tum_fr1_rpy_long", pipelines, maps, sessions)
    rows = [row for session in sessions for row in tried(session, maps)]
    results = {"summary": summary(rows), "rows": rows}
    text = markdown(results)
    print(text)
    whole = options.only is None and options.seeds == list(ROOMS)
    if whole or options.out is not None:
        write_result(RESULTS if whole else options.out, "relocalise", results, text, weights=TINY)
    return 0


class Pipelines:
    """One pipeline, new for each run."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        self.config = Config().replace(**{"threads": 1, "device": "cpu", "loop.enabled": True, "map.enabled": True})
        self.backbone = ReconstructionPipeline(self.config).backbone

    def submaps(self, frames: Sequence[Frame]) -> tuple[list[Submap], list[float]]:
        """All submaps, and how many seconds of images were read for each."""
        newest = [frames[0].stamp_ns]

        def read() -> Iterable[Frame]:
            for frame in frames:
                newest[0] = frame.stamp_ns
                yield frame

        out, seconds = [], []
        for submap in ReconstructionPipeline(self.config, self.backbone).run(iter(read())):
            if len(submap):
                out.append(submap)
                seconds.append((newest[0] - frames[0].stamp_ns) / NANO)
        return out, seconds


def mapped(submaps: list[Submap], name: str) -> SavedMap:
    mapper = Mapper(False, 2000)
    for submap in submaps:
        for row in range(len(submap)):
            mapper.add(submap, row, lambda s, r: np.isfinite(s.depth[r]))
    saved = mapper.save("bundled", float("nan"), float("nan"), float("nan"))
    assert saved is not None
    print(f"{name}: {len(saved.keyframes)} keyframes", flush=True)
    return dataclasses.replace(saved, path=name)


def add_room(seed: int, pipelines: Pipelines, maps: list[Map], sessions: list[Session]) -> None:
    room = returning_room(seed, IMAGES)
    frames = [
        Frame(image, int(stamp), "camera_optical_frame", room.intrinsics)
        for image, stamp in zip(room.images, room.stamps_ns, strict=True)
    ]
    real = {int(s): p for s, p in zip(room.stamps_ns, room.world_from_camera, strict=True)}
    name, half, stamps = f"room {seed}", IMAGES // 2, [int(s) for s in room.stamps_ns]
    saved = mapped(pipelines.submaps(frames[:half])[0], name)
    maps.append(Map(name, name, saved, world_from_map(saved, real)))
    length, every = int(SESSION_S * RATE_HZ) + 1, int(2 * RATE_HZ)
    for start in range(half, IMAGES - length, every):
        part = frames[start : start + length]
        poses = {f.stamp_ns: real[f.stamp_ns] for f in part}
        sessions.append(
            Session(name, name, *pipelines.submaps(part), poses, dict(zip(stamps, room.depth, strict=True)))
        )


def add_recording(folder: Path, pipelines: Pipelines, maps: list[Map], sessions: list[Session]) -> None:
    frames = list(TumSequence(folder).iter_frames())
    half = frames[len(frames) // 2].stamp_ns
    of_all = path_in_map(pipelines.submaps(frames)[0])
    for name, of_map, of_sessions in (
        ("fr1_rpy_long, even images", frames[::2], frames[1::2]),
        (
            "fr1_rpy_long, first half",
            [f for f in frames if f.stamp_ns < half],
            [f for f in frames if f.stamp_ns >= half],
        ),
    ):
        submaps = pipelines.submaps(of_map)[0]
        saved = mapped(submaps, name)
        between = of_map is not frames and of_map[-1].stamp_ns > half  # the map was there at the time of the sessions
        real = path_in_map(submaps) if between else of_all
        maps.append(Map(name, "fr1", saved, np.eye(4) if between else world_from_map(saved, real)))
        start = of_sessions[0].stamp_ns
        while start + SESSION_S * NANO <= of_sessions[-1].stamp_ns:
            part = [f for f in of_sessions if start <= f.stamp_ns <= start + SESSION_S * NANO]
            sessions.append(Session(name, "fr1", *pipelines.submaps(part), real, {}))
            start += NANO


def path_in_map(submaps: list[Submap]) -> dict[int, F64]:
    """map_from_camera of all keyframes of the windows."""
    mapper = Mapper(False, 2000)
    poses: dict[int, F64] = {}
    for submap in submaps:
        for row in range(len(submap)):
            mapper.add(submap, row)
            poses[submap.frames[row].stamp_ns] = submap.odom_from_camera[row]
    stamps = np.array(sorted(poses), np.int64)
    placed = in_map(stamps, np.stack([poses[int(t)] for t in stamps]), mapper.corrections)
    return dict(zip(stamps.tolist(), placed, strict=True))


def pose_at(poses: dict[int, F64], stamp_ns: int) -> F64 | None:
    """(4, 4) at that time, between the poses before and after it; None if these are more than MOST_GAP_NS apart."""
    if stamp_ns in poses:
        return poses[stamp_ns]
    before = max((t for t in poses if t < stamp_ns), default=None)
    after = min((t for t in poses if t > stamp_ns), default=None)
    if before is None or after is None or after - before > MOST_GAP_NS:
        return None
    share, a, b = (stamp_ns - before) / (after - before), poses[before], poses[after]
    turn = geometry.rotation_from_vector(share * geometry.vector_from_rotation(a[:3, :3].T @ b[:3, :3]))
    return geometry.transform(a[:3, :3] @ turn, (1 - share) * a[:3, 3] + share * b[:3, 3])


def world_from_map(saved: SavedMap, real: dict[int, F64]) -> F64:
    """(4, 4) with a scale: rotation by the keyframes' rotations, the rest by their places."""
    pairs = [(n, pose) for n, k in enumerate(saved.keyframes) if (pose := pose_at(real, k.stamp_ns)) is not None]
    rows = [n for n, _ in pairs]
    truth = np.stack([pose for _, pose in pairs])
    nodes = saved.nodes.at(rows)
    turn = geometry.average_rotation(truth[:, :3, :3] @ np.swapaxes(nodes.rotation, 1, 2))
    places, wanted = nodes.translation @ turn.T, truth[:, :3, 3]
    a, b = places - places.mean(axis=0), wanted - wanted.mean(axis=0)
    scale = float((a * b).sum() / max((a * a).sum(), 1e-12))
    return geometry.transform(scale * turn, wanted.mean(axis=0) - scale * places.mean(axis=0))


def tried(session: Session, maps: list[Map]) -> list[dict[str, Any]]:
    """One row for the map that it belongs to, and some for maps of other places."""
    others = [m for m in maps if m.place != session.place]
    begin = [m.name for m in maps].index(session.map)
    chosen = [others[(begin + i) % len(others)] for i in range(min(MOST_WRONG_MAPS, len(others)))]
    own = next(m for m in maps if m.name == session.map)
    return [located(session, m) for m in (own, *chosen)]


def located(session: Session, where: Map) -> dict[str, Any]:
    mapper = Mapper(False, 2000, saved=where.saved, localize=True)
    begun, after, then = time.process_time(), None, None
    for submap, seconds in zip(session.submaps, session.seconds, strict=True):
        for row in range(len(submap)):
            mapper.add(submap, row)
            if mapper.located and after is None:
                after, then = (
                    seconds,
                    errors(session, where, mapper) | {"scale": scale_off(session, where, mapper, submap, row)},
                )
    took = time.process_time() - begun
    own = where.name == session.map
    out: dict[str, Any] = {
        "session": session.map, "start_ns": session.submaps[0].frames[0].stamp_ns, "map": where.name, "own": own,
        "located": mapper.located, "after_s": after, "cpu_s": took, "compared": mapper.search.compared,
        "refused": dict(mapper.search.refused), "keyframes": len(mapper.keyframes) - mapper.known,
    }  # fmt: skip
    if own:
        out |= then or {"baseline": errors(session, where, mapper)["baseline"]}
        if mapper.located:
            out["at_the_end"] = errors(session, where, mapper)["error"]
    return out


def errors(session: Session, where: Map, mapper: Mapper) -> dict[str, Any]:
    """Of the newest keyframe, as the map has it, and by the most similar saved keyframe alone; None where there is no truth."""
    newest = mapper.keyframes[-1]
    real = pose_at(session.real, newest.stamp_ns)
    if where.name != session.map or real is None:
        return {"error": None, "baseline": None}
    depth = float(np.median([k.view.usual_depth for k in where.saved.keyframes if k.view is not None]))
    return {
        "error": error(where, mapper.nodes.at([-1]).poses()[0], float(np.exp(mapper.unit)), real, depth),
        "baseline": error(where, most_alike(where.saved, newest), 1.0, real, depth),
    }


def scale_off(session: Session, where: Map, mapper: Mapper, submap: Submap, row: int) -> float | None:
    """Logarithm of the metres of the session's unit, by a saved map whose own metres are right, over those by the newest true depth."""
    true = by_depth(submap, row, session.depth)
    if true is None or where.truth is None:
        return None
    return float(np.log(np.cbrt(np.linalg.det(where.truth[:3, :3]))) + mapper.unit - true)


def most_alike(saved: SavedMap, keyframe: Any) -> F64:
    """(4, 4) of the saved keyframe whose place descriptor is nearest, the mean of all taken away."""
    places = np.stack([k.view.place for k in saved.keyframes if k.view is not None])
    centre = places.mean(axis=0)
    a, b = places - centre, keyframe.view.place - centre
    best = int((a @ b / np.maximum(np.linalg.norm(a, axis=1), 1e-9)).argmax())
    return saved.nodes.poses()[best]


def error(where: Map, pose: F64, unit: float, real: F64, depth: float) -> dict[str, Any]:
    """unit: units of the saved map by those of `pose`. depth: usual one, of the saved map."""
    assert where.truth is not None
    scale = float(np.cbrt(np.linalg.det(where.truth[:3, :3])))
    origin = where.saved.nodes.translation[0]  # a closure keeps the first keyframe where it is, see Mapper
    place = origin + unit * (pose[:3, 3] - origin)
    off = float(np.linalg.norm(where.truth[:3, :3] @ place + where.truth[:3, 3] - real[:3, 3]))
    turn = float(geometry.rotation_angle(real[:3, :3].T @ (where.truth[:3, :3] / scale) @ pose[:3, :3]))
    near = off < NEAR_M if where.place != "fr1" else off < NEAR_DEPTHS * depth * scale
    return {
        "way": off,
        "way_depths": off / (depth * scale),
        "deg": float(np.rad2deg(turn)),
        "right": bool(near and turn < NEAR_RAD),
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    groups: dict[str, list[dict[str, Any]]] = {}
    for each in rows:
        groups.setdefault("rooms" if each["session"].startswith("room") else each["session"], []).append(each)
    for name, some in groups.items():
        # where the truth is not known at the moment of the decision nothing can be said of it
        own = [r for r in some if r["own"] and not (r["located"] and r["error"] is None)]
        wrong = [r for r in some if not r["own"]]
        found = [r for r in own if r["located"]]
        ends = [r["at_the_end"] for r in found if r["at_the_end"] is not None]
        out[name] = {
            "sessions": len(own), "right": sum(r["error"]["right"] for r in found),
            "wrong": sum(not r["error"]["right"] for r in found), "not_found": len(own) - len(found),
            "at_the_end_right": sum(e["right"] for e in ends), "at_the_end": len(ends),
            "baseline_right": sum((r["baseline"] or {}).get("right", False) for r in own),
            "wrong_maps_tried": len(wrong), "wrong_maps_accepted": sum(r["located"] for r in wrong),
            "after_s": quantiles([r["after_s"] for r in found]), "way": quantiles([r["error"]["way"] for r in found]),
            "way_depths": quantiles([r["error"]["way_depths"] for r in found]),
            "scale": quantiles([abs(r["scale"]) for r in found if r["scale"] is not None], 90),
            "deg": quantiles([r["error"]["deg"] for r in found]),
            "cpu_ms_per_keyframe": 1e3 * sum(r["cpu_s"] for r in own) / max(1, sum(r["keyframes"] for r in own)),
        }  # fmt: skip
    return out


def quantiles(values: list[float], high: int = 100) -> dict[str, float]:
    """The median, and the percentile `high`, which is called the largest."""
    return {} if not values else {"p50": float(np.median(values)), "max": float(np.percentile(values, high))}


def markdown(results: dict[str, Any]) -> str:
    columns = (
        "sessions of 2 s in", "number", "right", "wrong", "not found", "right at the end of the 2 s",
        "right by the most similar keyframe alone",
        "maps of other places tried",
        "accepted of them", "located after, s: median, max", "error: median, max", "deg: median, max",
        "scale off, %: median, 90th percentile", "CPU per keyframe, ms",
    )  # fmt: skip
    lines = [row(columns), row(["---"] * len(columns))]
    for name, r in results["summary"].items():
        number = max(1, r["sessions"])
        way = f"{pair(r['way'], 3)} m" if name.startswith("room") else f"{pair(r['way_depths'], 3)} scene depths"
        lines.append(
            row([
                name, r["sessions"], f"{r['right']} ({r['right'] / number:.0%})", r["wrong"], r["not_found"],
                f"{r['at_the_end_right']} of {r['at_the_end']}",
                f"{r['baseline_right']} ({r['baseline_right'] / number:.0%})", r["wrong_maps_tried"], r["wrong_maps_accepted"],
                pair(r["after_s"], 1), way, pair(r["deg"], 1),
                pair({k: 100 * v for k, v in r["scale"].items()}, 1), f"{r['cpu_ms_per_keyframe']:.0f}",
            ])
        )  # fmt: skip
    lines += [
        "", "Right: at the moment of the decision within 0.3 m and 10 degrees of the truth (rooms), or 0.15 scene depths and 10 "
        "degrees of the "
        "map's own pose at that time (recording). Seconds are those of the images that were read. Scale: metres of the session's unit, as "
        "a map whose own are right has it, against the true depth of that keyframe.",
    ]  # fmt: skip
    missed = [r for r in results["rows"] if r["own"] and not (r.get("error") or {}).get("right")]
    if missed:
        columns = "not right", "keyframes", "pairs compared", "most frequent reasons", "error, m", "deg"
        lines += ["", row(columns), row(["---"] * len(columns))]
        for r in missed:
            e, most = r.get("error"), sorted(r["refused"].items(), key=lambda item: -item[1])[:2]
            why = ", ".join(f"{n} {reason}" for reason, n in most)
            way, deg = (f"{e[k]:.3f}" if e else "" for k in ("way", "deg"))
            lines.append(row([r["session"], r["keyframes"], r["compared"], why, way, deg]))
    return "\n".join(lines) + "\n"


def row(cells: Iterable[Any]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def pair(q: dict[str, float], digits: int) -> str:
    return f"{q['p50']:.{digits}f}, {q['max']:.{digits}f}" if q else ""


if __name__ == "__main__":
    sys.exit(main())
