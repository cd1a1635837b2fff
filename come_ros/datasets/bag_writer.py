"""Writes a camera's sequence into a new ROS 2 bag, without ROS."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DatasetError
from ..messages import Messages
from ..types import F32, F64, Frame

if TYPE_CHECKING:
    from .tum import TumSequence

TRUTH_TOPIC, TRUE_DEPTH_TOPIC = "/ground_truth/odometry", "/ground_truth/depth/image"


@functools.cache
def typestore(ros1: bool = False) -> Any:
    """The standard message types; those used here have the same fields in every ROS 2 distribution."""
    from rosbags.typesys import Stores, get_typestore

    return get_typestore(Stores.ROS1_NOETIC if ros1 else Stores.ROS2_JAZZY)


def rosbags_messages(store: Any = None) -> Messages:
    """Builds messages in the classes of a rosbags typestore (Jazzy's, if none is given), which can serialize them without ROS."""
    store = store or typestore()

    def octets(a: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(a).reshape(-1).view(np.uint8)

    def make(kind: str, /, **fields: Any) -> Any:
        return store.types[kind](**fields)

    return Messages(make, octets)


class BagWriter:
    """Writes a camera's sequence into a new ROS 2 bag (a folder), all stamps and recording times being the frames'.

    Topics: /camera/image_raw (rgb8), /camera/camera_info, /camera/depth/image_raw (32FC1, metres, NaN unknown) with
    /camera/depth/camera_info, /ground_truth/odometry (world to camera optical frame). A context manager.
    """

    def __init__(
        self,
        path: str | Path,
        storage: str = "mcap",
        prefix: str = "/camera",
        world: str = "world",
        guard: Callable[[Any], Any] | None = None,
    ) -> None:
        """storage: "mcap" or "sqlite3". guard: wraps the stream of an MCAP file.

        Raises DatasetError if `path` exists or cannot be created.
        """
        from rosbags.rosbag2 import StoragePlugin, Writer, WriterError

        if storage not in ("mcap", "sqlite3"):
            raise DatasetError(f"storage is {storage!r}, but must be mcap or sqlite3")
        self.path = Path(path)
        self._prefix, self._world = prefix.rstrip("/"), world
        self._store = typestore()
        self.messages = rosbags_messages(self._store)
        self._connections: dict[str, Any] = {}
        try:
            self._writer = Writer(self.path, version=9, storage_plugin=StoragePlugin[storage.upper()])
            self._writer.open()
            if guard is not None:
                self._writer.storage.bio = guard(self._writer.storage.bio)  # type: ignore[union-attr]
        except (WriterError, OSError) as error:
            raise DatasetError(f"cannot write the bag {self.path}: {error}") from error

    def write(
        self,
        frame: Frame,
        depth: F32 | None = None,
        world_from_camera: F64 | None = None,
        distortion: tuple[float, ...] = (),
    ) -> None:
        """One frame, with its depth (H, W) in metres and its true pose (4, 4), if known. distortion: plumb_bob's."""
        height, width = frame.image.shape[:2]
        head = self.messages.header(frame.stamp_ns, frame.camera)
        info = None
        if frame.intrinsics is not None:
            info = self.messages.camera_info(frame.intrinsics, width, height, head, distortion)
            self.put(self._prefix + "/camera_info", info, frame.stamp_ns)
        self.put(self._prefix + "/image_raw", self.messages.image(frame.image, head), frame.stamp_ns)
        if depth is not None:
            if info is not None:
                self.put(self._prefix + "/depth/camera_info", info, frame.stamp_ns)
            self.put(self._prefix + "/depth/image_raw", self.messages.depth(depth, head), frame.stamp_ns)
        if world_from_camera is not None:
            still = np.zeros(6)
            head = self.messages.header(frame.stamp_ns, self._world)
            pose = self.messages.odometry(world_from_camera, still, still, still, head, frame.camera)
            self.put(TRUTH_TOPIC, pose, frame.stamp_ns)

    def close(self) -> None:
        self._writer.close()

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self.close()

    def put(self, topic: str, message: Any, stamp_ns: int) -> None:
        """Writes any message of `messages`, recorded at that time."""
        self.put_raw(topic, message.__msgtype__, self.serialized(message), stamp_ns)

    def serialized(self, message: Any) -> Any:
        """The bytes of a message of `messages`."""
        return self._store.serialize_cdr(message, message.__msgtype__)

    def put_raw(self, topic: str, kind: str, data: Any, stamp_ns: int, latched: bool = False) -> None:
        """Writes a serialized ROS 2 message of the type `kind`, recorded at that time. latched: marks the topic as transient local,
        so players keep the message for late subscribers."""
        if topic not in self._connections:
            profiles = [_latched_profile()] if latched else []
            self._connections[topic] = self._writer.add_connection(
                topic, kind, typestore=self._store, offered_qos_profiles=profiles
            )
        self._writer.write(self._connections[topic], stamp_ns, data)


def _latched_profile() -> Any:
    """Reliable, transient local, depth 1."""
    from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime

    never = QosTime(9223372036, 854775807)  # infinity in ROS
    return Qos(
        QosHistory.KEEP_LAST, 1, QosReliability.RELIABLE, QosDurability.TRANSIENT_LOCAL, never, never,
        QosLiveliness.AUTOMATIC, never, False,
    )  # fmt: skip


def write_tum(path: str | Path, sequence: TumSequence, storage: str = "mcap") -> None:
    """Writes a TUM sequence as a new bag, with depth and poses where available. Images keep their distortion only if the sequence
    was opened with rectify=False. Raises DatasetError."""
    with BagWriter(path, storage) as bag:
        for i in range(len(sequence)):
            bag.write(sequence.frame(i), sequence.depth(i), sequence.poses[i], sequence.distortion)
