"""output/ of `come_ros bag`: a ROS 2 bag with the input images and everything the node would publish, in the order of stamps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import Any

from ...config import Config
from ...datasets import Recording
from ...datasets.bag_writer import TRUE_DEPTH_TOPIC, BagWriter, rosbags_messages
from ...datasets.sequence import BagSequence
from ...errors import DatasetError, OutputError
from ...geometry import inverse
from ...messages import serialized_stamp_ns
from ...outputs.motion import Motion
from ...outputs.topics import LATCHED, OUTPUTS, FrameMessages, odometry_message
from ...outputs.world import World
from ...types import F32
from ..report.results import ResultFolder, cannot_write

NODE = "/come"
RECORDING = "output"
TF, ODOMETRY, TRUTH, FRAME = range(4)  # order of messages with the same stamp

Recorded = tuple[int, str, str, Any]
"""(time of recording in ns, topic, type, bytes)"""


class NoOutput:
    """Nothing is recorded. counts: messages by topic."""

    def __init__(self) -> None:
        self.messages = rosbags_messages()
        self.counts: dict[str, int] = {}

    def inputs(self, source: Recording) -> Iterable[Recorded]:
        """Records the input at the times of the images."""
        return ()

    def frame(self, topic: str, made: FrameMessages) -> None:
        """A message for a used frame."""

    def truth(self, stamp_ns: int, camera: str, depth: F32) -> None:
        """The true depth of a used frame (h, w), m, at the pixels of the published one."""

    def moved(self, motion: Motion, config: Config) -> None:
        """A pose, for TF and odometry."""

    def until(self, stamp_ns: int | None) -> list[Recorded]:
        """Writes the pending messages up to that stamp (None: all of them), in order."""
        return []

    def write(self, stamp_ns: int, topic: str, kind: str, data: Any, latched: bool = False) -> None:
        """Raises OutputError if it cannot be written."""

    def close(self, world: World, stamp_ns: int) -> None:
        """Ends the recording with the latched topics of the world."""


class OutputBag(NoOutput):
    """Records everything in a bag below `folder`."""

    def __init__(self, folder: ResultFolder, config: Config) -> None:
        """Raises DatasetError, OutputError."""
        self._folder, self._config = folder, config
        self._writer = BagWriter(folder.path / RECORDING, guard=folder.reserve.guard)
        self.messages = self._writer.messages
        self.counts = {}
        self._ready: list[tuple[tuple[int, int], Recorded]] = []

    def inputs(self, source: Recording) -> Iterator[Recorded]:
        """Copies the messages of a bag; otherwise builds messages from the frames."""
        build = self.messages
        try:
            if isinstance(source, BagSequence):
                bag = source.bag
                for log_ns, topic, data in bag.iter_raw(bag.topic, bag.camera_info_topic):
                    yield serialized_stamp_ns(data) or log_ns, topic, bag.topics[topic], data
                return
            for frame in source.iter_frames():
                head = build.header(frame.stamp_ns, frame.camera)
                height, width = frame.image.shape[:2]
                if frame.intrinsics is not None:
                    info = build.camera_info(frame.intrinsics, width, height, head)
                    yield self._recorded(frame.stamp_ns, "/camera/camera_info", info)
                yield self._recorded(frame.stamp_ns, "/camera/image_raw", build.image(frame.image, head))
        except DatasetError:  # reported by the pass that reconstructs
            return

    def frame(self, topic: str, made: FrameMessages) -> None:
        """Queued, to be written in order."""
        self._put(FRAME, made.frame.stamp_ns, f"{NODE}/{topic}", OUTPUTS[topic].build(made))

    def truth(self, stamp_ns: int, camera: str, depth: F32) -> None:
        """Queued, next to the published depth."""
        message = self.messages.depth(depth, self.messages.header(stamp_ns, camera))
        self._put(TRUTH, stamp_ns, TRUE_DEPTH_TOPIC, message)

    def moved(self, motion: Motion, config: Config) -> None:
        """Queues TF and odometry."""
        if config.tf.mode != "off":
            self._put(TF, motion.stamp_ns, "/tf", self._transform(motion, config))
        self._put(ODOMETRY, motion.stamp_ns, f"{NODE}/odometry", odometry_message(self.messages, motion, config))

    def until(self, stamp_ns: int | None) -> list[Recorded]:
        """TF and odometry come before other messages with the same stamp."""
        self._ready.sort(key=itemgetter(0))
        count = len(self._ready) if stamp_ns is None else sum(order[0] <= stamp_ns for order, _ in self._ready)
        ready, self._ready = self._ready[:count], self._ready[count:]
        return [recorded for _, recorded in ready]

    def write(self, stamp_ns: int, topic: str, kind: str, data: Any, latched: bool = False) -> None:
        """Into the bag."""
        try:
            self._writer.put_raw(topic, kind, data, stamp_ns, latched)
        except OSError as error:
            raise cannot_write(self._folder.out, error) from error
        self.counts[topic] = self.counts.get(topic, 0) + 1
        if self._folder.reserve.full:
            raise OutputError(
                f"cannot write to {self._folder.out}: {self._folder.reserve.full}: free some space and run it again"
            )

    def close(self, world: World, stamp_ns: int) -> None:
        """Adds the latched topics, if there is space, and closes the bag in any case."""
        try:
            if not self._folder.reserve.full:
                for name, topic in LATCHED.items():
                    self.write(*self._recorded(stamp_ns, f"{NODE}/{name}", topic.build(world)), latched=True)
        finally:
            self._writer.close()

    def _put(self, order: int, stamp_ns: int, topic: str, message: Any) -> None:
        self._ready.append(((stamp_ns, order), self._recorded(stamp_ns, topic, message)))

    def _recorded(self, stamp_ns: int, topic: str, message: Any) -> Recorded:
        return stamp_ns, topic, message.__msgtype__, self._writer.serialized(message)

    def _transform(self, motion: Motion, config: Config) -> Any:
        """The edges of odometry and of the map, as `tf.mode` says; nothing else is recorded that could be the camera's parent, so auto is
        forward."""
        odom_from_child, edge = motion.odom_from_child, (config.odom_frame, motion.child)
        if config.tf.mode == "inverse":
            odom_from_child, edge = inverse(odom_from_child), edge[::-1]
        transforms = [self.messages.transform(odom_from_child, motion.stamp_ns, *edge)]
        if motion.map_from_odom is not None:
            place, ends = motion.map_from_odom, (config.map_frame, config.odom_frame)
            if config.tf.mode == "inverse":  # the odometry's frame has a parent: the map is a leaf below it
                place, ends = inverse(place), ends[::-1]
            transforms.append(self.messages.transform(place, motion.stamp_ns, *ends))
        return self.messages.make("tf2_msgs/msg/TFMessage", transforms=transforms)
