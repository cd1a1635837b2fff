"""What a live run is worth: counts, latencies, and errors against the truth beside null models that see nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import geometry
from ..datasets.rosbag import Bag
from ..datasets.tum import nearest
from ..errors import ComeRosError
from ..evaluation import depth_errors, rotation_error_deg
from ..files import write_tum
from ..preprocess import CropResize
from ..types import F32, F64
from .live import LiveRun

NANO = 1_000_000_000
_MODEL = ("backbone", "weights", "device", "precision", "resolution")
MEAN_DEPTH = Path(__file__).resolve().parents[1] / "models" / "mean_depth.npy"
"""(h, w) mean depth of the training rooms, each frame scaled to median 1, if it ships."""


class ScoreError(ComeRosError):
    """A recording does not hold what it must."""


@dataclass(eq=False)
class Recording:
    """What the node published, by stamp of the image. counts: messages by topic. arrivals: topic -> {stamp: when, ns}.

    odom_from_camera: (4, 4). depth: (h, w), NaN where none. intrinsics: (3, 3). points: structured, as published, in
    `points_frame`, which is `camera` or the odometry's. input, inference: values of the node's last diagnostics.
    """

    counts: dict[str, int] = field(default_factory=dict)
    arrivals: dict[str, dict[int, int]] = field(default_factory=dict)
    odom_from_camera: dict[int, F64] = field(default_factory=dict)
    depth: dict[int, F32] = field(default_factory=dict)
    intrinsics: dict[int, F64] = field(default_factory=dict)
    points: dict[int, NDArray[Any]] = field(default_factory=dict)
    points_frame: str = ""
    camera: str = ""
    input: dict[str, str] = field(default_factory=dict)
    inference: dict[str, str] = field(default_factory=dict)


def read_recording(path: Path, node: str = "/come") -> Recording:
    """Raises ScoreError if the file is damaged."""
    from mcap.exceptions import McapError
    from mcap.reader import make_reader
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_JAZZY)
    out = Recording()
    try:
        with open(path, "rb") as stream:
            for schema, channel, message in make_reader(stream).iter_messages():
                if schema is None:
                    continue
                out.counts[channel.topic] = out.counts.get(channel.topic, 0) + 1
                decoded: Any = store.deserialize_cdr(message.data, schema.name)
                if channel.topic == "/diagnostics":
                    for status in decoded.status:
                        for kind, values in (("input", out.input), ("inference", out.inference)):
                            if status.name == f"come: {kind}":
                                values.update({v.key: v.value for v in status.values})
                elif hasattr(decoded, "header"):
                    stamp = decoded.header.stamp.sec * NANO + decoded.header.stamp.nanosec
                    out.arrivals.setdefault(channel.topic, {})[stamp] = message.log_time
                    if channel.topic.startswith(node + "/"):
                        _take(out, channel.topic[len(node) + 1 :], stamp, decoded)
    except (OSError, McapError) as error:
        raise ScoreError(f"cannot read the recording {path}: {error}") from error
    return out


def _take(out: Recording, name: str, stamp: int, message: Any) -> None:
    if name == "odometry":
        p, q = message.pose.pose.position, message.pose.pose.orientation
        rotation = geometry.matrix_from_quat_xyzw([q.x, q.y, q.z, q.w])
        out.odom_from_camera[stamp] = geometry.transform(rotation, [p.x, p.y, p.z])
        out.camera = message.child_frame_id
    elif name == "depth/image":
        depth = np.frombuffer(message.data, "<f4").reshape(message.height, message.width).copy()
        out.depth[stamp] = np.where(np.isfinite(depth), depth, np.float32(np.nan))
    elif name == "depth/camera_info":
        out.intrinsics[stamp] = np.asarray(message.k, np.float64).reshape(3, 3)
    elif name == "points":
        dtype = np.dtype([(f.name, "<f4") for f in message.fields])
        out.points[stamp] = np.frombuffer(message.data, dtype)
        out.points_frame = message.header.frame_id


@dataclass(eq=False)
class Truth:
    """What the bag knows of the frames that were used. images: how many the bag has. world_from_camera: stamp ->
    (4, 4). depth: stamp -> metres at the pixels of the node's depth image."""

    images: int
    world_from_camera: dict[int, F64]
    depth: dict[int, F32]


def read_truth(path: str | Path, recording: Recording, topic: str | None = None) -> Truth:
    """Truth of `path` for the frames of a recording: the nearest within 20 ms. Raises DatasetError."""
    with Bag(path, topic) as bag:
        poses = bag.truth()
        stamps = sorted(recording.odom_from_camera)
        near = nearest(stamps, list(poses)) if poses else [None] * len(stamps)
        known = list(poses.values())
        world_from_camera = {t: known[i] for t, i in zip(stamps, near, strict=True) if i is not None}
        wanted = sorted(recording.depth)
        depth: dict[int, F32] = {}
        for stamp, metres in bag.iter_depth():
            (i,) = nearest([stamp], wanted)
            if i is not None:
                depth[wanted[i]] = in_model_pixels(metres, recording.depth[wanted[i]].shape)
        return Truth(len(bag), world_from_camera, depth)


def in_model_pixels(depth: F32, shape: tuple[int, ...]) -> F32:
    """Depth (H, W) of the source at the pixels of the model's image, `shape` (h, w): the nearest, no mixture."""
    height, width = depth.shape
    h, w = shape
    scale = max(w / width, h / height)
    plan = CropResize(scale, (width - w / scale) / 2, (height - h / scale) / 2, w, h)
    u = (np.arange(w) + 0.5) / plan.scale + plan.left
    v = (np.arange(h) + 0.5) / plan.scale + plan.top
    rows, columns = np.minimum(v.astype(int), height - 1), np.minimum(u.astype(int), width - 1)
    return depth[rows[:, None], columns]


def score(run: LiveRun, recording: Recording, truth: Truth, image_topic: str, node: str = "/come") -> dict[str, Any]:
    """Everything that is measured, ready for JSON; NaN never occurs, None stands for what is not known."""
    dropped = {k[len("dropped_") :]: int(v) for k, v in recording.input.items() if k.startswith("dropped_")}
    counts = {k: int(recording.input.get(k, -1)) for k in ("received", "used", "pending")}
    played_s = (run.sent[-1][1] - run.sent[0][1]) * 1e-9 if len(run.sent) > 1 else float("nan")
    topics = ("points", "odometry", "depth/image", "depth/camera_info")
    published = dict(run.sent)
    metrics = {
        "frames": {
            "bag": truth.images,
            "sent": len(run.sent),
            "heard_by_recorder": recording.counts.get(image_topic, 0),
            **counts,
            "dropped": dropped,
            "balanced": counts["received"] == counts["used"] + counts["pending"] + sum(dropped.values()),
        },
        "messages": {f"~/{t}": recording.counts.get(f"{node}/{t}", 0) for t in topics}
        | {t: recording.counts.get(t, 0) for t in ("/tf", "/diagnostics")},
        "latency_ms": {
            f"~/{t}": _latency(published, recording.arrivals.get(f"{node}/{t}", {})) for t in ("odometry", "points")
        },
        "rate_hz": {"input": (len(run.sent) - 1) / played_s, "output": counts["used"] / played_s},
        "depth": _depth_scores(recording, truth),
        "trajectory": _trajectory_scores(recording, truth),
        "rotation": _rotation_scores(recording, truth),
        "model": {k: os.path.basename(recording.inference.get(k, "")) for k in _MODEL},
        "run": {
            "start_s": run.start_s, "stop_s": run.stop_s, "exit_code": run.exit_code, "camera_late_ms": run.late_ms,
            "seconds": run.seconds, "settled": run.settled, "tf_from_odometry": run.tf_from_odometry,
        },
    }  # fmt: skip
    return _for_json(metrics)


def _latency(published: Mapping[int, int], arrived: Mapping[int, int]) -> dict[str, float] | None:
    """From the camera's publication of an image to the arrival of what was made of it."""
    ms = [1e-6 * (arrived[stamp] - published[stamp]) for stamp in arrived if stamp in published]
    return {"p50": float(np.percentile(ms, 50)), "p95": float(np.percentile(ms, 95))} if ms else None


def _depth_scores(recording: Recording, truth: Truth) -> dict[str, Any] | None:
    """Errors on the published pixels, of the node and, on the very same pixels, of null models."""
    stamps = sorted(truth.depth)
    if not stamps:
        return None
    real = np.stack([truth.depth[t] for t in stamps])
    ours = np.stack([recording.depth[t] for t in stamps])
    known = np.isfinite(real) & (real > 0)
    mask = known & np.isfinite(ours)
    if not mask.any():
        return None
    average, source = mean_depth(real)
    shape = ours.shape
    scored = {
        "come_ros": ours,
        "constant depth": np.ones(shape, np.float32),
        "mean depth map": np.broadcast_to(average, shape),
    }
    return {
        "frames": len(stamps),
        "coverage": float(mask.sum() / known.sum()),
        "mean_depth_map": source,
        "per_frame": {k: _errors(map(depth_errors, v, real, mask)) for k, v in scored.items()},
        "per_sequence": {k: _errors([depth_errors(v, real, mask)]) for k, v in scored.items()},
    }


def _errors(errors: Iterable[Any]) -> dict[str, float]:
    known = [e for e in errors if np.isfinite(e.abs_rel)]
    return {name: float(np.mean([getattr(e, name) for e in known])) for name in ("abs_rel", "delta")}


def mean_depth(real: F32) -> tuple[F32, str]:
    """(h, w) null model, and where it comes from: the training rooms' mean if it ships, else these frames' own."""
    height, width = real.shape[1:]
    if MEAN_DEPTH.is_file():
        import cv2

        average = np.load(MEAN_DEPTH).astype(np.float32)
        return cv2.resize(average, (width, height), interpolation=cv2.INTER_LINEAR), "training rooms"
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = np.log(np.where(real > 0, real, np.nan))
    logs -= np.nanmedian(logs, axis=(1, 2), keepdims=True)
    known = np.isfinite(logs)
    total = np.where(known, logs, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)  # nothing known: the median
    return np.exp(total).astype(np.float32), "these very frames' own truth, kinder than fair"


def _rotation_scores(recording: Recording, truth: Truth) -> dict[str, Any] | None:
    """Angles between consecutive used frames, and how far they are off; the null model says that nothing ever turns."""
    stamps = sorted(truth.world_from_camera)
    if len(stamps) < 2:
        return None
    both = (recording.odom_from_camera, truth.world_from_camera)
    ours, real = (np.stack([poses[t][:3, :3] for t in stamps]) for poses in both)
    steps = [np.swapaxes(r[:-1], 1, 2) @ r[1:] for r in (ours, real)]
    off = rotation_error_deg(*steps)
    null = rotation_error_deg(np.broadcast_to(np.eye(3), steps[1].shape), steps[1])
    return {
        "pairs": len(off),
        "median_deg": {"come_ros": float(np.median(off)), "no rotation": float(np.median(null))},
        "rmse_deg": {"come_ros": float(np.sqrt(np.mean(off**2))), "no rotation": float(np.sqrt(np.mean(null**2)))},
    }


def _trajectory_scores(recording: Recording, truth: Truth) -> dict[str, Any] | None:
    stamps = sorted(truth.world_from_camera)
    if len(stamps) < 3:
        return None
    positions = np.stack([truth.world_from_camera[t][:3, 3] for t in stamps])
    still = float(np.sqrt(((positions - positions.mean(axis=0)) ** 2).sum(axis=1).mean()))
    length = float(np.linalg.norm(np.diff(positions, axis=0), axis=1).sum())
    out: dict[str, Any] = {"poses": len(stamps), "length_m": length}
    with tempfile.TemporaryDirectory() as folder:
        estimate, reference = Path(folder, "estimate.tum"), Path(folder, "truth.tum")
        write_tum(estimate, {t: recording.odom_from_camera[t] for t in stamps})
        write_tum(reference, {t: truth.world_from_camera[t] for t in stamps})
        ate = _evo("evo_ape", reference, estimate, "-as")
        rpe = _evo("evo_rpe", reference, estimate, "-r", "angle_deg", "--delta", "1", "--delta_unit", "f")
    out["ate_rmse_m"] = {"come_ros": ate.get("rmse"), "not moving": still}
    out["rpe_rotation_rmse_deg"] = rpe.get("rmse")
    if problems := "; ".join(dict.fromkeys(r["problem"] for r in (ate, rpe) if "problem" in r)):
        out["problem"] = problems
    return out


def _evo(command: str, reference: Path, estimate: Path, *options: str) -> dict[str, Any]:
    """Statistics of an evo command, which is GPL and therefore run, not imported; {"problem": ...} if it has none."""
    beside = Path(sys.executable).with_name(command)
    program = str(beside) if beside.is_file() else shutil.which(command)
    if program is None:
        return {"problem": f"{command} is not installed (pip install evo)"}
    results = estimate.with_name(f"{command}.zip")
    # its settings folder, made at the first run, is none of ours
    environment = {**os.environ, "HOME": str(estimate.parent), "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [program, "tum", str(reference), str(estimate), *options, "--no_warnings", "--save_results", str(results)],
        env=environment, check=False, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode or not results.is_file():
        last = done.stdout.strip().splitlines() or ["no output"]
        return {"problem": f"{command}: {last[-1]}"}
    with zipfile.ZipFile(results) as archive:
        return json.loads(archive.read("stats.json"))


def table(metrics: Mapping[str, Any]) -> str:
    """The metrics as aligned plain text."""
    frames, latency, rate = metrics["frames"], metrics["latency_ms"], metrics["rate_hz"]
    dropped = ", ".join(f"{n} {reason}" for reason, n in frames["dropped"].items() if n) or "none"
    rows = [
        ("frames", f"{frames['bag']} in the bag, {frames['sent']} sent, {frames['received']} received, "
                   f"{frames['used']} used, {frames['pending']} pending"),
        ("  dropped", dropped),
        ("  adds up", "yes" if frames["balanced"] else "NO: received is not used + pending + dropped"),
        ("messages", ", ".join(f"{n} {topic}" for topic, n in metrics["messages"].items())),
    ]  # fmt: skip
    if metrics["run"]["tf_from_odometry"]:
        rows.append(("", "/tf was written by the recorder from ~/odometry: without tf2_msgs the node publishes none"))
    for topic, values in latency.items():
        ms = "n/a" if values is None else f"p50 {values['p50']:.0f} ms, p95 {values['p95']:.0f} ms"
        rows.append((f"latency {topic}", f"{ms} from image sent to result received"))
    rows.append(("rate", f"{_text(rate['input'], 1)} images/s in, {_text(rate['output'], 1)} results/s out"))
    model = metrics["model"]
    rows.append(("model", ", ".join(model[k] for k in _MODEL if model[k])))
    width = max(len(name) for name, _ in rows) + 2
    lines = [f"{name:{width}}{text}" for name, text in rows]
    return "\n".join([*lines, "", *_accuracy_lines(metrics)])


def _accuracy_lines(metrics: Mapping[str, Any]) -> list[str]:
    depth, path, turn = metrics["depth"], metrics["trajectory"], metrics["rotation"]
    header = ("error against the truth", "come_ros", "null models, which see nothing")
    rows: list[tuple[str, str, str]] = []
    for key, label in (("per_frame", "scaled per frame"), ("per_sequence", "scaled once")):
        for name, title in (("abs_rel", f"depth AbsRel, {label}"), ("delta", f"depth delta < 1.25, {label}")):
            rows.append((title, *_pair(depth and {k: v[name] for k, v in depth[key].items()}, 3)))
    rows.append(("trajectory ATE RMSE, Sim(3), m", *_pair(path and path["ate_rmse_m"], 3)))
    rows.append(("rotation, median per step, deg", *_pair(turn and turn["median_deg"], 2)))
    rows.append(("rotation, RMSE per step (RPE), deg", *_pair(turn and turn["rmse_deg"], 2)))
    widths = [max(len(row[i]) for row in [header, *rows]) + 2 for i in range(2)]
    lines = [f"{a:{widths[0]}}{b:{widths[1]}}{c}" for a, b, c in (header, *rows)]
    if depth:
        share = f"{100 * depth['coverage']:.0f} % of the truth's pixels were published"
        source = depth["mean_depth_map"]
        lines.append(f"(depth: {share}, and only those count, for the null models too; mean depth map of {source})")
    if path:
        remark = "the alignment fits rotation and scale, so that 'not moving' is the worst there can be"
        lines.append(f"(path of {path['length_m']:.2f} m; {remark})")
        lines += [f"({path['problem']})"] if "problem" in path else []
    if not (depth or path):
        lines.append("(the bag holds no truth: no depth, no /ground_truth/odometry)")
    return lines


def _pair(values: Mapping[str, float] | None, digits: int) -> tuple[str, str]:
    """Our value, and those of the null models."""
    if not values:
        return "n/a", "n/a"
    others = ", ".join(f"{name} {_text(v, digits)}" for name, v in values.items() if name != "come_ros")
    return _text(values["come_ros"], digits), others


def _text(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"


def _for_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _for_json(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_for_json(v) for v in value]
    if isinstance(value, float):
        return round(value, 5) if np.isfinite(value) else None
    return value
