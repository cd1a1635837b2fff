"""Reconstructs a recording: every frame in order, in one process, without DDS and without ROS.

SOURCE is a ROS 2 bag (its folder, .mcap or .db3), a ROS 1 .bag, a folder in the layout of TUM RGB-D, 7-Scenes or ScanNet, images with a
COLMAP model or a transforms.json, a folder of images, or a video.
The output folder then holds
  output/         a ROS 2 bag (MCAP): input images and everything the node would publish, for `ros2 bag play`, RViz and Foxglove
  map.ply         one cloud of all frames
  trajectory.tum  the camera's path as odometry has it, never rewritten
  trajectory_map.tum  the same path in the map, with the drift taken away where the camera came back
  frames.json     where the frames with depth lie in the map: what `come_ros export` reads
  map/            the map's keyframes: what map.load starts in
  metrics.json    counts, sizes, errors next to trivial baselines; values that depend on the machine are under `timings`
  overview.png    depth and map at a glance
  compare.png     with --compare: some frames by the accelerated and by the dense model, and where they differ
  view/           view/index.html shows all of it in 3D in a browser, without a server; needs viser (extra `view`)
  run.yaml        parameters, versions, checksum of the weights
The same input gives the same bytes on the same machine (except `timings`). If a recording is damaged, or Ctrl-C stops the run, the
results of the part before are kept.

examples:
  come_ros bag my_bag -o out                          a bag with one camera
  come_ros bag run.mcap -o out --topic /left/image    one of its cameras
  come_ros bag run.mcap -o out --gt /vicon/odometry   scored against poses in the bag
  come_ros bag video.mp4 -o out --gt path.tum         scored against a TUM file
  come_ros bag images/ -o out                         photographs: every one is used
  come_ros bag images/ -o out --fps 30                a folder of images of a video, 30 per second
  come_ros bag video.mp4 -o out --gt path.tum --gt-offset auto --start 10 --duration 30
  come_ros bag my_bag -o out --set scale.mode=depth      metres from the recording's own depth
  come_ros bag my_bag -o out --odometry /odom            metres from wheels
  come_ros bag my_bag -o out --set accelerator.name=come --compare
  come_ros bag second_bag -o out2 --set map.load=out --set map.mode=localize     in the map of another run
  come_ros bag my_bag -o out --weights vggt.pt --set window.size=12 --set keyframe.mode=every
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...backbones import load_backbone, reproducible
from ...camera.rig import pose_of_words
from ...config import Config
from ...datasets.known import Poses
from ...datasets.part import Part
from ...datasets.sequence import open_sequence
from ...datasets.storage import is_recording
from ...datasets.tum import read_trajectory
from ...errors import Cancelled, ComeRosError, ConfigError, DatasetError, Stopped
from ...files import shown
from ...fleet.predictions import Kept
from ...interrupts import Interrupts
from ...mapping.saved_map import FOLDER
from ...outputs.frames_file import FRAMES
from ...pipeline import ReconstructionPipeline
from ...progress import doing
from ...types import F64
from ...view.page import FOLDER as VIEW
from ..arguments import add_config_arguments, configuration
from ..report.bag_report import table, truth_problem
from ..report.next_steps import of_results, tell
from ..report.results import ResultFolder
from ..report.tables import for_json
from ..report.view import no_view
from ..result import print_result
from .job import Job
from .output import RECORDING

RESULTS = (
    RECORDING,
    "map.ply",
    "trajectory.tum",
    "trajectory_map.tum",
    FRAMES,
    FOLDER,
    "metrics.json",
    "overview.png",
    "compare.png",
    "run.yaml",
    VIEW,
)


class BagError(ComeRosError):
    """A recording gave no result, or only a partial one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="bag, folder or video")
    parser.add_argument(
        "-o", "--output", dest="out", required=True, metavar="DIR", help="output folder; created if missing"
    )
    add_options(parser)
    parser.add_argument(
        "--predictions", metavar="DIR", type=Path, default=None,
        help="take the model's predictions of windows from DIR, where `come_ros fleet` has put them; others are made as usual",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace results in DIR; other files are kept")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those that say how a recording is read and reconstructed, also for many at once."""
    parser.add_argument("--topic", default=None, help="image topic of a bag that holds several")
    add_config_arguments(parser)
    parser.add_argument(
        "--gt", metavar="TOPIC|FILE", default=None,
        help="true path of the camera's optical frame: a topic of the bag (Odometry, PoseStamped) or a TUM file "
        "(default: /ground_truth/odometry, or the TUM folder's own)",
    )  # fmt: skip
    parser.add_argument(
        "--gt-offset", metavar="SECONDS|auto", default=None,
        help="added to the stamps of --gt; auto estimates it from the motion of both paths (a video starts at 0)",
    )  # fmt: skip
    parser.add_argument(
        "--depth-topic", metavar="TOPIC|none", default=None,
        help="depth topic of a bag to score against (default: the one that belongs to the images)",
    )  # fmt: skip
    parser.add_argument(
        "--odometry", metavar="TOPIC|FILE", default=None,
        help="poses of another odometry, in metres, for scale.mode odometry: a topic of the bag or a TUM file; of the camera, or of a "
        "frame in which known.base_from_camera gives the camera's pose",
    )  # fmt: skip
    parser.add_argument(
        "--fps",
        type=float,
        default=None,
        help="images per second: of a folder (without it, images are photographs that are all used), or of a video instead of "
        "its own times",
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
        help="also run each window by the dense model, to report the accelerator's gain and cost; other results are unchanged",
    )
    parser.add_argument("--no-bag", action="store_true", help="do not write output/")
    parser.add_argument("--no-view", action="store_true", help="do not write view/")


def run(options: argparse.Namespace) -> int:
    """Returns 0 if everything was reconstructed, 128 + number if a signal ended it. Raises ComeRosError, also if results of the
    first part were written."""
    started = time.perf_counter()
    config = _for_scale(configuration(options), options.odometry, options.depth_topic)
    _check_folders(Path(options.source), Path(options.out))
    part = Part(options.start, options.duration, options.every, options.max_images)
    gt_file, gt_topic = _truth_option(options.gt)
    gt_offset = _offset_option(options.gt_offset, options.gt)
    with ExitStack() as stack:
        stack.enter_context(_warnings_once())
        # opened once per pass: frames, depth and raw messages are read in parallel, each only as far as needed
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
            for _ in range(4 if config.reads_depth else 3)
        ]
        config = for_photographs(config, passes[0].timed)
        truth = _poses_of_file("--gt", gt_file) if gt_file else passes[0].truth()
        odometry = _other_odometry(options, config, part)
        if options.gt and not truth:
            raise DatasetError(f"--gt: {options.gt} holds no poses that can be read: there is nothing to score against")
        nothing = ConfigError(
            "--compare needs an accelerator to compare with the dense model, but accelerator.name is 'none': add "
            "--set accelerator.name=come"
        )
        if options.compare and config.accelerator.name == "none":
            raise nothing  # before the model is loaded
        folder = stack.enter_context(ResultFolder(Path(options.out), RESULTS, options.overwrite, kept=(FOLDER,)))
        stopped = stack.enter_context(Interrupts())
        with stopped.raising(), doing("loading the model"):
            pipeline = _reproducible_pipeline(config, options.predictions)
        if options.compare and pipeline.backbone.description["accelerator"] == "none":
            raise nothing
        job = Job(
            options.source,
            config,
            pipeline,
            passes,
            truth,
            folder,
            not options.no_bag,
            options.compare,
            gt_offset,
            odometry,
        )
        job.load_s = time.perf_counter() - started
        failure = job.reconstruct(stopped)
        if not job.used and isinstance(failure, Cancelled):
            raise Stopped(stopped.number or 0)
        if not job.read and part and failure is None:
            raise BagError(f"{shown(options.source)} has no image in the part that --start and --duration ask for")
        if not job.used:
            raise failure or BagError(f"{options.source} gave no result: {job.what_was_read()}")
        try:
            with doing("scoring, writing and drawing"):
                problems = job.finish(stopped)
        except ComeRosError as error:
            if failure is None or isinstance(error, Cancelled):
                raise
            raise failure from None  # it came before there was anything to save
        without_view = ""
        if not options.no_view:
            with contextlib.suppress(Stopped), stopped.raising():  # it takes seconds, and is the first to be left out
                without_view = no_view(folder.path, problems)
        folder.publish()
    files = [name for name in RESULTS if (Path(options.out) / name).exists()]
    text = f"{table(job.metrics)}\n\n{', '.join(files)} in {shown(options.out)}"
    if without_view:
        text += f"\n{VIEW}/ is missing: {without_view}"
    print_result(options, {**for_json(job.metrics), "folder": str(options.out), "files": files}, text)
    if not without_view and failure is None and not problems:
        tell(of_results(shown(options.out)))
    if stopped.number is not None:
        raise Stopped(stopped.number, f"what came of {job.read} images is in {shown(options.out)}")
    if failure is not None and not isinstance(failure, ComeRosError):
        raise failure  # a bug in come_ros, shown in full
    if failure is not None or problems:
        text = "; ".join(filter(None, [str(failure or ""), *problems]))
        raise BagError(f"{text}; what could be made of the rest ({job.used} frames used) is in {shown(options.out)}")
    late = job.metrics["frames"]["dropped"]["time"]
    if late > job.read / 2 and config.on_time_jump != "ignore":
        raise BagError(
            f"{late} of {job.read} images were left out, because their stamps are not newer than the one before: the clock of the camera "
            f"stands still or jumps; what could be made of the rest ({job.used} frames used) is in {shown(options.out)}"
        )
    if job.used > 1 and job.alone == job.used:
        raise BagError(
            f"no two of the {job.used} images used could be reconstructed together, because size, encoding or camera change from each to "
            f"the next: what is in {shown(options.out)} has no common path"
        )
    place = job.metrics.get("saved_map")
    if place and not place["located"]:
        raise BagError(
            f"the camera was not found in the map {place['path']} ({place['compared']} pairs of views compared; most often: "
            f"{place['reason']}); the results without a path in that map are in {shown(options.out)}"
        )
    if options.gt and not job.metrics["truth"]["matched"]:
        raise BagError(
            f"--gt: {truth_problem(job.metrics['truth'])}; the results without scores are in {shown(options.out)}"
        )
    return 0


@dataclass(frozen=True)
class Reading:
    """How a recording is read. options: keyword arguments of open_sequence. part: fields of datasets.part.Part. images: in the part, at
    most. config: as this recording needs it."""

    options: dict[str, Any]
    part: dict[str, Any]
    images: int
    config: Config


def reading(source: str, options: argparse.Namespace, config: Config) -> Reading:
    """How `run` reads that recording, for others that read it, too. Raises ComeRosError."""
    config = _for_scale(config, options.odometry, options.depth_topic)
    part = Part(options.start, options.duration, options.every, options.max_images)
    how = {"topic": options.topic, "fps": options.fps, "rectify": config.rectify, "levels": config.input.range}
    with open_sequence(source, **how, depth="none") as recording:
        count, timed = recording.count or 0, recording.timed
    images = min(-(-count // part.every), part.most or count)
    return Reading(how, dataclasses.asdict(part), images, for_photographs(config, timed))


def _check_folders(source: Path, out: Path) -> None:
    """Checks that results neither mix with the input nor replace it. Raises ConfigError."""
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


def _truth_option(gt: str | None, option: str = "--gt") -> tuple[Path | None, str | None]:
    """The file and the topic of an option for poses. Raises ConfigError."""
    if gt is None:
        return None, None
    if not gt.strip():
        raise ConfigError(f"{option} is empty: give a topic or a file, or leave it out")
    if Path(gt).is_dir():
        raise ConfigError(
            f"{option} {gt} is a folder: give the file in it that holds the path, such as groundtruth.txt"
        )
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


def for_photographs(config: Config, timed: bool) -> Config:
    """Photographs (images without times) are all keyframes, unless keyframe.* are set."""
    if timed or config.keyframe != Config().keyframe:
        return config
    return config.replace(**{"keyframe.mode": "every"})


def _for_scale(config: Config, odometry: str | None, depth_topic: str | None) -> Config:
    """Another odometry is used where it is given. Raises ConfigError for what would have no effect."""
    if odometry is not None and not config.reads_odometry:
        if config.scale.mode != "auto":
            raise ConfigError(
                f"--odometry {odometry} has no effect with scale.mode {config.scale.mode}: set that to odometry or auto"
            )
        config = config.replace(**{"known.odometry": True})
    if odometry is None and config.reads_odometry:
        raise ConfigError("scale.mode is odometry, but there are no poses: give them with --odometry TOPIC or FILE")
    if depth_topic == "none" and config.reads_depth:
        raise ConfigError(
            "--depth-topic is none, but scale.mode depth needs depth: leave --depth-topic out, or change scale.mode"
        )
    return config


def _other_odometry(options: argparse.Namespace, config: Config, part: Part) -> Poses | None:
    """The poses of --odometry. Raises ConfigError, DatasetError."""
    if options.odometry is None:
        return None
    mount = pose_of_words(config.known.base_from_camera, "known.base_from_camera")
    file, topic = _truth_option(options.odometry, "--odometry")
    if file is not None:
        poses = _poses_of_file("--odometry", file)
    else:
        with open_sequence(options.source, options.topic, None, config.rectify, topic, "none", part) as source:
            poses = source.truth()
    if not poses:
        raise DatasetError(f"--odometry: {options.odometry} holds no poses that can be read")
    return Poses(poses, mount, config.known.tolerance)


def _poses_of_file(option: str, path: Path) -> dict[int, F64]:
    try:
        return read_trajectory(path)
    except DatasetError as error:
        raise DatasetError(f"{option}: {error}: give a TUM file, with rows of stamp tx ty tz qx qy qz qw") from error


def _is_file(path: str | None) -> bool:
    return path is not None and Path(path).is_file()


def _reproducible_pipeline(config: Config, predictions: Path | None) -> ReconstructionPipeline:
    """A pipeline whose results are reproducible bit by bit. predictions: folder of those that are made already."""
    reproducible(config)
    backbone = load_backbone(config)
    return ReconstructionPipeline(config, backbone if predictions is None else Kept(backbone, predictions))


class _warnings_once:
    """Within this context each of our warnings is logged once, because a recording is read several times."""

    def __enter__(self) -> None:
        told: set[str] = set()

        def once(record: logging.LogRecord) -> bool:
            text = record.getMessage()
            return not (text in told or told.add(text))  # type: ignore[func-returns-value]

        self._once = once
        logging.getLogger("come_ros").addFilter(once)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        logging.getLogger("come_ros").removeFilter(self._once)
