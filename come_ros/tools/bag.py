"""Reconstructs a recording: every frame in order, in this one process, without DDS and without ROS.

SOURCE is a ROS 2 bag (its folder, .mcap or .db3), a ROS 1 .bag, a folder in the layout of TUM RGB-D, 7-Scenes or ScanNet, images with a
COLMAP model or a transforms.json, a folder of images, or a video.
The output folder then holds
  output/         a ROS 2 bag (MCAP): input images and all that the node would publish, for `ros2 bag play`, RViz and Foxglove
  map.ply         one cloud of all frames
  trajectory.tum  the camera's path
  metrics.json    counts, sizes, errors next to trivial baselines; what depends on the machine is under `timings`
  overview.png    depth and map at a glance
  compare.png     with --compare: some frames by the accelerated and by the dense model, and where they differ
  run.yaml        parameters, versions, checksum of the weights
The same input gives the same bytes on the same machine (but for `timings`). What is damaged half way, or stopped by Ctrl-C, leaves the
results of what came before.

examples:
  come_ros bag my_bag -o out                          a bag with one camera
  come_ros bag run.mcap -o out --topic /left/image    one of its cameras
  come_ros bag run.mcap -o out --gt /vicon/odometry   scored against poses in the bag
  come_ros bag video.mp4 -o out --gt path.tum         scored against a TUM file
  come_ros bag images/ -o out                         photographs: every one counts
  come_ros bag images/ -o out --fps 30                a folder of images of a video, 30 per second
  come_ros bag video.mp4 -o out --gt path.tum --gt-offset auto --start 10 --duration 30
  come_ros bag my_bag -o out --set accelerator.name=come --compare
  come_ros bag my_bag -o out --weights vggt.pt --set window.size=12 --set keyframe.mode=every
"""

from __future__ import annotations

import argparse
import functools
import heapq
import json
import logging
import os
import resource
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import __version__
from ..camera.preprocess import in_model_pixels
from ..config import Config
from ..datasets.part import Part
from ..datasets.rosbag import BagWriter, rosbags_messages
from ..datasets.sequence import BagSequence, Sequence, open_sequence
from ..datasets.stamps import NearestDepth, nearest
from ..datasets.storage import is_recording
from ..datasets.tum import read_trajectory
from ..errors import Cancelled, ComeRosError, ConfigError, DatasetError, OutputError
from ..evaluation.clock_offset import find_offset
from ..evaluation.recordings import DepthScores, rotation_scores, trajectory_scores
from ..files import shown, write_ply, write_text, write_tum
from ..geometry import inverse
from ..odometry import Located, LocatedCounts
from ..outputs.motion import Motion, MotionEstimator, motion_of
from ..outputs.topics import LATCHED, OUTPUTS, FrameMessages, odometry_message
from ..outputs.world import World
from ..pipeline import ReconstructionPipeline
from ..types import F64, Frame, Submap
from .arguments import Interrupts, configuration
from .report.bag_report import provenance, size_of, table, truth_problem, weights_of
from .report.comparison import Comparisons, comparison_text
from .report.figures import not_drawn
from .report.picture import POINTS, Evenly, Overview, Shown, accuracy_text, draw, evenly, points_and_colours
from .report.results import ResultFolder, cannot_write
from .report.tables import for_json

log = logging.getLogger("come_ros")

NODE = "/come"
RECORDING = "output"
RESULTS = (RECORDING, "map.ply", "trajectory.tum", "metrics.json", "overview.png", "compare.png", "run.yaml")

Recorded = tuple[int, str, str, Any]
"""(time of recording in ns, topic, type, bytes)"""


class BagError(ComeRosError):
    """A recording gave no result, or not the whole one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="bag, folder or video")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="output folder; created if missing")
    parser.add_argument("--topic", default=None, help="image topic of a bag that holds several")
    parser.add_argument("--params", metavar="FILE", default=None, help="ROS parameters file, as for the node")
    parser.add_argument(
        "--set", metavar="NAME=VALUE", action="append", default=[], help="one parameter; wins over --params"
    )
    parser.add_argument("--weights", metavar="FILE", default=None, help="weights file instead of the bundled model")
    parser.add_argument(
        "--gt", metavar="TOPIC|FILE", default=None,
        help="true path of the camera's optical frame: a topic of the bag (Odometry, PoseStamped) or a TUM file "
        "(default: /ground_truth/odometry, or the TUM folder's own)",
    )  # fmt: skip
    parser.add_argument(
        "--gt-offset", metavar="SECONDS|auto", default=None,
        help="added to the stamps of --gt; auto finds it by how both paths turn and move (a video begins at 0)",
    )  # fmt: skip
    parser.add_argument(
        "--depth-topic", metavar="TOPIC|none", default=None,
        help="depth of a bag that results are scored against (default: the one that belongs to the images)",
    )  # fmt: skip
    parser.add_argument(
        "--fps",
        type=float,
        default=None,
        help="images per second of a folder, whose images are else photographs that all count, or of a video in place of its own times",
    )
    parser.add_argument(
        "--start", metavar="SECONDS", type=float, default=0.0, help="start this many seconds after the first image"
    )
    parser.add_argument(
        "--duration", metavar="SECONDS", type=float, default=None, help="stop this many seconds after the start"
    )
    parser.add_argument("--every", metavar="N", type=int, default=1, help="every Nth image only")
    parser.add_argument("--max-images", metavar="N", type=int, default=None, help="stop after this many images")
    parser.add_argument(
        "--compare",
        action="store_true",
        help="run each window dense as well: what the accelerator gains and costs; the other results stay as they are",
    )
    parser.add_argument("--no-bag", action="store_true", help="do not write output/")
    parser.add_argument("--overwrite", action="store_true", help="replace the results that DIR holds; other files stay")


def run(options: argparse.Namespace) -> int:
    """0 if all of it was reconstructed, 128 + number if a signal ended it. Raises ComeRosError, also when the results of the first part
    were written."""
    started = time.perf_counter()
    config = configuration(options)
    _check_folders(Path(options.source), Path(options.out))
    part = Part(options.start, options.duration, options.every, options.max_images)
    gt_file, gt_topic = _truth_option(options.gt)
    gt_offset = _offset_option(options.gt_offset, options.gt)
    with ExitStack() as stack:
        stack.enter_context(_warnings_once())
        # one for each pass: frames, depth and raw messages are read side by side, none ahead of what is needed
        passes = [
            stack.enter_context(
                open_sequence(
                    options.source,
                    options.topic,
                    options.fps,
                    config.rectify,
                    gt_topic,
                    options.depth_topic,
                    part,
                    config.input.range,
                )
            )
            for _ in range(3)
        ]
        config = _for_photographs(config, passes[0].timed)
        truth = _truth_of_file(gt_file) if gt_file else passes[0].truth()
        if options.gt and not truth:
            raise DatasetError(f"--gt: {options.gt} holds no poses that can be read: there is nothing to score against")
        nothing = ConfigError(
            "--compare: there is nothing to compare with the dense model, accelerator.name is 'none': add "
            "--set accelerator.name=come"
        )
        if options.compare and config.accelerator.name == "none":
            raise nothing  # before the model is loaded
        folder = stack.enter_context(ResultFolder(Path(options.out), RESULTS, options.overwrite))
        stopped = stack.enter_context(Interrupts())
        pipeline = _reproducible_pipeline(config)
        if options.compare and pipeline.backbone.description["accelerator"] == "none":
            raise nothing
        job = Job(
            options.source, config, pipeline, passes, truth, folder, not options.no_bag, options.compare, gt_offset
        )
        job.load_s = time.perf_counter() - started
        failure = job.reconstruct(stopped)
        cancelled = stopped.number if isinstance(failure, Cancelled) else None
        if not job.used and cancelled is not None:
            print(f"come_ros bag: {failure}, before there was any result", file=sys.stderr)
            return 128 + cancelled
        if not job.read and part and failure is None:
            raise BagError(f"{shown(options.source)} has no image in the part that --start and --duration ask for")
        if not job.used:
            raise failure or BagError(f"{options.source} gave no result: {job.what_was_read()}")
        problems = job.finish()
        folder.publish()
    print(table(job.metrics))
    print(f"\n{', '.join(name for name in RESULTS if (Path(options.out) / name).exists())} in {shown(options.out)}")
    if cancelled is not None:
        print(f"come_ros bag: {failure}; what came before is in {options.out}", file=sys.stderr)
        return 128 + cancelled
    if failure is not None and not isinstance(failure, ComeRosError):
        raise failure  # a fault of ours, shown in full
    if failure is not None or problems:
        text = "; ".join(filter(None, [str(failure or ""), *problems]))
        raise BagError(f"{text}; what could be made of the rest ({job.used} frames used) is in {shown(options.out)}")
    if job.used > 1 and job.alone == job.used:
        raise BagError(
            f"no two of the {job.used} images used could be reconstructed together, because size, encoding or camera change from each to "
            f"the next: what is in {shown(options.out)} has no common path"
        )
    if options.gt and not job.metrics["truth"]["matched"]:
        raise BagError(
            f"--gt: {truth_problem(job.metrics['truth'])}; the results without scores are in {shown(options.out)}"
        )
    return 0


class Job:
    """One recording on its way through the pipeline. Memory does not grow with it, but for the poses.

    used: frames with a result. superseded: frames with a result that a jump of time took away. alone: used frames that were in a window
    of their own. metrics: all that was measured, after `finish`.
    """

    def __init__(
        self,
        name: str,
        config: Config,
        pipeline: ReconstructionPipeline,
        passes: list[Sequence],
        truth: dict[int, F64],
        folder: ResultFolder,
        record: bool,
        compare: bool = False,
        truth_offset: float | str = 0.0,
    ) -> None:
        """passes: the recording, opened three times. truth: stamp -> world_from_camera (4, 4), may be empty. record: whether
        output/ is wanted. compare: whether every window runs dense as well. truth_offset: s, added to the stamps of the truth, or
        "auto". Raises OutputError."""
        self.name, self.config, self.pipeline, self.folder = name, config, pipeline, folder
        self.used = self.read = self.superseded = self.alone = 0
        self._truth_offset = truth_offset
        self.load_s = self.seconds = 0.0
        self.metrics: dict[str, Any] = {}
        self._source, depths, self._inputs_source = passes
        self._true_poses, self._true_depth = truth, NearestDepth(depths.iter_depth())
        self._stopped = ""
        self._writer = BagWriter(folder.path / RECORDING, guard=folder.reserve.guard) if record else None
        self._messages = rosbags_messages() if self._writer is None else self._writer.messages
        self._counts: dict[str, int] = {}
        self._timings: dict[str, list[float]] = {}
        self._poses: dict[int, F64] = {}  # as odometry tells them
        self._keyframes: dict[int, F64] = {}  # as their windows found them
        self._ready: list[Recorded] = []  # to be written, when it is in order
        self._matched: dict[int, F64] = {}  # true poses of the used frames
        self._comparisons = Comparisons(pipeline) if compare else None
        self._begin_world()

    def _begin_world(self) -> None:
        """As new: at the start, and when time jumped back and the pipeline forgot all."""
        self._world = World(self.config.replace(**{"map.enabled": True}), self._messages)
        self._world.metric = self.pipeline.metric
        self._motion = MotionEstimator()
        self._depth_scores = DepthScores()
        self._shown = Evenly()
        self._jumps = self.pipeline.counts["jumps"]
        self.superseded += self.used
        self.used = self.alone = 0
        self._located = LocatedCounts()
        self._poses.clear()
        self._keyframes.clear()

    def reconstruct(self, stopped: Interrupts) -> Exception | None:
        """Runs it all; why it came to an end before the recording did, None if it did not. Results so far are there in any case."""
        begun = time.perf_counter()
        failure: Exception | None = None
        try:
            with tqdm(total=self._source.count, desc="reconstructing", unit="img", disable=None) as bar:
                submaps = self.pipeline.run(self._frames(stopped, bar.update), stopped, self._locate)
                for recorded in heapq.merge(self._inputs(), self._outputs(submaps, stopped), key=itemgetter(0)):
                    if self._writer is not None:
                        self._write(*recorded)
        except Cancelled:
            failure = Cancelled(f"stopped by {stopped.name} after {self.read} images")
        except Exception as error:  # whatever it is, what came before is kept
            failure = error
        self.seconds = time.perf_counter() - begun - (self._comparisons.seconds if self._comparisons else 0.0)
        if failure is None and self._stopped:
            failure = DatasetError(self._stopped)
        if failure is not None:
            self._stopped = " ".join(str(failure).split()) or type(failure).__name__
        return failure

    def _frames(self, stopped: Interrupts, progress: Callable[[int], Any]) -> Iterator[Frame]:
        """All images; where nothing more can be read is the end, so that the last window is still made."""
        try:
            for frame in self._source.iter_frames():
                if stopped():
                    raise Cancelled("on request")
                self.read += 1
                progress(1)
                yield frame
        except DatasetError as error:
            self._stopped = str(error)
        self._stopped = self._stopped or self._source.damage

    def _inputs(self) -> Iterator[Recorded]:
        """What went in, to be recorded at the times of the images: a bag's own bytes, else messages made of the frames."""
        if self._writer is None:
            return
        source, build = self._inputs_source, self._messages
        try:
            if isinstance(source, BagSequence):
                bag = source.bag
                for log_ns, topic, data in bag.iter_raw(bag.topic, bag.camera_info_topic):
                    yield _stamp_of_bytes(data) or log_ns, topic, bag.topics[topic], data
                return
            for frame in source.iter_frames():
                head = build.header(frame.stamp_ns, frame.camera)
                height, width = frame.image.shape[:2]
                if frame.intrinsics is not None:
                    info = build.camera_info(frame.intrinsics, width, height, head)
                    yield self._recorded(frame.stamp_ns, "/camera/camera_info", info)
                yield self._recorded(frame.stamp_ns, "/camera/image_raw", build.image(frame.image, head))
        except DatasetError:  # said by `_frames`
            return

    def _outputs(self, submaps: Iterator[Submap], stopped: Interrupts) -> Iterator[Recorded]:
        """What is published of every image and of every used frame, by stamps, TF first. What a submap's landmarks tell of its images comes
        after it, so that it is put in order when the next one is there."""
        failure: Exception | None = None
        horizon = 0
        try:
            for submap in submaps:
                yield from self._until(horizon)
                horizon = submap.frames[-1].stamp_ns if submap.frames else horizon
                self._take(submap)
                if self._comparisons is not None:
                    self._comparisons.add(stopped)
        except Exception as error:  # whatever it is, what came before is written
            failure = error
        yield from self._until(None)
        if failure is not None:
            raise failure

    def _take(self, submap: Submap) -> None:
        """A window's frames."""
        for stage, ms in submap.timings_ms.items():
            self._timings.setdefault(stage, []).append(ms)
        if len(submap) and self.pipeline.counts["jumps"] != self._jumps and self.config.on_time_jump == "reset":
            self._begin_world()
        if len(submap) == 1 and submap.alignment.shared == 0:
            self.alone += 1
        for row, frame in enumerate(submap.frames):
            motion = self._motion.step(submap, row, self.config)
            said = FrameMessages(self._messages, submap, row, motion, self.config)
            self._note(said)
            if not self.pipeline.locates:
                self._moved(motion)
            if self._writer is None:
                continue
            for name, output in OUTPUTS.items():
                if name != "odometry":
                    self._ready.append(self._recorded(frame.stamp_ns, f"{NODE}/{name}", output.build(said)))

    def _until(self, stamp_ns: int | None) -> list[Recorded]:
        """Takes what is ready, up to that stamp (None: all of it), in order; odometry before what else has its stamp."""
        self._ready.sort(key=itemgetter(0))
        count = len(self._ready) if stamp_ns is None else sum(r[0] <= stamp_ns for r in self._ready)
        ready, self._ready = self._ready[:count], self._ready[count:]
        return ready

    def _locate(self, poses: list[Located]) -> None:
        """Poses of images."""
        for located in poses:
            self._located.add(located)
            self._moved(motion_of(located, self.config, self.pipeline.metric))

    def _moved(self, motion: Motion) -> None:
        """A pose for odometry, TF, path and scores."""
        self._poses[motion.stamp_ns] = motion.odom_from_child
        self._world.add_pose(motion.stamp_ns, motion.odom_from_child)
        if self._writer is None:
            return
        first = []
        if self.config.tf.mode != "off":
            first.append(self._recorded(motion.stamp_ns, "/tf", self._transform(motion)))
        first.append(
            self._recorded(motion.stamp_ns, f"{NODE}/odometry", odometry_message(self._messages, motion, self.config))
        )
        self._ready[:0] = first  # a stable sort leaves it there

    def _note(self, said: FrameMessages) -> None:
        """Adds a used frame to path, map, scores and picture."""
        submap, row, frame = said.submap, said.row, said.frame
        self.used += 1
        # a copy: a view would keep the whole window in memory
        self._keyframes[frame.stamp_ns] = submap.odom_from_camera[row].copy()
        self._world.add_points(lambda: said.odom_points)
        depth = said.depth_pixels()
        depth[np.isinf(depth)] = np.nan
        real = self._true_depth.at(frame.stamp_ns)
        if real is not None:
            real = in_model_pixels(real, depth.shape)
            self._depth_scores.add(depth, real)
        confidence = np.where(np.isfinite(depth), submap.confidence[row], np.float32(np.nan))
        overlay = None if submap.merged is None else said.overlay_pixels()
        self._shown.offer(Shown(frame.stamp_ns, frame.image, depth, confidence, real, overlay))

    def _transform(self, motion: Motion) -> Any:
        """The one edge, as `tf.mode` says; nothing else is recorded that could be the camera's parent, so auto is forward."""
        odom_from_child, edge = motion.odom_from_child, (self.config.odom_frame, motion.child)
        if self.config.tf.mode == "inverse":
            odom_from_child, edge = inverse(odom_from_child), edge[::-1]
        transform = self._messages.transform(odom_from_child, motion.stamp_ns, *edge)
        return self._messages.make("tf2_msgs/msg/TFMessage", transforms=[transform])

    def _recorded(self, stamp_ns: int, topic: str, message: Any) -> Recorded:
        assert self._writer is not None
        return stamp_ns, topic, message.__msgtype__, self._writer.serialized(message)

    def _write(self, stamp_ns: int, topic: str, kind: str, data: Any, latched: bool = False) -> None:
        assert self._writer is not None
        try:
            self._writer.put_raw(topic, kind, data, stamp_ns, latched)
        except OSError as error:
            raise cannot_write(self.folder.out, error) from error
        self._counts[topic] = self._counts.get(topic, 0) + 1
        if self.folder.reserve.full:
            raise OutputError(
                f"cannot write to {self.folder.out}: {self.folder.reserve.full}: make room and run it again"
            )

    def finish(self) -> list[str]:
        """Writes all files but what cannot be written, which is told. Needs at least one used frame."""
        path = self.folder.path
        metrics = self.metrics = self._measured()
        snapshot = self._world.snapshot()
        problems = [_problem(RECORDING, self._close_recording)]
        self.folder.reserve.release()
        steps: dict[str, Callable[[], Any]] = {
            "trajectory.tum": lambda: write_tum(path / "trajectory.tum", snapshot.trajectory),
            "map.ply": lambda: write_ply(path / "map.ply", snapshot.points),
            "run.yaml": lambda: write_text(path / "run.yaml", self._description()),
        }
        pictures: dict[str, Callable[[], Any]] = {
            "overview.png": lambda: draw(path / "overview.png", self._overview(), self._title()),
        }
        if metrics.get("compare"):
            assert self._comparisons is not None
            about = f"come_ros {__version__}: {Path(self.name).name}\n{comparison_text(metrics)}"
            pictures["compare.png"] = functools.partial(self._comparisons.draw, path / "compare.png", about)
        problems += [_problem(name, step) for name, step in steps.items()]
        problems += [not_drawn(path / name, step) for name, step in pictures.items()]
        timings = metrics.pop("timings")  # to the end, where it is easily left out
        metrics["messages"] = dict(sorted(self._counts.items()))
        metrics["map"] = {"points": len(snapshot.points), "voxel": self.config.map.voxel}
        metrics["bytes"] = {
            name: size_of(path / name) for name in (RECORDING, *steps, *pictures) if (path / name).exists()
        }
        metrics["timings"] = timings
        text = json.dumps(for_json(metrics), indent=2) + "\n"
        problems.append(_problem("metrics.json", lambda: write_text(path / "metrics.json", text)))
        return list(filter(None, problems))

    def _close_recording(self) -> None:
        if self._writer is None:
            return
        try:
            if not self.folder.reserve.full:
                for name, topic in LATCHED.items():
                    message = topic.build(self._world)
                    self._write(*self._recorded(max(self._poses), f"{NODE}/{name}", message), latched=True)
        finally:
            self._writer.close()

    def _measured(self) -> dict[str, Any]:
        truth = self._place_truth()
        stamps, known = sorted(self._poses), list(self._true_poses)
        near = nearest(stamps, known)
        true_poses = {t: self._true_poses[known[i]] for t, i in zip(stamps, near, strict=True) if i is not None}
        self._matched.update(true_poses)
        counts = self.pipeline.counts
        waiting = self.pipeline.fresh
        compared = self._comparisons
        lost = {
            "unreadable": self._source.unreadable,
            **{reason: counts[reason] for reason in ("not_keyframe", "time", "unusable")},
            "rejected": counts["keyframes"] - self.used - self.superseded - waiting,
            "superseded": self.superseded,
        }
        return {
            "come_ros": __version__,
            "source": str(self.name),
            "kind": self._source.kind,
            "topic": self._source.topic,
            "depth_topic": self._source.depth_topic,
            "stopped": self._stopped or None,
            "frames": {
                "source": self._source.count, "read": self.read, "used": self.used, "pending": waiting, "dropped": lost,
            },
            "stream": {k: counts[k] for k in ("windows", "refused", "restarts", "jumps", "gaps", "changes")},
            "truth": {"poses": len(known), "matched": len(true_poses), **truth},
            "depth": self._depth_scores.result(),
            "trajectory": trajectory_scores(self._poses, true_poses, self._depth_scores.scale),
            "rotation": rotation_scores(self._poses, true_poses),
            **self._odometry_measured(true_poses),
            **({} if compared is None else {"compare": compared.result()}),
            "model": {**self.pipeline.backbone.description, "weights": os.path.basename(weights_of(self.pipeline))},
            "timings": {
                "load_s": self.load_s,
                "reconstruct_s": self.seconds,
                "images_per_s": self.read / self.seconds,
                "frames_used_per_s": self.used / self.seconds,
                "window_ms": {
                    stage: {"p50": float(np.percentile(ms, 50)), "p95": float(np.percentile(ms, 95))}
                    for stage, ms in self._timings.items()
                },
                **({} if compared is None else {"compare": compared.timings()}),
                "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            },
        }  # fmt: skip

    def _place_truth(self) -> dict[str, Any]:
        """Moves the true poses by their offset in time; that offset, and the times that truth and images cover, s."""
        moved: dict[str, Any] = {}
        if self._truth_offset == "auto" and self._true_poses:
            try:
                offset = find_offset(self._poses, self._true_poses)
            except DatasetError as error:
                moved["problem"] = str(error)
            else:
                moved.update(offset_s=offset.ns * 1e-9, offset_correlation=offset.correlation)
                self._true_poses = {stamp + offset.ns: pose for stamp, pose in self._true_poses.items()}
        elif self._truth_offset:
            offset_ns = round(float(self._truth_offset) * 1e9)
            moved["offset_s"] = offset_ns * 1e-9
            self._true_poses = {stamp + offset_ns: pose for stamp, pose in self._true_poses.items()}
        for name, poses in (("from_to_s", self._true_poses), ("images_from_to_s", self._poses)):
            if poses:
                moved[name] = [min(poses) * 1e-9, max(poses) * 1e-9]
        return moved

    def _odometry_measured(self, true_poses: dict[int, F64]) -> dict[str, Any]:
        """Of odometry at the camera's rate, and of its keyframes as their windows found them; nothing if it tells of those only."""
        if not self.pipeline.locates:
            return {}
        of_keyframes = {stamp: pose for stamp, pose in true_poses.items() if stamp in self._keyframes}
        keyframes = {
            "trajectory": trajectory_scores(self._keyframes, of_keyframes, self._depth_scores.scale),
            "rotation": rotation_scores(self._keyframes, of_keyframes),
        }
        return {"odometry": self._located.result(), "keyframes": keyframes}

    def _description(self) -> str:
        import yaml

        return str(yaml.safe_dump(provenance(self.name, self.config, self.pipeline), sort_keys=False))

    def _overview(self) -> Overview:
        frames = [s for s in self._shown.kept if s.real is not None] or self._shown.kept
        points = self._world.snapshot().points
        some = np.random.default_rng(0).permutation(len(points))[:POINTS]
        scales = self._depth_scores.scales
        return Overview(
            [frames[i] for i in evenly(len(frames))], min(self._poses), *points_and_colours(points[some]), self._poses,
            self._matched, float(np.median(scales)) if scales else None, f"map of {len(self._poses)} frames",
        )  # fmt: skip

    def _title(self) -> str:
        parts = [f"{self.read} images, {self.used} used", *accuracy_text(self.metrics)]
        return f"come_ros {__version__}: {shown(Path(self.name).name)}\n{'   |   '.join(parts)}"

    def what_was_read(self) -> str:
        """In words, for those who got no result."""
        counts = self.pipeline.counts
        refused = counts["keyframes"] - self.superseded - self.pipeline.fresh
        lost = {"damaged": self._source.unreadable, "too little motion": counts["not_keyframe"], "stamp not newer": counts["time"],
                "unusable": counts["unusable"], "in refused windows": refused}  # fmt: skip
        text = ", ".join(f"{n} {reason}" for reason, n in lost.items() if n)
        return f"{self.read} images were read, none could be used ({text or 'there are too few'})"


def _check_folders(source: Path, out: Path) -> None:
    """Results must not become input, nor replace it. Raises ConfigError."""
    if not source.exists():
        return
    inside = source.resolve()
    if out.resolve() == inside and not is_recording(source):
        raise ConfigError(
            f"-o {shown(out)} is the source itself: its images and the results would mix: choose another folder"
        )
    for name in RESULTS:
        place = (out / name).resolve()
        if inside == place or place in inside.parents:
            raise ConfigError(
                f"-o {shown(out)} would replace the source {shown(source)} by results: choose another folder"
            )


def _truth_option(gt: str | None) -> tuple[Path | None, str | None]:
    """File, and topic, of --gt. Raises ConfigError."""
    if gt is None:
        return None, None
    if not gt.strip():
        raise ConfigError("--gt is empty: give a topic or a file, or leave it out")
    if Path(gt).is_dir():
        raise ConfigError(f"--gt {gt} is a folder: give the file in it that holds the path, such as groundtruth.txt")
    if _is_file(gt) or not gt.startswith("/"):
        return Path(gt), None
    return None, gt


def _offset_option(text: str | None, gt: str | None) -> float | str:
    """Seconds, or "auto", of --gt-offset. Raises ConfigError."""
    if text is None:
        return 0.0
    if gt is None:
        raise ConfigError(f"--gt-offset {text} has no effect without --gt: leave it out, or give the truth")
    if text == "auto":
        return text
    try:
        seconds = float(text)
    except ValueError:
        seconds = float("nan")
    if not abs(seconds) < 1e11:
        raise ConfigError(f"--gt-offset is {text!r}, but must be a number of seconds, or auto")
    return seconds


def _for_photographs(config: Config, timed: bool) -> Config:
    """Photographs were chosen by whoever took them: without times every one is a keyframe, unless keyframe.* say otherwise."""
    if timed or config.keyframe != Config().keyframe:
        return config
    return config.replace(**{"keyframe.mode": "every"})


def _truth_of_file(path: Path) -> dict[int, F64]:
    try:
        return read_trajectory(path)
    except DatasetError as error:
        raise DatasetError(f"--gt: {error}: give a TUM file, with rows of stamp tx ty tz qx qy qz qw") from error


def _is_file(path: str | None) -> bool:
    return path is not None and Path(path).is_file()


def _reproducible_pipeline(config: Config) -> ReconstructionPipeline:
    """Made so that the same input gives the same bytes: a fixed number of threads, and sums in a fixed order."""
    if config.backbone != "fake":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        import torch

        torch.use_deterministic_algorithms(True, warn_only=True)  # some operations on a GPU have no such way
        torch.backends.cudnn.benchmark = False
    return ReconstructionPipeline(config)


def _problem(name: str, write: Callable[[], Any]) -> str:
    """Why a result could not be written, "" if it was."""
    try:
        write()
    except (OSError, OutputError) as error:
        return f"{name} is missing or not whole: {getattr(error, 'strerror', None) or error}"
    return ""


def _stamp_of_bytes(data: bytes) -> int:
    """Nanoseconds of a serialized message that begins with a Header."""
    sec, nanosec = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, 4)
    return int(sec) * 1_000_000_000 + int(nanosec)


class _warnings_once:
    """While it lasts, each warning of ours is told once: a recording is read several times."""

    def __enter__(self) -> None:
        told: set[str] = set()

        def once(record: logging.LogRecord) -> bool:
            text = record.getMessage()
            return not (text in told or told.add(text))  # type: ignore[func-returns-value]

        self._once = once
        logging.getLogger("come_ros").addFilter(once)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        logging.getLogger("come_ros").removeFilter(self._once)
