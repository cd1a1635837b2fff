"""ReconstructionNode: subscribe, hand over to the worker, publish. A thin shell around the pipeline."""

from __future__ import annotations

import functools
import json
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
import rclpy.task
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Odometry
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_srvs.srv import SetBool, Trigger

from ..camera.images import decode_depth
from ..camera.rig import rig_remark
from ..config import Config
from ..errors import ComeRosError, DeviceLost, FrameError
from ..geometry import is_finite_pose
from ..odometry import Located
from ..outputs.motion import Motion, MotionEstimator, motion_of
from ..outputs.topics import OUTPUTS, FrameMessages, odometry_message, topic_of
from ..outputs.world import World
from ..parameter_file import read_entries
from ..types import F32, F64, Frame, Submap
from . import messages
from .camera import Camera
from .diagnostics.statuses import CLOCK_S, NodeView, statuses
from .diagnostics.telemetry import Telemetry
from .inputs import OVERRIDABLE, Input, OutputConflicts
from .known import PoseSource, Stamped, nearest
from .latched import LatchedTopics
from .log import RosLogHandler
from .parameters import declare_parameters, follow_parameters
from .tf import Tf
from .worker import Load, Worker, load_pipeline

SUCCESS, FAILURE, ERROR = (
    TransitionCallbackReturn.SUCCESS,
    TransitionCallbackReturn.FAILURE,
    TransitionCallbackReturn.ERROR,
)

log = logging.getLogger("come_ros")

CAMERA_INFO_WAIT_S = 1.0
SUMMARY_S = 10.0
STOP_S = 1.5  # of the 3 s between a signal and the end of the process
UNLOAD_S = 1.0  # cleanup waits so long for the memory to be free; a pass that cannot be interrupted frees it later
DEVICE_LOST = 70  # exit code: only a restart helps (EX_SOFTWARE)
_OVERRIDABLE = QoSOverridingOptions(OVERRIDABLE)


def _reported(transition: Callable[..., TransitionCallbackReturn]) -> Callable[..., TransitionCallbackReturn]:
    """rclpy turns an exception in a transition into ERROR without a word. Here it is one line in the log and in the diagnostics, and
    the node returns to where it was."""

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
    The executor's thread only stores references; decoding, inference, packing and publishing happen in the worker.
    """

    def __init__(self, load: Load = load_pipeline, **arguments: Any) -> None:
        """load: makes the pipeline, in the worker's thread. Raises ConfigError if a given parameter is unknown or invalid."""
        super().__init__("come", **arguments)
        # ROS levels and rosout for what the pipeline and the backbones say
        self._log_handler = RosLogHandler(self)
        log.addHandler(self._log_handler)
        log.setLevel(logging.DEBUG)
        log.propagate = False

        self.config = declare_parameters(self)
        follow_parameters(self, self.config, self._set_config)
        self.telemetry = Telemetry()
        self.worker = Worker(
            self.config,
            self._read,
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
        self._motion = MotionEstimator()
        self._shown_world = 0
        self._following = threading.Lock()
        self._world = World(self.config, messages.ROS)
        self._latched: LatchedTopics | None = None
        self._tf = Tf(self, self.config)
        self._first_frame_s: float | None = None
        self._warned: set[str] = set()
        self._subscriptions_made: list[Any] = []
        self._outputs: dict[tuple[str, str], Any] = {}  # (camera's name, topic)
        self._inputs: list[Input] = []  # the images first
        self._output_conflicts = OutputConflicts(self)
        self._clock_ticks = False
        self._told_sync = 0

        self.cameras = [Camera(self, self.config, name) for name in self.config.camera_names or ("",)]
        self.image_topic = ", ".join(camera.topic for camera in self.cameras)
        self.depth_topic = self.resolve_topic_name("depth")
        self._depths: Stamped[Image] = Stamped()
        self._poses = PoseSource(self.config)
        self.telemetry.converters = str(messages.converters())
        log.info(
            "messages are converted here: %s", "; ".join((self.telemetry.converters, *messages.converters().remarks))
        )
        # each in a group of its own: what waits for its end in the default group would keep images and timers out
        self.create_service(Trigger, "~/reset", self._on_reset, callback_group=MutuallyExclusiveCallbackGroup())
        self.create_service(Trigger, "~/save_map", self._on_save_map, callback_group=MutuallyExclusiveCallbackGroup())
        self.create_service(
            Trigger, "~/self_check", self._on_self_check, callback_group=MutuallyExclusiveCallbackGroup()
        )
        self.create_service(SetBool, "~/pause", self._on_pause)
        self._saving: threading.Thread | None = None
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # also runs while /clock stands still
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
        """Warns if a parameters file gives nothing to this node: ROS says nothing of it."""
        name = self.get_fully_qualified_name()
        try:
            entries = read_entries(path)
        except ComeRosError:
            return  # rcl took it, with its own parser
        if entries and not any(entry.applies_to(name) for entry in entries):
            log.warning(
                "%s gives parameters to %s, but nothing to this node, %s: write '/**:' or '%s:' as its key",
                path, ", ".join(dict.fromkeys(entry.node for entry in entries)), name, name,
            )  # fmt: skip

    def _set_config(self, config: Config) -> None:
        if config.diagnostics.period != self.config.diagnostics.period:
            self._diagnostics_timer.timer_period_ns = round(config.diagnostics.period * 1e9)
        self.config = self.worker.config = config

    # Lifecycle

    def start(self) -> None:
        """Starts the worker; with autostart it loads the model at once, while the executor already answers."""
        self.worker.start()
        if self.config.autostart:
            self._loading = self.worker.load(self.config)
            self._state = "loading"

    def _start_when_loaded(self) -> None:
        if self._loading is not None and not self._loading.done():
            return
        self.destroy_timer(self._starter)
        if self.trigger_configure() == SUCCESS:
            self.trigger_activate()

    @_reported
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Loads the model; FAILURE, with one line that says why, if that cannot be done."""
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
        self._outputs = {
            (camera.name, topic): self.create_lifecycle_publisher(
                messages.message_type(output.kind),
                f"~/{topic_of(camera.name, topic)}",
                QoSProfile(depth=output.depth, reliability=ReliabilityPolicy.RELIABLE),
                qos_overriding_options=_OVERRIDABLE,
                event_callbacks=self._output_conflicts.callbacks(topic_of(camera.name, topic)),
            )
            for camera in self.cameras
            for topic, output in OUTPUTS.items()
            if camera is self.cameras[0] or not output.robot
        }
        self._latched = LatchedTopics(self, _OVERRIDABLE, self._output_conflicts.callbacks)
        self._world = World(self.config, messages.ROS)
        self._world.metric = self.worker.pipeline is not None and self.worker.pipeline.metric
        self.telemetry.resets = 0
        self.telemetry.lost, self.telemetry.last_located = 0, None
        self._motion.reset()
        self._shown_world = 0
        self._tf = Tf(self, self.config)
        self._state = "inactive"
        log.info(
            "configured: %s on %s",
            self.config.backbone,
            self.worker.pipeline.backbone.device if self.worker.pipeline else "?",
        )
        if self._world.metric:
            log.info("the model is metric: lengths are metres, and windows are aligned without a change of scale")
        return super().on_configure(state)

    @_reported
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribes."""
        self._first_frame_s = None
        for camera in self.cameras:
            camera.forget()
        self.telemetry.camera_info = "no camera_info received"
        done = super().on_activate(state)
        self.worker.activate()
        self.telemetry.active_since = time.monotonic()
        self._inputs = [Input(self, *each) for each in self._wanted_inputs()]
        for each in reversed(self._inputs):  # the images last
            each.open()
        if remark := self._tf.open():
            self._warn_once(remark)
        self._state = "active"
        log.info(
            "active: waiting for %s, intrinsics from %s",
            self.image_topic,
            ", ".join(c.info_topic for c in self.cameras),
        )
        return done

    @_reported
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Drops the subscriptions; what was still waiting is counted as paused."""
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
        for subscription in self._subscriptions_made:
            self.destroy_subscription(subscription)
        self._subscriptions_made = []
        self.worker.deactivate()
        self._tf.close()
        self.telemetry.active_since = None

    def _release(self) -> None:
        wait([self.worker.unload()], UNLOAD_S)
        for publisher in self._outputs.values():
            self.destroy_lifecycle_publisher(publisher)
        self._outputs = {}
        if self._latched is not None:
            self._latched.destroy(self)
            self._latched = None
        self._state = "unconfigured"

    def close(self) -> bool:
        """Ends the worker. False if it is in a pass or a load that cannot be interrupted; it no longer touches ROS then."""
        ended = self.worker.stop(STOP_S)
        if self._saving is not None:
            self._saving.join(STOP_S)  # else what is half written stays behind
        log.removeHandler(self._log_handler)
        log.addHandler(logging.NullHandler())  # else what an abandoned pass still says would go to stderr
        return ended

    # Input

    def _on_image(self, index: int, message: Image | CompressedImage) -> None:
        stamp_ns = messages.stamp_ns(message.header.stamp) if len(self.cameras) > 1 else 0
        if stamp_ns == 0 and len(self.cameras) > 1:
            stamp_ns = self._now_ns()
        self.worker.put(message, time.monotonic_ns(), index, stamp_ns)

    def _wanted_inputs(self) -> Iterator[tuple[type, str, Callable[[Any], None], str, int]]:
        """Type, topic, callback, reliability and depth of the images, their camera_info, and what else is known."""
        wish = self.config.input.reliability, self.config.input.depth
        for index, camera in enumerate(self.cameras):
            yield camera.kind, camera.topic, functools.partial(self._on_image, index), *wish
        for camera in self.cameras:
            yield CameraInfo, camera.info_topic, camera.on_info, *wish
        self.telemetry.known = {}
        if self.config.known.depth:
            self.telemetry.known["depth"] = "none received yet"
            yield Image, self.depth_topic, self._on_depth, *wish
        if self.config.known.odometry:
            self.telemetry.known["odometry"] = "none received yet"
            yield Odometry, self.resolve_topic_name("odometry"), self._on_odometry, "best_effort", 50

    def _on_depth(self, message: Image) -> None:
        self._depths.put(messages.stamp_ns(message.header.stamp), message)

    def _on_odometry(self, message: Odometry) -> None:
        try:
            pose = messages.pose_of(message.pose.pose)
        except ValueError as error:
            self._warn_once(f"a pose on odometry is left out: {error}")
            return
        if is_finite_pose(pose):
            self._poses.put(messages.stamp_ns(message.header.stamp), message.child_frame_id, pose)

    def _read(self, message: Any, arrival_ns: int) -> Frame:
        """Frame of a message, or, with several cameras, of one of each; in the worker's thread. Raises FrameError."""
        if len(self.cameras) == 1:
            return self._read_one(self.cameras[0], message, arrival_ns)
        first, *others = (
            self._read_one(camera, each, arrival_ns) for camera, each in zip(self.cameras, message, strict=True)
        )
        names = {frame.camera for frame in (first, *others)}
        if len(names) < len(self.cameras):
            raise FrameError(
                f"{self.image_topic}: their images share a frame_id ({', '.join(sorted(names))}): give each driver one of its own"
            )
        if not self.config.base_frame:
            waited_s = time.monotonic() - (self._first_frame_s or 0.0)
            first = replace(first, base_from_camera=np.eye(4))
            others = [
                replace(f, base_from_camera=self._tf.place(f.camera, first.camera, f.stamp_ns, waited_s))
                for f in others
            ]
        return replace(first, others=tuple(others))

    def _read_one(self, camera_of: Camera, message: Image | CompressedImage, arrival_ns: int) -> Frame:
        if self._first_frame_s is None:
            self._first_frame_s = arrival_ns * 1e-9
        try:
            picture = camera_of.decode(message, self._first_frame_s + CAMERA_INFO_WAIT_S)
        except FrameError:  # of the image: camera_info may be well all the same
            self.telemetry.camera_info = camera_of.info_remark() or "ok"
            raise
        self.telemetry.encoding, self.telemetry.size = picture.encoding, f"{picture.width}x{picture.height}"
        remark = picture.remark
        self.telemetry.camera_info = remark or "ok"
        if remark:
            self._warn_once(remark)

        stamp_ns = messages.stamp_ns(message.header.stamp)
        if stamp_ns == 0:
            self._warn_once(
                "images come with a zero stamp; the time of arrival is used: let the driver set header.stamp"
            )
            stamp_ns = self._now_ns() - (time.monotonic_ns() - arrival_ns)
        unnamed = f"{camera_of.name}_optical_frame" if camera_of.name else self.config.camera_optical_frame
        if not message.header.frame_id:
            self._warn_once(f"images come without a frame_id; {unnamed} is used: let the driver set it")
        camera = message.header.frame_id.lstrip("/") or unnamed
        size = picture.height, picture.width
        depth = self._known_depth(stamp_ns, size, camera_of) if self.config.known.depth else None
        pose = self._known_pose(stamp_ns, camera) if self.config.known.odometry else None
        base = self.config.base_frame.lstrip("/")
        mount, remark = self._tf.base_from_camera(camera, stamp_ns, time.monotonic() - self._first_frame_s)
        if base:
            self._tell_known("base_frame", remark)
        return Frame(
            picture.image, stamp_ns, camera, picture.intrinsics, arrival_ns, picture.encoding, depth, pose, base, mount
        )

    def _known_depth(self, stamp_ns: int, size: tuple[int, int], camera: Camera) -> F32 | None:
        """The depth image of that stamp in the pixels of the image of (height, width) = size, which is rectified alike."""
        tolerance, info = self.config.known.tolerance, camera.info
        message = nearest(self._depths.around(stamp_ns, tolerance), stamp_ns, tolerance)
        depth: F32 | None = None
        if message is None:
            remark = f"no depth within {tolerance:g} s of an image's stamp on {self.depth_topic}: remap `depth`, check its clock"
        elif info is None:
            remark = "depth is not used without camera_info"
        elif (message.height, message.width) != size:
            remark = (
                f"depth has {message.width}x{message.height} px, the image {size[1]}x{size[0]}: depth is not used; give depth that is "
                f"registered to the image"
            )
        else:
            try:
                depth, remark = camera.rectification.depth(decode_depth(message), info, self.depth_topic)
            except FrameError as error:
                remark = f"{self.depth_topic}: {error}"
        self._tell_known("depth", remark)
        return depth

    def _known_pose(self, stamp_ns: int, camera: str) -> F64 | None:
        pose, remark = self._poses.at(stamp_ns, camera, self.config.known.tolerance)
        self._tell_known("odometry", remark)
        return pose

    def _tell_known(self, topic: str, remark: str) -> None:
        self.telemetry.known[topic] = remark or "ok"
        if remark:
            self._warn_once(remark)

    def _now_ns(self) -> int:
        """Of the node's clock; of the system's where that is /clock and nobody publishes it."""
        return self.get_clock().now().nanoseconds or time.time_ns()

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            log.warning("%s", text)

    # Output, in the worker's thread

    def _publish(self, submap: Submap, row: int, config: Config) -> None:
        """One message per topic for frame `row`, TF first; what nobody listens to is not built."""
        self._follow_world(submap.world)
        frame = submap.frames[row]
        camera = self.cameras[row % len(self.cameras)]
        leads = camera is self.cameras[0]  # the robot is where that one says
        at_image_rate = config.odometry.rate == "image"
        if leads:
            motion = self._motion.step(submap, row, config)
            self._keyframe_motion = motion
            if not at_image_rate:
                self._tell_motion(motion)
            if len(self.cameras) > 1:
                self._tell_known("extrinsics", rig_remark(submap.rig))
        made = FrameMessages(messages.ROS, submap, row, self._keyframe_motion, config)
        for topic, output in OUTPUTS.items():
            publisher = self._outputs.get((camera.name, topic))
            if topic != "odometry" and publisher is not None and publisher.get_subscription_count() > 0:
                publisher.publish(output.build(made))
                if topic == "points":
                    self.telemetry.points = made.cloud_points.size
        if submap.world == self._shown_world:
            self._world.add_points(lambda: made.odom_points)
        height, width = submap.depth[row].shape
        if not at_image_rate:
            self.telemetry.last_stamp_ns = frame.stamp_ns
        self.telemetry.resolution = f"{width}x{height}"
        self.telemetry.intrinsics_source = "predicted" if frame.intrinsics is None else "camera_info"

    def _publish_pose(self, located: Located, config: Config) -> None:
        """TF and odometry of one image; in the thread that locates."""
        seen = located.frame.observations
        self._follow_world(self._shown_world if seen is None else seen.world)
        self._tell_motion(motion_of(located, config, self._world.metric))
        self.telemetry.last_stamp_ns = located.frame.stamp_ns

    def _tell_motion(self, motion: Motion) -> None:
        self._tf.send(
            motion.stamp_ns, motion.child, motion.odom_from_child, time.monotonic() - (self._first_frame_s or 0.0)
        )
        publisher = self._outputs.get((self.cameras[0].name, "odometry"))
        if publisher is not None and publisher.get_subscription_count() > 0:
            publisher.publish(odometry_message(messages.ROS, motion, self.config))
        self._world.add_pose(motion.stamp_ns, motion.odom_from_child)

    def _tend(self) -> None:
        """Between passes: what is to be said of the world, now and then; parameters are those of the worker."""
        if self._world.config is not self.worker.config:
            self._world.set_config(self.worker.config)
        if self.worker.pipeline is not None:
            self.telemetry.resets = self.worker.pipeline.counts["resets"]
            self._follow_world(self.worker.pipeline.world)
        if self._latched is not None:
            self._latched.publish(self._world, self._world.config)

    def _follow_world(self, number: int) -> None:
        """What is published from now on is of that world: nothing of an older one is kept. Either thread may be the first to see it."""
        with self._following:
            if number > self._shown_world:
                self._shown_world = number
                self._motion.reset()
                self._world.clear()

    # Services. Their work is done in other threads; awaiting it leaves the executor free.

    async def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        log.info("reset: a new map and odometry origin start at the next frame")
        return await self._answer(
            response, self.worker.reset(self._tend), "a new map and odometry origin start at the next frame"
        )

    def _on_pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self.worker.pause(request.data)
        log.info("paused: frames are dropped, the model stays loaded" if request.data else "resumed")
        response.success, response.message = True, "paused" if request.data else "running"
        return response

    async def _on_save_map(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        saved: Future[None] = Future()
        folder = Path(self.config.map.save_dir).expanduser() / datetime.now().strftime("%Y-%m-%dT%H-%M-%S.%f")
        world = self._world  # and not the node: one that is left behind at the end must not keep that alive

        def save() -> None:
            try:
                world.snapshot().save(folder)
            except Exception as error:
                saved.set_exception(error)
            else:
                saved.set_result(None)

        # not in the worker: it may be in a pass, and a disk may be slow
        self._saving = threading.Thread(target=save, name="come_save", daemon=True)
        self._saving.start()
        return await self._answer(response, saved, str(folder))

    async def _on_self_check(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        return await self._answer(response, self.worker.self_check())

    async def _answer(self, response: Trigger.Response, work: Future[Any], message: str = "") -> Trigger.Response:
        """Success and `message` (by default what `work` gave, as JSON), or what it raised, once it is done."""
        done = rclpy.task.Future(executor=self.executor)
        executor = weakref.ref(self.executor)

        def wake(_: Future[Any]) -> None:
            done.set_result(None)
            if (alive := executor()) is not None:
                alive.wake()  # Humble to Kilted look at what awaits only when they are woken

        work.add_done_callback(wake)
        await done
        error = work.exception()
        response.success = error is None
        response.message = str(error) if error is not None else message or json.dumps(work.result())
        if error is not None:
            log.error("%s", error, exc_info=None if isinstance(error, ComeRosError) else error)
        return response

    # The end of a device

    def _on_lost(self, error: DeviceLost) -> None:
        """In the worker's thread: the device answers nothing any more."""
        log.fatal(
            "the device is lost (%s): this process ends with exit code %d, so that a supervisor can restart it",
            error, DEVICE_LOST,
        )  # fmt: skip
        self.exit_code = DEVICE_LOST
        self.executor.create_task(self._end_lost)

    def _end_lost(self) -> None:
        """In the executor: says it on /diagnostics, and ends the spinning."""
        if self._state == "active":
            self.trigger_deactivate()
        self._publish_diagnostics()
        self._diagnostics.wait_for_all_acked(Duration(seconds=1))  # what is not taken by then goes with the process
        self.context.try_shutdown()

    # Reports

    def _publish_diagnostics(self) -> None:
        for each in self._inputs:
            each.follow()
        if len(self.cameras) > 1:
            self.telemetry.known["sync"] = self._sync_remark() or "ok"
        message = DiagnosticArray()
        message.header.stamp = self.get_clock().now().to_msg()
        message.status = statuses(self._view(), self.config, self.telemetry, self.worker.counters.snapshot())
        self._diagnostics.publish(message)

    def _sync_remark(self) -> str:
        """Why images of several cameras did not come together since this was asked last, or ""."""
        dropped = self.worker.counters.snapshot().dropped["sync"]
        lost, self._told_sync = dropped - self._told_sync, dropped
        if lost <= 0:
            return ""
        waited_for = " and ".join(self.cameras[i].topic for i in self.worker.matcher.missing())
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
            topic=self.image_topic,
            publishers=min(
                (each.publishers() for each in self._inputs[: len(self.cameras)]),
                default=min(self.count_publishers(camera.topic) for camera in self.cameras),
            ),
            qos=images.qos if images else self.config.input.reliability,
            clock=clock,
            tf=self._tf.edge.choice or f"{self._tf.edge.mode} (undecided)",
            tf_conflict=self._tf.edge.conflict,
            fault=self._fault,
            worker_alive=self.worker.is_alive(),
            lost=str(self.worker.lost or ""),
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
            return
        dropped = {reason: n - before.dropped[reason] for reason, n in now.dropped.items()}
        rates = self.telemetry.rates(SUMMARY_S)
        log.info(
            "last %.0f s: %d frames in, %d used, dropped: %s; latency %.0f ms (p95 %.0f), %.1f used/s",
            SUMMARY_S, now.received - before.received, now.used - before.used,
            ", ".join(f"{n} {reason}" for reason, n in dropped.items() if n) or "none",
            rates.latency_ms_mean, rates.latency_ms_p95, (now.used - before.used) / SUMMARY_S,
        )  # fmt: skip


def _why(error: BaseException) -> str:
    """One line for what loading raised, with what to do."""
    if isinstance(error, ComeRosError):
        return str(error)
    text = f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no reason given'])[0]}"
    if isinstance(error, ImportError):
        package = (getattr(error, "name", None) or "torch").partition(".")[0]
        return f"{text}: pip install {package} into the environment of the node; `come_ros doctor` says which one fits"
    return f"{text}: `come_ros doctor` examines the machine"
