"""Reads ROS bags without ROS: one camera's images as Frames, its depth and its true path. bag_writer.py writes them.

The files themselves (ROS 2: folder, .mcap or .db3; ROS 1: .bag), whole or damaged, are read by storage/.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..camera import images
from ..camera.levels import Levels
from ..camera.rectify import Rectification, lens_from_camera_info
from ..camera.transports import IMAGE, READ_TYPES, base_topic, namespace, transport_of
from ..errors import DatasetError, FrameError
from ..files import shown
from ..geometry import is_finite_pose, matrix_from_quat_xyzw, transform
from ..messages import stamp_ns
from ..types import F32, F64, Frame
from .bag_writer import TRUTH_TOPIC, typestore
from .part import Chosen, Part
from .registered_depth import View, choose_depth, mismatch
from .storage import Channel, open_recording

log = logging.getLogger("come_ros")

CAMERA = "camera_optical_frame"
_INFO, _ODOMETRY = "sensor_msgs/msg/CameraInfo", "nav_msgs/msg/Odometry"
_TRANSFORM = "geometry_msgs/msg/TransformStamped"
_POSES = (_ODOMETRY, _TRANSFORM, "geometry_msgs/msg/PoseStamped", "geometry_msgs/msg/PoseWithCovarianceStamped")
WHOLE = Part()
FULL_SHARE = 0.9  # a copy with at least this share of the messages counts as complete
LOOKED_AT = 100  # damaged messages at the start before a topic is rejected
MOST_SAID = 20  # different remarks that are logged; the rest is only counted


class Bag:
    """One camera of a bag. A context manager; the bag is opened by the constructor.

    topics: name -> type of every topic that holds ROS messages. topic: the images'. camera_info_topic, depth_topic,
    truth_topic: those that belong to them, "" if there are none; depth is registered to the images, truth gives the pose of the
    camera's optical frame. camera: name of that frame. unreadable: images that `iter_frames` left out so far. broken: topic ->
    messages of other topics that could not be read so far. remark: the last remark of `iter_frames` on the camera_info, "" if it is
    valid. damage: why messages may be missing, "" if nothing is known to be lost; it may grow while messages are read.
    """

    def __init__(
        self,
        path: str | Path,
        topic: str | None = None,
        rectify: str = "auto",
        depth: str | None = None,
        part: Part = WHOLE,
        levels: str = "auto",
    ) -> None:
        """topic: the images'; None if there is only one camera. rectify, levels: the parameters rectify and input.range, for images
        and depth alike. depth: topic of the depth, "none" for no depth, None for the one that belongs to the images. part: of the
        images to read.

        Raises DatasetError if the bag cannot be read or the topics are invalid.
        """
        self.path = Path(path)
        if not self.path.exists():
            raise DatasetError(f"{shown(self.path)} does not exist: give a bag (folder, .mcap, .db3 or ROS 1 .bag)")
        self._part, self.unreadable, self.remark = part, 0, ""
        self.topic = ""
        self.broken: dict[str, int] = {}
        self._said: set[str] = set()
        self._odd_names: set[str] = set()  # topics whose frame_ids are not UTF-8
        self._recording = open_recording(self.path)
        try:
            self._stores = {"cdr": typestore(), "ros1": typestore(ros1=True)}
            known = [c for c in self._recording.channels if c.encoding in self._stores]
            known.sort(
                key=lambda channel: channel.type in (*READ_TYPES, _INFO, *_POSES)
            )  # if a topic has two types, the one that can be read
            self.topics = {channel.topic: channel.type for channel in known}
            self.counts: dict[str, int] = {}
            for channel in known:
                if self.topics[channel.topic] == channel.type:
                    self.counts[channel.topic] = self.counts.get(channel.topic, 0) + channel.count
            for text in filter(None, (self.damage, self._recording.remark)):
                log.warning("%s", text)
            if not self.topics:
                raise DatasetError(self._why_empty())
            self._choose(topic)
            self._rectification = Rectification(rectify, self.topic)
            self._levels = Levels(levels, self.topic)
            self._choose_depth(depth)
        except BaseException:
            self.close()
            raise

    @property
    def damage(self) -> str:
        return self._recording.damage

    @property
    def is_ros1(self) -> bool:
        """Whether it is a ROS 1 bag."""
        return self._recording.is_ros1

    def _why_empty(self) -> str:
        if self.damage:
            return f"{self.damage}: nothing of it is left, record it again"
        others = sorted({f"{c.topic} ({c.encoding})" for c in self._recording.channels})
        if others:
            listed = ", ".join(others)
            return f"{shown(self.path)} holds no ROS messages, but {listed}: record the topics of ROS, or convert it to a ROS 2 bag"
        return f"{shown(self.path)} is empty: record it again, with the camera's topics"

    def _choose(self, topic: str | None) -> None:
        pictures, self._depths, unread = self._image_topics()
        chosen = topic
        if topic is not None:
            others = {t for copies in pictures.values() for t in copies}
            if topic in pictures:  # the name of the raw topic, which may only exist as compressed copies
                chosen = self._fullest(pictures[topic]) if topic not in pictures[topic] else topic
            elif topic in unread:
                raise DatasetError(f"{shown(self.path)}: the images on {topic} cannot be read: {unread[topic]}")
            elif topic not in others and not self._is_thermal(topic):
                raise DatasetError(
                    f"{shown(self.path)} has no colour images on {topic!r}; it has {_listed(others or self.topics)}"
                )
        elif not pictures:
            why = "; ".join(f"the images on {t} cannot be read: {reason}" for t, reason in unread.items())
            raise DatasetError(
                f"{shown(self.path)} holds no colour images{f' that can be read ({why})' if why else ''}; it has "
                f"{_listed(self.topics)}: record the image topic too{self._thermal_hint()}"
            )
        elif len(pictures) > 1:
            raise DatasetError(
                f"{shown(self.path)} holds {len(pictures)} image topics: choose one of {_listed(pictures)} with --topic"
            )
        else:
            (copies,) = pictures.values()
            chosen = self._fullest(copies)
        assert chosen is not None
        self.topic = chosen
        first = self._first(self.topic)
        self.compressed = images.is_compressed(first)
        self.camera: str = first.header.frame_id.lstrip("/") or CAMERA
        info = f"{namespace(self.topic)}/camera_info"
        self.camera_info_topic = info if self.topics.get(info) == _INFO else ""
        self.truth_topic = TRUTH_TOPIC if self.topics.get(TRUTH_TOPIC) == _ODOMETRY else ""
        if self.truth_topic:
            child = self._child(self.truth_topic)
            if child not in ("", self.camera):
                log.warning("%s moves %s, not %s: it is not used as truth", self.truth_topic, child, self.camera)
                self.truth_topic = ""

    def _fullest(self, copies: list[str]) -> str:
        """Of several copies of one stream, the one with the most messages; if they have about the same number, the one with the
        least compression loss."""
        most = max(self.counts[t] for t in copies)
        full = [t for t in copies if self.counts[t] >= FULL_SHARE * most]
        best = min(full, key=lambda t: (self.topics[t] != IMAGE, t))
        if len(copies) > 1:
            others = ", ".join(f"{t} ({self.counts[t]})" for t in copies if t != best)
            log.info(
                "%s (%d messages) is read; copies of it: %s; choose with --topic",
                best,
                self.counts[best],
                others,
            )
            if self.topics[best] != IMAGE and any(self.topics[t] == IMAGE for t in copies):
                log.warning(
                    "%s (%d messages) is read instead of a raw copy with fewer messages: %s; choose with --topic",
                    best,
                    self.counts[best],
                    others,
                )
        return best

    def _thermal_hint(self) -> str:
        """A hint for bags with a topic that may be a thermal image with the encoding of depth."""
        maybe = [t for t in self._depths if self.topics[t] == IMAGE and "depth" not in t.lower()]
        return f"; if {maybe[0]} is an image (thermal, infrared), give it as --topic" if maybe else ""

    def _is_thermal(self, topic: str) -> bool:
        """Whether a chosen topic has the encoding of depth but may be an image."""
        if topic not in self._depths or self.topics[topic] != IMAGE:
            return False
        if self._first(topic).encoding != "16UC1" or "depth" in topic.lower():
            return False
        log.warning("%s has the encoding of depth (16UC1), but is used as an image, because it was chosen", topic)
        self._depths.remove(topic)
        return True

    def _choose_depth(self, wish: str | None) -> None:
        self.depth_topic = ""
        self.depth_remarks: tuple[str, ...] = ()
        if wish == "none":
            return
        image = self._view(self.topic)
        self._size = (image.height, image.width)
        if wish is not None:
            if self.topics.get(wish) not in READ_TYPES or wish == self.topic:
                there = _listed(t for t in self._depths if t != self.topic)
                raise DatasetError(f"{shown(self.path)} has no depth on {wish!r}; it has {there}, or none")
            why = mismatch(image, self._view(wish))
            if why:
                log.warning("%s was chosen as depth, but %s", wish, why)
            self.depth_topic = wish
            return
        by_base: dict[str, list[str]] = {}
        for topic in self._depths:
            by_base.setdefault(base_topic(topic), []).append(topic)
        views = []
        for copies in by_base.values():
            try:
                views.append(self._view(self._fullest(copies)))
            except DatasetError as error:
                log.warning("%s: depth that cannot be read: %s", shown(self.path), error)
        choice = choose_depth(image, views)
        self.depth_topic, self.depth_remarks = choice.topic, choice.remarks
        if not choice.topic:
            for remark in choice.remarks:
                self._say(remark)

    def _view(self, topic: str) -> View:
        """Raises DatasetError if none of the first messages can be decoded."""
        pixels: Any = None
        why = ""

        def decodes(message: Any) -> bool:
            nonlocal pixels, why
            try:
                if topic == self.topic:
                    pixels = images.decode_image(self._as_image(message))
                else:
                    pixels = images.decode_depth(images.as_depth(message))
            except FrameError as error:
                why = why or str(error)
            return pixels is not None

        message = self._first(topic, decodes)
        if pixels is None:
            raise DatasetError(f"{shown(self.path)}: no image of {topic} can be decoded: {why}")
        height, width = pixels.shape[:2]
        sample = None if topic == self.topic else pixels
        lens = None
        about = f"{namespace(topic)}/camera_info"
        if self.topics.get(about) == _INFO:
            info = next((m for _, m in self._decoded(about) if m is not None), None)
            if info is not None:
                scaled = lens_from_camera_info(info, int(info.width) or width, int(info.height) or height)[0]
                lens = scaled
        frame = message.header.frame_id.lstrip("/")
        return View(topic, frame, width, height, self.counts[topic], lens, sample)

    def _as_image(self, message: Any) -> Any:
        return images.as_image(message)

    def use_truth(self, topic: str) -> None:
        """Uses the poses on `topic` as true path. Raises DatasetError if it is not available there."""
        poses = [t for t, kind in self.topics.items() if kind in _POSES]
        if topic not in poses:
            raise DatasetError(
                f"{shown(self.path)} has no ground truth on {topic!r}: choose one of {_listed(poses)}, or a file"
            )
        child = self._child(topic)
        if child not in ("", self.camera):
            raise DatasetError(
                f"{topic} of {shown(self.path)} moves {child}, but the ground truth must be that of the camera's optical frame "
                f"({self.camera}): choose another topic or file"
            )
        self.truth_topic = topic

    def _child(self, topic: str) -> str:
        """The frame that the poses of `topic` move, "" if it is not stated, or no message can be read."""
        try:
            return str(getattr(self._first(topic), "child_frame_id", "")).lstrip("/")
        except DatasetError:
            return ""

    def _first(self, topic: str, accepted: Callable[[Any], bool] = lambda message: True) -> Any:
        """The first message that can be read and is accepted; if none of the first LOOKED_AT is, the first that can be read. Raises
        DatasetError if none of them can."""
        for attempt in range(2):
            readable = None
            for number, (_, message) in enumerate(self._decoded(topic)):
                if message is not None and accepted(message):
                    return message
                readable = readable or message
                if number >= LOOKED_AT:
                    break
            if readable is not None:
                return readable
            if attempt == 0:
                self._odd_names.add(topic)
        raise DatasetError(
            f"{shown(self.path)} is damaged: it lists {topic}, but no message of it can be read: choose another topic, or record it again"
        )

    def _image_topics(self) -> tuple[dict[str, list[str]], list[str], dict[str, str]]:
        """Raw topic -> readable topics with its colour images; topics with depth images; topics with unreadable images -> reason."""
        pictures: dict[str, list[str]] = {}
        depths: list[str] = []
        unread: dict[str, str] = {}
        for topic, kind in sorted(self.topics.items()):
            transport = transport_of(topic, kind)
            if transport is None:
                continue
            why = transport.why_not
            if not why:
                try:
                    message = self._first(topic, lambda m: not images.why_unreadable(m))
                    why = images.why_unreadable(message)
                    if not why and images.is_depth(message):
                        depths.append(topic)
                        continue
                except DatasetError as error:
                    why = str(error)
            if why:
                unread[topic] = why
            else:
                pictures.setdefault(base_topic(topic), []).append(topic)
        for topic, why in unread.items():
            log.info("%s is ignored: %s", topic, why)
        return pictures, depths, unread

    def __len__(self) -> int:
        """Number of images."""
        return self.counts[self.topic]

    def iter_frames(self) -> Iterator[Frame]:
        """All images in the bag's order, one in memory at a time, without lens distortion. Damaged ones are left out, counted
        and logged; a zero stamp is replaced by the time of recording."""
        self.unreadable = 0
        for stamp, info, message in self._chosen(self._with_info(self.topic)):
            if message is None:
                self._leave_out("a message does not match its type")
                continue
            try:
                picture = images.decode_image(self._as_image(message), self._levels)
            except FrameError as error:
                self._leave_out(str(error))
                continue
            intrinsics, remark = None, ""
            if info is not None:
                picture, intrinsics, remark = self._rectification.image(picture, info)
            self.remark = remark
            self._say(remark)
            camera = message.header.frame_id.lstrip("/") or self.camera
            yield Frame(picture, stamp, camera, intrinsics, encoding=images.encoding_of(message))

    def _leave_out(self, why: str) -> None:
        self.unreadable += 1
        self._say(f"{self.topic}: an image is left out: {why}")

    def _chosen(self, messages: Iterable[tuple[int, Any, Any]]) -> Iterator[tuple[int, Any, Any]]:
        """The messages of the requested part, with their stamps instead of the times of recording."""
        chosen = Chosen(self._part)
        for log_ns, info, message in messages:
            stamp = log_ns if message is None else stamp_ns(message.header.stamp) or log_ns
            if chosen.takes(stamp):
                yield stamp, info, message
            if chosen.done:
                return

    def _say(self, remark: str) -> None:
        if remark and remark not in self._said and len(self._said) < MOST_SAID:
            self._said.add(remark)
            log.warning("%s: %s", shown(self.path), remark)

    def _with_info(self, of: str) -> Iterator[tuple[int, Any, Any]]:
        """(time of recording, CameraInfo or None, message or None if it is damaged) of a topic; the first CameraInfo also holds for
        what came before it."""
        about = self.camera_info_topic
        info = next((m for _, m in self._decoded(about) if m is not None), None) if about else None
        for log_ns, topic, message in self._mixed(of, about):
            if topic == of:
                yield log_ns, info, message
            elif message is not None:
                info = message

    def iter_depth(self) -> Iterator[tuple[int, F32]]:
        """(stamp in ns, (H, W) z-depth in metres, NaN where unknown) of every depth image; nothing without a topic.

        The pixels are those of `iter_frames`: depth registered to a distorted image is undistorted, and smaller depth is enlarged
        by nearest neighbours. Damaged ones are left out.
        """
        for log_ns, info, message in self._with_info(self.depth_topic) if self.depth_topic else ():
            try:
                if message is None:
                    raise FrameError("it does not match its type")
                depth = _as_large(images.decode_depth(images.as_depth(message)), self._size)
            except FrameError as error:
                self._say(f"{self.depth_topic}: a depth image is left out: {error}")
                continue
            if info is not None:
                depth, remark = self._rectification.depth(depth, info, self.depth_topic)
                self._say(remark)
            yield stamp_ns(message.header.stamp) or log_ns, depth

    def truth(self) -> dict[int, F64]:
        """Stamp in ns -> world_from_camera (4, 4), oldest first; empty if unknown."""
        poses = {}
        for log_ns, message in self._decoded(self.truth_topic) if self.truth_topic else ():
            pose = None if message is None else _pose_of(message, self.topics[self.truth_topic])
            if pose is None:
                self._say(f"{self.truth_topic}: a pose is left out: it is damaged, or not a rigid transform")
                continue
            poses[stamp_ns(message.header.stamp) or log_ns] = pose
        return dict(sorted(poses.items()))

    def iter_raw(self, *topics: str) -> Iterator[tuple[int, str, bytes]]:
        """(time of recording in ns, topic, serialized ROS 2 message) of those topics, in the order of recording. Damaged messages are
        left out, and so are images outside of the requested part. Of the other topics the newest message before an image of the part
        comes with it, at its time."""
        chosen = Chosen(self._part)
        inside, before = not self._part, dict[str, bytes]()
        for log_ns, channel, data in self._messages(*topics):
            message = self._decode(channel, data)
            of_images = channel.topic == self.topic
            if of_images:
                stamp = log_ns if message is None else stamp_ns(message.header.stamp) or log_ns
                inside = chosen.takes(stamp)
                if chosen.done and not inside:
                    return
            if message is None:
                continue
            to_cdr = self._stores["cdr"].ros1_to_cdr if channel.encoding == "ros1" else None
            raw = bytes(data if to_cdr is None else to_cdr(data, channel.type))
            if inside:
                for topic, kept in before.items() if of_images else ():
                    yield log_ns, topic, kept
                before = {} if of_images else before
                yield log_ns, channel.topic, raw
            elif not of_images:
                before[channel.topic] = raw

    def close(self) -> None:
        self._recording.close()

    def __enter__(self) -> Bag:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self.close()

    def _messages(self, *topics: str) -> Iterator[Any]:
        """Messages with the expected type of each topic: another type with the same name is another stream."""
        for log_ns, channel, data in self._recording.messages(*filter(None, topics)):
            if self.topics.get(channel.topic) == channel.type and channel.encoding in self._stores:
                yield log_ns, channel, data

    def _decode(self, channel: Channel, data: bytes) -> Any:
        """The message, None if its bytes are damaged. Only types used here are looked up."""
        store = self._stores[channel.encoding]
        deserialize = store.deserialize_cdr if channel.encoding == "cdr" else store.deserialize_ros1
        try:
            return deserialize(_ascii_frame(data) if channel.topic in self._odd_names else data, channel.type)
        except Exception:  # damaged bytes raise all kinds of exceptions
            if channel.topic != self.topic:
                self.broken[channel.topic] = self.broken.get(channel.topic, 0) + 1
                self._say(f"{channel.topic}: a message is left out: it does not match its type")
            return None

    def _mixed(self, *topics: str) -> Iterator[tuple[int, str, Any]]:
        for log_ns, channel, data in self._messages(*topics):
            yield log_ns, channel.topic, self._decode(channel, data)

    def _decoded(self, topic: str) -> Iterator[tuple[int, Any]]:
        return ((log_ns, message) for log_ns, _, message in self._mixed(topic))


def _ascii_frame(data: bytes) -> bytes:
    """A message that begins with a Header, with non-ASCII bytes of its frame_id replaced. The frame_id has the same position in CDR
    and ROS 1 serialization."""
    length = int.from_bytes(data[12:16], "big" if data[:2] == b"\0\0" else "little")
    name = data[16 : 16 + length]
    return data[:16] + bytes(c if c < 128 else ord("_") for c in name) + data[16 + length :]


def _as_large(depth: F32, size: tuple[int, int]) -> F32:
    """Resizes depth to (height, width) = size by nearest neighbours."""
    if depth.shape == size:
        return depth
    rows, columns = ((np.arange(n) * old) // n for n, old in zip(size, depth.shape, strict=True))
    return np.ascontiguousarray(depth[rows[:, None], columns])


def _pose_of(message: Any, kind: str) -> F64 | None:
    """(4, 4), None if it is not a rigid transform."""
    if kind == _TRANSFORM:
        p, q = message.transform.translation, message.transform.rotation
    else:
        pose = message.pose.pose if hasattr(message.pose, "pose") else message.pose
        p, q = pose.position, pose.orientation
    try:
        matrix = transform(matrix_from_quat_xyzw([q.x, q.y, q.z, q.w]), [p.x, p.y, p.z])
    except ValueError:
        return None
    return matrix if bool(is_finite_pose(matrix)) else None


def _listed(topics: Any) -> str:
    return ", ".join(sorted(topics)) or "no topics"
