"""Small recordings in all storages, written by others' writers, for the tests of readers and the fuzz."""

from __future__ import annotations

import io
import shutil
import struct
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

WIDTH, HEIGHT = 40, 30
START_NS = 1_700_000_000_000_000_000
STEP_NS = 100_000_000
IMAGE, INFO = "sensor_msgs/msg/Image", "sensor_msgs/msg/CameraInfo"
IMAGES, INFOS, DEPTHS, TRUTH = (
    "/camera/image_raw",
    "/camera/camera_info",
    "/camera/depth/image_raw",
    "/ground_truth/odometry",
)
Damage = Callable[[bytes], bytes]


@cache
def store(ros1: bool = False) -> Any:
    from rosbags.typesys import Stores, get_typestore

    return get_typestore(Stores.ROS1_NOETIC if ros1 else Stores.ROS2_JAZZY)


def picture(i: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """(height, width, 3): a smooth pattern that moves."""
    v, u = np.mgrid[:height, :width]
    wave = 120 + 60 * np.sin((u + 2 * i) / 4) + 60 * np.cos(v / 3)
    return np.repeat(wave.astype(np.uint8)[..., None], 3, axis=2)


def head(i: int, frame: str = "camera_optical_frame", ros1: bool = False, stamp: int | None = None) -> Any:
    types = store(ros1).types
    sec, nanosec = divmod(START_NS + i * STEP_NS if stamp is None else stamp, 10**9)
    time = types["builtin_interfaces/msg/Time"](sec, nanosec)
    return types["std_msgs/msg/Header"](*((i, time, frame) if ros1 else (time, frame)))


def image(
    a: np.ndarray, i: int, encoding: str = "rgb8", frame: str = "camera_optical_frame", ros1: bool = False
) -> Any:
    a = np.ascontiguousarray(a)
    data = a.view(np.uint8).reshape(-1)
    return store(ros1).types[IMAGE](head(i, frame, ros1), a.shape[0], a.shape[1], encoding, 0, a.strides[0], data)


def compressed(data: bytes, i: int, form: str, frame: str = "camera_optical_frame") -> Any:
    return store().types["sensor_msgs/msg/CompressedImage"](head(i, frame), form, np.frombuffer(data, np.uint8))


def packed(a: np.ndarray, kind: str = "PNG") -> bytes:
    """As a file."""
    out = io.BytesIO()
    Pillow.fromarray(a).save(out, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return out.getvalue()


def compressed_depth(depth: np.ndarray) -> bytes:
    """16UC1 as image_transport has it: 12 bytes, then a PNG."""
    return struct.pack("<iff", 0, 0.0, 0.0) + packed(depth)


def camera_info(
    i: int, width: int = WIDTH, height: int = HEIGHT, focal: float = 35.0, frame: str = "camera_optical_frame"
) -> Any:
    types = store().types
    k = np.array([focal, 0, width / 2, 0, focal, height / 2, 0, 0, 1.0])
    p = np.array([focal, 0, width / 2, 0, 0, focal, height / 2, 0, 0, 0, 1.0, 0])
    nothing = types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
    return types[INFO](
        head(i, frame), height, width, "plumb_bob", np.zeros(5), k, np.eye(3).reshape(-1), p, 0, 0, nothing
    )


def odometry(i: int) -> Any:
    t = store().types
    vector, zero = t["geometry_msgs/msg/Vector3"], np.zeros(36)
    pose = t["geometry_msgs/msg/Pose"](
        t["geometry_msgs/msg/Point"](0.1 * i, 0.0, 0.0), t["geometry_msgs/msg/Quaternion"](0.0, 0.0, 0.0, 1.0)
    )
    twist = t["geometry_msgs/msg/Twist"](vector(0.0, 0.0, 0.0), vector(0.0, 0.0, 0.0))
    return t["nav_msgs/msg/Odometry"](
        head(i, "world"), "camera_optical_frame", t["geometry_msgs/msg/PoseWithCovariance"](pose, zero),
        t["geometry_msgs/msg/TwistWithCovariance"](twist, zero),
    )  # fmt: skip


def usual(i: int) -> list[tuple[str, Any]]:
    """(topic, message) of a camera with depth and truth."""
    depth = np.full((HEIGHT, WIDTH), 2000 + 10 * i, np.uint16)
    return [
        (INFOS, camera_info(i)), (IMAGES, image(picture(i), i)), (DEPTHS, image(depth, i, "16UC1")), (TRUTH, odometry(i)),
    ]  # fmt: skip


def write(
    path: Path,
    count: int = 8,
    storage: str = "mcap",
    messages: Callable[[int], Sequence[tuple[str, Any]]] = usual,
    damage: tuple[str, int, Damage] | None = None,
    compression: str = "",
    first: int = 0,
) -> Path:
    """A ROS 2 bag by rosbags. damage: (topic, number of the message, what becomes of its bytes). compression: file or message.
    first: number of the first message."""
    from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

    shutil.rmtree(path, ignore_errors=True)
    writer = Writer(path, version=9, storage_plugin=StoragePlugin[storage.upper()])
    if compression:
        writer.set_compression(CompressionMode[compression.upper()], CompressionFormat.ZSTD)
    connections: dict[str, Any] = {}
    with writer:
        for i in range(first, first + count):
            for topic, message in messages(i):
                kind = message.__msgtype__
                if topic not in connections:
                    connections[topic] = writer.add_connection(topic, kind, typestore=store())
                data = bytes(store().serialize_cdr(message, kind))
                if damage is not None and (topic, i) == damage[:2]:
                    data = damage[2](data)
                writer.write(connections[topic], START_NS + i * STEP_NS, data)
    return path


def write_ros1(path: Path, count: int = 8, packing: str = "", definition: str | None = None, md5: str = "*") -> Path:
    """A ROS 1 bag of images by rosbags; definition: of an odd topic next to them."""
    from rosbags.rosbag1 import Writer

    path.unlink(missing_ok=True)
    writer = Writer(path)
    if packing:
        writer.set_compression(Writer.CompressionFormat[packing.upper()])
    with writer:
        images = writer.add_connection(IMAGES, IMAGE, typestore=store(ros1=True))
        odd = None if definition is None else writer.add_connection("/odd", "my/msg/Odd", msgdef=definition, md5sum=md5)
        for i in range(count):
            data = store(ros1=True).serialize_ros1(image(picture(i), i, ros1=True), IMAGE)
            writer.write(images, START_NS + i * STEP_NS, data)
            if odd is not None:
                writer.write(odd, START_NS + i * STEP_NS, bytes(8))
    return path


def write_mcap(
    path: Path,
    count: int = 8,
    extra: tuple[str, str, str, bytes, bytes] | None = None,
    profile: str = "ros2",
    ros1: bool = False,
    images_too: bool = True,
    **options: Any,
) -> Path:
    """An MCAP file by the mcap package. extra: message encoding, schema's name and encoding, schema, bytes of each message of one
    more topic. options: of the writer, such as index_types, use_chunking, chunk_size."""
    from mcap.writer import Writer

    with open(path, "wb") as stream:
        writer = Writer(stream, **options)
        writer.start(profile, "test")
        text, _ = store(ros1).generate_msgdef(IMAGE, ros_version=1 if ros1 else 2)
        schema = writer.register_schema(
            "sensor_msgs/Image" if ros1 else IMAGE, "ros1msg" if ros1 else "ros2msg", text.encode()
        )
        images = writer.register_channel(IMAGES, "ros1" if ros1 else "cdr", schema)
        odd = None
        if extra is not None:
            number = writer.register_schema(*extra[1:4]) if extra[1] else 0
            odd = writer.register_channel("/odd", extra[0], number)
        for i in range(count):
            message = image(picture(i), i, ros1=ros1)
            data = store(ros1).serialize_ros1(message, IMAGE) if ros1 else store().serialize_cdr(message, IMAGE)
            when = START_NS + i * STEP_NS
            if images_too:
                writer.add_message(images, when, bytes(data), when)
            if odd is not None and extra is not None:
                writer.add_message(odd, when, extra[4], when)
        writer.finish()
    return path


def write_images(path: Path, count: int = 6, suffix: str = ".png", size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Pillow.fromarray(picture(i, *size)).save(path / f"{i:02}{suffix}")
    return path
