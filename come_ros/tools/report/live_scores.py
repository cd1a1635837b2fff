"""Scores of a live run: counts, latencies, and errors against the truth, compared with trivial baselines."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import geometry
from ...camera.preprocess import in_model_pixels
from ...datasets.rosbag import Bag
from ...datasets.stamps import matched, nearest
from ...errors import ComeRosError
from ...evaluation.recordings import DepthScores, rotation_scores, trajectory_scores
from ...messages import stamp_ns
from ...ros.programs.live import LiveRun
from ...types import F32, F64, U8
from ...verdict.judge import DOUBTFUL, Verdict
from .tables import MODEL_KEYS, for_json
from .verdict import for_metrics, with_truth


class ScoreError(ComeRosError):
    """A recording lacks required topics."""


@dataclass(eq=False)
class Published:
    """The node's output, by stamp of the image. counts: messages by topic. arrivals: topic -> {stamp: when, ns}.

    odom_from_camera: (4, 4). depth: (h, w), NaN where none. intrinsics: (3, 3). points: structured, as published, in
    `points_frame`, which is `camera` or the odometry's. overlay: (h, w, 3) uint8, the image dark where tokens were merged. input,
    inference, output: values of the node's last diagnostics.
    """

    counts: dict[str, int] = field(default_factory=dict)
    arrivals: dict[str, dict[int, int]] = field(default_factory=dict)
    odom_from_camera: dict[int, F64] = field(default_factory=dict)
    depth: dict[int, F32] = field(default_factory=dict)
    intrinsics: dict[int, F64] = field(default_factory=dict)
    points: dict[int, NDArray[Any]] = field(default_factory=dict)
    overlay: dict[int, U8] = field(default_factory=dict)
    points_frame: str = ""
    camera: str = ""
    input: dict[str, str] = field(default_factory=dict)
    inference: dict[str, str] = field(default_factory=dict)
    output: dict[str, str] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """The node's own, by its last diagnostics."""
        level, reason, advice = (self.output.get(f"verdict{name}", "none") for name in ("", "_reason", "_advice"))
        if level == "none":
            return Verdict(DOUBTFUL, ("the node has published too few keyframes to judge by",))
        return Verdict(level, tuple(reason.split("; ")), "" if advice == "none" else advice)

    @property
    def is_merged(self) -> bool:
        """Whether the model merged tokens, by its last diagnostics."""
        return float(self.inference.get("kept_ratio", 1.0)) < 1


def read_recording(path: Path, node: str = "/come") -> Published:
    """Raises ScoreError if the file is damaged."""
    from mcap.exceptions import McapError
    from mcap.reader import make_reader
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_JAZZY)
    out = Published()
    try:
        with open(path, "rb") as stream:
            for schema, channel, message in make_reader(stream).iter_messages():
                if schema is None:
                    continue
                out.counts[channel.topic] = out.counts.get(channel.topic, 0) + 1
                decoded: Any = store.deserialize_cdr(message.data, schema.name)
                if channel.topic == "/diagnostics":
                    for status in decoded.status:
                        for kind, values in (
                            ("input", out.input),
                            ("inference", out.inference),
                            ("output", out.output),
                        ):
                            if status.name == f"come: {kind}":
                                values.update({v.key: v.value for v in status.values})
                elif hasattr(decoded, "header"):
                    stamp = stamp_ns(decoded.header.stamp)
                    out.arrivals.setdefault(channel.topic, {})[stamp] = message.log_time
                    if channel.topic.startswith(node + "/"):
                        _take(out, channel.topic[len(node) + 1 :], stamp, decoded)
    except (OSError, McapError) as error:
        raise ScoreError(f"cannot read the recording {path}: {error}") from error
    return out


def _take(out: Published, name: str, stamp: int, message: Any) -> None:
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
    elif name == "merge_overlay":
        out.overlay[stamp] = np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3)


@dataclass(eq=False)
class Truth:
    """Ground truth in the bag for the used frames. images: number of images in the bag. world_from_camera: stamp ->
    (4, 4). depth: stamp -> metres at the pixels of the node's depth image."""

    images: int
    world_from_camera: dict[int, F64]
    depth: dict[int, F32]


def read_truth(path: str | Path, recording: Published, topic: str | None = None) -> Truth:
    """Truth of `path` for the frames of a recording: the nearest within 20 ms. Raises DatasetError."""
    with Bag(path, topic) as bag:
        poses = bag.truth()
        world_from_camera = matched(sorted(recording.odom_from_camera), poses)
        wanted = sorted(recording.depth)
        depth: dict[int, F32] = {}
        for stamp, metres in bag.iter_depth():
            (i,) = nearest([stamp], wanted)
            if i is not None:
                depth[wanted[i]] = in_model_pixels(metres, recording.depth[wanted[i]].shape)
        return Truth(len(bag), world_from_camera, depth)


def score(run: LiveRun, recording: Published, truth: Truth, image_topic: str, node: str = "/come") -> dict[str, Any]:
    """All measurements, ready for JSON, with None for unknown values (never NaN)."""
    dropped = {k[len("dropped_") :]: int(v) for k, v in recording.input.items() if k.startswith("dropped_")}
    counts = {k: int(recording.input.get(k, -1)) for k in ("received", "used", "pending")}
    played_s = (run.sent[-1][1] - run.sent[0][1]) * 1e-9 if len(run.sent) > 1 else float("nan")
    topics = ("points", "odometry", "depth/image", "depth/camera_info")
    published = dict(run.sent)
    depth = DepthScores()
    for stamp in sorted(truth.depth):
        depth.add(recording.depth[stamp], truth.depth[stamp])
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
        "depth": depth.result(),
        "trajectory": trajectory_scores(recording.odom_from_camera, truth.world_from_camera, depth.scale),
        "rotation": rotation_scores(recording.odom_from_camera, truth.world_from_camera),
        "model": {k: os.path.basename(recording.inference.get(k, "")) for k in MODEL_KEYS},
        "run": {
            "start_s": run.start_s, "stop_s": run.stop_s, "exit_code": run.exit_code, "camera_late_ms": run.late_ms,
            "seconds": run.seconds, "settled": run.settled, "tf_from_odometry": run.tf_from_odometry, "node_cpu_s": run.node_cpu_s,
        },
    }  # fmt: skip
    extent = float(recording.output.get("path_extent", "nan"))
    metrics["verdict"] = for_metrics(with_truth(recording.verdict, metrics, extent))
    return for_json(metrics)


def _latency(published: Mapping[int, int], arrived: Mapping[int, int]) -> dict[str, float] | None:
    """Latency from the publication of an image to the arrival of its result."""
    ms = [1e-6 * (arrived[stamp] - published[stamp]) for stamp in arrived if stamp in published]
    return {"p50": float(np.percentile(ms, 50)), "p95": float(np.percentile(ms, 95))} if ms else None
