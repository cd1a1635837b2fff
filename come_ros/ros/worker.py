"""The worker thread: loads the model, then selects, reconstructs and publishes the frames in the ring, and decodes them where no locator
has done it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from ..camera.sync import SetMatcher
from ..config import Config
from ..errors import Cancelled, ComeRosError, DeviceLost, FrameError
from ..self_check import SelfCheck
from ..tracking.odometry import Located
from ..types import Frame, Submap, Window
from .diagnostics.counters import FrameCounters, drops_text
from .diagnostics.telemetry import Telemetry, Throttle
from .locator import Locator
from .ring import FrameRing

if TYPE_CHECKING:
    from ..pipeline import ReconstructionPipeline

log = logging.getLogger("come_ros")

PATIENCE = 64  # most messages that wait for a slow worker if backpressure is "all"

Read = Callable[[Any, int], Frame]
"""(message, its arrival on the steady clock, ns) -> Frame; raises FrameError."""

Publish = Callable[[Submap, int, Config], None]
"""Sends everything about one row of a Submap."""

PublishPose = Callable[[Located, Config], None]
"""Sends the pose of one image."""


Load = Callable[[Config], "ReconstructionPipeline"]
"""Makes the pipeline with its model. Slow; raises ComeRosError."""


def load_pipeline(config: Config) -> ReconstructionPipeline:
    """The pipeline with its model, warmed up. Slow: imports torch, reads the weights, compiles kernels."""
    from ..backbones import load_backbone
    from ..pipeline import ReconstructionPipeline

    pipeline = ReconstructionPipeline(config, load_backbone(config))
    if config.backbone != "fake":
        begun = time.monotonic()
        pipeline.warm_up()
        if config.backpressure == "latest":  # with all images processed, results should be reproducible
            pipeline.follow_load()
        log.info("warmed up in %.1f s", time.monotonic() - begun)
    return pipeline


def _capacity(config: Config) -> int:
    """Greatest number of waiting messages: as many as a window holds, unless none may be lost."""
    return config.window.size if config.backpressure == "latest" else max(PATIENCE, config.window.size)


def _gone(*_: Any) -> Any:
    raise Cancelled("the worker was stopped")


class Worker(threading.Thread):
    """Every frame put into `ring` ends in exactly one place of `counters`, published or dropped.

    A session is the time between `activate` and `deactivate`: nothing is published once its session is over.
    """

    def __init__(
        self,
        config: Config,
        read: Read,
        publish: Publish,
        telemetry: Telemetry,
        tend: Callable[[], None],
        load: Load = load_pipeline,
        *,
        lost: Callable[[DeviceLost], None] = lambda error: None,
        publish_pose: PublishPose = lambda located, config: None,
    ) -> None:
        """publish_pose: called in the locator's thread where there is one. tend: called in the thread between passes, several times a
        second; it may publish, while a session lasts. lost: called in the thread when the device no longer responds; the thread
        then ends."""
        # daemon: a pass that never ends must not keep the process alive
        super().__init__(name="come_worker", daemon=True)
        self.config = config
        self.ring: FrameRing[tuple[Any, int]] = FrameRing(_capacity(config))
        self.cameras = max(1, len(config.camera_names))  # number of images per counted item
        self.matcher: SetMatcher[Any] = SetMatcher(self.cameras, round(config.sync.slop * 1e9))
        self.counters = FrameCounters()
        self.pipeline: ReconstructionPipeline | None = None
        self.lost: DeviceLost | None = None
        self.paused = False
        self._on_lost = lost
        self._read, self._publish, self._tend, self._load = read, publish, tend, load
        self._telemetry = telemetry
        self._may_log = Throttle()
        self._counted = self.counters.snapshot()  # when the pipeline was last offered a frame
        self._tasks: deque[Callable[[], None]] = deque()
        self._kept: list[Frame] = []  # in the window, not yet reconstructed
        self._stopping = threading.Event()
        self._session = 0  # odd while active
        self._publishing = threading.Lock()
        self._publish_pose = publish_pose
        self._telling = threading.Lock()  # poses; held for a moment only
        self.locator: Locator | None = None

    # Called from the executor's thread; none of these waits for the work to be done.

    def put(self, message: Any, arrival_ns: int, camera: int = 0, stamp_ns: int = 0) -> None:
        """Adds a message. Keeps a reference; a full ring drops its oldest. With several cameras, messages with close stamps are
        joined in the order of the cameras."""
        self.counters.receive()
        self._telemetry.arrived()
        if self.paused:
            self.counters.drop("paused")
        elif self.cameras == 1:
            self._enqueue(message, arrival_ns)
        else:
            found = self.matcher.put(camera, stamp_ns, message)
            self.counters.drop("sync", found.dropped)
            for together in found.sets:
                self._enqueue(together, arrival_ns)

    def _enqueue(self, message: Any, arrival_ns: int) -> None:
        ring = self.ring if self.locator is None else self.locator.ring
        self.counters.drop("busy", self.cameras * ring.put((message, arrival_ns)))

    def call(self, task: Callable[[], Any]) -> Future[Any]:
        """Runs `task` in the thread, after earlier work. The future holds its result or exception."""
        done: Future[Any] = Future()

        def run() -> None:
            try:
                done.set_result(task())
            except Exception as error:
                done.set_exception(error)
                if isinstance(error, DeviceLost):
                    self.lost = error

        self._tasks.append(run)
        self.ring.wake()
        return done

    def load(self, config: Config) -> Future[None]:
        """Loads the model, after earlier work, and counts from zero. The future holds the exception of loading."""

        def task() -> None:
            self._give_up("paused")  # of an earlier session
            self.pipeline = self._load(config)
            self.pipeline.explain_gap = self._explain_gap
            self.counters.restart()
            self._counted = self.counters.snapshot()

        return self.call(task)

    def pause(self, paused: bool) -> None:
        """While paused, new frames are dropped; frames in progress are still published, and the model stays loaded."""
        self.paused = paused
        if paused:
            self._clear("paused")

    def unload(self) -> Future[None]:
        """Frees the model, after earlier work."""

        def task() -> None:
            import gc
            import sys

            self._give_up("paused")
            self.pipeline = None
            gc.collect()
            torch = sys.modules.get("torch")
            if torch is not None and torch.cuda.is_available():
                torch.cuda.empty_cache()

        return self.call(task)

    def self_check(self) -> Future[dict[str, float]]:
        """The last window dense and accelerated, see SelfCheck.measure; images wait meanwhile."""

        def task() -> dict[str, float]:
            result = SelfCheck(self.pipeline).measure(stop=self._stopping.is_set) if self.pipeline is not None else None
            if result is None:
                raise FrameError("there was no window yet to check: activate the node and let images come in first")
            return result

        return self.call(task)

    def reset(self, then: Callable[[], None]) -> Future[None]:
        """A new world starts at the next frame: waiting frames and a pass in progress are cancelled, then the pipeline is reset,
        and `then` is called. Once the future is done, nothing of the old world is published."""

        def task() -> None:
            self._give_up("paused")
            if self.pipeline is not None:
                self.pipeline.reset()
            then()

        done = self.call(task)  # before the next session starts, so that none of its passes sees the old world
        with self._telling:
            self._session += 2
        self._clear("paused")
        return done

    def activate(self) -> None:
        """Starts a session: frames put into the ring from now on are reconstructed."""
        with self._publishing, self._telling:
            self._session |= 1
        self.ring.wake()

    def deactivate(self) -> None:
        """Ends the session: once this returns nothing more is published, and the ring is empty. A running pass is cancelled."""
        with self._publishing, self._telling:
            self._session += self._session & 1
        self._clear("paused")

    def stop(self, timeout_s: float) -> bool:
        """Ends the thread. False if it is still busy after `timeout_s`, in a pass or load that cannot be interrupted."""
        self._stopping.set()
        self.deactivate()
        self.ring.wake()
        if self.locator is not None and self.locator.ident is not None:
            self.locator.ring.wake()
            self.locator.join(timeout_s)
        if self.ident is not None:
            self.join(timeout_s)
        if not self.is_alive():
            return True
        # the thread must not keep objects alive that its owner is about to destroy
        self._read, self._publish, self._tend, self._on_lost, self._publish_pose = _gone, _gone, _gone, _gone, _gone
        return False

    def start(self) -> None:
        """Starts the thread; and one that locates the camera, if poses are not to wait for windows. With backpressure "all" frames
        and windows
        take turns, as in the bag tool, so that the results are the same."""
        if self.config.odometry.rate == "image" and self.config.backpressure == "latest":
            self.locator = Locator(self)
            self.locator.start()
        super().start()

    # Called from the locating thread: the locator's, or the worker's own.

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    @property
    def session(self) -> int:
        """Odd while active; another number for each."""
        return self._session

    def goes_first(self, permitted: bool) -> None:
        """Whether the locator runs before the model and other processes."""
        self._telemetry.goes_first = permitted
        if not permitted:
            log.info(
                "tracking may not go before the model on the CPU, so that poses come later on a busy machine: grant CAP_SYS_NICE or "
                "`ulimit -e 30`"
            )

    def locate(self, message: Any, arrival_ns: int, session: int) -> None:
        """Reads a message, publishes the camera's pose, and queues its frame for the worker, while the session lasts."""
        pipeline = self.pipeline
        frame = None if pipeline is None or not session & 1 else self._tracked(pipeline, message, arrival_ns, session)
        if frame is None and (pipeline is None or not session & 1):
            self.counters.drop("paused", self.cameras)
        if frame is not None:
            with self._telling:
                if session == self._session:
                    self.counters.drop("busy", self.cameras * self.ring.put((frame, arrival_ns)))
                else:
                    self.counters.drop("paused", self.cameras)

    def tell_located(self, session: int) -> None:
        """Publishes poses of images that were waiting for the landmarks of a window."""
        if self.pipeline is not None and session & 1:
            self._tell(self.pipeline.odometry.located(), session)

    def _tracked(self, pipeline: ReconstructionPipeline, message: Any, arrival_ns: int, session: int) -> Frame | None:
        """The frame of a message, after publishing its pose; None if it cannot be read, which is counted. Without points if
        tracking fails."""
        try:
            frame = self._read(message, arrival_ns)
        except Exception as error:
            self._unreadable(error)
            return None
        try:
            begun = time.perf_counter()
            frame, poses = pipeline.track(frame)
            if poses:
                self._telemetry.located(poses[-1], 1e3 * (time.perf_counter() - begun))
            self._tell(poses, session)
        except Exception as error:
            self._failed("odometry", error)
        return frame

    def _tell(self, poses: list[Located], session: int) -> None:
        for located in poses:
            with self._telling:
                if session != self._session:
                    return
                self._publish_pose(located, self.config)
            if located.frame.arrival_ns:
                self._telemetry.told((time.monotonic_ns() - located.frame.arrival_ns) * 1e-9)

    # The thread itself.

    def run(self) -> None:
        while not self._stopping.is_set():
            if self.lost is not None:
                self._end_lost(self.lost)
                return
            session = self._session
            while self._tasks:
                self._tasks.popleft()()
            try:
                with self._publishing:
                    if session & 1 and session == self._session:
                        self._tend()
                if session & 1 and self.pipeline is not None and (self._kept or len(self.ring)):
                    self._step(self.pipeline, session)
                else:
                    self._give_up("paused")
                    self.ring.wait(0.2)
            except Exception as error:  # the node keeps running: logged, counted, and tried again with the next frame
                self._failed("worker", error)
                self._give_up("rejected")

    def _end_lost(self, error: DeviceLost) -> None:
        """Ends the thread after a lost device; waiting frames are dropped."""
        self._give_up("rejected")
        self._clear("rejected")
        while self._tasks:
            self._tasks.popleft()()
        self._on_lost(error)

    def _step(self, pipeline: ReconstructionPipeline, session: int) -> None:
        config = self.config
        if pipeline.config is not config:
            pipeline.set_config(config)
            self.counters.drop("busy", self.cameras * self.ring.resize(_capacity(config)))
        every = config.backpressure == "all"  # the same windows as the bag tool: taken as soon as they are full
        window = None
        for _ in range(len(self.ring)):  # and no more, or a fast camera would delay the window
            if window is not None or (every and pipeline.room() == 0) or session != self._session:
                break
            waiting = self.ring.pop()
            if waiting is None:
                break
            self._make_room(pipeline)
            self._add(pipeline, *waiting, session)
            window = pipeline.take_window() if every else None
        window = window or pipeline.take_window(None if every else pipeline.least_new)
        if window is not None:
            self._reconstruct(pipeline, window, config, session)
        elif every:
            self.ring.wait(0.2)
        else:
            self._give_up("time")

    def _make_room(self, pipeline: ReconstructionPipeline) -> None:
        """Drops the keyframe that has waited longest for a window, in favour of newer ones."""
        while pipeline.room() == 0 and (oldest := pipeline.make_room()) is not None:
            self._forget_before(oldest)
            del self._kept[:1]
            self.counters.drop("busy", self.cameras)

    def _forget_before(self, frame: Frame) -> None:
        """Drops the kept frames before `frame`: the pipeline forgets them after a jump back of time."""
        lost = next((i for i, kept in enumerate(self._kept) if kept is frame), 0)
        del self._kept[:lost]
        self.counters.drop("time", self.cameras * lost)

    def _add(self, pipeline: ReconstructionPipeline, message: Any, arrival_ns: int, session: int) -> None:
        """Adds a message, or a frame that the locator has read."""
        apart = self.locator is not None
        frame = message if apart else self._tracked(pipeline, message, arrival_ns, session)
        if frame is None:
            return
        try:
            why = pipeline.add_frame(frame)
            self._counted = self.counters.snapshot()
        except Exception as error:
            self._unreadable(error)
        else:
            if why is None:
                self._kept.append(frame)
            else:
                self.counters.drop(why, self.cameras)

    def _explain_gap(self) -> str:
        """What became of the images that came since the pipeline was last offered one; "" if there were none."""
        dropped = self.counters.snapshot().since(self._counted).dropped
        text, fix = drops_text(dropped, ("busy", "decode", "sync", "paused"))
        return f"images came, but were dropped ({text})" + (f": {fix}" if fix else "") if text else ""

    def _unreadable(self, error: Exception) -> None:
        """Counts an unusable image, and the other cameras' images of its set, and says why."""
        self.counters.drop("decode")
        self.counters.drop("sync", self.cameras - 1)
        if not isinstance(error, FrameError):
            self._failed("decode", error)
            return
        self._telemetry.trouble("decode", str(error))
        if self._may_log("decode"):
            log.error("frame dropped: %s", error)

    def _reconstruct(self, pipeline: ReconstructionPipeline, window: Window, config: Config, session: int) -> None:
        new = window.frames[len(window) - window.new :]
        self._forget_before(new[0])
        del self._kept[: len(new)]
        open_frames = self.cameras * len(new)
        why = "rejected"
        try:
            submap = pipeline.reconstruct(window, lambda: self._stopping.is_set() or session != self._session)
            pipeline.odometry.update(submap.landmarks)
            if self.locator is None:
                self.tell_located(session)
            else:
                self.locator.ring.wake()
            self._telemetry.alignment = submap.alignment
            self._telemetry.refinement = submap.refinement
            self._telemetry.refine_ms = submap.timings_ms.get("refine", float("nan"))
            self._telemetry.kept_ratio, self._telemetry.read_ratio = submap.kept_ratio, submap.read_ratio
            self._telemetry.reused, self._telemetry.saved_ms = submap.reused, submap.saved_ms
            self._telemetry.stream = pipeline.stream
            self._telemetry.evidence.add(submap, config.refine.mode != "none")
            age_s = (time.monotonic_ns() - new[-1].arrival_ns) * 1e-9
            if not submap.alignment.accepted:
                self._telemetry.trouble("rejected", submap.alignment.reason)
                if self._may_log("rejected"):
                    log.warning("window of %d frames refused: %s", len(window), submap.alignment.reason)
            elif 0 < config.max_data_age < age_s and config.backpressure == "latest":
                why = "old"
                self._telemetry.trouble("old", f"a result took {age_s:.1f} s")
            else:
                missing = open_frames - len(submap)  # memory was short
                self.counters.drop("rejected", missing)
                open_frames -= missing
                why = "paused"
                for row in range(len(submap)):
                    with self._publishing:
                        if session != self._session:
                            break
                        self._publish(submap, row, config)
                        self.counters.use()
                        open_frames -= 1
                    age_s = (time.monotonic_ns() - new[-1].arrival_ns) * 1e-9
                    self._telemetry.published(age_s)
            turned = pipeline.observe(age_s, len(window))
            if why == "old" and (turned or self._may_log("old")):
                log.warning(
                    "results come %.1f s after their frame, more than max_data_age (%g s), and are dropped: %s",
                    age_s, config.max_data_age,
                    f"the next windows cost less ({pipeline.effort_text})" if turned
                    else "lower window.size or input.max_side, or raise max_data_age",
                )  # fmt: skip
        except Cancelled:
            why = "paused"
        except DeviceLost as error:
            self.lost = error
        except Exception as error:
            why = "rejected"
            self._failed("inference", error)
        finally:
            self.counters.drop(why, open_frames)

    def _clear(self, reason: str) -> None:
        """Drops the messages that wait to be read."""
        waiting = self.ring.clear() + (0 if self.locator is None else self.locator.ring.clear())
        self.counters.drop(reason, self.cameras * waiting + self.matcher.clear())

    def _give_up(self, reason: str) -> None:
        self.counters.drop(reason, self.cameras * len(self._kept))
        self._kept.clear()

    def _failed(self, kind: str, error: Exception) -> None:
        if self._stopping.is_set():  # the ROS context is gone, so every call fails
            return
        self._telemetry.trouble(kind, f"{type(error).__name__}: {error}")
        if self._may_log(kind):
            told = None if isinstance(error, ComeRosError) else error
            log.error("%s failed, its frames are dropped: %s: %s", kind, type(error).__name__, error, exc_info=told)
