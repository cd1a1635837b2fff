"""The node's topics in a recording: depth, confidence, image and camera of each used frame, and its odometry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.bag_writer import TRUE_DEPTH_TOPIC, typestore
from ..datasets.storage import open_recording
from ..errors import DatasetError
from ..files import shown
from ..geometry import is_finite_pose, matrix_from_quat_xyzw, transform
from ..messages import stamp_ns
from ..types import F32, F64, U8

DEPTH, INFO, IMAGE, CONFIDENCE, OVERLAY, ODOMETRY = (
    "depth/image",
    "depth/camera_info",
    "rgb/image_rect",
    "confidence",
    "merge_overlay",
    "odometry",
)
MOST_PENDING = 64  # frames some of whose messages have not come: they were lost


@dataclass(frozen=True, eq=False)
class Recorded:
    """A frame as published. depth: (H, W), NaN where invalid or beyond range. image, confidence, overlay: None if they were not
    recorded. true_depth: (H, W), m, NaN where it is unknown; None if it was not recorded."""

    stamp_ns: int
    depth: F32
    intrinsics: F64
    image: U8 | None
    confidence: F32 | None
    overlay: U8 | None
    true_depth: F32 | None = None


class NodeRecording:
    """What one node of one camera published. stamps_ns: of its depth images, oldest first. has_images, has_confidence: whether these
    were recorded."""

    def __init__(self, path: Path, node: str = "/come") -> None:
        """path: a bag. node: full name of the node. Raises DatasetError."""
        self.path, self._node = path, node.rstrip("/")
        with open_recording(path) as source:
            topics = {c.topic for c in source.channels if c.encoding == "cdr" and c.count}
        missing = [name for name in (DEPTH, INFO) if self._topic(name) not in topics]
        if missing:
            others = sorted(t.removesuffix(f"/{DEPTH}") for t in topics if t.endswith(f"/{DEPTH}"))
            hint = (
                f"depth is there of {', '.join(others)}: give one of these as --node" if others else "record them too"
            )
            raise DatasetError(
                f"{shown(path)} does not hold {' and '.join(self._topic(name) for name in missing)}: {hint}"
            )
        self._topics = {name for name in (DEPTH, INFO, IMAGE, CONFIDENCE, OVERLAY) if self._topic(name) in topics}
        self._truth = {TRUE_DEPTH_TOPIC} & topics
        self.has_images, self.has_confidence = IMAGE in self._topics, CONFIDENCE in self._topics
        self.camera = ""
        stamps = set()
        for _, message in self._messages(INFO):
            stamps.add(stamp_ns(message.header.stamp))
            self.camera = message.header.frame_id
        self.stamps_ns = tuple(sorted(stamps))

    def frames(self) -> Iterator[Recorded]:
        """All frames of which every recorded topic has a message, one in memory at a time, as they come."""
        pending: dict[int, dict[str, Any]] = {}
        for name, message in self._messages(*self._topics, *self._truth):
            stamp = stamp_ns(message.header.stamp)
            found = pending.setdefault(stamp, {})
            found[name] = message
            if found.keys() >= self._topics and (frame := _frame(stamp, pending.pop(stamp))) is not None:
                yield frame  # the truth, where there is any, is recorded before the frame
            if len(pending) > MOST_PENDING:
                del pending[next(iter(pending))]

    def odometry(self) -> dict[int, F64]:
        """Stamp -> odom_from_camera (4, 4). Raises DatasetError if it moves another frame than the camera's."""
        poses: dict[int, F64] = {}
        for _, message in self._messages(ODOMETRY):
            if self.camera and message.child_frame_id.lstrip("/") != self.camera.lstrip("/"):
                raise DatasetError(
                    f"{self._topic(ODOMETRY)} in {shown(self.path)} moves {message.child_frame_id}, not the camera {self.camera}: run "
                    f"`come_ros bag` on the recording, or record the node with base_frame empty"
                )
            p, q = message.pose.pose.position, message.pose.pose.orientation
            try:
                pose = transform(matrix_from_quat_xyzw([q.x, q.y, q.z, q.w]), [p.x, p.y, p.z])
            except ValueError:
                continue
            if is_finite_pose(pose):
                poses[stamp_ns(message.header.stamp)] = pose
        return dict(sorted(poses.items()))

    def unit(self) -> str:
        """The unit of the odometry by the last diagnostics: "" for the model's own, or if that was not recorded."""
        values: dict[str, str] = {}
        with open_recording(self.path) as source:
            for _, channel, data in source.messages("/diagnostics"):
                for status in _decoded(data, channel.type, "status") or ():
                    values.update({v.key: v.value for v in status.values if v.key in ("odom_unit", "scale_source")})
        known = values.get("odom_unit") == "metre"
        return f"lengths in metres, from {values.get('scale_source', 'the node')}" if known else ""

    def _topic(self, name: str) -> str:
        return name if name == TRUE_DEPTH_TOPIC else f"{self._node}/{name}"

    def _messages(self, *names: str) -> Iterator[tuple[str, Any]]:
        """Name and message; damaged ones are left out."""
        by_topic = {self._topic(name): name for name in names}
        with open_recording(self.path) as source:
            for _, channel, data in source.messages(*by_topic):
                message = _decoded(data, channel.type)
                if message is not None:
                    yield by_topic[channel.topic], message


def _decoded(data: bytes, kind: str, field: str = "") -> Any:
    """The message, or a field of it; None if its bytes are damaged."""
    try:
        message = typestore().deserialize_cdr(data, kind)
        return getattr(message, field) if field else message
    except Exception:  # damaged bytes raise all kinds of exceptions
        return None


def _frame(stamp: int, messages: dict[str, Any]) -> Recorded | None:
    """None if the messages do not fit together."""
    intrinsics = np.asarray(messages[INFO].k, np.float64).reshape(3, 3)
    try:
        depth = _pixels(messages[DEPTH], "<f4", ())
        confidence = _pixels(messages[CONFIDENCE], "<f4", ()) if CONFIDENCE in messages else None
        image, overlay = (
            _pixels(messages[name], "u1", (3,)) if name in messages else None for name in (IMAGE, OVERLAY)
        )
        truth = _pixels(messages[TRUE_DEPTH_TOPIC], "<f4", ()) if TRUE_DEPTH_TOPIC in messages else None
    except ValueError:
        return None
    shapes = {a.shape[:2] for a in (depth, confidence, image, overlay, truth) if a is not None}
    if len(shapes) > 1 or not (intrinsics[[0, 1], [0, 1]] > 0).all():
        return None
    known = np.where(np.isfinite(depth), depth, np.float32(np.nan))
    return Recorded(stamp, known, intrinsics, image, confidence, overlay, truth)


def _pixels(message: Any, kind: str, channels: tuple[int, ...]) -> Any:
    """Raises ValueError if the image has another size than it says."""
    return np.frombuffer(message.data, kind).reshape(message.height, message.width, *channels).copy()
