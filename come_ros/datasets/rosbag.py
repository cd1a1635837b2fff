"""ROS bags without ROS: one camera's images as Frames, its depth and its true path; and sequences written into bags.

Read are ROS 2 bags (folder, .mcap or .db3) and ROS 1 .bag files.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import images
from ..errors import DatasetError, FrameError
from ..geometry import matrix_from_quat_xyzw, transform
from ..messages import Messages, stamp_ns
from ..rectify import Rectification
from ..types import F32, F64, Frame

if TYPE_CHECKING:
    from .synthetic import SyntheticSequence
    from .tum import TumSequence

log = logging.getLogger("come_ros")

TRUTH_TOPIC = "/ground_truth/odometry"
CAMERA = "camera_optical_frame"
_IMAGE, _COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
_INFO, _ODOMETRY = "sensor_msgs/msg/CameraInfo", "nav_msgs/msg/Odometry"
_POSE = "geometry_msgs/msg/PoseStamped"


class Bag:
    """One camera of a bag: a context manager, open from construction on.

    topics: name -> type of every topic that holds messages. topic: the images'. camera_info_topic, depth_topic,
    truth_topic: those that belong to them, "" if there are none; depth is registered to the images, truth is an
    Odometry that gives the pose of the camera's optical frame. camera: name of that frame. unreadable: images that
    `iter_frames` had to leave out so far. remark: what `iter_frames` said last of the camera_info, "" if it was well.
    damage: why messages may be missing at the end, "" if nothing is.
    """

    def __init__(self, path: str | Path, topic: str | None = None, rectify: str = "auto") -> None:
        """topic: the images'; None if there is only one camera. rectify: the parameter of that name, for images and depth alike.

        Raises DatasetError if bag or choice are no good.
        """
        from rosbags.highlevel import AnyReaderError

        from .recovery import open_reader

        self.path = Path(path)
        if not self.path.exists():
            raise DatasetError(f"{self.path} does not exist: give a bag (folder, .mcap, .db3 or ROS 1 .bag)")
        self._reader: Any = None
        self._said: set[str] = set()
        try:
            reader, self.damage = open_reader(self.path)
        except AnyReaderError as error:
            raise DatasetError(
                f"{self.path} cannot be read as a bag: {error} (copy it again, or record it again)"
            ) from error
        except Exception as error:  # the readers let all kinds through for damaged files
            raise DatasetError(f"{self.path} cannot be read as a bag: {type(error).__name__}: {error}") from error
        self._reader = reader
        try:
            self.topics = {c.topic: c.msgtype for c in reader.connections if c.msgcount}
            if self.damage:
                log.warning("%s: `ros2 bag reindex` or `mcap recover` would mend it", self.damage)
            if not self.topics:
                if self.damage:
                    raise DatasetError(f"{self.damage}: nothing of it is left, record it again")
                raise DatasetError(f"{self.path} is empty: record it again, with the camera's topics")
            self._choose(topic)
            self._rectification = Rectification(rectify, self.topic)
        except BaseException:
            self.close()
            raise

    def _choose(self, topic: str | None) -> None:
        pictures, depths = self._image_topics()
        if topic is not None:
            if topic not in pictures:
                others = _listed(pictures or self.topics)
                raise DatasetError(f"{self.path} has no colour images on {topic!r}; it has {others}")
        elif not pictures:
            others = _listed(self.topics)
            raise DatasetError(f"{self.path} holds no colour images; it has {others}: record the image topic too")
        elif len(pictures) > 1:
            raise DatasetError(f"{self.path} holds {len(pictures)} image topics: choose one of {_listed(pictures)}")
        self.topic = topic or pictures[0]
        first = self._first(self.topic)
        self.compressed = images.is_compressed(first)
        self.camera: str = first.header.frame_id.lstrip("/") or CAMERA
        namespace = self.topic.removesuffix("/compressed").rpartition("/")[0]
        info = f"{namespace}/camera_info"
        self.camera_info_topic = info if self.topics.get(info) == _INFO else ""
        near = [t for t in depths if t.startswith(namespace + "/")] or depths
        self.depth_topic = near[0] if len(near) == 1 else ""
        self.truth_topic = TRUTH_TOPIC if self.topics.get(TRUTH_TOPIC) == _ODOMETRY else ""
        if self.truth_topic:
            child = self._child(self.truth_topic)
            if child not in ("", self.camera):
                log.warning("%s moves %s, not %s: it is not used as truth", self.truth_topic, child, self.camera)
                self.truth_topic = ""

    def use_truth(self, topic: str) -> None:
        """Takes the true path from the Odometry or PoseStamped messages on `topic`. Raises DatasetError if it cannot be had there."""
        poses = [t for t, kind in self.topics.items() if kind in (_ODOMETRY, _POSE)]
        if topic not in poses:
            raise DatasetError(
                f"{self.path} has no ground truth on {topic!r}: choose one of {_listed(poses)}, or a file"
            )
        child = self._child(topic)
        if child not in ("", self.camera):
            raise DatasetError(
                f"{topic} of {self.path} moves {child}, but the ground truth must be that of the camera's optical frame "
                f"({self.camera}): choose another topic or file"
            )
        self.truth_topic = topic

    def _child(self, topic: str) -> str:
        """The frame that the poses of `topic` move, "" if they do not say."""
        return str(getattr(self._first(topic), "child_frame_id", "")).lstrip("/")

    def _first(self, topic: str) -> Any:
        for _, message in self._decoded(topic):
            return message
        raise DatasetError(f"{self.path} is damaged: it lists {topic}, but no message of it can be found")

    def _image_topics(self) -> tuple[list[str], list[str]]:
        """Topics with colour and with depth images; a compressed copy of a raw one is left out."""
        pictures, depths = [], []
        for topic, kind in sorted(self.topics.items()):
            if kind in (_IMAGE, _COMPRESSED):
                depth = images.is_depth(self._first(topic))
                (depths if depth else pictures).append(topic)
        copies = {f"{t}/compressed" for t in pictures}
        return [t for t in pictures if t not in copies], depths

    def __len__(self) -> int:
        """Number of images."""
        return sum(c.msgcount for c in self._connections(self.topic))

    def iter_frames(self) -> Iterator[Frame]:
        """All images in the bag's order, one in memory at a time, without lens distortion. Damaged ones are left out, counted
        and logged; a zero stamp is replaced by the time of recording."""
        self.unreadable = 0
        for log_ns, info, message in self._with_info(self.topic):
            try:
                picture = images.decode_image(message)
            except FrameError as error:
                self.unreadable += 1
                log.warning("%s, %s: an image is left out: %s", self.path, self.topic, error)
                continue
            intrinsics, remark = None, ""
            if info is not None:
                picture, intrinsics, remark = self._rectification.image(picture, info)
            self.remark = remark
            self._say(remark)
            camera = message.header.frame_id.lstrip("/") or self.camera
            stamp = stamp_ns(message.header.stamp) or log_ns
            yield Frame(picture, stamp, camera, intrinsics, encoding=images.encoding_of(message))

    unreadable = 0
    remark = ""

    def _say(self, remark: str) -> None:
        if remark and remark not in self._said:
            self._said.add(remark)
            log.warning("%s: %s", self.path, remark)

    def _with_info(self, of: str) -> Iterator[tuple[int, Any, Any]]:
        """(time of recording, CameraInfo or None, message) of a topic; the first CameraInfo also holds for what came before it."""
        info = next((m for _, m in self._decoded(self.camera_info_topic)), None) if self.camera_info_topic else None
        for log_ns, topic, message in self._mixed(of, self.camera_info_topic):
            if topic == of:
                yield log_ns, info, message
            else:
                info = message

    def iter_depth(self) -> Iterator[tuple[int, F32]]:
        """(stamp in ns, (H, W) z-depth in metres, NaN where unknown) of every depth image; nothing without a topic.

        The pixels are those of `iter_frames`: what is registered to a distorted image is bent like it. Damaged ones are left out.
        """
        for log_ns, info, message in self._with_info(self.depth_topic) if self.depth_topic else ():
            try:
                depth = images.decode_depth(message)
            except FrameError as error:
                log.warning("%s, %s: a depth image is left out: %s", self.path, self.depth_topic, error)
                continue
            if info is not None:
                depth, remark = self._rectification.depth(depth, info, self.depth_topic)
                self._say(remark)
            yield stamp_ns(message.header.stamp) or log_ns, depth

    def truth(self) -> dict[int, F64]:
        """Stamp in ns -> world_from_camera (4, 4), oldest first; empty if the bag does not know."""
        poses = {}
        for log_ns, message in self._decoded(self.truth_topic) if self.truth_topic else ():
            pose = message.pose.pose if self.topics[self.truth_topic] == _ODOMETRY else message.pose
            p, q = pose.position, pose.orientation
            rotation = matrix_from_quat_xyzw([q.x, q.y, q.z, q.w])
            poses[stamp_ns(message.header.stamp) or log_ns] = transform(rotation, [p.x, p.y, p.z])
        return dict(sorted(poses.items()))

    def iter_raw(self, *topics: str) -> Iterator[tuple[int, str, bytes]]:
        """(time of recording in ns, topic, message as ROS 2 sends it) of those topics, in the order of recording."""
        to_cdr = None if self._reader.is2 else _store().ros1_to_cdr
        for connection, log_ns, data in self._messages(*topics):
            yield log_ns, connection.topic, bytes(data if to_cdr is None else to_cdr(data, connection.msgtype))

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def __enter__(self) -> Bag:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self.close()

    def _connections(self, *topics: str) -> list[Any]:
        return [c for c in self._reader.connections if c.topic in topics]

    def _messages(self, *topics: str) -> Iterator[tuple[Any, int, Any]]:
        connections = self._connections(*topics)
        if not connections:  # to the reader, none means all
            return
        try:
            yield from self._reader.messages(connections)
        except Exception as error:  # the readers let all kinds through for damaged files
            raise DatasetError(f"{self.path} is damaged: {type(error).__name__}: {error}") from error

    def _mixed(self, *topics: str) -> Iterator[tuple[int, str, Any]]:
        for connection, log_ns, data in self._messages(*topics):
            yield log_ns, connection.topic, self._reader.deserialize(data, connection.msgtype)

    def _decoded(self, topic: str) -> Iterator[tuple[int, Any]]:
        return ((log_ns, message) for log_ns, _, message in self._mixed(topic))


def _store() -> Any:
    from rosbags.typesys import Stores, get_typestore

    return get_typestore(Stores.ROS2_JAZZY)


def rosbags_messages(store: Any = None) -> Messages:
    """Builds messages in the classes of a rosbags typestore (Jazzy's, if none is given), which can serialize them without ROS."""
    store = store or _store()

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
        """storage: "mcap" or "sqlite3". guard: given the stream of an MCAP file, returns what to write to instead.

        Raises DatasetError if `path` exists or cannot be made.
        """
        from rosbags.rosbag2 import StoragePlugin, Writer, WriterError

        if storage not in ("mcap", "sqlite3"):
            raise DatasetError(f"storage is {storage!r}, but must be mcap or sqlite3")
        self.path = Path(path)
        self._prefix, self._world = prefix.rstrip("/"), world
        self._store = _store()
        self.messages = rosbags_messages(self._store)
        self._connections: dict[str, Any] = {}
        try:
            self._writer = Writer(self.path, version=9, storage_plugin=StoragePlugin[storage.upper()])
            self._writer.open()
            if guard is not None:
                self._writer.storage.bio = guard(self._writer.storage.bio)
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
        """Any message of `messages`, recorded at that time."""
        self.put_raw(topic, message.__msgtype__, self.serialized(message), stamp_ns)

    def serialized(self, message: Any) -> Any:
        """The bytes of a message of `messages`."""
        return self._store.serialize_cdr(message, message.__msgtype__)

    def put_raw(self, topic: str, kind: str, data: Any, stamp_ns: int, latched: bool = False) -> None:
        """A message of the type `kind` in bytes, as ROS 2 sends it, recorded at that time. latched: players are to keep it for late
        subscribers (transient local)."""
        if topic not in self._connections:
            profiles = [_latched_profile()] if latched else []
            self._connections[topic] = self._writer.add_connection(
                topic, kind, typestore=self._store, offered_qos_profiles=profiles
            )
        self._writer.write(self._connections[topic], stamp_ns, data)


def _latched_profile() -> Any:
    """Reliable, transient local, depth 1."""
    from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime

    never = QosTime(9223372036, 854775807)  # as ROS writes an endless time
    return Qos(
        QosHistory.KEEP_LAST, 1, QosReliability.RELIABLE, QosDurability.TRANSIENT_LOCAL, never, never,
        QosLiveliness.AUTOMATIC, never, False,
    )  # fmt: skip


def write_synthetic(path: str | Path, sequence: SyntheticSequence, camera: str = CAMERA, storage: str = "mcap") -> None:
    """A rendered sequence with depth, poses and intrinsics as a new bag. Raises DatasetError."""
    with BagWriter(path, storage) as bag:
        for i, stamp in enumerate(sequence.stamps_ns):
            frame = Frame(sequence.images[i], int(stamp), camera, sequence.intrinsics)
            bag.write(frame, sequence.depth[i], sequence.world_from_camera[i])


def write_tum(path: str | Path, sequence: TumSequence, storage: str = "mcap") -> None:
    """A TUM sequence as a new bag, with depth and poses where it has them: as it gives its images, so with their distortion
    only if it was opened with rectify=False. Raises DatasetError."""
    with BagWriter(path, storage) as bag:
        for i in range(len(sequence)):
            bag.write(sequence.frame(i), sequence.depth(i), sequence.poses[i], sequence.distortion)


def _listed(topics: Any) -> str:
    return ", ".join(sorted(topics)) or "no topics"
