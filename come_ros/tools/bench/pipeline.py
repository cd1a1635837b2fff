"""Measures the cost of everything around the model on this machine, from an image message to the node's own messages.

The model is replaced by one without cost. All outputs are built, as if each had a subscriber, and published to another process
(this part needs ROS, and is skipped without it). Each window has one new frame, which is the most expensive case per frame. Medians
of repeats after a warm-up, as a Markdown table. On a busy machine the medians are too high (the load is reported); the minimum is
then closer to the truth.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ... import __version__, progress
from ...backbones.backbone import Backbone
from ...backbones.stream import Step
from ...camera import images
from ...camera.rectify import Rectification
from ...config import Config
from ...messages import Messages, stamp_ns
from ...outputs.cloud import POINT_DTYPE
from ...outputs.motion import Motion, MotionEstimator
from ...outputs.topics import LATCHED, OUTPUTS, FrameMessages
from ...outputs.voxel_map import VoxelMap
from ...pipeline import ReconstructionPipeline
from ...types import U8, Alignment, Frame, Known, Prediction, Submap

WIDTH, HEIGHT = 640, 480
SIDES = (112, 518)  # longer side of the model's image
WARM_UP = 10
PAUSE_S = 0.02  # pause between frames, in which the listener receives the messages
STEP_NS = 100_000_000
SHIFT = 20  # px from frame to frame: enough motion for a keyframe
DISTORTION = (-0.28, 0.09, 0.0005, -0.0002, 0.0)  # a common webcam's
BUDGET_MS = {"cloud": 15.0, "depth": 5.0, "frame": 10.0}
VOXEL, MAP_POINTS, MAP_FRAME, MAP_REPEATS = 0.05, 2_000_000, 200_000, 10
LISTENER_S = 15.0  # to start or to end

Publish = Callable[[str, Any], None]
"""(topic below the node's name, message)"""


def measure(repeats: int) -> Iterator[dict[str, Any]]:
    """All figures so far, after each case: case -> stage -> {"median_ms", "least_ms", "p95_ms"}, with a description of the machine."""
    before = os.getloadavg()[0]
    cases: dict[str, Any] = {}
    with wire() as (messages, decode, publish):
        measured = _cases(messages, decode, publish, repeats)
        for name, stages in progress.bar(measured, total=2 + len(SIDES), desc="timing", unit="case"):
            cases[name] = stages.summary()
            yield {
                "version": __version__,
                "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, NumPy {np.__version__}",
                "ros": publish is not None,
                "load_before": round(before, 2),
                "load_after": round(os.getloadavg()[0], 2),
                "repeats": repeats,
                "budget_ms": BUDGET_MS,
                "cases": dict(cases),
            }


def _cases(messages: Any, decode: Any, publish: Any, repeats: int) -> Iterator[tuple[str, Stages]]:
    yield "518x518 px, 268324 points", message_costs(messages, publish, repeats)
    yield f"map of {MAP_POINTS} voxels, a frame of {MAP_FRAME} points", map_costs(messages, publish, repeats)
    for side in SIDES:
        name, stages = frame_costs(messages, decode, publish, side, repeats)
        yield f"{WIDTH}x{HEIGHT} frame, model image {name}", stages


def report(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "# Cost outside the model", "",
        f"`come_ros bench --pipeline --repeats {result['repeats']}`, come_ros {result['version']}: {result['machine']}; "
        f"load {result['load_before']} before, {result['load_after']} after.",
    ]  # fmt: skip
    if not result["ros"]:
        lines += ["", "rclpy is not installed: nothing was published."]
    for name, stages in result["cases"].items():
        lines += [
            "",
            f"## {name}",
            "",
            "| stage | median, ms | least, ms | p95, ms | budget, ms |",
            "|---|---|---|---|---|",
        ]
        for stage, values in stages.items():
            budget = next((f"{ms:g}" for key, ms in BUDGET_MS.items() if stage.startswith(f"**{key}")), "")
            cells = [f"{values[key]:.2f}" for key in ("median_ms", "least_ms", "p95_ms")]
            lines.append(f"| {stage} | {' | '.join(cells)} | {budget} |")
    return "\n".join(lines)


class Stages:
    """Milliseconds of named stages, one value per repeat; the first `warm_up` of each are dropped."""

    def __init__(self, warm_up: int = 0) -> None:
        self.warm_up = warm_up
        self.ms: dict[str, list[float]] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.add(name, 1e3 * (time.perf_counter() - begun))

    def add(self, name: str, ms: float) -> None:
        self.ms.setdefault(name, []).append(ms)

    def sum(self, name: str, *parts: str) -> None:
        """`name`: the sum of those stages per repeat; stages that were not measured count as 0."""
        self.ms[name] = np.sum([self.ms[p] for p in parts if p in self.ms], axis=0).tolist()

    def summary(self) -> dict[str, dict[str, float]]:
        """Median, least and 95th percentile of each stage."""
        values = {name: np.array(ms[self.warm_up :]) for name, ms in self.ms.items()}
        figures: dict[str, Callable[[Any], Any]] = {
            "median_ms": np.median,
            "least_ms": np.min,
            "p95_ms": lambda ms: np.percentile(ms, 95),
        }
        return {
            name: {figure: round(float(of(ms)), 3) for figure, of in figures.items()} for name, ms in values.items()
        }


class FreeModel(Backbone):
    """A backbone without cost: it returns precomputed arrays of a camera that slides along a scene with depth steps."""

    name, patch_size, native_side, device = "free", 14, 518, "cpu"

    def __init__(self, frames: int, height: int, width: int) -> None:
        self.frames = frames
        self.depth = np.tile(scene(height, width), (frames, 1, 1))
        rng = np.random.default_rng(0)
        self.confidence = (1 + rng.gamma(4.0, 1.0, self.depth.shape)).astype(np.float32)
        self.window_from_camera = np.tile(np.eye(4), (frames, 1, 1))
        self.window_from_camera[:, 0, 3] = 0.05 * np.arange(frames)
        self.intrinsics = np.tile(pinhole(width, height), (frames, 1, 1))

    def predict(
        self,
        images: U8,
        stop: Callable[[], bool] | None = None,
        known: Known | None = None,
        step: Step | None = None,
    ) -> Prediction:
        """Returns the precomputed arrays for any images."""
        s = len(images)
        return Prediction(images, self.depth[:s], self.confidence[:s], self.window_from_camera[:s], self.intrinsics[:s])


def scene(height: int, width: int) -> np.ndarray:
    """(height, width) float32 depth, m: a slanted floor with boxes in front and a little noise, as in a model's output."""
    v, u = np.mgrid[:height, :width] / np.array([height, width]).reshape(2, 1, 1)
    depth = 4 - 2 * v + 0.3 * np.sin(7 * u)
    for left, top, side, near in ((0.1, 0.2, 0.2, 1.2), (0.45, 0.4, 0.3, 1.8), (0.8, 0.1, 0.15, 0.9)):
        depth[(abs(u - left) < side / 2) & (abs(v - top) < side)] = near
    return (depth * (1 + 0.002 * np.random.default_rng(1).standard_normal(depth.shape))).astype(np.float32)


def pinhole(width: int, height: int) -> np.ndarray:
    """(3, 3) intrinsics of a typical camera."""
    return np.array([[0.9 * width, 0, (width - 1) / 2], [0, 0.9 * width, (height - 1) / 2], [0, 0, 1]])


def message_costs(messages: Messages, publish: Publish | None, repeats: int) -> Stages:
    """The largest messages of one frame of 518x518 px, every pixel valid."""
    side = 518
    model = FreeModel(1, side, side)
    config = Config().replace(**{"cloud.conf_percentile": 0.0, "cloud.edge_filter": False})
    rgb = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
    frame = Frame(rgb[0], STEP_NS)
    submap = Submap(
        (frame,), rgb, model.depth, model.confidence, model.intrinsics, np.eye(4)[None], Alignment(True, 0, 1.0)
    )
    motion = Motion(STEP_NS, frame.camera, np.eye(4), np.zeros(6), np.eye(6), np.eye(6))
    stages = Stages(WARM_UP)
    for _ in range(WARM_UP + repeats):
        made = FrameMessages(messages, submap, 0, motion, config)
        mask = made.mask  # all outputs together: see the frames
        assert mask.all()
        with stages.time("points"):
            made.cloud_points  # noqa: B018 it is made here, and kept
        with stages.time("PointCloud2"):
            cloud = made.points()
        with stages.time("depth Image"):
            depth = made.depth()
        if publish is not None:
            with stages.time("publish PointCloud2"):
                publish("points", cloud)
            time.sleep(PAUSE_S)
            with stages.time("publish depth Image"):
                publish("depth/image", depth)
            time.sleep(PAUSE_S)
    stages.sum("**cloud**: build and publish", "points", "PointCloud2", "publish PointCloud2")
    stages.sum("**depth**: build and publish", "depth Image", "publish depth Image")
    return stages


def map_costs(messages: Messages, publish: Publish | None, repeats: int) -> Stages:
    """A full map: cost of adding one frame, half of it at new places, and of its message."""
    rng = np.random.default_rng(0)

    def cloud(points: int, corner: float) -> np.ndarray:
        """Points all over a floor and a wall from x = corner on, as large as a full map."""
        out = np.ones(points, POINT_DTYPE)
        extent = np.sqrt(MAP_POINTS / 2) * VOXEL
        out["x"], out["y"] = corner + rng.uniform(0, extent, points), rng.uniform(0, extent, points)
        out["z"] = np.where(rng.random(points) < 0.5, 0.01, 1.01)
        return out

    full, stages = VoxelMap(VOXEL, MAP_POINTS), Stages()
    while len(full) < 0.98 * MAP_POINTS:
        full.add(cloud(MAP_POINTS // 2, 0.0))
    for i in range(min(repeats, MAP_REPEATS)):
        seen = cloud(MAP_FRAME, 0.5 * VOXEL * i)
        with stages.time("add a frame"):
            full.add(seen)
        with stages.time("merge, and points"):
            points = full.points()
        with stages.time("PointCloud2"):
            message = messages.point_cloud(points, messages.header(STEP_NS, "visual_odom"))
        if publish is not None:
            with stages.time("publish"):
                publish("map_points", message)
            time.sleep(0.5)
    stages.sum("map: merge, build and publish", "merge, and points", "PointCloud2", "publish")
    return stages


def frame_costs(
    messages: Messages, decode: Callable[[Any], U8], publish: Publish | None, side: int, repeats: int
) -> tuple[str, Stages]:
    """Size of the model's image, and the cost of each stage for one new frame in a window of eight."""
    config = Config().replace(**{"input.max_side": side})
    width, height = side, 14 * round(side * HEIGHT / WIDTH / 14)
    pipeline = ReconstructionPipeline(config, FreeModel(config.window.size, height, width))  # type: ignore[arg-type]
    rectification, estimator, stages = Rectification("auto", "/camera/image_raw"), MotionEstimator(), Stages(WARM_UP)
    texture = np.random.default_rng(0).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    texture = np.repeat(np.repeat(texture, 8, axis=0), 8, axis=1)
    for i in range(config.window.size + WARM_UP + repeats):
        head = messages.header(10**18 + i * STEP_NS, "camera_optical_frame")
        image = messages.image(np.roll(texture, SHIFT * i, axis=1), head)
        info = messages.camera_info(pinhole(WIDTH, HEIGHT), WIDTH, HEIGHT, head, DISTORTION)
        one = Stages() if i < config.window.size else stages  # until the window is full
        with one.time("decode"):
            picture = decode(image)
        with one.time("rectify"):
            picture, intrinsics, remark = rectification.image(picture, info)
        frame = Frame(picture, stamp_ns(image.header.stamp), head.frame_id, intrinsics)
        with one.time("keyframe test"):
            dropped = pipeline.add_frame(frame)
        begun = time.perf_counter()
        window = pipeline.take_window(pipeline.least_new)
        assert dropped is None and window is not None and not remark, (dropped, remark)
        submap = pipeline.reconstruct(window)
        took = submap.timings_ms
        one.add("preprocess", took["preprocess"])
        one.add("alignment", took["align"])
        one.add("the rest of the window", 1e3 * (time.perf_counter() - begun) - sum(took.values()))
        assert submap.alignment.accepted and len(submap) == 1 and submap.depth.shape[1:] == (height, width)

        made = FrameMessages(messages, submap, 0, estimator.step(submap, 0, config), config)
        with one.time("mask"):
            made.mask  # noqa: B018 it is made here, and kept
        with one.time("points"):
            made.cloud_points  # noqa: B018 the same
        with one.time("messages"):
            built = {topic: output.build(made) for topic, output in OUTPUTS.items()}
        if publish is not None:
            with one.time("publish"):
                for topic, message in built.items():
                    publish(topic, message)
            time.sleep(PAUSE_S)
    parts = [name for name in stages.ms if name != "publish"]
    stages.sum("**frame**: all before publishing", *parts)
    stages.sum("all with publishing", *parts, "publish")
    return f"{width}x{height}", stages


@contextmanager
def wire() -> Iterator[tuple[Messages, Callable[[Any], U8], Publish | None]]:
    """Costs of building messages, decoding images, and publishing to another process on this machine (None without rclpy)."""
    if importlib.util.find_spec("rclpy") is None:
        from rosbags.typesys import Stores, get_typestore

        from ...datasets.bag_writer import rosbags_messages

        yield rosbags_messages(get_typestore(Stores.ROS2_JAZZY)), images.decode_image, None
        return

    from ...ros.environment import isolated_dds_environment
    from ...ros.programs.live import Processes

    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(isolated_dds_environment(log_dir=folder))
        from ...ros import messages
        from ...ros.programs.talker import talker

        topics = {f"/bench/{topic}": (output.kind, output.depth) for topic, output in OUTPUTS.items()}
        topics["/bench/map_points"] = (LATCHED["map_points"].kind, 1)
        words = [word for topic, (kind, _) in topics.items() for word in (topic, kind)]
        package = str(Path(__file__).resolve().parents[3])
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH", ""))))
        with Processes({**os.environ, "PYTHONPATH": path}, Path(folder)) as processes:
            listener = processes.start("listener", "come_ros.ros.programs.listener", *words)
            listener.wait_for("ready", LISTENER_S, processes)
            with talker(topics) as publish:
                yield messages.ROS, messages.decode_image, lambda topic, message: publish(f"/bench/{topic}", message)
            listener.stop(signal.SIGTERM)
            counts = listener.wait_for("heard", LISTENER_S, processes)["counts"]
            if not all(counts.values()):
                print(f"the other process did not receive everything: {counts}", file=sys.stderr)
