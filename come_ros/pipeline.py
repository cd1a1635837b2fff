"""From frames to submaps: the whole algorithm, the same for the node, the tools and the tests."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .alignment import WindowAligner
from .backbones.backbone import check_prediction
from .backbones.stream import Step, StreamUsage
from .camera.intrinsics import IntrinsicsMedian
from .camera.model_input import ModelInput, ModelInputs, known_of, window_plans
from .camera.preprocess import CropResize, check_image, image_plan
from .camera.rig import hold_rig
from .config import Config
from .drops import IN_PIPELINE
from .errors import ConfigError, FrameError, OutOfMemory
from .governor import Governor
from .keyframes import KeyframeSelector
from .odometry_frame import OdometryFrame
from .refinement.refine import Refiner, Unrefined
from .refinement.state import Proposal
from .scale.reading import Seen
from .thread_governor import LiveThreads, ThreadState
from .threads import usable_threads
from .timeline import Place, Timeline, settled
from .tracking.landmarks import landmarks_of, with_known
from .tracking.odometry import Located, Odometry
from .types import Frame, Prediction, Scale, Submap, Window
from .window import MAX_GAP_NS, TIME_JUMP_NS, SlidingWindow, trimmed

if TYPE_CHECKING:
    from .backbones.backbone import Backbone

log = logging.getLogger("come_ros")

# After this many refused windows in a row, their reference is more likely wrong than they are.
MAX_REFUSED = 3
# Most changes of a camera's images that are logged.
MOST_CHANGES_TOLD = 20


class ReconstructionPipeline:
    """`add_frame` is cheap and may be called for every frame; `reconstruct` is the slow part. One thread calls both.

    counts: number of events by name: keyframes; dropped frames by drops.IN_PIPELINE; jumps (time went back),
    gaps, changes (of the images), windows, refused, restarts (of the alignment, after MAX_REFUSED refused windows in a row), resets (of
    the world). world: number of the current world.
    """

    def __init__(
        self, config: Config, backbone: Backbone | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`backbone`: None loads the one named by `config`, which is slow; a given one is not modified, and runs with the dynamic
        parameters of `config`. clock: of the governor, s. Raises CheckpointError, ConfigError."""
        if backbone is None:
            from .backbones import load_backbone

            backbone = load_backbone(config)
        self.backbone: Backbone = backbone.configured(config)
        self.config = config
        self.governor = Governor(config, backbone.native_side, backbone.patch_size, clock, backbone.causal)
        self.counts = dict.fromkeys(
            (
                *("keyframes", *IN_PIPELINE),
                *("jumps", "gaps", "changes", "windows", "refused", "restarts", "resets"),
            ),
            0,
        )
        self._keyframes = KeyframeSelector(config)
        self._window = SlidingWindow(config.window.size, config.window.shared)
        self.metric = backbone.metric
        self._frame_cache = backbone.new_cache()
        self.cameras = max(1, len(config.camera_names))
        if backbone.causal and self.cameras > 1:
            raise ConfigError(
                f"cameras names {self.cameras}, but the backbone {backbone.name} is a stream of one camera: leave cameras empty, or give "
                f"weights or a backbone that takes whole windows, such as vggt"
            )
        self._aligner = WindowAligner(config.window.size * self.cameras, self.metric)
        self._refiner = Refiner(config, self.metric) if config.refine.mode == "bundle" else Unrefined(config)
        self.odometry = Odometry(config)
        # why frames were not offered for a while, by who offers them; "": there were none
        self.explain_gap: Callable[[], str] = str
        self.world = 0
        self._odom_frame = OdometryFrame(config, self.metric)
        self._inputs = ModelInputs()
        self._intrinsics = IntrinsicsMedian()
        self._last: _Source | None = None
        self._timeline = Timeline()
        self._ignoring = False
        self._told: set[str] = set()
        self._refused = 0
        self._threads: LiveThreads | None = None
        self._pass: tuple[float, Hashable] | None = None  # s of the last pass, and the key of passes of that cost

    @property
    def tracks(self) -> bool:
        """Whether every image must go through `track` before `add_frame`."""
        return self.locates or self.config.refine.mode == "bundle"

    @property
    def locates(self) -> bool:
        """Whether `track` gives the poses of all images; otherwise odometry is that of keyframes when their window is done."""
        return self.config.odometry.rate == "image"

    def track(self, frame: Frame) -> tuple[Frame, list[Located]]:
        """Returns `frame` with the points seen in it, for `add_frame`, and the poses of images that are known now. Every image must
        be passed once; this method may be called from another thread than the others. Without tracking, frames are returned
        unchanged."""
        return self.odometry.add(frame) if self.tracks else (frame, [])

    def add_frame(self, frame: Frame) -> str | None:
        """Offers a frame; with several cameras the first of a set, which holds the others. Returns None if it is a keyframe, which
        then waits for its window; else the reason why it was dropped: "not_keyframe", or "time" if its stamp is not newer than the
        last one's.

        After a change of the images (size, encoding, camera) or a pause, a new window starts and continues from the last pose.
        Stamps that jump back are handled by on_time_jump once the following images confirm them; until then they are dropped.
        Raises FrameError if the image cannot be used, ValueError if there is no `room()` for a keyframe.
        """
        try:
            for each in frame.all_cameras:
                check_image(each.image)
        except FrameError:
            self.counts["decode"] += 1
            raise
        source = _Source.of(frame)
        if frame.observations is not None and frame.observations.world > self.world:
            # the odometry sees every image, so it notices the end of a world first
            if self._last is not None:
                self._jump_back(self._last, source.stamp_ns)
            self.world = frame.observations.world
        last = self._last
        if last is None:
            self._timeline.place(source.stamp_ns)
        elif not self._is_in_time(last, source):
            return self._dropped("time")
        self._last, self._ignoring = source, False
        if not self._keyframes.is_keyframe(frame):
            return self._dropped("not_keyframe")
        self._window.push(frame)
        self.counts["keyframes"] += 1
        return None

    def take_window(self, least_new: int | None = None) -> Window | None:
        """The next window, or None if fewer than `least_new` keyframes are fresh. None as `least_new` is the offline
        cadence: a full first window, then size - overlap new keyframes each."""
        if least_new is None:
            overlap = self._window.overlap if self._window.started else 0
            least_new = self._window.size - overlap
        return self._window.take(least_new)

    @property
    def fresh(self) -> int:
        """Keyframes that wait for a window."""
        return self._window.fresh

    def room(self) -> int:
        """How many keyframes may be added before a window must be taken."""
        return self._window.room

    @property
    def least_new(self) -> int:
        """How many fresh keyframes are worth a window where the newest results are wanted at once: any; but a whole window where the
        stream of a causal backbone begins, since all that follows is seen from there."""
        return self._window.size if self.backbone.causal and not self._window.started else 1

    def make_room(self) -> Frame | None:
        """Drops the oldest keyframe that waits for a window, in favour of newer ones, and returns it; None if there is none."""
        return self._window.give_up_oldest()

    def follow_load(self) -> None:
        """Adapts the number of CPU threads to the load of the machine from now on; results then differ in their last bits from run
        to run. Has no effect if `threads` is set, or on a GPU. Takes some passes; call it in the thread that runs the model."""
        if self.config.threads or self.backbone.device.startswith("cuda") or usable_threads() == 1:
            return
        images = self._grey(self._window.size * self.cameras)
        self._threads = LiveThreads(lambda frames: self.backbone.predict(images[:frames]), len(images))

    @property
    def stream(self) -> StreamUsage | None:
        """What a causal backbone keeps of earlier frames; None for the others."""
        return self._frame_cache.usage

    @property
    def threads(self) -> ThreadState | None:
        """How many CPU threads the model uses; None if that does not follow the load."""
        return None if self._threads is None else self._threads.governor.state

    def _grey(self, frames: int) -> NDArray[np.uint8]:
        """(frames, H, W, 3), as large as the images of windows will be."""
        side = self.governor.effort.side
        plan = image_plan(self.backbone, 4 * side, 3 * side, side)
        return np.full((frames, plan.height, plan.width, 3), 128, np.uint8)

    def warm_up(self, stop: Callable[[], bool] | None = None) -> None:
        """One pass over grey images, as many and as large as windows will be: kernels are compiled and memory is taken now, not in
        the first window. Raises Cancelled, OutOfMemory if nothing that is tried fits."""
        while True:
            # on a CPU nothing is compiled and memory is allocated in each pass: one frame shows whether the model runs
            frames = self._window.size if self.backbone.device.startswith("cuda") else 1
            try:
                self.backbone.predict(self._grey(frames * self.cameras), stop)
            except OutOfMemory as error:
                failure = str(error)
            else:
                return
            self._step_down(failure, frames)

    def reconstruct(self, window: Window, stop: Callable[[], bool] | None = None) -> Submap:
        """Reconstructs the new frames of `window` in the odometry frame; none if the alignment was refused (see
        `Submap.alignment`), in which case they are dropped. If memory is short, only the newest of them.

        stop: polled while the model runs. Raises Cancelled, FrameError, OutOfMemory, or what the model raises; the new frames are
        then dropped, and all other state is unchanged.
        """
        used = 0
        try:
            submap = self._reconstruct(window, stop)
            used = len(submap) // self.cameras
            return submap
        finally:
            self.counts["rejected"] += window.new - used

    def _reconstruct(self, window: Window, stop: Callable[[], bool] | None) -> Submap:
        config = self.config
        clock = [time.perf_counter()]
        seen = window.spread()
        plans, given = self._input(seen)
        clock.append(time.perf_counter())
        try:
            prediction, failure = self._predict(given, seen, stop), ""
        except OutOfMemory as error:
            prediction, failure = None, str(error)
        if prediction is None:  # outside the except clause, memory held by the exception is free
            self._step_down(failure, len(window))
            window = trimmed(window, *self._sizes(len(window)))
            seen = window.spread()
            plans, given = self._input(seen)
            try:
                prediction = self._predict(given, seen, stop)
            except OutOfMemory:  # retried only once per window; the next one is cheaper still
                self.governor.out_of_memory(len(window))
                self._follow_governor()
                raise
        if self.governor.fitted():
            log.info("memory was enough for a while: larger windows are tried again, %s", _effort_text(self.governor))
            self._follow_governor()
        clock.append(time.perf_counter())
        kind = given.images.shape, prediction.reused, round(prediction.kept_ratio, 3), len(prediction.depth)
        self._pass = None if failure else (clock[2] - clock[1], kind)

        prediction, residual = hold_rig(seen.frames, window.cameras, prediction)
        begins = not self._aligner.started
        alignment, odom_from_camera = self._aligner.align(seen.frames, prediction)
        self.counts["windows"] += 1
        # the rows of the new frames are the last, whichever were requested
        rows = slice(len(prediction.depth) - seen.new, None)
        depth = _scaled(prediction.depth[rows], alignment.scale)
        if prediction.meaningful is not None:
            depth[~prediction.meaningful[rows]] = np.nan
        clock.append(time.perf_counter())
        proposal = Proposal(
            seen.frames, seen.new, plans, prediction, alignment, odom_from_camera, depth, prediction.confidence[rows],
            window.cameras, config.known.odometry and config.known.metric,
        )  # fmt: skip
        refined, by_network = self._refiner.refine(proposal), alignment.accepted
        if refined.accepted and not by_network:
            alignment = dataclasses.replace(alignment, accepted=True, reason="")
        alignment = dataclasses.replace(alignment, scale=refined.scale)
        new = slice(len(seen) - seen.new if alignment.accepted else len(seen), None)
        published = slice(0 if alignment.accepted else seen.new, None)
        frames = seen.frames[new]
        odom_from_camera = refined.odom_from_camera[published]
        depth, confidence = refined.depth[published], refined.confidence[published]
        if alignment.accepted:
            self._aligner.commit(frames, alignment.scale, odom_from_camera, depth, confidence)
            self._refiner.commit(refined)
            self._window.commit(window)
            if begins:
                self._odom_frame.begin(window.frames[0])
            if by_network:
                self._intrinsics.add(seen.frames, plans, prediction)
            self._refused = 0
        else:
            alignment = dataclasses.replace(alignment, reason=alignment.reason + self._refuse())
        clock.append(time.perf_counter())

        # The chain of windows stays in the model's own unit; the published values have that of the odometry.
        intrinsics, place = self._intrinsics.of(frames, plans[new], self._refiner.intrinsics), self._odom_frame
        if alignment.accepted:
            looked = Seen(
                frames, plans[new], depth, intrinsics, odom_from_camera, place.up, place.level, window.cameras
            )  # fmt: skip
            if place.measure(looked, lost=alignment.shared == 0):
                self._new_world()
        unit = place.scale.unit
        submap = Submap(
            frames=frames,
            images=prediction.images[new],
            depth=depth * np.float32(unit),
            confidence=confidence,
            intrinsics=intrinsics,
            odom_from_camera=place.published(odom_from_camera),
            alignment=dataclasses.replace(alignment, scale=alignment.scale * unit),
            merged=None if prediction.merged is None else prediction.merged[new],
            kept_ratio=prediction.kept_ratio,
            read_ratio=prediction.read_ratio,
            metric=self.metric,
            rig=residual,
            refinement=refined.report,
            world=self.world,
            reused=prediction.reused / len(seen),
            saved_ms=prediction.saved_ms,
            places=None if prediction.places is None else prediction.places[new],
            scale=place.scale,
            timings_ms={
                "preprocess": 1e3 * (clock[1] - clock[0]),
                "model": 1e3 * (clock[2] - clock[1]),
                "align": 1e3 * (clock[3] - clock[2]),
                **({"refine": 1e3 * (clock[4] - clock[3])} if config.refine.mode != "none" else {}),
            },
        )
        if not alignment.accepted:
            return submap
        covariance = place.drifted(submap, refined.covariance[-window.cameras], window.cameras)
        landmarks = landmarks_of(submap, plans[new], covariance) if self.tracks else None
        if landmarks is not None:
            landmarks = dataclasses.replace(landmarks, world=self.world, scale=place.scale)
            landmarks = with_known(landmarks, *self._refiner.landmarks(), place.origin, unit)
        return dataclasses.replace(submap, covariance=covariance, landmarks=landmarks)

    @property
    def scale(self) -> Scale:
        """How long the model's unit is, as far as it is known."""
        return self._odom_frame.scale

    def _new_world(self) -> None:
        self.counts["resets"] += 1
        self.world += 1

    @property
    def last_input(self) -> ModelInput | None:
        """What the model was given for the last window; None if there was none yet."""
        return self._inputs.last

    def run(
        self,
        frames: Iterable[Frame],
        stop: Callable[[], bool] | None = None,
        located: Callable[[list[Located]], object] = list,
    ) -> Iterator[Submap]:
        """The offline loop: every keyframe of `frames`, in windows that share `window.overlap` of them. stop: as in `reconstruct`.
        located: receives the poses of all images once they are known; those from a submap's landmarks come after it."""
        self._timeline.confirmations = self.odometry.timeline.confirmations = (
            1  # `settled` has already removed outliers
        )
        for frame in settled(frames, self._drop_outliers):
            if self.room() == 0:
                yield from self._reconstruct_all(None, stop, located)
            frame, poses = self.track(frame)
            located(poses)
            try:
                self.add_frame(frame)
            except FrameError as error:
                log.warning("a frame is left out: %s", error)
            yield from self._reconstruct_all(None, stop, located)
        yield from self._reconstruct_all(1, stop, located)

    def reset(self) -> None:
        """Forgets all frames, poses and scale: a new world starts at the next frame. The counts continue."""
        self.odometry.reset()
        self._forget_world()
        self.world = max(self.world, self.odometry.world)

    def _forget_world(self) -> None:
        """Forgets all but the odometry, which starts a new world itself where stamps jump back."""
        self._keyframes.reset()
        self._window.reset()
        self._aligner.reset()
        self._refiner.reset()
        self._odom_frame.reset()
        self._forget_frames()
        self._intrinsics = IntrinsicsMedian()
        self._last = None
        self._timeline.reset()
        self._refused = 0
        self._new_world()

    def set_config(self, config: Config) -> None:
        """Other dynamic parameters, from the next window on. The rest needs a new pipeline."""
        self.config = config
        self._keyframes.config = config
        self._aligner.capacity = config.window.size * self.cameras
        self._refiner.config = config
        self._odom_frame.configure(config)
        self.odometry.config = config
        self.governor.configure(config)
        self._follow_governor()

    def observe(self, latency_s: float, frames: int) -> bool:
        """A window of `frames` came out `latency_s` after the frame that triggered it came in. Whether the governor turned a knob."""
        if self._threads is not None and self._pass is not None:
            self._threads.passed(*self._pass)
        turned = self.governor.observe(latency_s, frames)
        if turned:
            log.info("latency target %.0f ms: %s", 1e3 * self.governor.target_s, _effort_text(self.governor))
            self._follow_governor()
        return turned

    @property
    def effort_text(self) -> str:
        """What windows may cost now, in words."""
        return _effort_text(self.governor)

    def _follow_governor(self) -> None:
        """What the next window may cost."""
        config = self.governor.apply()
        self.backbone = self.backbone.configured(config)
        self._window.resize(config.window.size, config.window.shared)

    def _sizes(self, frames: int) -> tuple[int, int]:
        """Size and overlap for a window of that many frames, as the governor allows."""
        size = min(frames, self._window.size)
        return size, min(self._window.overlap, size - 1)

    def _forget_frames(self) -> None:
        """Clears everything that is stored by frame."""
        self._inputs.clear()
        self._frame_cache.clear()

    def _step_down(self, failure: str, frames: int) -> None:
        """A window of `frames` did not fit. Raises OutOfMemory if nothing cheaper is to be tried."""
        self._frame_cache.clear()
        self.backbone.free_memory()
        if not self.governor.out_of_memory(frames):
            raise OutOfMemory(f"{failure}: free memory on the device, or lower window.size or input.max_side")
        self._follow_governor()
        log.warning("%s; trying %s", failure, _effort_text(self.governor))

    def _is_in_time(self, last: _Source, source: _Source) -> bool:
        """Whether a frame is accepted by its stamp; handles jumps, pauses and changes."""
        if self.config.on_time_jump == "ignore" and source.stamp_ns < last.stamp_ns - TIME_JUMP_NS:
            return self._jump_back(last, source.stamp_ns)
        place = self._timeline.place(source.stamp_ns)
        if place is Place.JUMP:
            self._jump_back(last, self._timeline.jumped_to_ns)
            if self._timeline.last_ns is None:  # a new world
                self._timeline.place(source.stamp_ns)
            return True
        if place is Place.RETURN:
            log.warning(
                "the images after a pause of %.1f s by their stamps were outliers: the following ones continue from before it",
                (last.stamp_ns - source.stamp_ns) * 1e-9,
            )
            return True
        if place is Place.NEXT:
            self._tell_break(last, source)
        return place is Place.NEXT

    def _jump_back(self, last: _Source, stamp_ns: int) -> bool:
        """Handles stamps that went back. Returns whether the frame is accepted."""
        how = self.config.on_time_jump
        text = {
            "reset": "a new map and odometry origin start (on_time_jump is reset; keep_pose continues from the last pose)",
            "keep_pose": "a new window continues from the last pose (on_time_jump is keep_pose)",
            "ignore": "frames are dropped until their stamps are newer (on_time_jump is ignore)",
        }[how]
        if how != "ignore" or not self._ignoring:
            self.counts["jumps"] += 1
            seconds = (last.stamp_ns - stamp_ns) * 1e-9
            log.warning(
                "stamps go back by %.3f s, but may by %g s at most: %s; if no bag is played in a loop, check the camera's clock",
                seconds, TIME_JUMP_NS * 1e-9, text,
            )  # fmt: skip
        self._ignoring = how == "ignore"
        if how != "ignore":
            self.counts["time"] += self.fresh  # their window will not come
        if how == "reset":
            self._forget_world()
        elif how == "keep_pose":
            # frames are identified by their stamps, which may now repeat
            self._keyframes.reset()
            self._window.reset()
            self._aligner.restart()
            self._refiner.restart()
            self._forget_frames()
        return how != "ignore"

    def _tell_break(self, last: _Source, source: _Source) -> None:
        """Counts and logs breaks in the stream; window.py acts on them."""
        if source.stamp_ns - last.stamp_ns > MAX_GAP_NS:
            self.counts["gaps"] += 1
            why = self.explain_gap()
            log.warning(
                "no image %s %.1f s by the stamps, but pauses should be of %g s at most: a new window continues from the last pose; %s",
                "was used for" if why else "for", (source.stamp_ns - last.stamp_ns) * 1e-9, MAX_GAP_NS * 1e-9,
                why or "check the camera, unless it was stopped on purpose",
            )  # fmt: skip
        if source.kind != last.kind:
            self.counts["changes"] += 1
            text = f"images change from {last.kind} to {source.kind}"
            if text not in self._told and len(self._told) < MOST_CHANGES_TOLD:
                self._told.add(text)
                log.info("%s: a new window continues from the last pose", text)

    def _drop_outliers(self, count: int) -> None:
        self.counts["time"] += count

    def _dropped(self, reason: str) -> str:
        self.counts[reason] += 1
        return reason

    def _reconstruct_all(
        self, least_new: int | None, stop: Callable[[], bool] | None, located: Callable[[list[Located]], object]
    ) -> Iterator[Submap]:
        while (window := self.take_window(least_new)) is not None:
            submap = self.reconstruct(window, stop)
            yield submap
            self.odometry.update(submap.landmarks)
            located(self.odometry.located())

    def _input(self, window: Window) -> tuple[list[CropResize], ModelInput]:
        """How the frames of `window` are cut and resized, and what the model is given for them."""
        plans = window_plans(self.backbone, window, self.governor.effort.side)
        known = known_of(window, plans, self.config.known, self.backbone.inputs)
        return plans, self._inputs.make(window, plans, known)

    def _predict(self, given: ModelInput, window: Window, stop: Callable[[], bool] | None) -> Prediction:
        prediction = self.backbone.predict(given.images, stop, given.known, self._step(window))
        check_prediction(prediction, given.images, self.backbone.name)
        return prediction

    def _step(self, window: Window) -> Step | None:
        """How `window` continues the previous one; None if the model processes every window from scratch."""
        if not self.backbone.streams:
            return None
        names = tuple((frame.stamp_ns, frame.camera) for frame in window.frames)
        cache = self._frame_cache if self.config.window.reuse else None
        if cache is None:
            self._frame_cache.clear()
        return Step(names, cache, self._dense(window))

    def _dense(self, window: Window) -> tuple[int, ...] | None:
        """The frames whose depth is needed, None for all: the new ones, and the anchors, which carry the scale."""
        old = len(window) - window.new
        ties = [i for i in range(old) if self._aligner.knows(window.frames[i])]
        most = self.config.window.anchors * self.cameras
        if most == 0 or len(ties) <= most:
            return None
        return (*ties[-most:], *range(old, len(window)))

    def _refuse(self) -> str:
        """Counts a refused window. Returns what to append to the reason."""
        self.counts["refused"] += 1
        self._refused += 1
        if self._refused < MAX_REFUSED:
            return ""
        self._refused = 0
        self.counts["restarts"] += 1
        self._aligner.restart()
        self._refiner.restart()
        self._window.forget()
        return f"; refused {MAX_REFUSED} times in a row, so the next window continues from the last pose without shared frames"


def _effort_text(governor: Governor) -> str:
    ratio, window, side = governor.effort
    name = "stream.window" if governor.causal else "window.size"
    return f"accelerator.ratio {ratio:g}, {name} {window}, input.max_side {side}"


@dataclasses.dataclass(frozen=True)
class _Source:
    """The properties of a frame with which the next one is compared."""

    stamp_ns: int
    kind: str

    @staticmethod
    def of(frame: Frame) -> _Source:
        height, width = frame.image.shape[:2]
        return _Source(
            frame.stamp_ns, " ".join(filter(None, (f"{width}x{height} px", frame.encoding, f"of {frame.camera}")))
        )


def _scaled(depth: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    """`depth` in odom units, NaN where it is not finite or not positive."""
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(depth) & (depth > 0), depth * np.float32(scale), np.float32(np.nan))
