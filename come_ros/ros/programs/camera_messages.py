"""A recording as the serialized messages of a camera, with the stamps and times that a player wants."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass

from rclpy.serialization import serialize_message

from ...datasets import Recording
from ...datasets.rosbag import Bag
from ...messages import NANO, serialized_stamp_ns, with_stamp_ns
from .. import messages

IMAGE, INFO = "sensor_msgs/msg/Image", "sensor_msgs/msg/CameraInfo"

Message = tuple[int, str, bytes]
"""(when, ns; topic; bytes)"""


@dataclass(frozen=True)
class PlayedTopics:
    """What is played. images: the topics of images. types: topic -> type of all. count: number of images, None if unknown. source: the
    messages, again from the first one with each call."""

    images: tuple[str, ...]
    types: dict[str, str]
    count: int | None
    source: Callable[[], Iterable[Message]]


def topics_of(camera: str) -> tuple[str, str]:
    """Image topic and camera_info topic of a camera of that name."""
    name = camera.strip("/")
    return f"/{name}/image_raw", f"/{name}/camera_info"


def of_bag(bag: Bag, camera: str | None, whole: bool) -> PlayedTopics:
    """A bag's messages as they were recorded, on their own topics or on those of `camera`. whole: whether no part was chosen."""
    topics = [topic for topic in (bag.topic, bag.camera_info_topic) if topic]
    names = {topic: topic for topic in topics}
    if camera is not None:
        image, info = topics_of(camera)
        for topic, new in zip(topics, (f"{image}/compressed" if bag.compressed else image, info), strict=False):
            names[topic] = new

    def source() -> Iterator[Message]:
        return ((when, names[topic], data) for when, topic, data in bag.iter_raw(*topics))

    types = {new: bag.topics[topic] for topic, new in names.items()}
    return PlayedTopics((names[bag.topic],), types, len(bag) if whole else None, source)


def of_recording(recording: Recording, camera: str) -> PlayedTopics:
    """Image and, where the intrinsics are known, CameraInfo of every frame of any recording, on the topics of `camera`."""
    image, info = topics_of(camera)

    def source() -> Iterator[Message]:
        for frame in recording.iter_frames():
            head = messages.header(frame.stamp_ns, frame.camera)
            height, width = frame.image.shape[:2]
            if frame.intrinsics is not None:
                about = messages.camera_info_message(frame.intrinsics, width, height, head)
                yield frame.stamp_ns, info, serialize_message(about)
            yield frame.stamp_ns, image, serialize_message(messages.image_message(frame.image, head))

    return PlayedTopics((image,), {image: IMAGE, info: INFO}, recording.count, source)


def stamped_now(
    source: Iterable[Message], images: Container[str], rate: float, now_ns: Callable[[], int] = time.time_ns
) -> Iterator[Message]:
    """The same messages, stamped as if the first image were taken when it is asked for. rate: speed of playing. Stamps that were equal
    stay equal; where there is none, it is the time of recording."""
    before: list[Message] = []  # a camera_info may be much older than the images
    first: int | None = None
    begun = 0
    for message in source:
        if first is None:
            before.append(message)
            if message[1] not in images:
                continue
            begun, first = now_ns(), serialized_stamp_ns(message[2]) or message[0]
        for when, topic, data in before or (message,):
            stamp = serialized_stamp_ns(data) or when
            yield when, topic, with_stamp_ns(data, max(0, begun + round((stamp - first) / rate)))
        before = []


def repeated(source: Callable[[], Iterable[Message]]) -> Iterator[Message]:
    """The messages again and again, each round after the one before, one period later. Ends if a round has no messages."""
    shift = 0
    for _ in itertools.count():
        first = last = None
        period = 0
        for when, topic, data in source():
            first = when if first is None else first
            if last is not None and when > last:
                period = when - last
            last = when if last is None else max(last, when)
            yield when + shift, topic, with_stamp_ns(data, serialized_stamp_ns(data) + shift) if shift else data
        if first is None or last is None:
            return
        shift += last - first + (period or NANO)
