"""Runs one recording through the pipeline and measures it."""

from __future__ import annotations

import dataclasses
import functools
import heapq
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from ... import __version__, progress
from ...camera.preprocess import in_model_pixels
from ...config import Config
from ...datasets import Recording
from ...datasets.known import Poses, with_known
from ...datasets.stamps import NearestDepth, matched
from ...drops import IN_PIPELINE, UNUSABLE_IMAGES, in_words
from ...errors import Cancelled, DatasetError, OutputError
from ...evaluation.clock_offset import find_offset
from ...evaluation.closure import end_point_error, moved_by_loops
from ...evaluation.recordings import DepthScores, rotation_scores, trajectory_scale, trajectory_scores
from ...files import shown, write_ply, write_text, write_tum
from ...interrupts import Interrupts
from ...mapping.saved_map import FOLDER, read_map
from ...outputs.frames_file import FRAMES, PlacedFrames, write_frames
from ...outputs.motion import Motion
from ...outputs.reporter import Reporter
from ...outputs.topics import FrameMessages
from ...outputs.world import Snapshot
from ...pipeline import ReconstructionPipeline
from ...tracking.odometry import Located, LocatedCounts
from ...types import F64, Frame, Refinement, Submap
from ...verdict.evidence import Evidence
from ...verdict.judge import Facts, judge
from .. import resident
from ..report.bag_report import provenance, size_of, weights_of
from ..report.bars import bars_of
from ..report.comparison import Comparisons, comparison_text
from ..report.figures import not_drawn
from ..report.picture import (
    POINTS,
    SEPARATOR,
    Evenly,
    Overview,
    Shown,
    chosen,
    draw,
    error_of,
    points_and_colours,
)
from ..report.results import ResultFolder
from ..report.tables import for_json
from ..report.verdict import for_metrics, of_metrics, with_truth
from .output import RECORDING, NoOutput, OutputBag, Recorded

log = logging.getLogger("come_ros")


class Job:
    """Runs one recording through the pipeline. Its memory does not grow with the recording, except for the poses.

    used: frames with a result. superseded: frames whose result was replaced after a jump of time. alone: used frames that were the
    only one of their window. metrics: all measurements, after `finish`.
    """

    def __init__(
        self,
        name: str,
        config: Config,
        pipeline: ReconstructionPipeline,
        passes: list[Recording],
        truth: dict[int, F64],
        folder: ResultFolder,
        record: bool,
        compare: bool = False,
        truth_offset: float | str = 0.0,
        odometry: Poses | None = None,
    ) -> None:
        """passes: the recording, opened three times, or four times where the configuration reads depth. truth: stamp ->
        world_from_camera (4, 4), may be empty. record: whether to write output/. compare: whether to run the dense model on every window
        as well. truth_offset: s, added to the stamps of the truth, or "auto". odometry: another one's poses, for the scale. Raises
        OutputError, and MapError if the map to begin in cannot be read."""
        config = config.replace(**{"loop.enabled": True})  # nobody waits for a frame here
        self.name, self.config, self.pipeline, self.folder = name, config, pipeline, folder
        self.used = self.read = self.superseded = self.alone = 0
        self._truth_offset = truth_offset
        self.load_s = self.seconds = 0.0
        self.metrics: dict[str, Any] = {}
        self._source, depths, self._inputs_source, *more = passes
        self._known_depth = NearestDepth(more[0].iter_depth()) if more else None
        self._odometry = odometry
        self._true_poses, self._true_depth = truth, NearestDepth(depths.iter_depth())
        self._stopped = ""
        self._output = OutputBag(folder, config) if record else NoOutput()
        # the map is always needed
        with_map = config.replace(**{"map.enabled": True})
        places = pipeline.backbone.places if config.closes_loops else ""
        saved = read_map(config.map.load, places) if config.map.load else None
        self._reporter = Reporter(self, self._output.messages, with_map, pipeline.metric, saved=saved, places=places)
        self._timings: dict[str, list[float]] = {}
        self._poses: dict[int, F64] = {}  # as published by odometry
        self._keyframes: dict[int, F64] = {}  # as estimated by their windows
        self._matched: dict[int, F64] = {}  # true poses of the used frames
        self._comparisons = Comparisons(pipeline) if compare else None
        self.new_world()

    # Called by the reporter

    def new_world(self) -> None:
        """Resets all results: at the start, and when time jumped back and the pipeline was reset."""
        self._depth_scores = DepthScores()
        self._shown = Evenly()
        self._refined: list[tuple[int, Refinement]] = []  # new frames of each window, and the result of the bundle
        self._evidence = Evidence()
        self.superseded += self.used
        self.used = self.alone = 0
        self._located = LocatedCounts()
        self._poses.clear()
        self._keyframes.clear()

    def moved(self, motion: Motion, config: Config) -> None:
        """A pose for odometry, TF and scores."""
        self._poses[motion.stamp_ns] = motion.odom_from_child
        self._output.moved(motion, config)

    def frame(self, topic: str, made: FrameMessages) -> None:
        """A message for a used frame."""
        self._output.frame(topic, made)

    # Running the pipeline

    def reconstruct(self, stopped: Interrupts) -> Exception | None:
        """Runs the whole recording. Returns why it ended early, None if it did not. Results so far are kept in any case."""
        begun = time.perf_counter()
        failure: Exception | None = None
        try:
            with progress.bar(total=self._source.count, desc="reconstructing", unit="img") as bar:
                frames = self._frames(stopped, bar.update)
                if self._known_depth is not None or self._odometry is not None:
                    frames = with_known(frames, self._known_depth, self._odometry)
                submaps = self.pipeline.run(frames, stopped, self._locate)
                inputs = self._output.inputs(self._inputs_source)
                for recorded in heapq.merge(inputs, self._outputs(submaps, stopped), key=itemgetter(0)):
                    self._output.write(*recorded)
        except Cancelled:
            failure = Cancelled(f"stopped by {stopped.name} after {self.read} images")
        except Exception as error:  # whatever it is, the results so far are kept
            failure = error
        if self._comparisons is not None:
            self._comparisons.settle(stopped)
        self.seconds = time.perf_counter() - begun - (self._comparisons.seconds if self._comparisons else 0.0)
        if failure is None and self._stopped:
            failure = DatasetError(self._stopped)
        if failure is not None:
            self._stopped = " ".join(str(failure).split()) or type(failure).__name__
        return failure

    def _frames(self, stopped: Interrupts, progress: Callable[[int], Any]) -> Iterator[Frame]:
        """All images; an unreadable rest counts as the end, so that the last window is still reconstructed."""
        try:
            unreadable = 0
            self.pipeline.explain_gap = lambda: (
                f"{self._source.unreadable - unreadable} images of it cannot be read"
                if self._source.unreadable > unreadable
                else ""
            )
            for frame in self._source.iter_frames():
                if stopped():
                    raise Cancelled("on request")
                self.read += 1
                progress(1)
                yield frame
                unreadable = self._source.unreadable
        except DatasetError as error:
            self._stopped = str(error)
        self._stopped = self._stopped or self._source.damage

    def _outputs(self, submaps: Iterator[Submap], stopped: Interrupts) -> Iterator[Recorded]:
        """Publishes every image and every used frame, sorted by stamps, TF first. Poses from a submap's landmarks come after it, so
        they are sorted when the next submap is there."""
        failure: Exception | None = None
        horizon = 0
        try:
            for submap in submaps:
                yield from self._output.until(horizon)
                horizon = submap.frames[-1].stamp_ns if submap.frames else horizon
                self._take(submap)
                if self._comparisons is not None:
                    self._comparisons.add(stopped)
        except Exception as error:  # whatever it is, the results so far are written
            failure = error
        yield from self._output.until(None)
        if failure is not None:
            raise failure

    def _take(self, submap: Submap) -> None:
        """Publishes the frames of a window."""
        for stage, ms in submap.timings_ms.items():
            self._timings.setdefault(stage, []).append(ms)
        if len(submap):
            self._reporter.follow(submap.world)
            self._refined.append((len(submap), submap.refinement))
        self._evidence.add(submap, self.config.refine.mode != "none")
        if len(submap) == 1 and submap.alignment.shared == 0:
            self.alone += 1
        for row in range(len(submap)):
            self._note(self._reporter.add_row(submap, row, self.config))

    def _locate(self, poses: list[Located]) -> None:
        """Publishes poses of images."""
        for located in poses:
            self._located.add(located)
            self._reporter.add_located(located, self.config)

    def _note(self, said: FrameMessages) -> None:
        """Adds a used frame to scores and picture."""
        submap, row, frame = said.submap, said.row, said.frame
        self.used += 1
        # copied: a view would keep the whole window in memory
        self._keyframes[frame.stamp_ns] = submap.odom_from_camera[row].copy()
        depth = said.depth_pixels()
        depth[np.isinf(depth)] = np.nan
        real = self._true_depth.at(frame.stamp_ns)
        if real is not None:
            real = in_model_pixels(real, depth.shape)
            self._depth_scores.add(depth, real)
            self._output.truth(frame.stamp_ns, frame.camera, real)
        confidence = np.where(np.isfinite(depth), submap.confidence[row], np.float32(np.nan))
        overlay = None if submap.merged is None else said.overlay_pixels()
        seen = frame.observations
        tracks = None if seen is None or self.config.refine.mode == "none" else seen.pixels
        known = None if tracks is None or submap.landmarks is None else submap.landmarks.sure()
        self._shown.offer(
            Shown(
                frame.stamp_ns, frame.image, depth, confidence, real, overlay, tracks,
                None if known is None or seen is None else np.isin(seen.ids, known.ids),
                None if known is None else known.positions,
            )
        )  # fmt: skip

    def finish(self, stopped: Callable[[], bool]) -> list[str]:
        """Writes all files; those that cannot be written are logged. Needs at least one used frame. stopped: polled; then what takes
        seconds, the pictures, is left out."""
        path = self.folder.path
        snapshot = self._reporter.world.snapshot()
        metrics = self.metrics = self._measured(snapshot)
        facts = self._facts(snapshot)
        metrics["verdict"] = {
            **for_metrics(with_truth(judge(facts), metrics, facts.extent)), "facts": dataclasses.asdict(facts)
        }  # fmt: skip
        problems = [_problem(RECORDING, lambda: self._output.close(self._reporter.world, max(self._poses)))]
        self.folder.reserve.release()
        steps: dict[str, Callable[[], Any]] = {
            "trajectory.tum": lambda: write_tum(path / "trajectory.tum", snapshot.trajectory),
            "map.ply": lambda: write_ply(path / "map.ply", snapshot.points, snapshot.unit, snapshot.frame),
            "run.yaml": lambda: write_text(path / "run.yaml", self._description()),
        }
        if snapshot.map_trajectory:
            steps["trajectory_map.tum"] = lambda: write_tum(
                path / "trajectory_map.tum", snapshot.map_trajectory, snapshot.unit
            )
        if snapshot.placed:
            frames = PlacedFrames(snapshot.placed, snapshot.frame, snapshot.unit, self._matched)
            steps[FRAMES] = functools.partial(write_frames, path / FRAMES, frames)
        if snapshot.keyframes is not None:
            steps[FOLDER] = functools.partial(snapshot.save_keyframes, path / FOLDER)
        drawn: dict[str, Callable[[], Any]] = {
            "overview.png": lambda: draw(path / "overview.png", self._overview(), self._title()),
        }
        if metrics.get("compare"):
            assert self._comparisons is not None
            about = f"come_ros {__version__}: {Path(self.name).name}\n{comparison_text(metrics)}"
            drawn["compare.png"] = functools.partial(self._comparisons.draw, path / "compare.png", about)
        problems += [_problem(name, step) for name, step in steps.items()]
        problems += [not_drawn(path / name, step) for name, step in drawn.items() if not stopped()]
        timings = metrics.pop("timings")  # at the end, where it is easy to leave out
        metrics["messages"] = dict(sorted(self._output.counts.items()))
        metrics["map"] = {"points": len(snapshot.points), "voxel": self._reporter.world.map_voxel}
        metrics["bytes"] = {
            name: size_of(path / name) for name in (RECORDING, *steps, *drawn) if (path / name).exists()
        }
        metrics["timings"] = timings
        if (place := self._reporter.world.whereabouts) is not None:
            metrics["saved_map"] = dataclasses.asdict(place)
        text = json.dumps(for_json(metrics), indent=2) + "\n"
        problems.append(_problem("metrics.json", lambda: write_text(path / "metrics.json", text)))
        return list(filter(None, problems))

    def _measured(self, snapshot: Snapshot) -> dict[str, Any]:
        truth = self._place_truth()
        true_poses = matched(sorted(self._poses), self._true_poses)
        self._matched.update(true_poses)
        counts = self.pipeline.counts
        waiting = self.pipeline.fresh
        compared = self._comparisons
        lost = {
            **self._dropped,
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
            **self._refinement_measured(),
            "truth": {"poses": len(self._true_poses), "matched": len(true_poses), **truth},
            "depth": self._depth_scores.result(),
            "trajectory": trajectory_scores(self._poses, true_poses, self._depth_scores.scale),
            "rotation": rotation_scores(self._poses, true_poses),
            **self._odometry_measured(true_poses),
            **self._loops_measured(true_poses, snapshot.map_trajectory),
            "scale": self._scale_measured(true_poses),
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
                "peak_memory_mb": resident.peak() / 2**20,
            },
        }  # fmt: skip

    def _facts(self, snapshot: Snapshot) -> Facts:
        """What the run knows about its result, with or without truth."""
        located, loops = self._located.result(), self._reporter.world.loops
        unusable = sum(n for reason, n in self._dropped.items() if reason in UNUSABLE_IMAGES)
        return dataclasses.replace(
            self._evidence.facts(),
            lost=located["lost"] / located["images"] if located["images"] else float("nan"),
            left_out=unusable / self.read if self.read else float("nan"),
            loops=0 if loops is None else loops.accepted,
            drift=_drift(snapshot) if loops is not None and loops.accepted else float("nan"),
        )

    def _refinement_measured(self) -> dict[str, Any]:
        """Results of the bundle: share of refined keyframes, and medians over the windows; empty if it is off."""
        if self.config.refine.mode == "none" or not self._refined:
            return {}
        frames = sum(n for n, _ in self._refined)
        went = [r for _, r in self._refined if r.inliers]
        reasons = Counter(r.reason.split(":")[0] for _, r in self._refined if r.reason)
        return {
            "refinement": {
                "refined": sum(n * r.refined for n, r in self._refined) / frames,
                "windows": len(went),
                "landmarks": float(np.median([r.landmarks for r in went])) if went else None,
                "inlier_share": sum(r.inliers for r in went) / sum(r.observations for r in went) if went else None,
                "error_px": float(np.median([r.error_px for r in went])) if went else None,
                "iterations": float(np.median([r.iterations for r in went])) if went else None,
                "why_not": dict(reasons.most_common(5)),
            }
        }

    def _place_truth(self) -> dict[str, Any]:
        """Shifts the true poses by their offset in time. Returns the offset, and the times covered by truth and images, s."""
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
        """Scores of odometry at the camera's rate, and of its keyframes as estimated by their windows; empty if odometry is of
        keyframes only."""
        if not self.pipeline.locates:
            return {}
        of_keyframes = {stamp: pose for stamp, pose in true_poses.items() if stamp in self._keyframes}
        keyframes = {
            "trajectory": trajectory_scores(self._keyframes, of_keyframes, self._depth_scores.scale),
            "rotation": rotation_scores(self._keyframes, of_keyframes),
        }
        return {"odometry": self._located.result(), "keyframes": keyframes}

    def _loops_measured(self, true_poses: dict[int, F64], in_map: dict[int, F64]) -> dict[str, Any]:
        """Of the loops that were looked for, and of the path in the map next to odometry's; nothing where none are looked for."""
        world = self._reporter.world
        if world.loops is None:
            return {}
        out: dict[str, Any] = {
            "keyframes": world.keyframes, "offered": world.loops.offered, "accepted": world.loops.accepted,
            "refused": dict(world.loops.refused.most_common()),
        }  # fmt: skip
        stamps = [stamp for stamp in sorted(true_poses) if stamp in in_map]
        if world.loops.accepted and len(stamps) >= 3:
            real_poses = {t: true_poses[t] for t in stamps}
            out["trajectory"] = trajectory_scores(in_map, real_poses, self._depth_scores.scale)
            out["rotation"] = rotation_scores(in_map, {t: true_poses[t] for t in stamps})
        if len(stamps) >= 3:
            real = np.stack([true_poses[t] for t in stamps])
            out["end_point"] = {
                name: end_point_error(np.stack([poses[t] for t in stamps]), real)
                for name, poses in (("odometry", self._poses), ("map", in_map))
            }
        return {"loops": out}

    def _scale_measured(self, true_poses: dict[int, F64]) -> dict[str, Any]:
        """What is known of the scale at the end, and, where there is truth, by how much the metres of the map are off: by depth, and by
        the path."""
        world, scale = self._reporter.world, self._reporter.world.known_scale
        out: dict[str, Any] = {
            "metres": scale.metres, "sigma": scale.sigma, "source": scale.source,
            "age_s": (max(self._poses) - scale.stamp_ns) * 1e-9 if scale.stamp_ns else None,
            "unit": {"odometry": "metre" if scale.in_metres else "model", "map": "metre" if world.in_metres else "model"},
            "sources": {s.name: {"metres": s.metres, "sigma": s.sigma, "readings": s.readings} for s in scale.sources},
            "conflict": scale.conflict or None,
            "left_out": dict(scale.left_out),
        }  # fmt: skip
        if scale.known:
            # metres in a unit of the odometry, by truth and as known
            path = trajectory_scale(self._poses, true_poses)
            for name, true in (("depth", self._depth_scores.scale), ("path", path)):
                if true is not None:
                    out[f"error_by_{name}"] = scale.correction / true - 1
        return out

    def _description(self) -> str:
        import yaml

        return str(yaml.safe_dump(provenance(self.name, self.config, self.pipeline), sort_keys=False))

    def _overview(self) -> Overview:
        frames = [s for s in self._shown.kept if s.real is not None] or self._shown.kept
        points = self._reporter.world.snapshot().points
        some = np.random.default_rng(0).permutation(len(points))[:POINTS]
        scales, shown_rows = self._depth_scores.scales, chosen([error_of(frame) for frame in frames])
        return Overview(
            [frames[i] for i in shown_rows], min(self._poses), *points_and_colours(points[some]), self._poses,
            self._matched, float(np.median(scales)) if scales else None, f"map of {len(self._poses)} frames",
            bars_of(self.metrics),
        )  # fmt: skip

    def _title(self) -> str:
        unused = in_words(self.metrics["frames"]["dropped"])
        parts = [f"{self.read} images, {self.used} used" + (f"; not used: {unused}" if unused else "")]
        verdict = f"verdict: {of_metrics(self.metrics).line}"
        return f"come_ros {__version__}: {shown(Path(self.name).name)}\n{verdict}\n{SEPARATOR.join(parts)}"

    @property
    def _dropped(self) -> dict[str, int]:
        """Images without a result, by the reasons of DROP_REASONS."""
        counts = {reason: self.pipeline.counts[reason] for reason in IN_PIPELINE}
        counts["decode"] += self._source.unreadable
        return counts

    def what_was_read(self) -> str:
        """Summary in words, for a run without results."""
        text = in_words(self._dropped)
        return f"{self.read} images were read, none could be used ({text or 'there are too few'})"


def _drift(snapshot: Snapshot) -> float:
    """How far loops moved the path, as a share of the way; NaN where too little of it is in the map."""
    both = [stamp for stamp in snapshot.map_trajectory if stamp in snapshot.trajectory]
    if len(both) < 3:
        return float("nan")
    odometry, in_map = (np.stack([path[t] for t in both]) for path in (snapshot.trajectory, snapshot.map_trajectory))
    return moved_by_loops(odometry, in_map)


def _problem(name: str, write: Callable[[], Any]) -> str:
    """Why a result could not be written, "" if it was written."""
    try:
        write()
    except (OSError, OutputError) as error:
        return f"{name} is missing or not whole: {getattr(error, 'strerror', None) or error}"
    return ""
