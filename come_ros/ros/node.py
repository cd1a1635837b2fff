"""ReconstructionNode: subscribes, hands messages over to the worker, and publishes. A thin shell around the pipeline."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from ..camera.rig import rig_remark
from ..config import Config
from ..drops import DROP_REASONS
from ..errors import ComeRosError, DeviceLost
from ..mapping.aside import Aside
from ..mapping.saved_map import read_map
from ..outputs.reporter import Reporter
from ..parameter_file import read_entries
from ..tracking.odometry import Located
from ..types import Submap
from . import messages
from .diagnostics.counters import Lately, drops_text
from .diagnostics.statuses import CLOCK_S, SILENT_WARN_S, NodeView, lost_in_map, silence_fault, statuses
from .diagnostics.telemetry import RECENT_S, Telemetry, Throttle
from .inputs import Input, OutputConflicts
from .latched import LatchedTopics
from .log import RosLogHandler
from .map_thread import MapThread
from .parameters import declare_parameters, follow_parameters
from .publishers import QOS_OVERRIDES, Publishers
from .reader import Reader
from .services import Services
from .surroundings import twin_text, twins, where_images_are
from .tf import Tf
from .worker import Load, Worker, load_pipeline

SUCCESS, FAILURE, ERROR = (
    TransitionCallbackReturn.SUCCESS,
    TransitionCallbackReturn.FAILURE,
    TransitionCallbackReturn.ERROR,
)

log = logging.getLogger("come_ros")

SUMMARY_S = 10.0
WAITING_S = 60.0  # so often the log says again that no images come
STOP_S = 1.5  # part of the 3 s between a signal and the end of the process
UNLOAD_S = 1.0  # cleanup waits this long for the memory to be freed; a pass that cannot be interrupted frees it later
DEVICE_LOST = 70  # exit code: only a restart helps (EX_SOFTWARE)


def _reported(transition: Callable[..., TransitionCallbackReturn]) -> Callable[..., TransitionCallbackReturn]:
    """rclpy turns an exception in a transition into ERROR without a message. Here it becomes one line in the log and in the
    diagnostics, and the node returns to its previous state."""

    @functools.wraps(transition)
    def reported(self: ReconstructionNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(self, state)
        except Exception as error:
            self._fault = f"cannot {transition.__name__.removeprefix('on_')}: {_why(error)}"
            log.error("%s", self._fault)
            log.debug("%s", self._fault, exc_info=error)
            if transition.__name__ == "on_configure":
                self._release()
            elif transition.__name__ == "on_activate":
                self._leave_session()
                self._state = "inactive"
            else:
                return ERROR
            return FAILURE

    return reported


class ReconstructionNode(LifecycleNode):
    """Camera topics in; point cloud, odometry, depth and TF out.

    configure loads the model, activate subscribes, deactivate drops the subscriptions and keeps the model, cleanup frees it.
    The executor's thread only stores references. Images are decoded and poses published in the locator's thread, or else in the
    worker's, which infers, packs and publishes all the rest.
    """

    def __init__(self, load: Load = load_pipeline, **arguments: Any) -> None:
        """load: creates the pipeline, in the worker's thread. Raises ConfigError if a given parameter is unknown or invalid."""
        super().__init__("come", **arguments)
        # ROS levels and /rosout for messages of the pipeline and the backbones
        self._log_handler = RosLogHandler(self)
        log.addHandler(self._log_handler)
        log.setLevel(logging.DEBUG)
        log.propagate = False

        self.config = declare_parameters(self)
        follow_parameters(self, self.config, self._set_config)
        self.telemetry = Telemetry()
        self.reader = Reader(self, self.config, Tf(self, self.config), self.telemetry)
        self.worker = Worker(
            self.config,
            self.reader.read,
            self._publish,
            self.telemetry,
            self._tend,
            load,
            lost=self._on_lost,
            publish_pose=self._publish_pose,
        )
        self.exit_code = 0
        self._loading: Future[None] | None = None
        self._fault = ""
        self._state = "unconfigured"
        self._started = time.monotonic()
        self._latched: LatchedTopics | None = None
        self._frame_topics = Publishers(self, self.reader, self.telemetry)
        self._aside = Aside("come_ros.mapping.mapper", "come_ros.outputs.following_map")
        self._reporter = self._new_reporter()
        self._mapping = MapThread(lambda: self._reporter.world, self._aside.close)
        self._inputs: list[Input] = []  # the images first
        self._output_conflicts = OutputConflicts(self)
        self._clock_ticks = False
        self._told_sync = 0
        self._lately = Lately(RECENT_S)
        self._twin = ""
        self._may_log_waiting = Throttle(WAITING_S)
        self._may_log_lost = Throttle(WAITING_S)

        self.telemetry.converters = str(messages.converters())
        log.info(
            "messages are converted here: %s", "; ".join((self.telemetry.converters, *messages.converters().remarks))
        )
        self._answers = Services(self, self.worker, lambda: self._reporter.world, self._tend)
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # also runs while /clock is stopped
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._diagnostics_timer = self.create_timer(
            self.config.diagnostics.period, self._publish_diagnostics, clock=steady
        )
        self._summarised = self.worker.counters.snapshot()
        self.create_timer(SUMMARY_S, self._summarise, clock=steady)
        self._starter = (
            self.create_timer(0.02, self._start_when_loaded, clock=steady) if self.config.autostart else None
        )

    # Parameters and topics

    def check_params_file(self, path: str) -> None:
        """Warns if a parameters file holds no parameters for this node: ROS does not report it."""
        name = self.get_fully_qualified_name()
        try:
            entries = read_entries(path)
        except ComeRosError:
            return  # accepted by rcl's own parser
        if entries and not any(entry.applies_to(name) for entry in entries):
            log.warning(
                "%s gives parameters to %s, but nothing to this node, %s: write '/**:' or '%s:' as its key",
                path, ", ".join(dict.fromkeys(entry.node for entry in entries)), name, name,
            )  # fmt: skip

    def _set_config(self, config: Config) -> None:
        if config.diagnostics.period != self.config.diagnostics.period:
            self._diagnostics_timer.timer_period_ns = round(config.diagnostics.period * 1e9)
        self.config = self.worker.config = self.reader.config = config

    # Lifecycle

    def _LifecycleNodeMixin__change_state(self, transition_id: int) -> TransitionCallbackReturn:
        """Each change of state, of services and of our own. rclpy raises on one that is impossible now, as where a manager and autostart
        both configure, or a manager activates too early; in a service that would end the process."""
        possible = {transition[0]: transition[1] for transition in self._state_machine.available_transitions}
        if transition_id not in possible:
            log.warning(
                "transition %d is not possible in state %s, and nothing is changed: possible are %s; where a manager configures and "
                "activates this node, set autostart to false",
                transition_id, self._state_machine.current_state[1], ", ".join(possible.values()) or "none",
            )  # fmt: skip
            return FAILURE
        return super()._LifecycleNodeMixin__change_state(transition_id)  # type: ignore[misc, no-any-return]

    def start(self) -> None:
        """Starts the worker; with autostart it loads the model at once, while the executor already answers."""
        self.worker.start()
        if self.config.has_map_frame:
            self._mapping.start()
        if self.config.autostart:
            self._loading = self.worker.load(self.config)
            self._state = "loading"

    def _start_when_loaded(self) -> None:
        if self._loading is not None and not self._loading.done():
            return
        if self._starter is not None:
            self.destroy_timer(self._starter)
        if self.trigger_configure() == SUCCESS:
            self.trigger_activate()

    @_reported
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Loads the model; FAILURE, with the reason in one line, if that fails."""
        loading, self._loading = self._loading or self.worker.load(self.config), None
        self._state = "loading"
        while not wait([loading], 0.05).done:
            if not self.context.ok():
                return FAILURE
        error = loading.exception()
        if error is not None:
            self._state = "unconfigured"
            self._fault = f"cannot configure: {_why(error)}"
            log.error("%s", self._fault)
            return FAILURE
        self._fault = ""
        self._summarised = self.worker.counters.snapshot()
        self.reader.tf = Tf(self, self.config)
        self._frame_topics.open(self._output_conflicts)
        self._latched = LatchedTopics(self, QOS_OVERRIDES, self._output_conflicts.callbacks)
        self._reporter = self._new_reporter()
        self.telemetry.resets = 0
        self.telemetry.evidence.reset()
        self.telemetry.lost, self.telemetry.last_located = 0, None
        self._state = "inactive"
        log.info(
            "configured: %s on %s",
            self.config.backbone,
            self.worker.pipeline.backbone.device if self.worker.pipeline else "?",
        )
        for told in self.config.without_effect():
            log.warning("%s", told)
        if self._reporter.world.metric:
            log.info("the model is metric: lengths are metres, and windows are aligned without a change of scale")
        return super().on_configure(state)

    @_reported
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribes."""
        self.reader.begin()
        done = super().on_activate(state)
        self.worker.activate()
        self.telemetry.active_since = time.monotonic()
        self._lately.restart()
        self._inputs = [Input(self, *each) for each in self.reader.topics(self.worker.put)]
        for each in reversed(self._inputs):  # the images last
            each.open()
        if remark := self.reader.tf.open():
            self.reader.warn_once(remark)
        self._state = "active"
        log.info(
            "active: waiting for %s, intrinsics from %s",
            self.reader.image_topic,
            ", ".join(c.info_topic for c in self.reader.cameras),
        )
        return done

    @_reported
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Drops the subscriptions; waiting frames are counted as paused."""
        self._leave_session()
        self._state = "inactive"
        log.info("inactive")
        return super().on_deactivate(state)

    @_reported
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Frees the model."""
        self._release()
        return super().on_cleanup(state)

    @_reported
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._leave_session()
        self._release()
        self._state = "finalized"
        return super().on_shutdown(state)

    @_reported
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._leave_session()
        self._release()
        return super().on_error(state)

    def _leave_session(self) -> None:
        for each in self._inputs:
            each.close()
        self.worker.deactivate()
        self.reader.tf.close()
        self.telemetry.active_since = None

    def _release(self) -> None:
        wait([self.worker.unload()], UNLOAD_S)
        self._frame_topics.close()
        if self._latched is not None:
            self._latched.destroy(self)
            self._latched = None
        self._state = "unconfigured"

    def close(self) -> bool:
        """Ends the worker. False if it is in a pass or a load that cannot be interrupted; it then no longer uses ROS."""
        ended = self.worker.stop(STOP_S)
        self._mapping.stop(STOP_S)
        self._answers.close(STOP_S)
        log.removeHandler(self._log_handler)
        log.addHandler(logging.NullHandler())  # otherwise messages of an abandoned pass would go to stderr
        return ended

    # Output, in the worker's thread

    def _publish(self, submap: Submap, row: int, config: Config) -> None:
        """Publishes everything about frame `row`."""
        if len(self.reader.cameras) > 1:
            self.reader.tell_known("extrinsics", rig_remark(submap.rig))
        self._reporter.add_row(submap, row, config)
        frame, (height, width) = submap.frames[row], submap.depth[row].shape
        if config.odometry.rate != "image":
            self.telemetry.last_stamp_ns = frame.stamp_ns
        self.telemetry.resolution = f"{width}x{height}"
        self.telemetry.intrinsics_source = "predicted" if frame.intrinsics is None else "camera_info"

    def _new_reporter(self) -> Reporter:
        """Raises MapError if the map to begin in cannot be read."""
        pipeline, saved, places = self.worker.pipeline, None, ""
        if pipeline is not None and self.config.closes_loops:
            places = pipeline.backbone.places
            saved = read_map(self.config.map.load, places) if self.config.map.load else None
        return Reporter(
            self._frame_topics, messages.ROS, self.config, pipeline is not None and pipeline.metric, len(self.reader.cameras),
            background=True, saved=saved, places=places, call=self._aside,
        )  # fmt: skip

    def _publish_pose(self, located: Located, config: Config) -> None:
        """Publishes TF and odometry of one image; called in the locator's thread."""
        self._reporter.add_located(located, config)
        self.telemetry.last_stamp_ns = located.frame.stamp_ns

    def _tend(self) -> None:
        """Between passes: publishes latched topics that are due; with the worker's parameters."""
        world = self._reporter.world
        if world.config is not self.worker.config:
            world.set_config(self.worker.config)
        if self.worker.pipeline is not None:
            self.telemetry.resets = self.worker.pipeline.counts["resets"]
            self._reporter.follow(self.worker.pipeline.world)
        if self._latched is not None:
            self._latched.publish(world, world.config)

    # Loss of the device

    def _on_lost(self, error: DeviceLost) -> None:
        """Called in the worker's thread: the device no longer responds."""
        log.fatal(
            "the GPU no longer responds (%s): this process ends with exit code %d, so that a supervisor can restart it",
            error, DEVICE_LOST,
        )  # fmt: skip
        self.exit_code = DEVICE_LOST
        if self.executor is not None:
            self.executor.create_task(self._end_lost)

    def _end_lost(self) -> None:
        """Called in the executor: reports it on /diagnostics, and stops spinning."""
        if self._state == "active":
            self.trigger_deactivate()
        self._publish_diagnostics()
        self._diagnostics.wait_for_all_acked(
            Duration(seconds=1)
        )  # whatever is not released by then ends with the process
        self.context.try_shutdown()

    # Reports

    def _publish_diagnostics(self) -> None:
        for each in self._inputs:
            each.follow()
        if len(self.reader.cameras) > 1:
            self.telemetry.known["sync"] = self._sync_remark() or "ok"
        self._look_for_twins()
        message = DiagnosticArray()
        message.header.stamp = self.get_clock().now().to_msg()
        message.status = statuses(self._view(), self.config, self.telemetry, self.worker.counters.snapshot())
        self._diagnostics.publish(message)

    def _look_for_twins(self) -> None:
        before, self._twin = self._twin, twin_text(self.get_fully_qualified_name()) if twins(self) else ""
        if self._twin and not before:
            log.warning("%s", self._twin)

    def _sync_remark(self) -> str:
        """Why images of several cameras were not matched since the last call, or ""."""
        dropped = self.worker.counters.snapshot().dropped["sync"]
        lost, self._told_sync = dropped - self._told_sync, dropped
        if lost <= 0:
            return ""
        waited_for = " and ".join(self.reader.cameras[i].topic for i in self.worker.matcher.missing())
        return (
            f"{lost} images had no partners of all cameras within {self.config.sync.slop:g} s"
            + (f", {waited_for} is waited for" if waited_for else "")
            + ": check that all cameras run and are triggered together, or raise sync.slop"
        )

    def _view(self) -> NodeView:
        pipeline = self.worker.pipeline
        active = self._state == "active"
        clock = "system"
        if self.get_parameter("use_sim_time").value:
            self._clock_ticks = self._clock_ticks or self.get_clock().now().nanoseconds > 0
            missing = not self._clock_ticks and time.monotonic() - self._started > CLOCK_S
            clock = "sim without /clock" if missing else "sim"
        images = self._inputs[0] if self._inputs else None
        return NodeView(
            state="paused" if active and self.worker.paused else self._state,
            topic=self.reader.image_topic,
            publishers=min(
                (each.publishers() for each in self._inputs[: len(self.reader.cameras)]),
                default=min(self.count_publishers(camera.topic) for camera in self.reader.cameras),
            ),
            qos=images.qos if images else self.config.input.reliability,
            clock=clock,
            tf=self.reader.tf.edge.choice or f"{self.reader.tf.edge.mode} (undecided)",
            tf_conflict=self.reader.tf.edge.conflict or self.reader.tf.map_edge.conflict,
            loops=self._reporter.world.loops,
            keyframes=self._reporter.world.keyframes,
            whereabouts=self._reporter.world.whereabouts,
            scale=self._reporter.world.known_scale,
            fault=self._fault,
            worker_alive=self.worker.is_alive(),
            lost=str(self.worker.lost or ""),
            elsewhere=where_images_are(self, self.reader.cameras)
            if active and self.telemetry.silence_s() >= SILENT_WARN_S
            else "",
            twin=self._twin,
            lately=self._lately(self.worker.counters.snapshot()),
            qos_conflict="; ".join(filter(None, (each.conflict for each in self._inputs))),
            output_conflict=self._output_conflicts.text(),
            backbone=pipeline.backbone.description if pipeline else {},
            device=pipeline.backbone.device if pipeline else self.config.device,
            governor=pipeline.governor.state if pipeline else None,
            threads=pipeline.threads if pipeline else None,
            memory=pipeline.backbone.memory() if pipeline and self.worker.lost is None else None,
        )

    def _summarise(self) -> None:
        now, before = self.worker.counters.snapshot(), self._summarised
        self._summarised = now
        if now.received == before.received:
            silent = silence_fault(self._view(), self.telemetry)
            if silent is not None and self._may_log_waiting(self._state):
                log.warning("%s", silent[1])
            return
        self._may_log_waiting = Throttle(WAITING_S)
        if (lost := lost_in_map(self._reporter.world.whereabouts)) and self._may_log_lost("map"):
            log.warning("%s", lost)
        lately = now.since(before)
        rates = self.telemetry.rates(SUMMARY_S)
        log.info(
            "last %.0f s: %d frames in, %d used, dropped: %s; latency %.0f ms (p95 %.0f), %.1f used/s",
            SUMMARY_S, lately.received, lately.used, drops_text(lately.dropped, DROP_REASONS)[0] or "none",
            rates.latency_ms_mean, rates.latency_ms_p95, lately.used / SUMMARY_S,
        )  # fmt: skip


def _why(error: BaseException) -> str:
    """A one-line message for an exception of loading, with the fix."""
    if isinstance(error, ComeRosError):
        return str(error)
    text = f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no reason given'])[0]}"
    if isinstance(error, ImportError):
        package = (getattr(error, "name", None) or "torch").partition(".")[0]
        return f"{text}: pip install {package} into the environment of the node; `come_ros doctor` says which one fits"
    return f"{text}: `come_ros doctor` examines the machine"
