"""Camera: the topics of one camera, its camera_info, and the decoding of its messages."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from ..camera.levels import Levels
from ..camera.rectify import Rectification, lens_from_camera_info
from ..config import Config
from ..errors import FrameError
from ..types import F64, U8
from . import messages


class Picture(NamedTuple):
    """A decoded message. image: (H, W, 3) RGB, undistorted. intrinsics: (3, 3), None if unknown. remark: problem of the
    camera_info, or "". width, height: of the message."""

    image: U8
    intrinsics: F64 | None
    encoding: str
    width: int
    height: int
    remark: str


class Camera:
    """name: "" for a single camera; else the namespace of its topics.

    kind, topic, info_topic: of the images and their camera_info, remapped as image_transport does it: the compressed topic lies below
    `image`, and camera_info in the same namespace, unless they are remapped themselves. info: the last message received.
    """

    def __init__(self, node: Node, config: Config, name: str = "") -> None:
        prefix = f"{name}/" if name else ""

        def remapped(topic: str) -> bool:
            return node.resolve_topic_name(topic) != node.resolve_topic_name(topic, only_expand=True)

        image = node.resolve_topic_name(prefix + "image")
        self.name, self.topic, self.kind = name, image, Image
        if config.image_transport == "compressed":
            own = prefix + "image/compressed"
            self.topic = node.resolve_topic_name(own) if remapped(own) else image + "/compressed"
            self.kind = CompressedImage
            image = self.topic.removesuffix("/compressed")
        default = image.rpartition("/")[0] + "/camera_info"
        info = prefix + "camera_info"
        self._info_name = info
        self.info_topic: str = node.resolve_topic_name(info) if remapped(info) else default
        self.rectification = Rectification(config.rectify, self.topic)
        self._levels = Levels(config.input.range, self.topic)
        self.forget()

    def forget(self) -> None:
        """Starts a new session, in which camera_info is waited for again."""
        self.info: CameraInfo | None = None
        self._came = threading.Event()

    def on_info(self, message: CameraInfo) -> None:
        self.info = message
        self._came.set()

    def decode(self, message: Image | CompressedImage, until_s: float) -> Picture:
        """Decodes a message; waits for camera_info until the given time (time.monotonic()). Raises FrameError."""
        encoding = messages.encoding_of(message)
        try:
            image = messages.decode_image(message, self._levels)
        except FrameError as error:
            raise FrameError(f"{self.topic}: {error}") from error
        height, width = image.shape[:2]
        if self.info is None:  # camera_info of the first frames may be late, since DDS discovers topics one by one
            self._came.wait(max(0.0, until_s - time.monotonic()))
        info, intrinsics = self.info, None
        remark = self._missing()
        if info is not None:
            image, intrinsics, remark = self.rectification.image(image, info)
        if intrinsics is None:
            remark += "; until then the predicted intrinsics are used"
        return Picture(image, intrinsics, encoding, width, height, remark)

    def info_remark(self) -> str:
        """Problem of the camera_info alone, regardless of the images; "" if there is none."""
        if self.info is None:
            return self._missing()
        width, height = int(self.info.width), int(self.info.height)
        return lens_from_camera_info(self.info, max(width, 1), max(height, 1), self.rectification.rectified)[1]

    def _missing(self) -> str:
        return f"no camera_info received on {self.info_topic}: remap `{self._info_name}` to a calibrated one"
