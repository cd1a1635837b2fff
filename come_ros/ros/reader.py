"""Turns messages of the cameras, with other known inputs, into Frames. Runs in the worker's or the locator's thread."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from nav_msgs.msg import Odometry
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from ..camera.images import decode_depth
from ..config import Config
from ..datasets.known import nearest
from ..errors import FrameError
from ..geometry import is_finite_pose
from ..types import F32, F64, Frame
from . import messages
from .camera import Camera
from .diagnostics.telemetry import Telemetry
from .known import PoseSource, Stamped
from .tf import Tf

log = logging.getLogger("come_ros")

CAMERA_INFO_WAIT_S = 1.0

Topic = tuple[type, str, Callable[[Any], None], str, int]
"""type, name, callback, reliability and depth of a subscription"""


class Reader:
    """config: the node's current one. tf: set at each configure. image_topic: the cameras' topics, for messages."""

    def __init__(self, node: Node, config: Config, tf: Tf, telemetry: Telemetry) -> None:
        self.config, self.tf, self.telemetry = config, tf, telemetry
        self.cameras = [Camera(node, config, name) for name in config.camera_names or ("",)]
        self.image_topic = ", ".join(camera.topic for camera in self.cameras)
        self._depth_topic, self._odometry_topic = (node.resolve_topic_name(name) for name in ("depth", "odometry"))
        self._clock = node.get_clock()
        self._depths: Stamped[Image] = Stamped()
        self._poses = PoseSource(config)
        self._bad_poses = 0
        self._first_frame_s: float | None = None
        self._warned: set[str] = set()
        self._camera_infos: dict[str, str] = {}

    def begin(self) -> None:
        """Starts a new session, in which camera_info and transforms are waited for again."""
        self._first_frame_s = None
        for camera in self.cameras:
            camera.forget()
        self._camera_infos = dict.fromkeys((camera.name for camera in self.cameras), "no camera_info received")
        self.telemetry.camera_info = "no camera_info received"

    def waited_s(self, now_s: float) -> float:
        """Seconds since the first image of the session."""
        return now_s - (self._first_frame_s or 0.0)

    def topics(self, put: Callable[[Any, int, int, int], None]) -> Iterator[Topic]:
        """The topics to subscribe to: the images, their camera_info, and other known inputs. put: receives an image, its arrival
        (ns), the number of its camera, and its stamp (ns; 0 with a single camera)."""
        wish = self.config.input.reliability, self.config.input.depth
        for index, camera in enumerate(self.cameras):
            yield camera.kind, camera.topic, functools.partial(self._on_image, put, index), *wish
        for camera in self.cameras:
            yield CameraInfo, camera.info_topic, functools.partial(self._on_info, camera), *wish
        self.telemetry.known = {}
        if self.config.reads_depth:
            self.telemetry.known["depth"] = "none received yet"
            yield Image, self._depth_topic, self._on_depth, *wish
        if self.config.reads_odometry:
            self.telemetry.known["odometry"] = "none received yet"
            yield Odometry, self._odometry_topic, self._on_odometry, "best_effort", 50

    def _on_info(self, camera: Camera, message: CameraInfo) -> None:
        first = camera.info is None
        camera.on_info(message)
        if first:  # said at once, whatever becomes of the images
            self._tell_camera_info(camera, camera.info_remark())

    def _tell_camera_info(self, camera: Camera, remark: str) -> None:
        """What is wrong with that camera's camera_info, "" if nothing is; the others' stay as they are."""
        self._camera_infos[camera.name] = remark
        self.telemetry.camera_info = "; ".join(dict.fromkeys(filter(None, self._camera_infos.values()))) or "ok"

    def warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            log.warning("%s", text)

    def tell_known(self, topic: str, remark: str) -> None:
        """Reports the state of a known input ("" if it is valid): to the diagnostics, and once to the log."""
        self.telemetry.known[topic] = remark or "ok"
        if remark:
            self.warn_once(remark)

    def read(self, message: Any, arrival_ns: int) -> Frame:
        """Frame of a message, or, with several cameras, of one of each. Raises FrameError."""
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
            waited_s = self.waited_s(time.monotonic())
            first = replace(first, base_from_camera=np.eye(4))
            others = [
                replace(f, base_from_camera=self.tf.place(f.camera, first.camera, f.stamp_ns, waited_s)) for f in others
            ]
        return replace(first, others=tuple(others))

    def _read_one(self, camera_of: Camera, message: Image | CompressedImage, arrival_ns: int) -> Frame:
        if self._first_frame_s is None:
            self._first_frame_s = arrival_ns * 1e-9
        try:
            picture = camera_of.decode(message, self._first_frame_s + CAMERA_INFO_WAIT_S)
        except FrameError:  # concerns the image: camera_info may still be valid
            self._tell_camera_info(camera_of, camera_of.info_remark())
            raise
        self.telemetry.encoding, self.telemetry.size = picture.encoding, f"{picture.width}x{picture.height}"
        remark = picture.remark
        self._tell_camera_info(camera_of, remark)
        if remark:
            self.warn_once(remark)

        stamp_ns = messages.stamp_ns(message.header.stamp)
        if stamp_ns == 0:
            self.warn_once(
                "images come with a zero stamp; the time of arrival is used: let the driver set header.stamp"
            )
            stamp_ns = self._now_ns() - (time.monotonic_ns() - arrival_ns)
        unnamed = f"{camera_of.name}_optical_frame" if camera_of.name else self.config.camera_optical_frame
        if not message.header.frame_id:
            self.warn_once(f"images come without a frame_id; {unnamed} is used: let the driver set it")
        camera = message.header.frame_id.lstrip("/") or unnamed
        size = picture.height, picture.width
        depth = self._known_depth(stamp_ns, size, camera_of) if self.config.reads_depth else None
        pose = self._known_pose(stamp_ns, camera) if self.config.reads_odometry else None
        base = self.config.base_frame.lstrip("/")
        mount, remark = self.tf.base_from_camera(camera, stamp_ns, self.waited_s(time.monotonic()))
        if base:
            self.tell_known("base_frame", remark)
        return Frame(
            picture.image, stamp_ns, camera, picture.intrinsics, arrival_ns, picture.encoding, depth, pose, base, mount
        )

    def _known_depth(self, stamp_ns: int, size: tuple[int, int], camera: Camera) -> F32 | None:
        """The depth image of that stamp in the pixels of the image of (height, width) = size, which is rectified alike."""
        tolerance, info = self.config.known.tolerance, camera.info
        message = nearest(self._depths.around(stamp_ns, tolerance), stamp_ns, tolerance)
        depth: F32 | None = None
        if message is None:
            remark = f"no depth within {tolerance:g} s of an image's stamp on {self._depth_topic}: remap `depth`, check its clock"
        elif info is None:
            remark = "depth is not used without camera_info"
        elif (message.height, message.width) != size:
            remark = (
                f"depth has {message.width}x{message.height} px, the image {size[1]}x{size[0]}: depth is not used; give depth that is "
                f"registered to the image"
            )
        else:
            try:
                depth, remark = camera.rectification.depth(decode_depth(message), info, self._depth_topic)
            except FrameError as error:
                remark = f"{self._depth_topic}: {error}"
        self.tell_known("depth", remark)
        return depth

    def _known_pose(self, stamp_ns: int, camera: str) -> F64 | None:
        pose, remark = self._poses.at(stamp_ns, camera, self.config.known.tolerance)
        if remark and self._bad_poses:
            remark = f"{remark}; {self._bad_poses} poses on it were not finite or no poses"
        self.tell_known("odometry", remark)
        return pose

    def _on_depth(self, message: Image) -> None:
        self._depths.put(messages.stamp_ns(message.header.stamp), message)

    def _on_odometry(self, message: Odometry) -> None:
        try:
            pose = messages.pose_of(message.pose.pose)
        except ValueError as error:
            self._bad_poses += 1
            self.warn_once(f"a pose on odometry is left out: {error}")
            return
        if not is_finite_pose(pose):
            self._bad_poses += 1
            self.warn_once("a pose on odometry is left out, because it is not finite: check what publishes it")
        else:
            self._poses.put(messages.stamp_ns(message.header.stamp), message.child_frame_id, pose)

    def _on_image(
        self, put: Callable[[Any, int, int, int], None], index: int, message: Image | CompressedImage
    ) -> None:
        stamp_ns = messages.stamp_ns(message.header.stamp) if len(self.cameras) > 1 else 0
        if stamp_ns == 0 and len(self.cameras) > 1:
            stamp_ns = self._now_ns()
        put(message, time.monotonic_ns(), index, stamp_ns)

    def _now_ns(self) -> int:
        """The node's clock; the system's if that is /clock without a publisher."""
        return self._clock.now().nanoseconds or time.time_ns()
